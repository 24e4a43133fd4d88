"""Beamtimes, their members and their files."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from beamhub.schemas.models import Model, Request
from beamhub.schemas.people import Role
from beamhub.schemas.words import Digest, Line, Reason, Slug, UserName

__all__ = [
    "Experiment",
    "ExperimentChange",
    "ExperimentCreate",
    "ExperimentState",
    "File",
    "Member",
    "MemberCreate",
]


class ExperimentState(StrEnum):
    PLANNED = "planned"  # known, no data yet
    RUNNING = "running"  # has been active on its instrument
    PROCESSING = "processing"  # beamtime over: no uploads from the instrument, jobs go on
    CLOSED = "closed"  # read-only


class Experiment(Model):
    """A beamtime."""

    id: str
    instrument: str
    title: str
    state: ExperimentState
    pi: str
    active: bool  # is it the active one of its instrument
    created: datetime
    started: datetime | None
    ended: datetime | None
    folder: str  # absolute path
    quota: int | None = None  # bytes that may be uploaded; None: as many as the disk holds
    role: Role | None = None  # of the caller
    actions: list[str] = []  # what the caller may do here, as named in beamhub.access


class ExperimentCreate(Request):
    instrument: Slug
    title: Line
    pi: UserName


class ExperimentChange(Request):
    """Only what is given is changed. `quota` (bytes) is for the instrument's staff; null lifts it. The
    `reason` goes on record."""

    title: Line | None = None
    state: ExperimentState | None = None
    quota: int | None = Field(None, ge=0, le=2**63 - 1)
    reason: Reason = ""


class Member(Model):
    experiment: str
    user: str
    role: Role
    added: datetime
    added_by: str


class MemberCreate(Request):
    user: UserName
    role: Literal[Role.PI, Role.COLLABORATOR, Role.VIEWER] = Role.COLLABORATOR


class File(Model):
    """A published file of an experiment."""

    path: str  # relative to the experiment's folder, e.g. raw/lyso_master.h5
    size: int
    modified: datetime
    digest: Digest | None = None  # of files that came through an upload
