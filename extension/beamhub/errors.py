"""Errors that callers are told about: what happened, to what, and what to do now.

Whatever else is raised inside the service is a defect; these are answers. The HTTP API turns each into an
RFC 9457 problem document with the same words.
"""

# ruff: noqa: N818 (these are answers as HTTP names them)

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import JsonValue


class BeamhubError(Exception):
    """A refusal with a reason. `detail` says what happened to what; `remedy` says what to do now."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, remedy: str = "", *, errors: Sequence[dict[str, JsonValue]] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.errors = list(errors)

    def __str__(self) -> str:
        return f"{self.detail} {self.remedy}".strip()


class NotFound(BeamhubError):
    """There is no such thing, or the caller may not know that there is."""

    status = 404
    title = "Not found"


class Forbidden(BeamhubError):
    status = 403
    title = "Not allowed"


class Conflict(BeamhubError):
    """The request does not fit the state that things are in now; nothing was changed."""

    status = 409
    title = "Conflict"


class Gone(BeamhubError):
    status = 410
    title = "No longer there"


class TooLarge(BeamhubError):
    status = 413
    title = "Too large"


class Invalid(BeamhubError):
    status = 422
    title = "Not valid"


class BadName(Invalid):
    """A path that nothing can have here: a request that asks for it is no good, whatever else it says."""

    status = 400
    title = "Bad name"


class ChecksumMismatch(BeamhubError):
    """The bytes that arrived are not the bytes that were sent (460 is tus's own status code)."""

    status = 460
    title = "Checksum mismatch"


class DigestRequired(BeamhubError):
    """What is announced may be there already; only its digest can tell."""

    status = 428
    title = "Digest required"


class DiskFull(BeamhubError):
    status = 507
    title = "Disk full"


class QuotaExceeded(BeamhubError):
    status = 507
    title = "Quota exceeded"


class Unavailable(BeamhubError):
    """Not now: somebody has to do something first. The caller may ask again after `retry_after` seconds."""

    status = 503
    title = "Not now"
    retry_after: ClassVar[int] = 10


class TooMany(Unavailable):
    """One caller asks for more at once than is good for the others."""

    status = 429
    title = "Too many at once"
    retry_after = 2
