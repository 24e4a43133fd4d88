"""What becomes of the jobs that a runner has: what they report, their limits, their ends.

All that must not be forgotten of a job is in the store, with its runner and in its folder: a collector that
begins anew finds it there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from beamhub.events import Live
from beamhub.failures import last_words
from beamhub.jobfolder import JobFolder, News, Reader
from beamhub.jobs import Jobs
from beamhub.jobstate import SYSTEM, admit, change
from beamhub.runners import Phase, Runner, Status
from beamhub.schemas import Job, JobResult, JobState
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Task
from beamhub.text import duration, one_line

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a job that ends by no doing of its own
CLOCK = 10.0  # seconds by which the machine's clock may disagree before it must have been set
PULSE = 0.25  # seconds between looks at running jobs
REST = 2.0  # seconds after which one looks even if nothing has been committed here
TIDY = 2.0  # seconds that a job has for tidying up behind its result, for nothing
TELL = 1.0  # seconds at least between two writes of the progress of a job


@dataclass
class Watch:
    """A job that runs, and what its collector keeps in mind of it."""

    folder: JobFolder
    instrument: str | None
    reader: Reader = field(default_factory=Reader)
    stopped: str = ""  # why the collector or the runner ended it
    alive: float = 0.0  # when this collector has seen it run last, monotonic; 0: it has not
    unwritten: bool = False  # there is news that is not in the store
    written: float = 0.0  # when news was last written, monotonic


class Collector:
    """Looks after the jobs of one runner, from when it has them until they have been settled."""

    def __init__(self, name: str, runner: Runner, store: Store, live: Live, jobs: Jobs) -> None:
        self._name = name
        self._runner = runner
        self._store = store
        self._live = live
        self._jobs = jobs
        self._tasks: dict[int, Task] = {}  # that the runner has
        self._unread = True  # something was committed since these were read
        self._read_again = 0.0  # monotonic
        self._poll_again = 0.0  # monotonic; a runner without jobs may have to tidy up
        self._watches: dict[int, Watch] = {}
        self._ending: dict[int, asyncio.Task[None]] = {}  # jobs whose results are being taken over
        self.own: set[int] = set()  # jobs that were started here, and not found by another's traces
        self.called = asyncio.Event()  # there may be something new to collect
        store.on_commit(self._committed)

    def _committed(self) -> None:
        self._unread = True

    def begin_anew(self) -> None:
        """Others may have looked after the jobs meanwhile."""
        self.own.clear()
        self._watches.clear()

    async def stop(self) -> None:
        """Ends what goes on by itself."""
        ending = list(self._ending.values())
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def collect(self) -> None:
        """Looks once at all of them."""
        if self._unread or time.monotonic() >= self._read_again:
            self._unread = False
            self._read_again = time.monotonic() + REST
            handed = await self._store.read(lambda tx: tx.jobs.handed_over(self._tasks))
            self._tasks = {id_: one for id_, one in handed.items() if one.job.profile.runner == self._name}
        tasks = list(self._tasks.values())
        if not tasks and time.monotonic() < self._poll_again:
            return
        self._poll_again = time.monotonic() + REST
        asked = time.monotonic()
        statuses = await self._runner.poll([task.runner_ref or {} for task in tasks])
        going = [known for known in zip(tasks, statuses, strict=True) if known[0].job.id not in self._ending]
        watches = [await self._watch(task.job) for task, _ in going]
        news = await asyncio.to_thread(_news, [task for task, _ in going], watches)
        await asyncio.gather(
            *(
                self._attend(task, status, watch, told, asked)
                for (task, status), watch, told in zip(going, watches, news, strict=True)
            )
        )
        await self._write_news([task.job.id for task, _ in going])

    async def _attend(
        self, task: Task, status: Status, watch: Watch, news: News | None, asked: float
    ) -> None:
        job = task.job
        if news is not None:
            self._publish_news(job, watch, news)
        began = status.started
        if began is None and status.phase is Phase.GONE:  # the runner does not know
            began = await asyncio.to_thread(watch.folder.started)
        if job.state is JobState.QUEUED and status.phase in (Phase.RUNNING, Phase.GONE) and began is not None:
            running = await self._store.write(
                lambda tx: change(tx, job, JobState.RUNNING, actor=SYSTEM, at=began)
            )
            if running is None:
                return
            job = running
            task = replace(task, job=job)
        if status.phase is Phase.GONE:
            await self._bring_to_end(job, self._end(task, status, watch))
            return
        if status.phase is Phase.RUNNING:
            watch.alive = asked
            watch.stopped = status.reason or watch.stopped
        await self.tell(job, "" if status.phase is Phase.RUNNING else status.reason)
        elapsed, _ = _lasted(job, status)
        # a runner with a queue of its own keeps the time itself
        if elapsed > job.profile.walltime and self._runner.cpus is not None:
            watch.stopped = f"It reached its time limit of {duration(job.profile.walltime)}."
        if watch.stopped or task.cancel_requested:
            await self._runner.cancel(task.runner_ref or {})

    async def tell(self, job: Job, reason: str) -> None:
        """Says what a job waits for, where that has changed."""
        reason = one_line(reason, 2000)
        if reason == job.reason:
            return
        told = await self._store.write(lambda tx: tx.jobs.change(job.id, job.state, reason=reason))
        if told is not None:
            self._publish(job, await self._watch(job), "job.progress", {"reason": reason})

    async def _watch(self, job: Job) -> Watch:
        if job.id not in self._watches:
            experiment = await self._store.read(lambda tx: tx.experiments.get(job.experiment))
            instrument = experiment.instrument if experiment else None
            declared = await asyncio.to_thread(self._jobs.plans.declared, job)
            self._watches[job.id] = Watch(self._jobs.folder(job), instrument, Reader(declared))
        return self._watches[job.id]

    async def _bring_to_end(self, job: Job, end: Coroutine[Any, Any, None]) -> None:
        """Where that takes long, as with large artifacts, it goes on by itself: other jobs have limits to be
        kept and results to be shown meanwhile."""

        def ended(ending: asyncio.Task[None]) -> None:
            del self._ending[job.id]
            if not waited and not ending.cancelled() and (error := ending.exception()) is not None:
                log.error("job %d could not be brought to its end, and will be", job.id, exc_info=error)

        waited = True
        ending = self._ending[job.id] = asyncio.create_task(end)
        ending.add_done_callback(ended)
        await asyncio.wait([ending], timeout=PULSE)
        waited = ending.done()
        if waited:
            await ending

    async def _end(self, task: Task, status: Status, watch: Watch) -> None:
        """The job's processes are gone: reads what they left, and settles."""
        job, folder, reader = task.job, watch.folder, watch.reader
        if await self._never_let_go(task, folder):
            self._forget(job)
            await self._store.write(partial(_queue_again, job=job))
            return
        await self._read_to_the_end(job, watch)
        result = await asyncio.to_thread(folder.result, reader.declared)
        ended, used = await asyncio.to_thread(_settled, job, status, watch, result)
        if result is None and status.again and not task.cancel_requested and not watch.stopped:
            attempts = await self._store.read(lambda tx: tx.attempts.count(job.id))
            if attempts < ATTEMPTS:
                self._forget(job)
                await self._store.write(lambda tx: _try_again(tx, job, status, ended, used))
                return
            watch.stopped = f"{status.reason} It was started {attempts} times, and is not started again."
        await asyncio.to_thread(folder.seal)
        failure = None
        if result is None or result.outcome == "failed":
            failure = await asyncio.to_thread(folder.failure, result.cell if result else None)
        stopped = watch.stopped or status.reason or (last_words(failure.log) if failure else "")
        actor, state, reason = outcome(task, stopped, result)
        attempt = {
            "host": one_line(result.host, 255) if result else "",
            "exit_code": status.exit_code,
            "cell": result.cell if result else None,
        }
        told = _told(reader, result, state)
        told["failure"] = failure.model_dump() if failure and state is JobState.FAILED else None
        await self._store.write(
            lambda tx: change(
                tx, job, state, actor=actor, reason=reason, at=ended, used=used, attempt=attempt, **told
            )
        )
        self._forget(job)

    async def _never_let_go(self, task: Task, folder: JobFolder) -> bool:
        """Whether the service died between preparing the job and that: nothing has run, so it can be started
        as if for the first time."""
        found = self._runner.cpus is not None and task.job.id not in self.own and not task.cancel_requested
        return found and not await asyncio.to_thread(folder.begun)

    async def _read_to_the_end(self, job: Job, watch: Watch) -> None:
        position = -1
        while position != watch.reader.position:
            position = watch.reader.position
            news = await asyncio.to_thread(watch.folder.news, watch.reader, thorough=True)
            self._publish_news(job, watch, news)

    def _forget(self, job: Job) -> None:
        self._watches.pop(job.id, None)
        self.own.discard(job.id)

    def _publish(self, job: Job, watch: Watch, kind: str, data: dict[str, Any]) -> None:
        self._live.publish(
            kind, experiment=job.experiment, instrument=watch.instrument, subject=str(job.id), data=data
        )

    def _publish_news(self, job: Job, watch: Watch, news: News) -> None:
        if news.told:
            watch.unwritten = True
            metrics = {name: value.model_dump() for name, value in news.metrics.items()}
            artifacts = [artifact.model_dump() for artifact in news.artifacts]
            progress = {**news.progress.model_dump(), "metrics": metrics, "artifacts": artifacts}
            self._publish(job, watch, "job.progress", progress)
        for name, page in news.series.items():
            self._publish(job, watch, "job.series", {"name": name, **page.model_dump()})

    async def _write_news(self, jobs: Sequence[int]) -> None:
        now = time.monotonic()
        due = {
            job: watch
            for job in jobs
            if (watch := self._watches.get(job)) and watch.unwritten and now - watch.written >= TELL
        }

        def work(tx: Transaction) -> None:
            for job, watch in due.items():
                reader = watch.reader
                tx.jobs.tell(job, reader.progress, reader.metrics, reader.artifacts.values())

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


def _told(reader: Reader, result: JobResult | None, state: JobState) -> dict[str, Any]:
    """What the job has reported, as the store keeps it: its result, or what it got to tell before."""
    progress = reader.progress
    if state is JobState.FINISHED:
        progress = progress.model_copy(update={"fraction": 1.0})
    metrics = result.metrics if result else reader.metrics
    artifacts = result.artifacts if result else reader.artifacts.values()
    return {
        "progress": progress.model_dump(),
        "metrics": {name: value.model_dump() for name, value in metrics.items()},
        "artifacts": [artifact.model_dump() for artifact in artifacts],
    }


def _settled(job: Job, status: Status, watch: Watch, result: JobResult | None) -> tuple[datetime, int | None]:
    """When an attempt was over, and the CPU-seconds that it has used, if they are not those between its
    beginning and that. Reads the job's folder."""
    # one whose end nobody saw has cost no more than it can have used
    told = watch.folder.ended if result or watch.alive else watch.folder.last_sign
    ended = status.ended or told()
    if status.ended is None and watch.alive:
        seen = datetime.now(UTC) - timedelta(seconds=time.monotonic() - watch.alive)
        if seen > ended + timedelta(seconds=TIDY):  # whoever wants to pay less may write a result early
            ended = seen
    used = status.cpu_seconds
    elapsed, clock_was_set = _lasted(job, status)
    if used is None and clock_was_set:
        since = (datetime.now(UTC) - ended).total_seconds()
        used = math.ceil(max(elapsed - since, 0.0) * job.profile.cpus)
    return ended, used


def _lasted(job: Job, status: Status) -> tuple[float, bool]:
    """Seconds since the job has begun, and whether the machine's clock has been set meanwhile."""
    elapsed = (datetime.now(UTC) - job.started).total_seconds() if job.started else 0.0
    if status.elapsed is None or abs(elapsed - status.elapsed) < CLOCK:
        return elapsed, False
    return status.elapsed, True


def _news(tasks: Sequence[Task], watches: Sequence[Watch]) -> list[News | None]:
    """What those that run have reported."""
    running = (task.job.state is JobState.RUNNING for task in tasks)
    return [
        watch.folder.news(watch.reader) if runs else None
        for runs, watch in zip(running, watches, strict=True)
    ]


def _try_again(tx: Transaction, job: Job, status: Status, ended: datetime, used: int | None) -> None:
    """Another attempt for a job that ended by no doing of its own. Each is paid for as it was used."""
    over = change(
        tx,
        job,
        JobState.PENDING,
        actor=SYSTEM,
        reason=f"{status.reason} It is started again.",
        at=ended,
        used=used,
        attempt={"exit_code": status.exit_code},
    )
    if (again := _unless_cancelled(tx, over)) is not None:
        admit(tx, again)


def _queue_again(tx: Transaction, job: Job) -> None:
    _unless_cancelled(tx, change(tx, job, JobState.QUEUED, actor=SYSTEM))


def _unless_cancelled(tx: Transaction, job: Job | None) -> Job | None:
    """The job, which is to be started again; None if somebody has cancelled it since its runner was asked,
    for then it ends with that."""
    task = tx.jobs.task(job.id) if job is not None else None
    if job is None or task is None or task.cancel_requested is None:
        return job
    actor, _, reason = task.cancel_requested.partition("\n")
    change(tx, job, JobState.CANCELLED, actor=actor, reason=reason)
    return None
