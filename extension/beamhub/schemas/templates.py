"""Parameterised notebooks."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue

from beamhub.schemas.models import Model

__all__ = ["Inputs", "MetricSpec", "Scaling", "Template"]


class MetricSpec(Model):
    """A metric that a template declares."""

    title: str
    unit: str = ""
    description: str = ""
    better: Literal["higher", "lower"] | None = None
    good: float | None = None
    acceptable: float | None = None
    format: str = ""  # how to print it, as str.format has it: ".2f"


Inputs = Literal["dataset", "datasets", "job", "jobs", "file", "none"]  # what a template works on


class Scaling(Model):
    """How the runtime of a template falls with CPUs: a part of the work is shared by them (Amdahl)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parallel: float = Field(ge=0, le=1, description="the part of the runtime on one CPU that is shared")
    cpus: int | None = Field(None, ge=1, description="more than these do not help; null: any number does")
    note: str = Field("", max_length=500)


class Template(Model):
    """A parameterised notebook."""

    name: str
    notebook: str | None = None  # its path in the experiment, for a member's own outside of the catalogue
    version: str  # sha256 of the notebook's content, first 16 hexadecimal digits
    title: str
    technique: str
    description: str
    parameters: dict[str, JsonValue]  # JSON Schema (2020-12) of an object
    inputs: Inputs
    metrics: dict[str, MetricSpec]
    requires: dict[str, list[str]]  # {"programs": [...], "python": [...]}
    missing: list[str]  # what of that this facility lacks; empty: can run
    profile: str
    scaling: Scaling | None = None
    live: bool = False  # follows a dataset that is still growing
    source: Literal["shipped", "facility", "experiment"]
