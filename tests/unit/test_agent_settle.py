"""When is a file ready that nobody renamed into place?"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from beamhub.agent.file import Stamp
from beamhub.agent.settle import CHECKS, Settling
from hypothesis import given
from hypothesis import strategies as st


def stamp(size: int) -> Stamp:
    return Stamp(inode=1, size=size, mtime_ns=0)


def ready_at(settling: Settling, path: str, changes: list[float]) -> float:
    """Plays a file that grows at these times, with looks exactly when they are asked for."""
    while True:
        now = settling.next_check()
        assert now is not None
        for due in settling.due(now):
            grown = sum(change <= now for change in changes)
            if settling.looked(due, stamp(grown), now):
                assert due == path
                return now


@given(
    settle=st.floats(0.01, 100),
    pauses=st.lists(st.floats(0.001, 150), max_size=20),
    start=st.floats(-1000, 1e6),
)
def test_ready_after_exactly_one_quiet_period(settle: float, pauses: list[float], start: float) -> None:
    changes = [start + sum(pauses[: i + 1]) for i in range(len(pauses))]
    settling = Settling()
    settling.seen("a", stamp(0), settle, start)

    ready = ready_at(settling, "a", changes)

    slack = 1e-6 * (1 + abs(ready))
    before = [change for change in [start, *changes] if change <= ready]
    assert ready - before[-1] >= settle - slack, "it had changed a moment ago"
    for earlier, later in itertools.pairwise(before):
        # a longer pause would have made it ready then
        assert later - earlier <= settle * (1 + 1 / CHECKS) + slack
    assert ready - before[-1] <= settle * (1 + 1 / CHECKS) + slack
    assert not settling


def test_a_file_that_goes_is_forgotten() -> None:
    settling = Settling()
    settling.seen("a", stamp(1), 2.0, now=0.0)
    settling.seen("b", stamp(1), 2.0, now=0.0)

    assert settling.due(0.4) == []
    assert sorted(settling.due(0.5)) == ["a", "b"]
    assert not settling.looked("a", None, 0.5)
    settling.drop("b")
    assert not settling.looked("b", stamp(1), 0.5)
    assert not settling
    assert settling.next_check() is None or settling.due(100.0) == []


def test_seen_again_unchanged_does_not_wait_longer() -> None:
    settling = Settling()
    settling.seen("a", stamp(1), 2.0, now=0.0)
    settling.seen("a", stamp(1), 2.0, now=1.9)

    assert settling.due(2.0) == ["a"]
    assert settling.looked("a", stamp(1), 2.0)


@pytest.mark.parametrize("changed", [{"inode": 2}, {"size": 6}, {"mtime_ns": 8}])
def test_whatever_has_changed_of_a_file_is_a_change(changed: dict[str, int]) -> None:
    """Another file of the same size and time, too, and one that was overwritten with as many bytes."""
    before = Stamp(inode=1, size=5, mtime_ns=7)
    after = replace(before, **changed)
    settling = Settling()
    settling.seen("a", before, 1.0, now=0.0)

    assert not settling.looked("a", after, 1.0)
    assert not settling.looked("a", after, 1.9)
    assert settling.looked("a", after, 2.0)
