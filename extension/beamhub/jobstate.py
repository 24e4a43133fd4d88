"""A job's state: the only place that changes it.

pending (waits for credit) -> queued (credit is held) -> running -> finished, failed or cancelled. Every
change of state is made by `change`, or for many new jobs at once by `admit_all`, in one transaction with its
event and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pydantic import JsonValue

from beamhub import access
from beamhub.credits import hold, hold_all, settle, shortage
from beamhub.schemas import ExperimentState, Job, JobState
from beamhub.sponsors import refusal
from beamhub.store import Transaction

SYSTEM = access.SYSTEM.name
STEPS: Mapping[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.PENDING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED}),
    JobState.QUEUED: frozenset({JobState.PENDING, JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    # back to the queue only if it is certain that nothing has run; else by way of pending: another attempt
    JobState.RUNNING: frozenset(
        {JobState.PENDING, JobState.QUEUED, JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}
    ),
}


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
    tell(tx, f"job.{state}", changed, actor)
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
        return sure(change(tx, job, JobState.QUEUED, actor=job.launched_by))
    reason = why_pending(tx, job)
    if reason == job.reason:
        return job
    return sure(change(tx, job, JobState.PENDING, actor=SYSTEM, reason=reason))


def admit_all(tx: Transaction, jobs: Sequence[Job]) -> list[Job]:
    """As `admit`, for many new jobs at once."""
    admitted: list[Job] = []
    for sponsor in dict.fromkeys(job.sponsor for job in jobs):
        same = [job for job in jobs if job.sponsor == sponsor]
        if hold_all(tx, same):
            queued = [job.model_copy(update={"state": JobState.QUEUED}) for job in same]
            tell_all(tx, "job.queued", queued)
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


def barring(tx: Transaction) -> Callable[[Job], str]:
    """As `barred`, for many jobs: what is the same for several is asked once."""
    found: dict[tuple[str, ...], str] = {}

    def why(job: Job) -> str:
        of = job.sponsor, job.experiment, job.launched_by, job.notebook or job.template
        if of not in found:
            found[of] = barred(tx, job)
        return found[of]

    return why


def shut(tx: Transaction, job: Job) -> str:
    """Why nothing new starts in the job's experiment; "" if it does."""
    experiment = tx.experiments.get(job.experiment)
    if experiment is None or experiment.state is not ExperimentState.CLOSED:
        return ""
    return f"{experiment.id} is closed: the job can start when it is open again."


def tell(tx: Transaction, kind: str, job: Job, actor: str) -> None:
    tell_all(tx, kind, [job], actor)


def tell_all(tx: Transaction, kind: str, jobs: Sequence[Job], actor: str | None = None) -> None:
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
            "dataset": next((one.id for one in job.inputs if one.kind == "dataset"), None),
            "dataset_name": next((one.name for one in job.inputs), None),
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


def sure(job: Job | None) -> Job:
    """A change of a job that was read in the same transaction cannot have missed it."""
    if job is None:
        raise RuntimeError("a job changed its state in the middle of a transaction")
    return job
