"""Rows of experiments whose data are, or are being, signed off."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from beamhub.schemas import Finalisation, FinalisationState
from beamhub.store.tables import checksums, finalisations

GOING = (FinalisationState.CHECKING, FinalisationState.HASHING)
_ONE = select(finalisations).where(finalisations.c.experiment == bindparam("experiment"))


class Finalisations:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, experiment: str) -> Finalisation | None:
        row = self._connection.execute(_ONE, {"experiment": experiment}).first()
        return Finalisation.model_validate(row._mapping) if row else None

    def command(self, experiment: str) -> int | None:
        """The command that asks the agent what it knows."""
        query = select(finalisations.c.command).where(finalisations.c.experiment == experiment)
        return self._connection.scalar(query)

    def going(self) -> Sequence[str]:
        """The experiments whose finalisation has not come to its end."""
        query = select(finalisations.c.experiment).where(finalisations.c.state.in_(GOING))
        return list(self._connection.scalars(query))

    def begin(
        self, experiment: str, command: int | None, created_by: str, *, forced: bool, reason: str
    ) -> None:
        """In the place of an earlier one."""
        self._connection.execute(delete(finalisations).where(finalisations.c.experiment == experiment))
        self.forget_checksums(experiment)
        self._connection.execute(
            insert(finalisations).values(
                experiment=experiment,
                state=FinalisationState.CHECKING,
                command=command,
                differences=[],
                forced=forced,
                reason=reason,
                created=datetime.now(UTC),
                created_by=created_by,
            )
        )

    def change(self, experiment: str, **values: Any) -> None:
        """Sets columns: state, differences, ended."""
        self._connection.execute(
            update(finalisations).where(finalisations.c.experiment == experiment).values(**values)
        )

    def outdate(self, experiment: str, *differences: str) -> None:
        """What was signed off, or is being, is no longer so."""
        found = self.get(experiment)
        if found is None:
            return
        told = [*found.differences, *differences]
        if found.state in (FinalisationState.DONE, FinalisationState.OUTDATED):
            self.change(experiment, state=FinalisationState.OUTDATED, differences=told)
        elif found.state is FinalisationState.HASHING:
            self.change(experiment, differences=told)

    def checksums(self, experiment: str) -> dict[str, str]:
        """path → sha256 of what has been read so far."""
        query = select(checksums.c.path, checksums.c.sha256).where(checksums.c.experiment == experiment)
        return {row.path: row.sha256 for row in self._connection.execute(query)}

    def keep_checksum(self, experiment: str, path: str, sha256: str) -> None:
        self._connection.execute(insert(checksums).values(experiment=experiment, path=path, sha256=sha256))

    def forget_checksums(self, experiment: str) -> None:
        self._connection.execute(delete(checksums).where(checksums.c.experiment == experiment))
