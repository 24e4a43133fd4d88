"""Answers of requests with an Idempotency-Key, so that a repeated request gets the first one's answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select, update

from beamhub.store.tables import idempotency


@dataclass(frozen=True)
class Answer:
    """What the first request with this key was and got; `status` is None while it is still being answered."""

    request_digest: str
    status: int | None
    body: str | None


class Idempotency:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def claim(self, actor: str, key: str, request_digest: str) -> Answer | None:
        """None: this request is the first, and must `settle` or `forget` it. Else: what the first got."""
        query = select(idempotency.c.request_digest, idempotency.c.status, idempotency.c.body)
        row = self._connection.execute(
            query.where(idempotency.c.actor == actor, idempotency.c.key == key)
        ).first()
        if row:
            return Answer(*row)
        self._connection.execute(
            insert(idempotency).values(
                actor=actor, key=key, request_digest=request_digest, created=datetime.now(UTC)
            )
        )
        return None

    def settle(self, actor: str, key: str, status: int, body: str) -> None:
        self._connection.execute(
            update(idempotency)
            .where(idempotency.c.actor == actor, idempotency.c.key == key)
            .values(status=status, body=body)
        )

    def forget(self, actor: str, key: str) -> None:
        """The request came to nothing: it may be tried again with the same key."""
        self._connection.execute(
            delete(idempotency).where(idempotency.c.actor == actor, idempotency.c.key == key)
        )

    def expire(self, before: datetime) -> None:
        self._connection.execute(delete(idempotency).where(idempotency.c.created < before))
