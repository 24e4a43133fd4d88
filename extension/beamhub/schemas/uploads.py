"""Files on their way, or arrived."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from beamhub.schemas.models import Model, Request
from beamhub.schemas.words import Digest, DigestAlgorithm

__all__ = ["Registration", "Upload", "UploadState"]


class UploadState(StrEnum):
    RECEIVING = "receiving"
    COMPLETE = "complete"  # verified, fsynced, published
    FAILED = "failed"
    SUPERSEDED = "superseded"  # a newer version of the same name has been published
    QUARANTINED = "quarantined"  # arrived, but built to mislead its readers: nobody gets it


class Upload(Model):
    """One file on its way, or arrived."""

    id: str
    experiment: str
    instrument: str | None
    path: str  # relative to the experiment's folder
    size: int  # of one whose length is deferred: what has come
    offset: int
    digest: Digest | None  # None: the sender announced none, and not all has come
    digest_by: Literal["sender", "service"] = "sender"  # the service computes what nobody has announced
    version: int
    state: UploadState
    source: str | None = None  # where a file lies that was registered in place: none of its bytes were sent
    concat: str | None = None  # tus: "partial", or "final;" and the uploads that it was put together from
    metadata: str | None = None  # tus: the Upload-Metadata with which it was announced
    deferred: bool = False  # tus: its length is still to come
    digest_follows: DigestAlgorithm | None = None  # the sender tells this digest with the last bytes
    frames: int | None = None  # that can be read in a detector's file, also while it is still written
    error: str = ""
    created: datetime
    ended: datetime | None
    created_by: str


class Registration(Request):
    """A file that lies on storage which the service sees, to be published without sending its bytes."""

    source: str = Field(description="its absolute path, as the service sees it")
    filename: str = Field(description="its path below raw/")
    size: int = Field(ge=0, le=2**63 - 1)
    digest: Digest
    experiment: str | None = Field(None, description="that has to be active; without it, the one that is")
