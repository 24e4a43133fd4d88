"""Rows of licences."""

from __future__ import annotations

from sqlalchemy import Connection


class Licences:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
