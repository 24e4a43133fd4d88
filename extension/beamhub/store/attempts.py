"""Rows of attempts: what became of a job each time that it was queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, exists, func, insert, select, update

from beamhub.schemas import Attempt
from beamhub.store.tables import attempts


class Attempts:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, job: int, runner: str) -> int:
        """A new attempt, which is queued. Returns its number, from 1."""
        number = self.count(job) + 1
        self._connection.execute(
            insert(attempts).values(
                job=job,
                number=number,
                runner=runner,
                ref="",
                host="",
                queued=datetime.now(UTC),
                reason="",
                cpu_seconds=0,
            )
        )
        return number

    def begin_all(self, runners: Mapping[int, str]) -> None:
        """The first attempts of new jobs: job -> runner."""
        now = datetime.now(UTC)
        common = {"number": 1, "ref": "", "host": "", "queued": now, "reason": "", "cpu_seconds": 0}
        rows = [{"job": job, "runner": runner, **common} for job, runner in runners.items()]
        self._connection.execute(insert(attempts), rows)

    def count(self, job: int) -> int:
        """How many there have been: the number of the last one."""
        return int(
            self._connection.scalar(select(func.max(attempts.c.number)).where(attempts.c.job == job)) or 0
        )

    def note(self, job: int, **values: Any) -> None:
        """Sets columns of the attempt that is under way; does nothing where none is."""
        self._connection.execute(
            update(attempts).where(attempts.c.job == job, attempts.c.ended.is_(None)).values(**values)
        )

    def get(self, job: int, number: int) -> Attempt | None:
        query = select(attempts).where(attempts.c.job == job, attempts.c.number == number)
        row = self._connection.execute(query).first()
        return Attempt.model_validate(row._mapping) if row else None

    def correct(self, job: int, number: int, change: int) -> None:
        """Changes what it was charged."""
        self._connection.execute(
            update(attempts)
            .where(attempts.c.job == job, attempts.c.number == number)
            .values(cpu_seconds=attempts.c.cpu_seconds + change)
        )

    def ended_since(self, moment: datetime, runner: str, limit: int) -> Sequence[tuple[int, int, str, int]]:
        """Attempts of a runner that were over then or later: job, number, the runner's own name for it, and
        the CPU-seconds charged; the latest first.

        A runner that has lost its records may give a name again, and tells of the last that had it: of a
        job's attempts of one name only the last is among them.
        """
        later = attempts.alias()
        named_again = exists().where(
            later.c.job == attempts.c.job, later.c.ref == attempts.c.ref, later.c.number > attempts.c.number
        )
        query = (
            select(attempts.c.job, attempts.c.number, attempts.c.ref, attempts.c.cpu_seconds)
            .where(attempts.c.ended >= moment, attempts.c.runner == runner, attempts.c.ref != "")
            .where(~named_again)
            .order_by(attempts.c.ended.desc())
            .limit(limit)
        )
        return [(row.job, row.number, row.ref, row.cpu_seconds) for row in self._connection.execute(query)]

    def of_job(self, job: int) -> Sequence[Attempt]:
        """In their order."""
        query = select(attempts).where(attempts.c.job == job).order_by(attempts.c.number)
        return [Attempt.model_validate(row._mapping) for row in self._connection.execute(query)]
