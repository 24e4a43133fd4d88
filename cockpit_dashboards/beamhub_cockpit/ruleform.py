"""The dialog that writes a trigger rule, and shows at every change what the rule would have started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from beamhub.client import ApiError, Client
from beamhub.expressions import Expression, ExpressionError, expression_of
from beamhub.schemas import (
    DatasetKind,
    Experiment,
    Job,
    JobRule,
    Licence,
    Profile,
    Template,
    Trigger,
    TriggerChange,
    TriggerCreate,
    TriggerEvent,
    TriggerOverride,
    TriggerSubject,
    TriggerTrial,
)
from beamhub.terms import Case
from pydantic import JsonValue, ValidationError

from beamhub_cockpit import form, sponsors
from beamhub_cockpit.format import number, plural
from beamhub_cockpit.format import profile as asked
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import ago
from beamhub_cockpit.ruletext import EVENTS, parameters, value, when

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
SUBJECTS: Final = {
    TriggerEvent.FILE_COMPLETE: "file",
    TriggerEvent.JOB_FINISHED: "job",
    TriggerEvent.EXPERIMENT_ACTIVATED: "experiment",
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
        written = TriggerCreate(
            title="New",
            event=TriggerEvent.DATASET_COMPLETE,
            template=first.name,
            profile=first.profile,
            sponsor=sponsors[0].id if sponsors else "none",
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


# --- the dialog ---


@dataclass(frozen=True)
class Around:
    """What stands around a rule that is being written."""

    templates: Mapping[str, Template]
    profiles: Sequence[Profile]
    sponsors: Sequence[Licence]
    rules: Sequence[Trigger]  # of the instrument
    jobs: Sequence[Job]  # that may have done already what the rule wants
    links: Links
    experiment: Experiment | None = None  # the only one that the rule is for


def show(draft: Draft, around: Around) -> Element:
    """The dialog."""
    title, hint = _heading(draft)
    template = around.templates.get(draft.template)
    whole = draft.base is None
    return el(
        "dialog.bh-dialog.bh-rule-dialog",
        el(
            "form.bh-form",
            el(
                "header.bh-dialog-head",
                el("div", el("h2", title), el("p.bh-hint", hint)),
                el(
                    "button.bh-icon-button",
                    "×",
                    type="button",
                    aria_label="Close",
                    on={"click": ["draft.close"]},
                ),
            ),
            el(
                "div.bh-dialog-body",
                _occasion(draft, around) if whole else el("p", when(draft.base)) if draft.base else None,
                _work(draft, around, template),
                _given(draft, template),
                _gathering(draft) if whole and _may_gather(draft, template) else None,
                _resources(draft, around),
                _trials(draft, around),
            ),
            el(
                "footer.bh-dialog-foot",
                _said(draft),
                el("button.bh-button", "Close", type="button", on={"click": ["draft.close"]}),
                el("button.bh-button.bh-button-main.bh-rule-save", _label(draft), type="submit"),
            ),
            on={"submit": ["draft.save"], "change": ["draft.typed"]},
        ),
        modal=True,
        aria_label=title,
        on={"cancel": ["draft.close"]},
        key="draft",
    )


def _heading(draft: Draft) -> tuple[str, str]:
    if draft.job is not None:
        return f"Make #{draft.job.id} {draft.job.title} a rule", f"of {draft.instrument}, for all experiments"
    if draft.base is not None:
        return (
            f"{draft.base.title}, here",
            f"Only {draft.experiment} has it so; all else is as on the instrument.",
        )
    whose = (
        f"only for {draft.experiment}" if draft.experiment else f"of {draft.instrument}, for all experiments"
    )
    return (draft.rule.title if draft.rule else "New rule"), whose


def _label(draft: Draft) -> str:
    count = len(draft.chosen)
    return "Save" if not count else f"Save, and start {plural(count, 'job')} now"


def _said(draft: Draft) -> Element:
    """In one line: what has to be mended or, if nothing, what the rule would have done."""
    if draft.refused:
        return el("p.bh-error.bh-form-refused", draft.refused, role="alert")
    if count := len(draft.wrong) + len(draft.wrong_parameters):
        return el(
            "p.bh-error", f"{plural(count, 'field has', 'fields have')} to be mended first.", role="alert"
        )
    return el("p.bh-hint.bh-trial-sum", _sum(draft))


def _sum(draft: Draft) -> str:
    trials = draft.trials or []
    if not trials:
        return f"It has not happened yet that {EVENTS[draft.event]}."
    starts = sum(trial.starts for trial in trials)
    looked = plural(sum(len(trial.subjects) for trial in trials), SUBJECTS.get(draft.event, "dataset"))
    return f"On the last {looked}, it would have started {plural(starts, 'job')}."


def _input(draft: Draft, name: str, label: str, hint: str = "", **more: Any) -> Element:
    problem, ident = draft.wrong.get(name, ""), f"rule-{name}"
    tag = more.pop("tag", "input")
    unit = more.pop("unit", "")
    field_ = el(
        tag,
        type="text",
        id=ident,
        name=name,
        value=draft.texts[name],
        autocomplete="off",
        spellcheck="false",
        aria_invalid="true" if problem else None,
        aria_describedby=f"{ident}-said" if problem or hint else None,
        **more,
    )
    return _row(
        name,
        label,
        ident,
        el("div.bh-input-unit", field_, el("span.bh-unit", unit)) if unit else field_,
        hint,
        problem,
    )


def _select(
    draft: Draft, name: str, label: str, options: Iterable[Element], hint: Child = "", *, field: str = ""
) -> Element:
    problem, ident = draft.wrong.get(name, ""), f"rule-{name}"
    chosen = el(
        "select",
        options,
        id=ident,
        name=field or name,
        value=draft.texts[name],
        aria_invalid="true" if problem else None,
        aria_describedby=f"{ident}-said" if problem or hint else None,
    )
    return _row(name, label, ident, chosen, hint, problem)


def _row(name: str, label: str, ident: str, within: Element, hint: Child, problem: str) -> Element:
    return el(
        "div.bh-field" + (".bh-field-wrong" if problem else ""),
        el("label", label, for_=ident),
        within,
        el("p.bh-error", problem, id=f"{ident}-said") if problem else None,
        el("p.bh-hint", hint, id=f"{ident}-said") if hint and not problem else None,
        key=name,
    )


def _option(draft: Draft, name: str, of: str, text: str, *, disabled: bool = False) -> Element:
    chosen = draft.texts[name] == of
    return el("option", text, value=of, selected=chosen or None, disabled=(disabled and not chosen) or None)


def _occasion(draft: Draft, around: Around) -> Element:
    """What the rule waits for."""
    event = draft.event
    about_data = event not in (TriggerEvent.FILE_COMPLETE, TriggerEvent.EXPERIMENT_ACTIVATED)
    templates = around.templates
    extra: list[Element] = []
    if event is TriggerEvent.DATASET_FRAMES:
        ways = [("at", "at parts of the announced frames"), ("every", "at every so many frames")]
        extra.append(_select(draft, "steps", "How often", [_option(draft, "steps", *way) for way in ways]))
        extra.append(
            _input(draft, "every", "Every", unit="frames", tag="input.bh-number", inputmode="numeric")
            if draft.texts["steps"] == "every"
            else _input(draft, "at", "At", "Such as 25 50 100", unit="%")
        )
    elif event is TriggerEvent.JOB_FINISHED:
        kinds = [("", "any template"), *((name, t.title) for name, t in templates.items())]
        options = [_option(draft, "of_template", *kind) for kind in kinds]
        extra.append(_select(draft, "of_template", "Jobs of", options))
    elif event is TriggerEvent.EXTERNAL:
        extra.append(_input(draft, "name", "What it says", "Its name, such as centred; empty: anything"))
    return el(
        "fieldset.bh-fieldset",
        el("legend", "When"),
        el(
            "div.bh-fields",
            _input(draft, "title", "Title", placeholder="As the template", maxlength="200", focus=True),
            _select(
                draft,
                "event",
                "Starts when",
                [_option(draft, "event", e.value, t) for e, t in EVENTS.items()],
            ),
            extra,
            _input(
                draft,
                "pattern",
                "Names" if about_data else "Names of files",
                "* is all; lyso* begins with lyso; raw/scan*/* goes by folders",
                placeholder="*",
                maxlength="200",
            )
            if event is not TriggerEvent.EXPERIMENT_ACTIVATED
            else None,
            _input(
                draft,
                "expression",
                "Only if",
                "Such as wavelength < 1.1; empty: always",
                placeholder="always",
                maxlength="500",
            ),
            el(
                "details.bh-advanced.bh-field-wide",
                el("summary", "Only for some datasets"),
                el(
                    "div.bh-fields",
                    _select(
                        draft,
                        "kind",
                        "Kind",
                        [
                            _option(draft, "kind", "", "any"),
                            *(_option(draft, "kind", kind.value, kind.value) for kind in DatasetKind),
                        ],
                    ),
                    _input(
                        draft,
                        "min_frames",
                        "With at least",
                        unit="frames",
                        tag="input.bh-number",
                        inputmode="numeric",
                        placeholder="1",
                    ),
                ),
                open=bool(draft.texts["kind"] or draft.texts["min_frames"]) or None,
                key="some",
            )
            if about_data
            else None,
        ),
        key="when",
    )


def _work(draft: Draft, around: Around, template: Template | None) -> Element:
    """What the rule runs."""
    locked = draft.job is not None or (draft.base is not None and not draft.may_operate)
    described = template.description if template and template.description else ""
    if locked:
        name = template.title if template else draft.template
        told = ", ".join(parameters(draft.pinned, template)) if draft.job is not None else ""
        chosen = el("p", el("strong", name), f" with {told}" if told else None, el("span.bh-sub", described))
    else:
        options = []
        for name, one in around.templates.items():
            lacks = f" (not here: {', '.join(one.missing)})" if one.missing else ""
            cannot = bool(one.missing or unfit(one, draft.event))
            options.append(_option(draft, "template", name, one.title + lacks, disabled=cannot))
        if draft.template not in around.templates:
            options.append(_option(draft, "template", draft.template, f"{draft.template} (not here)"))
        chosen = _select(draft, "template", "Template", options, described)
    replaced = None
    if draft.job is not None:
        old = [_option(draft, "replaces", str(r.id), f"instead of {r.title}") for r in around.rules]
        options = [_option(draft, "replaces", "", "as a new rule"), *old]
        replaced = _select(draft, "replaces", "Keep it", options)
    return el("fieldset.bh-fieldset", el("legend", "Runs"), chosen, replaced, key="runs")


def _given(draft: Draft, template: Template | None) -> Element | None:
    """The template's form of parameters; those of a job are as they are."""
    if template is None or draft.job is not None:
        return None
    found = []
    for one in form.fields(template.parameters, {}):
        computed = draft.entered.get(one.name, "").lstrip().startswith("=")
        is_box = one.kind in ("choice", "flag")
        found.append(form.Field(**{**vars(one), "kind": "text"}) if computed and is_box else one)
    if not found:
        return None
    return el(
        "div.bh-rule-parameters",
        form.parameters(found, draft.entered, draft.wrong_parameters, "rule"),
        el("p.bh-hint", "A value that begins with = is computed each time: = frames // 2"),
        key=f"parameters-{draft.template}",
    )


def _may_gather(draft: Draft, template: Template | None) -> bool:
    return draft.job is None and template is not None and template.inputs in SEVERAL


def _gathering(draft: Draft) -> Element:
    """Whether what belongs together makes one job."""
    numeric = {"tag": "input.bh-number", "inputmode": "decimal"}
    return el(
        "fieldset.bh-fieldset",
        el("legend", "Together"),
        el(
            "label.bh-check-line",
            el("input", type="checkbox", name="gathers", checked=draft.gathers or None),
            "Wait for what belongs together, and start one job on all of it",
        ),
        el(
            "div.bh-fields",
            _input(draft, "by", "The same", "Such as sample_name or folder; empty: all of an experiment"),
            _input(draft, "wait", "After the last, wait", unit="min", **numeric),
            _input(draft, "at_least", "At least", **numeric),
            _input(draft, "at_most", "At most", **numeric),
        )
        if draft.gathers
        else None,
        key="together",
    )


def _case(draft: Draft, around: Around) -> Case:
    """What is to be paid for: what starts by itself, here or anywhere on the instrument."""
    here = around.experiment
    if here is None:
        return Case(draft.instrument, None, None, draft.template, None)
    return Case.of(here.model_copy(update={"role": None}), draft.template)


def _resources(draft: Draft, around: Around) -> Element:
    staff_only = draft.base is not None and not draft.may_operate
    profiles = [_option(draft, "profile", p.name, asked(p)) for p in around.profiles]
    if draft.texts["profile"] not in [p.name for p in around.profiles]:
        profiles.append(
            _option(draft, "profile", draft.texts["profile"], f"{draft.texts['profile']} (not here)")
        )
    # what does not pay now can be chosen: the rule may be for a time when it does
    paying = sponsors.judged(around.sponsors, _case(draft, around))
    licences = [_option(draft, "sponsor", one.id, sponsors.label(one)) for one in paying]
    if draft.texts["sponsor"] not in [one.id for one in paying]:
        licences.append(_option(draft, "sponsor", draft.texts["sponsor"], draft.texts["sponsor"]))
    said: list[Child] = [*sponsors.refusals(paying, draft.texts["sponsor"])]
    if around.experiment is None:
        chosen = [one for one in paying if one.id == draft.texts["sponsor"] and not one.refusal]
        said += [el("span.bh-sub", told) for one in chosen if (told := sponsors.conditions(one))]
    free = draft.job is None and not staff_only
    return el(
        "fieldset.bh-fieldset",
        el("legend", "Resources"),
        el(
            "div.bh-fields",
            _select(draft, "profile", "CPUs", profiles, field=form.profile_of(draft.template))
            if free
            else None,
            _select(draft, "sponsor", "Paid by", licences, said),
            _input(
                draft,
                "priority",
                "Priority",
                "Higher ones start first" if draft.may_operate else "0 or below; higher ones start first",
                tag="input.bh-number",
                inputmode="numeric",
            )
            if free
            else None,
        ),
        key="resources",
    )


def _trials(draft: Draft, around: Around) -> Element:
    """What the rule would have started; on what it would have, it can be started now."""
    trials, links = draft.trials, around.links
    if trials is None:
        said: list[Child] = [el("p.bh-empty", "As soon as the rule is complete, it is tried out here.")]
    elif not trials:
        said = [el("p.bh-empty", _sum(draft))]
    else:
        may_choose = draft.may_start and any(trial.starts for trial in trials)
        said = [
            el(
                "p.bh-trials-said",
                el("strong", _sum(draft)),
                " Tick on which to start it now, once it is saved." if may_choose else None,
            ),
            el(
                "div.bh-trials-scroll",
                el(
                    "table.bh-table.bh-trials",
                    el(
                        "thead",
                        el(
                            "tr",
                            el("th", el("span.bh-unseen", "Start now"), scope="col")
                            if draft.may_start
                            else None,
                            [el("th", title, scope="col") for title in ("On", "The rule", "Done already")],
                        ),
                    ),
                    el("tbody", [_trial(trial, draft, around, links) for trial in trials]),
                ),
                tabindex="0",
                role="region",
                aria_label="What the rule would have started",
            ),
        ]
    return el("fieldset.bh-fieldset.bh-rule-trials", el("legend", "Tried out"), said, key="trials")


def _trial(trial: TriggerTrial, draft: Draft, around: Around, links: Links) -> Element:
    name, template = key(trial), around.templates.get(draft.template)
    ids = {int(one.id) for one in trial.subjects if one.kind == "dataset"}
    done = [
        job
        for job in around.jobs
        if job.template == draft.template and any(i.kind == "dataset" and i.id in ids for i in job.inputs)
    ]
    startable = trial.starts and not trial.reason and trial.subjects[0].kind != "job"
    told = ", ".join(parameters(trial.parameters, template))
    return el(
        "tr.bh-trial",
        el(
            "td",
            el(
                "input",
                type="checkbox",
                name=CHOSEN + name,
                checked=name in draft.chosen or None,
                aria_label=f"Start now on {_names(trial.subjects)}",
            )
            if startable
            else None,
        )
        if draft.may_start
        else None,
        el(
            "td",
            linked(trial.subjects, links),
            el(
                "span.bh-sub", f"{trial.experiment} · " if draft.experiment is None else None, ago(trial.time)
            ),
        ),
        el(
            "td",
            el("span.bh-trial-starts", "starts"),
            el("span.bh-sub", told) if told else None,
            el("span.bh-sub.bh-warn", f"but {trial.reason}") if trial.reason else None,
        )
        if trial.starts
        else el("td.bh-quiet", trial.reason or "starts nothing"),
        el("td", _done(done, links)),
        key=name,
        data_trial=name,
        data_starts="true" if trial.starts else "false",
    )


def _done(jobs: Sequence[Job], links: Links) -> list[Child]:
    shown: list[Child] = []
    for job in jobs[:2]:
        shown += [", "] if shown else []
        shown += [el("a.bh-link", f"#{job.id}", href=links.job(job.id)), f" {job.state}"]
    return [*shown, f" and {number(len(jobs) - 2)} more"] if len(jobs) > 2 else shown


def _names(subjects: Sequence[TriggerSubject]) -> str:
    return ", ".join(one.name or one.id for one in subjects)


def linked(found: Sequence[TriggerSubject], links: Links) -> Element:
    """What something has happened to, each with a link where there is a page."""
    shown: list[Child] = []
    for one in found[:5]:
        href = ""
        if one.kind == "dataset" and one.id.isdigit():
            href = links.frame(int(one.id))
        elif one.kind == "job" and one.id.isdigit():
            href = links.job(int(one.id))
        elif one.kind == "experiment":
            href = links.cockpit(one.id)
        name = one.name or one.id
        shown += [", "] if shown else []
        shown.append(el("a.bh-link", name, href=href) if href else name)
    if len(found) > 5:
        shown.append(f" and {number(len(found) - 5)} more")
    return el("span.bh-trial-names", shown)
