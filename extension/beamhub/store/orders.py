"""Rows of what an instrument's agent is told, and of what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Connection, Row, delete, insert, select, update

from beamhub.schemas import (
    AgentCommand,
    AgentFile,
    AgentFiles,
    CommandKind,
    FilesChoice,
    JournalLine,
    JournalReport,
    Page,
)
from beamhub.store.pages import paginate
from beamhub.store.tables import agent_files, commands, journal_reports


class Commands:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, command: int) -> AgentCommand | None:
        row = self._connection.execute(select(commands).where(commands.c.id == command)).first()
        return AgentCommand.model_validate(row._mapping) if row else None

    def create(
        self,
        instrument: str,
        kind: CommandKind,
        created_by: str,
        choice: FilesChoice,
        experiment: str | None = None,
    ) -> AgentCommand:
        inserted = self._connection.execute(
            insert(commands)
            .values(
                instrument=instrument,
                kind=kind,
                paths=choice.paths,
                pattern=choice.pattern,
                reason=choice.reason,
                experiment=experiment,
                created=datetime.now(UTC),
                created_by=created_by,
            )
            .returning(commands)
        ).one()
        return AgentCommand.model_validate(inserted._mapping)

    def waiting(self, instrument: str, limit: int) -> Sequence[AgentCommand]:
        """Those that the agent has not obeyed yet, oldest first."""
        query = select(commands).where(commands.c.instrument == instrument, commands.c.obeyed.is_(None))
        rows = self._connection.execute(query.order_by(commands.c.id).limit(limit))
        return [AgentCommand.model_validate(row._mapping) for row in rows]

    def obeyed(self, instrument: str, last: int) -> Sequence[AgentCommand]:
        """The agent has obeyed all up to this one; those of which that was not known before."""
        rows = self._connection.execute(
            update(commands)
            .where(commands.c.instrument == instrument, commands.c.id <= last, commands.c.obeyed.is_(None))
            .values(obeyed=datetime.now(UTC))
            .returning(commands)
        )
        return sorted((AgentCommand.model_validate(row._mapping) for row in rows), key=lambda c: c.id)

    def report(self, command: int, report: JournalReport) -> bool:
        """Keeps a part of an answer; whether it is there as a whole now."""
        mine = journal_reports.c.command == command
        self._connection.execute(delete(journal_reports).where(mine, journal_reports.c.part == report.part))
        self._connection.execute(
            insert(journal_reports).values(
                command=command,
                part=report.part,
                last=report.last,
                lines=[line.model_dump(mode="json") for line in report.items],
            )
        )
        return self.reported(command)

    def reported(self, command: int) -> bool:
        """Whether the whole answer to this command has come."""
        query = select(journal_reports.c.part, journal_reports.c.last)
        rows = self._connection.execute(query.where(journal_reports.c.command == command)).all()
        parts = {row.part for row in rows}
        return any(row.last and parts >= set(range(1, row.part + 1)) for row in rows)

    def lines(self, command: int) -> Iterator[JournalLine]:
        """The answer, line by line."""
        query = select(journal_reports.c.lines).where(journal_reports.c.command == command)
        for items in self._connection.scalars(query.order_by(journal_reports.c.part)):
            for item in items:
                yield JournalLine.model_validate(item)

    def forget_report(self, command: int) -> None:
        self._connection.execute(delete(journal_reports).where(journal_reports.c.command == command))


class AgentFileRows:
    """What the agents have not sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def replace(self, instrument: str, files: AgentFiles) -> None:
        """Puts one part of the list into the place of what was told there before."""
        parts = agent_files.c.part >= files.part if files.last else agent_files.c.part == files.part
        self._connection.execute(delete(agent_files).where(agent_files.c.instrument == instrument, parts))
        if files.items:
            rows = [
                {"instrument": instrument, "part": files.part, "number": number, **file.model_dump()}
                for number, file in enumerate(files.items, 1)
            ]
            self._connection.execute(insert(agent_files), rows)

    def list(
        self,
        instrument: str,
        *,
        state: Literal["failed", "skipped"] | None,
        after: str | None,
        limit: int,
    ) -> Page[AgentFile]:
        """In the order of the agent's list."""
        query = select(agent_files).where(agent_files.c.instrument == instrument)
        if state is not None:
            query = query.where(agent_files.c.state == state)
        order = [agent_files.c.part, agent_files.c.number]
        return paginate(self._connection, query, order, _file, after=after, limit=limit)


def _file(row: Row[tuple[object, ...]]) -> AgentFile:
    return AgentFile.model_validate(row._mapping)
