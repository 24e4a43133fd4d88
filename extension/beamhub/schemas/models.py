"""What every model is made of, and what all nouns share: pages, problems, quantities."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from beamhub.schemas.words import Reason

__all__ = ["Because", "Model", "Page", "Problem", "Quantity", "Request"]

T = TypeVar("T")


class Model(BaseModel):
    """What the service answers with: immutable; readable from a row of the store."""

    model_config = ConfigDict(frozen=True, from_attributes=True, extra="ignore")


class Request(BaseModel):
    """What somebody sends: immutable, and a field nobody knows is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(Model, Generic[T]):
    """One page of a list; `next` is the cursor of the following page, or None on the last."""

    items: list[T]
    next: str | None = None


class Problem(Model):
    """An error as RFC 9457 has it: what happened (title), to what (detail), and what to do now (remedy)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    remedy: str = ""
    errors: list[dict[str, JsonValue]] = []


class Quantity(Model):
    """A number (or text, or list of numbers) with its unit; unit "" is dimensionless."""

    value: float | int | str | bool | list[float] | None
    unit: str = ""


class Because(Request):
    """Why somebody does something."""

    reason: Reason = Field(min_length=1)
