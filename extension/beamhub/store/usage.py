"""Sums over the ledger: what has been charged, by what it was for. Amounts are integer CPU-seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select

from beamhub.schemas import LedgerKind, UsageKey, UsageRow
from beamhub.store.tables import jobs, ledger


class Usage:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def sums(
        self,
        by: Sequence[UsageKey],
        *,
        only: frozenset[str] | None,
        begin: datetime | None,
        end: datetime | None,
    ) -> Sequence[UsageRow]:
        """One row for each combination of these keys, in their order; of charges booked from `begin` on and
        before `end`, for jobs of these experiments (None: of all)."""
        keys = [self._key(name).label(name) for name in by]
        query = (
            select(
                *keys,
                func.count(ledger.c.job.distinct()).label("jobs"),
                func.sum(ledger.c.cpu_seconds).label("cpu_seconds"),
            )
            .join(jobs, jobs.c.id == ledger.c.job)
            .where(ledger.c.kind.in_([LedgerKind.CHARGE, LedgerKind.CORRECTION]))
        )
        if only is not None:
            query = query.where(jobs.c.experiment.in_(only))
        if begin is not None:
            query = query.where(ledger.c.time >= begin)
        if end is not None:
            query = query.where(ledger.c.time < end)
        found = self._connection.execute(query.group_by(*keys).order_by(*keys))
        return [UsageRow.model_validate(row._mapping) for row in found]

    def _key(self, name: UsageKey) -> ColumnElement[str]:
        match name:
            case UsageKey.EXPERIMENT:
                return jobs.c.experiment
            case UsageKey.MEMBER:
                return jobs.c.launched_by
            case UsageKey.TEMPLATE:
                return jobs.c.template
            case UsageKey.LICENCE:
                return ledger.c.licence
        if self._connection.dialect.name == "postgresql":
            return func.to_char(func.timezone("UTC", ledger.c.time), "YYYY-MM")
        return func.strftime("%Y-%m", ledger.c.time)
