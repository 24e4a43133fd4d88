"""The engine: turns events into jobs, starts jobs when there is credit and room, and has collectors look
after those that run.

All that must not be forgotten is in the store. An engine that is killed at any moment and started again goes
on where the store says that things are: no event and no job is lost, and none is dealt with twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from beamhub import waiting
from beamhub.automation import Automation
from beamhub.collector import PULSE, REST, Collector, outcome
from beamhub.credits import correct
from beamhub.errors import NotFound
from beamhub.events import Live
from beamhub.inputs import located
from beamhub.jobs import Jobs
from beamhub.jobstate import SYSTEM, change, remember
from beamhub.runners import Ref, Runner, Unavailable
from beamhub.schemas import Event, Job, JobSpec, JobState, RunnerState
from beamhub.store import Store, Transaction
from beamhub.text import one_line

log = logging.getLogger(__name__)

CURSOR = "triggers"  # how far the log has been read for trigger rules
BATCH = 100  # events read, or jobs handed to a runner with a queue of its own, at once
FAR = 1000  # events after which it is noted that they have been read, though no rule waits for any
LOCAL = "local"  # the runner that is always there
AUDIT = 600.0  # seconds between two comparisons with what runners have in their accounts
AUDITED = timedelta(days=1)  # for so long accounts may change after an attempt is over
MANY = 1000  # attempts that are compared at once
PAUSE = 0.05  # seconds at least between two looks


class Engine:
    """Give it a task of its own: `asyncio.create_task(engine.run_forever())`; cancel that to stop. Jobs that
    run go on, and the next engine finds them."""

    def __init__(
        self, store: Store, live: Live, jobs: Jobs, runners: Mapping[str, Runner], data_dir: Path
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._automation = Automation(store, jobs)
        self._runners = dict(runners)
        self.collectors = {name: Collector(name, one, store, live, jobs) for name, one in runners.items()}
        self._data_dir = data_dir.absolute()
        self._seen = 0
        self._standings: dict[str, waiting.Standing] = {}
        self._scheduled: dict[str, int] = {}  # the newest event when there was nothing left to be done
        self._look_again = dict.fromkeys(runners, 0.0)  # monotonic
        self._committed: list[asyncio.Event] = []  # something was; one for each who waits for that
        self._loop: asyncio.AbstractEventLoop | None = None  # that it runs on
        store.on_commit(self._woken)
        self.warm = asyncio.Event()  # all has been done once that makes jobs start faster

    async def run_forever(self) -> None:
        """May be called again when it has been stopped: another engine may have run jobs meanwhile."""
        for collector in self.collectors.values():
            collector.begin_anew()
        self._committed.clear()
        self._loop = asyncio.get_running_loop()
        try:
            await self._run()
        finally:
            await asyncio.gather(*(collector.stop() for collector in self.collectors.values()))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep(self.dispatch, self._wake(), REST))
            tasks.create_task(self._get_ready())
            for name, runner in self._runners.items():  # none waits for another
                collector = self.collectors[name]
                runner.on_change(collector.called.set)
                tasks.create_task(self._keep(partial(self.schedule, name), self._wake(), REST))
                tasks.create_task(self._keep(partial(self.audit, name), asyncio.Event(), AUDIT))
                tasks.create_task(self._keep(collector.collect, collector.called, PULSE))

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
        try:
            used = await self._runners[name].accounts([(job, ref) for job, _, ref, _ in ended])
        except Unavailable:
            return
        for (job, number, _, charged), now in zip(ended, used, strict=True):
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
        collector = self.collectors[job.profile.runner]
        try:
            ref = await self._prepare(runner, job)
        except Unavailable as error:
            await collector.tell(job, str(error))
            return False
        except (OSError, NotFound) as error:
            reason = one_line(f"The job could not be started: {str(error).removesuffix('.')}.", 2000)
            await self._store.write(lambda tx: change(tx, job, JobState.FAILED, actor=SYSTEM, reason=reason))
            return False
        collector.own.add(job.id)
        begins = runner.cpus is not None
        try:
            started = await self._store.write(lambda tx: remember(tx, job, ref, begins=begins))
        except BaseException:  # remembered or not, nobody would ever let it go
            collector.own.discard(job.id)
            if begins:
                await runner.cancel(ref)
            raise
        if started is None:  # it has been cancelled meanwhile, or somebody else has started it
            await runner.cancel(ref)
            return False
        await asyncio.shield(runner.release(ref))
        collector.called.set()
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


def _queue(tx: Transaction, runner: str, *, live: bool) -> tuple[Sequence[Job], int]:
    """The next jobs of a runner in their turn, and how many of its CPUs are taken."""
    active = tx.instruments.active_experiments()
    queue = tx.jobs.in_turn(JobState.QUEUED, active, runner=runner, live=live, limit=BATCH)
    return queue, tx.jobs.busy(runner, live=live)
