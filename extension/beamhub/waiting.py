"""Jobs that wait for credit: which of them something can be done about."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from beamhub.credits import cost, shortage
from beamhub.jobstate import admit, barring
from beamhub.schemas import Job, JobState
from beamhub.store import Transaction

VALIDITY = 60.0  # seconds after which it is looked whether licences have expired


@dataclass(frozen=True)
class Standing:
    """How things were with a licence when the jobs that wait for it were looked at."""

    allowance: tuple[object, ...]  # if this changes, they are told anew what is missing
    waiting: Mapping[str, tuple[str, int]]  # experiment -> its state, and the newest of these jobs there
    least: float  # CPU-seconds that the cheapest of them needs; infinite if none lacks just that
    looked: float  # when that was, monotonic


def pending(tx: Transaction, before: Mapping[str, Standing]) -> tuple[list[Job], dict[str, Standing]]:
    """The pending jobs that something can be done about, in their turn, and how things are now. Jobs are only
    looked at if their licence could pay for one of them, or its allowance has changed."""
    found: list[Job] = []
    standings: dict[str, Standing] = {}
    why_barred = barring(tx)
    active, now = tx.instruments.active_experiments(), time.monotonic()
    for sponsor, waiting in tx.jobs.pending().items():
        licence = tx.licences.get(sponsor)
        expired = licence and licence.valid_until and licence.valid_until <= datetime.now(UTC)
        allowance = (licence.granted, licence.valid_until, bool(expired), licence.terms) if licence else ()
        was = before.get(sponsor)
        told = was.waiting if was is not None and was.allowance == allowance else {}
        if licence and licence.terms and was and now - was.looked >= VALIDITY:
            told = {}  # terms are also about moments and people
        if was is not None and told == waiting and (licence is None or licence.available < was.least):
            standings[sponsor] = was
            continue
        least = math.inf
        for job in tx.jobs.in_turn(JobState.PENDING, active, sponsor=sponsor):
            why = why_barred(job)
            if not why and licence is not None:
                least = min(least, cost(job.profile))
                why = shortage(licence, job.profile)
            state, newest = told.get(job.experiment, ("", 0))
            news = state != waiting[job.experiment][0] or job.id > newest
            if not why or (news and why != job.reason):
                found.append(job)
        standings[sponsor] = Standing(allowance, waiting, least, now)
    return found, standings


def admit_pending(tx: Transaction, jobs: Sequence[Job]) -> None:
    """Queues what is still pending and can be paid for now, and says of the others what they lack."""
    for job in jobs:
        now = tx.jobs.get(job.id)
        if now is not None and now.state is JobState.PENDING:  # not cancelled meanwhile
            admit(tx, now)
