"""Is an HDF5 file complete that has settled, but that nobody has renamed into place?

It has to open, its writer must have closed it, and whatever it points to has to be there and settled, too.
This only ever delays a file, and never for ever: a writer that was killed leaves a file that looks open, and
an acquisition that was stopped a master that waits for files in vain.

HDF5 is read in a child process with bounded memory and time, since a file may crash its reader; the agent
itself stays small.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from beamhub.schemas import Model

from .config import Watch
from .disk import Disk
from .file import Stamp, look, printable

log = logging.getLogger("beamhub.agent")

SUFFIXES = (".h5", ".hdf5", ".nxs")
MEMORY = 1 << 30  # bytes of the child's address space
SECONDS = 20.0  # for one file, of the clock and of the CPU
PARTING = 1.0  # seconds for a child that is killed


class Verdict(Model):
    """What a look into a file has shown.

    Args:
        problem: why the file isn't complete; "" if it is.
        hopeless: no waiting will change that.
        sources: what it points to, relative to its folder.
    """

    problem: str = ""
    hopeless: bool = False
    sources: tuple[str, ...] = ()


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
            self._held[path] = held
            if new:
                log.info("%s is held back: it %s", printable(path), incomplete.reason)
            return True
        self.forget(path)
        if incomplete:
            log.warning("%s is sent as it is: it %s", printable(path), incomplete.reason)
            if held.verdict.problem and len(self.doubts) < 1000:
                self.doubts[path] = f"was sent as it is: it {incomplete.reason}"
        return False

    def forget(self, path: str) -> None:
        self._held.pop(path, None)
        self.doubts.pop(path, None)

    async def sources(self, watch: Watch, path: str) -> list[str]:
        """The paths of the files that a master names, whether they are there or not."""
        verdict = await self._reader.look(path, str(watch.path))
        folder = os.path.dirname(path)  # noqa: PTH120
        return [f"{folder}/{source}" for source in verdict.sources if ".." not in source.split("/")]

    async def rest(self) -> None:
        """Ends the child process when it has answered; another question would start another."""
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


class Reader:
    """Looks into HDF5 files, one at a time, in a child process that lives on between them."""

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self._memory = memory
        self._seconds = seconds
        self._child: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def look(self, path: str, root: str) -> Verdict:
        """A verdict on the file `path` below `root`. A file that is too much for the child is hopeless."""
        async with self._asking:
            return await self._look(path, root)

    async def _look(self, path: str, root: str) -> Verdict:
        tried_before = self._child is not None
        try:
            async with asyncio.timeout(self._seconds):
                line = await self._exchange(path, root)
                if not line and tried_before:  # it may have died of something else in the meantime
                    line = await self._exchange(path, root)
        except TimeoutError:
            await self.close()
            return Verdict(problem=f"takes more than {self._seconds:g} s to look into", hopeless=True)
        except asyncio.CancelledError:
            await self.close()
            raise
        try:
            return Verdict.model_validate_json(line)
        except ValidationError:
            await self.close()
            return Verdict(problem="exhausts or crashes what looks into it", hopeless=True)

    async def rest(self) -> None:
        async with self._asking:
            await self.close()

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            child.kill()
        with contextlib.suppress(TimeoutError):  # one that waits for a disk ends when that answers
            async with asyncio.timeout(PARTING):
                await child.wait()
        if child.stdin is not None:
            child.stdin.close()

    async def _exchange(self, path: str, root: str) -> bytes:
        """The child's answer; b"" if it died over the question."""
        if self._child is None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                f"{__package__}.hdf5",
                str(self._memory),
                str(int(self._seconds)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
                # nothing of the agent's environment; no filter plugins; no threads' arenas
                env={"OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::", "LC_ALL": "C.UTF-8"},
                # or all of the agent waits until the child has closed what it inherited, which a file system
                # that hangs keeps it from (nor may it be the child's session); all closes by itself anyway
                close_fds=False,
            )
        child = self._child
        assert child.stdin  # noqa: S101 (a pipe)
        assert child.stdout  # noqa: S101
        try:
            child.stdin.write(Question(path=path, root=root).model_dump_json().encode() + b"\n")
            await child.stdin.drain()
            line = await child.stdout.readline()
        except (ConnectionError, ValueError):  # ValueError: an endless line
            line = b""
        if not line:
            await self.close()
        return line


class Question(Model):
    """What the child is asked: about the file `path`, which must lie below `root`."""

    path: str
    root: str
