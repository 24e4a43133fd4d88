from __future__ import annotations

import math
from typing import Any

import pytest
from beamhub_cockpit import form
from beamhub_cockpit.html import find, text
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


@st.composite
def parameter(draw: st.DrawFn) -> tuple[dict[str, Any], JsonValue]:
    """A property of a schema, and a value that it allows."""
    spec: dict[str, Any]
    kind = draw(st.sampled_from(["number", "integer", "boolean", "string", "array", "enum", "object"]))
    nullable = kind not in ("boolean", "enum", "object") and draw(st.booleans())
    value: Any
    match kind:
        case "number":
            spec, value = {"type": "number"}, draw(finite)
        case "integer":
            spec, value = {"type": "integer"}, draw(st.integers())
        case "boolean":
            spec, value = {"type": "boolean"}, draw(st.booleans())
        case "string":
            spec, value = {"type": "string"}, draw(words.filter(bool) if nullable else words)
        case "array":
            spec = {"type": "array", "items": {"type": "number"}}
            value = draw(st.lists(finite, min_size=1, max_size=6))
        case "object":
            spec, value = {"type": "object"}, draw(st.dictionaries(words, st.integers(), max_size=3))
        case _:
            choices = draw(
                st.lists(words | st.integers() | st.none(), min_size=1, max_size=4, unique_by=repr)
            )
            spec, value = {"enum": choices}, draw(st.sampled_from(choices))
    if nullable:
        spec["type"] = [spec["type"], "null"]
        if draw(st.booleans()):
            value = None
    if draw(st.booleans()):
        spec["default"] = value
    return spec, value


@given(st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), parameter(), max_size=6))
def test_a_form_gives_back_the_values_it_was_made_from(
    given_: dict[str, tuple[dict[str, Any], JsonValue]],
) -> None:
    schema = {"type": "object", "properties": {name: spec for name, (spec, _) in given_.items()}}
    values = {name: value for name, (_, value) in given_.items()}

    back, wrong = form.read(schema, form.typed(form.fields(schema, values)))

    assert wrong == {}
    assert back == values
    assert [type(back[name]) for name in values] == [type(value) for value in values.values()]


@given(
    st.dictionaries(
        st.sampled_from(["limit", "count", "cell", "mode", "note", "flag", "strange"]), st.text(max_size=20)
    )
)
def test_whatever_is_typed_gives_a_value_within_bounds_or_a_sentence(texts: dict[str, str]) -> None:
    values, wrong = form.read(SCHEMA, texts)

    known = set(texts) & set(SCHEMA["properties"])
    assert values.keys() | wrong.keys() == known
    assert not values.keys() & wrong.keys()
    assert all(why.endswith(".") for why in wrong.values())
    limit, count = values.get("limit"), values.get("count")
    assert limit is None or (isinstance(limit, float) and 0.5 <= limit <= 20)
    assert count is None or (isinstance(count, int) and count >= 1)
    cell = values.get("cell")
    assert cell is None or (
        isinstance(cell, list) and all(isinstance(v, float) and math.isfinite(v) for v in cell)
    )


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "limit": {
            "type": ["number", "null"],
            "title": "Resolution limit",
            "description": "Reflections beyond it are not used.",
            "unit": "angstrom",
            "default": None,
            "minimum": 0.5,
            "maximum": 20,
            "group": "Scaling",
        },
        "count": {"type": "integer", "title": "Smallest spot", "default": 3, "minimum": 1},
        "cell": {"type": ["array", "null"], "items": {"type": "number"}, "default": None, "advanced": True},
        "mode": {"enum": ["fast", "careful", None], "default": "fast"},
        "note": {"type": "string", "default": ""},
        "flag": {"type": "boolean", "default": False},
    },
}


@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [
        ("limit", "2.1", 2.1),
        ("limit", " 2,1 ", 2.1),
        ("limit", "", None),
        ("count", "7", 7),
        ("cell", "79.1, 79.1 38 90 90 90", [79.1, 79.1, 38.0, 90.0, 90.0, 90.0]),
        ("mode", '"careful"', "careful"),
        ("mode", "null", None),
        ("flag", "true", True),
        ("flag", "false", False),
    ],
)
def test_values_as_people_type_them(name: str, typed: str, expected: JsonValue) -> None:
    assert form.read(SCHEMA, {name: typed}) == ({name: expected}, {})


@pytest.mark.parametrize(
    ("name", "typed", "why"),
    [
        ("limit", "two", "“two” is not a number."),
        ("limit", "0.1", "Give at least 0.5\u202fÅ."),
        ("limit", "inf", "Give a finite number."),
        ("count", "1.5", "Give a whole number."),
        ("count", "", "A value is needed here."),
        ("mode", '"other"', "Choose one of the values offered."),
    ],
)
def test_what_cannot_be_read_is_said_in_words(name: str, typed: str, why: str) -> None:
    assert form.read(SCHEMA, {name: typed}) == ({}, {name: why})


def test_the_form_shows_titles_units_help_ranges_and_errors() -> None:
    shown = form.show(form.fields(SCHEMA, {"limit": 1.8}), {"limit": "Give at least 2."}, "x")
    first = find(shown[0], "bh-field")[0]
    assert [text(shown[0])[:7], first.attributes["data-parameter"]] == ["Scaling", "limit"]
    said = text(first)
    for part in (
        "Resolution limit",
        "Å",
        "Reflections beyond it",
        "0.5 to 20\u202fÅ",
        "default automatic",
        "Give at least 2.",
    ):
        assert part in said
    assert text(shown[-1]).startswith("Advanced (1)")


def test_nothing_of_a_template_becomes_markup() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    spec = {
        "type": "string",
        "title": hostile,
        "description": hostile,
        "unit": hostile,
        "group": hostile,
        "default": hostile,
    }
    schema = {"properties": {hostile: spec, "b": {"enum": [hostile]}}}
    for part in form.show(form.fields(schema, {}), {hostile: hostile}, hostile):
        assert not find(part, "img")
        assert "img" not in _tags(part.json())


def _tags(tree: Any) -> list[str]:
    return [] if isinstance(tree, str) else [tree[0], *(tag for child in tree[2:] for tag in _tags(child))]
