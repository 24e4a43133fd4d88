"""The agent itself: finds files, decides when they are ready, sends them, and tells how it is doing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from beamhub import __version__
from beamhub.schemas import FileProgress, Heartbeat, JournalLine, Upload, UploadState

from .complete import Holding
from .config import Config, Watch
from .done import Listener
from .file import (
    CHUNK,
    ChangedError,
    Digesting,
    GoneError,
    Stamp,
    digest_of,
    look,
    moved,
    open_in_state,
    printable,
    read,
    rest,
    shortened,
)
from .grow import MASTERS, Growth
from .journal import Entry, Journal, State
from .orders import LONGEST_NAME, Orders
from .parcel import body, pack
from .pause import Pause
from .queue import SMALL, Item, Queue
from .service import (
    PART,
    DigestRequiredError,
    OffsetError,
    RefusedError,
    RestartError,
    Service,
    UnavailableError,
)
from .settle import Settling
from .throttle import Throttle
from .watch import LostError, Sighting, Tree

log = logging.getLogger("beamhub.agent")

HEARTBEAT = 2.0  # seconds
SILENCE = 10.0  # seconds after which a directory that does not answer is told of
HEARD = 4  # done messages at a time
REST = 60.0  # seconds without an HDF5 file, after which nothing is kept at hand to look into the next one
TOGETHER = 4 << 20  # bytes of small files that are sent together
BATCHES = 2  # of them, on their way at a time
RETURN = 2.0  # seconds between looks for a directory that is gone
ATTEMPTS = 5  # from the beginning, at one file in one state
SHOWN = 20  # errors in a heartbeat
LONGEST = 500  # characters of each
REMEMBERED = 1000  # errors in memory


class Rate:
    """Bytes per second over the last seconds."""

    WINDOW = 5.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, count: int) -> None:
        self._steps.append((time.monotonic(), count))
        self._sum += count

    def __call__(self) -> float:
        while self._steps and self._steps[0][0] < time.monotonic() - self.WINDOW:
            self._sum -= self._steps.popleft()[1]
        return self._sum / self.WINDOW


class Agent:
    """Sends what appears in the watched directories until it is stopped.

    Args:
        once: stop when everything that is there has been sent.

    Raises:
        JournalError, ConfigError: from the constructor.
    """

    def __init__(self, config: Config, *, once: bool = False) -> None:
        self._config = config
        self._once = once
        self._service = Service(config)
        self._journal = Journal(config.journal.path, config.instrument.id)
        self._arrived = self._journal.count_arrived()
        self._settling = Settling()
        self._candidates = asyncio.Event()  # there is something new to settle
        self._settled: asyncio.Queue[Sighting] = asyncio.Queue()  # to be judged whether they are complete
        self._judged: dict[str, Stamp] = {}  # these
        self._holding = Holding(lambda path: path in self._settling or path in self._judged, once=once)
        self._queue = Queue()
        self._active: dict[str, Item] = {}
        self._pause = Pause()
        self._orders = Orders(self._service, self._journal, self._pause, self)
        self._rate = Rate()
        self._throttle = Throttle(config.upload.limit)
        self._growth = Growth(
            self._service,
            self._journal,
            self._pause,
            self._throttle,
            config.upload.digest,
            self._rate.add,
        )
        self._masters: asyncio.Queue[Sighting] = asyncio.Queue()  # whose files may be growing
        self._trees: dict[Path, Tree] = {}
        self._lost: dict[Path, str] = {}  # watched directories that are gone
        self._silent: dict[Path, str] = {}  # and those that don't answer
        self._free_disk: int | None = None
        self._hearing = asyncio.Semaphore(HEARD)
        self._failed: dict[str, str] = {}  # files that did not arrive -> why
        self._done = False  # with `once`: nothing is left to do
        self._step = asyncio.Event()  # something has been done: perhaps it was the last thing
        self._stopping = asyncio.Event()
        self._stop_reading = threading.Event()

    def stop(self) -> None:
        """Ends `run` soon; what is on its way goes on at the next start."""
        self._stopping.set()

    def limit(self, rate: float | None) -> None:
        """From now on, sends at most so many bytes per second."""
        if rate != self._throttle.rate:
            log.info("sending %s", f"at most {rate / 1e6:g} MB/s" if rate else "without a limit")
        self._throttle.rate = rate

    async def run(self) -> bool:
        """Works until it is stopped. True when, with `once`, all that was there has arrived.

        Raises:
            LostError: with `once`, when a watched directory is gone.
            ConfigError: it can't listen for done messages.
        """
        self._journal.retry_refused()
        # whatever touches the watched directories runs in threads, which may hang with them: enough for all
        # that can be asked of a disk at a time, so that the rest goes on
        disk = ThreadPoolExecutor(self._config.upload.parallel + 3 * len(self._config.watch) + 16)
        asyncio.get_running_loop().set_default_executor(disk)
        done = self._config.done
        listener = Listener(done, self._finished) if done and not self._once else contextlib.nullcontext()
        try:
            async with listener, asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._follow(watch)) for watch in self._config.watch]
                parallel = self._config.upload.parallel
                tasks += [group.create_task(self._send()) for _ in range(parallel)]
                tasks += [group.create_task(self._send_small()) for _ in range(min(BATCHES, parallel))]
                works = [self._settle, self._judge, self._measure, self._beat]
                works += [self._orders.follow, self._conclude]
                works += [] if self._once else [self._growth.follow, self._learn]
                tasks += [group.create_task(work()) for work in works]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        except* LostError as lost:
            raise LostError(*lost.exceptions[0].args) from None
        finally:
            self._stop_reading.set()
            await self._holding.rest()
            await self._service.close()
            self._journal.close()
        return self._done and not self._failed

    # --- finding -------------------------------------------------------------------------------------------

    async def _follow(self, watch: Watch) -> None:
        while True:
            tree = self._trees[watch.path] = Tree(watch, self._journal.settled, self._sighted)
            try:
                await tree.follow()
            except LostError as error:
                if self._once:
                    raise
                self._lost[watch.path] = f"{error}: waiting for it to come back"
                log.error("%s", self._lost[watch.path])
            while not await asyncio.to_thread(watch.path.is_dir):  # noqa: ASYNC110 (nothing tells of a mount)
                await asyncio.sleep(RETURN)
            log.info("%s is back", watch.path)
            del self._lost[watch.path]

    def _sighted(self, sighting: Sighting) -> None:
        path, stamp = sighting.path, sighting.stamp
        if active := self._active.get(path):  # looked at again when it is through
            active.finished = stamp if sighting.finished else active.finished
            return
        if (waiting := self._queue.find(path)) and waiting.stamp == stamp:
            return
        self._queue.drop(path)
        entry = self._journal.find(path)
        if entry is not None and entry.state is State.SKIPPED:
            return
        was_ready = entry is not None and entry.stamp == stamp and entry.state is not State.GROWING
        if sighting.finished or was_ready:
            self._settling.drop(path)
            self._judged.pop(path, None)
            self._holding.forget(path)
            self._ready(sighting)
        elif path not in self._judged:  # else looked at again when it is
            self._settling.seen(path, stamp, sighting.watch.settle, time.monotonic())
            self._candidates.set()
            self._growth.seen(sighting.watch, sighting.name, stamp)

    async def _finished(self, path: str) -> str:
        """A detector says that this file is finished: it is ready. Else the reason why it can't be sent."""
        if not path.startswith("/") or "\0" in path:
            return "is no absolute path"
        folder, name = os.path.split(path)
        async with self._hearing:
            path = os.path.join(await asyncio.to_thread(os.path.realpath, folder), name)  # noqa: PTH118
            watch = self._watch_of(path)
            if watch is None or watch.path not in self._trees:
                return "is not below a watched directory"
            sighting = await asyncio.to_thread(self._trees[watch.path].finished, path)
        if isinstance(sighting, str):
            return sighting
        if not self._journal.settled(path, sighting.stamp):  # else it is there already
            self._sighted(sighting)
        return ""

    async def _settle(self) -> None:
        while True:
            try:
                async with asyncio.timeout_at(self._settling.next_check()):
                    await self._candidates.wait()
                self._candidates.clear()
                continue  # perhaps with an earlier check to wait for
            except TimeoutError:
                pass
            now = time.monotonic()
            paths = self._settling.due(now)
            if not paths:
                continue
            stamps = await asyncio.to_thread(_looks, paths)
            for path, stamp in zip(paths, stamps, strict=True):
                if stamp is None:
                    self._holding.forget(path)
                watch = self._watch_of(path)
                assert watch  # noqa: S101 (what settles has been sighted in one)
                name = path[len(str(watch.path)) + 1 :]
                settled = self._settling.looked(path, stamp, now)
                if settled and stamp:
                    sighting = Sighting(watch, name, stamp)
                    if self._holding.concerns(path):
                        self._judged[path] = stamp
                        self._settled.put_nowait(sighting)
                    else:
                        self._ready(sighting)
                elif stamp:
                    self._growth.seen(watch, name, stamp)
            self._step.set()

    async def _learn(self) -> None:
        """Which files masters name: those are sent while they grow."""
        while True:
            sighting = await self._masters.get()
            self._growth.expect(await self._holding.sources(sighting.watch, sighting.path))

    async def _judge(self) -> None:
        """Settled files that may not be complete: they are ready, or settle again."""
        while True:
            try:
                async with asyncio.timeout(REST):
                    sighting = await self._settled.get()
            except TimeoutError:
                await self._holding.rest()
                sighting = await self._settled.get()
            path, now = sighting.path, time.monotonic()
            held = await self._holding.holds(sighting.watch, path, sighting.stamp, now)
            if self._judged.pop(path, None) is None:  # said to be finished meanwhile
                continue
            stamp = await asyncio.to_thread(look, path)
            if stamp is None:
                self._holding.forget(path)
            elif held or stamp != sighting.stamp:
                self._settling.seen(path, stamp, sighting.watch.settle, now)
                self._candidates.set()
            else:
                self._ready(sighting)
            self._step.set()

    def _watch_of(self, path: str) -> Watch | None:
        return next((watch for watch in self._config.watch if path.startswith(f"{watch.path}/")), None)

    def _ready(self, sighting: Sighting) -> None:
        if sighting.name.endswith(MASTERS) and not self._once and not sighting.watch.in_place:
            self._masters.put_nowait(sighting)
        self._journal.queue(sighting.path, sighting.stamp)
        self._queue.add(sighting.watch, sighting.name, sighting.stamp)

    # --- sending -------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            await self._pause.wait()
            item = await self._queue.get()
            if self._pause.held:
                self._queue.put(item)
                continue
            self._active[item.path] = item
            item.announced.set()
            item.sending = asyncio.create_task(self._deliver(item))  # so that it can be skipped
            try:
                await asyncio.wait({item.sending})
                again = not item.skipped and item.sending.result()
            finally:
                item.sending.cancel()
                await asyncio.wait({item.sending})
                del self._active[item.path]
            if again:
                self._queue.put(item)
            stamp = await asyncio.to_thread(look, item.path)
            self._through(item, stamp, known=self._journal.find(item.path) is not None)
            self._step.set()

    def _through(self, item: Item, stamp: Stamp | None, *, known: bool) -> None:
        """Sightings of a file on its way were not heeded; `known`: it has not been forgotten."""
        if stamp and (stamp != item.stamp or not known):
            self._sighted(Sighting(item.watch, item.name, stamp, finished=item.finished == stamp))

    async def _send_small(self) -> None:
        """Small files go together: all that are ready when there is somebody to send them."""
        while True:
            await self._pause.wait()
            items = await self._queue.take(self._throttle.piece(TOGETHER))
            if self._pause.held:
                for item in items:
                    self._queue.put(item)
                continue
            for item in items:
                self._active[item.path] = item
                item.announced.clear()
                self._failed.pop(item.path, None)
            again: list[Item] = []
            try:
                again = await self._deliver_together(items)
            finally:
                for item in items:
                    del self._active[item.path]
            for item in again:
                self._queue.put(item)
            stamps = await asyncio.to_thread(_looks, [item.path for item in items])
            known = self._journal.find_all([item.path for item in items])
            for item, stamp in zip(items, stamps, strict=True):
                self._through(item, stamp, known=item.path in known)
                if item.path not in self._active:  # else it has been taken again meanwhile
                    item.announced.set()
            self._step.set()

    async def _deliver_together(self, items: Sequence[Item]) -> list[Item]:
        """Sends small files, or finds out what to do with them instead; those that are to be tried again."""
        begun = time.monotonic()
        for item in items:
            await self._growth.leave(item.path)
        entries = self._journal.find_all([item.path for item in items])
        again, fresh = list[Item](), list[tuple[Item, str]]()
        for item in items:
            entry = entries[item.path]
            if entry.upload or entry.experiment:  # it has begun before, or has to go where it began
                item.alone = True
                again.append(item)
            else:
                fresh.append((item, entry.key or secrets.token_hex(16)))
        parcels, problems = await asyncio.to_thread(pack, fresh, self._config.upload.digest)
        for item, problem in problems:
            if await self._stumbled(item, problem):
                again.append(item)
        if not parcels:
            return again
        self._journal.hashed_all({parcel.item.path: (parcel.digest, parcel.key) for parcel in parcels})
        await self._throttle.take(sum(len(parcel.content) for parcel in parcels))
        try:
            uploads = await self._service.deliver(body(parcels))
        except UnavailableError as error:
            self._pause.begin(error)
            return again + [parcel.item for parcel in parcels]
        except RefusedError as error:
            log.info("%d files are sent one by one: %s", len(parcels), error)
            uploads = [None] * len(parcels)
        arrived: dict[str, str] = {}
        seconds = time.monotonic() - begun
        for parcel, upload in zip(parcels, uploads, strict=True):
            item = parcel.item
            if upload is None or upload.state in (UploadState.RECEIVING, UploadState.FAILED):
                item.alone = True
                again.append(item)
            else:
                arrived[item.path] = upload.experiment
                self._rate.add(item.stamp.size)
                self._log_arrival(item, seconds)
        if arrived:
            self._journal.arrived_all(arrived)
            self._arrived += len(arrived)
            self._pause.end()
        return again

    async def _deliver(self, item: Item) -> bool:
        """Sends one file, or finds out what to do with it instead. True: it is to be tried again."""
        path = item.path
        self._failed.pop(path, None)
        begun = time.monotonic()
        try:
            await self._transfer(item)
        except (
            UnavailableError,
            RestartError,
            RefusedError,
            ChangedError,
            GoneError,
            OSError,
        ) as problem:
            return await self._stumbled(item, problem)
        self._journal.arrived(path)
        self._arrived += 1
        self._pause.end()
        self._log_arrival(item, time.monotonic() - begun)
        return False

    def _log_arrival(self, item: Item, seconds: float) -> None:
        megabytes = item.stamp.size / 1e6
        log.info("%s has arrived: %.2f MB in %.2f s", printable(item.path), megabytes, seconds)

    async def _stumbled(self, item: Item, problem: Exception) -> bool:
        """What follows when a file could not be sent. True: it is to be tried again."""
        path = item.path
        match problem:
            case UnavailableError():
                self._pause.begin(problem)
                return True
            case RestartError():
                self._journal.restart(path)
                item.restarts += 1
                item.digesting = None
                if item.restarts < ATTEMPTS:
                    log.info("%s is sent again from its beginning: %s", printable(path), problem)
                    return True
                self._fail(path, f"did not arrive whole in {ATTEMPTS} attempts ({problem})")
                self._journal.refused(path, str(problem))
            case RefusedError():
                self._journal.refused(path, str(problem))
                self._fail(path, str(problem))
            case ChangedError():
                log.info("%s changed while it was read: waiting until it has settled", printable(path))
                await self._give_up_upload(path)
            case GoneError():
                await self._give_up_upload(path)
                self._fail(path, "was deleted or renamed before it had been sent")
            case OSError():
                self._fail(path, f"can't be read ({problem.strerror})")
        return False

    async def _transfer(self, item: Item) -> None:
        """Sends a file, or what is missing of it; returns when the service has verified and published it."""
        path, size = item.path, item.stamp.size
        await self._growth.leave(path)
        async with _opened(item) as file:
            entry = self._journal.find(path)
            assert entry  # noqa: S101 (it has been ready)
            if item.watch.in_place:
                digest, key = await self._hash(file, item, entry)
                name = item.watch.destination(item.name)
                await self._service.register(path, name, size, digest, experiment=entry.experiment, key=key)
                return
            if entry.upload:
                location, upload = entry.upload, await self._service.upload(entry.upload)
            else:
                location, upload = await self._announce(file, item, entry)
            grew = upload.deferred or (entry.upload and self._journal.blocks(path))
            if grew and upload.state is UploadState.RECEIVING and upload.digest is None:
                await self._growth.mend(file, item, location, upload)
            await self._send_rest(file, item, location, upload)

    async def _announce(self, file: int, item: Item, entry: Entry) -> tuple[str, Upload]:
        """Begins the upload of a file. A small one goes along; of a large one that the service does not seem
        to have, the digest is computed while it is sent."""
        content, digest = b"", entry.digest
        key = entry.key or secrets.token_hex(16)
        if item.stamp.size <= SMALL:
            await self._throttle.take(item.stamp.size)
            content = await asyncio.to_thread(rest, file, item.path, item.stamp)
            digesting = Digesting(self._config.upload.digest)
            digesting.add(content, 0)
            digest = digesting.digest()
        self._journal.hashed(item.path, digest, key)
        try:
            begun = await self._begin(item, digest or self._config.upload.digest, entry, key, content)
        except DigestRequiredError:
            digest, key = await self._hash(file, item, entry)
            begun = await self._begin(item, digest, entry, key)
        item.sent = begun[1].offset
        self._rate.add(len(content))
        return begun

    async def _begin(
        self, item: Item, digest: str, entry: Entry, key: str, content: bytes = b""
    ) -> tuple[str, Upload]:
        name, size = item.watch.destination(item.name), item.stamp.size
        item.announced.clear()
        try:
            location, upload = await self._service.create(
                name, size, digest, experiment=entry.experiment, key=key, content=content
            )
            self._journal.begun(item.path, location, upload.experiment)
        finally:
            item.announced.set()
        return location, upload

    async def _hash(self, file: int, item: Item, entry: Entry) -> tuple[str, str]:
        """The digest of a file before anything of it is sent, and the key of its announcement."""
        digest = entry.digest
        if digest is None:
            digest = await asyncio.to_thread(
                digest_of, file, item.stamp, self._config.upload.digest, self._stop_reading
            )
        key = entry.key or secrets.token_hex(16)
        self._journal.hashed(item.path, digest, key)
        return digest, key

    async def _send_rest(self, file: int, item: Item, location: str, upload: Upload) -> None:
        size = item.stamp.size
        surprises = 0
        while upload.state is UploadState.RECEIVING:
            item.sent = upload.offset
            length = min(PART, size - upload.offset)
            digest = None
            if upload.digest_follows is None:
                body = self._body(file, item, upload.offset, length)
            else:
                await self._catch_up(file, item, upload)
                if size - upload.offset > CHUNK:
                    length = min(PART, size - upload.offset - CHUNK)
                    body = self._body(file, item, upload.offset, length)
                else:
                    body, digest = await self._ending(file, item, upload.offset)
            try:
                offset = await self._service.append(
                    location, size, upload.offset, length, body, digest, told=not upload.deferred
                )
            except OffsetError as error:
                surprises += 1
                if surprises == ATTEMPTS:
                    raise UnavailableError(str(error)) from error
                upload = await self._service.upload(location)
            else:
                self._pause.end()
                if offset == size and (digest or upload.digest_follows is None):  # verified and published
                    return
                upload = upload.model_copy(update={"offset": offset})
        if upload.state is UploadState.FAILED:
            raise RestartError(upload.error)

    async def _catch_up(self, file: int, item: Item, upload: Upload) -> None:
        """The digest goes on from where the service is; before a restart it may have come further."""
        assert upload.digest_follows  # noqa: S101 (so it was announced)
        if item.digesting is None:
            item.digesting = Digesting(upload.digest_follows)
        await asyncio.to_thread(item.digesting.catch_up, file, item.stamp, upload.offset, self._stop_reading)

    async def _ending(self, file: int, item: Item, offset: int) -> tuple[AsyncIterator[bytes], str]:
        """The last bytes of a file, and its digest, which has to be known before they are sent."""
        assert item.digesting  # noqa: S101 (it has come as far as this)
        content = await asyncio.to_thread(rest, file, item.path, item.stamp, offset)
        item.digesting.add(content, offset)
        digest = item.digesting.digest()
        entry = self._journal.find(item.path)
        if entry and entry.key:
            self._journal.hashed(item.path, digest, entry.key)
        return self._pieces(item, content, offset), digest

    async def _pieces(self, item: Item, content: bytes, offset: int) -> AsyncIterator[bytes]:
        done = 0
        while done < len(content):
            length = self._throttle.piece(len(content) - done)
            await self._throttle.take(length)
            yield content[done : done + length]
            done += length
            item.sent = offset + done
            self._rate.add(length)

    async def _body(self, file: int, item: Item, offset: int, length: int) -> AsyncIterator[bytes]:
        """A part of a file, piece by piece; while one is sent, the next is read and goes into the digest."""
        end = offset + length

        def ahead(position: int) -> asyncio.Future[bytes] | None:
            length = self._throttle.piece(min(CHUNK, end - position))
            reading = asyncio.get_running_loop().run_in_executor
            return reading(None, _read, file, item, length, position) if position < end else None

        reading = ahead(offset)
        try:
            while reading is not None:
                chunk = await reading
                reading = ahead(offset + len(chunk))
                await self._throttle.take(len(chunk))
                if offset + len(chunk) == item.stamp.size and await asyncio.to_thread(moved, file, item.path):
                    raise GoneError(item.name)  # what it is called now is sent by that name
                yield chunk
                offset += len(chunk)
                item.sent = offset
                self._rate.add(len(chunk))
        finally:
            if reading is not None and not reading.cancel():
                reading.exception()  # nobody waits for it any more

    async def _give_up_upload(self, path: str) -> None:
        """What has been sent of a file that has changed, or is called otherwise now, is of no use."""
        entry = self._journal.find(path)
        self._journal.forget(path)
        if entry and entry.upload:
            try:
                await self._service.terminate(entry.upload)
            except UnavailableError as error:
                log.info("%s: the upload that was given up is left to expire: %s", printable(path), error)

    def _fail(self, path: str, reason: str) -> None:
        log.error("%s %s", printable(path), reason)
        if len(self._failed) < REMEMBERED:
            self._failed[path] = reason

    # --- obeying -------------------------------------------------------------------------------------------

    def _shown(self, path: str) -> str:
        """What the file is called below raw/, as people see it."""
        watch = self._watch_of(path)
        name = watch.destination(path[len(str(watch.path)) + 1 :]) if watch else path
        return shortened(printable(name), LONGEST_NAME)

    def waiting(self) -> Iterator[tuple[str, str]]:
        known = {*self._settling, *self._judged, *(item.path for item in self._queue), *self._active}
        known |= {entry.path for entry in self._journal.unfinished() if entry.state is State.QUEUED}
        return ((path, self._shown(path)) for path in sorted(known - self._failed.keys()))

    def failed(self) -> Iterator[tuple[str, str, str]]:
        return ((path, self._shown(path), reason) for path, reason in list(self._failed.items()))

    def skipped(self) -> Iterator[tuple[str, str, str]]:
        return ((entry.path, self._shown(entry.path), entry.error) for entry in self._journal.skipped())

    def lines(self, experiment: str) -> Iterator[JournalLine]:
        begun = list(self._journal.of(experiment))
        growing = {entry.path for entry in begun if entry.state is State.GROWING}
        settling = [(path, look(path)) for path in {*self._settling, *self._judged} - growing]
        for path, stamp in settling:
            if stamp:
                yield JournalLine(name=self._shown(path), size=stamp.size, state="queued")
        for entry in begun:
            yield self._line(entry)

    def _line(self, entry: Entry) -> JournalLine:
        reason = self._failed.get(entry.path) or entry.error
        states: dict[State, Literal["queued", "arrived", "failed", "skipped"]] = {
            State.GROWING: "queued",
            State.QUEUED: "failed" if reason else "queued",
            State.ARRIVED: "arrived",
            State.REFUSED: "failed",
            State.SKIPPED: "skipped",
        }
        return JournalLine(
            name=self._shown(entry.path),
            size=entry.stamp.size,
            digest=entry.digest,
            state=states[entry.state],
            reason=_shortened(reason) if entry.state is not State.ARRIVED else "",
            experiment=entry.experiment,
        )

    async def retry(self, path: str) -> None:
        """What has failed is sent again, if it is still there."""
        stamp, watch = await asyncio.to_thread(look, path), self._watch_of(path)
        if stamp and watch:
            self._failed.pop(path, None)
            self._journal.requeue(path)
            self._sighted(Sighting(watch, path[len(str(watch.path)) + 1 :], stamp))

    async def skip(self, path: str, reason: str) -> None:
        """The file is left out; what the service has of it is given up. One that has just arrived stays."""
        while item := self._active.get(path):
            await item.announced.wait()  # of one that is sent together with others: until it is through
            if item.sending:
                item.skipped = True
                item.sending.cancel()
                await asyncio.wait({item.sending})
                break
        await self._growth.leave(path)
        self._queue.drop(path)
        self._settling.drop(path)
        self._judged.pop(path, None)
        self._holding.forget(path)
        self._failed.pop(path, None)
        entry = self._journal.find(path)
        if entry is None and (stamp := await asyncio.to_thread(look, path)):
            self._journal.queue(path, stamp)
        if entry is None or entry.state is not State.ARRIVED:
            self._journal.skip(path, reason)
        if entry and entry.upload:
            await self._service.terminate(entry.upload)
            if await self._is_published(entry.upload):
                self._journal.arrived(path)
            else:
                self._journal.given_up(path)
        self._step.set()

    async def _is_published(self, upload: str) -> bool:
        try:
            return (await self._service.upload(upload)).state in (
                UploadState.COMPLETE,
                UploadState.SUPERSEDED,
            )
        except (RestartError, RefusedError):
            return False

    async def unskip(self, path: str) -> None:
        """The file is sent after all, or forgotten if it is no longer there."""
        stamp, watch = await asyncio.to_thread(look, path), self._watch_of(path)
        if stamp and watch:
            self._journal.requeue(path)
            self._sighted(Sighting(watch, path[len(str(watch.path)) + 1 :], stamp))
        else:
            self._journal.forget(path)

    # --- telling -------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        reachable = True
        while True:
            try:
                self._orders.obeyed.clear()
                self._orders.heed(await self._service.heartbeat(self.heartbeat()))
            except UnavailableError as error:
                if reachable and str(error) != self._pause.reason:
                    log.warning("%s", error)
                reachable = False
            else:
                if not reachable:
                    self._pause.end()
                reachable = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._orders.obeyed.wait()  # then the staff need not wait either

    async def _measure(self) -> None:
        """How much room the detector's disk has, and whether the watched directories answer at all: a file
        server that is gone keeps whoever asks it waiting, for ever."""
        loop = asyncio.get_running_loop()
        asked: dict[Path, asyncio.Future[int | None]] = {}
        while True:
            for watch in self._config.watch:
                if watch.path not in asked:
                    asked[watch.path] = loop.run_in_executor(None, _free_disk, watch.path)
            await asyncio.wait(asked.values(), timeout=SILENCE)
            for path, answer in list(asked.items()):
                if answer.done():
                    del asked[path]
                    if path == self._config.watch[0].path:
                        self._free_disk = answer.result()
                elif path not in self._silent:
                    log.error("%s does not answer", path)
            self._silent = {path: f"{path} does not answer: is its file server there?" for path in asked}
            await asyncio.sleep(HEARTBEAT)

    def heartbeat(self) -> Heartbeat:
        """How it is doing just now."""
        sending, growing = list(self._active.values()), self._growth.progress
        if self._pause.held:
            state: Literal["idle", "uploading", "waiting", "error"] = "uploading" if sending else "waiting"
        elif self._pause.reason:
            state = "waiting" if self._pause.expected else "error"
        elif sending or growing:
            state = "uploading"
        elif self._failed or self._lost or self._silent:
            state = "error"
        else:
            state = "waiting" if self._settling or self._judged else "idle"
        return Heartbeat(
            host=printable(socket.gethostname()) or "unnamed",
            version=__version__,
            state=state,
            queued_files=len(self._queue) + len(sending),
            queued_bytes=sum(item.stamp.size for item in self._queue)
            + sum(item.stamp.size - item.sent for item in sending),
            rate=self._rate(),
            free_disk=self._free_disk,
            current=[
                FileProgress(
                    name=printable(item.watch.destination(item.name)),
                    size=item.stamp.size,
                    sent=item.sent,
                    experiment=entry.experiment if (entry := self._journal.find(item.path)) else None,
                )
                for item in sending[: SHOWN - len(growing)]
            ]
            + growing,
            errors=self._errors(),
            file_errors=self._file_errors(),
            arrived=self._arrived,
            failed=len(self._failed),
            skipped=self._journal.count_skipped(),
            acknowledged=self._journal.obeyed(),
        )

    def _errors(self) -> list[str]:
        """What all should know, the gravest first."""
        errors = [reason for reason in (self._pause.held, self._pause.reason) if reason]
        errors += [*self._lost.values(), *self._silent.values()]
        errors += [tree.problem for tree in self._trees.values() if tree.problem]
        return _few(errors)

    def _file_errors(self) -> list[str]:
        """What the staff should know of single files, the gravest first."""
        errors = [f"{printable(path)} {reason}" for path, reason in self._failed.items()]
        errors += [f"{printable(path)} {reason}" for path, reason in self._holding.doubts.items()]
        for tree in self._trees.values():
            errors += [f"{printable(path)} {reason}" for path, reason in tree.odd.items()]
        return _few(errors)

    async def _conclude(self) -> None:
        """After the first look: are files missing that had been ready? With `once`: stop when all is done."""
        for tree in list(self._trees.values()):
            await tree.walked.wait()
        for entry in self._journal.unfinished():
            if self._watch_of(entry.path) and await asyncio.to_thread(look, entry.path) is None:
                self._journal.forget(entry.path)
                self._fail(entry.path, "was deleted or renamed before it had been sent")
        while self._once:
            if not (self._queue or self._active or self._settling or self._judged):
                self._done = True
                self.stop()
            self._step.clear()
            await self._step.wait()


def _read(file: int, item: Item, length: int, offset: int) -> bytes:
    chunk = read(file, item.stamp, length, offset)
    if item.digesting:
        item.digesting.add(chunk, offset)
    return chunk


@contextlib.asynccontextmanager
async def _opened(item: Item) -> AsyncIterator[int]:
    """As beamhub.agent.file.opened, in threads: a disk may keep even this waiting."""
    loop = asyncio.get_running_loop()
    opening = loop.run_in_executor(None, open_in_state, item.watch.path, item.name, item.stamp)
    try:
        file = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise
    try:
        yield file
    finally:
        loop.run_in_executor(None, os.close, file)


def _close(opening: asyncio.Future[int]) -> None:
    if opening.exception() is None:
        os.close(opening.result())


def _looks(paths: list[str]) -> list[Stamp | None]:
    return [look(path) for path in paths]


def _free_disk(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # the directory is gone, which is told elsewhere
        return None


def _few(errors: list[str]) -> list[str]:
    """As many of them as a heartbeat holds."""
    more = [f"and {len(errors) - SHOWN + 1} more: see the agent's log"] if len(errors) > SHOWN else []
    return [_shortened(error) for error in (errors[: SHOWN - 1] if more else errors)] + more


def _shortened(text: str) -> str:
    """At most as long as an error in a heartbeat may be."""
    return shortened(text, LONGEST)
