"""When is a file that nobody renamed into place ready? When its stamp has not changed for a while."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from .file import Stamp

CHECKS = 4  # looks at a file per settling time: it is ready at most a quarter later than it could be


@dataclass(slots=True)
class _Candidate:
    stamp: Stamp
    since: float
    settle: float
    check: float


class Settling:
    """Files that have been seen and may still change.

    Time is given from outside, in seconds of a monotonic clock: neither the files' own times nor the wall
    clock matter.
    """

    def __init__(self) -> None:
        self._candidates: dict[str, _Candidate] = {}
        self._checks: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._candidates)

    def __iter__(self) -> Iterator[str]:
        return iter(self._candidates)

    def __contains__(self, path: str) -> bool:
        return path in self._candidates

    def stamp(self, path: str) -> Stamp | None:
        """The state of one of these when it was last looked at."""
        candidate = self._candidates.get(path)
        return candidate.stamp if candidate else None

    def stamps(self) -> dict[str, Stamp]:
        """As `stamp`, of all of these."""
        return {path: candidate.stamp for path, candidate in self._candidates.items()}

    def seen(self, path: str, stamp: Stamp, settle: float, now: float) -> None:
        """The file exists, with this stamp; it is to stay so for `settle` seconds."""
        candidate = self._candidates.get(path)
        if candidate and candidate.stamp == stamp:
            return
        self._schedule(path, _Candidate(stamp, now, settle, now + settle / CHECKS))

    def drop(self, path: str) -> None:
        self._candidates.pop(path, None)

    def next_check(self) -> float | None:
        """When to ask for `due` again; None when there is nothing to wait for."""
        return self._checks[0][0] if self._checks else None

    def due(self, now: float) -> list[str]:
        """The files to look at now; report each of them with `looked`."""
        paths = []
        while self._checks and self._checks[0][0] <= now:
            check, path = heapq.heappop(self._checks)
            candidate = self._candidates.get(path)
            if candidate and candidate.check == check:  # else dropped or scheduled anew
                paths.append(path)
        return paths

    def looked(self, path: str, stamp: Stamp | None, now: float) -> bool:
        """The file has this stamp now (None: it is gone). True when it is ready, and no longer kept here."""
        candidate = self._candidates.get(path)
        if candidate is None:
            return False
        if stamp is None:
            self.drop(path)
            return False
        if stamp != candidate.stamp:
            candidate.stamp, candidate.since = stamp, now
        elif now >= candidate.since + candidate.settle:
            self.drop(path)
            return True
        candidate.check = min(now + candidate.settle / CHECKS, candidate.since + candidate.settle)
        self._schedule(path, candidate)
        return False

    def _schedule(self, path: str, candidate: _Candidate) -> None:
        self._candidates[path] = candidate
        heapq.heappush(self._checks, (candidate.check, path))
