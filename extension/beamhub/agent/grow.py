"""Files that are sent while they grow.

A file grows by design when it is an HDF5 file that is open for SWMR writing, when a master names it, or when
the configuration says so (`grow`). Its whole blocks are sent as they come, into an upload whose length and
digest are left open: a temporary file that nobody reads. Each request has the checksum of its bytes: what was
damaged on its way is sent again. Once the file is ready, what its writer has changed
since it was sent is sent again; then it ends like any other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import xxhash

from beamhub.schemas import FileProgress, Upload

from .common import Common
from .complete import Holding
from .config import Watch
from .disk import Disk
from .file import CHUNK, ChangedError, Digesting, GoneError, Stamp, open_below, printable, read
from .journal import State
from .queue import Item
from .service import DamagedError, OffsetError, RefusedError, RestartError, UnavailableError

log = logging.getLogger("beamhub.agent")

BLOCK = CHUNK  # bytes that are sent, and perhaps sent again, as a whole
AT_ONCE = 8 * BLOCK  # bytes in one request, and in memory: their checksum goes first
STREAMS = 4  # files at a time
ATTEMPTS = 3  # at bytes that are damaged on their way
EXPECTED = 10_000  # files of masters in memory
MASTERS = ("_master.h5", ".nxs")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SWMR = 4  # the flag of a superblock


@dataclass(slots=True)
class _Growing:
    name: str
    stamp: Stamp
    over: asyncio.Event = field(default_factory=asyncio.Event)  # what could be sent has been


class Growth:
    """Sends files of one watched directory while they grow, some of them side by side."""

    def __init__(self, watch: Watch, common: Common, disk: Disk) -> None:
        self._watch, self._common, self._disk = watch, common, disk
        self._service, self._journal, self._pause = common.service, common.journal, common.pause
        self._expected: dict[str, None] = {}  # what masters name, oldest first
        self._unwanted: set[str] = set()  # by the service
        self._offsets: dict[str, int] = {}  # how much it has of each
        self._pending: dict[str, _Growing] = {}
        self._current: dict[str, _Growing] = {}
        self._more = asyncio.Event()

    def works(self) -> list[Coroutine[None, None, None]]:
        """What goes on side by side until it is cancelled."""
        return [self._stream() for _ in range(STREAMS)]

    def expect(self, paths: Iterable[str]) -> None:
        """A master that has been seen names these files."""
        self._expected |= dict.fromkeys(paths)
        while len(self._expected) > EXPECTED:
            del self._expected[next(iter(self._expected))]

    def seen(self, name: str, stamp: Stamp) -> None:
        """A file that is not ready has this stamp now."""
        path = f"{self._watch.path}/{name}"
        by_design = self._watch.grows(name) or path in self._expected or Holding.concerns(name)
        if self._watch.in_place or not by_design or path in self._unwanted:
            return
        if stamp.size - self._offsets.get(path, 0) >= BLOCK:
            self._pending[path] = _Growing(name, stamp)
            self._more.set()

    async def leave(self, path: str) -> None:
        """From now on, nothing of this file is sent here."""
        self._pending.pop(path, None)
        if growing := self._current.get(path):
            await growing.over.wait()
        self._pending.pop(path, None)
        self._offsets.pop(path, None)
        self._expected.pop(path, None)

    @property
    def progress(self) -> list[FileProgress]:
        """The files that are being sent."""
        progress = []
        for path, growing in self._current.items():
            entry = self._journal.find(path)
            progress.append(
                FileProgress(
                    name=printable(self._watch.destination(growing.name)),
                    size=growing.stamp.size,
                    sent=min(self._offsets.get(path, 0), growing.stamp.size),
                    experiment=entry.experiment if entry else None,
                )
            )
        return progress

    async def _stream(self) -> None:
        while True:
            await self._pause.wait()
            path, growing = await self._next()
            self._current[path] = growing
            try:
                await self._attempt(path, growing)
            finally:
                del self._current[path]
                growing.over.set()
                self._more.set()

    async def _next(self) -> tuple[str, _Growing]:
        """The file that has waited longest of those that nobody is at."""
        while True:
            for path in self._pending:
                if path not in self._current:
                    return path, self._pending.pop(path)
            self._more.clear()
            await self._more.wait()

    async def _attempt(self, path: str, growing: _Growing) -> None:
        try:
            await self._send(path, growing)
        except UnavailableError as error:
            self._pause.begin(error)
        except OffsetError as error:
            log.info("%s: %s", printable(path), error)
        except RestartError as error:
            log.info("%s is sent again from its beginning: %s", printable(path), error)
            self._journal.forget_growing(path)
        except RefusedError as error:
            log.warning("%s is not sent while it grows: %s", printable(path), error)
            self._unwanted.add(path)
            self._journal.forget_growing(path)
        except (GoneError, ChangedError):
            await self._give_up(path)
        except OSError as error:
            log.warning("%s can't be read while it grows (%s)", printable(path), error.strerror)
        else:
            return
        self._offsets.pop(path, None)

    async def _give_up(self, path: str) -> None:
        """It has another name now, or has become shorter: what the service has of it is of no use."""
        entry = self._journal.find(path)
        if entry is None or entry.state is not State.GROWING:
            return
        self._journal.forget(path)
        if entry.upload:
            try:
                await self._service.terminate(entry.upload)
            except UnavailableError as error:
                log.info("%s: the upload that was given up is left to expire: %s", printable(path), error)

    async def _send(self, path: str, growing: _Growing) -> None:
        entry = self._journal.find(path)
        if entry and entry.state not in (State.GROWING, State.ARRIVED):  # it is ready, or not wanted
            return
        if (entry is None or not entry.upload) and self._pause.held:
            return
        file = await self._disk.ask(open_below, self._watch.path, growing.name)
        try:
            stamp = Stamp.of(await self._disk.ask(os.fstat, file))
            if stamp.inode != growing.stamp.inode:
                raise GoneError(growing.name)
            known = self._watch.grows(growing.name) or path in self._expected
            if not known and not await self._disk.ask(open_for_swmr, file):
                return
            if entry and (entry.state is not State.GROWING or entry.stamp.inode != stamp.inode):
                await self._give_up(path)
                entry = None
            location = await self._begun(path, growing, stamp, entry.upload if entry else None)
            await self._append(file, path, location, stamp.size // BLOCK * BLOCK)
        finally:
            self._disk.begin(os.close, file)

    async def _begun(self, path: str, growing: _Growing, stamp: Stamp, location: str | None) -> str:
        """The path of the URL of its upload; from now on it is known how far that is."""
        if location is None:
            entry = self._journal.find(path)
            if entry is None or entry.state is not State.GROWING or entry.key is None:
                self._journal.grow(path, stamp, secrets.token_hex(16))
                entry = self._journal.find(path)
            assert entry  # noqa: S101 (it has just been written)
            assert entry.key  # noqa: S101
            location, upload = await self._service.create(
                self._watch.destination(growing.name),
                None,
                self._common.config.upload.digest,
                experiment=entry.experiment,
                key=entry.key,
            )
            self._journal.begun(path, location, upload.experiment)
            self._offsets[path] = upload.offset
            log.info("%s is sent while it grows", printable(path))
        elif path not in self._offsets:
            upload = await self._service.upload(location)
            if upload.ended or not upload.deferred:  # its length has been told: it can't grow any more
                await self._service.terminate(location)
                raise RestartError(upload.error or "it has grown since all of it was announced")
            self._offsets[path] = upload.offset
        return location

    async def _append(self, file: int, path: str, location: str, end: int, item: Item | None = None) -> None:
        damaged = 0
        while (offset := self._offsets[path]) < end:
            length = min(AT_ONCE, end - offset)
            blocks, digests, checksum = await self._disk.ask(_blocks, file, length, offset, item)
            body = partial(self._write, blocks)
            try:
                self._offsets[path] = await self._service.append(
                    location, offset + length, offset, length, body, checksum=checksum
                )
            except DamagedError as error:
                damaged += 1
                if damaged == ATTEMPTS:
                    raise
                log.warning("%s: %s (byte %d)", printable(path), error, offset)
                continue
            damaged = 0
            self._journal.sent(path, digests)
            self._pause.end()

    async def _write(self, blocks: Sequence[bytes], write: Callable[[bytes | memoryview], bool]) -> None:
        for block in blocks:
            done = 0
            while done < len(block):
                piece = self._common.throttle.piece(len(block) - done)
                await self._common.throttle.take(piece)
                if not await self._disk.ask(write, memoryview(block)[done : done + piece]):
                    return
                done += piece
                self._common.rate.add(piece)

    async def mend(self, file: int, item: Item, location: str, upload: Upload) -> Upload:
        """Sends again what has changed since it was sent, of a file that is ready now, and then the whole
        blocks that have not been sent: as long as its length is not told, it may still go on growing.

        Raises:
            RestartError: it has become shorter than what was sent.
            ChangedError, UnavailableError, RefusedError
        """
        if item.stamp.size < upload.offset:
            await self._service.terminate(location)
            raise RestartError("it has become shorter")
        assert upload.digest_follows  # noqa: S101 (so it was announced)
        item.digesting = item.digesting or Digesting(upload.digest_follows)
        try:
            again = await self._rewrite(file, item, location, upload.offset)
            if upload.deferred:
                self._offsets[item.path] = upload.offset
                await self._append(file, item.path, location, item.stamp.size // BLOCK * BLOCK, item)
                upload = upload.model_copy(update={"offset": self._offsets.pop(item.path)})
        except OffsetError as error:  # a request that broke off has not ended there
            raise UnavailableError(str(error)) from error
        log.info(
            "%s was sent while it grew: %.2f MB, of which %.2f MB again",
            printable(item.path),
            upload.offset / 1e6,
            again / 1e6,
        )
        return upload

    async def _rewrite(self, file: int, item: Item, location: str, end: int) -> int:
        """How many of the bytes before `end` had changed."""
        assert item.digesting  # noqa: S101 (`mend` has seen to it)
        sent, again, position = self._journal.blocks(item.path), 0, 0
        while position < end:
            length = min(BLOCK, end - position)
            block = await self._disk.ask(_read, file, length, position, item.stamp)
            item.digesting.add(block, position)
            number, digest = position // BLOCK, xxhash.xxh3_64_digest(block)
            if sent.get(number) != digest:
                await self._common.throttle.take(length)
                await self._service.rewrite(location, position, block)
                if length == BLOCK:
                    self._journal.sent(item.path, {number: digest})
                self._common.rate.add(length)
                again += length
            position += length
        return again


def open_for_swmr(file: int) -> bool:
    """Does an HDF5 file say that somebody writes it for readers beside them? Its superblock lies at its
    beginning then."""
    head = os.pread(file, 12, 0)
    return len(head) == 12 and head.startswith(_SIGNATURE) and head[8] >= 3 and bool(head[11] & _SWMR)


def _blocks(
    file: int, length: int, position: int, item: Item | None
) -> tuple[list[bytes], dict[int, bytes], bytes]:
    """These bytes, by blocks of the file; the digests of those that are whole; and the checksum of all."""
    blocks, digests, checksum, end = list[bytes](), dict[int, bytes](), xxhash.xxh3_128(), position + length
    while position < end:
        size = min(BLOCK - position % BLOCK, end - position)
        block = _read(file, size, position, item.stamp if item else None)
        if item and item.digesting:
            item.digesting.add(block, position)
        if len(block) == BLOCK:
            digests[position // BLOCK] = xxhash.xxh3_64_digest(block)
        checksum.update(block)
        blocks.append(block)
        position += size
    return blocks, digests, checksum.digest()


def _read(file: int, length: int, position: int, stamp: Stamp | None = None) -> bytes:
    """Exactly these bytes; with `stamp`, of a file in that state.

    Raises:
        ChangedError: it is in another state, or has become shorter.
    """
    pieces, end = list[bytes](), position + length
    while position < end:
        if stamp:
            piece = read(file, stamp, end - position, position)
        elif not (piece := os.pread(file, end - position, position)):
            raise ChangedError
        pieces.append(piece)
        position += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
