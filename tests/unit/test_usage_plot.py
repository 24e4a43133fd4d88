"""What was used, drawn: as large as it was, of every name only its text."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from beamhub import usage_plot
from beamhub.schemas import UsageKey, UsageRow
from hypothesis import given
from hypothesis import strategies as st

SVG = "{http://www.w3.org/2000/svg}"
MONTH, LICENCE, MEMBER = UsageKey.MONTH, UsageKey.LICENCE, UsageKey.MEMBER
HOSTILE = "</text><script>alert(1)</script>&\"'\x00\x0b\udc80\ufffe\u202e]]>"


def row(seconds: int, **keys: str) -> UsageRow:
    return UsageRow.model_validate({**keys, "jobs": 1, "cpu_seconds": seconds})


def texts(picture: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in picture.iter(f"{SVG}text")]


def bars(picture: ElementTree.Element) -> dict[str, float]:
    """What each part of a bar says -> its length."""
    parts = (one for one in picture.iter(f"{SVG}rect") if one.get("class") == "part")
    return {one.get("aria-label") or "": float(one.get("width") or 0) for one in parts}


def test_months_in_their_order_with_parts_as_long_as_what_was_used() -> None:
    rows = [
        *(row(7200, month="2025-12", licence="lab"), row(3600, month="2025-12", licence="ada")),
        *(row(1800, month="2026-02", licence="lab"), row(-900, month="2026-02", licence="ada")),
    ]
    picture = ElementTree.fromstring(usage_plot.draw([LICENCE, MONTH], rows))
    found = texts(picture)
    assert found[0] == "CPU-hours by month and licence"
    assert [one for one in found if one.startswith("20")] == ["2025-12", "2026-01", "2026-02"]
    assert [one for one in found if one in ("lab", "ada")] == ["lab", "ada"]  # who used most first
    lengths = bars(picture)
    assert list(lengths) == ["2025-12 lab: 2 CPU-h", "2025-12 ada: 1 CPU-h", "2026-02 lab: 0.5 CPU-h"]
    assert list(lengths.values()) == pytest.approx([560 * part / 3 for part in (2, 1, 0.5)], abs=0.01)
    assert "0.25" in found  # what was given back is not forgotten in the sum


def test_the_largest_have_bars_and_the_rest_is_added_up() -> None:
    rows = [row(3600 * n, member=f"user-{n:02}") for n in range(1, 41)]
    picture = ElementTree.fromstring(usage_plot.draw([MEMBER], rows))
    lengths = bars(picture)
    assert len(lengths) == usage_plot.BARS
    assert next(iter(lengths)) == "user-40: 40 CPU-h"
    rest = sum(range(1, 41 - usage_plot.BARS + 1))
    assert list(lengths)[-1] == f"{41 - usage_plot.BARS} others: {rest} CPU-h"


def test_many_parts_share_a_colour() -> None:
    rows = [row(3600 * n, month="2026-01", member=f"user-{n:02}") for n in range(1, 21)]
    picture = ElementTree.fromstring(usage_plot.draw([MONTH, MEMBER], rows))
    lengths = bars(picture)
    assert len(lengths) == usage_plot.PARTS + 1
    assert f"2026-01 {usage_plot.OTHERS}: {sum(range(1, 14))} CPU-h" in lengths
    assert sum(lengths.values()) <= 560.1


def test_nothing_used_says_so() -> None:
    assert "Nothing has been charged." in texts(ElementTree.fromstring(usage_plot.draw([MONTH], [])))


NAMES = st.text(max_size=60) | st.just(HOSTILE)
MONTHS = st.dates().map(lambda day: f"{day.year:04}-{day.month:02}")


@given(st.lists(st.tuples(MONTHS, NAMES, st.integers(-(10**15), 10**15)), max_size=60), st.booleans())
def test_names_are_text_whatever_they_are(told: list[tuple[str, str, int]], by_month: bool) -> None:
    rows = [row(seconds, month=month, member=name) for month, name, seconds in told]
    written = usage_plot.draw([MONTH, MEMBER] if by_month else [MEMBER, LICENCE], rows)
    picture = ElementTree.fromstring(written.encode())  # as it is sent
    known = {f"{SVG}{tag}" for tag in ("svg", "title", "rect", "text", "line")}
    assert {one.tag for one in picture.iter()} <= known
    names = {name for one in picture.iter() for name in one.attrib}
    assert not {name for name in names if name.startswith("on") or "href" in name or name == "style"}
    assert all(0 <= length <= 560.1 for length in bars(picture).values())
    assert "\u202e" not in written
