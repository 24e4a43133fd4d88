"""Jobs: one run of one template version with one parameter set, from the wish for it to its result."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.catalogue import Catalogue
from beamhub.comparison import compare
from beamhub.drafts import draft_for_rule, draft_of, draft_of_broken_rule, enter, make
from beamhub.errors import BeamhubError, Conflict, Forbidden, Invalid, NotFound
from beamhub.inputs import NEEDS, choose, inherit, kind
from beamhub.jobfolder import JobFolder
from beamhub.jobstate import admit_all, change, sure, tell
from beamhub.lineage import compare_notebooks, differences
from beamhub.plans import Plan, Plans
from beamhub.schemas import (
    Attempt,
    Comparison,
    DatasetState,
    Event,
    Experiment,
    File,
    Job,
    JobCancel,
    JobChange,
    JobCreate,
    JobOutcome,
    JobRerun,
    JobResult,
    JobsCancel,
    JobsOnEach,
    JobsRerun,
    JobState,
    JobStep,
    Lineage,
    Page,
    Problem,
    Profile,
    Relative,
    SeriesPage,
)
from beamhub.sponsors import require_sponsor
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Draft
from beamhub.text import one_line
from beamhub.triggers import JobRequest

T = TypeVar("T")

MANY = 500  # datasets that a template is run on at once
MAX_KIN = 500  # ancestors or children that are listed


@dataclass(frozen=True)
class Wish:
    """A job that somebody asks for."""

    experiment: str
    plan: Plan
    inputs: Sequence[int | str]
    parent: int | None
    force: bool  # even if an identical one has given a result


class Jobs:
    """Jobs as people see and steer them.

    Args:
        profiles: what can be asked for; the first is what a template gets whose own profile is not there.
        data_dir: the folder of all experiments.
    """

    def __init__(
        self, store: Store, catalogue: Catalogue, profiles: Sequence[Profile], data_dir: Path
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._data_dir = data_dir.absolute()
        self.plans = Plans(catalogue, profiles, self._data_dir)

    async def submit(self, principal: Principal, experiment_id: str, request: JobCreate) -> Job:
        """Makes a job. It is queued at once if its sponsor can pay, and else pending. If an identical one has
        a result already, or will have one, that is the answer (its `repeats` is its own id), unless the
        request is to `force` another."""
        return await self._make(principal, await self.wish(principal, experiment_id, request))

    async def rerun(self, principal: Principal, job_id: int, request: JobRerun) -> Job:
        """Makes a job from another one: what the request leaves out is as it was there.
        With another template, parameters that are left out have that template's defaults."""
        return await self._make(principal, await self.wish_again(principal, job_id, request))

    async def submit_on_each(
        self, principal: Principal, experiment_id: str, request: JobsOnEach
    ) -> Page[Job]:
        """Makes a job for each of many datasets: all of them, or none where one of them is refused."""

        def work(tx: Transaction) -> Page[Job]:
            experiment = access.require(tx, principal, experiment_id, Action.RUN_JOB)
            template = plan.entry.template
            if kind(template) != "dataset":
                raise Invalid(
                    f"{template.title} works on {NEEDS[template.inputs]}: it can't be run on each dataset.",
                    "Choose a template that works on datasets.",
                )
            wanted = request.datasets
            if wanted is None:
                found = tx.datasets.list(experiment.id, after=None, limit=MANY)
                if not found.items or found.next is not None:
                    raise Invalid(
                        f"{experiment.id} has {'no' if not found.items else f'more than {MANY}'} datasets.",
                        f"Name up to {MANY} of them.",
                    )
                arrived = (one.id for one in found.items if one.state is not DatasetState.RECEIVING)
                wanted = sorted(arrived)
            _require_sponsor(tx, principal, experiment, plan)
            drafts = [
                draft_of(tx, experiment, plan, choose(tx, experiment, template, [one]), principal.name)
                for one in dict.fromkeys(wanted)
            ]
            return Page(items=make(tx, drafts, force=request.force))

        plan = await self._planned(principal, experiment_id, request)
        return await self._store.write(work)

    async def rerun_all(self, principal: Principal, request: JobsRerun) -> Sequence[JobOutcome]:
        """Runs several jobs again, each for itself."""

        async def again(id_: int) -> Job:
            parent = await self.get(principal, id_)
            wanted = JobRerun(
                parameters={**parent.parameters, **request.parameters},
                profile=request.profile,
                sponsor=request.sponsor,
                force=request.force,
            )
            return await self.rerun(principal, id_, wanted)

        return await _each(request.jobs, again)

    async def cancel_all(self, principal: Principal, request: JobsCancel) -> Sequence[JobOutcome]:
        """Ends several jobs, each for itself."""
        one = JobCancel(reason=request.reason)
        return await _each(request.jobs, lambda id_: self.cancel(principal, id_, one))

    async def lineage(self, principal: Principal, job_id: int) -> Lineage:
        """Where a job comes from, what was made from it, and what differs from its parent."""

        def work(tx: Transaction) -> tuple[Job, list[Job], Sequence[Job]]:
            job = require_job(tx, principal, job_id, Action.READ)
            ancestors: list[Job] = []
            parent = job.parent
            while parent is not None and (found := tx.jobs.get(parent)) is not None:
                if found.experiment != job.experiment or len(ancestors) == MAX_KIN:
                    break
                ancestors.append(found)
                parent = found.parent
            children = tx.jobs.children(job.id, limit=MAX_KIN)
            return job, ancestors, [one for one in children if one.experiment == job.experiment]

        job, ancestors, children = await self._store.read(work)
        parent = ancestors[0] if ancestors else None

        def notebook() -> list[str]:
            if parent is None or (parent.template, parent.template_version) == (
                job.template,
                job.template_version,
            ):
                return []
            try:
                return compare_notebooks(self.plans.template(parent), self.plans.template(job))
            except NotFound:
                return []

        return Lineage(
            ancestors=[Relative.model_validate(one) for one in ancestors],
            children=[Relative.model_validate(one) for one in children],
            differences=differences(parent, job) if parent else [],
            notebook=await asyncio.to_thread(notebook),
        )

    async def wish(self, principal: Principal, experiment_id: str, request: JobCreate) -> Wish:
        """What a request for a job comes to, checked but for its inputs."""
        plan = await self._planned(principal, experiment_id, request)
        return Wish(experiment_id, plan, request.inputs, None, request.force)

    async def _planned(
        self, principal: Principal, experiment_id: str, request: JobCreate | JobsOnEach
    ) -> Plan:
        await self._store.read(lambda tx: access.require(tx, principal, experiment_id, Action.RUN_JOB))
        return await asyncio.to_thread(
            self.plans.make,
            experiment_id,
            request.template or "",
            request.notebook,
            request.parameters,
            request.profile,
            request.sponsor,
        )

    async def wish_again(self, principal: Principal, job_id: int, request: JobRerun) -> Wish:
        """What a request for another run of a job comes to, checked but for its inputs."""
        parent = await self.get(principal, job_id)
        await self._store.read(lambda tx: access.require(tx, principal, parent.experiment, Action.RUN_JOB))
        notebook = request.notebook or (parent.notebook if request.template is None else None)
        same = notebook == parent.notebook and request.template in (None, parent.template)
        plan = await asyncio.to_thread(
            self.plans.make,
            parent.experiment,
            request.template or parent.template,
            notebook,
            request.parameters if request.parameters is not None else (parent.parameters if same else {}),
            request.profile or parent.profile.name,
            request.sponsor or parent.sponsor,
        )
        wanted = request.inputs if request.inputs is not None else inherit(parent, plan.entry.template)
        return Wish(parent.experiment, plan, wanted, parent.id, request.force)

    async def _make(self, principal: Principal, wish: Wish) -> Job:
        def work(tx: Transaction) -> Job:
            experiment = access.require(tx, principal, wish.experiment, Action.RUN_JOB)
            inputs = choose(tx, experiment, wish.plan.entry.template, wish.inputs)
            _require_sponsor(tx, principal, experiment, wish.plan)
            draft = draft_of(tx, experiment, wish.plan, inputs, principal.name, parent=wish.parent)
            return make(tx, [draft], force=wish.force)[0]

        return await self._store.write(work)

    async def cancel(self, principal: Principal, job_id: int, request: JobCancel) -> Job:
        """Ends a job. One that runs is still running in the answer, and ends in a moment."""

        def work(tx: Transaction) -> Job:
            job = require_job(tx, principal, job_id, Action.CANCEL_JOB)
            if job.state.ended:
                raise Conflict(f"Job {job.id} is {job.state} already.", "There is nothing to cancel.")
            note = one_line(request.reason, 500)
            reason = f"Cancelled by {principal.name}{': ' if note else ''}{note}."
            task = tx.jobs.task(job.id)
            if task is not None and task.runner_ref is not None:  # its runner has it
                return sure(tx.jobs.change(job.id, job.state, cancel_requested=f"{principal.name}\n{reason}"))
            return sure(change(tx, job, JobState.CANCELLED, actor=principal.name, reason=reason))

        return await self._store.write(work)

    async def change(self, principal: Principal, job_id: int, request: JobChange) -> Job:
        """Sets the priority of a job that has not been started."""

        def work(tx: Transaction) -> Job:
            job = require_job(tx, principal, job_id, Action.CANCEL_JOB)
            if not access.may_rank(tx, principal, job, request.priority):
                raise Forbidden(
                    f"{principal.name} may only lower the priority of own jobs: job {job.id} is of "
                    f"{job.launched_by} and has priority {job.priority}.",
                    "Ask the instrument's staff.",
                )
            if job.state not in (JobState.PENDING, JobState.QUEUED):
                raise Conflict(f"Job {job.id} is {job.state}.", "Only jobs that wait have a priority.")
            changed = sure(tx.jobs.change(job.id, job.state, priority=request.priority))
            tell(tx, "job.priority", changed, principal.name)
            return changed

        return await self._store.write(work)

    async def get(self, principal: Principal, job_id: int) -> Job:
        job = await self._store.read(lambda tx: require_job(tx, principal, job_id, Action.READ))
        return (await self._compared([job]))[0]

    async def list(
        self,
        principal: Principal,
        *,
        experiment: str | None = None,
        dataset: int | None = None,
        state: JobState | None = None,
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[Job]:
        """Newest first; of all experiments that the principal may see, or of one. With `name`, those that
        have it in their title or in the name of a dataset."""

        def work(tx: Transaction) -> Page[Job]:
            if experiment is not None:
                access.require(tx, principal, experiment, Action.READ)
            return tx.jobs.list(
                only=access.visible_experiments(tx, principal),
                experiment=experiment,
                dataset=dataset,
                state=state,
                name=name,
                after=after,
                limit=limit,
            )

        page = await self._store.read(work)
        return page.model_copy(update={"items": await self._compared(page.items)})

    async def _compared(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs, and whether their templates have changed since they were made."""

        def look() -> list[Job]:
            now: dict[tuple[str, str], str | None] = {}
            for job in jobs:
                key = job.experiment, job.notebook or job.template
                if key not in now:
                    now[key] = self._catalogue.version(*key[1:], self._data_dir / job.experiment)
            return [_told(job, now[job.experiment, job.notebook or job.template]) for job in jobs]

        return await asyncio.to_thread(look)

    async def log(self, principal: Principal, job_id: int, after: int = 0) -> tuple[str, int]:
        """What the job has printed from byte `after` on, and the `after` to ask with next."""
        return await self._look(principal, job_id, lambda folder: folder.log(after))

    async def series(self, principal: Principal, job_id: int, name: str, after: int = 0) -> SeriesPage:
        """Rows of a series that the job reports, from row `after` on."""
        return await self._look(principal, job_id, lambda folder: folder.series(name, after))

    async def compare(self, principal: Principal, ids: Sequence[int]) -> Comparison:
        """Jobs side by side, each once, in this order; of their series, the first rows."""
        jobs = [await self.get(principal, id_) for id_ in dict.fromkeys(ids)]

        def look() -> Comparison:
            found = [self.folder(job) for job in jobs]
            pages = {
                name: [folder.series(name, 0) for folder in found]
                for name in sorted({name for folder in found for name in folder.series_names()})
            }
            series = {name: [page if page.items else None for page in row] for name, row in pages.items()}
            return compare(jobs, series)

        return await asyncio.to_thread(look)

    async def attempts(self, principal: Principal, job_id: int) -> Sequence[Attempt]:
        """One by one, in their order."""

        def work(tx: Transaction) -> Sequence[Attempt]:
            return tx.attempts.of_job(require_job(tx, principal, job_id, Action.READ).id)

        return await self._store.read(work)

    async def history(self, principal: Principal, job_id: int) -> Sequence[JobStep]:
        """Every change of the job's state, oldest first."""

        def work(tx: Transaction) -> Sequence[JobStep]:
            job = require_job(tx, principal, job_id, Action.READ)
            kinds = ["job.created", *(f"job.{state}" for state in JobState)]
            return [_step(event) for event in tx.events.history(job.experiment, str(job.id), kinds)]

        return await self._store.read(work)

    async def result(self, principal: Principal, job_id: int) -> JobResult:
        """What the job has written about its end. Raises NotFound where it has not."""
        job = await self.get(principal, job_id)
        found = await asyncio.to_thread(
            lambda: self.folder(job).result(self.plans.declared(job), digest=False)
        )
        if found is None:
            raise NotFound(f"Job {job.id} has no result.", "Wait for its end, or see its log.")
        # digests are taken once, when the job has ended
        return found.model_copy(update={"artifacts": job.artifacts}) if job.state.ended else found

    async def files(self, principal: Principal, job_id: int) -> Sequence[File]:
        """The files in the job's folder; paths are relative to it."""
        return await self._look(principal, job_id, lambda folder: folder.files())

    async def open_file(self, principal: Principal, job_id: int, path: str) -> BinaryIO:
        """One of the files, opened for reading. What has been opened cannot be exchanged for something else,
        as a path could by the job."""
        return await self._look(principal, job_id, lambda folder: folder.open(path))

    async def open_notebook(self, principal: Principal, job_id: int) -> BinaryIO:
        """The notebook as far as it has run; before, the template that will be run. While the job runs it may
        be caught half written: then read it again."""
        job = await self.get(principal, job_id)

        def look() -> BinaryIO:
            for name in ("notebook.ipynb", "template.ipynb"):
                try:
                    return self.folder(job).open(name)
                except NotFound:
                    continue
            content = self.plans.template(job)
            file = os.fdopen(os.memfd_create("template.ipynb"), "w+b")  # which a process can be given, too
            file.write(content)
            file.seek(0)
            return file

        return await asyncio.to_thread(look)

    def folder(self, job: Job) -> JobFolder:
        return JobFolder(self._data_dir / job.experiment, job.id)

    def follow(self, tx: Transaction, *wanted: tuple[JobRequest, Experiment]) -> Sequence[Job]:
        """The jobs that rules want, in this order. Where one can't be followed, a job that has failed and
        says why."""
        entry = cache(self._catalogue.get)
        checked: set[tuple[str, str, str]] = set()
        drafts: list[Draft] = []
        problems: list[str] = []
        for request, experiment in wanted:
            try:
                drafts.append(draft_for_rule(tx, request, experiment, self.plans, entry, checked))
                problems.append("")
            except BeamhubError as error:
                drafts.append(draft_of_broken_rule(tx, request, experiment, self.plans))
                reason = f"The rule that started this job cannot be followed: {error}"
                problems.append(one_line(reason, 2000))
        made = enter(tx, drafts)
        admitted = admit_all(tx, [job for job, problem in zip(made, problems, strict=True) if not problem])
        now = {job.id: job for job in admitted}
        for job, problem in zip(made, problems, strict=True):
            if problem:
                failed = change(tx, job, JobState.FAILED, actor=job.launched_by, reason=problem)
                now[job.id] = sure(failed)
        return [now[job.id] for job in made]

    async def _look(self, principal: Principal, job_id: int, look: Callable[[JobFolder], T]) -> T:
        job = await self.get(principal, job_id)
        return await asyncio.to_thread(look, self.folder(job))


def require_job(tx: Transaction, principal: Principal, job_id: int, action: Action) -> Job:
    """The job, if the principal may do this in its experiment; NotFound if it may not even see it."""
    job = tx.jobs.get(job_id)
    visible = access.visible_experiments(tx, principal)
    if job is None or (visible is not None and job.experiment not in visible):
        raise NotFound(f"There is no job {job_id} here.", "Look it up in the list of jobs.")
    access.require(tx, principal, job.experiment, action)
    return job


def _step(event: Event) -> JobStep:
    return JobStep(time=event.time, state=event.data["state"], reason=event.data["reason"], actor=event.actor)


def _require_sponsor(tx: Transaction, principal: Principal, experiment: Experiment, plan: Plan) -> None:
    """A member's own notebook is what its path says, whichever template it may be called after."""
    template = plan.entry.template
    require_sponsor(tx, principal, experiment, template.notebook or template.name, plan.sponsor)


def _told(job: Job, version: str | None) -> Job:
    if version is None or not job.template_version:
        return job
    return job.model_copy(update={"template_changed": version != job.template_version})


async def _each(ids: Sequence[int], do: Callable[[int], Awaitable[Job]]) -> Sequence[JobOutcome]:
    """What comes of each, once; what cannot be done says why, and keeps no other from being done."""
    outcomes = []
    for id_ in dict.fromkeys(ids):
        try:
            outcomes.append(JobOutcome(asked=id_, job=await do(id_)))
        except BeamhubError as error:
            problem = Problem(
                title=error.title, status=error.status, detail=error.detail, remedy=error.remedy
            )
            outcomes.append(JobOutcome(asked=id_, problem=problem))
    return outcomes
