"""How the agent keeps back while nothing can be sent."""

from __future__ import annotations

import time

import pytest
from beamhub.agent.pause import LONGEST, LONGEST_EXPECTED, SHORTEST, Pause
from beamhub.agent.service import UnavailableError


def test_once_the_staff_let_files_begin_nobody_hears_of_the_pause_any_more() -> None:
    pause = Pause()
    pause.hold("paused by sam: sample change")
    pause.begin(UnavailableError("Uploads of mx-1 are paused by sam: sample change", expected=True))
    pause.hold("paused by sam: sample change")
    assert pause.reason
    pause.hold("")
    assert (pause.held, pause.reason) == ("", "")


@pytest.mark.parametrize(("expected", "longest"), [(False, LONGEST), (True, LONGEST_EXPECTED)])
def test_each_pause_is_longer_than_the_one_before_up_to_a_limit(expected: bool, longest: float) -> None:
    ends = set()
    for _ in range(5):
        pause = Pause()
        for count in range(12):
            full = min(longest, SHORTEST * 2**count)
            pause._until = 0.0  # the one before is over
            before = time.monotonic()
            pause.begin(UnavailableError("it is away", expected=expected))
            after = time.monotonic()
            assert full / 2 <= pause._until - before
            assert pause._until - after <= full
        ends.add(pause._until - before)
        pause.end()
        assert pause._until == 0.0
    assert len(ends) == 5, "all come back at the same moment"


def test_who_says_when_to_come_again_is_left_alone_until_then() -> None:
    pause = Pause()
    before = time.monotonic()
    pause.begin(UnavailableError("too many", rest=120.0))
    assert pause._until >= before + 120
