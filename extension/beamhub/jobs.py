"""Jobs: one run of one template version with one parameter set, from the wish for it to its result.

pending (waits for credit) -> queued (credit is held) -> running -> finished, failed or cancelled. Every
change of state is made by `change`, or for many new jobs at once by `admit_all`, in one transaction with its
event and what it costs.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import JsonValue

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.comparison import compare
from beamhub.credits import hold, hold_all, refusal, require_sponsor, require_terms, settle, shortage
from beamhub.errors import BeamhubError, Conflict, Forbidden, Invalid, NotFound
from beamhub.fingerprints import fingerprint
from beamhub.inputs import NEEDS, choose, inherit, kind
from beamhub.jobfolder import JobFolder
from beamhub.lineage import compare_notebooks, differences
from beamhub.plans import Plan, Plans
from beamhub.schemas import (
    Attempt,
    Comparison,
    DatasetState,
    Event,
    Experiment,
    ExperimentState,
    File,
    Job,
    JobCancel,
    JobChange,
    JobCreate,
    JobInput,
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
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Draft
from beamhub.templates import Catalogue, Entry
from beamhub.text import one_line
from beamhub.triggers import JobRequest

T = TypeVar("T")

SYSTEM = access.SYSTEM.name
MANY = 500  # datasets that a template is run on at once
MAX_KIN = 500  # ancestors or children that are listed
STEPS: Mapping[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.PENDING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.PENDING, JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    # back to the queue only if it is certain that nothing has run; else by way of pending: another attempt
    JobState.RUNNING: frozenset(
        {JobState.PENDING, JobState.QUEUED, JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}
    ),
}


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
                _draft(tx, experiment, plan, choose(tx, experiment, template, [one]), principal.name)
                for one in dict.fromkeys(wanted)
            ]
            return Page(items=_make(tx, drafts, force=request.force))

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
            draft = _draft(tx, experiment, wish.plan, inputs, principal.name, parent=wish.parent)
            return _make(tx, [draft], force=wish.force)[0]

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
                return _sure(
                    tx.jobs.change(job.id, job.state, cancel_requested=f"{principal.name}\n{reason}")
                )
            return _sure(change(tx, job, JobState.CANCELLED, actor=principal.name, reason=reason))

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
            changed = _sure(tx.jobs.change(job.id, job.state, priority=request.priority))
            _tell(tx, "job.priority", changed, principal.name)
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
        after: str | None = None,
        limit: int = 100,
    ) -> Page[Job]:
        """Newest first; of all experiments that the principal may see, or of one."""

        def work(tx: Transaction) -> Page[Job]:
            if experiment is not None:
                access.require(tx, principal, experiment, Action.READ)
            return tx.jobs.list(
                only=access.visible_experiments(tx, principal),
                experiment=experiment,
                dataset=dataset,
                state=state,
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
                drafts.append(self._wanted(tx, request, experiment, entry, checked))
                problems.append("")
            except BeamhubError as error:
                drafts.append(self._unwanted(tx, request, experiment))
                reason = f"The rule that started this job cannot be followed: {error}"
                problems.append(one_line(reason, 2000))
        made = _create(tx, drafts)
        admitted = admit_all(tx, [job for job, problem in zip(made, problems, strict=True) if not problem])
        now = {job.id: job for job in admitted}
        for job, problem in zip(made, problems, strict=True):
            if problem:
                failed = change(tx, job, JobState.FAILED, actor=job.launched_by, reason=problem)
                now[job.id] = _sure(failed)
        return [now[job.id] for job in made]

    def _wanted(
        self,
        tx: Transaction,
        request: JobRequest,
        experiment: Experiment,
        entry: Callable[[str], Entry],
        checked: set[tuple[str, str, str]],
    ) -> Draft:
        """The job that a rule wants. Raises NotFound, Invalid. `checked` are experiment, template and sponsor
        that are known to go together."""
        if request.problem:
            raise Invalid(request.problem, "Correct the rule.")
        plan = self.plans.of(entry(request.template), request.parameters, request.profile, request.sponsor)
        case = experiment.id, request.template, request.sponsor
        if case not in checked:
            require_terms(tx, experiment, request.template, request.sponsor)
            checked.add(case)
        template = plan.entry.template
        offered: Mapping[str | None, Sequence[int | str]] = {
            "dataset": request.datasets,
            "job": request.jobs,
            "file": request.files,
        }
        inputs = choose(tx, experiment, template, offered.get(kind(template), ()))
        return _draft(
            tx,
            experiment,
            plan,
            inputs,
            f"trigger:{request.rule}",
            parent=request.parent,
            trigger_key=request.key,
            rule_version=request.version,
            priority=request.priority,
        )

    def _unwanted(self, tx: Transaction, request: JobRequest, experiment: Experiment) -> Draft:
        """As far as it is known what a rule wants that can't be followed."""
        return Draft(
            experiment=experiment.id,
            template=request.template,
            template_version="",
            title=request.template,
            parameters=request.parameters,
            inputs=_offered(tx, request),
            profile=self.plans.profile(None, request.profile),
            sponsor=request.sponsor,
            launched_by=f"trigger:{request.rule}",
            parent=request.parent,
            trigger_key=request.key,
            rule_version=request.version,
            priority=request.priority,
        )

    async def _look(self, principal: Principal, job_id: int, look: Callable[[JobFolder], T]) -> T:
        job = await self.get(principal, job_id)
        return await asyncio.to_thread(look, self.folder(job))


def _draft(
    tx: Transaction,
    experiment: Experiment,
    plan: Plan,
    inputs: Sequence[JobInput],
    launched_by: str,
    **more: Any,
) -> Draft:
    """A job to be made, and which identical one there is already. `more`: what else a `Draft` has."""
    template = plan.entry.template
    mark = fingerprint(tx, experiment, template, plan.parameters, inputs)
    earlier = tx.jobs.identical(experiment.id, mark) if mark else None
    return Draft(
        experiment=experiment.id,
        template=template.name,
        template_version=template.version,
        title=template.title,
        parameters=plan.parameters,
        inputs=inputs,
        profile=plan.profile,
        sponsor=plan.sponsor,
        launched_by=launched_by,
        live=template.live,
        notebook=template.notebook,
        fingerprint=mark,
        repeats=earlier.id if earlier else None,
        **more,
    )


def _create(tx: Transaction, drafts: Sequence[Draft]) -> Sequence[Job]:
    """The new jobs, in this order; each that is identical to one before it is linked with that one."""
    made = tx.jobs.create_all(drafts)
    first: dict[tuple[str, str], int] = {}
    repeats: dict[int, int] = {}
    for job, draft in zip(made, drafts, strict=True):
        if draft.fingerprint is not None and draft.repeats is None:
            earlier = first.setdefault((draft.experiment, draft.fingerprint), job.id)
            if earlier != job.id:
                repeats[job.id] = earlier
    tx.jobs.link(repeats)
    made = [job.model_copy(update={"repeats": repeats.get(job.id, job.repeats)}) for job in made]
    _tell_all(tx, "job.created", made)
    return made


def _make(tx: Transaction, drafts: Sequence[Draft], *, force: bool) -> list[Job]:
    """The jobs that somebody asks for, queued if their sponsor can pay. An identical one that has a result,
    or will have one, is the answer instead, unless another is forced."""
    earlier = [None if force else draft.repeats for draft in drafts]
    wanted = [draft for draft, known in zip(drafts, earlier, strict=True) if known is None]
    made = iter(admit_all(tx, _create(tx, wanted)))
    return [next(made) if known is None else _known(tx, known) for known in earlier]


def _known(tx: Transaction, job_id: int) -> Job:
    """A job that is the answer to whoever wants an identical one."""
    return _sure(tx.jobs.get(job_id)).model_copy(update={"repeats": job_id})


def change(
    tx: Transaction,
    job: Job,
    state: JobState,
    *,
    actor: str,
    reason: str = "",
    at: datetime | None = None,
    used: int | None = None,
    attempt: Mapping[str, Any] | None = None,
    **columns: Any,
) -> Job | None:
    """The place where a job's state changes: the state, the attempt, the charge and the event are one.

    Returns the job as it is then, or None (and has changed nothing) if it is not in the state of `job` any
    more.

    Args:
        at: when it happened; now by default.
        used: CPU-seconds of the attempt that is over with this, where its runner has counted them; by default
            its runtime x its CPUs.
        attempt: what else is known of the attempt that is over with this: host, exit_code, cell.
        columns: others that change with the state.
    """
    if state not in STEPS.get(job.state, frozenset()):
        raise ValueError(f"job {job.id} cannot be {state}: it is {job.state}")
    now = datetime.now(UTC)
    moment = now if at is None else min(max(at, job.started or job.created), now)
    if state is JobState.RUNNING:
        columns |= {"started": moment}
    elif state in (JobState.PENDING, JobState.QUEUED):
        columns |= {"started": None, "runner_ref": None}
    elif state.ended:
        columns |= {"ended": moment}
    changed = tx.jobs.change(job.id, job.state, state=state, reason=reason, **columns)
    if changed is None:
        return None
    if state is JobState.RUNNING:
        tx.attempts.note(job.id, started=moment)
    elif state is JobState.QUEUED and job.state is JobState.RUNNING:
        tx.attempts.note(job.id, started=None, ref="")
    elif state.ended or state is JobState.PENDING:
        if used is None:
            runtime = (moment - job.started).total_seconds() if job.started else 0.0
            used = math.ceil(runtime * job.profile.cpus)
        charged = settle(tx, job.id, used, actor=actor)
        tx.attempts.note(
            job.id,
            ended=moment,
            outcome=state.value if state.ended else "interrupted",
            reason=reason,
            cpu_seconds=charged,
            **(attempt or {}),
        )
        changed = changed.model_copy(update={"cpu_seconds": changed.cpu_seconds + charged})
    _tell(tx, f"job.{state}", changed, actor)
    return changed


def remember(tx: Transaction, job: Job, ref: Mapping[str, JsonValue], *, begins: bool) -> Job | None:
    """Notes how a runner finds a job that it has taken; None, and nothing noted, if the job is not queued any
    more, or has been taken otherwise: by a service that was on duty before, or has taken over.

    Args:
        begins: whether it runs as soon as it is let go, or goes on waiting in the runner's own queue.
    """
    task = tx.jobs.task(job.id)
    if task is not None and task.runner_ref is not None:
        return task.job if task.runner_ref == ref else None
    tx.attempts.note(job.id, ref=_native(ref))
    if begins:
        return change(tx, job, JobState.RUNNING, actor=SYSTEM, runner_ref=dict(ref))
    return tx.jobs.change(job.id, JobState.QUEUED, runner_ref=dict(ref), reason="")


def _native(ref: Mapping[str, JsonValue]) -> str:
    """The runner's own name for a job: what comes first in its reference."""
    name, value = next(iter(ref.items()), ("", ""))
    return f"{name} {value}"[:200]


def admit(tx: Transaction, job: Job) -> Job:
    """Queues a pending job if its sponsor pays; otherwise its reason says what is missing."""
    if not shut(tx, job) and hold(tx, job, actor=job.launched_by):
        return _sure(change(tx, job, JobState.QUEUED, actor=job.launched_by))
    reason = why_pending(tx, job)
    if reason == job.reason:
        return job
    return _sure(change(tx, job, JobState.PENDING, actor=SYSTEM, reason=reason))


def admit_all(tx: Transaction, jobs: Sequence[Job]) -> list[Job]:
    """As `admit`, for many new jobs at once."""
    admitted: list[Job] = []
    for sponsor in dict.fromkeys(job.sponsor for job in jobs):
        same = [job for job in jobs if job.sponsor == sponsor]
        if hold_all(tx, same):
            queued = [job.model_copy(update={"state": JobState.QUEUED}) for job in same]
            _tell_all(tx, "job.queued", queued)
            admitted += queued
        else:  # as far as it goes
            admitted += [admit(tx, job) for job in same]
    return admitted


def why_pending(tx: Transaction, job: Job) -> str:
    """What a pending job waits for; "" if it can be queued."""
    licence = tx.licences.get(job.sponsor)
    return barred(tx, job) or (shortage(licence, job.profile) if licence else "")


def barred(tx: Transaction, job: Job) -> str:
    """Why no credit would let a pending job start; "" if that is all that it lacks."""
    return shut(tx, job) or refusal(tx, job)


def shut(tx: Transaction, job: Job) -> str:
    """Why nothing new starts in the job's experiment; "" if it does."""
    experiment = tx.experiments.get(job.experiment)
    if experiment is None or experiment.state is not ExperimentState.CLOSED:
        return ""
    return f"{experiment.id} is closed: the job can start when it is open again."


def require_job(tx: Transaction, principal: Principal, job_id: int, action: Action) -> Job:
    """The job, if the principal may do this in its experiment; NotFound if it may not even see it."""
    job = tx.jobs.get(job_id)
    visible = access.visible_experiments(tx, principal)
    if job is None or (visible is not None and job.experiment not in visible):
        raise NotFound(f"There is no job {job_id} here.", "Look it up in the list of jobs.")
    access.require(tx, principal, job.experiment, action)
    return job


def _tell(tx: Transaction, kind: str, job: Job, actor: str) -> None:
    _tell_all(tx, kind, [job], actor)


def _tell_all(tx: Transaction, kind: str, jobs: Sequence[Job], actor: str | None = None) -> None:
    """What has happened to jobs; without an actor it was whoever launched each."""
    experiment = cache(tx.experiments.get)
    rows = []
    for job in jobs:
        of = experiment(job.experiment)
        data = {
            "template": job.template,
            "title": job.title,
            "state": job.state,
            "reason": job.reason,
            "dataset": _first(one.id for one in job.inputs if one.kind == "dataset"),
            "dataset_name": _first(one.name for one in job.inputs),
            "launched_by": job.launched_by,
            "priority": job.priority,
            "parent": job.parent,
            "cpu_seconds": job.cpu_seconds,
        }
        rows.append(
            {
                "kind": kind,
                "actor": actor or job.launched_by,
                "instrument": of.instrument if of else None,
                "experiment": job.experiment,
                "subject": str(job.id),
                "data": data,
            }
        )
    tx.events.append_rows(rows)


def _offered(tx: Transaction, request: JobRequest) -> list[JobInput]:
    """What a job was to work on that has never been planned."""
    datasets = [(id_, tx.datasets.get(id_)) for id_ in request.datasets]
    return [
        *(JobInput(id=id_, name=dataset.name if dataset else "") for id_, dataset in datasets),
        *(JobInput(kind="file", id=None, name=path) for path in request.files),
    ]


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


def _first(values: Iterable[T]) -> T | None:
    return next(iter(values), None)


def _sure(job: Job | None) -> Job:
    """A change of a job that was read in the same transaction cannot have missed it."""
    if job is None:
        raise RuntimeError("a job changed its state in the middle of a transaction")
    return job
