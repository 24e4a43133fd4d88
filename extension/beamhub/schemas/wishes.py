"""What is asked of jobs: to be made, made again, changed, cancelled."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from beamhub.schemas.jobs import Job
from beamhub.schemas.models import Model, Problem, Request
from beamhub.schemas.words import AgentPath, BigInt, NotebookPath, Priority, Slug, TemplateName

__all__ = [
    "ChosenInputs",
    "JobCancel",
    "JobChange",
    "JobCreate",
    "JobOutcome",
    "JobRerun",
    "JobWish",
    "JobsCancel",
    "JobsOnEach",
    "JobsRerun",
]


class JobChange(Request):
    """A member may lower the priority of own jobs; the instrument's staff may set any."""

    priority: Priority


ChosenInputs = Annotated[
    list[BigInt | AgentPath],
    Field(max_length=500, description="ids of datasets or jobs, or a file's path, as the template takes"),
]


class JobWish(Request):
    """What is to be run, and who pays: a template out of the catalogue, or a member's own notebook."""

    template: TemplateName | None = None
    notebook: NotebookPath | None = None
    parameters: dict[str, JsonValue] = {}
    profile: Slug | None = None
    sponsor: Slug
    force: bool = Field(False, description="run it even if an identical job has given a result already")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.template is None) == (self.notebook is None):
            raise ValueError("give either a template or a notebook")
        return self


class JobCreate(JobWish):
    """One job."""

    inputs: ChosenInputs = []


class JobsOnEach(JobWish):
    """One job for each of many datasets."""

    datasets: list[BigInt] | None = Field(
        None, min_length=1, max_length=500, description="without it: all of the experiment, of at most 500"
    )


class JobRerun(Request):
    """What is left out is as in the parent. A template that takes jobs gets the parent where `inputs` says
    nothing else."""

    template: TemplateName | None = None
    notebook: NotebookPath | None = None
    parameters: dict[str, JsonValue] | None = None
    inputs: ChosenInputs | None = None
    profile: Slug | None = None
    sponsor: Slug | None = None
    force: bool = Field(False, description="run it even if an identical job has given a result already")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.template is not None and self.notebook is not None:
            raise ValueError("give either a template or a notebook")
        return self


class JobsRerun(Request):
    """Several jobs again: each as it was, but for what is given here."""

    jobs: list[BigInt] = Field(min_length=1, max_length=500)
    parameters: dict[str, JsonValue] = Field({}, description="these are changed, others stay as they were")
    profile: Slug | None = None
    sponsor: Slug | None = None
    force: bool = Field(False, description="run them even if they would repeat a job that has finished")


class JobsCancel(Request):
    jobs: list[BigInt] = Field(min_length=1, max_length=500)
    reason: Annotated[str, StringConstraints(max_length=500)] = ""


class JobOutcome(Model):
    """What came of a wish for one of several jobs: the job as it is now, or the new one; or why nothing."""

    asked: int  # id of the job that was named
    job: Job | None = None
    problem: Problem | None = None


class JobCancel(Request):
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
