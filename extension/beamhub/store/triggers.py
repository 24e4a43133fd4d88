"""Rows of trigger rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from beamhub.schemas import Page, Trigger, TriggerCreate
from beamhub.store.pages import paginate
from beamhub.store.tables import triggers


class Triggers:
    """A rule that has been deleted stays in the table, for the jobs that it started, and is found nowhere."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, rule: int) -> Trigger | None:
        query = select(triggers).where(triggers.c.id == rule, triggers.c.deleted.is_(False))
        row = self._connection.execute(query).first()
        return _trigger(row) if row else None

    def list(self, instrument: str, *, after: str | None, limit: int) -> Page[Trigger]:
        """Oldest first."""
        query = select(triggers).where(triggers.c.instrument == instrument, triggers.c.deleted.is_(False))
        return paginate(self._connection, query, [triggers.c.id], _trigger, after=after, limit=limit)

    def enabled(self, instrument: str) -> Sequence[Trigger]:
        """The rules that apply on this instrument, oldest first."""
        query = (
            select(triggers)
            .where(
                triggers.c.instrument == instrument,
                triggers.c.deleted.is_(False),
                triggers.c.enabled.is_(True),
            )
            .order_by(triggers.c.id)
        )
        return [_trigger(row) for row in self._connection.execute(query)]

    def awaits(self, instrument: str, event: str) -> bool:
        """Whether a rule on this instrument waits for events of this kind."""
        query = select(triggers.c.id).where(
            triggers.c.instrument == instrument,
            triggers.c.event == event,
            triggers.c.deleted.is_(False),
            triggers.c.enabled.is_(True),
        )
        return self._connection.scalar(query.limit(1)) is not None

    def create(self, instrument: str, request: TriggerCreate) -> Trigger:
        values = request.model_dump(mode="json")
        row = self._connection.execute(
            insert(triggers)
            .values(instrument=instrument, version=1, deleted=False, **values)
            .returning(triggers)
        ).one()
        return _trigger(row)

    def change(self, rule: int, **values: Any) -> Trigger:
        """Sets columns, and counts a new version."""
        row = self._connection.execute(
            update(triggers)
            .where(triggers.c.id == rule)
            .values(version=triggers.c.version + 1, **values)
            .returning(triggers)
        ).one()
        return _trigger(row)


def _trigger(row: Row[Any]) -> Trigger:
    return Trigger.model_validate(row._mapping)
