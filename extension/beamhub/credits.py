"""Credits: how jobs are paid for. CPU-hours are CPUs x runtime, nothing else; all amounts are integer
CPU-seconds.

An attempt of a job is paid for in two steps. Before it is queued, all that it may use at most is put on hold;
when it ends, what it did use is charged and the rest released. Each step happens at most once per attempt,
and each is a line of the ledger, so that at any moment the lines add up to the licence: granted = grants -
what expired of them, charged = charges + corrections, held = holds - charges - releases.

What is available never falls below 0. What is on hold does not expire before it is released. A correction
charges at most what is available, and never more than was on hold for the attempt: the facility bears the
rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from beamhub import access, sponsors
from beamhub.errors import Conflict, NotFound
from beamhub.events import emit
from beamhub.schemas import Job, LedgerKind, Licence, Profile
from beamhub.store import Transaction

SHARE = 10  # a licence is low when at most one part in so many of what was granted is left
SYSTEM = access.SYSTEM.name


def cost(profile: Profile) -> int:
    """The CPU-seconds that a job of this profile uses at most."""
    return profile.cpus * profile.walltime


def hold(tx: Transaction, job: Job, *, actor: str) -> bool:
    """Puts what the job may use on hold, which begins an attempt; False, and nothing changed, if its sponsor
    cannot pay that, or does not pay for it now."""
    amount = cost(job.profile)
    keep_up(tx, job.sponsor)
    if sponsors.refusal(tx, job) or not tx.licences.hold(job.sponsor, amount):
        return False
    tx.jobs.hold(job.id, amount)
    number = tx.attempts.begin(job.id, job.profile.runner)
    tx.licences.record(job.sponsor, LedgerKind.HOLD, amount, job=job.id, attempt=number, actor=actor)
    return True


def hold_all(tx: Transaction, jobs: Sequence[Job]) -> bool:
    """As `hold`, and queues them, for new jobs of one sponsor, which has just agreed to pay for them: for all
    of them, or if it cannot pay for all, for none."""
    sponsor = jobs[0].sponsor
    amounts = {job.id: cost(job.profile) for job in jobs}
    keep_up(tx, sponsor)
    if not tx.licences.hold(sponsor, sum(amounts.values())):
        return False
    tx.jobs.queue_all(amounts)
    tx.attempts.begin_all({job.id: job.profile.runner for job in jobs})
    tx.licences.record_holds(sponsor, amounts, {job.id: job.launched_by for job in jobs})
    return True


def settle(tx: Transaction, job_id: int, used: int, *, actor: str) -> int:
    """Charges what the job's attempt used, at most what is on hold for it, and releases the rest. Done once
    per hold: a job that has nothing on hold is not charged (again). Returns the CPU-seconds charged."""
    task = tx.jobs.task(job_id)
    if task is None or task.held == 0:
        return 0
    charged = min(max(used, 0), task.held)
    if not tx.jobs.settle(job_id, task.held, charged):
        return 0
    sponsor, number = task.job.sponsor, tx.attempts.count(job_id)
    tx.licences.settle(sponsor, task.held, charged)

    def record(kind: LedgerKind, amount: int) -> None:
        if amount:
            tx.licences.record(sponsor, kind, amount, job=job_id, attempt=number, actor=actor)

    record(LedgerKind.CHARGE, charged)
    record(LedgerKind.RELEASE, task.held - charged)
    _used(tx, sponsor, charged)
    return charged


def correct(tx: Transaction, job_id: int, number: int, used: int, *, actor: str, note: str = "") -> int:
    """Charges an attempt that is over what it used in truth, as its runner's accounts say later. May be
    called any number of times: only what differs from what has been charged is booked. Returns that."""
    job, attempt = tx.jobs.get(job_id), tx.attempts.get(job_id, number)
    if job is None or attempt is None:
        raise NotFound(f"Job {job_id} has no attempt {number}.", "Look them up: beamhub job attempts.")
    if attempt.ended is None:
        raise Conflict(f"Attempt {number} of job {job_id} is not over yet.", "Wait until it has ended.")
    change = tx.licences.correct(job.sponsor, min(used, cost(job.profile)) - attempt.cpu_seconds)
    if change:
        tx.attempts.correct(job_id, number, change)
        tx.jobs.correct(job_id, change)
        tx.licences.record(
            job.sponsor,
            LedgerKind.CORRECTION,
            change,
            job=job_id,
            attempt=number,
            actor=actor,
            note=note or f"it used {used} CPU-seconds",
        )
        _used(tx, job.sponsor, change)
    return change


def grant(
    tx: Transaction,
    licence: str,
    cpu_seconds: int,
    *,
    actor: str,
    note: str = "",
    valid_from: datetime | None = None,
    valid_until: datetime | None = None,
) -> None:
    """Adds to the allowance: now, or when its time has come."""
    now = datetime.now(UTC)
    tx.grants.create(
        licence,
        cpu_seconds,
        valid_from=valid_from or now,
        valid_until=valid_until,
        created=now,
        actor=actor,
        note=note,
    )
    keep_up(tx, licence)


def keep_up(tx: Transaction, licence: str | None = None, now: datetime | None = None) -> None:
    """Books the grants whose time has come, and books away what is left of those whose time is over, but for
    what is on hold; of all licences, or of one."""
    now = now or datetime.now(UTC)
    changed = set()
    for one in tx.grants.beginning(now, licence):
        tx.grants.count(one.id)
        tx.licences.grant(one.licence, one.cpu_seconds)
        tx.licences.record(one.licence, LedgerKind.GRANT, one.cpu_seconds, actor=one.actor, note=one.note)
        changed.add(one.licence)
    for one in tx.grants.ending(now, licence):
        if gone := tx.licences.expire(one.licence, one.left):
            tx.grants.expire(one.id, gone)
            until = f"of grant {one.id}, valid until {one.valid_until:%Y-%m-%d %H:%M} UTC"
            tx.licences.record(one.licence, LedgerKind.EXPIRE, gone, actor=SYSTEM, note=until)
            changed.add(one.licence)
    for id_ in changed:
        _watch(tx, id_)


def _used(tx: Transaction, licence: str, change: int) -> None:
    """What follows from a charge: it is taken from the grants, of which the rest may be over."""
    if change:
        tx.grants.use(licence, change)
    keep_up(tx, licence)
    _watch(tx, licence)


def _watch(tx: Transaction, licence: str) -> None:
    """Tells once when little is left."""
    if tx.licences.note_low(licence, SHARE):
        tell(tx, "licence.low", licence, actor=SYSTEM)


def shortage(licence: Licence, profile: Profile) -> str:
    """Why the licence cannot pay for a job of this profile now, in one sentence; "" if it can."""
    now = datetime.now(UTC)
    if licence.valid_until is not None and licence.valid_until <= now:
        return f"The licence {licence.id} expired on {licence.valid_until:%Y-%m-%d}: choose another sponsor."
    if licence.available >= cost(profile):
        return ""
    return (
        f"Waits for credit: {profile.title} may use {hours(cost(profile))} CPU-h, "
        f"and the licence {licence.id} has {hours(licence.available)} left."
    )


def hours(cpu_seconds: int) -> str:
    """CPU-hours for a sentence: "0.25"."""
    return f"{cpu_seconds / 3600:.2f}".rstrip("0").rstrip(".")


def tell(tx: Transaction, kind: str, licence: str, *, actor: str, **data: object) -> Licence:
    """Emits an event of a licence that this transaction has changed; returns how it is now."""
    now = tx.licences.get(licence)
    assert now is not None  # noqa: S101 (this transaction has written it)
    # staff hear of a lab licence by its instrument
    instrument = now.instruments[0] if len(now.instruments) == 1 else None
    emit(
        tx,
        kind,
        actor=actor,
        instrument=instrument,
        subject=now.id,
        data={"title": now.title, "kind": now.kind, "available": now.available, **data},
    )
    return now
