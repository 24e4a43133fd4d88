"""Trigger rules in words: what a rule waits for, what it runs, and what has become of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from beamhub.expressions import expression_of
from beamhub.schemas import (
    Template,
    Trigger,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
    TriggerGroup,
    TriggerVersion,
)
from pydantic import JsonValue, ValidationError

from beamhub_cockpit.form import AUTOMATIC
from beamhub_cockpit.format import duration, number, plural

EVENTS: Final[Mapping[TriggerEvent, str]] = {
    TriggerEvent.DATASET_COMPLETE: "a dataset is complete",
    TriggerEvent.DATASET_STARTED: "a dataset begins",
    TriggerEvent.DATASET_FRAMES: "a dataset grows",
    TriggerEvent.DATASET_INCOMPLETE: "a dataset has stopped early",
    TriggerEvent.FILE_COMPLETE: "a file has arrived",
    TriggerEvent.JOB_FINISHED: "a job has finished",
    TriggerEvent.EXPERIMENT_ACTIVATED: "an experiment becomes active",
    TriggerEvent.EXTERNAL: "another program says so",
}
NAMES: Final[Mapping[str, str]] = {  # of what a rule says, as pages call it
    "title": "title",
    "enabled": "on or off",
    "event": "starts when",
    "pattern": "names",
    "condition": "only if",
    "group": "together",
    "template": "template",
    "parameters": "parameters",
    "profile": "CPUs",
    "sponsor": "paid by",
    "priority": "priority",
}
ON_INSTRUMENT: Final = "as on the instrument"


@dataclass(frozen=True)
class Difference:
    """One thing that was changed: what it was and what it is."""

    name: str
    before: str
    after: str


def when(rule: Trigger | TriggerCreate) -> str:
    """What a rule waits for, in one line."""
    condition = rule.condition
    start = f"When {EVENTS[rule.event]}"
    if rule.event is TriggerEvent.DATASET_FRAMES:
        start += f": {_steps(condition)}"
    elif rule.event is TriggerEvent.JOB_FINISHED and condition.template:
        start += f": {condition.template}"
    elif rule.event is TriggerEvent.EXTERNAL and condition.name:
        start += f": {condition.name}"
    named = "" if rule.pattern == "*" else f"named {rule.pattern}"
    return " · ".join(filter(None, [start, named, *_conditions(condition), together(rule.group)]))


def _steps(condition: TriggerCondition) -> str:
    if condition.at:
        return f"at {', '.join(str(at) for at in condition.at)}\u202f% of its frames"
    return f"at every {plural(condition.every or 1, 'frame')}"


def _conditions(condition: TriggerCondition) -> Iterable[str]:
    if condition.kind is not None:
        yield f"only {condition.kind}"
    if condition.min_frames > 1:
        yield f"{plural(condition.min_frames, 'frame')} or more"
    if condition.expression:
        yield f"if {condition.expression}"


def together(group: TriggerGroup | None) -> str:
    """How a rule gathers; "" where each occasion starts a job."""
    if group is None:
        return ""
    what = f"all with the same {group.by}" if group.by else "all of an experiment"
    least = f", {group.at_least} or more" if group.at_least > 1 else ""
    most = f", at most {group.at_most}" if group.at_most < 200 else ""
    return f"one job for {what}{least}{most}, {duration(group.wait)} after the last"


def value(given: JsonValue) -> str:
    """A parameter's value as people write it; what is computed begins with =."""
    text = expression_of(given)
    if text is not None:
        return f"= {text}"
    if given is None:
        return AUTOMATIC
    if isinstance(given, list):
        return " ".join(value(one) for one in given)
    return str(given) if isinstance(given, dict) else number(given)


def titles(template: Template | None) -> dict[str, str]:
    """The parameters' titles, by their names."""
    known: Any = template.parameters.get("properties", {}) if template else {}
    return {name: str(spec.get("title") or name) for name, spec in known.items() if isinstance(spec, dict)}


def parameters(given: Mapping[str, JsonValue], template: Template | None) -> list[str]:
    """Those that a rule sets, each as "title value"."""
    names = titles(template)
    return [f"{names.get(name, name)} {value(one)}" for name, one in given.items()]


# --- what has become of a rule ---


def history(
    versions: Iterable[TriggerVersion], templates: Mapping[str, Template]
) -> list[tuple[TriggerVersion, list[Difference]]]:
    """Each change of a rule with what it has changed, newest first, as the versions are given."""
    before: dict[str | None, Mapping[str, JsonValue]] = {}
    found = []
    for version in reversed(list(versions)):
        last = before.get(version.experiment, {})
        told = [] if version.change == "deleted" else differences(last, version.data, templates)
        if version.change == "created":
            told = []  # it is said as a whole
        found.append((version, told))
        before[version.experiment] = version.data
    return found[::-1]


def differences(
    before: Mapping[str, JsonValue], after: Mapping[str, JsonValue], templates: Mapping[str, Template]
) -> list[Difference]:
    """What is said differently, in the order in which pages say it. What is not said at all is as on the
    instrument."""
    found = []
    for name, title in NAMES.items():
        old, new = before.get(name), after.get(name)
        if old == new and (name in before) == (name in after):
            continue
        if name == "parameters" and isinstance(old, dict) and isinstance(new, dict):
            first = templates.get(str(before.get("template") or after.get("template")))
            then = templates.get(str(after.get("template") or before.get("template")))
            found += _parameters((old, first), (new, then))
        else:
            sides = [
                _said(name, side[name], templates) if name in side else ON_INSTRUMENT
                for side in (before, after)
            ]
            found.append(Difference(title, *sides))
    return found


Given: TypeAlias = "tuple[Mapping[str, JsonValue], Template | None]"


def _parameters(before: Given, after: Given) -> list[Difference]:
    (old, first), (new, then) = before, after
    names = titles(first) | titles(then)
    return [
        Difference(names.get(name, name), _one(name, *before), _one(name, *after))
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    ]


def _one(name: str, given: Mapping[str, JsonValue], template: Template | None) -> str:
    if name in given:
        return value(given[name])
    return "as the template has it" if template is None or name in titles(template) else "not asked for"


def _said(name: str, given: JsonValue, templates: Mapping[str, Template]) -> str:
    try:
        match name:
            case "enabled":
                return "on" if given else "off"
            case "event":
                return EVENTS[TriggerEvent(str(given))]
            case "condition":
                condition = TriggerCondition.model_validate(given)
                steps = [_steps(condition)] if condition.at or condition.every else []
                also = [one for one in (condition.template, condition.name) if one]
                return ", ".join([*steps, *also, *_conditions(condition)]) or "always"
            case "group":
                group = None if given is None else TriggerGroup.model_validate(given)
                return together(group) or "each starts a job"
            case "parameters" if isinstance(given, dict):
                return ", ".join(parameters(given, None)) or "as the template has them"
            case "template":
                found = templates.get(str(given))
                return found.title if found else str(given)
    except (ValidationError, ValueError):  # written by another version of the service
        pass
    return value(given)


def as_written(data: Mapping[str, JsonValue]) -> TriggerCreate | None:
    """The rule that a version was; None where it can't be read any more."""
    try:
        return TriggerCreate.model_validate(
            {k: v for k, v in data.items() if k in TriggerCreate.model_fields}
        )
    except ValidationError:
        return None
