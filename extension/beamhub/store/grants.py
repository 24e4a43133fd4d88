"""Rows of grants: the parts of a licence's allowance, each with a validity of its own. Amounts are integer
CPU-seconds.

What is charged to a licence is taken from the grants in the order in which they end, so that as little as
possible is lost: over all that count, the sum of what is left is what was granted and has not been charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Row, and_, insert, select, update

from beamhub.schemas import Granted, Page
from beamhub.store.pages import paginate
from beamhub.store.tables import grants

LEFT: ColumnElement[int] = grants.c.cpu_seconds - grants.c.used - grants.c.expired


class Grants:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        licence: str,
        amount: int,
        *,
        valid_from: datetime,
        valid_until: datetime | None,
        created: datetime,
        actor: str,
        note: str,
    ) -> int:
        """A grant that does not count yet. Returns its id."""
        return int(
            self._connection.execute(
                insert(grants)
                .values(
                    licence=licence,
                    cpu_seconds=amount,
                    used=0,
                    expired=0,
                    counts=False,
                    valid_from=valid_from,
                    valid_until=valid_until,
                    created=created,
                    actor=actor,
                    note=note,
                )
                .returning(grants.c.id)
            ).scalar_one()
        )

    def list(self, licence: str, *, after: str | None, limit: int) -> Page[Granted]:
        """Newest first."""
        query = select(grants).where(grants.c.licence == licence)
        return paginate(
            self._connection, query, [grants.c.id], _granted, after=after, limit=limit, descending=True
        )

    def beginning(self, now: datetime, licence: str | None = None) -> Sequence[Granted]:
        """Those that are valid by now and do not count yet; of all licences, or of one."""
        return self._found(and_(grants.c.counts.is_(False), grants.c.valid_from <= now), licence)

    def ending(self, now: datetime, licence: str | None = None) -> Sequence[Granted]:
        """Those that are not valid any more, and of which something is left."""
        return self._found(and_(grants.c.counts, grants.c.valid_until <= now, LEFT > 0), licence)

    def count(self, grant: int) -> None:
        """From now on it counts."""
        self._connection.execute(update(grants).where(grants.c.id == grant).values(counts=True))

    def expire(self, grant: int, amount: int) -> None:
        self._connection.execute(
            update(grants).where(grants.c.id == grant).values(expired=grants.c.expired + amount)
        )

    def use(self, licence: str, amount: int) -> None:
        """Takes a charge from the grants, those that end first first; less than 0 gives one back. Raises
        ValueError if they do not have, or have not given, that much."""
        order = [grants.c.valid_until.is_(None), grants.c.valid_until, grants.c.id]
        query = select(grants.c.id, grants.c.used, LEFT.label("left")).where(
            grants.c.licence == licence, grants.c.counts
        )
        if amount < 0:
            order = [column.desc() for column in order]
            query = query.where(grants.c.used > 0)
        else:
            query = query.where(LEFT > 0)
        missing = abs(amount)
        for row in self._connection.execute(query.order_by(*order)).all():
            part = min(missing, row.left if amount > 0 else row.used)
            missing -= part
            change = part if amount > 0 else -part
            self._connection.execute(
                update(grants).where(grants.c.id == row.id).values(used=grants.c.used + change)
            )
            if missing == 0:
                break
        if missing:
            raise ValueError(f"the grants of {licence} do not add up: {missing} of {amount} is missing")

    def _found(self, which: ColumnElement[bool], licence: str | None) -> Sequence[Granted]:
        query = select(grants).where(which).order_by(grants.c.id)
        if licence is not None:
            query = query.where(grants.c.licence == licence)
        return [_granted(row) for row in self._connection.execute(query)]


def _granted(row: Row[tuple[object, ...]]) -> Granted:
    values = row._mapping
    return Granted.model_validate(
        {**values, "left": values["cpu_seconds"] - values["used"] - values["expired"]}
    )
