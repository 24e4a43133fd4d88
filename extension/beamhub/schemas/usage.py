"""What was charged, by what one asks for."""

from __future__ import annotations

from enum import StrEnum

from beamhub.schemas.models import Model

__all__ = ["UsageKey", "UsageRow"]


class UsageKey(StrEnum):
    """What a report of usage tells apart."""

    EXPERIMENT = "experiment"
    MEMBER = "member"  # who started the jobs, or "trigger:<rule id>"
    TEMPLATE = "template"
    LICENCE = "licence"
    MONTH = "month"  # YYYY-MM in UTC, of when it was charged


class UsageRow(Model):
    """What was charged, corrections included. Keys that were not asked for are null."""

    experiment: str | None = None
    member: str | None = None
    template: str | None = None
    licence: str | None = None
    month: str | None = None
    jobs: int
    cpu_seconds: int
