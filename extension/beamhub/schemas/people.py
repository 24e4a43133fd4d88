"""Who somebody is, and what in an experiment."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from beamhub.schemas.models import Model

__all__ = ["Me", "Role"]


class Role(StrEnum):
    """What somebody is in an experiment."""

    PI = "pi"
    COLLABORATOR = "collaborator"
    VIEWER = "viewer"  # reads everything, changes nothing
    STAFF = "staff"  # of the experiment's instrument; never stored as a membership


class Me(Model):
    """Who the caller is."""

    name: str
    kind: Literal["user", "service", "instrument"]
    operator: bool  # a hub administrator or a service of the facility
    staff_of: list[str]  # ids of instruments
