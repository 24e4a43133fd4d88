"""Digests of whole files, as text `algorithm:hexadecimal`: those of different algorithms are never equal.

The sender chooses the algorithm. `sha256` also shows what somebody has altered on purpose. `xxh128` (XXH3
with 128 bits, as `xxh128sum` prints it) shows accidents on disks and cables as surely, several times faster:
it is rsync's own default (https://download.samba.org/pub/rsync/rsync.1, --checksum-choice).
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Protocol, cast

import xxhash

from beamhub.schemas import DigestAlgorithm

READ = 256 * 2**10  # bytes at once: they are still in the processor's cache when they are hashed


class Hasher(Protocol):
    """A digest in the making."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Hasher: ...


ALGORITHMS: Mapping[DigestAlgorithm, Callable[[], Hasher]] = {
    "sha256": hashlib.sha256,
    "xxh128": xxhash.xxh3_128,
}


def algorithm_of(digest: str) -> DigestAlgorithm:
    return cast("DigestAlgorithm", digest.partition(":")[0])


class Running:
    """The digest of the first `position` bytes of a file, in the making."""

    def __init__(self, algorithm: DigestAlgorithm, position: int = 0, hasher: Hasher | None = None) -> None:
        self.algorithm = algorithm
        self.position = position
        self._hasher = hasher or ALGORITHMS[algorithm]()

    def add(self, data: memoryview) -> None:
        """The bytes from `position` on."""
        self._hasher.update(data)
        self.position += len(data)

    def catch_up(self, file: int, end: int = sys.maxsize, seconds: float = math.inf) -> None:
        """Reads the bytes of an open file from `position` on, up to `end` or where the file ends, and for not
        much longer than so many seconds."""
        buffer, over = memoryview(bytearray(READ)), time.monotonic() + seconds
        while count := os.preadv(file, [buffer[: end - self.position]], self.position):
            self.add(buffer[:count])
            if time.monotonic() >= over:
                return

    def copy(self) -> Running:
        return Running(self.algorithm, self.position, self._hasher.copy())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self._hasher.hexdigest()}"


def of_file(file: IO[bytes], algorithm: DigestAlgorithm) -> str:
    """The digest of all of an open file."""
    running = Running(algorithm)
    running.catch_up(file.fileno())
    return str(running)
