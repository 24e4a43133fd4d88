"""What the watched directories share: one service, one journal, one limit, and how all of it is doing."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from .config import Config
from .file import Stamp, printable
from .journal import Journal
from .pause import Pause
from .service import Service
from .throttle import Throttle

log = logging.getLogger("beamhub.agent")

REMEMBERED = 1000  # errors in memory


class Rate:
    """Bytes per second over the last seconds."""

    WINDOW = 5.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, count: int) -> None:
        self._steps.append((time.monotonic(), count))
        self._sum += count

    def __call__(self) -> float:
        while self._steps and self._steps[0][0] < time.monotonic() - self.WINDOW:
            self._sum -= self._steps.popleft()[1]
        return self._sum / self.WINDOW


@dataclass
class Common:
    """Args:
    once: nobody writes any more: what is there is sent, and then it is over.
    """

    config: Config
    once: bool
    service: Service
    journal: Journal
    throttle: Throttle
    pause: Pause = field(default_factory=Pause)
    rate: Rate = field(default_factory=Rate)
    shows: bool = True  # the service takes frames of files that grow
    failed: dict[str, str] = field(default_factory=dict)  # files that did not arrive -> why
    missed: dict[Stamp, str] = field(default_factory=dict)  # of these, what is not there any more -> path
    arrived: int = 0  # files, ever
    step: asyncio.Event = field(default_factory=asyncio.Event)  # something is done: perhaps the last thing
    stop_reading: threading.Event = field(default_factory=threading.Event)

    def fail(self, path: str, reason: str) -> None:
        """The file did not arrive, and nothing more is tried for the time being."""
        if self.failed.get(path) != reason:
            log.error("%s %s", printable(path), reason)
        if len(self.failed) < REMEMBERED or path in self.failed:
            self.failed[path] = reason

    def miss(self, path: str, stamp: Stamp) -> None:
        """The file is not there any more, nor by another name that is known."""
        self.fail(path, "was deleted or renamed before it had been sent")
        if len(self.missed) < REMEMBERED:
            self.missed[stamp] = path

    def found(self, stamp: Stamp) -> None:
        """A file is there, perhaps one that had another name: then nothing has failed."""
        if path := self.missed.pop(stamp, None):
            self.failed.pop(path, None)
