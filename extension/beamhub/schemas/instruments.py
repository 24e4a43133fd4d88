"""Beamlines and microscopes."""

from __future__ import annotations

from datetime import datetime

from beamhub.schemas.agents import AgentStatus
from beamhub.schemas.models import Model, Request
from beamhub.schemas.words import Line, Slug, UserName

__all__ = ["Instrument", "InstrumentChange", "InstrumentCreate", "InstrumentToken", "UploadsPaused"]


class UploadsPaused(Model):
    """Since when, by whom and why an instrument begins no upload."""

    reason: str
    by: str
    since: datetime


class Instrument(Model):
    """A beamline or microscope."""

    id: str
    title: str
    technique: str
    staff: list[str]
    active_experiment: str | None
    automation: bool  # False: trigger rules are paused
    uploads_paused: UploadsPaused | None = None
    agent: AgentStatus | None = None
    created: datetime


class InstrumentCreate(Request):
    id: Slug
    title: Line
    technique: Line = "macromolecular crystallography"
    staff: list[UserName] = []


class InstrumentChange(Request):
    """Only what is given is changed. `active_experiment: null` leaves the instrument without one."""

    title: Line | None = None
    staff: list[UserName] | None = None
    active_experiment: str | None = None
    automation: bool | None = None


class InstrumentToken(Model):
    """A new token of an instrument's agent. It is shown once; older ones stop working."""

    instrument: str
    token: str
