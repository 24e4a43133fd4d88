"""Rows of jobs."""

from __future__ import annotations

from sqlalchemy import Connection


class Jobs:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
