"""Credits: who pays for a job. CPU-hours are CPUs x runtime, nothing else; all amounts are integer
CPU-seconds.

A job is paid for in two steps. Before it is queued, all that it may use at most is put on hold; when it ends,
what it did use is charged and the rest released. Each step happens at most once per job, and each is a line
of the ledger, so that at any moment the lines add up to the licence: granted = sum of grants, charged = sum
of charges, held = holds - charges - releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.errors import Conflict, Invalid, NotFound
from beamhub.events import emit
from beamhub.schemas import (
    Experiment,
    Grant,
    Job,
    LedgerKind,
    LedgerLine,
    Licence,
    LicenceCreate,
    Page,
    Profile,
)
from beamhub.store import Store, Transaction


def cost(profile: Profile) -> int:
    """The CPU-seconds that a job of this profile uses at most."""
    return profile.cpus * profile.walltime


def hold(tx: Transaction, job: Job, *, actor: str) -> bool:
    """Puts what the job may use on hold, which begins an attempt; False, and nothing changed, if its sponsor
    cannot pay that now."""
    amount = cost(job.profile)
    if not tx.licences.hold(job.sponsor, amount):
        return False
    tx.jobs.hold(job.id, amount)
    tx.attempts.begin(job.id, job.profile.runner)
    tx.licences.record(job.sponsor, LedgerKind.HOLD, amount, job=job.id, actor=actor)
    return True


def settle(tx: Transaction, job_id: int, used: int, *, actor: str) -> int:
    """Charges what the job used, at most what is on hold for it, and releases the rest. Done once per hold:
    a job that has nothing on hold is not charged (again). Returns the CPU-seconds charged."""
    task = tx.jobs.task(job_id)
    if task is None or task.held == 0:
        return 0
    charged = min(max(used, 0), task.held)
    if not tx.jobs.settle(job_id, task.held, charged):
        return 0
    sponsor = task.job.sponsor
    tx.licences.settle(sponsor, task.held, charged)
    if charged:
        tx.licences.record(sponsor, LedgerKind.CHARGE, charged, job=job_id, actor=actor)
    if charged < task.held:
        tx.licences.record(sponsor, LedgerKind.RELEASE, task.held - charged, job=job_id, actor=actor)
    return charged


def grant(tx: Transaction, licence: str, cpu_seconds: int, *, actor: str, note: str = "") -> None:
    """Adds to the allowance."""
    tx.licences.grant(licence, cpu_seconds)
    tx.licences.record(licence, LedgerKind.GRANT, cpu_seconds, job=None, actor=actor, note=note)


def shortage(licence: Licence, profile: Profile) -> str:
    """Why the licence cannot pay for a job of this profile now, in one sentence; "" if it can."""
    now = datetime.now(UTC)
    if licence.valid_until is not None and licence.valid_until <= now:
        return f"The licence {licence.id} expired on {licence.valid_until:%Y-%m-%d}: choose another sponsor."
    if licence.available >= cost(profile):
        return ""
    return (
        f"Waits for credit: {profile.title} may use {hours(cost(profile))} CPU-hours, "
        f"and the licence {licence.id} has {hours(licence.available)} left."
    )


def hours(cpu_seconds: int) -> str:
    """CPU-hours for a sentence: "0.25"."""
    return f"{cpu_seconds / 3600:.2f}".rstrip("0").rstrip(".")


def usable(tx: Transaction, principal: Principal, instrument: str) -> Sequence[Licence]:
    """The licences that may pay for what this principal starts on this instrument's data: its own, and the
    lab licences of the instrument. Expired ones are left out, empty ones are not: they may get a grant."""
    now = datetime.now(UTC)
    own = tx.licences.of_owner(principal.name) if principal.kind == "user" else []
    labs = tx.licences.of_labs(frozenset({instrument}))
    return [one for one in (*own, *labs) if one.valid_until is None or one.valid_until > now]


def require_usable(tx: Transaction, principal: Principal, instrument: str, sponsor: str) -> None:
    """Raises Invalid if this licence may not pay here, naming those that may."""
    choices = [licence.id for licence in usable(tx, principal, instrument)]
    if sponsor not in choices:
        raise Invalid(
            f"The licence {sponsor!r} cannot pay for jobs of {principal.name} on {instrument}.",
            f"Choose one of: {', '.join(choices)}."
            if choices
            else "There is none that could: ask an operator for a licence.",
        )


class Licences:
    """Licences as people see and manage them: users their own, staff the lab licences of their instruments,
    operators all."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, principal: Principal, request: LicenceCreate) -> Licence:
        access.require_operator(principal, Action.MANAGE_LICENCES)
        if request.kind == "user" and (request.owner is None or request.instruments):
            raise Invalid("A user licence has an owner and no instruments.", "Give `owner` only.")
        if request.kind == "lab" and (request.owner is not None or not request.instruments):
            raise Invalid("A lab licence has instruments and no owner.", "Give `instruments` only.")
        if request.valid_until is not None and request.valid_until.tzinfo is None:
            raise Invalid("The time `valid_until` has no time zone.", "Write it like 2030-12-31T00:00:00Z.")

        def work(tx: Transaction) -> Licence:
            if tx.licences.get(request.id) is not None:
                raise Conflict(f"There is a licence {request.id!r} already.", "Choose another id.")
            for instrument in request.instruments:
                access.require_instrument(tx, principal, instrument)
            tx.licences.create(request)
            if amount := round(request.cpu_hours * 3600):
                grant(tx, request.id, amount, actor=principal.name, note="first grant")
            licence = _get(tx, request.id)
            _tell(tx, "licence.created", licence, principal, request.cpu_hours)
            return licence

        return await self._store.write(work)

    async def list(
        self, principal: Principal, *, after: str | None = None, limit: int = 100
    ) -> Page[Licence]:
        return await self._store.read(
            lambda tx: tx.licences.list(only=_visible(tx, principal), after=after, limit=limit)
        )

    async def get(self, principal: Principal, licence: str) -> Licence:
        return await self._store.read(lambda tx: _require(tx, principal, licence))

    async def grant(self, principal: Principal, licence: str, request: Grant) -> Licence:
        access.require_operator(principal, Action.MANAGE_LICENCES)

        def work(tx: Transaction) -> Licence:
            _require(tx, principal, licence)
            amount = max(round(request.cpu_hours * 3600), 1)
            grant(tx, licence, amount, actor=principal.name, note=request.note)
            granted = _get(tx, licence)
            _tell(tx, "licence.granted", granted, principal, request.cpu_hours)
            return granted

        return await self._store.write(work)

    async def ledger(
        self, principal: Principal, licence: str, *, after: str | None = None, limit: int = 100
    ) -> Page[LedgerLine]:
        """Newest first."""

        def work(tx: Transaction) -> Page[LedgerLine]:
            _require(tx, principal, licence)
            return tx.licences.ledger(licence, after=after, limit=limit)

        return await self._store.read(work)

    async def sponsors(self, principal: Principal, experiment_id: str) -> Sequence[Licence]:
        """The licences that may pay for jobs which this principal starts in this experiment."""

        def work(tx: Transaction) -> Sequence[Licence]:
            experiment: Experiment = access.require(tx, principal, experiment_id, Action.READ)
            return usable(tx, principal, experiment.instrument)

        return await self._store.read(work)


def _visible(tx: Transaction, principal: Principal) -> frozenset[str] | None:
    """Ids of the licences that this principal may see; None: all."""
    if principal.operator:
        return None
    if principal.kind != "user":
        return frozenset()
    labs = tx.licences.of_labs(access.staff_of(tx, principal))
    return frozenset(licence.id for licence in (*tx.licences.of_owner(principal.name), *labs))


def _require(tx: Transaction, principal: Principal, licence: str) -> Licence:
    visible = _visible(tx, principal)
    found = tx.licences.get(licence)
    if found is None or (visible is not None and licence not in visible):
        raise NotFound(f"There is no licence {licence!r} here.", "Check its id, or ask an operator.")
    return found


def _get(tx: Transaction, licence: str) -> Licence:
    found = tx.licences.get(licence)
    assert found is not None  # noqa: S101 (it was written in this transaction)
    return found


def _tell(tx: Transaction, kind: str, licence: Licence, principal: Principal, cpu_hours: float) -> None:
    # staff hear of a lab licence by its instrument
    instrument = licence.instruments[0] if len(licence.instruments) == 1 else None
    emit(
        tx,
        kind,
        actor=principal.name,
        instrument=instrument,
        subject=licence.id,
        data={"title": licence.title, "kind": licence.kind, "cpu_hours": cpu_hours},
    )
