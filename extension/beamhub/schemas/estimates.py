"""What a job will probably take."""

from __future__ import annotations

from datetime import datetime

from beamhub.schemas.models import Model

__all__ = ["Estimate", "Spread"]


class Spread(Model):
    """A quantity that is not known exactly: four of five earlier ones were between low and high."""

    low: float
    likely: float
    high: float


class Estimate(Model):
    """What a job will probably take, from earlier runs of its template."""

    cpus: int
    frames: int  # of the datasets that it works on
    runs: int  # earlier finished runs of the template, of which the last 60 count
    duration: Spread | None  # seconds; null: there are no earlier runs
    cpu_hours: Spread | None
    most_cpu_hours: float  # that are set aside until it ends
    starts: datetime | None  # probably; null: that cannot be told
    waits: str  # for what, in one sentence; "": it starts at once
    hint: str  # of CPUs that do not help; "": none
    identical: int | None  # a job whose result is the same
