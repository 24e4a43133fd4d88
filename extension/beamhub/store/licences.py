"""Rows of licences, and of the ledger that accounts for them. Amounts are integer CPU-seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, insert, not_, or_, select, update

from beamhub.schemas import LedgerKind, LedgerLine, Licence, LicenceCreate, Page, SponsorshipRule
from beamhub.store.pages import paginate
from beamhub.store.tables import ledger, licences


class Licences:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, licence: str) -> Licence | None:
        row = self._connection.execute(select(licences).where(licences.c.id == licence)).first()
        return _licence(row) if row else None

    def list(self, *, only: frozenset[str] | None, after: str | None, limit: int) -> Page[Licence]:
        """By id; `only` restricts to these ids (None: all)."""
        query = select(licences)
        if only is not None:
            query = query.where(licences.c.id.in_(only))
        return paginate(self._connection, query, [licences.c.id], _licence, after=after, limit=limit)

    def of_owner(self, user: str) -> Sequence[Licence]:
        query = select(licences).where(licences.c.kind == "user", licences.c.owner == user)
        return [_licence(row) for row in self._connection.execute(query.order_by(licences.c.id))]

    def of_labs(self, instruments: frozenset[str]) -> Sequence[Licence]:
        """The lab licences that sponsor any of these instruments."""
        query = select(licences).where(licences.c.kind == "lab").order_by(licences.c.id)
        found = [_licence(row) for row in self._connection.execute(query)]
        return [licence for licence in found if instruments.intersection(licence.instruments)]

    def create(self, request: LicenceCreate) -> None:
        """A licence without anything granted yet."""
        self._connection.execute(
            insert(licences).values(
                id=request.id,
                title=request.title,
                kind=request.kind,
                owner=request.owner,
                instruments=sorted(set(request.instruments)),
                granted=0,
                charged=0,
                held=0,
                valid_from=datetime.now(UTC),
                valid_until=request.valid_until,
                terms=[rule.model_dump(mode="json") for rule in request.terms],
                low=False,
            )
        )

    def grant(self, licence: str, amount: int) -> None:
        self._connection.execute(
            update(licences).where(licences.c.id == licence).values(granted=licences.c.granted + amount)
        )

    def set_terms(self, licence: str, terms: Sequence[SponsorshipRule]) -> None:
        values = [rule.model_dump(mode="json") for rule in terms]
        self._connection.execute(update(licences).where(licences.c.id == licence).values(terms=values))

    def expire(self, licence: str, amount: int) -> int:
        """Takes back what was granted, at most what is available. Returns how much."""
        part = min(amount, self._available(licence))
        self._connection.execute(
            update(licences).where(licences.c.id == licence).values(granted=licences.c.granted - part)
        )
        return part

    def correct(self, licence: str, amount: int) -> int:
        """Charges more, at most what is available, or (below 0) less. Returns how much."""
        part = min(amount, self._available(licence)) if amount > 0 else amount
        self._connection.execute(
            update(licences).where(licences.c.id == licence).values(charged=licences.c.charged + part)
        )
        return part

    def _available(self, licence: str) -> int:
        # transactions that write follow one another: nobody changes it before this one is over
        query = select(licences.c.granted - licences.c.charged - licences.c.held)
        return max(self._connection.scalar(query.where(licences.c.id == licence)) or 0, 0)

    def note_low(self, licence: str, share: int) -> bool | None:
        """Notes whether at most one part in `share` of what was granted is left: True if that has just become
        so, False if it has just ceased, None if it is as it was."""
        little = (licences.c.granted - licences.c.charged) * share <= licences.c.granted
        for low in (True, False):
            changed = self._connection.execute(
                update(licences)
                .where(licences.c.id == licence, licences.c.low.is_(not low), little if low else not_(little))
                .values(low=low)
            )
            if changed.rowcount:
                return low
        return None

    def hold(self, licence: str, amount: int) -> bool:
        """Puts an amount on hold if the licence is valid now and has that much; one conditional statement,
        so that no interleaving can overdraw it."""
        now = datetime.now(UTC)
        changed = self._connection.execute(
            update(licences)
            .where(
                licences.c.id == licence,
                licences.c.granted - licences.c.charged - licences.c.held >= amount,
                licences.c.valid_from <= now,
                or_(licences.c.valid_until.is_(None), licences.c.valid_until > now),
            )
            .values(held=licences.c.held + amount)
        )
        return changed.rowcount == 1

    def settle(self, licence: str, held: int, charged: int) -> None:
        """Takes a hold away and charges a part of it."""
        self._connection.execute(
            update(licences)
            .where(licences.c.id == licence)
            .values(held=licences.c.held - held, charged=licences.c.charged + charged)
        )

    def record(
        self,
        licence: str,
        kind: LedgerKind,
        amount: int,
        *,
        job: int | None = None,
        attempt: int | None = None,
        actor: str,
        note: str = "",
    ) -> None:
        """Appends a line to the ledger."""
        self._connection.execute(
            insert(ledger).values(
                licence=licence,
                time=datetime.now(UTC),
                kind=kind,
                cpu_seconds=amount,
                job=job,
                attempt=attempt,
                actor=actor,
                note=note,
            )
        )

    def record_holds(self, licence: str, amounts: Mapping[int, int], actors: Mapping[int, str]) -> None:
        """A line of the ledger for the first hold of each of these jobs: job -> CPU-seconds, job -> actor."""
        now = datetime.now(UTC)
        common = {"licence": licence, "time": now, "kind": LedgerKind.HOLD, "attempt": 1, "note": ""}
        lines = [
            {**common, "job": job, "cpu_seconds": amount, "actor": actors[job]}
            for job, amount in amounts.items()
        ]
        self._connection.execute(insert(ledger), lines)

    def ledger(self, licence: str, *, after: str | None, limit: int) -> Page[LedgerLine]:
        """Newest first."""
        of_licence: ColumnElement[bool] = ledger.c.licence == licence
        query = select(ledger).where(of_licence)
        return paginate(
            self._connection, query, [ledger.c.id], _line, after=after, limit=limit, descending=True
        )


def _licence(row: Row[Any]) -> Licence:
    values = row._mapping
    available = values["granted"] - values["charged"] - values["held"]
    return Licence.model_validate({**values, "available": available})


def _line(row: Row[Any]) -> LedgerLine:
    return LedgerLine.model_validate(row._mapping)
