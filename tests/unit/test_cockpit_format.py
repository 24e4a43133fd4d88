from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from beamhub.schemas import MetricSpec, Profile, Quantity
from beamhub_cockpit import format as shown
from beamhub_cockpit.parts import actor, by_rule
from hypothesis import given
from hypothesis import strategies as st

N = "\u202f"


@pytest.mark.parametrize(
    ("value", "spec", "expected"),
    [
        (None, "", "–"),
        (float("nan"), ".2f", "–"),
        (True, "", "yes"),
        (0, "", "0"),
        (0.0, "", "0"),
        (1234567, "", f"1{N}234{N}567"),
        (-3, "", "−3"),
        (79.1, "", "79.1"),
        (79.10123, "", "79.1"),
        (0.5403234, "", "0.5403"),
        (1.8, ".2f", "1.80"),
        (12, ".1f", "12.0"),
        (1e-7, "", "1.00e−07"),
        (2.5e9, "", "2.50e+09"),
        ("P 43 21 2", "", "P 43 21 2"),
        ("P 43 21 2", ".2f", "P 43 21 2"),
        (1.5, "%%%", "1.5"),
        (5000.0, "", f"5{N}000"),
    ],
)
def test_numbers(value: float | str | bool | None, spec: str, expected: str) -> None:
    assert shown.number(value, spec) == expected


@given(st.floats() | st.integers() | st.text(max_size=9) | st.booleans() | st.none(), st.text(max_size=9))
def test_no_value_and_no_specification_is_too_strange(value: float | str | bool | None, spec: str) -> None:
    assert isinstance(shown.number(value, spec), str)
    assert isinstance(shown.quantity(Quantity(value=value, unit=spec), spec), str)


@given(st.floats(min_value=1e-3, max_value=1e6))
def test_numbers_keep_three_digits_at_least(value: float) -> None:
    back = float(shown.number(value).replace(N, "").replace("−", "-"))
    assert back == pytest.approx(value, rel=2e-2 if value < 0.01 else 5e-3)


def test_quantities() -> None:
    assert shown.quantity(Quantity(value=0.9999, unit="angstrom"), ".4f") == f"0.9999{N}Å"
    assert shown.quantity(Quantity(value=0.5, unit="deg")) == "0.5°"
    assert shown.quantity(Quantity(value=[79.1, 79.1, 37.9], unit="Å"), ".1f") == f"79.1, 79.1, 37.9{N}Å"
    assert shown.quantity(Quantity(value=None, unit="m")) == "–"
    assert shown.quantity(None) == "–"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, f"0{N}B"),
        (999, f"999{N}B"),
        (1000, f"1.0{N}kB"),
        (8_912_896, f"8.9{N}MB"),
        (2e9, f"2.0{N}GB"),
        (3e15, f"3000.0{N}TB"),
    ],
)
def test_sizes(count: float, expected: str) -> None:
    assert shown.size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, f"0{N}s"),
        (59.4, f"59{N}s"),
        (60, f"1{N}min"),
        (200, f"3{N}min 20{N}s"),
        (3600, f"1{N}h"),
        (7500, f"2{N}h 5{N}min"),
        (273600, f"3{N}d 4{N}h"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert shown.duration(seconds) == expected
    assert shown.duration(timedelta(seconds=seconds)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0"),
        (112, "0.0311"),
        (3600, "1.00"),
        (45 * 3600, "45.0"),
        (-7200, "−2.00"),
        (3_600_000, f"1{N}000"),
    ],
)
def test_cpu_hours(seconds: int, expected: str) -> None:
    assert shown.cpu_hours(seconds) == f"{expected}{N}CPU\u2011h"


def test_no_line_breaks_within_cpu_hours() -> None:
    said = "Waits for credit: 1 CPU may use 0.17 CPU-h, and 0.1 CPU-hours are left."
    assert shown.unbroken(said) == said.replace(" CPU-h,", f"{N}CPU\u2011h,")


def test_how_good_a_metric_is() -> None:
    rmeas = MetricSpec(title="Rmeas", better="lower", good=0.1, acceptable=0.2)
    cc = MetricSpec(title="CC½", better="higher", good=0.99, acceptable=0.9)
    assert [shown.mark(rmeas, Quantity(value=v)) for v in (0.05, 0.1, 0.15, 0.3)] == [
        "good",
        "good",
        "acceptable",
        "poor",
    ]
    assert [shown.mark(cc, Quantity(value=v)) for v in (0.999, 0.95, 0.5)] == ["good", "acceptable", "poor"]
    assert shown.mark(None, Quantity(value=1)) == shown.mark(rmeas, Quantity(value="x")) == ""
    assert shown.mark(MetricSpec(title="a"), Quantity(value=1.0)) == ""


def test_metrics_take_unit_and_format_of_their_template() -> None:
    spec = MetricSpec(title="a", unit="Å", format=".2f")
    assert shown.metric(spec, Quantity(value=79.1)) == ("79.10", "Å")
    assert shown.metric(spec, Quantity(value=7.91, unit="nm")) == ("7.91", "nm")
    assert shown.metric(None, Quantity(value=True)) == ("yes", "")


def test_dates_counts_and_profiles() -> None:
    assert shown.day(datetime(2026, 11, 2, tzinfo=UTC)) == "2 Nov 2026"
    assert shown.day(None) == "–"
    assert (shown.plural(1, "person", "people"), shown.plural(2, "person", "people")) == (
        "1 person",
        "2 people",
    )
    two = Profile(name="cpu-2", title="2 CPUs", cpus=2, memory=8 * 2**30, walltime=3600)
    assert shown.profile(two) == f"2 CPUs · 8{N}GiB · up to 1{N}h"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "5 s"), (43, "45 s"), (119, "2 min"), (3514, "59 min"), (4000, "1 h 7 min"), (43_900, "12 h")],
)
def test_what_nobody_knows_exactly_is_not_told_to_the_second(seconds: float, expected: str) -> None:
    assert shown.about(seconds).replace(N, " ") == expected


def test_who_did_something_is_told_in_words() -> None:
    assert actor("ada", {}) == "by ada"
    assert actor("trigger:3", {}) == "by rule 3"
    assert actor("beamhub", {}) == "by beamhub itself"
    assert by_rule("trigger:x") is None  # a name like any other
