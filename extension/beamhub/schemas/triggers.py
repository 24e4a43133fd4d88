"""Trigger rules."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from beamhub.schemas.datasets import DatasetKind
from beamhub.schemas.models import Model, Request
from beamhub.schemas.words import Line, Priority, Slug, TemplateName

__all__ = [
    "Trigger",
    "TriggerChange",
    "TriggerCondition",
    "TriggerCreate",
    "TriggerEvent",
    "TriggerGroup",
    "TriggerOverride",
    "TriggerVersion",
]


Expression = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]  # beamhub.expressions
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class TriggerEvent(StrEnum):
    """What a rule waits for."""

    DATASET_STARTED = "dataset.started"
    DATASET_FRAMES = "dataset.frames"  # more can be read: every so many, or at parts of what was announced
    DATASET_COMPLETE = "dataset.complete"
    DATASET_INCOMPLETE = "dataset.incomplete"  # stopped early
    FILE_COMPLETE = "file.complete"  # any file from the instrument
    JOB_FINISHED = "job.finished"
    EXPERIMENT_ACTIVATED = "experiment.activated"
    EXTERNAL = "external"  # told by another program of the facility


class TriggerCondition(Request):
    """What must hold as well, of the dataset and of the event."""

    kind: DatasetKind | None = None
    min_frames: int = Field(1, ge=1)
    expression: Expression = Field(
        "", description="such as `wavelength < 1.1 and frames >= 100` (beamhub.expressions)"
    )
    every: int | None = Field(None, ge=1, description="dataset.frames: at every so many frames")
    at: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        [], max_length=20, description="dataset.frames: at these per cent of the announced frames"
    )
    template: TemplateName | None = Field(None, description="job.finished: of a job of this template")
    name: Slug | None = Field(None, description="external: of this name")


class TriggerGroup(Request):
    """What has the same value of `by` in an experiment makes one job, on all of it, as soon as nothing more
    has come for `wait` seconds, or `at_most` are together. Fewer than `at_least` make none."""

    by: Expression = Field(
        "", description="an expression such as `sample_name` or `folder`; empty: all of the experiment"
    )
    wait: int = Field(ge=1, le=7 * 86400, description="seconds")
    at_least: int = Field(1, ge=1, le=200)
    at_most: int = Field(200, ge=1, le=200)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.at_least > self.at_most:
            raise ValueError("at_least can't be more than at_most")
        return self


class Trigger(Model):
    """A trigger rule: of an instrument, as it applies in an experiment of it, or of one experiment alone."""

    id: int
    instrument: str
    experiment: str | None = None  # the only one that it is for; None: all of the instrument
    version: int  # grows with each change; a rule version starts at most one job per dataset and event
    title: str
    event: TriggerEvent
    pattern: str  # glob on the name of the dataset or file, or if it has a slash, on the path
    condition: TriggerCondition = TriggerCondition()
    group: TriggerGroup | None = None  # None: each occasion starts a job
    template: str
    parameters: dict[str, JsonValue]
    profile: str
    sponsor: str
    priority: int = 0  # of its jobs: the higher ones are started first
    enabled: bool
    changed: list[str] = []  # what is not as on the instrument: the experiment has changed it for itself


class TriggerCreate(Request):
    """A rule that is not there yet."""

    title: Line
    event: TriggerEvent
    pattern: Pattern = "*"
    condition: TriggerCondition = TriggerCondition()
    group: TriggerGroup | None = None
    template: TemplateName
    parameters: dict[str, JsonValue] = {}
    profile: Slug
    sponsor: Slug
    priority: Priority = 0
    enabled: bool = True


class _Tuning(Request):
    """What an experiment may have otherwise than its instrument."""

    template: TemplateName | None = None
    parameters: dict[str, JsonValue] | None = None
    profile: Slug | None = None
    sponsor: Slug | None = None
    priority: Priority | None = None
    enabled: bool | None = None


class TriggerChange(_Tuning):
    """What is given is changed. `group: null` has each occasion start a job again."""

    title: Line | None = None
    event: TriggerEvent | None = None
    pattern: Pattern | None = None
    condition: TriggerCondition | None = None
    group: TriggerGroup | None = None


class TriggerOverride(_Tuning):
    """What an experiment changes of a rule of its instrument, for itself. What is given is changed; null
    takes it back to what the instrument's rule says."""


class TriggerVersion(Model):
    """One change of a rule: by whom, when, and what it said from then on."""

    rule: int
    version: int
    time: datetime
    author: str
    experiment: str | None  # whose own change of the instrument's rule it was; None: of the rule itself
    change: Literal["created", "changed", "deleted"]
    data: dict[str, JsonValue]  # the whole rule; of an experiment's own change: all that differs in it
