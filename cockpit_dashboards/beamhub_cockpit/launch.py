"""A job that is about to be started: again with other values, or anew on datasets."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beamhub.client import ApiError, Client
from beamhub.schemas import Dataset, Estimate, Job, JobInput, Sponsor, Template
from pydantic import JsonValue

from beamhub_cockpit import form, sponsors
from beamhub_cockpit.datasetlist import named
from beamhub_cockpit.parts import template_of
from beamhub_cockpit.scene import Scene

ON_DATASETS, ON_JOBS = ("dataset", "datasets"), ("job", "jobs")  # what templates work on

JOBS = "jobs"  # the field with the numbers of jobs


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


def _named(one: JobInput) -> str:
    return f"#{one.id} {one.name}" if one.kind == "job" else one.name


def _sponsor(wanted: str, paying: Sequence[Sponsor]) -> str:
    """The one that is wanted, if it pays; else one that does."""
    pays = wanted in [s.id for s in paying if not s.refusal]
    return wanted if pays else sponsors.begin_with(paying)


def _texts(template: Template | None, values: Mapping[str, JsonValue]) -> dict[str, str]:
    return form.typed(form.fields(template.parameters, values)) if template else {}
