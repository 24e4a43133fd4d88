"""Text from outside becomes one printable line."""

from __future__ import annotations

from beamhub.text import one_line
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None)
@given(st.text(st.characters()), st.integers(1, 50))
def test_a_line_is_printable_and_bounded(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
    line.encode()
    assert one_line(line, limit) == line


def test_what_is_cut_off_is_marked() -> None:
    assert one_line("a\tb\nc", 10) == "a b c"
    assert one_line("abcdef", 4) == "abc…"
