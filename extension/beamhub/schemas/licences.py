"""Allowances of CPU time, and the ledger of what became of them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from beamhub.schemas.experiments import ExperimentState
from beamhub.schemas.models import Model, Request
from beamhub.schemas.people import Role
from beamhub.schemas.words import Line, Slug, TemplateName, UserName

__all__ = [
    "Correction",
    "Grant",
    "Granted",
    "LabTerms",
    "LedgerKind",
    "LedgerLine",
    "Licence",
    "LicenceCreate",
    "Sponsor",
    "SponsorshipRule",
]


class SponsorshipRule(Request):
    """When a lab's licence pays. All that is given has to hold; what is left out may be anything. `roles`
    are people's: what starts by itself has none, and is not asked for it."""

    instruments: list[Slug] = Field([], max_length=50)
    experiments: list[Annotated[str, StringConstraints(min_length=1, max_length=60)]] = Field(
        [], max_length=200
    )
    templates: list[TemplateName] = Field([], max_length=100)
    roles: list[Role] = Field([], max_length=4)
    states: list[ExperimentState] = Field([], max_length=4)
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = None


class LabTerms(Request):
    """A lab's licence pays for what fits one of these rules; without any, for everything on its
    instruments."""

    rules: list[SponsorshipRule] = Field(max_length=50)


class Licence(Model):
    """An allowance of CPU time; `available` = granted - charged - held."""

    id: str
    title: str
    kind: Literal["user", "lab"]
    owner: str | None  # of a user licence
    instruments: list[str]  # that a lab licence sponsors
    granted: int
    charged: int
    held: int
    available: int
    valid_from: datetime
    valid_until: datetime | None
    low: bool = False  # at most a tenth of it is left
    terms: list[SponsorshipRule] = []  # of which one has to fit; none: it pays for everything


class Sponsor(Licence):
    """A licence as it may pay for jobs of the caller in an experiment."""

    refusal: str = ""  # why it does not pay there now


class LicenceCreate(Request):
    id: Slug
    title: Line
    kind: Literal["user", "lab"]
    owner: UserName | None = None
    instruments: list[Slug] = []
    cpu_hours: float = Field(0, ge=0, le=1e9)
    valid_until: datetime | None = None
    terms: list[SponsorshipRule] = Field([], max_length=50)


class Grant(Request):
    """CPU-hours more; with a validity, what is left of them at its end is booked away."""

    cpu_hours: float = Field(gt=0, le=1e9)
    valid_from: AwareDatetime | None = Field(None, description="without it, now")
    valid_until: AwareDatetime | None = Field(None, description="without it, as long as the licence")
    note: Annotated[str, StringConstraints(max_length=500)] = ""

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if self.valid_from and self.valid_until and self.valid_until <= self.valid_from:
            raise ValueError("valid_until has to be later than valid_from")
        return self


class Granted(Model):
    """A part of a licence's allowance."""

    id: int
    licence: str
    cpu_seconds: int
    left: int  # that has neither been charged nor has expired
    counts: bool  # it has begun; before, it is not part of what the licence has
    valid_from: datetime
    valid_until: datetime | None
    created: datetime
    actor: str
    note: str


class Correction(Request):
    """What an attempt of a job has used in truth, as the facility's accounts say later."""

    attempt: int = Field(ge=1, le=1000)
    cpu_seconds: int = Field(ge=0, le=2**53)
    note: Annotated[str, StringConstraints(max_length=500)] = ""


class LedgerKind(StrEnum):
    GRANT = "grant"
    HOLD = "hold"
    CHARGE = "charge"
    RELEASE = "release"
    EXPIRE = "expire"  # what was left of a grant at its end
    CORRECTION = "correction"  # of what an attempt was charged: more, or (below 0) less


class LedgerLine(Model):
    id: int
    licence: str
    time: datetime
    kind: LedgerKind
    cpu_seconds: int
    job: int | None
    attempt: int | None = None  # of the job
    actor: str
    note: str
