"""Cells of the command line's tables, and the values it takes."""

from __future__ import annotations

from datetime import UTC, datetime

import click
import pytest
from beamhub.cli import output
from hypothesis import given
from hypothesis import strategies as st


@given(st.text())
def test_no_name_can_steer_the_terminal(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in output.cell(text))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        ([], "–"),
        (True, "yes"),
        (0.25, "0.25"),
        (["a", "b"], "a, b"),
        ({"value": 1.5, "unit": "Å"}, "1.5 Å"),
        ({"a": 1, "b": {"value": 2, "unit": ""}}, "a: 1\nb: 2"),
        ("\x1b[31mred", "�[31mred"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert output.cell(value) == shown


def test_times_are_shown_as_local_time() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert output.cell(moment) == moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (12_345_678, "12.3 MB")]
)
def test_sizes(size: int, shown: str) -> None:
    assert output.size(size) == shown


def test_values_are_json_or_text() -> None:
    assert output.values(["a=1", "b=null", "c=P 1", "d=x=y", 'e="1"']) == {
        "a": 1,
        "b": None,
        "c": "P 1",
        "d": "x=y",
        "e": "1",
    }
    for wrong in ("a", "=1"):
        with pytest.raises(click.UsageError):
            output.values([wrong])
