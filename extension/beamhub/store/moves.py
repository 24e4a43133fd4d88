"""Rows of datasets on their way to another experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select, update

from beamhub.store.tables import moves


@dataclass(frozen=True)
class Move:
    """A dataset's files (their paths in the source and in the target), and who wants them there and why."""

    dataset: int
    source: str
    target: str
    version: int
    files: Sequence[tuple[str, str]]
    reason: str
    actor: str
    committed: bool = False


class Moves:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> Sequence[Move]:
        """Those that are not over, oldest first."""
        rows = self._connection.execute(select(moves).order_by(moves.c.created)).mappings()
        wanted = Move.__dataclass_fields__
        found = ({name: row[name] for name in wanted} for row in rows)
        return [Move(**{**row, "files": [(a, b) for a, b in row["files"]]}) for row in found]

    def create(self, move: Move) -> None:
        self._connection.execute(insert(moves).values(**asdict(move), created=datetime.now(UTC)))

    def commit(self, dataset: int) -> None:
        self._connection.execute(update(moves).where(moves.c.dataset == dataset).values(committed=True))

    def end(self, dataset: int) -> None:
        self._connection.execute(delete(moves).where(moves.c.dataset == dataset))
