"""Files that are sent while they grow.

A file grows by design when it is an HDF5 file that is open for SWMR writing, when a master names it, or when
the configuration says so (`grow`). Its whole blocks are sent as they come, into an upload whose length and
digest are left open: a temporary file that nobody reads. Once the file is ready, what its writer has changed
since it was sent is sent again; then it ends like any other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import xxhash

from beamhub.schemas import DigestAlgorithm, FileProgress, Upload

from .complete import Holding
from .config import Watch
from .file import CHUNK, ChangedError, Digesting, GoneError, Stamp, open_below, printable, read
from .journal import Journal, State
from .pause import Pause
from .queue import Item
from .service import OffsetError, RefusedError, RestartError, Service, UnavailableError
from .throttle import Throttle

log = logging.getLogger("beamhub.agent")

BLOCK = CHUNK  # bytes that are sent, and perhaps sent again, as a whole
AT_ONCE = 16 * BLOCK  # bytes in one request
EXPECTED = 10_000  # files of masters in memory
MASTERS = ("_master.h5", ".nxs")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SWMR = 4  # the flag of a superblock


@dataclass(frozen=True, slots=True)
class _Growing:
    watch: Watch
    name: str
    stamp: Stamp

    @property
    def path(self) -> str:
        return f"{self.watch.path}/{self.name}"


class Growth:
    """Sends files while they grow, one at a time.

    Args:
        sent: told of bytes that have been handed to the network.
    """

    def __init__(
        self,
        service: Service,
        journal: Journal,
        pause: Pause,
        throttle: Throttle,
        algorithm: DigestAlgorithm,
        sent: Callable[[int], None],
    ) -> None:
        self._service, self._journal, self._pause, self._throttle = service, journal, pause, throttle
        self._algorithm = algorithm
        self._tell = sent
        self._expected: dict[str, None] = {}  # what masters name, oldest first
        self._unwanted: set[str] = set()  # by the service
        self._offsets: dict[str, int] = {}  # how much it has of each
        self._pending: dict[str, _Growing] = {}
        self._more = asyncio.Event()
        self._sending = asyncio.Lock()
        self._current: _Growing | None = None

    def expect(self, paths: Iterable[str]) -> None:
        """A master that has been seen names these files."""
        self._expected |= dict.fromkeys(paths)
        while len(self._expected) > EXPECTED:
            del self._expected[next(iter(self._expected))]

    def seen(self, watch: Watch, name: str, stamp: Stamp) -> None:
        """A file that is not ready has this stamp now."""
        growing = _Growing(watch, name, stamp)
        path = growing.path
        by_design = watch.grows(name) or path in self._expected or Holding.concerns(name)
        if watch.in_place or not by_design or path in self._unwanted:
            return
        if stamp.size - self._offsets.get(path, 0) >= BLOCK:
            self._pending[path] = growing
            self._more.set()

    async def leave(self, path: str) -> None:
        """From now on, nothing of this file is sent here."""
        self._pending.pop(path, None)
        if self._current and self._current.path == path:
            async with self._sending:
                pass
        self._pending.pop(path, None)
        self._offsets.pop(path, None)
        self._expected.pop(path, None)

    @property
    def progress(self) -> list[FileProgress]:
        """The file that is being sent."""
        if self._current is None:
            return []
        growing = self._current
        entry = self._journal.find(growing.path)
        return [
            FileProgress(
                name=printable(growing.watch.destination(growing.name)),
                size=growing.stamp.size,
                sent=min(self._offsets.get(growing.path, 0), growing.stamp.size),
                experiment=entry.experiment if entry else None,
            )
        ]

    async def follow(self) -> None:
        """Sends what has been seen, until it is cancelled."""
        while True:
            await self._more.wait()
            await self._pause.wait()
            if not self._pending:
                self._more.clear()
                continue
            path = next(iter(self._pending))
            growing = self._pending.pop(path)
            async with self._sending:
                self._current = growing
                try:
                    await self._attempt(growing)
                finally:
                    self._current = None

    async def _attempt(self, growing: _Growing) -> None:
        path = growing.path
        try:
            await self._send(growing)
        except UnavailableError as error:
            self._pause.begin(error)
        except OffsetError as error:
            log.info("%s: %s", printable(path), error)
        except RestartError as error:
            log.info("%s is sent again from its beginning: %s", printable(path), error)
            self._journal.forget(path)
        except RefusedError as error:
            log.warning("%s is not sent while it grows: %s", printable(path), error)
            self._unwanted.add(path)
            self._journal.forget(path)
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

    async def _send(self, growing: _Growing) -> None:
        path = growing.path
        entry = self._journal.find(path)
        if entry and entry.state not in (State.GROWING, State.ARRIVED):  # it is ready, or not wanted
            return
        if (entry is None or not entry.upload) and self._pause.held:
            return
        file = await asyncio.to_thread(open_below, growing.watch.path, growing.name)
        try:
            stamp = Stamp.of(await asyncio.to_thread(os.fstat, file))
            if stamp.inode != growing.stamp.inode:
                raise GoneError(growing.name)
            known = growing.watch.grows(growing.name) or path in self._expected
            if not known and not await asyncio.to_thread(open_for_swmr, file):
                return
            if entry and (entry.state is not State.GROWING or entry.stamp.inode != stamp.inode):
                await self._give_up(path)
                entry = None
            location = await self._begun(growing, stamp, entry.upload if entry else None)
            await self._append(file, path, location, stamp.size // BLOCK * BLOCK)
        finally:
            asyncio.get_running_loop().run_in_executor(None, os.close, file)

    async def _begun(self, growing: _Growing, stamp: Stamp, location: str | None) -> str:
        """The path of the URL of its upload; from now on it is known how far that is."""
        path = growing.path
        if location is None:
            entry = self._journal.find(path)
            if entry is None or entry.state is not State.GROWING or entry.key is None:
                self._journal.grow(path, stamp, secrets.token_hex(16))
                entry = self._journal.find(path)
            assert entry  # noqa: S101 (it has just been written)
            assert entry.key  # noqa: S101
            location, upload = await self._service.create(
                growing.watch.destination(growing.name),
                None,
                self._algorithm,
                experiment=entry.experiment,
                key=entry.key,
            )
            self._journal.begun(path, location, upload.experiment)
            self._offsets[path] = upload.offset
            log.info("%s is sent while it grows", printable(path))
        elif path not in self._offsets:
            upload = await self._service.upload(location)
            if upload.ended:
                raise RestartError(upload.error)
            self._offsets[path] = upload.offset
        return location

    async def _append(self, file: int, path: str, location: str, end: int) -> None:
        while (offset := self._offsets[path]) < end:
            length = min(AT_ONCE, end - offset)
            digests = dict[int, bytes]()
            body = self._body(file, offset, length, digests)
            self._offsets[path] = await self._service.append(location, offset + length, offset, length, body)
            self._journal.sent(path, digests)
            self._pause.end()

    async def _body(
        self, file: int, offset: int, length: int, digests: dict[int, bytes]
    ) -> AsyncIterator[bytes]:
        end = offset + length
        while offset < end:
            block = await asyncio.to_thread(_read, file, min(BLOCK - offset % BLOCK, end - offset), offset)
            if len(block) == BLOCK:
                digests[offset // BLOCK] = xxhash.xxh3_64_digest(block)
            offset += len(block)
            done = 0
            while done < len(block):
                piece = self._throttle.piece(len(block) - done)
                await self._throttle.take(piece)
                yield block[done : done + piece]
                done += piece
                self._tell(piece)

    async def mend(self, file: int, item: Item, location: str, upload: Upload) -> None:
        """Sends again what has changed since it was sent, of a file that is ready now.

        Raises:
            RestartError: it has become shorter than what was sent.
            ChangedError, UnavailableError, RefusedError
        """
        if item.stamp.size < upload.offset:
            await self._service.terminate(location)
            raise RestartError("it has become shorter")
        assert upload.digest_follows  # noqa: S101 (so it was announced)
        item.digesting = item.digesting or Digesting(upload.digest_follows)
        sent, again, position = self._journal.blocks(item.path), 0, 0
        while position < upload.offset:
            length = min(BLOCK, upload.offset - position)
            block = await asyncio.to_thread(_read, file, length, position, item.stamp)
            item.digesting.add(block, position)
            number, digest = position // BLOCK, xxhash.xxh3_64_digest(block)
            if sent.get(number) != digest:
                await self._throttle.take(length)
                try:
                    await self._service.rewrite(location, position, block)
                except OffsetError as error:  # a request that broke off has not ended there
                    raise UnavailableError(str(error)) from error
                if length == BLOCK:
                    self._journal.sent(item.path, {number: digest})
                self._tell(length)
                again += length
            position += length
        log.info(
            "%s was sent while it grew: %.2f MB, of which %.2f MB again",
            printable(item.path),
            upload.offset / 1e6,
            again / 1e6,
        )


def open_for_swmr(file: int) -> bool:
    """Does an HDF5 file say that somebody writes it for readers beside them? Its superblock lies at its
    beginning then."""
    head = os.pread(file, 12, 0)
    return len(head) == 12 and head.startswith(_SIGNATURE) and head[8] >= 3 and bool(head[11] & _SWMR)


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
