"""Rows of jobs in the making, and of what happened while automation was paused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from beamhub.schemas import Event, Page, TriggerGathering
from beamhub.store.pages import paginate
from beamhub.store.tables import events, gathered, gatherings, missed


@dataclass(frozen=True)
class Open:
    """A gathering that waits for more."""

    id: int
    rule: int
    experiment: str
    boot: str
    newest: float


class Gatherings:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open(self) -> Sequence[Open]:
        """All that wait for more, oldest first."""
        query = select(gatherings).where(gatherings.c.ended.is_(None)).order_by(gatherings.c.id)
        return [_open(row) for row in self._connection.execute(query)]

    def get_open(self, gathering: int) -> Open | None:
        """None if it waits no more."""
        query = select(gatherings).where(gatherings.c.id == gathering, gatherings.c.ended.is_(None))
        row = self._connection.execute(query).first()
        return _open(row) if row else None

    def add(
        self, rule: int, experiment: str, value: str, *, key: str, event: int, boot: str, now: float
    ) -> tuple[Open, int] | None:
        """Adds an occasion to what has this value in common; the gathering and how many are together. None,
        and nothing added, if it has been gathered before."""
        if self._connection.scalar(select(exists().where(gathered.c.key == key))):
            return None
        found = self._connection.scalar(
            select(gatherings.c.id).where(
                gatherings.c.trigger == rule,
                gatherings.c.experiment == experiment,
                gatherings.c.value == value,
                gatherings.c.ended.is_(None),
            )
        )
        if found is None:
            values = {"trigger": rule, "experiment": experiment, "value": value, "reason": ""}
            added = insert(gatherings).values(**values, started=datetime.now(UTC), boot=boot, newest=now)
            found = self._connection.execute(added.returning(gatherings.c.id)).scalar_one()
        self._connection.execute(insert(gathered).values(key=key, gathering=found, event=event))
        self.wait_again(found, boot=boot, now=now)
        count = select(func.count()).select_from(gathered).where(gathered.c.gathering == found)
        return Open(found, rule, experiment, boot, now), self._connection.scalar(count) or 0

    def wait_again(self, gathering: int, *, boot: str, now: float) -> None:
        """Has it wait for more from now on."""
        self._connection.execute(
            update(gatherings).where(gatherings.c.id == gathering).values(boot=boot, newest=now)
        )

    def occasions(self, gathering: int) -> Sequence[Event]:
        """What has been gathered, oldest first."""
        query = (
            select(events)
            .join(gathered, gathered.c.event == events.c.id)
            .where(gathered.c.gathering == gathering)
            .order_by(events.c.id)
        )
        return [Event.model_validate(row._mapping) for row in self._connection.execute(query)]

    def end(self, gathering: int, *, job: int | None, reason: str) -> None:
        self._connection.execute(
            update(gatherings)
            .where(gatherings.c.id == gathering)
            .values(ended=datetime.now(UTC), job=job, reason=reason)
        )

    def list(
        self, rule: int, *, only: frozenset[str] | None, after: str | None, limit: int
    ) -> Page[TriggerGathering]:
        """Of one rule, newest first; `only` restricts to these experiments (None: all)."""
        counted = (
            select(func.count())
            .select_from(gathered)
            .where(gathered.c.gathering == gatherings.c.id)
            .scalar_subquery()
        )
        query = select(gatherings, counted.label("count")).where(gatherings.c.trigger == rule)
        if only is not None:
            query = query.where(gatherings.c.experiment.in_(only))
        order = [gatherings.c.id]
        return paginate(self._connection, query, order, _shown, after=after, limit=limit, descending=True)


class Missed:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, instrument: str, event: int) -> None:
        """Notes it once, however often it is told."""
        if not self._connection.scalar(select(exists().where(missed.c.event == event))):
            self._connection.execute(insert(missed).values(instrument=instrument, event=event))

    def of(self, instrument: str, *, limit: int) -> Sequence[Event]:
        """Oldest first."""
        query = select(events).join(missed, missed.c.event == events.c.id)
        query = query.where(missed.c.instrument == instrument).order_by(events.c.id).limit(limit)
        return [Event.model_validate(row._mapping) for row in self._connection.execute(query)]

    def forget(self, ids: Collection[int]) -> None:
        self._connection.execute(delete(missed).where(missed.c.event.in_(ids)))


def _open(row: Row[Any]) -> Open:
    return Open(row.id, row.trigger, row.experiment, row.boot, row.newest)


def _shown(row: Row[Any]) -> TriggerGathering:
    return TriggerGathering.model_validate(
        {**row._mapping, "rule": row.trigger, "count": row._mapping["count"]}
    )
