"""What the tests of uploads have in common."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash
from beamhub.access import Principal
from beamhub.batches import Batches, Whole
from beamhub.body import Chunks
from beamhub.errors import BeamhubError
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.schemas import Event, Upload, UploadState
from beamhub.store import Store
from beamhub.uploads import Uploads

OPERATOR = Principal("root", "user", operator=True)
SAM, ADA, BEN, EVE = (Principal(name, "user") for name in ("sam", "ada", "ben", "eve"))
AGENT = Principal("instrument:mx", "instrument", instrument="mx")
OTHER_AGENT = Principal("instrument:other", "instrument", instrument="other")


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def xxh128(content: bytes) -> str:
    return f"xxh128:{xxhash.xxh3_128_hexdigest(content)}"


def parts(content: bytes, size: int = 1000) -> Chunks:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return Chunks(chunks())


class Halting(Chunks):
    """A body that halts behind its beginning, until it may go on."""

    def __init__(self, beginning: bytes, rest: bytes) -> None:
        super().__init__(self._halting(beginning, rest))
        self.halts, self.go_on = asyncio.Event(), asyncio.Event()

    async def _halting(self, beginning: bytes, rest: bytes) -> AsyncIterator[bytes]:
        yield beginning
        self.halts.set()
        await self.go_on.wait()
        yield rest


async def broken(content: bytes) -> AsyncIterator[bytes]:
    """A connection that breaks after these bytes."""
    yield content
    raise ConnectionResetError("the peer has gone")


@dataclass
class Site:
    store: Store
    live: Live
    folder: Path
    experiments: Experiments
    uploads: Uploads
    experiment: str

    async def announce(self, name: str, content: bytes, who: Principal = AGENT) -> Upload:
        experiment = None if who.instrument else self.experiment
        return await self.uploads.create(who, name, len(content), sha256(content), experiment)

    async def send(self, name: str, content: bytes, who: Principal = AGENT) -> Upload:
        upload = await self.announce(name, content, who)
        if upload.state is not UploadState.RECEIVING:
            return upload
        return await self.uploads.append(who, upload.id, 0, parts(content))

    def content(self, path: str) -> bytes:
        return (self.folder / self.experiment / path).read_bytes()

    def published(self) -> set[str]:
        root = self.folder / self.experiment
        found = (path for area in ("raw", "shared") for path in (root / area).rglob("*") if path.is_file())
        return {str(path.relative_to(root)) for path in found}

    def incoming(self) -> list[str]:
        return os.listdir(self.folder / self.experiment / ".incoming")  # noqa: PTH208

    def events(self, *kinds: str) -> list[Event]:
        events = self.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
        return [event for event in events if event.kind in kinds]


async def deliver(
    uploads: Uploads, who: Principal, files: Sequence[Whole], experiment: str | None = None
) -> Sequence[Upload | BeamhubError]:
    """As a batch, by the process that these are of."""
    return await Batches(uploads._store, uploads).deliver(who, files, experiment)


async def begin_part(
    site: Site, content: bytes, who: Principal = AGENT, *, sent: int | None = None
) -> Upload:
    experiment = None if who.instrument else site.experiment
    part = await site.uploads.create(who, "part", len(content), None, experiment, partial=True)
    return await site.uploads.append(who, part.id, 0, parts(content[:sent]))
