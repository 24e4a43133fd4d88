"""Rows of triggers."""

from __future__ import annotations

from sqlalchemy import Connection


class Triggers:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
