"""The dialog that writes a trigger rule, and shows at every change what the rule would have started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beamhub.schemas import DatasetKind, Experiment, Job, Licence, Profile, Template, Trigger, TriggerEvent
from beamhub.terms import Case

from beamhub_cockpit import form, sponsors, trials
from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.draft import SEVERAL, Draft, unfit
from beamhub_cockpit.format import plural
from beamhub_cockpit.format import profile as asked
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import button
from beamhub_cockpit.ruletext import EVENTS, parameters, when


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
    return dialog(
        "bh-rule-dialog",
        title,
        [
            _occasion(draft, around) if whole else el("p", when(draft.base)) if draft.base else None,
            _work(draft, around, template),
            _given(draft, template),
            _gathering(draft) if whole and _may_gather(draft, template) else None,
            _resources(draft, around),
            trials.show(draft, around.jobs, around.templates, around.links),
        ],
        [_said(draft), button(_label(draft), None, css="bh-button-main bh-rule-save")],
        hint=hint,
        close="draft.close",
        submit="draft.save",
        change="draft.typed",
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
    return el("p.bh-hint.bh-trial-sum", trials.summed(draft))


def _input(draft: Draft, name: str, label: str, hint: str = "", **more: Any) -> Element:
    problem, ident = draft.wrong.get(name, ""), f"rule-{name}"
    tag, unit, wide = more.pop("tag", "input"), more.pop("unit", ""), more.pop("wide", False)
    within = el(
        tag,
        type="text",
        id=ident,
        name=name,
        value=draft.texts[name],
        autocomplete="off",
        spellcheck="false",
        **form.described(ident, hint, problem),
        **more,
    )
    if unit:
        within = el("div.bh-input-unit", within, el("span.bh-unit", unit))
    return form.row(name, label, ident, within, hint, problem, wide=wide)


def _select(
    draft: Draft, name: str, label: str, options: Iterable[Element], hint: Child = None, *, field: str = ""
) -> Element:
    problem, ident, chosen = draft.wrong.get(name, ""), f"rule-{name}", draft.texts[name]
    return form.select(field or name, label, options, chosen, hint, problem, ident=ident, key=name)


def _option(draft: Draft, name: str, of: str, text: str, *, disabled: bool = False) -> Element:
    return form.option(of, text, draft.texts[name], disabled=disabled)


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
            _input(
                draft, "title", "Title", placeholder="As the template", maxlength="200", focus=True, wide=True
            ),
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
        found.append(replace(one, kind="text") if computed and is_box else one)
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
