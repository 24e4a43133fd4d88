"""Runs of templates, and what came of them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import JsonValue

from beamhub.schemas.models import Model, Quantity
from beamhub.schemas.profiles import Profile

__all__ = [
    "Artifact",
    "Attempt",
    "Job",
    "JobFailure",
    "JobInput",
    "JobProgress",
    "JobState",
    "JobStep",
    "SeriesPage",
]


class JobState(StrEnum):
    PENDING = "pending"  # waits for credit
    QUEUED = "queued"  # credit is held; waits for CPUs
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


class JobInput(Model):
    kind: Literal["dataset", "job", "file"] = "dataset"
    id: int | None  # of the dataset or job; a file is known by its name
    name: str = ""  # of the dataset; title of the job; path of the file in the experiment's folder
    note: str = ""  # what has become of it since


class JobProgress(Model):
    fraction: float | None = None  # 0..1
    step: str = ""


class Artifact(Model):
    """A file that a job made."""

    path: str  # relative to the job's folder
    title: str = ""
    kind: Literal["plot", "data", "log", "notebook"] = "data"
    size: int = 0
    digest: str = ""  # sha256


class JobFailure(Model):
    """Where and with which last words a job has failed; why is the job's reason."""

    cell: int | None = None  # index in the notebook
    title: str = ""  # of the cell: the heading above it, or its first line
    log: str = ""  # the end of the job's log


class Job(Model):
    """One run of one template version with one parameter set."""

    id: int
    experiment: str
    template: str
    template_version: str
    notebook: str | None = None  # path in the experiment, of a job that a member's own notebook was run as
    template_changed: bool | None = None  # since the job was made; null: not looked up, or there is none now
    title: str  # of the template
    state: JobState
    reason: str  # why it is pending, failed or cancelled: one plain sentence
    parameters: dict[str, JsonValue]
    inputs: list[JobInput]
    profile: Profile
    live: bool  # follows a dataset that is still growing
    sponsor: str
    launched_by: str  # a user's name, or "trigger:<rule id>"
    rule_version: int | None = None  # of the rule that has started it
    priority: int = 0  # higher goes first
    parent: int | None
    # an earlier job with the same template version, parameters, inputs and software: its result is the same.
    # Its own id in the answer to a wish that it fulfils already
    repeats: int | None = None
    created: datetime
    started: datetime | None
    ended: datetime | None
    cpu_seconds: int  # charged
    progress: JobProgress
    metrics: dict[str, Quantity]
    artifacts: list[Artifact]
    failure: JobFailure | None = None  # of a failed job
    folder: str  # relative to the experiment's folder: processed/<id>


class Attempt(Model):
    """One of the times that a job was queued, and what became of it. Each is paid for as it was used."""

    job: int
    number: int  # from 1
    runner: str
    ref: str  # the runner's own name for it, such as "slurm 4711"; "" while none has it
    host: str  # "" as long as it is not known
    queued: datetime
    started: datetime | None
    ended: datetime | None
    outcome: Literal["finished", "failed", "cancelled", "interrupted"] | None  # interrupted: another follows
    reason: str
    cpu_seconds: int  # charged
    exit_code: int | None
    cell: int | None  # index of the cell that failed


class JobStep(Model):
    """A change of a job's state."""

    time: datetime
    state: JobState
    reason: str
    actor: str  # whose doing it was


class SeriesPage(Model):
    """Rows of one of a job's series from row `after` on; ask again with `next`."""

    columns: dict[str, str]  # name -> unit
    items: list[dict[str, JsonValue]]
    next: int
