"""Rows of instruments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from beamhub.schemas import AgentStatus, Heartbeat, Instrument, InstrumentCreate, Page
from beamhub.store.pages import paginate
from beamhub.store.tables import instruments

CONNECTED = timedelta(
    seconds=15
)  # an agent that has been silent for longer counts as gone; it beats every 2 s

# built once, as they are asked with each request of an agent
_ONE = select(instruments).where(instruments.c.id == bindparam("id"))
_OF_TOKEN = select(instruments.c.id).where(instruments.c.token_digest == bindparam("digest"))


class Instruments:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, instrument: str) -> Instrument | None:
        row = self._connection.execute(_ONE, {"id": instrument}).first()
        return _instrument(row) if row else None

    def by_token(self, digest: str) -> str | None:
        """The id of the instrument whose agent's token has this sha256."""
        return self._connection.scalar(_OF_TOKEN, {"digest": digest})

    def list(self, *, only: frozenset[str] | None, after: str | None, limit: int) -> Page[Instrument]:
        """By id; `only` restricts to these ids (None: all)."""
        query = select(instruments)
        if only is not None:
            query = query.where(instruments.c.id.in_(only))
        return paginate(self._connection, query, [instruments.c.id], _instrument, after=after, limit=limit)

    def staffed_by(self, user: str) -> frozenset[str]:
        """Ids of the instruments whose staff this user belongs to."""
        rows = self._connection.execute(select(instruments.c.id, instruments.c.staff))
        return frozenset(id_ for id_, staff in rows if user in staff)

    def active_experiments(self) -> frozenset[str]:
        """Ids of the experiments that data arrive for now."""
        query = select(instruments.c.active_experiment).where(instruments.c.active_experiment.is_not(None))
        return frozenset(self._connection.scalars(query))

    def create(self, request: InstrumentCreate) -> None:
        self._connection.execute(
            insert(instruments).values(
                id=request.id,
                title=request.title,
                technique=request.technique,
                staff=sorted(set(request.staff)),
                automation=True,
                created=datetime.now(UTC),
            )
        )

    def change(self, instrument: str, **values: Any) -> None:
        """Sets columns: title, technique, staff, active_experiment, automation, uploads_paused,
        token_digest."""
        self._connection.execute(update(instruments).where(instruments.c.id == instrument).values(**values))

    def beat(self, instrument: str, heartbeat: Heartbeat) -> None:
        self.change(instrument, heartbeat=heartbeat.model_dump(mode="json"), heartbeat_at=datetime.now(UTC))


def _instrument(row: Row[Any]) -> Instrument:
    values = dict(row._mapping)
    beat, seen = values.pop("heartbeat"), values.pop("heartbeat_at")
    agent = None
    if beat is not None:
        # one from the future was given before the clock was set back
        connected = abs(datetime.now(UTC) - seen) < CONNECTED
        agent = AgentStatus.model_validate({**beat, "connected": connected, "last_seen": seen})
    return Instrument.model_validate({**values, "agent": agent})
