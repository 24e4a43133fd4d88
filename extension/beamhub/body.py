"""Bytes on their way in, as the rooms below the API see them: Tornado may receive them, or we ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from beamhub.digests import ALGORITHMS
from beamhub.errors import Invalid
from beamhub.schemas import DigestAlgorithm

PIECE = 256 * 2**10  # bytes


class Body(Protocol):
    """What a request brings. It is waited for on the event loop, and taken in threads, one at a time."""

    async def come(self) -> bool:
        """Waits until there is something to take; False: all has been taken. Raises what has broken it."""

    def take(self, buffer: memoryview) -> int:
        """Puts what is there into the buffer, from its beginning; how many bytes, 0 if there are none now."""


class Followed:
    """A body that is followed by the digest of the file up to there, which its sender knows only then."""

    def __init__(self, body: Body, length: int, algorithm: DigestAlgorithm) -> None:
        """`length`: of both together. Raises Invalid where that is too little for a digest."""
        size = len(ALGORITHMS[algorithm]().digest())
        if length < size:
            raise Invalid(f"{length} bytes don't end with the {size} of its {algorithm}.", "Send it, too.")
        self.algorithm = algorithm
        self._body = body
        self._left = length - size
        self._digest = memoryview(bytearray(size))
        self._known = 0  # bytes of the digest

    @property
    def digest(self) -> str | None:
        """As `algorithm:hexadecimal`, once it has come."""
        return f"{self.algorithm}:{self._digest.hex()}" if self._known == len(self._digest) else None

    async def come(self) -> bool:
        if self._left:
            return await self._body.come()
        while self._known < len(self._digest) and await self._body.come():
            self._known += self._body.take(self._digest[self._known :])
        return False

    def take(self, buffer: memoryview) -> int:
        count = self._body.take(buffer[: self._left])
        self._left -= count
        return count


class Chunks:
    """A body that somebody else receives, chunk by chunk."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    async def come(self) -> bool:
        while not self._rest:
            try:
                self._rest = memoryview(await anext(self._chunks))
            except StopAsyncIteration:
                return False
        return True

    def take(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


async def pieces(body: Body) -> AsyncIterator[bytes]:
    """What comes of a body that is wanted in memory."""
    buffer = memoryview(bytearray(PIECE))
    while await body.come():
        count = await asyncio.to_thread(body.take, buffer)
        yield bytes(buffer[:count])
