"""Credits: who pays for a job. CPU-hours are CPUs x runtime, nothing else; all amounts are integer
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

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from beamhub import access, terms
from beamhub.access import Action, Principal
from beamhub.errors import Conflict, Invalid, NotFound
from beamhub.events import emit
from beamhub.schemas import (
    Correction,
    Experiment,
    Grant,
    Granted,
    Job,
    LabTerms,
    LedgerKind,
    LedgerLine,
    Licence,
    LicenceCreate,
    Page,
    Profile,
    Sponsor,
    UsageKey,
    UsageRow,
)
from beamhub.store import Store, Transaction
from beamhub.store.usage import Report
from beamhub.terms import Case

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
    if refusal(tx, job) or not tx.licences.hold(job.sponsor, amount):
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
        _tell(tx, "licence.low", _get(tx, licence), SYSTEM)


def refusal(tx: Transaction, job: Job) -> str:
    """Why the job's sponsor does not pay for it as things are now, in one sentence; "" if it does, as far as
    it has credit. A job may have waited, or be tried again, since its sponsor agreed: each hold asks anew."""
    licence, experiment = tx.licences.get(job.sponsor), tx.experiments.get(job.experiment)
    if licence is None or experiment is None:
        return f"There is no licence {job.sponsor}."
    role = access.role_in(tx, Principal(job.launched_by, "user"), experiment.id)
    case = Case.of(experiment.model_copy(update={"role": role}), job.notebook or job.template)
    left = "" if licence.owner == job.launched_by else _left(tx, licence, experiment)
    why = left or terms.refusal(licence, case, datetime.now(UTC))
    return f"{why.removesuffix('.')}: rerun the job with another sponsor." if why else ""


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


def usable(tx: Transaction, principal: Principal, instrument: str) -> Sequence[Licence]:
    """The licences that may pay for what this principal starts on this instrument's data: its own, and the
    lab licences of the instrument. Expired ones are left out, empty ones are not: they may get a grant."""
    now = datetime.now(UTC)
    own = tx.licences.of_owner(principal.name) if principal.kind == "user" else []
    labs = tx.licences.of_labs(frozenset({instrument}))
    return [one for one in (*own, *labs) if one.valid_until is None or one.valid_until > now]


def require_usable(tx: Transaction, principal: Principal, instrument: str, sponsor: str) -> None:
    """Raises Invalid if this licence may not pay here at all, naming those that may."""
    choices = [licence.id for licence in usable(tx, principal, instrument)]
    if sponsor not in choices:
        raise Invalid(
            f"The licence {sponsor!r} cannot pay for jobs of {principal.name} on {instrument}.",
            f"Choose one of: {', '.join(choices)}."
            if choices
            else "There is none that could: ask an operator for a licence.",
        )


def require_sponsor(
    tx: Transaction, principal: Principal, experiment: Experiment, template: str, sponsor: str
) -> None:
    """Raises Invalid if this licence does not pay for a job of this template that the principal, whose role
    the experiment tells, starts there now: it says why, and what to choose instead."""
    require_usable(tx, principal, experiment.instrument, sponsor)
    now, case = datetime.now(UTC), Case.of(experiment, template)
    found = usable(tx, principal, experiment.instrument)
    refusals = {one.id: terms.refusal(one, case, now) for one in found}
    if why := refusals[sponsor]:
        raise Invalid(why, _instead([one for one in found if not refusals[one.id]]))


def require_terms(tx: Transaction, experiment: Experiment, template: str, sponsor: str) -> None:
    """The same for what starts by itself."""
    licence = tx.licences.get(sponsor)
    case = Case.of(experiment.model_copy(update={"role": None}), template)
    if licence is None:
        return
    if why := _left(tx, licence, experiment) or terms.refusal(licence, case, datetime.now(UTC)):
        raise Invalid(why, "Rerun it with another licence, or let the staff change the rule.")


def _left(tx: Transaction, licence: Licence, experiment: Experiment) -> str:
    """Why a user's own licence does not pay there for what others or rules start; "" if it does."""
    if licence.owner is None or access.role_in(tx, Principal(licence.owner, "user"), experiment.id):
        return ""
    owner = f"{licence.owner}, who does not belong to {experiment.id}"
    return f"The licence {licence.id} is of {owner}."


def _instead(choices: Sequence[Licence]) -> str:
    own = [one.id for one in choices if one.kind == "user"]
    if own:
        return f"Choose your own licence {' or '.join(own)}."
    if choices:
        return f"Choose one of: {', '.join(one.id for one in choices)}."
    return "Ask the instrument's staff to change its terms, or an operator for a licence of your own."


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
        if request.kind == "user" and request.terms:
            raise Invalid("A user licence has no terms.", "Leave `terms` out.")
        if request.valid_until is not None and request.valid_until.tzinfo is None:
            raise Invalid("The time `valid_until` has no time zone.", "Write it like 2030-12-31T00:00:00Z.")

        def work(tx: Transaction) -> Licence:
            if tx.licences.get(request.id) is not None:
                raise Conflict(f"There is a licence {request.id!r} already.", "Choose another id.")
            for instrument in request.instruments:
                access.require_instrument(tx, principal, instrument)
            _check_terms(tx, request.instruments, LabTerms(rules=request.terms))
            tx.licences.create(request)
            if amount := round(request.cpu_hours * 3600):
                grant(tx, request.id, amount, actor=principal.name, note="first grant")
            licence = _get(tx, request.id)
            _tell(tx, "licence.created", licence, principal.name, cpu_hours=request.cpu_hours)
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
        """Adds to the allowance: of a lab, its instruments' staff; of anybody, operators."""

        def work(tx: Transaction) -> Licence:
            found = _require(tx, principal, licence)
            if found.kind == "lab":
                _require_staff(tx, principal, found, Action.TOP_UP)
            else:
                access.require_operator(principal, Action.MANAGE_LICENCES)
            amount = max(round(request.cpu_hours * 3600), 1)
            grant(
                tx,
                licence,
                amount,
                actor=principal.name,
                note=request.note,
                valid_from=request.valid_from,
                valid_until=request.valid_until,
            )
            granted = _get(tx, licence)
            _tell(tx, "licence.granted", granted, principal.name, cpu_hours=request.cpu_hours)
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

    async def usage(
        self,
        principal: Principal,
        by: Sequence[UsageKey],
        begin: datetime | None = None,
        end: datetime | None = None,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[UsageRow]:
        """What has been charged from `begin` on and before `end`, by these keys, in the experiments that the
        principal may see: members their own, staff those of their instruments, operators all."""

        def work(tx: Transaction) -> Page[UsageRow]:
            only = access.visible_experiments(tx, principal)
            return tx.usage.page(Report(by, only, begin, end), after=after, limit=limit)

        return await self._store.read(work)

    async def report(
        self,
        principal: Principal,
        by: Sequence[UsageKey],
        begin: datetime | None,
        end: datetime | None,
        write: Callable[[Sequence[UsageKey], Iterable[UsageRow]], str],
    ) -> str:
        """The whole of the same, as `write` puts it; of one moment."""

        def work(tx: Transaction) -> str:
            only = access.visible_experiments(tx, principal)
            return write(by, tx.usage.all(Report(by, only, begin, end)))

        return await self._store.read(work)

    async def sponsors(
        self, principal: Principal, experiment_id: str, template: str | None = None
    ) -> Sequence[Sponsor]:
        """The licences that may pay for jobs which this principal starts in this experiment, and which of
        them do not just now, and why; of one template, or of any."""

        def work(tx: Transaction) -> Sequence[Sponsor]:
            experiment: Experiment = access.require(tx, principal, experiment_id, Action.READ)
            now, case = datetime.now(UTC), Case.of(experiment, template)
            return [
                Sponsor(**dict(one), refusal=terms.refusal(one, case, now))
                for one in usable(tx, principal, experiment.instrument)
            ]

        return await self._store.read(work)

    async def set_terms(self, principal: Principal, licence: str, request: LabTerms) -> Licence:
        """Says for what a lab's licence pays; for the staff of all of its instruments, and operators."""

        def work(tx: Transaction) -> Licence:
            found = _require(tx, principal, licence)
            if found.kind != "lab":
                raise Invalid(f"{licence} is a user's own licence.", "Only a lab's licence has terms.")
            _require_staff(tx, principal, found, Action.SET_TERMS)
            _check_terms(tx, found.instruments, request)
            tx.licences.set_terms(licence, request.rules)
            changed = _get(tx, licence)
            rules = [terms.describe(rule) for rule in request.rules]
            _tell(tx, "licence.terms", changed, principal.name, rules=rules)
            return changed

        return await self._store.write(work)

    async def grants(
        self, principal: Principal, licence: str, *, after: str | None = None, limit: int = 100
    ) -> Page[Granted]:
        """The parts of its allowance, newest first."""

        def work(tx: Transaction) -> Page[Granted]:
            _require(tx, principal, licence)
            return tx.grants.list(licence, after=after, limit=limit)

        return await self._store.read(work)

    async def correct(self, principal: Principal, job: int, request: Correction) -> Job:
        """Charges what an attempt of a job has used in truth (operators)."""
        access.require_operator(principal, Action.MANAGE_LICENCES)

        def work(tx: Transaction) -> Job:
            used = request.cpu_seconds
            correct(tx, job, request.attempt, used, actor=principal.name, note=request.note)
            found = tx.jobs.get(job)
            assert found is not None  # noqa: S101 (it has been corrected in this transaction)
            return found

        return await self._store.write(work)

    async def keep_up(self) -> None:
        """Books what has become due, of all licences."""
        now = datetime.now(UTC)

        def due(tx: Transaction) -> bool:
            return bool(tx.grants.beginning(now) or tx.grants.ending(now))

        if await self._store.read(due):
            await self._store.write(keep_up)


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


def _require_staff(tx: Transaction, principal: Principal, licence: Licence, action: Action) -> None:
    """Raises for everybody but operators and the staff of all of the licence's instruments."""
    for instrument in licence.instruments:
        access.require_instrument(tx, principal, instrument, action)


def _check_terms(tx: Transaction, instruments: Sequence[str], request: LabTerms) -> None:
    """A rule that can never fit is a mistake."""
    for rule in request.rules:
        if strange := sorted(set(rule.instruments) - set(instruments)):
            raise Invalid(
                f"The licence does not sponsor {', '.join(strange)}.", f"Choose of: {', '.join(instruments)}."
            )
        for id_ in rule.experiments:
            found = tx.experiments.get(id_)
            if found is None or found.instrument not in (rule.instruments or instruments):
                raise Invalid(f"There is no experiment {id_!r} on its instruments.", "Check its id.")


def _tell(tx: Transaction, kind: str, licence: Licence, actor: str, **data: object) -> None:
    # staff hear of a lab licence by its instrument
    instrument = licence.instruments[0] if len(licence.instruments) == 1 else None
    emit(
        tx,
        kind,
        actor=actor,
        instrument=instrument,
        subject=licence.id,
        data={"title": licence.title, "kind": licence.kind, "available": licence.available, **data},
    )
