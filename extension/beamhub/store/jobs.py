"""Rows of jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import JsonValue
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from beamhub.estimates import Run
from beamhub.schemas import Artifact, Job, JobInput, JobProgress, JobState, Page, Profile, Quantity
from beamhub.store.pages import among, containing, each, paginate, unindexed
from beamhub.store.tables import datasets, experiments, job_datasets, jobs

RUNNER = jobs.c.profile["runner"].as_string()


@dataclass(frozen=True)
class Task:
    """A job, and what only the engine needs to know of it."""

    job: Job
    held: int  # CPU-seconds on hold now
    runner_ref: dict[str, JsonValue] | None  # how the runner finds its process
    cancel_requested: str | None  # who wants it to stop, and why


@dataclass(frozen=True)
class Draft:
    """What a new job is made from."""

    experiment: str
    template: str
    template_version: str
    title: str
    parameters: Mapping[str, JsonValue]
    inputs: Sequence[JobInput]
    profile: Profile
    sponsor: str
    launched_by: str
    parent: int | None = None
    trigger_key: str | None = None
    rule_version: int | None = None
    live: bool = False
    priority: int = 0
    notebook: str | None = None
    fingerprint: str | None = None
    repeats: int | None = None

    @property
    def datasets(self) -> list[int]:
        return [one.id for one in self.inputs if one.kind == "dataset" and one.id is not None]


class Jobs:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, job: int) -> Job | None:
        row = self._connection.execute(select(jobs).where(jobs.c.id == job)).first()
        return _job(row) if row else None

    def list(
        self,
        *,
        only: frozenset[str] | None,
        experiment: str | None = None,
        dataset: int | None = None,
        state: JobState | None = None,
        name: str | None = None,
        after: str | None,
        limit: int,
    ) -> Page[Job]:
        """Newest first; `only` restricts to these experiments (None: all), `name` to those that have it in
        their title or in the name of a dataset."""
        if experiment is not None:
            only = frozenset({experiment}).intersection(only or {experiment})
        query = select(jobs)
        parts = None
        if dataset is not None:
            query = query.where(_works_on(dataset))
            if only is not None:
                query = query.where(unindexed(jobs.c.experiment).in_(only))
        elif only is not None:
            parts = each(jobs.c.experiment, only)
        if state is not None:
            query = query.where((jobs.c.state if dataset is None else unindexed(jobs.c.state)) == state)
        if name is not None:
            titled = containing(self._connection, name, jobs.c.title)
            query = query.where(or_(titled, _works_on_one_named(self._connection, name)))
        order = [jobs.c.id]
        return paginate(
            self._connection, query, order, _job, after=after, limit=limit, descending=True, parts=parts
        )

    def unfinished(self, dataset: int) -> Sequence[int]:
        """Ids of the jobs with this input that have not ended."""
        going = [state for state in JobState if not state.ended]
        query = select(jobs.c.id).where(_works_on(dataset), jobs.c.state.in_(going))
        return list(self._connection.scalars(query.order_by(jobs.c.id)))

    def note_inputs(self, dataset: int, experiment: str, note: str) -> None:
        """Says something about this input of the experiment's jobs."""
        query = select(jobs.c.id, jobs.c.inputs)
        for id_, inputs in self._connection.execute(
            query.where(_works_on(dataset), jobs.c.experiment == experiment)
        ).all():
            noted = [
                {**one, "note": note} if (one["kind"], one["id"]) == ("dataset", dataset) else one
                for one in inputs
            ]
            self._connection.execute(update(jobs).where(jobs.c.id == id_).values(inputs=noted))

    def tasks(self, states: Collection[JobState]) -> Sequence[Task]:
        """The jobs in these states, oldest first."""
        query = select(jobs).where(jobs.c.state.in_(states)).order_by(jobs.c.id)
        return [_task(row) for row in self._connection.execute(query)]

    def in_turn(
        self,
        state: Literal[JobState.PENDING, JobState.QUEUED],
        active: Collection[str],
        *,
        runner: str | None = None,
        live: bool | None = None,
        sponsor: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """The jobs that wait, in the order in which they are started: by priority; then what starts by itself
        in an `active` experiment, because somebody at the beamline waits for it; then the oldest. Those that
        a runner has taken already are left out. It is the database that sorts: there may be thousands."""
        query = select(jobs).where(jobs.c.state == state, jobs.c.runner_ref.is_(null()))
        if runner is not None:
            query = query.where(runner == RUNNER)
        if live is not None:
            query = query.where(jobs.c.live.is_(live))
        if sponsor is not None:
            query = query.where(jobs.c.sponsor == sponsor)
        watched = and_(
            jobs.c.launched_by.startswith("trigger:", autoescape=True), jobs.c.experiment.in_(active)
        )
        query = query.order_by(jobs.c.priority.desc(), case((watched, 0), else_=1), jobs.c.id).limit(limit)
        return [_job(row) for row in self._connection.execute(query)]

    def stranded(self, runners: Collection[str], *, limit: int) -> Sequence[Task]:
        """Jobs of other runners than these that are queued, or that run and are to be cancelled."""
        unheard = and_(jobs.c.state == JobState.RUNNING, jobs.c.cancel_requested.is_not(null()))
        query = select(jobs).where(or_(jobs.c.state == JobState.QUEUED, unheard), RUNNER.not_in(runners))
        return [_task(row) for row in self._connection.execute(query.order_by(jobs.c.id).limit(limit))]

    def pending(self) -> Mapping[str, Mapping[str, tuple[str, int]]]:
        """The sponsors that jobs wait for, with the experiments of these jobs: the experiment's state, and
        the newest of these jobs."""
        query = select(jobs.c.sponsor, jobs.c.experiment, experiments.c.state, func.max(jobs.c.id))
        query = query.join(experiments, experiments.c.id == jobs.c.experiment)
        query = query.where(jobs.c.state == JobState.PENDING)
        found: dict[str, dict[str, tuple[str, int]]] = {}
        grouped = query.group_by(jobs.c.sponsor, jobs.c.experiment, experiments.c.state)
        for sponsor, experiment, state, newest in self._connection.execute(grouped):
            found.setdefault(sponsor, {})[experiment] = state, newest
        return found

    def busy(self, runner: str, *, live: bool) -> int:
        """How many CPUs the running jobs of a runner have."""
        query = select(func.sum(jobs.c.profile["cpus"].as_integer())).where(
            jobs.c.state == JobState.RUNNING, runner == RUNNER, jobs.c.live.is_(live)
        )
        return int(self._connection.scalar(query) or 0)

    def handed_over(self, known: Mapping[int, Task]) -> dict[int, Task]:
        """The jobs that a runner has: those running, and those waiting in its own queue; oldest first. Only
        those that have changed since they were `known` are read as a whole."""
        handed = and_(jobs.c.state == JobState.QUEUED, jobs.c.runner_ref.is_not(null()))
        columns = (jobs.c.id, jobs.c.state, jobs.c.reason, jobs.c.started, jobs.c.cancel_requested)
        query = select(*columns).where(or_(jobs.c.state == JobState.RUNNING, handed)).order_by(jobs.c.id)
        found = {row.id: tuple(row)[1:] for row in self._connection.execute(query)}
        same = {id_ for id_, now in found.items() if id_ in known and _mutable(known[id_]) == now}
        others = among(self._connection, jobs.c.id, found.keys() - same)
        changed = self._connection.execute(select(jobs).where(others))
        tasks = {id_: known[id_] for id_ in same} | {row.id: _task(row) for row in changed}
        return {id_: tasks[id_] for id_ in found}

    def task(self, job: int) -> Task | None:
        row = self._connection.execute(select(jobs).where(jobs.c.id == job)).first()
        return _task(row) if row else None

    def triggered(self, key: str) -> int | None:
        """The job with this trigger key, if there is one already."""
        found: int | None = self._connection.scalar(select(jobs.c.id).where(jobs.c.trigger_key == key))
        return found

    def runs(self, template: str, *, limit: int) -> Sequence[Run]:
        """The last finished runs of a template, newest first."""
        more = (
            select(func.sum(datasets.c.frames_readable))
            .join(job_datasets, job_datasets.c.dataset == datasets.c.id)
            .where(job_datasets.c.job == jobs.c.id)
            .scalar_subquery()
        )
        frames = select(datasets.c.frames_readable).where(datasets.c.id == jobs.c.dataset).scalar_subquery()
        query = select(
            jobs.c.profile, jobs.c.started, jobs.c.ended, func.coalesce(frames, 0) + func.coalesce(more, 0)
        ).where(jobs.c.template == template, jobs.c.state == JobState.FINISHED, jobs.c.started.is_not(None))
        rows = self._connection.execute(query.order_by(jobs.c.id.desc()).limit(limit))
        return [
            Run(profile["cpus"], int(frames), (ended - started).total_seconds())
            for profile, started, ended, frames in rows
        ]

    def children(self, job: int, *, limit: int) -> Sequence[Job]:
        """The jobs that were made from this one, oldest first."""
        query = select(jobs).where(jobs.c.parent == job).order_by(jobs.c.id).limit(limit)
        return [_job(row) for row in self._connection.execute(query)]

    def identical(self, experiment: str, fingerprint: str) -> Job | None:
        """The newest job of the experiment with this fingerprint that has a result or will have one."""
        states = (JobState.FINISHED, JobState.RUNNING, JobState.QUEUED)
        query = select(jobs).where(
            jobs.c.fingerprint == fingerprint,
            unindexed(jobs.c.experiment) == experiment,
            unindexed(jobs.c.state).in_(states),
        )
        finished = case((jobs.c.state == JobState.FINISHED, 0), else_=1)
        row = self._connection.execute(query.order_by(finished, jobs.c.id.desc()).limit(1)).first()
        return _job(row) if row else None

    def triggered_among(self, keys: Collection[str]) -> frozenset[str]:
        """Those of these trigger keys that a job has already."""
        query = select(jobs.c.trigger_key).where(among(self._connection, jobs.c.trigger_key, keys))
        return frozenset(self._connection.scalars(query)) if keys else frozenset()

    def create(self, **values: Any) -> Job:
        """A pending job, without a reason yet; the values are those of a `Draft`."""
        return self.create_all([Draft(**values)])[0]

    def create_all(self, drafts: Sequence[Draft]) -> Sequence[Job]:
        """As `create`, many at once, in this order."""
        if not drafts:
            return []
        rows = self._connection.execute(
            insert(jobs).returning(jobs, sort_by_parameter_order=True), [_new(draft) for draft in drafts]
        ).all()
        others = [
            {"job": row.id, "dataset": dataset}
            for row, draft in zip(rows, drafts, strict=True)
            for dataset in draft.datasets[1:]
        ]
        if others:
            self._connection.execute(insert(job_datasets), others)
        return [_job(row) for row in rows]

    def link(self, repeats: Mapping[int, int]) -> None:
        """Notes which jobs are identical to which earlier ones: job -> the earlier one."""
        if repeats:
            query = update(jobs).where(jobs.c.id == bindparam("of")).values(repeats=bindparam("earlier"))
            self._connection.execute(query, [{"of": id_, "earlier": one} for id_, one in repeats.items()])

    def queue_all(self, held: Mapping[int, int]) -> None:
        """Queues new jobs, with so many CPU-seconds on hold for each."""
        query = update(jobs).where(jobs.c.id == bindparam("of"))
        query = query.values(state=JobState.QUEUED, held=bindparam("amount"))
        self._connection.execute(query, [{"of": id_, "amount": seconds} for id_, seconds in held.items()])

    def change(self, job: int, expected: JobState, **values: Any) -> Job | None:
        """Sets columns if the job is in the expected state; otherwise changes nothing and returns None."""
        row = self._connection.execute(
            update(jobs).where(jobs.c.id == job, jobs.c.state == expected).values(**values).returning(jobs)
        ).first()
        return _job(row) if row else None

    def hold(self, job: int, cpu_seconds: int) -> None:
        """Notes what is on hold for this job."""
        self._connection.execute(update(jobs).where(jobs.c.id == job).values(held=cpu_seconds))

    def settle(self, job: int, held: int, charged: int) -> bool:
        """Turns the job's hold into a charge; False if exactly this hold is not there (any more)."""
        changed = self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job, jobs.c.held == held)
            .values(held=0, cpu_seconds=jobs.c.cpu_seconds + charged)
        )
        return changed.rowcount == 1

    def correct(self, job: int, change: int) -> None:
        """Changes what it was charged."""
        self._connection.execute(
            update(jobs).where(jobs.c.id == job).values(cpu_seconds=jobs.c.cpu_seconds + change)
        )

    def tell(
        self,
        job: int,
        progress: JobProgress,
        metrics: Mapping[str, Quantity],
        artifacts: Iterable[Artifact],
    ) -> None:
        """What a running job has reported so far."""
        self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job, jobs.c.state == JobState.RUNNING)
            .values(
                progress=progress.model_dump(),
                metrics={name: value.model_dump() for name, value in metrics.items()},
                artifacts=[artifact.model_dump() for artifact in artifacts],
            )
        )


def _works_on(dataset: int) -> ColumnElement[bool]:
    # one set of ids, each found by an index: an OR would have the table read from its end
    first = select(jobs.c.id).where(jobs.c.dataset == dataset)
    others = select(job_datasets.c.job).where(job_datasets.c.dataset == dataset)
    return jobs.c.id.in_(first.union(others))


def _works_on_one_named(connection: Connection, name: str) -> ColumnElement[bool]:
    """Whether a job's first dataset, or another one of them, has this in its name."""
    named = containing(connection, name, datasets.c.name)
    first = exists().where(datasets.c.id == jobs.c.dataset, named)
    others = exists().where(job_datasets.c.job == jobs.c.id, job_datasets.c.dataset == datasets.c.id, named)
    return or_(first, others)


def _mutable(task: Task) -> tuple[JobState, str, datetime | None, str | None]:
    """What changes of a job that a runner has, apart from what it reports."""
    return task.job.state, task.job.reason, task.job.started, task.cancel_requested


def _new(draft: Draft) -> dict[str, Any]:
    return {
        **{one.name: getattr(draft, one.name) for one in dataclass_fields(draft)},
        "parameters": dict(draft.parameters),
        "inputs": [one.model_dump() for one in draft.inputs],
        "dataset": next(iter(draft.datasets), None),
        "profile": draft.profile.model_dump(),
        "state": JobState.PENDING,
        "reason": "",
        "created": datetime.now(UTC),
        "cpu_seconds": 0,
        "held": 0,
        "progress": JobProgress().model_dump(),
        "metrics": {},
        "artifacts": [],
    }


def _job(row: Row[Any]) -> Job:
    values = row._mapping
    return Job.model_validate({**values, "folder": f"processed/{values['id']}"})


def _task(row: Row[Any]) -> Task:
    return Task(_job(row), row.held, row.runner_ref, row.cancel_requested)
