"""Words and numbers that are checked wherever they come in: names, paths, reasons, digests."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

__all__ = [
    "AgentPath",
    "BigInt",
    "Digest",
    "DigestAlgorithm",
    "Line",
    "NotebookPath",
    "Priority",
    "Reason",
    "Slug",
    "TemplateName",
    "UserName",
]


def _plain(text: str) -> str:
    """Names and titles are one line of printable text: no control characters, no bidirectional overrides."""
    if any(not c.isprintable() for c in text) or re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", text):
        raise ValueError("must be one line of printable text")
    return text


Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_plain)
]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,38}[a-z0-9]$")]
UserName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._@+-]{0,254}$")]
TemplateName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
DigestAlgorithm = Literal["sha256", "xxh128"]
# of a whole file; see beamhub.digests
Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|xxh128:[0-9a-f]{32})$")]
# of jobs; the higher ones are started first
Priority = Annotated[int, Field(ge=-100, le=100)]
BigInt = Annotated[int, Field(ge=1, le=2**63 - 1)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), AfterValidator(_plain)]
AgentPath = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_plain)]
NotebookPath = Annotated[
    AgentPath,
    StringConstraints(pattern=r"\.ipynb$"),
    Field(description="a member's own notebook: its path in the experiment, such as shared/mine.ipynb"),
]
