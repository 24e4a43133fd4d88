"""The append-only log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from beamhub.schemas.models import Model

__all__ = ["Event"]


class Event(Model):
    """One line of the append-only log. `id` is the SSE id; kinds are `<noun>.<what happened>`."""

    id: int
    time: datetime
    kind: str  # dataset.started, dataset.complete, file.complete, job.<state>, member.added, ...
    instrument: str | None
    experiment: str | None
    subject: str  # id of the dataset, job, upload, user, ...
    actor: str
    data: dict[str, Any]
