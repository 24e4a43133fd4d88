"""Backing off from a service that can't take anything just now."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from .service import UnavailableError

log = logging.getLogger("beamhub.agent")

# seconds
SHORTEST = 0.5
LONGEST = 30.0
LONGEST_EXPECTED = 4.0  # somebody may activate an experiment any moment


class Pause:
    """Keeps all senders back after one of them has found that nothing can be sent.

    Longer each time, and with jitter, so that many agents don't come back at the same moment.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.expected = False
        self._count = 0
        self._until = 0.0
        self._over = asyncio.Event()
        self._over.set()
        self._held = ""
        self._free = asyncio.Event()
        self._free.set()

    @property
    def held(self) -> str:
        """Why the staff want no file to begin; "" when they don't."""
        return self._held

    def hold(self, reason: str) -> None:
        """The staff want no file to begin; "": they don't mind any longer."""
        if reason != self._held:
            log.info("%s", reason or "the pause is over")
            if not reason:
                self.end()  # what the service has refused for is over too
        self._held = reason
        if reason:
            self._free.clear()
        else:
            self._free.set()

    def begin(self, error: UnavailableError) -> None:
        if str(error) != self.reason:
            log.warning("%s; trying again", error)
        self.reason, self.expected = str(error), error.expected
        now = time.monotonic()
        if now < self._until:  # another sender met the same obstacle
            return
        longest = LONGEST_EXPECTED if error.expected else LONGEST
        wait = min(longest, SHORTEST * 2**self._count) * random.uniform(0.5, 1.0)  # noqa: S311
        self._until = now + max(wait, error.rest)
        self._count = min(self._count + 1, 10)
        self._over.clear()

    def end(self) -> None:
        """Something has been sent, or can be again."""
        if self.reason:
            log.info("sending again")
        self.reason, self.expected, self._count, self._until = "", False, 0, 0.0
        self._over.set()

    async def wait(self) -> None:
        await self._free.wait()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                await self._over.wait()
        except TimeoutError:
            self._over.set()
