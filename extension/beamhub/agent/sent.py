"""What the service has of a file that is sent while it grows.

Its blocks are sent one after the other. The journal keeps the digest of each as it was when it was read, so
that one that its writer has changed since is found, and is sent again as a whole. Each request has the
checksum of its bytes: what was damaged on its way is sent again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial

import xxhash

from beamhub.schemas import Upload

from .common import Common
from .disk import Disk
from .file import CHUNK, ChangedError, Stamp, printable, read
from .queue import Item
from .service import DamagedError

log = logging.getLogger("beamhub.agent")

BLOCK = CHUNK  # bytes that are sent, and perhaps sent again, as a whole
AT_ONCE = 8 * BLOCK  # bytes in one request, and in memory: their checksum goes first
ATTEMPTS = 3  # at bytes that are damaged on their way


class Sent:
    """What the service has of one file: all before `offset`, though its writer may have changed some of that.

    Args:
        path: the file's.
        location: the path of the URL of its upload.
        upload: as the service knows it.
    """

    def __init__(self, path: str, location: str, upload: Upload, common: Common, disk: Disk) -> None:
        self.path = path
        self.location = location
        self.offset = upload.offset  # how many bytes it has
        self.frames = upload.frames or 0  # of how many frames it knows
        self._tail: xxhash.xxh3_64 | None = None  # the digest of what it has of the last block, where known
        self._common, self._disk = common, disk
        self._journal, self._service, self._throttle = common.journal, common.service, common.throttle
        self._journal.not_sent(path, self.offset // BLOCK)

    async def append(self, file: int, end: int, item: Item | None = None) -> None:
        """Sends what the open file has before `end`; with `item`, of the file in its state.

        Raises:
            ChangedError: it is in another state, or has become shorter.
            DamagedError, OffsetError, RestartError, RefusedError, UnavailableError
        """
        damaged = 0
        while (offset := self.offset) < end:
            length = min(AT_ONCE, end - offset)
            blocks, digests, checksum, tail = await self._disk.ask(
                _blocks, file, length, offset, item, self._tail
            )
            body = partial(self._write, blocks)
            try:
                self.offset = await self._service.append(
                    self.location, offset + length, offset, length, body, checksum=checksum
                )
            except DamagedError as error:
                damaged += 1
                if damaged == ATTEMPTS:
                    raise
                log.warning("%s: %s (byte %d)", printable(self.path), error, offset)
                continue
            damaged = 0
            self._tail = tail if self.offset == offset + length else None
            self._journal.sent(self.path, digests)
            self._common.pause.end()

    async def renew(self, file: int, number: int, item: Item | None = None) -> int:
        """Reads a block again that has been sent, and sends it if the service does not have it as it is now;
        how many bytes were sent. Raises as `append`."""
        position = number * BLOCK
        length = min(BLOCK, self.offset - position)
        block = await self._disk.ask(_read, file, length, position, item.stamp if item else None)
        if item and item.digesting:
            item.digesting.add(block, position)
        now, last = xxhash.xxh3_64(block), length < BLOCK
        tail = self._tail.digest() if self._tail else b""
        if now.digest() == (tail if last else self._journal.block(self.path, number)):
            return 0
        await self._throttle.take(length)
        self._tail = None if last else self._tail
        self._journal.sent(self.path, {number: b""})  # so it is should the answer be lost
        await self._service.rewrite(self.location, position, block)
        self._tail = now if last else self._tail
        self._journal.sent(self.path, {number: b"" if last else now.digest()})
        self._common.rate.add(length)
        return length

    async def _write(self, blocks: Sequence[bytes], write: Callable[[bytes | memoryview], bool]) -> None:
        for block in blocks:
            done = 0
            while done < len(block):
                piece = self._throttle.piece(len(block) - done)
                await self._throttle.take(piece)
                if not await self._disk.ask(write, memoryview(block)[done : done + piece]):
                    return
                done += piece
                self._common.rate.add(piece)


def _blocks(
    file: int, length: int, position: int, item: Item | None, tail: xxhash.xxh3_64 | None
) -> tuple[list[bytes], dict[int, bytes], bytes, xxhash.xxh3_64 | None]:
    """These bytes, by blocks of the file; the digests of those that are whole with them (b"" of others); the
    checksum of all these bytes; and the digest of what lies in the last block, if that is not whole.

    Args:
        tail: the digest of what lies before them in their first block; None where it is not known.
    """
    blocks, digests, checksum, end = list[bytes](), dict[int, bytes](), xxhash.xxh3_128(), position + length
    while position < end:
        size = min(BLOCK - position % BLOCK, end - position)
        block = _read(file, size, position, item.stamp if item else None)
        if item and item.digesting:
            item.digesting.add(block, position)
        digest = (tail.copy() if tail else None) if position % BLOCK else xxhash.xxh3_64()
        if digest:
            digest.update(block)
        whole = (position + size) % BLOCK == 0
        digests[position // BLOCK] = digest.digest() if digest and whole else b""
        tail = None if whole else digest
        checksum.update(block)
        blocks.append(block)
        position += size
    return blocks, digests, checksum.digest(), tail


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
