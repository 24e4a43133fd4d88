"""Streamed bodies that Tornado receives."""

from __future__ import annotations

import asyncio
from collections import deque

from beamhub.api.files import BLOCK


class Inflow:
    """A streamed body that Tornado receives (see beamhub.body); the sender waits while much is pending."""

    def __init__(self) -> None:
        self._pending: deque[memoryview] = deque()
        self._size = 0
        self._ended = self._abandoned = False
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self.waiting = True  # for the sender, rather than the sender for us

    async def put(self, chunk: bytes) -> None:
        if not self._abandoned:
            self._pending.append(memoryview(chunk))
            self._size += len(chunk)
            self._more.set()
            if self._size > BLOCK:
                self._room.clear()
                self.waiting = False
                await self._room.wait()
                self.waiting = True

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._more.set()

    def abandon(self, _: object = None) -> None:
        """Nobody reads any longer."""
        self._abandoned = True
        self._room.set()

    async def come(self) -> bool:
        if not self._pending and not self._ended:
            self._size = 0
            self._room.set()
            self._more.clear()
            await self._more.wait()
        return bool(self._pending)

    def take(self, buffer: memoryview) -> int:
        count = 0
        while self._pending and count < len(buffer):
            chunk = self._pending.popleft()
            part = chunk[: len(buffer) - count]
            buffer[count : count + len(part)] = part
            count += len(part)
            if len(part) < len(chunk):
                self._pending.appendleft(chunk[len(part) :])
        return count
