"""Bytes on their way in, as the rooms below the API see them: Tornado may receive them, or we ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

PIECE = 256 * 2**10  # bytes


class Body(Protocol):
    """What a request brings. It is waited for on the event loop, and taken in threads, one at a time."""

    async def come(self) -> bool:
        """Waits until there is something to take; False: all has been taken. Raises what has broken it."""

    def take(self, buffer: memoryview) -> int:
        """Puts what is there into the buffer, from its beginning; how many bytes, 0 if there are none now."""


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
