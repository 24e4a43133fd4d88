"""Elapsed time: by a clock that nobody can set, and carefully where there is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from beamhub.silence import Silences
from hypothesis import given
from hypothesis import strategies as st

LONGEST = timedelta(hours=1)
times = st.timedeltas(min_value=timedelta(days=-400), max_value=timedelta(days=400))


def test_what_happens_again_begins_anew_and_what_does_not_is_too_long_silent() -> None:
    silences, now = Silences[str](LONGEST), datetime.now(UTC)
    assert silences.too_long({"a": now, "b": now}, 0) == []
    assert silences.too_long({"a": now, "b": now + timedelta(seconds=1)}, 3000) == []
    assert silences.too_long({"a": now, "b": now + timedelta(seconds=1)}, 3600) == ["a"]
    assert silences.too_long({"b": now + timedelta(seconds=1)}, 6599) == []
    assert silences.too_long({"a": now, "b": now + timedelta(seconds=1)}, 6600) == ["b"]


@given(times, times)
def test_no_time_on_the_wall_makes_a_silence_longer_or_endless(first: timedelta, later: timedelta) -> None:
    """Whatever a thing's last time is: it has half the time after a start, all of it after a happening, and
    never more."""
    silences, now = Silences[str](LONGEST), datetime.now(UTC)
    assert silences.too_long({"a": now - first}, 0) == []
    assert silences.too_long({"a": now - first}, 1799) == []
    if first == later:
        return
    for seconds in (1800, 1800 + 3599):
        assert silences.too_long({"a": now - later}, seconds) == []
    assert silences.too_long({"a": now - later}, 1800 + 3600) == ["a"]


def test_of_the_time_before_a_start_half_counts() -> None:
    long_ago = datetime.now(UTC) - timedelta(days=3)
    for known in ({}, {"b": long_ago}):
        silences = Silences[str](LONGEST)
        silences.too_long(known, 0)
        assert silences.too_long({"a": long_ago}, 1) == []
        assert silences.too_long({"a": long_ago}, 1801) == [], "it has begun since the start"
    silences = Silences[str](LONGEST)
    assert silences.too_long({"a": long_ago}, 0) == []
    assert silences.too_long({"a": long_ago}, 1800) == ["a"]
