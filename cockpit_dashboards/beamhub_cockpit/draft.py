"""A trigger rule as it is being written: what was typed, and what can be read of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from beamhub.client import ApiError, Client
from beamhub.expressions import Expression, ExpressionError, expression_of
from beamhub.schemas import (
    Job,
    JobRule,
    Licence,
    Template,
    Trigger,
    TriggerChange,
    TriggerCreate,
    TriggerEvent,
    TriggerOverride,
    TriggerTrial,
)
from beamhub.terms import Case
from pydantic import JsonValue, ValidationError

from beamhub_cockpit import form
from beamhub_cockpit.ruletext import EVENTS, value
from beamhub_cockpit.sponsors import begin_with, judged

LAST: Final = 50  # datasets that a rule is tried out on
SEVERAL: Final = ("datasets", "jobs")  # what a rule can gather for
NEEDS: Final = {
    "dataset": "one dataset",
    "datasets": "datasets",
    "job": "a job",
    "jobs": "jobs",
    "file": "a file",
    "none": "nothing",
}
OVERRIDES: Final = ("template", "parameters", "profile", "sponsor", "priority", "enabled")
CHOSEN: Final = "on."  # of the names of boxes for what a rule is to start on at once


@dataclass
class Draft:
    """A rule as it is being written.

    `rule` is the one that changes (None: a new one), `experiment` the only one that it is for. `base` is the
    instrument's rule where an experiment is to have it different, and `job` the job that becomes a rule.
    """

    instrument: str
    experiment: str | None = None
    rule: Trigger | None = None
    base: Trigger | None = None
    job: Job | None = None
    may_operate: bool = True  # False: a PI, who may not choose all
    may_start: bool = True  # on what has happened already
    texts: dict[str, str] = field(default_factory=dict)
    entered: dict[str, str] = field(default_factory=dict)  # parameter -> text
    pinned: dict[str, JsonValue] = field(default_factory=dict)  # parameters that the rule has said so far
    wrong: dict[str, str] = field(default_factory=dict)
    wrong_parameters: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    trials: list[TriggerTrial] | None = None  # None: it can't be tried out as it is
    chosen: set[str] = field(default_factory=set)

    # --- beginning ---

    @classmethod
    def of(cls, written: TriggerCreate | Trigger, template: Template | None, **more: Any) -> Draft:
        """As it is written."""
        return cls(
            texts=_texts(written),
            entered=_entered(template, written.parameters),
            pinned=dict(written.parameters),
            **more,
        )

    @classmethod
    def new(cls, templates: Mapping[str, Template], sponsors: Sequence[Licence], **more: Any) -> Draft:
        """A new rule: at the end of each dataset, by the first template that can run."""
        usable = [t for t in templates.values() if not t.missing and t.inputs == "dataset" and not t.live]
        first = (usable or list(templates.values()))[0]
        case = Case(more["instrument"], more.get("experiment"), None, first.name, None)
        written = TriggerCreate(
            title="New",
            event=TriggerEvent.DATASET_COMPLETE,
            template=first.name,
            profile=first.profile,
            sponsor=begin_with(judged(sponsors, case)) or "none",
        )
        draft = cls.of(written, first, **more)
        draft.texts["title"] = ""
        return draft

    @classmethod
    def of_job(cls, job: Job, template: Template | None, **more: Any) -> Draft:
        """What a job has done, at the end of each dataset."""
        written = TriggerCreate(
            title=job.title[:200],
            event=TriggerEvent.DATASET_COMPLETE,
            template=job.template,
            parameters=job.parameters,
            profile=job.profile.name,
            sponsor=job.sponsor,
        )
        return cls.of(written, template, job=job, **more)

    # --- being typed ---

    @property
    def event(self) -> TriggerEvent:
        return TriggerEvent(self.texts["event"])

    @property
    def template(self) -> str:
        return self.texts["template"]

    @property
    def gathers(self) -> bool:
        return self.texts["gathers"] == "true"

    def take(self, fields: Mapping[str, str], templates: Mapping[str, Template]) -> None:
        """What stands in the form now. With another template, what has been typed stays where both know the
        parameter."""
        before = self.template
        self.entered |= form.taken(fields)
        self.texts |= {name: text for name, text in fields.items() if name in self.texts}
        boxes = {k.removeprefix(CHOSEN): v for k, v in fields.items() if k.startswith(CHOSEN)}
        self.chosen = (self.chosen - set(boxes)) | {key for key, text in boxes.items() if text == "true"}
        new = templates.get(self.template)
        if self.template != before and new is not None:
            common = {k: v for k, v in self.entered.items() if k in _entered(templates.get(before), {})}
            self.entered = {k: common.get(k, v) for k, v in _entered(new, {}).items()}
            self.texts["profile"] = new.profile
            self.pinned = {}
        self.texts["profile"] = fields.get(form.profile_of(self.template), self.texts["profile"])
        self.refused = ""

    def read(self, templates: Mapping[str, Template]) -> TriggerCreate | None:
        """The rule as it stands there; None where something has to be mended (the form then says what)."""
        self.wrong, self.wrong_parameters = {}, {}
        template = templates.get(self.template)
        given = self._parameters(template)
        written = {
            "title": self.texts["title"].strip() or (template.title if template else self.template),
            "event": self.event,
            "pattern": self.texts["pattern"].strip() or "*",
            "condition": self._condition(),
            "group": self._group(template),
            "template": self.template,
            "parameters": given,
            "profile": self.texts["profile"],
            "sponsor": self.texts["sponsor"],
            "priority": self._whole("priority", -100, 100 if self.may_operate else 0, 0),
            "enabled": self.rule.enabled if self.rule else True,
        }
        if template is not None and (why := unfit(template, self.event)):
            self.wrong["template"] = why
        if self.wrong or self.wrong_parameters:
            return None
        try:
            return TriggerCreate.model_validate(written)
        except ValidationError as error:
            for one in error.errors():
                at = str(one["loc"][-1] if one["loc"] else "title")
                self.wrong[at if at in self.texts else "title"] = one["msg"].removeprefix("Value error, ")
            return None

    def _parameters(self, template: Template | None) -> dict[str, JsonValue]:
        """Those that are not as the template has them, or that the rule has said so far."""
        if template is None or self.job is not None:
            return self.pinned
        computed = {k: v.strip()[1:].strip() for k, v in self.entered.items() if v.lstrip().startswith("=")}
        plain = {k: v for k, v in self.entered.items() if k not in computed}
        values, self.wrong_parameters = form.read(template.parameters, plain)
        for name, text in computed.items():
            if why := _unreadable(text):
                self.wrong_parameters[name] = why
            values[name] = {"expression": text}
        known: Any = template.parameters.get("properties", {})
        return {
            name: one
            for name, one in values.items()
            if name in self.pinned or "default" not in known[name] or known[name]["default"] != one
        }

    def _condition(self) -> dict[str, JsonValue]:
        event, texts = self.event, self.texts
        found: dict[str, JsonValue] = {"expression": texts["expression"].strip()}
        if found["expression"] and (why := _unreadable(texts["expression"])):
            self.wrong["expression"] = why
        if event not in (TriggerEvent.FILE_COMPLETE, TriggerEvent.EXPERIMENT_ACTIVATED):
            found["kind"] = texts["kind"] or None
            found["min_frames"] = self._whole("min_frames", 1, 10**9, 1)
        if event is TriggerEvent.JOB_FINISHED:
            found["template"] = texts["of_template"] or None
        elif event is TriggerEvent.EXTERNAL:
            found["name"] = texts["name"].strip() or None
            if found["name"] and not re.fullmatch(r"[a-z][a-z0-9-]{0,38}[a-z0-9]", texts["name"].strip()):
                self.wrong["name"] = "Use small letters, digits and -, as in centred."
        elif event is TriggerEvent.DATASET_FRAMES and texts["steps"] == "every":
            found["every"] = self._whole("every", 1, 10**9, None)
        elif event is TriggerEvent.DATASET_FRAMES:
            steps = texts["at"].replace(",", " ").replace("%", " ").split()
            if not steps or not all(step.isdecimal() and 1 <= int(step) <= 100 for step in steps):
                self.wrong["at"] = "Give per cent from 1 to 100, such as 25 50 100."
            else:
                found["at"] = [int(step) for step in steps]
        return found

    def _group(self, template: Template | None) -> dict[str, JsonValue] | None:
        if not self.gathers or template is None or template.inputs not in SEVERAL:
            return None
        by = self.texts["by"].strip()
        if by and (why := _unreadable(by)):
            self.wrong["by"] = why
        least = self._whole("at_least", 1, 200, 1)
        most = self._whole("at_most", 1, 200, 200)
        if least is not None and most is not None and least > most:
            self.wrong["at_least"] = f"Give at most {most}: no more are put together."
        try:
            wait = round(float(self.texts["wait"].replace(",", ".")) * 60)
            if not 1 <= wait <= 7 * 86400:
                raise ValueError
        except (ValueError, OverflowError):
            self.wrong["wait"] = "Give minutes, up to a week."
            wait = 60
        return {"by": by, "wait": wait, "at_least": least, "at_most": most}

    def _whole(self, name: str, low: int, high: int, otherwise: int | None) -> int | None:
        text = self.texts[name].strip()
        if not text and otherwise is not None:
            return otherwise
        try:
            found = int(text.replace("−", "-"))
        except ValueError:
            self.wrong[name] = "Give a whole number."
            return otherwise
        if not low <= found <= high:
            limit = f"from {low} to {high}" if high < 10**9 else f"of {low} or more"
            self.wrong[name] = f"Give a number {limit}."
        return found

    # --- doing ---

    def try_out(self, client: Client, templates: Mapping[str, Template]) -> None:
        """See what the rule would have started on the last datasets."""
        rule = self.read(templates)
        self.trials = None
        if rule is None:
            return
        try:
            if self.experiment is not None:
                self.trials = client.try_out_experiment_trigger(self.experiment, rule, datasets=LAST)
            else:
                self.trials = client.try_out_trigger(self.instrument, rule, datasets=LAST)
        except ApiError as error:
            self.refused = str(error)
        self.chosen &= {key(trial) for trial in self.trials or () if trial.starts}

    def save(
        self, client: Client, templates: Mapping[str, Template]
    ) -> tuple[Trigger, list[TriggerTrial]] | None:
        """Keep the rule, and follow it on what is chosen; None where it is refused (the form says why)."""
        written = self.read(templates)
        if written is None:
            return None
        picked = [trial for trial in self.trials or () if key(trial) in self.chosen]
        subjects = [subject for trial in picked for subject in trial.subjects]
        datasets = [int(one.id) for one in subjects if one.kind == "dataset"]
        try:
            if self.job is not None:
                given = {"title", "event", "pattern", "condition", "sponsor"}
                replaces = {"replaces": int(self.texts["replaces"])} if self.texts["replaces"] else {}
                made = client.make_rule(
                    self.job.id,
                    JobRule(**written.model_dump(include=given), **replaces, backfill=datasets),
                )
                return made.rule, made.backfill
            rule = self._keep(client, written)
            started = []
            if subjects:
                started = client.replay_trigger(
                    rule.id,
                    datasets,
                    files=[one.name for one in subjects if one.kind == "file"],
                    experiments=[one.id for one in subjects if one.kind == "experiment"],
                )
            return rule, started
        except ApiError as error:
            self.refused = str(error)
            return None

    def _keep(self, client: Client, written: TriggerCreate) -> Trigger:
        if self.base is not None and self.experiment is not None:
            given = {name: getattr(written, name) for name in OVERRIDES if name != "enabled"}
            base, rule = self.base, self.rule or self.base
            changes = {
                name: None if one == getattr(base, name) else one
                for name, one in given.items()
                if one != getattr(rule, name)
            }
            return client.override_trigger(self.experiment, base.id, TriggerOverride(**changes))
        if self.rule is None:
            if self.experiment is not None:
                return client.create_experiment_trigger(self.experiment, written)
            return client.create_trigger(self.instrument, written)
        asked_for = {name: getattr(written, name) for name in TriggerCreate.model_fields}
        changes = {name: one for name, one in asked_for.items() if one != getattr(self.rule, name)}
        return client.change_trigger(self.rule.id, TriggerChange(**changes)) if changes else self.rule


def key(trial: TriggerTrial) -> str:
    """What a trial is known by in the form: what it is about."""
    return ",".join(f"{one.kind}:{one.id}" for one in trial.subjects)


def unfit(template: Template, event: TriggerEvent) -> str:
    """Why a template can't work on what this event brings; "" where it can."""
    match event:
        case TriggerEvent.FILE_COMPLETE:
            possible = {"file"}
        case TriggerEvent.EXPERIMENT_ACTIVATED:
            possible = set()
        case TriggerEvent.JOB_FINISHED:
            possible = {"dataset", "datasets", "job", "jobs"}
        case _:
            possible = {"dataset", "datasets"}
    if template.inputs in possible | {"none"}:
        return ""
    return f"It works on {NEEDS[template.inputs]}: nothing for “{EVENTS[event]}”."


def _unreadable(text: str) -> str:
    try:
        Expression.parse(text)
    except ExpressionError as error:
        return f"This can't be used: {error}."
    return ""


def _texts(rule: TriggerCreate | Trigger) -> dict[str, str]:
    condition, group = rule.condition, rule.group
    return {
        "title": rule.title,
        "event": rule.event.value,
        "pattern": rule.pattern,
        "kind": condition.kind.value if condition.kind else "",
        "min_frames": str(condition.min_frames) if condition.min_frames > 1 else "",
        "expression": condition.expression,
        "steps": "every" if condition.every else "at",
        "every": str(condition.every or 100),
        "at": " ".join(str(at) for at in condition.at or (50, 100)),
        "of_template": condition.template or "",
        "name": condition.name or "",
        "gathers": "true" if group else "false",
        "by": group.by if group else "",
        "wait": f"{group.wait / 60:g}" if group else "10",
        "at_least": str(group.at_least) if group else "2",
        "at_most": str(group.at_most) if group else "200",
        "template": rule.template,
        "profile": rule.profile,
        "sponsor": rule.sponsor,
        "priority": str(rule.priority),
        "replaces": "",
    }


def _entered(template: Template | None, given: Mapping[str, JsonValue]) -> dict[str, str]:
    if template is None:
        return {}
    computed = {k: value(v) for k, v in given.items() if expression_of(v) is not None}
    plain = {k: v for k, v in given.items() if k not in computed}
    texts = form.typed(form.fields(template.parameters, plain))
    for name, text in texts.items():
        if text.lstrip().startswith("="):  # a text, and not to be computed
            texts[name] = f'= "{text}"'
    return texts | computed
