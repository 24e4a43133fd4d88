"""One watched directory: what appears there, when each of its files is ready, and that they are sent.

Each has threads, a queue, and senders of its own: one that hangs, as a dead file server makes it, keeps
nothing of the others waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path

from .common import Common
from .complete import Holding
from .config import Watch
from .disk import Disk
from .file import Stamp, look, looks
from .grow import STREAMS, Growth
from .journal import State
from .queue import MASTERS
from .send import BATCHES, Sender
from .settle import Settling
from .watch import AT_ONCE, LostError, Sighting, Tree

log = logging.getLogger("beamhub.agent")

SILENCE = 10.0  # seconds after which a directory that does not answer is told of
PROBE = 2.0  # seconds between questions whether it answers
RETURN = 2.0  # seconds between looks for a directory that is gone


class Root:
    """A directory that is watched, with all below it."""

    def __init__(self, watch: Watch, common: Common) -> None:
        self.watch = watch
        self.silent = ""  # that it does not answer
        self.lost = ""  # that it is gone
        self.there = asyncio.Event()  # unset while it is: what is missing in it need not be gone
        self.there.set()
        self.free_disk: int | None = None  # bytes
        self.concluded = asyncio.Event()  # all that was there at the start is known
        self.settling = Settling()
        self.judged: dict[str, Stamp] = {}  # settled, and to be judged whether they are complete
        # enough for all that is asked at a time, twice: what hangs may have been given up
        self.disk = Disk(2 * (common.config.upload.parallel + BATCHES + STREAMS) + 16)
        self.growth = Growth(watch, common, self.disk, self.is_gone)
        self.sender = Sender(watch, common, self.disk, self.growth, self)
        self.holding = Holding(self._unsettled, self.disk, once=common.once)
        self._common = common
        self._candidates = asyncio.Event()  # there is something new to settle
        self._settled: asyncio.Queue[Sighting] = asyncio.LifoQueue()  # to be judged, the newest first
        self._masters: asyncio.Queue[Sighting] = asyncio.Queue()  # whose files may be growing
        self.tree = self._new_tree()

    def works(self) -> Iterator[Coroutine[None, None, None]]:
        """What goes on side by side until it is cancelled.

        Raises, from these:
            LostError: the directory is gone, when nobody writes any more.
        """
        yield from self.sender.works()
        yield from (work() for work in (self._follow, self._settle, self._judge, self._probe, self._conclude))
        yield self.holding.rest()
        if not self._common.once:
            yield from (*self.growth.works(), self._learn())

    async def close(self) -> bool:
        """When nothing goes on any more. Whether nothing hangs."""
        await self.holding.close()
        await self.growth.close()
        return await self.disk.close()

    def has(self, path: str) -> bool:
        return path.startswith(f"{self.watch.path}/")

    def waiting(self) -> Iterator[str]:
        """The paths of all that has been seen and neither arrived nor failed, as far as it is in memory."""
        yield from self.settling
        yield from self.judged
        yield from (item.path for item in self.sender.queue)
        yield from self.sender.active

    @property
    def is_done(self) -> bool:
        """Has all that was there been seen, and is nothing left to do?"""
        sender = self.sender
        return self.concluded.is_set() and not (sender.queue or sender.active or self.settling or self.judged)

    def stamp(self, path: str) -> Stamp | None:
        """Of a file that is not ready."""
        return self.judged.get(path) or self.settling.stamp(path)

    def unsettled(self) -> dict[str, Stamp]:
        """What is not ready yet."""
        return {**self.settling.stamps(), **self.judged}

    async def look(self, path: str) -> Stamp | None:
        """The stamp of a file here; None also while the directory does not answer."""
        if self.silent:
            return None
        try:
            async with asyncio.timeout(SILENCE):
                return await self.disk.ask(look, path)
        except TimeoutError:
            return None

    async def is_gone(self) -> bool:
        """Is the directory itself not there, rather than one of its files?"""
        _, device = await self.disk.ask(_disk, self.watch.path)
        if device is None or device != self.tree.device:
            self.there.clear()
            self.tree.look_again()
        return not self.there.is_set()

    def sighted(self, sighting: Sighting) -> None:
        """A file is there, perhaps not for the first time."""
        path, stamp = sighting.path, sighting.stamp
        sender, journal = self.sender, self._common.journal
        if active := sender.active.get(path):  # looked at again when it is through
            active.finished = stamp if sighting.finished else active.finished
            return
        if (waiting := sender.queue.find(path)) and waiting.stamp == stamp:
            return
        sender.queue.drop(path)
        entry = journal.find(path)
        if entry is not None and entry.state is State.SKIPPED:
            return
        was_ready = entry is not None and entry.stamp == stamp and entry.state is not State.GROWING
        if entry is not None and entry.upload and entry.stamp != stamp:
            journal.grows_again(path, stamp)
        if sighting.finished or was_ready:
            self.forget(path)
            self._ready(sighting)
        elif path not in self.judged:  # else looked at again when it is
            self.settling.seen(path, stamp, self.watch.settle, time.monotonic())
            self._candidates.set()
            self.growth.seen(sighting.name, stamp)

    def name(self, path: str) -> str:
        """Relative to the directory."""
        return path[len(str(self.watch.path)) + 1 :]

    def sighting(self, path: str, stamp: Stamp) -> Sighting:
        return Sighting(self.watch, self.name(path), stamp)

    async def finished(self, path: str) -> str:
        """A detector says that this file is finished: it is ready. Else the reason why it can't be sent."""
        if self.silent:
            return "lies in a directory that does not answer: it is sent when it has settled"
        sighting = await self.disk.ask(self.tree.finished, path)
        if isinstance(sighting, str):
            return sighting
        if not self._common.journal.settled(path, sighting.stamp):  # else it is there already
            self.sighted(sighting)
        return ""

    def forget(self, path: str) -> None:
        """Nothing is waited for any more before this file is ready."""
        self.settling.drop(path)
        self.judged.pop(path, None)
        self.holding.forget(path)

    async def leave(self, path: str) -> None:
        """The file is not wanted: nothing more of it is sent, unless it has just arrived."""
        self.forget(path)
        await self.sender.leave(path)
        with contextlib.suppress(TimeoutError):  # a stream that hangs lets go of it when the disk answers
            async with asyncio.timeout(SILENCE):
                await self.growth.leave(path)
        self.forget(path)

    # --- what goes on --------------------------------------------------------------------------------------

    def _new_tree(self) -> Tree:
        return Tree(self.watch, self._common.journal.settled, self.sighted, self.disk)

    def _unsettled(self, path: str) -> bool:
        return path in self.settling or path in self.judged

    async def _follow(self) -> None:
        if not self._common.once and not await self._is_back():
            self._lose(
                f"{self.watch.path} is empty, though files of it have not been sent: is its disk mounted?"
            )
            await self._return()
        while True:
            try:
                await self.tree.follow()
            except LostError as error:
                if self._common.once:
                    raise
                self._lose(f"{error}: waiting for it to come back")
            self.tree = self._new_tree()
            await self._return()

    def _lose(self, problem: str) -> None:
        self.there.clear()
        if problem != self.lost:
            log.error("%s", problem)
        self.lost = problem

    async def _return(self) -> None:
        await asyncio.sleep(RETURN)
        while not await self._is_back():  # noqa: ASYNC110 (nothing tells of a mount)
            await asyncio.sleep(RETURN)

    async def _is_back(self) -> bool:
        """Is it there, and not just the empty place of a disk whose files have not all been sent?"""
        known = any(self.has(entry.path) for entry in self._common.journal.unfinished())
        return await self.disk.ask(_has_any if known else Path.is_dir, self.watch.path)

    async def _probe(self) -> None:
        """How much room its disk has, and whether it answers at all."""
        while True:
            asked = self.disk.begin(_disk, self.watch.path)
            await asyncio.wait({asked}, timeout=SILENCE)
            if not asked.done():
                log.error("%s does not answer", self.watch.path)
                self.silent = f"{self.watch.path} does not answer: is its file server there?"
                await asyncio.wait({asked})
                log.info("%s answers again", self.watch.path)
                self.silent = ""
                self.tree.look_again()  # also at what was asked for meanwhile
            self.free_disk, device = asked.result()
            if self.there.is_set() and self.tree.device not in (None, device):
                self.there.clear()
                self.tree.look_again()
            elif self.tree.walked.is_set() and self.tree.device == device:
                if self.lost:
                    log.info("%s is back", self.watch.path)
                self.lost = ""
                self.there.set()
            await asyncio.sleep(PROBE)

    async def _settle(self) -> None:
        while True:
            try:
                async with asyncio.timeout_at(self.settling.next_check()):
                    await self._candidates.wait()
                self._candidates.clear()
                continue  # perhaps with an earlier check to wait for
            except TimeoutError:
                pass
            due = self.settling.due(time.monotonic())
            for begin in range(0, len(due), AT_ONCE):
                paths, now = due[begin : begin + AT_ONCE], time.monotonic()
                for path, stamp in zip(paths, await self.disk.ask(looks, paths), strict=True):
                    self._looked(path, stamp, now)
            self._common.step.set()

    def _looked(self, path: str, stamp: Stamp | None, now: float) -> None:
        """A file that was due has this stamp now; None: it is gone."""
        if stamp is None:
            self.holding.forget(path)
        settled = self.settling.looked(path, stamp, now)
        if stamp is None:
            return
        sighting = self.sighting(path, stamp)
        if not settled:
            self.growth.seen(sighting.name, stamp)
        elif self.holding.concerns(path):
            self.judged[path] = stamp
            self._settled.put_nowait(sighting)
        else:
            self._ready(sighting)

    async def _learn(self) -> None:
        """Which files masters name: those are sent while they grow."""
        while True:
            sighting = await self._masters.get()
            self.growth.expect(await self.holding.sources(self.watch, sighting.path))

    async def _judge(self) -> None:
        """Settled files that may not be complete: they are ready, or settle again."""
        while True:
            sighting = await self._settled.get()
            path, now = sighting.path, time.monotonic()
            held = await self.holding.holds(self.watch, path, sighting.stamp, now)
            if self.silent:  # what can't be read has not been judged
                self.holding.forget(path)
                held = True
            stamp = await self.disk.ask(look, path)
            if self.judged.pop(path, None) is None:  # said to be finished meanwhile
                continue
            if stamp is None:
                self.holding.forget(path)
            elif held or stamp != sighting.stamp:
                self.settling.seen(path, stamp, self.watch.settle, now)
                self._candidates.set()
            else:
                self._ready(sighting)
            self._common.step.set()

    def _ready(self, sighting: Sighting) -> None:
        if sighting.name.endswith(MASTERS) and not self._common.once and not self.watch.in_place:
            self._masters.put_nowait(sighting)
        self._common.journal.queue(sighting.path, sighting.stamp)
        self._common.found(sighting.stamp)
        self.sender.queue.add(self.watch, sighting.name, sighting.stamp)

    async def _conclude(self) -> None:
        """After the first look: are files missing that had been ready?"""
        await self.tree.walked.wait()
        journal = self._common.journal
        entries = [entry for entry in journal.unfinished() if self.has(entry.path)]
        stamps = await self.disk.ask(looks, [entry.path for entry in entries])
        for entry, stamp in zip(entries, stamps, strict=True):
            if stamp is None and journal.find(entry.path) == entry:  # else it has gone on meanwhile
                await self.sender.miss(entry.path, entry.stamp)
        self.concluded.set()
        self._common.step.set()


def _disk(folder: Path) -> tuple[int | None, int | None]:
    """How many bytes are free on the disk, and its number; None where the directory is gone, which is told
    elsewhere."""
    try:
        return shutil.disk_usage(folder).free, folder.lstat().st_dev
    except OSError:
        return None, None


def _has_any(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False
