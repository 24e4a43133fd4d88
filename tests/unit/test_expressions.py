"""Expressions in trigger rules: they compute what they say, and nothing else whatever is written."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import tracemalloc

import pytest
from beamhub.expressions import LARGEST, Expression, ExpressionError, UnknownError, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

VALUES: dict[str, Value] = {"frames": 180, "wavelength": 0.98, "kind": "rotation", "job.cc_half": 0.99}


def compute(text: str) -> Value:
    return Expression.parse(text).value(VALUES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wavelength < 1.1", True),
        ("0.9 < wavelength < 0.95", False),
        ("frames >= 100 and kind == 'rotation'", True),
        ("kind in ['still', 'raster'] or not frames", False),
        ("kind not in ('still', 'raster')", True),
        ("frames / 2 - 10 * 3", 60.0),
        ("-frames // 7 % 5", -180 // 7 % 5),
        ("2 if frames < 10 else 8", 8),
        ("min(frames, 90) + abs(-1.5) + max(1, 2)", 93.5),
        ("round(wavelength, 1)", 1.0),
        ("like(kind, 'rot*')", True),
        ("'a' + kind", "arotation"),
        ("job.cc_half > 0.5", True),
        ("frames == 180 or nothing_such", True),
        ("None", None),
    ],
)
def test_what_it_says(text: str, expected: Value) -> None:
    assert compute(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "frames =",
        "frames := 3",
        "__import__('os').system('id')",
        "kind.__class__",
        "kind.upper()",
        "().__class__.__bases__",
        "[n for n in [1]]",
        "lambda: 1",
        "f'{kind}'",
        "{1: 2}",
        "kind[0]",
        "frames ** 9",
        "1 << 9",
        "frames is None",
        "abs(*[1])",
        "round(1.5, ndigits=1)",
        "open('/etc/passwd')",
        "b'bytes'",
        "1j",
        "...",
        "await frames",
        "(yield)",
        "a.b.c",
        "_private",
        "(" * 300 + "1" + ")" * 300,
        "-" * 400 + "1",
        "1" * 501,
        "1" * 400,
        "frames\nand 1",
        "'\\x41'",
        "\0",
    ],
)
def test_what_is_not_understood(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "kind * 3",
        "kind % 1",
        "kind < 1",
        "frames / 0",
        "1e308 * 10",
        f"{LARGEST} * 10",
        "abs('a')",
        "max()",
        "min(1)",
        "round(1, 2, 3)",
        "round(5, -9999999)",
        "round(1.5, 0.5)",
        "like(1, 2)",
        "like('a')",
        "1 in 2",
        "True + 1",
        "-kind",
        "+".join(["'xxxxxxxxxxxxxxxxxxxx'"] * 20) + "+" + "'" + "y" * 10 + "'" + "+kind+kind+kind+kind",
    ],
)
def test_what_can_not_be_computed(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression.parse(f"({text}) == 0" if len(text) < 400 else text).value(VALUES | {"kind": "k" * 100})


def test_numbers_that_are_none_end_in_an_error() -> None:
    for text in ("round(x)", "abs(x)", "max(x, 1)", "x + 1"):
        with pytest.raises(ExpressionError):
            Expression.parse(text).value({"x": math.nan})


def test_a_name_without_a_value_is_told() -> None:
    with pytest.raises(UnknownError, match="distance is not known"):
        compute("distance > 3")
    assert Expression.parse("a.b + min(c, 2)").names == {"a.b", "c", "a"}


NUMBERS = st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6))


@given(NUMBERS, NUMBERS, NUMBERS)
def test_numbers_are_computed_as_python_does(a: float, b: float, c: float) -> None:
    text = f"a + b * c - ({a!r}) if a < b <= c else max(a, b, c) / 4"
    expected = a + b * c - a if a < b <= c else max(a, b, c) / 4
    found = Expression.parse(text).value({"a": a, "b": b, "c": c})
    assert isinstance(found, int | float)
    assert math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-12)


@given(st.text(st.sampled_from("abkind frames()[]{}<>=+-*/%.,'\"_:&|^~!1290lmx@#;\\"), max_size=60))
@example("a.b.c")
@example("like('" + "*a" * 40 + "', 'b')")
def test_whatever_is_written_ends_in_a_value_or_an_error(text: str) -> None:
    try:
        value = Expression.parse(text).value(VALUES)
    except ExpressionError:
        return
    assert value is None or isinstance(value, bool | int | float | str | list)


NAMES = st.sampled_from(
    ["frames", "kind", "job.cc_half", "__import__", "open", "eval", "os.system", "_x", "round", "like", "abs"]
)
LITERALS = st.one_of(
    st.integers(-(10**20), 10**20).map(repr),
    st.floats(allow_nan=False).map(repr),
    st.text("ab*?[]!x", max_size=30).map(repr),
    st.sampled_from(["True", "None", "'__import__'", "10 ** 9", "'a' * 9", "[n for n in [1]]", "lambda: 1"]),
)
WRITTEN = st.recursive(
    LITERALS | NAMES,
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from(["+", "-", "*", "/", "//", "%", "<", "==", "in", "and"]), part).map(
            lambda three: f"({' '.join(three)})"
        ),
        st.tuples(NAMES, st.lists(part, max_size=3)).map(lambda call: f"{call[0]}({', '.join(call[1])})"),
        st.lists(part, max_size=4).map(lambda parts: f"[{', '.join(parts)}]"),
        st.tuples(part, st.sampled_from(["__class__", "format", "real"])).map(".".join),
        st.tuples(part, part).map(lambda two: f"{two[0]}[{two[1]}]"),
        st.tuples(part, part, part).map(lambda three: "({} if {} else {})".format(*three)),
    ),
    max_leaves=25,
)
SEEN: list[str] = []  # what the interpreter was asked to do while an expression was computed
WATCHING = [False]


def watch(event: str, _: tuple[object, ...]) -> None:
    if WATCHING and WATCHING[0]:  # a module that has been cleared at exit is still asked
        SEEN.append(event)


sys.addaudithook(watch)


@settings(deadline=None)
@given(WRITTEN)
@example("round(5, -99999999)")
@example("like('" + "a" * 200 + "', '" + "*a" * 90 + "b')")
@example("+".join(["'" + "x" * 100 + "'"] * 4))
@example("[" * 15 + "1" + "]" * 15)
def test_nothing_is_ever_run_and_everything_ends_soon(text: str) -> None:
    """The interpreter itself says what it does: an expression is compiled to a tree, and that is all. A
    second and a megabyte are far more than any needs."""
    SEEN.clear()
    began, WATCHING[0] = time.process_time(), True
    tracemalloc.start()
    try:
        with contextlib.suppress(ExpressionError):
            value = Expression.parse(text).value(VALUES)
            assert value is None or isinstance(value, bool | int | float | str | list)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        WATCHING[0] = False
        tracemalloc.stop()
    assert set(SEEN) <= {"compile", "object.__getattr__"}
    assert time.process_time() - began < 1
    assert peak < 2**20
