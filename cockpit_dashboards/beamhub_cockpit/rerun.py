"""The dialog that starts a job: again with other values, or anew on a dataset."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from beamhub.client import ApiError, Client
from beamhub.schemas import Dataset, Estimate, Experiment, Job, JobInput, Profile, Sponsor, Template
from beamhub.terms import Case
from pydantic import JsonValue

from beamhub_cockpit import form, sponsors
from beamhub_cockpit.datasetlist import named
from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.format import about, cpu_hours, duration, number, plural, profile
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import button, template_of
from beamhub_cockpit.scene import Scene

ON_DATASETS, ON_JOBS = ("dataset", "datasets"), ("job", "jobs")  # what templates work on
JOBS = "jobs"  # the field with the numbers of jobs
NOTEBOOKS = "A notebook of your own in shared/ is listed, too, if one of its cells is tagged “parameters”."


@dataclass
class Launch:
    """What is being filled in. `parent` is the job to run again, or None for new ones on `datasets`: one on
    each, or one on all of them where the template takes several."""

    experiment: str
    datasets: tuple[int, ...]
    dataset_name: str
    parent: Job | None
    template: str
    profile: str
    sponsor: str
    jobs: str = ""  # as typed: whose results a template works on that takes jobs
    entered: dict[str, str] = field(default_factory=dict)  # parameter -> text
    wrong: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    estimate: Estimate | None = None  # of what stands in the form
    identical: int | None = None  # a job that has this result already, or is on its way to it
    force: bool = False  # on several: even where there is a result
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # pressing twice starts one job

    @classmethod
    def again(cls, job: Job, scene: Scene) -> Launch:
        """Everything as in `job`; another sponsor only where the viewer can't use that one."""
        return cls(
            experiment=job.experiment,
            datasets=tuple(i.id for i in job.inputs if i.kind == "dataset" and i.id is not None),
            dataset_name=", ".join(_named(one) for one in job.inputs),
            parent=job,
            template=template_of(job),
            profile=job.profile.name,
            sponsor=_sponsor(job.sponsor, scene.sponsors),
            jobs=" ".join(str(i.id) for i in job.inputs if i.kind == "job") or str(job.id),
            entered=_texts(scene.templates.get(template_of(job)), job.parameters),
        )

    @classmethod
    def anew(cls, datasets: Sequence[Dataset], scene: Scene) -> Launch:
        """A job on a dataset, or on each of several, from the first template that can run."""
        fitting = [t for t in scene.templates.values() if t.inputs in ON_DATASETS]
        usable = [t for t in fitting if not t.missing and not t.live and not t.notebook]
        template = (usable or fitting or list(scene.templates.values()))[0]
        return cls(
            experiment=datasets[0].experiment,
            datasets=tuple(d.id for d in datasets),
            dataset_name=named(datasets),
            parent=None,
            template=template.notebook or template.name,
            profile=template.profile,
            sponsor=_sponsor("", scene.sponsors),
            entered=_texts(template, {}),
        )

    def choose(self, template: str, fields: Mapping[str, str], templates: Mapping[str, Template]) -> None:
        """Another template: what has been typed stays where both know the parameter."""
        self.take(fields)
        old, new = templates.get(self.template), templates.get(template)
        if new is None:
            return
        self.template = template
        again = self.parent is not None and template == template_of(self.parent)
        self.profile = self.parent.profile.name if self.parent and again else new.profile
        common = {k: v for k, v in self.entered.items() if k in _texts(old, {})}
        self.entered = {k: common.get(k, v) for k, v in _texts(new, {}).items()}
        self.wrong = {}
        self.refused = ""

    def take(self, fields: Mapping[str, str]) -> None:
        """What stands in the form now."""
        self.entered |= form.taken(fields)
        self.profile = fields.get(form.profile_of(self.template), self.profile)
        self.sponsor = fields.get("sponsor", self.sponsor)
        self.jobs = fields.get("jobs", self.jobs)
        self.force = fields.get("force", "true" if self.force else "false") == "true"

    def count(self, template: Template | None) -> int:
        """How many jobs it will be."""
        each = self.parent is None and template is not None and template.inputs == "dataset"
        return len(self.datasets) if each else 1

    def _on(self, template: Template) -> int | Sequence[int]:
        """What a new job works on."""
        if template.inputs == "none":
            return ()
        return list(self.datasets) if template.inputs == "datasets" else self.datasets[0]

    def look(self, client: Client, templates: Mapping[str, Template]) -> None:
        """Ask what the job would take, as far as what stands in the form can be read."""
        self.estimate = self.identical = None
        template = templates.get(self.template)
        values, wrong = form.read(template.parameters if template else {}, self.entered)
        if wrong or template is None or template.missing or not self.sponsor:
            return
        jobs = self._jobs()
        takes_jobs = template.inputs in ON_JOBS
        if takes_jobs and not jobs:
            return
        with contextlib.suppress(ApiError):  # what is wrong is said when it is sent
            if self.parent is not None:
                self.estimate = client.estimate_rerun(
                    self.parent.id,
                    template=self.template,
                    parameters=values,
                    inputs=jobs if takes_jobs else None,
                    profile=self.profile,
                    sponsor=self.sponsor,
                )
            else:
                self.estimate = client.estimate(
                    self.experiment,
                    self.template,
                    self._on(template),
                    sponsor=self.sponsor,
                    parameters=values,
                    profile=self.profile,
                )
            if self.count(template) == 1:
                self.identical = self.estimate.identical

    def _jobs(self) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", self.jobs)]

    def send(
        self,
        fields: Mapping[str, str],
        client: Client,
        templates: Mapping[str, Template],
        *,
        force: bool = False,
    ) -> list[Job] | None:
        """Start it; None where something has to be mended first, or an identical one has a result already
        (the form then says what). On several datasets, those that have one are among what is returned."""
        jobs = self._sent(fields, client, templates, force=force)
        if jobs is not None and len(jobs) == 1 and jobs[0].repeats == jobs[0].id:
            self.identical = jobs[0].id
            self.key = uuid.uuid4().hex
            return None
        return jobs

    def _sent(
        self, fields: Mapping[str, str], client: Client, templates: Mapping[str, Template], *, force: bool
    ) -> list[Job] | None:
        self.take(fields)
        template = templates.get(self.template)
        schema: Mapping[str, Any] = template.parameters if template else {}
        values, self.wrong = form.read(schema, self.entered)
        self.refused = ""
        takes_jobs = template is not None and template.inputs in ON_JOBS
        if takes_jobs and not re.fullmatch(r"[\s,#\d]*\d[\s,#\d]*", self.jobs):
            self.wrong[JOBS] = "Give the numbers of jobs, such as 12 15."
        if self.wrong or template is None:
            return None
        try:
            if self.parent is not None:
                again = client.rerun(
                    self.parent.id,
                    template=self.template,
                    parameters=values,
                    inputs=self._jobs() if takes_jobs else None,
                    profile=self.profile,
                    sponsor=self.sponsor,
                    force=force,
                    key=self.key,
                )
                return [again]
            asked: dict[str, Any] = {
                "sponsor": self.sponsor,
                "parameters": values,
                "profile": self.profile,
                "force": force or self.force,
                "key": self.key,
            }
            if self.count(template) > 1:
                return client.submit_on_each(self.experiment, self.template, self.datasets, **asked)
            return [client.submit(self.experiment, self.template, self._on(template), **asked)]
        except ApiError as error:
            self.refused = str(error)
            self.key = uuid.uuid4().hex
            return None


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
    foot: list[Child] = [_outlook(launch, profiles, links, jobs, count)]
    if launch.identical is not None:
        foot.append(button("Run it again", ["launch.again"], css="bh-form-again", disabled=bool(cannot)))
    foot.append(
        button(
            f"Start {plural(count, 'job')}" if count > 1 else "Start job",
            None,
            css="bh-button-main bh-form-submit",
            disabled=bool(cannot),
        )
    )
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
        foot,
        hint=["one on each of " if count > 1 else "on ", el("strong", launch.dataset_name)],
        close="launch.close",
        submit="launch.send",
        change="launch.keep",
        refused=launch.refused,
        key=f"launch-{launch.parent.id if launch.parent else 'new'}-{launch.datasets[:1]}",
        body_key=f"body-{launch.template}",
    )


def _named(one: JobInput) -> str:
    return f"#{one.id} {one.name}" if one.kind == "job" else one.name


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


def _sponsor(wanted: str, paying: Sequence[Sponsor]) -> str:
    """The one that is wanted, if it pays; else one that does."""
    pays = wanted in [s.id for s in paying if not s.refusal]
    return wanted if pays else sponsors.begin_with(paying)


def _texts(template: Template | None, values: Mapping[str, JsonValue]) -> dict[str, str]:
    return form.typed(form.fields(template.parameters, values)) if template else {}
