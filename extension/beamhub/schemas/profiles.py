"""What a job asks for, and what there is for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from beamhub.schemas.models import Model

__all__ = ["NodeState", "Profile", "RunnerState", "SlurmOptions", "SlurmWord"]

SlurmWord = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.:@,+&|-]*)?$", max_length=200)
]


class SlurmOptions(Model):
    """What of a Slurm cluster a job uses, as the facility has configured it; "" is the cluster's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    account: SlurmWord = ""
    partition: SlurmWord = ""
    qos: SlurmWord = ""
    reservation: SlurmWord = ""
    constraint: SlurmWord = ""


class Profile(Model):
    """What a job asks for, and where it then runs. Profiles are the facility's: people choose one by name."""

    name: str
    title: str
    cpus: int = Field(ge=1)
    memory: int = Field(ge=1)  # bytes
    walltime: int = Field(ge=1)  # seconds
    runner: Literal["local", "slurm"] = "local"
    slurm: SlurmOptions = SlurmOptions()


class NodeState(StrEnum):
    FREE = "free"
    BUSY = "busy"
    OFF = "off"  # to save power; switched on for a job that needs it
    STARTING = "starting"
    UNAVAILABLE = "unavailable"  # down, drained, reserved or not answering


class RunnerState(Model):
    """What there is for jobs of a runner now."""

    name: str
    reason: str = ""  # why it can't be told
    cpus: int = 0  # that jobs may have, on nodes that are off, too
    free: int = 0  # for a job that starts now
    cold: int = 0  # on nodes that would have to be switched on
    nodes: dict[NodeState, int] = {}  # how many; none: the service's own machine
