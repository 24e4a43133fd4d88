"""Jobs side by side: from which others one was made, and what differs."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from beamhub.schemas.jobs import JobState, SeriesPage
from beamhub.schemas.models import Model

__all__ = ["Comparison", "ComparisonRow", "Difference", "Lineage", "Relative"]


class Relative(Model):
    """A job as its relatives are listed."""

    id: int
    title: str
    template: str
    state: JobState
    launched_by: str
    parent: int | None
    created: datetime


class Difference(Model):
    """Something that a job was asked otherwise than its parent."""

    group: Literal["template", "parameters", "inputs", "job"]
    name: str
    before: JsonValue
    after: JsonValue


class Lineage(Model):
    """Which jobs a job was made from, which were made from it, and what differs from its parent."""

    ancestors: list[Relative]  # the parent first
    children: list[Relative]  # oldest first, at most 500
    differences: list[Difference]
    notebook: list[str]  # lines of a unified diff of the templates' cells: " same", "-before", "+after"


class ComparisonRow(Model):
    """One property of several jobs: a value for each, null where a job has none."""

    group: Literal["job", "parameters", "metrics"]
    name: str
    values: list[JsonValue]
    unit: str = ""
    differ: bool


class Comparison(Model):
    """Several jobs side by side."""

    jobs: list[int]
    rows: list[ComparisonRow]
    series: dict[str, list[SeriesPage | None]]  # name -> rows of each job, null where a job has none
