"""Licences as people see and manage them: users their own, staff the lab licences of their instruments,
operators all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from beamhub import access, sponsors, terms
from beamhub.access import Action, Principal
from beamhub.credits import correct, grant, keep_up, tell
from beamhub.errors import Conflict, Invalid, NotFound
from beamhub.schemas import (
    Correction,
    Grant,
    Granted,
    Job,
    LabTerms,
    LedgerLine,
    Licence,
    LicenceCreate,
    Page,
    Sponsor,
    UsageKey,
    UsageRow,
)
from beamhub.store import Store, Transaction
from beamhub.store.usage import Report
from beamhub.terms import Case


class Licences:
    """Raises NotFound for what the principal may not see, Forbidden for what it may not do, Invalid for what
    cannot be."""

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
            return tell(tx, "licence.created", request.id, actor=principal.name, cpu_hours=request.cpu_hours)

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
            grant(
                tx,
                licence,
                max(round(request.cpu_hours * 3600), 1),
                actor=principal.name,
                note=request.note,
                valid_from=request.valid_from,
                valid_until=request.valid_until,
            )
            return tell(tx, "licence.granted", licence, actor=principal.name, cpu_hours=request.cpu_hours)

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
            experiment = access.require(tx, principal, experiment_id, Action.READ)
            now, case = datetime.now(UTC), Case.of(experiment, template)
            return [
                Sponsor(**dict(one), refusal=terms.refusal(one, case, now))
                for one in sponsors.usable(tx, principal, experiment.instrument)
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
            rules = [terms.describe(rule) for rule in request.rules]
            return tell(tx, "licence.terms", licence, actor=principal.name, rules=rules)

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
