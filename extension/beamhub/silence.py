"""For how long nothing has happened to something, by a clock that nobody can set.

The clock on the wall is set, by a day too. So silence is counted by the monotonic clock, from the moment on
at which this process has first seen a thing as it is. Of the time before its start only the clock on the wall
tells: that one is believed for half of what may pass. Whatever it shows, everything has the other half after
a start, and a service that is restarted every night still gives up what is over.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Silences(Generic[K]):
    """The silences of many things, of which none may last longer than `longest`."""

    def __init__(self, longest: timedelta) -> None:
        self._longest = longest.total_seconds()
        self._begun: dict[K, tuple[datetime, float]] | None = None  # what was seen, and since when

    def too_long(self, last: Mapping[K, datetime], now: float) -> list[K]:
        """Those to which nothing has happened for too long. `last`: the times of the last happenings, by any
        clock: what counts is that another one is another happening. `now` is in seconds of the monotonic
        clock. What is not among them is forgotten."""
        known, wall = self._begun or {}, datetime.now(UTC)
        self._begun, first = {}, self._begun is None
        for key, happened in last.items():
            seen, since = known.get(key, (None, now))
            if seen != happened:
                before = (wall - happened).total_seconds() if first else 0.0
                since = now - min(max(before, 0.0), self._longest / 2)
            self._begun[key] = happened, since
        return [key for key, (_, since) in self._begun.items() if now - since >= self._longest]
