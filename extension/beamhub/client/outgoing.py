"""A file that is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

from beamhub import digests

BLOCK = 256 * 2**10  # bytes per read


class Outgoing:
    """An open file that is sent; what has been read of it is in its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self.name = file.name
        self._file = file
        self._stamp = self._now()
        self._running = digests.Running("sha256")

    @property
    def size(self) -> int:
        return self._stamp[0]

    def changed(self, *, complete: bool) -> bool:
        """Whether the file is not what it was, so that what has been read may be of both; or has not been
        read in full, where it should have been."""
        return self._now() != self._stamp or (complete and self._running.position != self.size)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def blocks(self, position: int, length: int) -> Iterator[bytes]:
        """The bytes from `position` on, which lies at most where reading has come to."""
        end = position + length
        while block := os.pread(self._file.fileno(), min(BLOCK, end - position), position):
            self._running.add(memoryview(block)[max(self._running.position - position, 0) :])
            position += len(block)
            yield block

    def digest(self) -> str:
        """Hexadecimal, of all of it: what has not been read is read now."""
        self._running.catch_up(self._file.fileno())
        return str(self._running).partition(":")[2]
