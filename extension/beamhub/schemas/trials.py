"""What a rule makes, or would make, of what has happened."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from beamhub.schemas.models import Model, Request
from beamhub.schemas.triggers import Trigger, TriggerCondition, TriggerCreate, TriggerEvent
from beamhub.schemas.words import AgentPath, BigInt, Line, Slug

__all__ = [
    "JobRule",
    "JobRuleMade",
    "TriggerCall",
    "TriggerGathering",
    "TriggerReplay",
    "TriggerSubject",
    "TriggerTrial",
    "TriggerTryOut",
]


class TriggerTryOut(Request):
    """A rule that is only tried out, on what has happened to the last datasets."""

    rule: TriggerCreate
    datasets: int = Field(50, ge=1, le=200, description="how many of the last datasets to look at")


class TriggerSubject(Model):
    """What an event has happened to."""

    kind: Literal["dataset", "file", "job", "experiment"]
    id: str  # of a file: its upload's
    name: str


class TriggerTrial(Model):
    """What a rule makes of one occasion, or of several together: the job that it starts, or why it starts
    none."""

    rule: int = 0  # 0: it was only tried out
    experiment: str
    subjects: list[TriggerSubject]  # more than one: they were gathered for one job
    event: TriggerEvent
    time: datetime  # of the last one
    starts: bool
    reason: str = ""  # why not
    parameters: dict[str, JsonValue] = {}
    job: int | None = None  # that was started on this occasion, now or earlier


class TriggerReplay(Request):
    """What to follow a rule on now, as if all that has happened to it happened again."""

    datasets: list[BigInt] = Field([], max_length=500)
    files: list[AgentPath] = Field([], max_length=500, description="paths in an experiment's folder")
    experiments: list[AgentPath] = Field([], max_length=500)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.datasets and not self.files and not self.experiments:
            raise ValueError("say on which datasets, files or experiments")
        return self

    def admits(self, subject: TriggerSubject) -> bool:
        """Whether it is about this, too."""
        match subject.kind:
            case "dataset":
                return int(subject.id) in self.datasets
            case "file":
                return subject.name in self.files
            case "experiment":
                return subject.id in self.experiments
        return False


class JobRule(Request):
    """Make a job's template, parameters, profile and sponsor a rule of its instrument."""

    title: Line | None = Field(None, description="without it: the template's")
    event: TriggerEvent = TriggerEvent.DATASET_COMPLETE
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "*"
    condition: TriggerCondition = TriggerCondition()
    sponsor: Slug | None = Field(None, description="without it: the job's")
    replaces: BigInt | None = Field(None, description="a rule that becomes this one; without it: a new rule")
    backfill: list[BigInt] = Field([], max_length=500, description="datasets to follow it on at once")


class JobRuleMade(Model):
    """The rule that a job has become, and what it has started on the datasets that were chosen."""

    rule: Trigger
    backfill: list[TriggerTrial]


class TriggerGathering(Model):
    """A job in the making: what a rule has gathered for it so far."""

    id: int
    rule: int
    experiment: str
    value: str  # what all of it has in common
    count: int
    started: datetime
    due: datetime | None = None  # when its job starts, unless more comes or automation is paused
    ended: datetime | None  # None: it still waits for more
    job: int | None = None
    reason: str = ""  # why there is no job


class TriggerCall(Request):
    """Something that another program of the facility tells about a dataset."""

    name: Slug
    dataset: BigInt
    values: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")], JsonValue] = Field(
        {}, max_length=50, description="numbers and texts for expressions, where they are `event.<name>`"
    )
