"""Forecasts: what a job would cost and when it would be done, before it is started."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from beamhub import access, estimates
from beamhub.access import Action, Principal
from beamhub.credits import cost, shortage
from beamhub.estimates import Run
from beamhub.fingerprints import fingerprint
from beamhub.inputs import choose, datasets
from beamhub.jobs import Jobs, Wish
from beamhub.runners import Runner, Unavailable
from beamhub.schemas import Estimate, Job, JobCreate, JobRerun, JobState, Licence
from beamhub.sponsors import require_sponsor
from beamhub.store import Store, Transaction

LATEST = 60  # runs of a template
AHEAD = 1000  # jobs in the queue that are reckoned with


@dataclass(frozen=True)
class Facts:
    """What is known when a job is asked for."""

    instrument: str
    frames: int
    runs: Sequence[Run]
    running: Sequence[tuple[int, float]]  # CPUs, seconds left
    ahead: Sequence[tuple[int, float]]  # CPUs, seconds
    sponsor: Licence | None
    identical: Job | None


class Forecasts:
    def __init__(self, store: Store, jobs: Jobs, runners: Mapping[str, Runner]) -> None:
        self._store = store
        self._jobs = jobs
        self._runners = dict(runners)

    async def job(self, principal: Principal, experiment_id: str, request: JobCreate) -> Estimate:
        """Of a job that this request would make."""
        return await self._of(principal, await self._jobs.wish(principal, experiment_id, request))

    async def rerun(self, principal: Principal, job_id: int, request: JobRerun) -> Estimate:
        """Of the job that this request would make from another."""
        return await self._of(principal, await self._jobs.wish_again(principal, job_id, request))

    async def _of(self, principal: Principal, wish: Wish) -> Estimate:
        facts = await self._store.read(lambda tx: self._look(tx, principal, wish))
        template, profile = wish.plan.entry.template, wish.plan.profile
        duration = await asyncio.to_thread(
            estimates.predict, facts.runs, profile.cpus, facts.frames, template.scaling
        )
        starts, waits = await self._start(wish, facts)
        return Estimate(
            cpus=profile.cpus,
            frames=facts.frames,
            runs=len(facts.runs),
            duration=duration,
            cpu_hours=estimates.scaled(duration, profile.cpus / 3600) if duration else None,
            most_cpu_hours=cost(profile) / 3600,
            starts=starts,
            waits=waits,
            hint=estimates.hint(facts.runs, profile.cpus, template.scaling),
            identical=facts.identical.id if facts.identical else None,
        )

    def _look(self, tx: Transaction, principal: Principal, wish: Wish) -> Facts:
        experiment = access.require(tx, principal, wish.experiment, Action.RUN_JOB)
        template, profile = wish.plan.entry.template, wish.plan.profile
        inputs = choose(tx, experiment, template, wish.inputs)
        require_sponsor(tx, principal, experiment, template.notebook or template.name, wish.plan.sponsor)
        mark = fingerprint(tx, experiment, template, wish.plan.parameters, inputs)
        known: dict[str, Sequence[Run]] = {}

        def seconds(job: Job) -> float:
            if job.template not in known:
                known[job.template] = tx.jobs.runs(job.template, limit=LATEST)
            frames = _frames(tx, datasets(job.inputs))
            found = estimates.predict(known[job.template], job.profile.cpus, frames)
            return min(found.likely, job.profile.walltime) if found else job.profile.walltime

        now = datetime.now(UTC)
        running = [
            task.job
            for task in tx.jobs.tasks([JobState.RUNNING])
            if task.job.profile.runner == profile.runner and task.job.live is template.live
        ]
        queue = tx.jobs.in_turn(
            JobState.QUEUED,
            tx.instruments.active_experiments(),
            runner=profile.runner,
            live=template.live,
            limit=AHEAD,
        )
        return Facts(
            instrument=experiment.instrument,
            frames=_frames(tx, datasets(inputs)),
            runs=tx.jobs.runs(template.name, limit=LATEST),
            running=[
                (job.profile.cpus, seconds(job) - (now - (job.started or now)).total_seconds())
                for job in running
            ],
            ahead=[(job.profile.cpus, seconds(job)) for job in queue if job.priority >= 0],
            sponsor=tx.licences.get(wish.plan.sponsor),
            identical=tx.jobs.identical(experiment.id, mark) if mark else None,
        )

    async def _start(self, wish: Wish, facts: Facts) -> tuple[datetime | None, str]:
        """When it starts, and what it waits for."""
        profile = wish.plan.profile
        short = shortage(facts.sponsor, profile) if facts.sponsor else ""
        if short:
            return None, short
        runner = self._runners.get(profile.runner)
        if runner is None:
            return None, f"There is no runner {profile.runner!r} here any more: choose another profile."
        now = datetime.now(UTC)
        if runner.cpus is None:
            try:
                starts = await runner.estimate(profile, facts.instrument)
            except (Unavailable, OSError) as error:
                return None, str(error)
            return starts, "" if starts and starts <= now else "Waits for its turn in the cluster's queue."
        free = runner.cpus - sum(cpus for cpus, _ in facts.running)
        seconds = estimates.wait(free, facts.running, facts.ahead, profile.cpus)
        if seconds == 0:
            return now, ""
        ahead = (
            f"behind {_jobs(len(facts.ahead))}" if facts.ahead else f"for {_jobs(len(facts.running))} to end"
        )
        waits = f"Waits {ahead}: {max(free, 0)} of {runner.cpus} CPUs are free."
        return (now + timedelta(seconds=seconds) if math.isfinite(seconds) else None), waits


def _frames(tx: Transaction, ids: Sequence[int]) -> int:
    found = (tx.datasets.get(id_) for id_ in ids)
    return sum(dataset.frames_readable for dataset in found if dataset)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
