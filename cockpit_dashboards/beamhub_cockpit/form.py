"""A form made from a template's JSON schema, and back: what was typed as checked values.

`fields` turns each property of the schema into a field that carries its text; `read` turns the texts into
values again. For every value that a field can show, `read(schema, typed(fields(schema, values)))` gives
the values back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from pydantic import JsonValue

from beamhub_cockpit.format import NARROW, number, unit_name, with_unit
from beamhub_cockpit.html import Child, Element, el

Kind = Literal["number", "integer", "text", "flag", "choice", "numbers", "json"]
AUTOMATIC: Final = "automatic"  # what no value means to a template
DIFFERS: Final = "as each was"  # what no choice means where several differ
PREFIX: Final = "p."  # of the names of parameter inputs, so that no parameter can be taken for another field


@dataclass(frozen=True)
class Field:
    """One parameter as the form shows it; `text` is what stands in it."""

    name: str
    title: str
    kind: Kind
    text: str
    unit: str = ""
    help: str = ""
    group: str = ""
    advanced: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()  # of "choice": each as JSON
    minimum: float | None = None
    maximum: float | None = None
    default: str = ""
    differs: bool = False  # among what it stands for; what is not touched then stays as it is


def fields(schema: Mapping[str, Any], values: Mapping[str, JsonValue]) -> list[Field]:
    """A field for each property of `schema`, holding its value or else its default, in the schema's order."""
    found = []
    for name, spec in _properties(schema).items():
        kind, nullable = _kind(spec)
        default = spec.get("default")
        value = values.get(name, default)
        found.append(
            Field(
                name=name,
                title=str(spec.get("title") or name),
                kind=kind,
                text=_text(kind, value),
                unit=unit_name(str(spec.get("unit", ""))),
                help=str(spec.get("description", "")),
                group=str(spec.get("group", "")),
                advanced=bool(spec.get("advanced", False)),
                nullable=nullable,
                choices=tuple(json.dumps(choice) for choice in spec.get("enum", ())),
                minimum=_bound(spec, "minimum", "exclusiveMinimum"),
                maximum=_bound(spec, "maximum", "exclusiveMaximum"),
                default=_text(kind, default) if "default" in spec else "",
            )
        )
    return found


def common(schema: Mapping[str, Any], sets: Sequence[Mapping[str, JsonValue]]) -> list[Field]:
    """A field for each property of `schema`, holding what the sets of values have in common: its text is ""
    where they differ."""
    found = [fields(schema, values) for values in sets]
    return [
        same[0] if len({one.text for one in same}) == 1 else replace(same[0], text="", differs=True)
        for same in zip(*found, strict=True)
    ]


def typed(found: Iterable[Field]) -> dict[str, str]:
    """What stands in the fields, by name: what a browser would send of them untouched."""
    return {field.name: field.text for field in found}


def read(schema: Mapping[str, Any], texts: Mapping[str, str]) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """Values of what was typed, and for each field that can't be read a sentence that says why.

    Fields that were not sent are left out. What lies outside of its bounds is an error here already, so
    that the form can say so beside the field; the service checks everything once more.
    """
    values: dict[str, JsonValue] = {}
    wrong: dict[str, str] = {}
    for field in fields(schema, {}):
        if field.name not in texts:
            continue
        try:
            values[field.name] = _value(field, texts[field.name])
        except ValueError as error:
            wrong[field.name] = str(error)
    return values, wrong


def _properties(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = schema.get("properties", {})
    return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _kind(spec: Mapping[str, Any]) -> tuple[Kind, bool]:
    types = spec.get("type", [])
    types = [types] if isinstance(types, str) else list(types)
    nullable = "null" in types
    if "enum" in spec:
        return "choice", nullable
    match [t for t in types if t != "null"]:
        case ["number"]:
            return "number", nullable
        case ["integer"]:
            return "integer", nullable
        case ["boolean"] if not nullable:
            return "flag", False
        case ["string"]:
            return "text", nullable
        case ["array"] if spec.get("items", {}).get("type") == "number":
            return "numbers", nullable
    return "json", nullable


def _bound(spec: Mapping[str, Any], *names: str) -> float | None:
    found = [spec[name] for name in names if isinstance(spec.get(name), int | float)]
    return found[0] if found else None


def _text(kind: Kind, value: JsonValue) -> str:
    if kind in ("choice", "json"):
        return json.dumps(value) if value is not None or kind == "choice" else ""
    if value is None:
        return ""
    if kind == "flag":
        return "true" if value else "false"
    if kind == "numbers" and isinstance(value, list):
        return " ".join(_plain(v) for v in value)
    return _plain(value)


def _plain(value: JsonValue) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _value(field: Field, text: str) -> JsonValue:
    if field.kind == "flag":
        return text == "true"
    if field.kind == "choice":
        if text not in field.choices:
            raise ValueError("Choose one of the values offered.")
        choice: JsonValue = json.loads(text)
        return choice
    if field.kind == "text":
        return text if text or not field.nullable else None
    if not text.strip():
        if field.nullable:
            return None
        raise ValueError("A value is needed here.")
    if field.kind == "json":
        try:
            value: JsonValue = json.loads(text)
        except ValueError:
            raise ValueError("This is not valid JSON.") from None
        return value
    if field.kind == "numbers":
        return [_within(field, _float(part)) for part in text.replace(",", " ").split()]
    if field.kind == "integer":
        try:
            whole = int(text)
        except ValueError:
            raise ValueError("Give a whole number.") from None
        _within(field, whole)
        return whole
    return _within(field, _float(text))


def _float(text: str) -> float:
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        raise ValueError(f"“{text.strip()[:40]}” is not a number.") from None
    if not math.isfinite(value):
        raise ValueError("Give a finite number.")
    return value


def _within(field: Field, value: float) -> float:
    if field.minimum is not None and value < field.minimum:
        raise ValueError(f"Give at least {with_unit(number(field.minimum), field.unit)}.")
    if field.maximum is not None and value > field.maximum:
        raise ValueError(f"Give at most {with_unit(number(field.maximum), field.unit)}.")
    return value


# --- as elements ---


def parameters(
    found: Iterable[Field], entered: Mapping[str, str], wrong: Mapping[str, str], ident: str
) -> list[Element]:
    """The fields as a part of a larger form: their inputs are named `p.<parameter>` and hold what has been
    entered so far."""
    named = [replace(f, name=PREFIX + f.name, text=entered.get(f.name, f.text)) for f in found]
    return show(named, {PREFIX + name: why for name, why in wrong.items()}, ident)


def taken(fields: Mapping[str, str]) -> dict[str, str]:
    """What was typed for parameters, of all that a form has sent."""
    return {name.removeprefix(PREFIX): text for name, text in fields.items() if name.startswith(PREFIX)}


def profile_of(template: str) -> str:
    """The name of a form's field for the profile. It is of the template: what a browser still tells of the
    one before, which it has not drawn anew yet, is then not taken for a choice."""
    return f"profile.{template}"


def row(
    key: str,
    label: str,
    ident: str,
    within: Element,
    hint: Child = None,
    problem: str = "",
    *,
    wide: bool = False,
    parameter: str | None = None,
) -> Element:
    """A field of a form: its label, the input `ident`, and below it what is to be known and what is wrong."""
    return el(
        "div.bh-field" + (".bh-field-wide" if wide else "") + (".bh-field-wrong" if problem else ""),
        el("label", label, for_=ident),
        within,
        el("p.bh-hint", hint, id=f"{ident}-hint") if hint else None,
        el("p.bh-error", problem, id=f"{ident}-error") if problem else None,
        key=key,
        data_parameter=parameter,
    )


def described(ident: str, hint: Child, problem: str) -> dict[str, str | None]:
    """What an input says to a screen reader of the lines below it."""
    ids = [f"{ident}-{name}" for name, text in (("error", problem), ("hint", hint)) if text]
    return {"aria_describedby": " ".join(ids) or None, "aria_invalid": "true" if problem else None}


def select(
    name: str,
    label: str,
    options: Iterable[Element],
    chosen: str,
    hint: Child = None,
    problem: str = "",
    *,
    ident: str,
    css: str = "",
    key: str = "",
    wide: bool = False,
) -> Element:
    """A field to choose from a list."""
    given = described(ident, hint, problem)
    within = el("select", options, id=ident, name=name, value=chosen, class_=css or None, **given)
    return row(key or name, label, ident, within, hint, problem, wide=wide)


def option(value: str, text: str, chosen: str, *, disabled: bool = False) -> Element:
    """An entry of such a list; the chosen one is never disabled."""
    at = value == chosen
    return el("option", text, value=value, selected=at or None, disabled=(disabled and not at) or None)


def show(found: Iterable[Field], wrong: Mapping[str, str], prefix: str) -> list[Element]:
    """The fields, in a fieldset for each group; what is advanced is folded away, unless it has an error."""
    plain: dict[str, list[Field]] = {}
    advanced: list[Field] = []
    for field in found:
        if field.advanced:
            advanced.append(field)
        else:
            plain.setdefault(field.group, []).append(field)
    parts = [
        el(
            "fieldset.bh-fieldset",
            el("legend", group or "Parameters"),
            el("div.bh-fields", [_row(f, wrong.get(f.name, ""), prefix) for f in members]),
            key=f"group-{group}",
        )
        for group, members in plain.items()
    ]
    if advanced:
        parts.append(
            el(
                "details.bh-advanced",
                el("summary", f"Advanced ({len(advanced)})"),
                el("div.bh-fields", [_row(f, wrong.get(f.name, ""), prefix) for f in advanced]),
                open=any(f.name in wrong for f in advanced) or None,
                key="advanced",
            )
        )
    return parts


def _row(field: Field, problem: str, prefix: str) -> Element:
    ident = f"{prefix}-{field.name}"
    hint = _hint(field)
    unit = el("span.bh-unit", field.unit) if field.unit else None
    within = el("div.bh-input-unit", _input(field, ident, problem), unit)
    return row(field.name, field.title, ident, within, hint, problem, parameter=field.name)


def _hint(field: Field) -> str:
    return " · ".join(filter(None, [field.help.rstrip("."), _limits(field), _default(field)]))


def _input(field: Field, ident: str, problem: str) -> Element:
    given: dict[str, Any] = {
        "id": ident,
        "name": field.name,
        **described(ident, _hint(field), problem),
    }
    if field.kind == "choice" or (field.kind == "flag" and field.differs):
        named = [(choice, _choice(choice)) for choice in field.choices or ("true", "false")]
        return el(
            "select",
            [
                el("option", shown, value=choice, selected=choice == field.text or None)
                for choice, shown in ([("", DIFFERS)] if field.differs else []) + named
            ],
            value=field.text,
            **given,
        )
    if field.kind == "flag":
        return el("input", type="checkbox", checked=field.text == "true" or None, **given)
    numeric = field.kind in ("number", "integer")
    return el(
        "input.bh-number" if numeric else "input",
        type="text",
        inputmode="decimal" if numeric else None,
        value=field.text,
        placeholder=DIFFERS if field.differs else AUTOMATIC if field.nullable else None,
        autocomplete="off",
        spellcheck="false",
        **given,
    )


def _choice(choice: str) -> str:
    value = json.loads(choice)
    return AUTOMATIC if value is None else value if isinstance(value, str) else number(value)


def _limits(field: Field) -> str:
    low, high = (None if b is None else number(b) for b in (field.minimum, field.maximum))
    if low and high:
        return with_unit(f"{low} to {high}", field.unit)
    if low:
        return with_unit(f"≥{NARROW}{low}", field.unit)
    return with_unit(f"≤{NARROW}{high}", field.unit) if high else ""


def _default(field: Field) -> str:
    if field.kind == "flag" or field.text == field.default:
        return ""
    shown = _choice(field.default) if field.kind == "choice" and field.default else field.default or AUTOMATIC
    return f"default {shown}"
