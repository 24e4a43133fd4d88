"""The service itself: how it is, and what a backup of it holds."""

from __future__ import annotations

from datetime import datetime

from beamhub.schemas.models import Model

__all__ = ["BackupManifest", "BackupTable", "Health"]


class Health(Model):
    """How the service is."""

    version: str
    warm: bool  # False soon after its start: the first jobs compile what later ones find compiled
    on_duty: bool = True  # this process runs the jobs; of several that share a database, one does


class BackupTable(Model):
    rows: int
    sha256: str  # of its lines


class BackupManifest(Model):
    """What a backup of the database holds."""

    version: str  # of beamhub
    revision: str  # of the tables
    created: datetime
    tables: dict[str, BackupTable]
