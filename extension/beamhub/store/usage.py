"""Sums over the ledger: what has been charged, by what it was for. Amounts are integer CPU-seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, String, func, select, type_coerce

from beamhub.schemas import LedgerKind, Page, UsageKey, UsageRow
from beamhub.store.pages import among, paginate
from beamhub.store.tables import jobs, ledger

ROWS = 500  # of a whole report, read at once


@dataclass(frozen=True)
class Report:
    """What is asked: one row for each combination of these keys, in their order; of charges booked from
    `begin` on and before `end`, for jobs of these experiments (None: of all)."""

    by: Sequence[UsageKey]
    only: frozenset[str] | None
    begin: datetime | None = None
    end: datetime | None = None


class Usage:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def page(self, report: Report, *, after: str | None, limit: int) -> Page[UsageRow]:
        """So many rows."""
        query, keys = self._query(report)
        return paginate(self._connection, query, keys, _row, after=after, limit=limit)

    def all(self, report: Report) -> Iterator[UsageRow]:
        """All rows, read as they are asked for: there may be many."""
        query, keys = self._query(report)
        found = query.order_by(*keys).execution_options(yield_per=ROWS)
        return map(_row, self._connection.execute(found))

    def _query(self, report: Report) -> tuple[Select[Any], list[ColumnElement[str]]]:
        """Without an order, and the keys."""
        keys: list[ColumnElement[str]] = [self._key(name).label(name) for name in report.by]
        jobs_, sum_ = func.count(ledger.c.job.distinct()), func.sum(ledger.c.cpu_seconds)
        columns: list[ColumnElement[Any]] = [*keys, jobs_.label("jobs"), sum_.label("cpu_seconds")]
        query = (
            select(*columns)
            .join(jobs, jobs.c.id == ledger.c.job)
            .where(ledger.c.kind.in_([LedgerKind.CHARGE, LedgerKind.CORRECTION]))
        )
        if report.only is not None:
            query = query.where(among(self._connection, jobs.c.experiment, report.only))
        if report.begin is not None:
            query = query.where(ledger.c.time >= report.begin)
        if report.end is not None:
            query = query.where(ledger.c.time < report.end)
        return query.group_by(*keys), keys

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
            return type_coerce(func.to_char(func.timezone("UTC", ledger.c.time), "YYYY-MM"), String)
        return type_coerce(func.strftime("%Y-%m", ledger.c.time), String)


def _row(row: Row[Any]) -> UsageRow:
    return UsageRow.model_validate(row._mapping)
