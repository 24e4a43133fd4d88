"""Digests of whole files, as text `algorithm:hexadecimal`: those of different algorithms are never equal.

The sender chooses the algorithm. `sha256` also shows what somebody has altered on purpose. `xxh128` (XXH3
with 128 bits, as `xxh128sum` prints it) shows accidents on disks and cables as surely, several times faster:
it is rsync's own default (https://download.samba.org/pub/rsync/rsync.1, --checksum-choice).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import IO, Protocol, cast

import xxhash

from beamhub.schemas import DigestAlgorithm


class Hasher(Protocol):
    """A digest in the making."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


ALGORITHMS: Mapping[DigestAlgorithm, Callable[[], Hasher]] = {
    "sha256": hashlib.sha256,
    "xxh128": xxhash.xxh3_128,
}


def algorithm_of(digest: str) -> DigestAlgorithm:
    return cast("DigestAlgorithm", digest.partition(":")[0])


def of_file(file: IO[bytes], algorithm: DigestAlgorithm) -> str:
    """The digest of a binary file from its position to its end."""
    hasher = hashlib.file_digest(file, ALGORITHMS[algorithm])  # type: ignore[arg-type] # any Hasher does
    return f"{algorithm}:{hasher.hexdigest()}"
