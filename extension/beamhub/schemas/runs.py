"""What the service and the job's own process tell each other: `job.json` and `result.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from beamhub.schemas.jobs import Artifact, JobInput
from beamhub.schemas.models import Model, Quantity

__all__ = ["JobResult", "JobSpec", "SpecInput"]


class SpecInput(JobInput):
    """What a job works on, and where it lies."""

    path: str  # absolute: of the master file, of the job's folder, of the file


class JobSpec(Model):
    """`job.json`: all that `beamhub.run` needs, on whatever node it runs."""

    id: int
    experiment: str
    template: str
    template_version: str
    parameters: dict[str, JsonValue]
    inputs: list[SpecInput]
    cpus: int
    memory: int  # bytes that a process of it may have
    live: bool = False  # follows a dataset that is still growing
    folder: str  # absolute path of the job's own folder
    attempt: int = 1


class JobResult(Model):
    """`result.json`: written last and atomically; the service treats it as hostile input."""

    outcome: Literal["finished", "failed"]
    reason: str = Field("", max_length=2000)
    cell: int | None = None  # index of the cell that failed
    metrics: dict[str, Quantity] = Field(default={}, max_length=200)
    artifacts: list[Artifact] = Field(default=[], max_length=1000)
    software: dict[str, str] = Field(default={}, max_length=200)
    host: str = Field("", max_length=255)
    command: str = Field("", max_length=500_000)  # reproduces the job outside
