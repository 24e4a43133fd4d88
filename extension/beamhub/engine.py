"""The engine: turns events into jobs, starts jobs when there is credit and room, and collects what they
report.

All that must not be forgotten is in the store. An engine that is killed at any moment and started again goes
on where the store says that things are: no event and no job is lost, and none is dealt with twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from beamhub import waiting
from beamhub.automation import Automation
from beamhub.credits import correct
from beamhub.errors import NotFound
from beamhub.events import Live
from beamhub.failures import last_words
from beamhub.inputs import located
from beamhub.jobfolder import JobFolder, News, Reader
from beamhub.jobs import Jobs
from beamhub.jobstate import SYSTEM, admit, change, remember
from beamhub.runners import Phase, Ref, Runner, Status, Unavailable
from beamhub.schemas import Event, Job, JobResult, JobSpec, JobState, RunnerState
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Task
from beamhub.text import one_line

log = logging.getLogger(__name__)

CURSOR = "triggers"  # how far the log has been read for trigger rules
BATCH = 100  # events read, or jobs handed to a runner with a queue of its own, at once
FAR = 1000  # events after which it is noted that they have been read, though no rule waits for any
ATTEMPTS = 3  # of a job that ends by no doing of its own
LOCAL = "local"  # the runner that is always there
AUDIT = 600.0  # seconds between two comparisons with what runners have in their accounts
AUDITED = timedelta(days=1)  # for so long accounts may change after an attempt is over
MANY = 1000  # attempts that are compared at once
CLOCK = 10.0  # seconds by which the machine's clock may disagree before it must have been set
PULSE = 0.25  # seconds between looks at running jobs
REST = 2.0  # seconds after which the engine looks even if nothing has been committed here
PAUSE = 0.05  # seconds at least between two looks
TIDY = 2.0  # seconds that a job has for tidying up behind its result, for nothing
TELL = 1.0  # seconds at least between two writes of the progress of a job


@dataclass
class Watch:
    """A job that runs, and what the engine keeps in mind of it."""

    folder: JobFolder
    instrument: str | None
    reader: Reader = field(default_factory=Reader)
    stopped: str = ""  # why the engine or the runner ended it
    alive: float = 0.0  # when this engine has seen it run last, monotonic; 0: it has not
    unwritten: bool = False  # there is news that is not in the store
    written: float = 0.0  # when news was last written, monotonic


class Engine:
    """Give it a task of its own: `asyncio.create_task(engine.run_forever())`; cancel that to stop. Jobs that
    run go on, and the next engine finds them."""

    def __init__(
        self, store: Store, live: Live, jobs: Jobs, runners: Mapping[str, Runner], data_dir: Path
    ) -> None:
        self._store = store
        self._live = live
        self._jobs = jobs
        self._automation = Automation(store, jobs)
        self._runners = dict(runners)
        self._data_dir = data_dir.absolute()
        self._seen = 0
        self._watches: dict[int, Watch] = {}
        self._standings: dict[str, waiting.Standing] = {}
        self._scheduled: dict[str, int] = {}  # the newest event when there was nothing left to be done
        self._look_again = dict.fromkeys(runners, 0.0)  # monotonic
        self._tasks: dict[str, dict[int, Task]] = {name: {} for name in runners}  # that a runner has
        self._unread = dict.fromkeys(runners, True)  # something was committed since these were read
        self._read_again = dict.fromkeys(runners, 0.0)  # monotonic
        self._poll_again = dict.fromkeys(runners, 0.0)  # monotonic; a runner without jobs may have to tidy up
        self._ending: dict[int, asyncio.Task[None]] = {}  # jobs whose results are being taken over
        self._own: set[int] = set()  # jobs that this engine has started, and not found by another's traces
        self._committed: list[asyncio.Event] = []  # something was; one for each who waits for that
        self._started = {name: asyncio.Event() for name in runners}
        self._loop: asyncio.AbstractEventLoop | None = None  # that it runs on
        store.on_commit(self._woken)
        self.warm = asyncio.Event()  # all has been done once that makes jobs start faster
        store.on_commit(lambda: self._unread.update(dict.fromkeys(self._unread, True)))

    async def run_forever(self) -> None:
        """May be called again when it has been stopped: another engine may have run jobs meanwhile."""
        self._own.clear()
        self._watches.clear()
        self._committed.clear()
        self._loop = asyncio.get_running_loop()
        try:
            await self._run()
        finally:
            ending = list(self._ending.values())
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(self.dispatch, self._wake(), REST))
            tasks.create_task(self._get_ready())
            for name, runner in self._runners.items():  # none waits for another
                runner.on_change(self._started[name].set)
                tasks.create_task(self._keep(partial(self.schedule, name), self._wake(), REST))
                tasks.create_task(self._keep(partial(self.audit, name), asyncio.Event(), AUDIT))
                tasks.create_task(self._keep(partial(self.collect, name), self._started[name], PULSE))

    def _woken(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            for committed in self._committed:
                self._loop.call_soon_threadsafe(committed.set)

    def _wake(self) -> asyncio.Event:
        self._committed.append(asyncio.Event())
        return self._committed[-1]

    async def _get_ready(self) -> None:
        """Does once what makes all jobs start faster, and then again and again what makes those start faster
        that are to be expected."""
        await asyncio.gather(*(runner.warm() for runner in self._runners.values()))
        self.warm.set()
        try:
            await self._keep(self.foresee, asyncio.Event(), REST)
        finally:
            await self._expect([])

    async def audit(self, name: str) -> None:
        """Corrects what attempts of the last day were charged, where the runner's accounts say otherwise by
        now."""
        since = datetime.now(UTC) - AUDITED
        ended = await self._store.read(lambda tx: tx.attempts.ended_since(since, name, MANY))
        # a runner that has lost its records may give a name again: it tells of the last that had it
        over = {(job, ref): (number, charged) for job, number, ref, charged in reversed(ended)}
        try:
            used = await self._runners[name].accounts([*over])
        except Unavailable:
            return
        for ((job, _), (number, charged)), now in zip(over.items(), used, strict=True):
            if now is not None and now != charged:
                await self._store.write(partial(correct, job_id=job, number=number, used=now, actor=SYSTEM))

    async def foresee(self) -> None:
        """Has the runners get ready for jobs of the experiments that are being measured."""
        active = await self._store.read(lambda tx: tx.instruments.active_experiments())
        await self._expect([self._data_dir / experiment for experiment in sorted(active)])

    async def _expect(self, experiments: Sequence[Path]) -> None:
        await asyncio.gather(*(runner.expect(experiments) for runner in self._runners.values()))

    async def runners(self) -> list[RunnerState]:
        """What there is for jobs now."""
        states = await asyncio.gather(*(runner.state() for runner in self._runners.values()))
        busy = await self._store.read(
            lambda tx: {name: tx.jobs.busy(name, live=False) for name in self._runners}
        )
        for n, (name, runner) in enumerate(self._runners.items()):
            if runner.cpus is not None:
                states[n] = states[n].model_copy(update={"free": max(runner.cpus - busy[name], 0)})
        return states

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
        """Follows the trigger rules on all events since the last one, and ends what has been gathered."""
        while True:
            events = await self._store.read(
                lambda tx: tx.events.after(max(self._seen, tx.cursors.get(CURSOR)), limit=BATCH)
            )
            await self.handle(*events)
            if events:
                self._seen = events[-1].id
            if len(events) < BATCH:
                break
        await self._automation.end_gatherings()

    async def handle(self, *events: Event) -> None:
        """Starts the jobs that events call for; any number of times has the effect of one."""

        def work(tx: Transaction) -> None:
            self._automation.follow(tx, awaited)
            tx.cursors.set(CURSOR, max(events[-1].id, tx.cursors.get(CURSOR)))

        awaited, known = await self._store.read(
            lambda tx: (self._automation.awaited(tx, events), tx.cursors.get(CURSOR))
        )
        if awaited or (events and events[-1].id - known >= FAR):
            await self._store.write(work)

    async def schedule(self, name: str = LOCAL) -> None:
        """Queues what can be paid for, and starts what there is room for, in their turn.

        Jobs that follow a growing dataset have the CPUs to themselves once more: they mostly wait for the
        detector, and what they show is of no use later. A runner with a queue of its own gets all at once."""
        runner = self._runners[name]
        head = await self._store.read(lambda tx: tx.events.head())
        now = time.monotonic()
        if self._scheduled.get(name) == head and now < self._look_again[name]:
            return  # whatever lets a job start is an event, but the end of a licence's time
        self._look_again[name] = now + waiting.VALIDITY
        await self._admit()
        await self._fail_stranded()
        done = True
        for live in (True, False):
            done &= await self._start_some(name, runner, live=live)
        if done:  # otherwise it is tried again at the next look
            self._scheduled[name] = head

    async def _start_some(self, name: str, runner: Runner, *, live: bool) -> bool:
        """Starts what there is room for; whether each could be started."""
        while True:
            queue, busy = await self._store.read(lambda tx: _queue(tx, name, live=live))
            free = math.inf if runner.cpus is None else runner.cpus - busy
            for job in queue:
                if job.profile.cpus > free:
                    return True  # nobody overtakes a larger job for ever
                if not await self._start(runner, job):
                    return False
                free -= job.profile.cpus
            if len(queue) < BATCH:
                return True

    async def _admit(self) -> None:
        """Queues the pending jobs that can be paid for now, and tells others what has changed for them."""
        pending, standings = await self._store.read(lambda tx: waiting.pending(tx, self._standings))
        for n in range(0, len(pending), BATCH):  # others have to write, too
            await self._store.write(partial(waiting.admit_pending, jobs=pending[n : n + BATCH]))
        self._standings = standings

    async def _fail_stranded(self) -> None:
        """Of runners that are gone from the configuration. What runs there goes on, and is found again when
        its runner is back; but whoever doesn't want it any more is heard."""
        for task in await self._store.read(lambda tx: tx.jobs.stranded(list(self._runners), limit=BATCH)):
            runner = task.job.profile.runner
            stopped = f"There is no runner {runner!r} here any more: choose another profile."
            actor, state, reason = outcome(task, stopped, None)
            await self._store.write(partial(change, job=task.job, state=state, actor=actor, reason=reason))

    async def _start(self, runner: Runner, job: Job) -> bool:
        try:
            ref = await self._prepare(runner, job)
        except Unavailable as error:
            await self._tell(job, str(error))
            return False
        except (OSError, NotFound) as error:
            reason = one_line(f"The job could not be started: {str(error).removesuffix('.')}.", 2000)
            await self._store.write(lambda tx: change(tx, job, JobState.FAILED, actor=SYSTEM, reason=reason))
            return False
        self._own.add(job.id)
        begins = runner.cpus is not None
        try:
            started = await self._store.write(lambda tx: remember(tx, job, ref, begins=begins))
        except BaseException:  # remembered or not, nobody would ever let it go
            self._own.discard(job.id)
            if begins:
                await runner.cancel(ref)
            raise
        if started is None:  # it has been cancelled meanwhile, or somebody else has started it
            await runner.cancel(ref)
            return False
        await asyncio.shield(runner.release(ref))
        self._started[job.profile.runner].set()
        return True

    async def _prepare(self, runner: Runner, job: Job) -> Ref:
        experiment = self._data_dir / job.experiment
        inputs, attempt = await self._store.read(
            lambda tx: (located(tx, job, experiment), tx.attempts.count(job.id))
        )
        folder = self._jobs.folder(job)
        spec = JobSpec(
            id=job.id,
            experiment=job.experiment,
            template=job.template,
            template_version=job.template_version,
            parameters=job.parameters,
            inputs=inputs,
            cpus=job.profile.cpus,
            memory=job.profile.memory,
            live=job.live,
            folder=str(folder.path),
            attempt=attempt,
        )

        await asyncio.to_thread(lambda: folder.lay(spec, self._jobs.plans.template(job)))
        return await runner.prepare(spec, job.profile, experiment)

    async def collect(self, name: str = LOCAL) -> None:
        """Looks after the jobs that a runner has: their reports, their limits, their ends."""
        runner = self._runners[name]
        if self._unread[name] or time.monotonic() >= self._read_again[name]:
            self._unread[name] = False
            self._read_again[name] = time.monotonic() + REST
            known = self._tasks[name]
            handed = await self._store.read(lambda tx: tx.jobs.handed_over(known))
            self._tasks[name] = {id_: one for id_, one in handed.items() if one.job.profile.runner == name}
        tasks = list(self._tasks[name].values())
        if not tasks and time.monotonic() < self._poll_again[name]:
            return
        self._poll_again[name] = time.monotonic() + REST
        asked = time.monotonic()
        statuses = await runner.poll([task.runner_ref or {} for task in tasks])
        going = [known for known in zip(tasks, statuses, strict=True) if known[0].job.id not in self._ending]
        watches = [await self._watch(task.job) for task, _ in going]
        news = await asyncio.to_thread(_news, [task for task, _ in going], watches)
        await asyncio.gather(
            *(
                self._attend(runner, task, status, watch, told, asked)
                for (task, status), watch, told in zip(going, watches, news, strict=True)
            )
        )
        await self._write_news([task.job.id for task, _ in going])

    async def _attend(
        self, runner: Runner, task: Task, status: Status, watch: Watch, news: News | None, asked: float
    ) -> None:
        job = task.job
        if news is not None:
            self._publish(job, watch, news)
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
            await self._bring_to_end(job, self._end(runner, task, status, watch))
            return
        if status.phase is Phase.RUNNING:
            watch.alive = asked
            watch.stopped = status.reason or watch.stopped
        await self._tell(job, "" if status.phase is Phase.RUNNING else status.reason)
        elapsed, _ = lasted(job, status)
        if elapsed > job.profile.walltime and runner.cpus is not None:  # others keep the time themselves
            watch.stopped = f"It reached its time limit of {duration(job.profile.walltime)}."
        if watch.stopped or task.cancel_requested:
            await runner.cancel(task.runner_ref or {})

    async def _tell(self, job: Job, reason: str) -> None:
        """Says what a job waits for, where that has changed."""
        reason = one_line(reason, 2000)
        if reason == job.reason:
            return
        told = await self._store.write(lambda tx: tx.jobs.change(job.id, job.state, reason=reason))
        if told is not None:
            watch = await self._watch(job)
            self._live.publish(
                "job.progress",
                experiment=job.experiment,
                instrument=watch.instrument,
                subject=str(job.id),
                data={"reason": reason},
            )

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

    async def _end(self, runner: Runner, task: Task, status: Status, watch: Watch) -> None:
        """The job's processes are gone: reads what they left, and settles."""
        job, folder, reader = task.job, watch.folder, watch.reader
        found = runner.cpus is not None and job.id not in self._own and not task.cancel_requested
        if found and not await asyncio.to_thread(folder.begun):
            # its engine died before it was let go: nothing has run, so it can be started as if for the first
            # time
            self._forget(job)
            await self._store.write(partial(_queue_again, job=job))
            return
        position = -1
        while position != reader.position:  # to the end of its report
            position = reader.position
            self._publish(job, watch, await asyncio.to_thread(folder.news, reader, thorough=True))
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
        progress = reader.progress
        if state is JobState.FINISHED:
            progress = progress.model_copy(update={"fraction": 1.0})
        metrics = result.metrics if result else reader.metrics
        artifacts = result.artifacts if result else [*reader.artifacts.values()]
        await self._store.write(
            lambda tx: change(
                tx,
                job,
                state,
                actor=actor,
                reason=reason,
                at=ended,
                used=used,
                attempt={
                    "host": one_line(result.host, 255) if result else "",
                    "exit_code": status.exit_code,
                    "cell": result.cell if result else None,
                },
                progress=progress.model_dump(),
                metrics={name: value.model_dump() for name, value in metrics.items()},
                artifacts=[artifact.model_dump() for artifact in artifacts],
                failure=failure.model_dump() if failure and state is JobState.FAILED else None,
            )
        )
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self._watches.pop(job.id, None)
        self._own.discard(job.id)

    def _publish(self, job: Job, watch: Watch, news: News) -> None:
        def publish(kind: str, data: dict[str, Any]) -> None:
            self._live.publish(
                kind, experiment=job.experiment, instrument=watch.instrument, subject=str(job.id), data=data
            )

        if news.told:
            watch.unwritten = True
            metrics = {name: value.model_dump() for name, value in news.metrics.items()}
            artifacts = [artifact.model_dump() for artifact in news.artifacts]
            publish(
                "job.progress", {**news.progress.model_dump(), "metrics": metrics, "artifacts": artifacts}
            )
        for name, page in news.series.items():
            publish("job.series", {"name": name, **page.model_dump()})

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
    elapsed, clock_was_set = lasted(job, status)
    if used is None and clock_was_set:
        since = (datetime.now(UTC) - ended).total_seconds()
        used = math.ceil(max(elapsed - since, 0.0) * job.profile.cpus)
    return ended, used


def lasted(job: Job, status: Status) -> tuple[float, bool]:
    """Seconds since the job has begun, and whether the machine's clock has been set meanwhile."""
    elapsed = (datetime.now(UTC) - job.started).total_seconds() if job.started else 0.0
    if status.elapsed is None or abs(elapsed - status.elapsed) < CLOCK:
        return elapsed, False
    return status.elapsed, True


def duration(seconds: int) -> str:
    """For a sentence: "1 h", "90 s"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _queue(tx: Transaction, runner: str, *, live: bool) -> tuple[Sequence[Job], int]:
    """The next jobs of a runner in their turn, and how many of its CPUs are taken."""
    active = tx.instruments.active_experiments()
    queue = tx.jobs.in_turn(JobState.QUEUED, active, runner=runner, live=live, limit=BATCH)
    return queue, tx.jobs.busy(runner, live=live)


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
