"""Is an HDF5 file complete that has settled, but that nobody has renamed into place?

It has to open, its writer must have closed it, and whatever it points to has to be there and settled, too.
This only ever delays a file, and never for ever: a writer that was killed leaves a file that looks open, and
an acquisition that was stopped a master that waits for files in vain.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .config import Watch
from .disk import Disk
from .file import Stamp, look, printable
from .reader import Reader, Verdict

log = logging.getLogger("beamhub.agent")

TOLD = (
    30.0  # seconds that a file is held back before people are told: most wait only until others have settled
)
SUFFIXES = (".h5", ".hdf5", ".nxs")


@dataclass(frozen=True, slots=True)
class Incomplete:
    """Why a file should wait, and for how many seconds at most."""

    reason: str
    patience: float


@dataclass(frozen=True, slots=True)
class _Held:
    stamp: Stamp
    since: float
    verdict: Verdict
    incomplete: Incomplete | None = None


class Holding:
    """The files that are held back, each until it is complete or has waited long enough.

    Args:
        settling: whether a file (by its path) is known and has not settled yet.
        disk: where the files lie.
        once: nobody writes any more, so that what is missing now stays missing.
    """

    def __init__(self, settling: Callable[[str], bool], disk: Disk, *, once: bool = False) -> None:
        self.doubts: dict[str, str] = {}  # what was let go although something is wrong with it
        self._settling = settling
        self._disk = disk
        self._once = once
        self._held: dict[str, _Held] = {}
        self._reader = Reader()

    @staticmethod
    def concerns(name: str) -> bool:
        return name.lower().endswith(SUFFIXES)

    async def holds(self, watch: Watch, path: str, stamp: Stamp, now: float) -> bool:
        """Should this settled file wait? It is looked into once in each state; then only its sources are."""
        held = self._held.get(path)
        if new := held is None or held.stamp != stamp:
            held = _Held(stamp, now, await self._reader.look(path, str(watch.path)))
        incomplete = await self._disk.ask(self._incomplete, watch, path, held.verdict)
        if incomplete and now < held.since + incomplete.patience:
            self._held[path] = replace(held, incomplete=incomplete)
            if new:
                log.info("%s is held back: it %s", printable(path), incomplete.reason)
            return True
        self.forget(path)
        if incomplete:
            log.warning("%s is sent as it is: it %s", printable(path), incomplete.reason)
            if held.verdict.problem and len(self.doubts) < 1000:
                self.doubts[path] = f"was sent as it is: it {incomplete.reason}"
        return False

    def held(self) -> Iterator[str]:
        """The paths of what is held back."""
        yield from self._held

    def told(self, now: float) -> Iterator[tuple[str, str]]:
        """(path, why) of what is held back for longer than it usually takes."""
        for path, held in self._held.items():
            if held.incomplete and now >= held.since + TOLD:
                end = math.ceil((held.since + held.incomplete.patience - now) / 60)
                yield path, f"is held back for {end} more min: it {held.incomplete.reason}"

    def forget(self, path: str) -> None:
        self._held.pop(path, None)
        self.doubts.pop(path, None)

    async def sources(self, watch: Watch, path: str) -> list[str]:
        """The paths of the files that a master names, whether they are there or not."""
        verdict = await self._reader.look(path, str(watch.path))
        folder = os.path.dirname(path)  # noqa: PTH120
        return [f"{folder}/{source}" for source in verdict.sources if ".." not in source.split("/")]

    async def rest(self) -> None:
        """Ends the child process whenever it has nothing to do, until this is cancelled."""
        await self._reader.rest()

    async def close(self) -> None:
        """Ends the child process."""
        await self._reader.close()

    def _incomplete(self, watch: Watch, path: str, verdict: Verdict) -> Incomplete | None:
        if verdict.problem:
            wait = 0.0 if verdict.hopeless or self._once else watch.wait_for_writer
            return Incomplete(verdict.problem, wait)
        for source in verdict.sources:
            place = os.path.join(os.path.dirname(path), source)  # noqa: PTH118, PTH120
            folder = os.path.dirname(place)  # noqa: PTH120
            if os.path.realpath(folder) != folder:  # a link's: wherever it leads, it isn't looked at
                continue
            if self._settling(place):
                return Incomplete(
                    f"points to {printable(source)}, which has not settled", watch.wait_for_files
                )
            if look(place) is None:
                wait = 0.0 if self._once else watch.wait_for_files
                return Incomplete(f"points to {printable(source)}, which is not there", wait)
        return None
