"""The engine: turns events into jobs, starts jobs when there is credit and room, and collects what they
report.

All that must not be forgotten is in the store. An engine that is killed at any moment and started again goes
on where the store says that things are: no event and no job is lost, and none is dealt with twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beamhub.events import Live
from beamhub.jobfolder import JobFolder, News, Reader
from beamhub.jobs import SYSTEM, Jobs, admit, change, why_pending
from beamhub.runners import Ref, Runner, Status
from beamhub.schemas import Event, Job, JobResult, JobSpec, JobState, TriggerEvent
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Task
from beamhub.text import one_line

log = logging.getLogger(__name__)

CURSOR = "triggers"  # how far the log has been read for trigger rules
BATCH = 100  # events read at once
PULSE = 0.25  # seconds between looks at running jobs
REST = 2.0  # seconds after which the engine looks even if nothing has been committed here
PAUSE = 0.05  # seconds at least between two looks
TELL = 1.0  # seconds at least between two writes of the progress of a job


@dataclass
class Watch:
    """A job that runs, and what the engine keeps in mind of it."""

    folder: JobFolder
    instrument: str | None
    reader: Reader = field(default_factory=Reader)
    stopped: str = ""  # why the engine or the runner ended it
    unwritten: bool = False  # there is news that is not in the store
    written: float = 0.0  # when news was last written, monotonic


class Engine:
    """Give it a task of its own: `asyncio.create_task(engine.run_forever())`; cancel that to stop. Jobs that
    run go on, and the next engine finds them."""

    def __init__(self, store: Store, live: Live, jobs: Jobs, runner: Runner, data_dir: Path) -> None:
        self._store = store
        self._live = live
        self._jobs = jobs
        self._runner = runner
        self._data_dir = data_dir.absolute()
        self._seen = 0
        self._watches: dict[int, Watch] = {}
        self._adopted: set[int] | None = None  # jobs that ran already when this engine began
        self._committed = (asyncio.Event(), asyncio.Event())  # something was; one for each who waits for that
        self._started = asyncio.Event()
        self.warm = asyncio.Event()  # all has been done once that makes jobs start faster

    async def run_forever(self) -> None:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                for committed in self._committed:
                    loop.call_soon_threadsafe(committed.set)

        self._store.on_commit(wake)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._warm())
            tasks.create_task(self._keep(self.dispatch, self._committed[0], REST))
            tasks.create_task(self._keep(self.schedule, self._committed[1], REST))
            tasks.create_task(self._keep(self.collect, self._started, PULSE))

    async def _warm(self) -> None:
        await self._runner.warm()
        self.warm.set()

    async def _keep(self, step: Callable[[], Awaitable[object]], wake: asyncio.Event, rest: float) -> None:
        """Does a step again and again: after each wake, and after `rest` seconds anyway."""
        while True:
            wake.clear()
            try:
                await step()
            except Exception:  # a full disk, a database that restarts: the next look may succeed
                log.exception("the engine stumbled and goes on")
                await asyncio.sleep(REST)
            await asyncio.sleep(PAUSE)
            try:
                async with asyncio.timeout(rest):
                    await wake.wait()
            except TimeoutError:
                continue

    async def dispatch(self) -> None:
        """Follows the trigger rules on all events since the last one."""
        while True:
            events = await self._store.read(
                lambda tx: tx.events.after(max(self._seen, tx.cursors.get(CURSOR)), limit=BATCH)
            )
            for event in events:
                if event.kind in set(TriggerEvent):
                    await self.handle(event)
                self._seen = event.id
            if len(events) < BATCH:
                return

    async def handle(self, event: Event) -> None:
        """Starts the jobs that an event calls for; any number of times has the effect of one."""

        def work(tx: Transaction) -> None:
            self._jobs.trigger(tx, event)
            tx.cursors.set(CURSOR, max(event.id, tx.cursors.get(CURSOR)))

        await self._store.write(work)

    async def schedule(self) -> None:
        """Queues what can be paid for, and starts what there is room for: automatic jobs first, because
        somebody at the beamline waits for them, and the oldest first.

        Jobs that follow a growing dataset have the CPUs to themselves once more: they mostly wait for the
        detector, and what they show is of no use later."""
        pending, queued, running = await self._store.read(_waiting)
        if pending:
            await self._store.write(lambda tx: _admit_all(tx, pending))
            _, queued, running = await self._store.read(_waiting)
        queued.sort(key=lambda job: (not job.launched_by.startswith("trigger:"), job.id))
        for live in (True, False):
            free = self._runner.cpus - sum(job.profile.cpus for job in running if job.live is live)
            for job in queued:
                if job.live is not live:
                    continue
                if job.profile.cpus > free:
                    break  # nobody overtakes a larger job for ever
                if await self._start(job):
                    free -= job.profile.cpus

    async def _start(self, job: Job) -> bool:
        try:
            ref = await self._prepare(job)
        except OSError as error:
            reason = one_line(f"The job could not be started: {error}.", 2000)
            await self._store.write(lambda tx: change(tx, job, JobState.FAILED, actor=SYSTEM, reason=reason))
            return False
        started = await self._store.write(
            lambda tx: change(tx, job, JobState.RUNNING, actor=SYSTEM, runner_ref=ref)
        )
        if started is None:  # it has been cancelled meanwhile
            await asyncio.to_thread(self._runner.cancel, ref)
            return False
        await asyncio.to_thread(self._runner.release, ref)
        self._started.set()
        return True

    async def _prepare(self, job: Job) -> Ref:
        dataset = await self._store.read(lambda tx: tx.datasets.get(job.inputs[0].id))
        if dataset is None:
            raise FileNotFoundError(f"its dataset {job.inputs[0].id} is not known")
        experiment = self._data_dir / job.experiment
        folder = self._jobs.folder(job)
        spec = JobSpec(
            id=job.id,
            experiment=job.experiment,
            template=job.template,
            template_version=job.template_version,
            parameters=job.parameters,
            data=str(experiment / dataset.path),
            cpus=job.profile.cpus,
            live=job.live,
            folder=str(folder.path),
        )

        def work() -> Ref:
            folder.lay(spec, self._jobs.template(job))
            return self._runner.prepare(spec, job.profile, experiment)

        return await asyncio.to_thread(work)

    async def collect(self) -> None:
        """Looks after the jobs that run: their reports, their limits, their ends."""
        tasks = await self._store.read(lambda tx: tx.jobs.tasks([JobState.RUNNING]))
        if self._adopted is None:
            self._adopted = {task.job.id for task in tasks}
        refs = [task.runner_ref or {} for task in tasks]
        statuses = await asyncio.to_thread(self._runner.poll, refs) if tasks else []
        await asyncio.gather(*map(self._attend, tasks, statuses))
        await self._write_news()

    async def _attend(self, task: Task, status: Status) -> None:
        job = task.job
        watch = await self._watch(job)
        self._publish(job, watch, await asyncio.to_thread(watch.folder.news, watch.reader))
        if not status.alive:
            await self._end(task, watch)
            return
        if status.reason:
            watch.stopped = status.reason
        if job.started and (datetime.now(UTC) - job.started).total_seconds() > job.profile.walltime:
            watch.stopped = f"It reached its time limit of {duration(job.profile.walltime)}."
        if watch.stopped or task.cancel_requested:
            await asyncio.to_thread(self._runner.cancel, task.runner_ref or {})

    async def _watch(self, job: Job) -> Watch:
        if job.id not in self._watches:
            experiment = await self._store.read(lambda tx: tx.experiments.get(job.experiment))
            instrument = experiment.instrument if experiment else None
            self._watches[job.id] = Watch(self._jobs.folder(job), instrument)
        return self._watches[job.id]

    async def _end(self, task: Task, watch: Watch) -> None:
        """The job's processes are gone: reads what they left, and settles."""
        job, folder, reader = task.job, watch.folder, watch.reader
        adopted = job.id in (self._adopted or ()) and not task.cancel_requested
        if adopted and not await asyncio.to_thread(folder.begun):
            # its engine died before it was let go: nothing has run, so it can be started as if for the first
            # time
            self._forget(job)
            await self._store.write(lambda tx: change(tx, job, JobState.QUEUED, actor=SYSTEM))
            return
        position = -1
        while position != reader.position:  # to the end of its report
            position = reader.position
            self._publish(job, watch, await asyncio.to_thread(folder.news, reader))
        result = await asyncio.to_thread(folder.result)
        ended = await asyncio.to_thread(folder.ended)
        await asyncio.to_thread(folder.seal)
        actor, state, reason = outcome(task, watch.stopped, result)
        progress = reader.progress
        if state is JobState.FINISHED:
            progress = progress.model_copy(update={"fraction": 1.0})
        metrics = result.metrics if result else reader.metrics
        artifacts = result.artifacts if result else []
        await self._store.write(
            lambda tx: change(
                tx,
                job,
                state,
                actor=actor,
                reason=reason,
                at=ended,
                progress=progress.model_dump(),
                metrics={name: value.model_dump() for name, value in metrics.items()},
                artifacts=[artifact.model_dump() for artifact in artifacts],
            )
        )
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self._watches.pop(job.id, None)
        if self._adopted:
            self._adopted.discard(job.id)

    def _publish(self, job: Job, watch: Watch, news: News) -> None:
        def publish(kind: str, data: dict[str, Any]) -> None:
            self._live.publish(
                kind, experiment=job.experiment, instrument=watch.instrument, subject=str(job.id), data=data
            )

        if news.told:
            watch.unwritten = True
            metrics = {name: value.model_dump() for name, value in news.metrics.items()}
            publish("job.progress", {**news.progress.model_dump(), "metrics": metrics})
        for name, page in news.series.items():
            publish("job.series", {"name": name, **page.model_dump()})

    async def _write_news(self) -> None:
        now = time.monotonic()
        due = {
            job: watch
            for job, watch in self._watches.items()
            if watch.unwritten and now - watch.written >= TELL
        }

        def work(tx: Transaction) -> None:
            for job, watch in due.items():
                tx.jobs.tell(job, watch.reader.progress, watch.reader.metrics)

        if due:
            await self._store.write(work)
        for watch in due.values():
            watch.unwritten, watch.written = False, now


def outcome(task: Task, stopped: str, result: JobResult | None) -> tuple[str, JobState, str]:
    """Whose doing the end of a job was, the state it ends in, and why. A result that was there before the job
    was ended counts."""
    if result is not None:
        return SYSTEM, JobState(result.outcome), result.reason if result.outcome == "failed" else ""
    if task.cancel_requested:
        actor, _, reason = task.cancel_requested.partition("\n")
        return actor, JobState.CANCELLED, reason
    reason = stopped or "Its processes ended without a result: the end of its log may tell why."
    return SYSTEM, JobState.FAILED, reason


def duration(seconds: int) -> str:
    """For a sentence: "1 h", "90 s"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _waiting(tx: Transaction) -> tuple[list[Job], list[Job], list[Job]]:
    """The pending jobs that something can be done about, those queued, those running."""
    jobs = [task.job for task in tx.jobs.tasks([JobState.PENDING, JobState.QUEUED, JobState.RUNNING])]
    pending = [job for job in jobs if job.state is JobState.PENDING and why_pending(tx, job) != job.reason]
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    return pending, queued, [job for job in jobs if job.state is JobState.RUNNING]


def _admit_all(tx: Transaction, pending: Sequence[Job]) -> None:
    for job in pending:
        now = tx.jobs.get(job.id)
        if now is not None and now.state is JobState.PENDING:  # not cancelled meanwhile
            admit(tx, now)
