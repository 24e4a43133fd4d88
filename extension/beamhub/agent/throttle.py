"""A limit on how fast the agent sends, over all its files together."""

from __future__ import annotations

import asyncio
import time

SLICE = 0.05  # seconds of sending in one piece: what is sent comes evenly
REQUEST = 5.0  # seconds of sending in one request
BURST = 0.1  # seconds of sending that may be caught up with after a standstill


class Throttle:
    """Hands out bytes in the order in which they are asked for, `rate` of them per second (None: at once).

    The rate may be changed at any time; what has been promised already keeps its moment.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._free = float("-inf")  # when everything that has been handed out is through

    def piece(self, most: int) -> int:
        """How many bytes, at most, to ask for at a time."""
        return most if self.rate is None else max(1, min(most, round(self.rate * SLICE)))

    def part(self, most: int) -> int:
        """How many bytes, at most, to send by one request: who is refused hears of it when all have gone."""
        return most if self.rate is None else max(1, min(most, round(self.rate * REQUEST)))

    def reserve(self, count: int, now: float) -> float:
        """Hands out `count` bytes; how many seconds to wait before they may be sent."""
        if self.rate is None:
            return 0.0
        begin = max(self._free, now - BURST)
        self._free = begin + count / self.rate
        return max(0.0, self._free - now)

    async def take(self, count: int) -> None:
        """Returns when `count` more bytes may be sent."""
        if wait := self.reserve(count, time.monotonic()):
            await asyncio.sleep(wait)
