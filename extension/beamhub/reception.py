"""Reception: bytes on their way from a sender into a temporary file and its digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from beamhub.access import Principal
from beamhub.announcements import MAX_SIZE, Quota
from beamhub.body import Body, Followed, pieces
from beamhub.digests import ALGORITHMS, Hasher
from beamhub.errors import Conflict, Invalid, QuotaExceeded, TooLarge, TooMany
from beamhub.events import Live
from beamhub.incoming import Held, damaged, explained, only_checksums
from beamhub.schemas import Upload
from beamhub.store import Store
from beamhub.store.uploads import PARTIAL
from beamhub.underway import Underway
from beamhub.workers import Workers

AT_ONCE = 64  # requests; an agent has at most half as many files in flight
PROGRESS = 0.25  # seconds between live messages about one upload
# of single requests, on their way
CHECKSUMS: Mapping[str, Callable[[], Hasher]] = {
    "sha1": partial(hashlib.sha1, usedforsecurity=False),  # tus demands it
    "md5": partial(hashlib.md5, usedforsecurity=False),
    **{str(name): hasher for name, hasher in ALGORITHMS.items()},
}


class Reception:
    """What takes in the bytes of all uploads."""

    def __init__(
        self, store: Store, live: Live, workers: Workers, underway: Underway, at_once: int = AT_ONCE
    ) -> None:
        """`at_once`: how many requests of one principal may bring bytes at a time."""
        self._store = store
        self._live = live
        self._workers = workers
        self._incoming = workers.incoming
        self._underway = underway
        self._at_once = at_once
        self._sending: Counter[tuple[str, str]] = Counter()

    @contextlib.contextmanager
    def one_more(self, principal: Principal, weight: int = 1) -> Iterator[None]:
        """Counts the requests of a principal that bring bytes; a client that holds many open keeps nobody
        else from sending."""
        who = (principal.kind, principal.name)
        if self._sending[who] + weight > self._at_once:
            raise TooMany(
                f"{principal.name} is sending {self._at_once} files already.", "Wait until one has arrived."
            )
        self._sending[who] += weight
        try:
            yield
        finally:
            self._sending[who] -= weight
            if not self._sending[who]:
                del self._sending[who]

    def collecting(self, principal: Principal) -> contextlib.AbstractContextManager[None]:
        """As `one_more`, while many files are collected in memory: so they count as many requests."""
        return self.one_more(principal, max(1, self._at_once // 4))

    async def receive(
        self, upload: Upload, file: Held, body: Body, checksum: tuple[str, bytes] | None
    ) -> None:
        """Adds a body to the file, and to the running digest if all before it is in there. Bytes that neither
        the checksum nor the digest behind them fits are forgotten: ChecksumMismatch. Raises Invalid where the
        digest behind them is of another algorithm than the file's."""
        hasher = _hasher(checksum)
        limit, too_much = await self._limit(upload)
        takers: list[Callable[[memoryview], object]] = [hasher.update] if hasher else []
        running = self._underway.of(upload, file)
        before = running.copy() if checksum else running
        followed = body if isinstance(body, Followed) else None
        if followed and followed.algorithm != running.algorithm:
            raise Invalid(
                f"The digests of {upload.path} are {running.algorithm}, not {followed.algorithm}.",
                "Send those.",
            )
        if (followed or upload.concat != PARTIAL) and running.position == upload.offset:
            takers.append(running.add)
        told = 0.0
        doubtful = checksum is not None and only_checksums(upload)
        try:
            if doubtful:
                await self._workers.whole(self._incoming.marks.doubt, upload, upload.offset)
            while await body.come():
                if not await self._workers.receive(file.receive, body, limit, takers):
                    raise too_much
                if time.monotonic() - told >= PROGRESS:
                    self._tell(upload, file.position)
                    told = time.monotonic()
            if checksum and hasher and not secrets.compare_digest(hasher.digest(), checksum[1]):
                raise damaged(upload)
        except BaseException as error:
            # what no checksum vouches for, or a full disk has cut, has not arrived
            await self._workers.whole(file.cut, upload.offset if checksum else file.position)
            if doubtful:
                await self._workers.whole(self._incoming.marks.believe, upload)
            self._underway.keep(upload, file, before)
            if isinstance(error, OSError):
                raise explained(error, upload) from error
            raise
        if doubtful:
            await self._workers.whole(self._incoming.marks.believe, upload)
        self._underway.keep(upload, file, running)
        if followed and followed.digest:
            await self._compare(upload, file, followed.digest)
        self._tell(upload, file.position)

    async def _compare(self, upload: Upload, file: Held, digest: str) -> None:
        """All that has come with its digest, as its sender has told it. Raises ChecksumMismatch."""
        if self._underway.of(upload, file).position < file.position:
            while not await self._workers.read(upload, self._underway.read_back, upload, file):
                pass
        if not await self._workers.whole(self._underway.agrees, upload, file, digest):
            await self._workers.whole(self._underway.take_back, upload, file)
            raise damaged(upload)

    async def replace(
        self, file: Held, begin: int, end: int, body: Body, checksum: tuple[str, bytes] | None
    ) -> None:
        """Replaces the bytes from `begin` to before `end` of what has come of a held file."""
        upload, hasher = file.upload, _hasher(checksum)
        if end > file.size():
            raise Conflict(
                f"{file.size()} bytes of {upload.path} have come, so none before {end} can be replaced.",
                "Ask for the offset.",
            )
        block = bytearray()
        async for piece in pieces(body):
            block += piece
            if len(block) > end - begin:
                break
        if len(block) != end - begin:
            raise Invalid(f"These are not the {end - begin} bytes that were announced.", "Send them again.")
        if checksum and hasher:
            hasher.update(block)
            if not secrets.compare_digest(hasher.digest(), checksum[1]):
                raise damaged(upload)
        try:
            await self._workers.whole(self._underway.replace, upload, file, begin, bytes(block))
        except OSError as error:
            raise explained(error, upload) from error

    async def _limit(self, upload: Upload) -> tuple[int, Exception]:
        """How many bytes an upload can have, and what to tell who sends more."""
        if not upload.deferred:
            return upload.size, TooLarge(
                f"{upload.path} was announced with {upload.size} bytes, and more came.",
                "Announce it again, with its real size.",
            )
        free = await self._workers.run(self._incoming.free, upload)
        left = await self._store.read(lambda tx: Quota.of(tx, upload.experiment).left)
        full = explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), upload)
        quota = QuotaExceeded(
            f"{upload.path} has grown beyond the quota of {upload.experiment}.",
            "Ask the staff of its instrument to raise the quota; then send on: what has arrived is kept.",
        )
        too_long = TooLarge(f"{upload.path} has grown beyond {MAX_SIZE} bytes.", "Send it in several files.")
        limits = ((MAX_SIZE, too_long), (upload.offset + free, full), (upload.offset + left, quota))
        return min(limits, key=lambda limit: limit[0])

    def _tell(self, upload: Upload, offset: int) -> None:
        if upload.concat == PARTIAL:
            return
        self._live.publish(
            "upload.progress",
            experiment=upload.experiment,
            instrument=upload.instrument,
            subject=upload.id,
            data={
                "path": upload.path,
                "size": max(upload.size, offset),
                "offset": offset,
                "deferred": upload.deferred,
            },
        )


def _hasher(checksum: tuple[str, bytes] | None) -> Hasher | None:
    """What computes such a checksum. Raises Invalid."""
    if checksum is None:
        return None
    if checksum[0] not in CHECKSUMS:
        raise Invalid(f"The checksum {checksum[0]!r} is not known.", f"Use one of {', '.join(CHECKSUMS)}.")
    return CHECKSUMS[checksum[0]]()
