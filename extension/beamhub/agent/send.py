"""Sends the ready files of one watched directory, several at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Protocol

from beamhub.digests import algorithm_of
from beamhub.schemas import Upload, UploadState

from .common import Common
from .config import Watch
from .disk import Disk
from .file import (
    CHUNK,
    ChangedError,
    Digesting,
    GoneError,
    Stamp,
    digest_of,
    look,
    looks,
    moved,
    open_in_state,
    printable,
    read_into,
    rest,
)
from .grow import Growth
from .journal import Entry
from .parcel import body, pack
from .queue import SMALL, Item, Queue
from .service import (
    PART,
    DamagedError,
    DigestRequiredError,
    FaultError,
    OffsetError,
    RefusedError,
    RestartError,
    UnavailableError,
)
from .watch import Sighting

log = logging.getLogger("beamhub.agent")

TOGETHER = 4 << 20  # bytes of small files that are sent together
PIECE = 4 << 20  # bytes that a thread reads and sends before it is asked to go on
BATCHES = 2  # of them, on their way at a time
ATTEMPTS = 5  # from the beginning, at one file in one state
LONGEST_REST = 60.0  # seconds between attempts at a file over which the service fails


class Directory(Protocol):
    """What is watched."""

    there: asyncio.Event  # while it is

    async def is_gone(self) -> bool: ...

    def sighted(self, sighting: Sighting) -> None: ...


class Sender:
    """Sends what is in its queue.

    Args:
        root: told of a file that is not, or no longer, what has been sent.
    """

    def __init__(
        self,
        watch: Watch,
        common: Common,
        disk: Disk,
        growth: Growth,
        root: Directory,
    ) -> None:
        self._watch, self._common, self._disk, self._growth = watch, common, disk, growth
        self._root = root
        self.queue = Queue()
        self.active: dict[str, Item] = {}

    def works(self) -> list[Coroutine[None, None, None]]:
        """What goes on side by side until it is cancelled."""
        parallel = self._common.config.upload.parallel
        large, small = range(parallel), range(min(BATCHES, parallel))
        return [*(self._send() for _ in large), *(self._send_small() for _ in small)]

    async def _send(self) -> None:
        while True:
            await self._common.pause.wait()
            await self._root.there.wait()
            item = await self.queue.get()
            if self._common.pause.held:
                self.queue.put(item)
                continue
            self.active[item.path] = item
            item.sending = asyncio.create_task(self._deliver(item))  # so that it can be skipped
            try:
                await asyncio.wait({item.sending})
                again = not item.skipped and item.sending.result()
            finally:
                item.sending.cancel()
                await asyncio.wait({item.sending})
                del self.active[item.path]
            if again:
                self._put_back(item)
            stamp = await self._disk.ask(look, item.path)
            self._through(item, stamp, known=self._common.journal.find(item.path) is not None)
            self._common.step.set()

    def _put_back(self, item: Item) -> None:
        """To be tried again: less and less often where the service fails, that others have their turn."""
        self.queue.put(item, min(LONGEST_REST, 2.0 ** min(item.faults, 10)) if item.faults else 0.0)

    async def leave(self, path: str) -> None:
        """The file is not wanted: it is not sent, or not to its end, unless it has just arrived."""
        while item := self.active.get(path):
            if item.announcing:
                await item.announcing.wait()
                continue
            item.skipped = True
            if item.sending:
                item.sending.cancel()
                await asyncio.wait({item.sending})
            break
        self.queue.drop(path)

    def _through(self, item: Item, stamp: Stamp | None, *, known: bool) -> None:
        """Sightings of a file on its way were not heeded; `known`: it has not been forgotten."""
        if stamp and (stamp != item.stamp or not known):
            self._root.sighted(Sighting(item.watch, item.name, stamp, finished=item.finished == stamp))

    async def _send_small(self) -> None:
        """Small files go together: all that are ready when there is somebody to send them."""
        while True:
            await self._common.pause.wait()
            await self._root.there.wait()
            items = await self.queue.take(self._common.throttle.piece(TOGETHER))
            if self._common.pause.held:
                for item in items:
                    self.queue.put(item)
                continue
            for item in items:
                self.active[item.path] = item
            again: list[Item] = []
            try:
                again = await self._deliver_together(items)
            finally:
                for item in items:
                    del self.active[item.path]
                    _answered(item)
            for item in again:
                if not item.skipped:
                    self._put_back(item)
            stamps = await self._disk.ask(looks, [item.path for item in items])
            known = self._common.journal.find_all([item.path for item in items])
            for item, stamp in zip(items, stamps, strict=True):
                self._through(item, stamp, known=item.path in known)
            self._common.step.set()

    async def _deliver_together(self, items: Sequence[Item]) -> list[Item]:
        """Sends small files, or finds out what to do with them instead; those that are to be tried again."""
        begun = time.monotonic()
        for item in items:
            await self._growth.leave(item.path)
        entries = self._common.journal.find_all([item.path for item in items])
        again, fresh = list[Item](), list[tuple[Item, str]]()
        for item in items:
            entry = entries[item.path]
            if entry.upload or entry.experiment:  # it has begun before, or has to go where it began
                item.alone = True
                again.append(item)
            else:
                fresh.append((item, entry.key or secrets.token_hex(16)))
        parcels, problems = await self._disk.ask(pack, fresh, self._common.config.upload.digest)
        for item, problem in problems:
            if not item.skipped and await self._stumbled(item, problem):
                again.append(item)
        await self._common.throttle.take(sum(len(parcel.content) for parcel in parcels))
        parcels = [parcel for parcel in parcels if not parcel.item.skipped]
        if not parcels:
            return again
        self._common.journal.hashed_all({parcel.item.path: (parcel.digest, parcel.key) for parcel in parcels})
        answer = asyncio.Event()
        for parcel in parcels:
            parcel.item.announcing = answer
        try:
            uploads = await self._common.service.deliver(body(parcels))
        except (RefusedError, FaultError) as error:
            log.info("%d files are sent one by one: %s", len(parcels), error)
            uploads = [None] * len(parcels)
        except UnavailableError as error:
            self._common.pause.begin(error)
            return again + [parcel.item for parcel in parcels]
        arrived: dict[str, str] = {}
        seconds = time.monotonic() - begun
        for parcel, upload in zip(parcels, uploads, strict=True):
            item = parcel.item
            if upload is None or upload.state in (UploadState.RECEIVING, UploadState.FAILED):
                item.alone = True
                again.append(item)
            else:
                arrived[item.path] = upload.experiment
                self._common.failed.pop(item.path, None)
                self._common.rate.add(item.stamp.size)
                self._log_arrival(item, seconds)
        if arrived:
            self._common.journal.arrived_all(arrived)
            self._common.arrived += len(arrived)
            self._common.pause.end()
        return again

    async def _deliver(self, item: Item) -> bool:
        """Sends one file, or finds out what to do with it instead. True: it is to be tried again."""
        path = item.path
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
        self._common.journal.arrived(path)
        self._common.failed.pop(path, None)
        self._common.arrived += 1
        self._common.pause.end()
        self._log_arrival(item, time.monotonic() - begun)
        return False

    def _log_arrival(self, item: Item, seconds: float) -> None:
        megabytes = item.stamp.size / 1e6
        log.info("%s has arrived: %.2f MB in %.2f s", printable(item.path), megabytes, seconds)

    async def _stumbled(self, item: Item, problem: Exception) -> bool:
        """What follows when a file could not be sent. True: it is to be tried again."""
        path = item.path
        match problem:
            case FaultError():
                item.faults += 1
                if item.faults == 1:  # perhaps it fails at all
                    self._common.pause.begin(problem)
                if item.faults >= ATTEMPTS:
                    self._common.fail(path, f"has not arrived, and is tried again: {problem}")
                return True
            case UnavailableError():
                self._common.pause.begin(problem)
                return True
            case RestartError():
                self._common.journal.restart(path)
                item.restarts += 1
                item.digesting = None
                if item.restarts < ATTEMPTS:
                    log.info("%s is sent again from its beginning: %s", printable(path), problem)
                    return True
                self._common.fail(path, f"did not arrive whole in {ATTEMPTS} attempts ({problem})")
                self._common.journal.refused(path, str(problem))
            case RefusedError():
                self._common.journal.refused(path, str(problem))
                self._common.fail(path, str(problem))
            case ChangedError():
                self._common.failed.pop(path, None)
                log.info("%s changed while it was read: waiting until it has settled", printable(path))
                if not self._common.journal.grows_again(path, item.stamp):
                    await self.give_up(path)
            case GoneError() if await self._root.is_gone():
                return True
            case GoneError():
                await self.miss(path, item.stamp)
            case OSError():
                self._common.fail(path, f"can't be read ({problem.strerror})")
        return False

    async def _transfer(self, item: Item) -> None:
        """Sends a file, or what is missing of it; returns when the service has verified and published it."""
        path, size = item.path, item.stamp.size
        await self._growth.leave(path)
        async with self._opened(item) as file:
            entry = self._common.journal.find(path)
            assert entry  # noqa: S101 (it has been ready)
            if item.watch.in_place:
                digest, key = await self._hash(file, item, entry)
                name = item.watch.destination(item.name)
                await self._common.service.register(
                    path, name, size, digest, experiment=entry.experiment, key=key
                )
                return
            if entry.upload:
                location, upload = entry.upload, await self._common.service.upload(entry.upload)
            else:
                location, upload = await self._announce(file, item, entry)
            if not upload.deferred and upload.size != size and upload.state is UploadState.RECEIVING:
                await self._common.service.terminate(location)
                raise RestartError("it has grown since all of it was announced")
            grew = upload.deferred or (entry.upload and self._common.journal.blocks(path))
            if grew and upload.state is UploadState.RECEIVING and upload.digest is None:
                upload = await self._growth.mend(file, item, location, upload)
            await self._send_rest(file, item, location, upload)

    async def _announce(self, file: int, item: Item, entry: Entry) -> tuple[str, Upload]:
        """Begins the upload of a file. A small one goes along; of a large one that the service does not seem
        to have, the digest is computed while it is sent."""
        content, digest = b"", entry.digest
        key = entry.key or secrets.token_hex(16)
        if item.stamp.size <= SMALL:
            await self._common.throttle.take(item.stamp.size)
            content = await self._disk.ask(rest, file, item.path, item.stamp)
            digesting = Digesting(self._common.config.upload.digest)
            digesting.add(content, 0)
            digest = digesting.digest()
        self._common.journal.hashed(item.path, digest, key)
        try:
            begun = await self._begin(item, digest or self._common.config.upload.digest, entry, key, content)
        except DigestRequiredError:
            digest, key = await self._hash(file, item, entry)
            begun = await self._begin(item, digest, entry, key)
        item.sent = begun[1].offset
        self._common.rate.add(len(content))
        return begun

    async def _begin(
        self, item: Item, digest: str, entry: Entry, key: str, content: bytes = b""
    ) -> tuple[str, Upload]:
        name, size = item.watch.destination(item.name), item.stamp.size
        item.announcing = asyncio.Event()
        try:
            location, upload = await self._common.service.create(
                name, size, digest, experiment=entry.experiment, key=key, content=content
            )
            self._common.journal.begun(item.path, location, upload.experiment)
        finally:
            _answered(item)
        return location, upload

    async def _hash(self, file: int, item: Item, entry: Entry) -> tuple[str, str]:
        """The digest of a file before anything of it is sent, and the key of its announcement."""
        digest = entry.digest
        if digest is None:
            digest = await self._disk.ask(
                digest_of, file, item.stamp, self._common.config.upload.digest, self._common.stop_reading
            )
        key = entry.key or secrets.token_hex(16)
        self._common.journal.hashed(item.path, digest, key)
        return digest, key

    async def _send_rest(self, file: int, item: Item, location: str, upload: Upload) -> None:
        size = item.stamp.size
        surprises = 0
        while upload.state is UploadState.RECEIVING:
            item.sent = upload.offset
            digesting = await self._caught_up(file, item, upload)
            part = max(upload.offset + self._common.throttle.part(PART), digesting.position)
            length = min(part, size) - upload.offset
            body = partial(self._write, file, item, upload.offset, length)
            told = not upload.deferred
            try:
                offset = await self._common.service.append(
                    location, size, upload.offset, length, body, digesting, told=told
                )
            except OffsetError as error:
                surprises += 1
                damaged = isinstance(error, DamagedError)
                if surprises == ATTEMPTS and damaged:
                    await self._common.service.terminate(location)
                    raise RestartError(str(error)) from error
                if surprises == ATTEMPTS:
                    raise UnavailableError(str(error)) from error
                upload = await self._common.service.upload(location)
                if damaged:
                    log.warning("%s: %s (byte %d)", printable(item.path), error, upload.offset)
            else:
                surprises = 0
                self._common.pause.end()
                if offset == size:  # verified and published
                    return
                upload = upload.model_copy(update={"offset": offset, "deferred": False})
        if upload.state is UploadState.FAILED:
            raise RestartError(upload.error)

    async def _caught_up(self, file: int, item: Item, upload: Upload) -> Digesting:
        """The digest goes on from where the service is; before a restart it may have come further."""
        if item.digesting is None:
            algorithm = upload.digest_follows or (upload.digest and algorithm_of(upload.digest))
            item.digesting = Digesting(algorithm or self._common.config.upload.digest)
        stop = self._common.stop_reading
        await self._disk.ask(item.digesting.catch_up, file, item.stamp, upload.offset, stop)
        return item.digesting

    async def _write(
        self, file: int, item: Item, offset: int, length: int, write: Callable[[bytes | memoryview], bool]
    ) -> None:
        """A part of a file, piece by piece, and the digest of all up to its end."""
        end, throttle = offset + length, self._common.throttle
        while offset < end:
            length = throttle.piece(min(PIECE, end - offset))
            await throttle.take(length)
            if not await self._disk.ask(_write, file, item, offset, length, write):
                return
            offset += length
            item.sent = offset
            self._common.rate.add(length)
        assert item.digesting  # noqa: S101 (it has come as far as this)
        digest = item.digesting.digest()
        if offset == item.stamp.size:
            await self._same_file(file, item)
            self._common.journal.digested(item.path, digest)
        await self._disk.ask(write, bytes.fromhex(digest.partition(":")[2]))

    async def _same_file(self, file: int, item: Item) -> None:
        """Raises GoneError when it is called otherwise by now: it is sent by that name."""
        if await self._disk.ask(moved, file, item.path):
            raise GoneError(item.name)

    async def give_up(self, path: str) -> None:
        """What has been sent of a file that has changed, or is called otherwise now, is of no use."""
        entry = self._common.journal.find(path)
        self._common.journal.forget(path)
        if entry and entry.upload:
            try:
                await self._common.service.terminate(entry.upload)
            except UnavailableError as error:
                log.info("%s: the upload that was given up is left to expire: %s", printable(path), error)

    async def miss(self, path: str, stamp: Stamp) -> None:
        """The file is not there any more, or is called otherwise: then it is sent by that name."""
        await self.give_up(path)
        if name := self._common.journal.called(path, stamp):
            log.info("%s is called %s now", printable(path), printable(name))
        else:
            self._common.miss(path, stamp)

    @contextlib.asynccontextmanager
    async def _opened(self, item: Item) -> AsyncIterator[int]:
        """As beamhub.agent.file.opened, in threads: a disk may keep even this waiting."""
        opening = self._disk.begin(open_in_state, item.watch.path, item.name, item.stamp)
        try:
            file = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise
        try:
            yield file
        finally:
            self._disk.begin(os.close, file)


def _answered(item: Item) -> None:
    """Nobody needs to wait for an answer any longer."""
    announcing, item.announcing = item.announcing, None
    if announcing:
        announcing.set()


def _write(
    file: int, item: Item, position: int, length: int, write: Callable[[bytes | memoryview], bool]
) -> bool:
    """Reads, digests and writes; whether more is wanted."""
    buffer, end = memoryview(bytearray(min(CHUNK, length))), position + length
    while position < end:
        piece = buffer[: read_into(file, item.stamp, buffer[: end - position], position)]
        if item.digesting:
            item.digesting.add(piece, position)
        if not write(piece):
            return False
        position += len(piece)
    return True


def _close(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
