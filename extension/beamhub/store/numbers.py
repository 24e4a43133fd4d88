"""How much there is of what: for whoever watches over the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from beamhub.schemas import JobState, UploadState
from beamhub.store.tables import attempts, events, jobs, licences, uploads


@dataclass(frozen=True)
class Account:
    """A licence in CPU-seconds."""

    licence: str
    granted: int
    charged: int
    held: int


@dataclass(frozen=True)
class Numbers:
    jobs: Mapping[JobState, int]
    oldest_queued: datetime | None  # since when the job is queued that has been so for longest
    accounts: list[Account]
    events: int  # told ever
    uploads: Mapping[UploadState, int]
    uploaded: int  # bytes of files that have been published ever


class Counts:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def numbers(self) -> Numbers:
        by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        job_states = {row[0]: row[1] for row in self._connection.execute(by_state)}
        waiting = select(func.min(attempts.c.queued)).join(jobs, jobs.c.id == attempts.c.job)
        oldest = waiting.where(jobs.c.state == JobState.QUEUED, attempts.c.ended.is_(None))
        accounts = select(licences.c.id, licences.c.granted, licences.c.charged, licences.c.held)
        by_upload = select(uploads.c.state, func.count(), func.sum(uploads.c.size)).group_by(uploads.c.state)
        upload_states = {row[0]: (row[1], row[2]) for row in self._connection.execute(by_upload)}
        published = (UploadState.COMPLETE, UploadState.SUPERSEDED)
        return Numbers(
            jobs={state: job_states.get(state, 0) for state in JobState},
            oldest_queued=self._connection.scalar(oldest),
            accounts=[Account(*row) for row in self._connection.execute(accounts.order_by(licences.c.id))],
            events=self._connection.scalar(select(func.max(events.c.id))) or 0,
            uploads={state: upload_states.get(state, (0, 0))[0] for state in UploadState},
            uploaded=sum(int(upload_states.get(state, (0, 0))[1]) for state in published),
        )
