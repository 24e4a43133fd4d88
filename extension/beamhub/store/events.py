"""Rows of the append-only log, and how far its consumers have come."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, select, update

from beamhub.schemas import Event, Page
from beamhub.store.pages import each, first
from beamhub.store.tables import NOWHERE, cursors, events


class Events:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def append(
        self,
        kind: str,
        *,
        actor: str,
        instrument: str | None,
        experiment: str | None,
        subject: str,
        data: dict[str, Any],
    ) -> Event:
        """Ids become visible in their order, because transactions that write follow one another."""
        values: dict[str, Any] = {
            "time": datetime.now(UTC),
            "kind": kind,
            "instrument": instrument,
            "experiment": experiment,
            "subject": subject,
            "actor": actor,
            "data": data,
        }
        id_ = self._connection.execute(insert(events).values(values).returning(events.c.id)).scalar_one()
        return Event(id=id_, **values)

    def append_all(
        self,
        kind: str,
        *,
        actor: str,
        instrument: str | None,
        experiment: str | None,
        data: Mapping[str, dict[str, Any]],
    ) -> None:
        """As `append`, for many subjects at once: subject -> data."""
        if not data:
            return
        told = {
            "time": datetime.now(UTC),
            "kind": kind,
            "instrument": instrument,
            "experiment": experiment,
            "actor": actor,
        }
        self._connection.execute(
            insert(events), [{**told, "subject": subject, "data": one} for subject, one in data.items()]
        )

    def append_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """As `append`, many at once: each row has kind, actor, instrument, experiment, subject and data."""
        if rows:
            now = datetime.now(UTC)
            self._connection.execute(insert(events), [{**row, "time": now} for row in rows])

    def latest(self, experiment: str, subject: str, kinds: Collection[str]) -> datetime | None:
        """When the newest event of these kinds about this subject happened, by the clock of then: a later one
        may have an earlier time."""
        query = select(events.c.time).where(events.c.subject == subject, events.c.kind.in_(kinds))
        query = query.where(events.c.experiment == experiment).order_by(events.c.id.desc()).limit(1)
        moment: datetime | None = self._connection.scalar(query)
        return moment

    def history(self, experiment: str, subject: str, kinds: Collection[str]) -> Sequence[Event]:
        """The events of these kinds about this subject, oldest first."""
        query = select(events).where(events.c.subject == subject, events.c.kind.in_(kinds))
        query = query.where(events.c.experiment == experiment).order_by(events.c.id)
        return [_event(row) for row in self._connection.execute(query)]

    def subjects(self, instrument: str, experiment: str, kind: str) -> frozenset[str]:
        """What the events of a kind in an experiment of an instrument are about."""
        query = select(events.c.subject).where(events.c.instrument == instrument, events.c.kind == kind)
        query = query.where(events.c.experiment == experiment)
        return frozenset(self._connection.scalars(query))

    def latest_of(
        self, instrument: str, kind: str, *, experiment: str | None = None, limit: int
    ) -> Iterator[Event]:
        """The events of a kind on an instrument, or only those of one of its experiments, newest first."""
        query = select(events).where(events.c.instrument == instrument, events.c.kind == kind)
        if experiment is not None:
            query = query.where(events.c.experiment == experiment)
        return map(_event, self._connection.execute(query.order_by(events.c.id.desc()).limit(limit)))

    def head(self) -> int:
        """The id of the newest event; 0 when there is none."""
        return self._connection.scalar(select(func.max(events.c.id))) or 0

    def after(
        self,
        id_: int,
        *,
        limit: int,
        experiments: frozenset[str] | None = None,
        instruments: frozenset[str] = frozenset(),
    ) -> Sequence[Event]:
        """Events newer than `id_`, oldest first. `experiments` None: all of them; otherwise those of these
        experiments, and those of these instruments that belong to no experiment."""
        query = select(events).where(events.c.id > id_)
        if experiments is None:
            query = query.order_by(events.c.id).limit(limit)
        else:
            parts = _among(experiments, instruments)
            query = first(query, events.c.id, limit, descending=False, parts=parts)
        return [_event(row) for row in self._connection.execute(query)]

    def page(
        self,
        *,
        after: int,
        limit: int,
        experiments: frozenset[str] | None = None,
        instruments: frozenset[str] = frozenset(),
    ) -> Page[Event]:
        """As `after`, as a page whose cursor is the last id."""
        found = self.after(after, limit=limit + 1, experiments=experiments, instruments=instruments)
        more = len(found) > limit
        found = found[:limit]
        return Page[Event](items=found, next=str(found[-1].id) if more else None)


class Cursors:
    """How far each consumer of the log has come."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: str) -> int:
        """The id of the last event that this consumer has dealt with; 0 before the first."""
        return self._connection.scalar(select(cursors.c.event).where(cursors.c.name == name)) or 0

    def set(self, name: str, event: int) -> None:
        changed = self._connection.execute(update(cursors).where(cursors.c.name == name).values(event=event))
        if changed.rowcount == 0:
            self._connection.execute(insert(cursors).values(name=name, event=event))


def _among(experiments: frozenset[str], instruments: frozenset[str]) -> list[ColumnElement[bool]]:
    nowhere = [and_(NOWHERE, of_one) for of_one in each(events.c.instrument, instruments)]
    return [*each(events.c.experiment, experiments), *nowhere]


def _event(row: Row[Any]) -> Event:
    return Event.model_validate(row._mapping)
