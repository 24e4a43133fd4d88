"""Many small files that are sent together."""

from __future__ import annotations

from pydantic import Field

from beamhub.schemas.models import Model, Problem, Request
from beamhub.schemas.uploads import Upload

__all__ = ["BATCH", "BATCH_BYTES", "BATCH_FILES", "Batch", "BatchFile", "Deliveries", "Delivery"]

BATCH = "application/vnd.beamhub.batch"  # a line of JSON, `Batch`, and the bytes of its files
BATCH_FILES, BATCH_BYTES = 256, 8 * 2**20  # at most


class BatchFile(Request):
    """One of many small files that are sent together. What is wrong with it is said of it alone."""

    filename: str = Field(description="its path below raw/, a user's below shared/")
    size: int = Field(ge=0, le=2**23, description="at most 1 MiB")
    digest: str | None = Field(
        None, description="of its bytes, algorithm:hexadecimal; without one, they are taken as they come"
    )
    key: str | None = Field(None, max_length=255, description="as an Idempotency-Key, of this file")


class Batch(Request):
    """What is sent together, in the order in which the bytes follow."""

    files: list[BatchFile] = Field(min_length=1, max_length=BATCH_FILES)
    experiment: str | None = Field(None, description="needed from users; an instrument's active one")


class Delivery(Model):
    """What has become of one file of a batch: its upload, or why it was refused."""

    upload: Upload | None = None
    problem: Problem | None = None


class Deliveries(Model):
    """One for each file of a batch, in its order."""

    items: list[Delivery]
