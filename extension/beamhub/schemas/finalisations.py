"""Whether all data of an experiment have arrived."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from beamhub.schemas.models import Model, Request
from beamhub.schemas.words import Reason

__all__ = ["Finalisation", "FinalisationState", "FinaliseRequest"]


class FinalisationState(StrEnum):
    CHECKING = "checking"  # asks the agent, and compares
    BLOCKED = "blocked"  # something is missing or different
    HASHING = "hashing"  # nothing arrives any more; the manifest is being made
    DONE = "done"
    OUTDATED = "outdated"  # done, but something has changed since


class Finalisation(Model):
    """Whether all of an experiment's raw data have arrived, and the manifest that says so."""

    experiment: str
    state: FinalisationState
    differences: list[str]  # between what the agent knows, the store and the disk, in plain words
    forced: bool  # signed off in spite of them
    reason: str
    created: datetime
    created_by: str
    ended: datetime | None
    progress: float = 0.0  # 0..1, of the manifest


class FinaliseRequest(Request):
    force: bool = Field(False, description="sign off in spite of differences; needs a reason")
    reason: Reason = ""

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if self.force and not self.reason:
            raise ValueError("say why it is to be signed off in spite of differences")
        return self
