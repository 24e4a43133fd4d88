"""The dialog that starts a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

from beamhub.schemas import Estimate, Experiment, Job, Profile, Sponsor, Template
from beamhub.terms import Case

from beamhub_cockpit import form, sponsors
from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.format import about, cpu_hours, duration, number, plural, profile
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.launch import JOBS, ON_DATASETS, ON_JOBS, Launch
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import button

NOTEBOOKS = "A notebook of your own in shared/ is listed, too, if one of its cells is tagged “parameters”."


def show(
    launch: Launch,
    templates: Mapping[str, Template],
    profiles: list[Profile],
    links: Links,
    paying: Sequence[Sponsor],
    experiment: Experiment | None = None,
    jobs: Mapping[int, Job] = MappingProxyType({}),
) -> Element:
    """The dialog; with the experiment, it knows which sponsors don't pay there for the chosen template."""
    if experiment is not None:
        paying = sponsors.judged(paying, Case.of(experiment, launch.template))
    template = templates.get(launch.template)
    parent = launch.parent
    count = launch.count(template)
    new = f"New jobs on {number(count)} datasets" if count > 1 else "New job"
    title = f"Rerun #{parent.id} {parent.title}" if parent else new
    found = form.fields(template.parameters, {}) if template else []
    cannot = _cannot(launch, template, paying)
    described = [template.description] if template and template.description else []
    return dialog(
        "bh-rerun",
        title,
        [
            el("div.bh-problem.bh-problem-pending", cannot) if cannot else None,
            el(
                "div.bh-fields",
                form.select(
                    "template",
                    "Template",
                    _choices(launch, templates),
                    launch.template,
                    [el("span.bh-line", line) for line in (*described, NOTEBOOKS)],
                    ident="launch-template",
                    css="bh-form-template",
                    wide=True,
                ),
                _jobs(launch) if template and template.inputs in ON_JOBS else None,
            ),
            form.parameters(found, launch.entered, launch.wrong, "launch"),
            el(
                "fieldset.bh-fieldset",
                el("legend", "Resources"),
                el("div.bh-fields", _profile(launch, profiles), _licence(launch, paying)),
                key="resources",
            ),
            el(
                "label.bh-check-line",
                el("input", type="checkbox", name="force", checked=launch.force or None),
                "Even where there is a result of the same already",
            )
            if count > 1
            else None,
        ],
        _foot(launch, profiles, links, jobs, count, cannot=bool(cannot)),
        hint=["one on each of " if count > 1 else "on ", el("strong", launch.dataset_name)],
        close="launch.close",
        submit="launch.send",
        change="launch.keep",
        refused=launch.refused,
        key=f"launch-{launch.parent.id if launch.parent else 'new'}-{launch.datasets[:1]}",
        body_key=f"body-{launch.template}",
    )


def _foot(
    launch: Launch,
    profiles: list[Profile],
    links: Links,
    jobs: Mapping[int, Job],
    count: int,
    *,
    cannot: bool,
) -> list[Child]:
    """What it would take, and the buttons that start it."""
    foot: list[Child] = [_outlook(launch, profiles, links, jobs, count)]
    if launch.identical is not None:
        foot.append(button("Run it again", ["launch.again"], css="bh-form-again", disabled=cannot))
    foot.append(
        button(
            f"Start {plural(count, 'job')}" if count > 1 else "Start job",
            None,
            css="bh-button-main bh-form-submit",
            disabled=cannot,
        )
    )
    return foot


def _jobs(launch: Launch) -> Element:
    """Whose results the job is to work on."""
    problem, ident, hint = launch.wrong.get(JOBS, ""), "launch-jobs", "Their numbers, such as 12 15."
    given = form.described(ident, hint, problem)
    within = el("input", type="text", id=ident, name="jobs", value=launch.jobs, autocomplete="off", **given)
    return form.row("jobs", "Results of the jobs", ident, within, hint, problem, wide=True)


def _choices(launch: Launch, templates: Mapping[str, Template]) -> list[Element]:
    """The templates, and then the notebooks of members, that work on what there is."""
    kinds = {one.kind for one in launch.parent.inputs} if launch.parent else {"dataset"}
    fitting = {"none", *(ON_DATASETS if "dataset" in kinds else ()), *(ON_JOBS if launch.parent else ())}
    if "file" in kinds:
        fitting.add("file")
    found = {k: t for k, t in templates.items() if t.inputs in fitting or k == launch.template}
    own = [_template(k, t, launch.template) for k, t in found.items() if t.notebook]
    listed = [_template(k, t, launch.template) for k, t in found.items() if not t.notebook]
    return [*listed, *([el("optgroup", own, label="Notebooks in shared/")] if own else [])]


def _template(key: str, template: Template, chosen: str) -> Element:
    lacks = f" (not here: {', '.join(template.missing)})" if template.missing else ""
    return el(
        "option",
        template.title + (f" · {key.removeprefix('shared/')}" if template.notebook else "") + lacks,
        value=key,
        selected=key == chosen or None,
        disabled=bool(template.missing) or None,
    )


def _profile(launch: Launch, profiles: list[Profile]) -> Element:
    options = [form.option(p.name, profile(p), launch.profile) for p in profiles]
    if launch.profile and launch.profile not in [p.name for p in profiles]:
        options.append(form.option(launch.profile, f"{launch.profile} (not here)", launch.profile))
    return form.select(
        form.profile_of(launch.template),
        "CPUs",
        options,
        launch.profile,
        ident="launch-profile",
        css="bh-form-profile",
        key="profile",
    )


def _licence(launch: Launch, paying: Sequence[Sponsor]) -> Element:
    return form.select(
        "sponsor",
        "Paid by",
        sponsors.options(paying, launch.sponsor),
        launch.sponsor,
        sponsors.refusals(paying, launch.sponsor),
        ident="launch-sponsor",
        css="bh-form-sponsor",
    )


def _outlook(
    launch: Launch, profiles: list[Profile], links: Links, jobs: Mapping[int, Job], count: int
) -> Element:
    """What the job would take, when it would start, and what is to be known before it is started."""
    same = _same(launch.identical, jobs, links) if launch.identical is not None else None
    found = launch.estimate
    return el(
        "div.bh-estimate",
        same,
        [
            el("p.bh-estimate-time", *_time(found, count)),
            el("p.bh-hint.bh-estimate-start", _start(found)),
            el("p.bh-estimate-hint", found.hint) if found.hint else None,
        ]
        if found
        else None,
        el("p.bh-hint", _hold(launch, profiles, count)),
        role="status",
        data_runs=str(found.runs) if found else None,
    )


def _same(number: int, jobs: Mapping[int, Job], links: Links) -> Element:
    """Which job makes another one needless."""
    job = jobs.get(number)
    going = job is not None and not job.state.ended
    return el(
        "p.bh-estimate-same",
        "The result is on its way: " if going else "The result is there already: ",
        el("a.bh-link", f"job #{number}", href=links.job(number)),
        f" is {job.state} with" if job is not None and going else " has",
        " the same values, data, template and software.",
    )


def _time(found: Estimate, count: int) -> list[Child]:
    if found.duration is None or found.cpu_hours is None:
        return ["There are no earlier runs of this template: nobody knows yet how long it takes."]
    times = [duration(seconds) for seconds in (found.duration.low, found.duration.high)]
    between = f" ({times[0]} to {times[1]})" if times[0] != times[1] else ""
    costs = [f"{cpu_hours(round(found.cpu_hours.likely * 3600))}"]
    if count > 1:
        costs.append(f"{cpu_hours(round(found.cpu_hours.likely * 3600 * count))} together")
    return [
        "Each takes about " if count > 1 else "Takes about ",
        el("strong", duration(found.duration.likely)),
        f"{between} and ",
        [[", " if place else "", el("span.bh-nowrap", cost)] for place, cost in enumerate(costs)],
        f", as {plural(found.runs, 'earlier run')} did.",
    ]


def _start(found: Estimate) -> str:
    if found.starts is None:
        return found.waits or "When it starts cannot be told."
    left = (found.starts - datetime.now(UTC)).total_seconds()
    if left < 1:
        return found.waits or "Starts at once."
    return f"Starts in about {about(left)}. {found.waits}"


def _hold(launch: Launch, profiles: list[Profile], count: int) -> str:
    chosen = next((p for p in profiles if p.name == launch.profile), None)
    if chosen is None:
        return ""
    most = cpu_hours(count * chosen.cpus * chosen.walltime)
    return f"Sets aside at most {most}; only what is used is charged."


def _cannot(launch: Launch, template: Template | None, paying: Sequence[Sponsor]) -> str:
    if template is None:
        return "The template of this job is not available any more. Choose another one."
    if template.missing:
        lacks = ", ".join(template.missing)
        return f"This template needs {lacks}, which is not installed here. Choose another, or ask the staff."
    if not paying:
        return (
            "No licence pays for your jobs in this experiment. Ask the staff of the instrument for CPU-hours."
        )
    if any(s.id == launch.sponsor and s.refusal for s in paying):
        return f"{launch.sponsor} does not pay for this job. Choose another licence."
    return "" if launch.sponsor else "Choose a licence that pays."
