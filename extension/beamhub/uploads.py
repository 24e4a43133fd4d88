"""Uploads: files on their way into an experiment, by the rules of tus, without HTTP.

Bytes go to a temporary file; how many there are is its size, and nothing else. Each block goes into the
digest of the whole once the kernel has taken all of it. When the last one has come, that digest is compared
with the one that the sender announced, the file is flushed to the disk, given its name (never replacing what
is there), and only then the upload is complete. What has come by way of another process, or of one that is no
more, is read back for the digest. A kill at any moment leaves a temporary file to go on with, or one that
`recover` finishes: every step may be done twice.

Any number of processes may do all of this side by side, for the same uploads: who adds to a temporary file or
publishes it holds it, and who publishes under a name has claimed that name, both by locks that end with the
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from beamhub import access, folders, orders
from beamhub.access import Action, Principal
from beamhub.body import Body, Chunks, pieces
from beamhub.digests import ALGORITHMS, Hasher, Running, algorithm_of
from beamhub.errors import (
    BeamhubError,
    ChecksumMismatch,
    Conflict,
    DigestRequired,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    QuotaExceeded,
    TooLarge,
    TooMany,
)
from beamhub.events import Live, emit, emit_all
from beamhub.frames import formats
from beamhub.incoming import (
    AHEAD,
    USUAL,
    Held,
    Incoming,
    Stamp,
    busy,
    different,
    explained,
    flush,
    remove,
    running_digest,
    versions,
)
from beamhub.schemas import Digest, DigestAlgorithm, Page, Upload, UploadState
from beamhub.silence import Silences
from beamhub.store import Store, Transaction
from beamhub.store.uploads import PARTIAL, PUBLISHED

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """What published files turned out to be: why some are hostile, by their uploads' ids, and what is to be
    recorded of all others, in the transaction that completes their uploads."""

    hostile: Mapping[str, str]
    record: Callable[[Transaction], None]


# looks at files of one experiment that have just been published
Examine = Callable[[Sequence[Upload]], Awaitable[Findings]]

AT_ONCE = 64  # requests; an agent has at most half as many files in flight
EXPIRES = timedelta(days=1)  # after its last byte, an unfinished upload is given up
MAX_SIZE = 8 * 2**40  # bytes
THREADS = 4
BATCHES = 2  # prepared at a time; others wait for their turn
BATCH_FILE = 2**20  # bytes of one of the files of a batch, at most
REWRITE = 2**20  # bytes replaced at a time, at most
PROGRESS = 0.25  # seconds between live messages about one upload
LONGEST_PAUSE = 0.5  # seconds between looks at what another request with the same key is doing
CLAIM = 0.01  # seconds between attempts to claim a name that somebody else is publishing under
# of single requests, on their way
CHECKSUMS: Mapping[str, Callable[[], Hasher]] = {
    "sha1": partial(hashlib.sha1, usedforsecurity=False),  # tus demands it
    "md5": partial(hashlib.md5, usedforsecurity=False),
    **{str(name): hasher for name, hasher in ALGORITHMS.items()},
}
_DIGEST: TypeAdapter[str | None] = TypeAdapter(Digest | None)


class Uploads:
    """All uploads. `examine` is asked about each file when it is published (see beamhub.datasets)."""

    def __init__(
        self,
        store: Store,
        live: Live,
        data_dir: Path,
        examine: Examine,
        in_place: Mapping[str, Sequence[Path]] | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        """`in_place`: the folders from which an instrument may register files. `at_once`: how many requests
        of one principal may bring bytes at a time."""
        self._in_place = in_place or {}
        self._at_once = at_once
        self._sending: Counter[tuple[str, str]] = Counter()
        self._store = store
        self._live = live
        self._incoming = Incoming(data_dir)
        self._examine = examine
        self._threads = ThreadPoolExecutor(THREADS, "beamhub-upload")
        # threads of their own, which may wait for names: those who have the names need the others
        self._preparing = ThreadPoolExecutor(BATCHES, "beamhub-batch")
        # and those that receive large files, which are busy for long
        self._receivers = ThreadPoolExecutor(THREADS, "beamhub-receive")
        self._digests: dict[str, tuple[Stamp, Running]] = {}  # of uploads, and the file that they are of
        self._silences = Silences[str](EXPIRES)
        self._finishing: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Waits for the files that are being published."""
        await asyncio.gather(*self._finishing, return_exceptions=True)
        self._preparing.shutdown()
        self._threads.shutdown()
        self._receivers.shutdown()

    # --- the tus verbs ---

    async def create(
        self,
        principal: Principal,
        path: str,
        size: int | None,
        digest: str | None = None,
        experiment: str | None = None,
        *,
        key: str | None = None,
        partial: bool = False,
        digest_follows: DigestAlgorithm | None = None,
    ) -> Upload:
        """Announces a file of `size` bytes (None: `append` will tell) with this digest (see beamhub.digests).

        An instrument's file goes below raw/ of the experiment that is active at this moment, a user's below
        shared/ of `experiment`. A file that is there already, with the same content, comes back as its
        complete upload: nothing has to be sent. Without a digest, what comes is taken as it is; with
        `digest_follows`, nothing is published before `append` has brought that digest. Who announces
        it again with the same `key` gets the upload that the first announcement began, also when a kill has
        kept its answer back. With `partial`, it is a part for `concatenate`, and never published by itself.
        Raises Invalid, Conflict (no active experiment), Unavailable (paused), QuotaExceeded, DiskFull,
        DigestRequired (there is a file of this name and size, and only the digest tells whether it is this).
        """
        concat = PARTIAL if partial else None
        file = _File(path, size, digest, experiment, concat=concat, digest_follows=digest_follows)
        return await self._announce(principal, file, key)

    async def concatenate(
        self,
        principal: Principal,
        path: str,
        parts: Sequence[str],
        concat: str,
        digest: str | None = None,
        experiment: str | None = None,
        *,
        key: str | None = None,
    ) -> Upload:
        """Makes one file of these partial uploads, in this order; it is then verified and published like any
        other, and the parts are gone. `concat` is how tus names them. Raises as `create`, and Conflict if a
        part is not complete."""
        id_ = _id(principal, key) if key else None
        begun = await self._store.read(lambda tx: tx.uploads.get(id_) if id_ else None)
        if begun:
            file = _File(path, begun.size, digest, experiment, concat=concat)
            return await self._announce(principal, file, key)

        def look(tx: Transaction) -> list[Upload]:
            found = [_writable(tx, principal, part) for part in parts]
            for part in found:
                if part.concat != PARTIAL:
                    raise Invalid(
                        f"The upload {part.id} is not a part.", "Begin parts with Upload-Concat: partial."
                    )
                if part.deferred:
                    raise Conflict(f"The length of the part {part.id} is not known yet.", "Send it first.")
            if len(set(parts)) < len(parts) or len({part.experiment for part in found}) != 1:
                raise Invalid(
                    "The parts of one file are different uploads into one experiment.", "Check them."
                )
            return found

        found = await self._store.read(look)
        place, size = found[0].experiment, sum(part.size for part in found)

        async def join(_: Upload, file: Held) -> Held:
            with contextlib.ExitStack() as stack:
                held = [stack.enter_context(await self._held(self._incoming.hold, part)) for part in found]
                await self._whole(self._incoming.join, file, held)
            return file

        file = _File(path, size, digest, experiment or place, concat=concat)
        return await self._announce(principal, file, key, fill=join, parts=found)

    async def register(
        self,
        principal: Principal,
        source: str,
        path: str,
        size: int,
        digest: str,
        experiment: str | None = None,
        *,
        key: str | None = None,
    ) -> Upload:
        """Publishes a file that lies on storage which the service sees; returns once that is done.

        It is verified by reading it where it lies, and gets a second name in raw/ (a hard link), or is copied
        there where that can't be. Raises as `create`, and Forbidden (not below a folder that is open for
        this), NotFound, ChecksumMismatch (it is not as announced, or has changed).
        """
        where = PurePosixPath(source)
        roots = self._in_place.get(principal.instrument or "", ())
        root = next((root for root in roots if where.is_relative_to(root)), None)
        if root is None or ".." in where.parts or "\0" in source:
            raise Forbidden(
                f"{principal.name} may not register {source[:200]!r}: it does not lie in a folder that is "
                "open for this.",
                "Upload it, or ask the operators to open its folder (c.BeamhubApp.in_place).",
            )

        async def take(upload: Upload, file: Held) -> Held:
            try:
                return await self._whole(self._incoming.take, upload, root, file)
            except OSError as error:
                raise explained(error, upload) from error

        file = _File(path, size, digest, experiment, source=str(where))
        return await self._announce(principal, file, key, fill=take)

    async def _announce(
        self,
        principal: Principal,
        file: _File,
        key: str | None,
        *,
        fill: Callable[[Upload, Held], Awaitable[Held]] | None = None,
        parts: Sequence[Upload] = (),
    ) -> Upload:
        """The upload of this file, begun now or before. `fill` gets all its bytes from somewhere else than
        the sender, given the empty temporary file, and returns the file that has them."""
        file.check()
        id_ = _id(principal, key) if key else secrets.token_hex(16)
        pause = CLAIM
        while (upload := await self._attempt(principal, file, id_, fill, parts)) is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return upload

    async def _attempt(
        self,
        principal: Principal,
        file: _File,
        id_: str,
        fill: Callable[[Upload, Held], Awaitable[Held]] | None,
        parts: Sequence[Upload],
    ) -> Upload | None:
        """As `_announce`; None while another request announces the same with the same key."""

        def look(tx: Transaction) -> tuple[Upload, bool, _Kin | None]:
            if begun := _begun(tx, principal, id_):
                return begun, True, None
            proposed = file.proposed(principal, id_, *_destination(tx, principal, file.experiment))
            kin = _kin(tx, proposed.experiment, [proposed.path]) if file.concat != PARTIAL else {}
            return proposed, False, kin.get(proposed.path)

        upload, begun, kin = await self._store.read(look)
        if begun:
            if not file.is_of(upload):
                raise Invalid(
                    "The Idempotency-Key has announced another file before.", "Use a new key for each file."
                )
            waits = not _is_whole(upload, 0) and not upload.source
            if upload.state is not UploadState.RECEIVING or waits:
                return await self._run(self._incoming.measured, upload)
        elif kin:
            found = await self._run(self._versions, upload, kin)
            if isinstance(found, Upload):
                return found
            if file.digest_follows and any(there.size == file.size for there in kin.published.values()):
                raise DigestRequired(
                    f"There is a {file.path} of {file.size} bytes already.", "Announce it with its digest."
                )
        hold = self._incoming.hold if begun else self._incoming.make_room
        try:
            empty = await self._held(hold, upload)
        except Conflict:
            return None
        with contextlib.ExitStack() as until_then:
            until_then.enter_context(empty)
            if fill and not begun and await self._store.read(lambda tx: tx.uploads.get(id_) is not None):
                return None
            try:
                content = until_then.enter_context(await fill(upload, empty)) if fill else empty
                if not begun and not await self._store.write(lambda tx: _begin(tx, upload, parts)):
                    return None
            except Exception:
                if not begun:
                    await self._run(self._incoming.discard, upload)
                raise
            for part in parts:
                await self._run(self._incoming.discard, part)
            if file.concat == PARTIAL or not (fill or _is_whole(upload, 0)):
                return upload
            # a sender that goes away now does not stop what it has waited for
            return await asyncio.shield(self._begin_to_finish(upload, content, until_then.pop_all()))

    async def get(self, principal: Principal, id_: str) -> Upload:
        upload = await self._store.read(lambda tx: _readable(tx, principal, id_))
        return await self._run(self._incoming.measured, upload)

    async def list(
        self,
        principal: Principal,
        experiment: str | None = None,
        *,
        state: UploadState | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[Upload]:
        """Of one experiment, newest first; an instrument sees its own."""

        def work(tx: Transaction) -> Page[Upload]:
            if principal.instrument is None:
                if experiment is None:
                    raise Invalid("Uploads are listed for one experiment.", "Say which: ?experiment=<id>.")
                access.require(tx, principal, experiment, Action.READ)
            return tx.uploads.list(
                experiment=experiment, instrument=principal.instrument, state=state, after=after, limit=limit
            )

        page = await self._store.read(work)
        items = await self._run(lambda: [self._incoming.measured(upload) for upload in page.items])
        return Page[Upload](items=items, next=page.next)

    async def append(
        self,
        principal: Principal,
        id_: str,
        offset: int,
        body: Body,
        checksum: tuple[str, bytes] | None = None,
        *,
        size: int | None = None,
        digest: str | None = None,
    ) -> Upload:
        """Adds bytes from `offset` on; after the last one the file is verified and published.

        `checksum` (algorithm, digest) is of these bytes; if it does not fit, they are discarded. Without
        one, what has come before the connection broke is kept. `size` and `digest` are of the whole file,
        where its announcement has left them open. Raises Conflict (wrong offset, or another
        request is sending: nothing is changed), ChecksumMismatch, TooLarge, DiskFull, Gone, Invalid.
        """
        upload = await self._store.read(lambda tx: _continued(tx, principal, id_))
        if upload.state is UploadState.FAILED:
            raise Gone(f"The upload of {upload.path} has failed: {upload.error}", "Announce the file again.")
        if upload.source or (upload.concat or PARTIAL) != PARTIAL:
            raise Forbidden(f"Nothing is to be sent of {upload.path}.", "Ask for its state.")
        if upload.state is not UploadState.RECEIVING:
            _expect(upload, offset)
            return upload
        try:
            file = await self._held(self._incoming.hold, upload)
        except Gone:  # it has come to its end since it was read
            return await self.append(principal, id_, offset, body, checksum, size=size, digest=digest)
        with contextlib.ExitStack() as until_then:
            until_then.enter_context(file)
            until_then.enter_context(self._one_more(principal))
            upload = upload.model_copy(update={"offset": file.position})
            _expect(upload, offset)
            if upload.deferred or digest is not None or size is not None:
                upload = await self._store.write(lambda tx: _settled(tx, upload, size, digest))
            await self._receive(upload, file, body, checksum)
            arrived = file.position
            upload = upload.model_copy(
                update={"offset": arrived, "size": arrived if upload.deferred else upload.size}
            )
            if not _is_whole(upload, arrived) or upload.concat == PARTIAL:
                return upload
            # a sender that goes away now does not stop what it has waited for
            return await asyncio.shield(self._begin_to_finish(upload, file, until_then.pop_all()))

    async def rewrite(self, principal: Principal, id_: str, begin: int, end: int, body: Body) -> Upload:
        """Replaces the bytes from `begin` to before `end` of what has come so far.

        For files that are sent while they grow, and whose writer also changes what it has written before.
        Only the digest at the end can vouch for them, so it has to have been promised. Raises Invalid,
        Conflict (its digest has come, nothing has come there, another request is sending), TooLarge, Gone.
        """
        if not 0 <= begin < end <= begin + REWRITE:
            raise Invalid(f"From 1 to {REWRITE} bytes are replaced at a time.", "Replace them in parts.")
        upload = await self._store.read(lambda tx: _writable(tx, principal, id_))
        if upload.state is not UploadState.RECEIVING or not upload.digest_follows or upload.digest:
            raise Conflict(
                f"What has come of {upload.path} can't be replaced.",
                "Promise its digest when announcing it, and send that last.",
            )
        with await self._held(self._incoming.hold, upload) as file, self._one_more(principal):
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
                raise Invalid(
                    f"These are not the {end - begin} bytes that were announced.", "Send them again."
                )
            try:
                self._digests.pop(upload.id, None)
                await self._whole(file.write, begin, block)
            except OSError as error:
                raise explained(error, upload) from error
            return upload.model_copy(update={"offset": file.size()})

    @contextlib.contextmanager
    def _one_more(self, principal: Principal, weight: int = 1) -> Iterator[None]:
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

    # --- many small files at once ---

    def bringing(self, principal: Principal) -> contextlib.AbstractContextManager[None]:
        """To be held while the files of a delivery are collected in memory, which is why they count as many
        requests. Raises TooMany."""
        return self._one_more(principal, max(1, self._at_once // 4))

    async def deliver(
        self, principal: Principal, files: Sequence[Whole], experiment: str | None = None
    ) -> Sequence[Upload | BeamhubError]:
        """Publishes small files whose bytes are here; each comes to what it would come to by itself.

        They share looks at the store, flushes of the disk and transactions. The answer has, in their order,
        each one's upload, or why it was refused: none keeps the others back.
        """
        task = asyncio.create_task(self._deliver(principal, files, experiment))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return await asyncio.shield(task)  # a sender that goes away does not stop what it has waited for

    async def _deliver(
        self, principal: Principal, files: Sequence[Whole], experiment: str | None
    ) -> Sequence[Upload | BeamhubError]:
        loop = asyncio.get_running_loop()
        batch = await loop.run_in_executor(self._preparing, self._prepare, principal, files, experiment)
        answers = batch.answers
        with batch.held:
            arrivals = batch.arrivals
            if arrivals:
                new = [arrival.upload for arrival in arrivals.values()]
                refused = await self._store.write(lambda tx: _begin_all(tx, new))
                for number in [n for n, arrival in arrivals.items() if arrival.upload.id in refused]:
                    upload = arrivals.pop(number).upload
                    answers[number] = refused[upload.id]
                    await self._run(self._incoming.discard, upload)
            if arrivals:
                placed = await self._place(list(arrivals.values()))
                answers |= dict(zip(arrivals, placed, strict=True))
        for number in batch.begun:
            answers[number] = await self._go_on(principal, files[number], experiment)
        return [answers[number] for number in range(len(files))]

    def _prepare(self, principal: Principal, files: Sequence[Whole], experiment: str | None) -> _Batch:
        """All that comes before the rows of a batch: which of its files are refused or there already; the
        others claimed, and durable in their temporary files."""
        answers: dict[int, Upload | BeamhubError] = {}
        told: dict[int, _File] = {}
        paths = Counter(file.path for file in files)
        for number, file in enumerate(files):
            try:
                told[number] = file.checked(experiment)
                if paths[file.path] > 1:
                    raise Invalid(f"{file.path} is in the batch {paths[file.path]} times.", "Send one each.")
            except BeamhubError as error:
                told.pop(number, None)
                answers[number] = error
        ids = {n: _id(principal, key) if (key := files[n].key) else secrets.token_hex(16) for n in told}

        def look(tx: Transaction) -> tuple[set[str], tuple[str, str] | BeamhubError]:
            begun = set(tx.uploads.all(ids.values()))
            try:
                return begun, _destination(tx, principal, experiment)
            except BeamhubError as error:
                return begun, error

        known, destination = self._store.read_sync(look)
        begun = [number for number, id_ in ids.items() if id_ in known]
        fresh = {number: file for number, file in told.items() if ids[number] not in known}
        if isinstance(destination, BeamhubError):
            return _Batch({**answers, **dict.fromkeys(fresh, destination)}, begun)
        uploads = {
            number: file.proposed(principal, ids[number], *destination) for number, file in fresh.items()
        }
        with contextlib.ExitStack() as held:
            place, names = destination[1], [upload.path for upload in uploads.values()]
            held.enter_context(self._incoming.claimed(place, *names))
            kin = self._store.read_sync(lambda tx: _kin(tx, place, names))
            arrivals: dict[int, _Arrival] = {}
            for number, upload in uploads.items():
                try:
                    found = self._versions(upload, kin[upload.path])
                    if isinstance(found, Upload):
                        answers[number] = found
                        continue
                    kept = held.enter_context(self._incoming.keep(upload, files[number].content))
                    arrivals[number] = _Arrival(upload, kept, found)
                except BeamhubError as error:
                    answers[number] = error
                except OSError as error:
                    if not isinstance(problem := explained(error, upload), BeamhubError):
                        raise
                    answers[number] = problem
            flush([arrival.file for arrival in arrivals.values()])
            return _Batch(answers, begun, arrivals, held.pop_all())

    async def _go_on(
        self, principal: Principal, file: Whole, experiment: str | None
    ) -> Upload | BeamhubError:
        """What has been announced before, with the same key, is sent on from where it is."""

        async def rest(offset: int) -> AsyncIterator[bytes]:
            yield bytes(file.content[offset:])

        told = file.path, len(file.content), file.digest, experiment
        try:
            upload = await self.create(principal, *told, key=file.key)
            if upload.state is UploadState.RECEIVING:
                upload = await self.append(principal, upload.id, upload.offset, Chunks(rest(upload.offset)))
        except BeamhubError as error:
            return error
        return upload

    async def terminate(self, principal: Principal, id_: str) -> None:
        """Gives up an upload that is on its way. A published file stays: Conflict."""
        upload = await self._store.read(lambda tx: _writable(tx, principal, id_))
        with await self._claim(upload):
            await self._fail(upload, f"given up by {principal.name}", principal.name)

    # --- after a kill, and now and then ---

    async def recover(self) -> None:
        """Cleans up what a killed process has left behind, and begins to finish what can be finished, in the
        background. What a living process has in hand is left to it."""
        found, had = await self._run(self._incoming.found), set(self._digests)
        waiting = await self._store.read(lambda tx: tx.uploads.receiving())
        known = {upload.id for upload in waiting}
        for over in had - known:
            self._digests.pop(over, None)
        for temporary in found:
            if temporary.name not in known:
                await self._run(remove, temporary, lambda name=temporary.name: self._receiving(name))
        for upload in waiting:
            arrived = await self._run(self._incoming.arrived, upload)
            if arrived is not None and (not _is_whole(upload, arrived) or upload.concat == PARTIAL):
                continue  # more has to come
            try:
                file = await self._held(self._incoming.hold, upload)
            except Gone:
                with contextlib.suppress(Conflict):  # it has come to its end meanwhile
                    await self._fail(upload, "its bytes are gone from the disk", access.SYSTEM.name)
            except Conflict:
                continue
            else:
                if _is_whole(upload, file.size()):
                    self._begin_to_finish(upload, file, file)
                else:
                    file.close()

    async def expire(self, now: float) -> None:
        """Gives up uploads that have had no byte for long. `now`: seconds of the monotonic clock."""
        receiving = {
            upload.id: upload for upload in await self._store.read(lambda tx: tx.uploads.receiving())
        }
        touched = await self._run(self._incoming.touched, receiving.values())
        for id_ in self._silences.too_long(touched, now):
            upload = receiving[id_]
            try:
                with await self._held(self._incoming.hold, upload), await self._claim(upload):
                    await self._fail(upload, f"not continued for {EXPIRES}", access.SYSTEM.name)
            except (Conflict, Gone):
                continue  # it goes on, or has come to its end meanwhile

    def _receiving(self, id_: str) -> bool:
        upload = self._store.read_sync(lambda tx: tx.uploads.get(id_))
        return upload is not None and upload.state is UploadState.RECEIVING

    # --- receiving ---

    async def _receive(
        self, upload: Upload, file: Held, body: Body, checksum: tuple[str, bytes] | None
    ) -> None:
        """Adds a body to the file, and to the running digest if all before it is in there."""
        if checksum is not None and checksum[0] not in CHECKSUMS:
            raise Invalid(
                f"The checksum {checksum[0]!r} is not known.", f"Use one of {', '.join(CHECKSUMS)}."
            )
        limit, too_much = await self._limit(upload)
        hasher = CHECKSUMS[checksum[0]]() if checksum else None
        takers: list[Callable[[memoryview], object]] = [hasher.update] if hasher else []
        running = self._running(upload, file)
        before = running.copy() if checksum else running
        if upload.concat != PARTIAL and running.position == upload.offset:
            takers.append(running.add)
        told = 0.0
        try:
            while await body.come():
                if not await self._whole(file.receive, body, limit, takers, threads=self._receivers):
                    raise too_much
                if time.monotonic() - told >= PROGRESS:
                    self._tell(upload, file.position)
                    told = time.monotonic()
            if checksum and hasher and not secrets.compare_digest(hasher.digest(), checksum[1]):
                raise ChecksumMismatch(
                    f"A part of {upload.path} was damaged on its way.", "Send it again from the same offset."
                )
        except BaseException as error:
            # what no checksum vouches for, or a full disk has cut, has not arrived
            await self._run(file.cut, upload.offset if checksum else file.position)
            self._digests[upload.id] = (file.stamp, before)
            if isinstance(error, OSError):
                raise explained(error, upload) from error
            raise
        self._digests[upload.id] = (file.stamp, running)
        self._tell(upload, file.position)

    def _running(self, upload: Upload, file: Held) -> Running:
        """The digest of what has come of a file, as far as this process has seen it come, from the beginning
        on. That is all of it, unless there was a kill, or another process has written into it."""
        if upload.source is not None:  # others may have changed it
            return running_digest(upload)
        stamp, running = self._digests.get(upload.id, (None, None))
        if running is None or stamp != file.stamp:
            running = running_digest(upload)
            self._digests[upload.id] = (file.stamp, running)
        return running

    async def _limit(self, upload: Upload) -> tuple[int, Exception]:
        """How many bytes an upload can have, and what to tell who sends more."""
        if not upload.deferred:
            return upload.size, TooLarge(
                f"{upload.path} was announced with {upload.size} bytes, and more came.",
                "Announce it again, with its real size.",
            )
        free = await self._run(self._incoming.free, upload)
        left = await self._store.read(lambda tx: _Quota.of(tx, upload.experiment).left)
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
            data={"path": upload.path, "size": max(upload.size, offset), "offset": offset},
        )

    # --- publishing ---

    def _begin_to_finish(
        self, upload: Upload, file: Held, held: Held | contextlib.ExitStack
    ) -> asyncio.Task[Upload]:
        """Begins to verify and publish `file`; `held` is let go afterwards."""

        def ended(task: asyncio.Task[Upload]) -> None:
            held.close()
            self._finishing.discard(task)
            error = None if task.cancelled() else task.exception()
            if error and not isinstance(error, BeamhubError):  # those are the sender's affair, and told
                log.error("upload %s (%s) could not be published", upload.id, upload.path, exc_info=error)

        task = asyncio.create_task(self._finish(upload, file))
        self._finishing.add(task)
        task.add_done_callback(ended)
        return task

    async def _finish(self, upload: Upload, file: Held) -> Upload:
        """Verifies and publishes an upload whose bytes have all come. May be repeated, and then reads nothing
        again."""
        running = self._running(upload, file)
        much = upload.size - running.position > AHEAD  # to be read, while the disk writes
        flushing = {asyncio.ensure_future(self._run(file.flush))} if much else set()
        try:
            try:
                digest = await self._run(self._incoming.verify, upload, file, running)
            finally:
                for flushed in flushing:
                    await flushed
        except ChecksumMismatch as error:
            with contextlib.suppress(Conflict):  # given up meanwhile
                await self._fail(upload, error.detail, upload.created_by)
            raise
        except OSError as error:
            raise explained(error, upload) from error
        with await self._claim(upload):
            published = await self._publish(upload.model_copy(update={"digest": digest}), file)
        self._digests.pop(upload.id, None)
        return published

    async def _publish(self, upload: Upload, file: Held) -> Upload:
        def look(tx: Transaction) -> tuple[Upload | None, _Kin]:
            return tx.uploads.get(upload.id), _kin(tx, upload.experiment, [upload.path])[upload.path]

        current, kin = await self._store.read(look)
        if current is None or current.state is not UploadState.RECEIVING:
            return current or upload
        found = await self._run(self._versions, upload, kin)
        if isinstance(found, Upload):
            return await self._merge(upload, found)
        (placed,) = await self._place([_Arrival(upload, file, found)])
        if isinstance(placed, Exception):
            raise placed
        return placed

    async def _place(self, arrivals: Sequence[_Arrival]) -> Sequence[Upload | BeamhubError]:
        """Publishes verified files of one sender in one experiment, whose names are claimed. For each, its
        upload, or why it could not be published."""
        first = arrivals[0].upload
        files = [(arrival.upload, arrival.file, arrival.names) for arrival in arrivals]
        results: dict[str, Upload | BeamhubError] = {}
        placed: dict[str, Upload] = {}
        try:
            paths = await self._run(self._incoming.publish, first.experiment, files)
        except OSError as error:
            raise explained(error, first) from error
        for arrival, path in zip(arrivals, paths, strict=True):
            upload = arrival.upload
            match path:
                case str():
                    placed[upload.id] = arrival.as_published(path)
                case Conflict():
                    await self._fail(upload, path.detail, upload.created_by)
                    results[upload.id] = path
                case OSError():
                    if not isinstance(problem := explained(path, upload), BeamhubError):
                        raise path
                    results[upload.id] = problem
        findings = await self._examine(list(placed.values()))
        for arrival in arrivals:
            if reason := findings.hostile.get(arrival.upload.id):
                upload = placed.pop(arrival.upload.id)
                results[upload.id] = await self._quarantine(upload, arrival.file, reason)
        earlier = {path for arrival in arrivals if arrival.upload.id in placed for path in arrival.earlier}

        def complete(tx: Transaction) -> dict[str, Upload]:
            tx.uploads.supersede(first.experiment, earlier)
            tx.uploads.end_all(
                {
                    id_: {"path": upload.path, "version": upload.version, "digest": upload.digest}
                    for id_, upload in placed.items()
                },
                UploadState.COMPLETE,
            )
            emit_all(
                tx,
                "file.complete",
                actor=first.created_by,
                instrument=first.instrument,
                experiment=first.experiment,
                data={id_: {"path": upload.path, "size": upload.size} for id_, upload in placed.items()},
            )
            findings.record(tx)
            return tx.uploads.all(placed)

        if placed:
            results |= await self._store.write(complete)
            await self._run(self._incoming.discard, *placed.values())
        return [results[arrival.upload.id] for arrival in arrivals]

    async def _quarantine(self, upload: Upload, file: Held, reason: str) -> Upload:
        """What is built to mislead its readers reaches none of them."""
        await self._run(self._incoming.isolate, upload, file, upload.path)

        def work(tx: Transaction) -> Upload | None:
            change = {"path": upload.path, "version": upload.version, "digest": upload.digest}
            tx.uploads.end(upload.id, UploadState.QUARANTINED, error=reason, **change)
            _emit(tx, upload, "file.quarantined", upload.created_by, reason=reason)
            return tx.uploads.get(upload.id)

        quarantined = await self._store.write(work)
        await self._run(self._incoming.discard, upload)
        return quarantined or upload

    def _versions(self, upload: Upload, kin: _Kin) -> _Names | Upload:
        """Of an upload that is not published yet: the names that it may get, or the published file that it
        equals."""
        published = frozenset(kin.published)
        for twin in kin.quarantined:
            if twin.digest == upload.digest:
                return twin
        awaited = kin.awaited
        if awaited in published:  # something else came there, and can't be replaced
            awaited = None
        if awaited is None and upload.digest is not None:
            for twin in kin.published.values():
                if self._incoming.holds(twin, upload.size, upload.digest):
                    return twin
        if awaited is None and kin.growing not in published:
            awaited = kin.growing
        return _Names(published, awaited)

    async def _merge(self, upload: Upload, twin: Upload) -> Upload:
        """The same file has come while this one was on its way: nothing new has arrived. Where that one is in
        quarantine, it alone stays on record: it is there only once, for the staff to decide about."""

        def work(tx: Transaction) -> Upload | None:
            known = tx.uploads.get(twin.id) or twin
            if known.state is UploadState.QUARANTINED:
                tx.uploads.forget([upload.id])
                return known
            tx.uploads.end(
                upload.id,
                UploadState.SUPERSEDED,
                path=known.path,
                version=known.version,
                digest=upload.digest,
            )
            return tx.uploads.get(upload.id)

        merged = await self._store.write(work)
        await self._run(self._incoming.discard, upload)
        return merged or twin

    async def _fail(self, upload: Upload, reason: str, actor: str) -> None:
        def work(tx: Transaction) -> None:
            current = tx.uploads.get(upload.id)
            if current is None or current.state is not UploadState.RECEIVING:
                raise Conflict(f"The upload of {upload.path} is over.", "Published files stay.")
            if current.concat == PARTIAL:
                tx.uploads.forget([upload.id])
                return
            tx.uploads.end(upload.id, UploadState.FAILED, error=reason)
            _emit(tx, upload, "upload.failed", actor, reason=reason)

        await self._store.write(work)
        await self._run(self._incoming.discard, upload)

    # --- one at a time ---

    async def _held(self, hold: Callable[[Upload], Held], upload: Upload) -> Held:
        """As `hold` does, in a thread; a caller that is cancelled meanwhile leaves nothing held."""
        return await self._kept(asyncio.ensure_future(self._run(hold, upload)), Held.close)

    async def _claim(self, upload: Upload) -> contextlib.ExitStack:
        """One upload at a time is published under a name, in all processes. To be left with `with`."""
        while True:
            claiming = asyncio.ensure_future(
                self._run(self._incoming.claim, upload.experiment, [upload.path])
            )
            claim = await self._kept(claiming, lambda claim: os.close(claim) if claim is not None else None)
            if claim is not None:
                stack = contextlib.ExitStack()
                stack.callback(os.close, claim)
                return stack
            await asyncio.sleep(CLAIM)

    async def _kept(self, making: asyncio.Future[T], end: Callable[[T], object]) -> T:
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(lambda made: made.exception() or end(made.result()))
            raise

    async def _whole(
        self, work: Callable[..., T], *arguments: object, threads: ThreadPoolExecutor | None = None
    ) -> T:
        """As `_run`; a caller that is cancelled waits for the thread, which still uses what it was given."""
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(threads or self._threads, work, *arguments)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            raise

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _emit(tx: Transaction, upload: Upload, kind: str, actor: str, **data: str) -> None:
    emit(
        tx,
        kind,
        actor=actor,
        instrument=upload.instrument,
        experiment=upload.experiment,
        subject=upload.id,
        data={"path": upload.path, "size": upload.size, **data},
    )


def _expect(upload: Upload, offset: int) -> None:
    if offset != upload.offset:
        raise Conflict(
            f"The next byte of {upload.path} is {upload.offset}, not {offset}.",
            "Ask for the offset and go on from there.",
        )


def _is_whole(upload: Upload, arrived: int) -> bool:
    """Whether so many bytes, and what is known of the file, are all that has to come."""
    awaits_digest = upload.digest_follows is not None and upload.digest is None
    return arrived == upload.size and not upload.deferred and not awaits_digest


def _settled(tx: Transaction, upload: Upload, size: int | None, digest: str | None) -> Upload:
    """The upload with what its announcement has left open. What has been said once can't be changed."""
    change: dict[str, object] = {}
    if upload.deferred and size is not None:
        if size < upload.offset:
            raise Conflict(
                f"{upload.offset} bytes of {upload.path} have come; it can't have {size}.",
                "Give it up, and announce it again.",
            )
        if size > MAX_SIZE:
            raise _too_long(size)
        change |= {"size": size, "deferred": False}
    elif upload.deferred:
        change["size"] = upload.offset  # as it counts for the quota
    elif size not in (None, upload.size):
        raise Invalid(
            f"{upload.path} was announced with {upload.size} bytes, not {size}.", "Announce it again."
        )
    if digest is not None and digest != upload.digest:
        _check_digest(digest)
        if upload.digest is not None or algorithm_of(digest) != upload.digest_follows:
            raise Invalid(
                f"The announcement of {upload.path} does not fit to this digest of it.",
                "Announce it again.",
            )
        change["digest"] = digest
    if change:
        tx.uploads.change({upload.id: change})
        upload = upload.model_copy(update=change)
        _Quota.of(tx, upload.experiment).require(upload, announced=True)
    return upload


def _id(principal: Principal, key: str) -> str:
    """The id of the upload that this principal announces with this key, at every repetition."""
    return hashlib.sha256(f"{principal.kind}:{principal.name}\0{key}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Whole:
    """A small file with all its bytes, as a sender delivers it."""

    path: str
    content: memoryview
    digest: str | None = None
    key: str | None = None

    def checked(self, experiment: str | None) -> _File:
        """What is known of it, once its bytes are those that were announced. Raises Invalid,
        ChecksumMismatch."""
        size = len(self.content)
        file = _File(self.path, size, self.digest, experiment)
        file.check()
        if size > BATCH_FILE:
            raise TooLarge(
                f"{self.path} has {size} bytes; a file of a batch has at most {BATCH_FILE}.",
                "Send it by itself.",
            )
        algorithm = algorithm_of(self.digest) if self.digest else USUAL
        hasher = ALGORITHMS[algorithm]()
        hasher.update(self.content)
        digest = f"{algorithm}:{hasher.hexdigest()}"
        if self.digest not in (None, digest):
            raise different(self.path)
        return replace(file, computed=digest)


@dataclass
class _Batch:
    """What has become of the files of a delivery, by their numbers in it."""

    answers: dict[int, Upload | BeamhubError]
    begun: Sequence[int] = ()  # that were announced before
    arrivals: dict[int, _Arrival] = field(default_factory=dict)  # that are to be published
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # until they are


@dataclass(frozen=True)
class _Names:
    """What a file that is not published yet may be called."""

    earlier: frozenset[str]  # where other versions of it are
    awaited: str | None  # where something waits for it


@dataclass(frozen=True)
class _Arrival:
    """A file that has come, verified, to be published."""

    upload: Upload
    file: Held
    found: _Names

    @property
    def earlier(self) -> frozenset[str]:
        return self.found.earlier

    @property
    def names(self) -> Sequence[str]:
        """What it may be called, the best first."""
        awaited = self.found.awaited
        return [*((awaited,) if awaited else ()), *versions(self.upload.path)]

    def as_published(self, path: str) -> Upload:
        """Its upload, now that the file has this name."""
        return self.upload.model_copy(
            update={
                "path": path,
                "version": versions(self.upload.path).index(path) + 1,
                "state": UploadState.COMPLETE,
                "offset": self.upload.size,
            }
        )


@dataclass(frozen=True)
class _File:
    """What a sender says of a file."""

    path: str
    size: int | None
    digest: str | None
    experiment: str | None
    concat: str | None = None
    source: str | None = None
    digest_follows: DigestAlgorithm | None = None
    computed: str | None = None  # its digest, where its bytes are known already

    def check(self) -> None:
        folders.parse(self.path, new=True)
        if self.size is not None and not 0 <= self.size <= MAX_SIZE:
            raise _too_long(self.size)
        _check_digest(self.digest)
        if self.digest_follows and (self.digest or self.concat):
            raise Invalid(
                f"{self.path} is announced with a digest that follows, and with one or as a part.",
                "Do one of these.",
            )

    def is_of(self, upload: Upload) -> bool:
        announced = upload.digest if upload.digest_by == "sender" and not upload.digest_follows else None
        return (self.size, self.digest, self.concat, self.source, self.digest_follows is None) == (
            # what was begun while it grew is still that
            self.size if self.size is None or upload.deferred else upload.size,
            announced,
            upload.concat,
            upload.source,
            upload.digest_follows is None,
        ) and self.experiment in (None, upload.experiment)

    def proposed(self, principal: Principal, id_: str, area: str, experiment: str) -> Upload:
        """The upload that would begin with it."""
        return Upload(
            id=id_,
            experiment=experiment,
            instrument=principal.instrument,
            path=f"{area}/{self.path}",
            size=self.size or 0,
            deferred=self.size is None,
            offset=0,
            digest=self.digest or self.computed,
            digest_follows=self.digest_follows,
            digest_by="sender" if self.digest or self.digest_follows else "service",
            version=1,
            state=UploadState.RECEIVING,
            source=self.source,
            concat=self.concat,
            created=datetime.now(UTC),
            ended=None,
            created_by=principal.name,
        )


def _too_long(size: int) -> Invalid:
    return Invalid(f"A file has 0 to {MAX_SIZE} bytes, not {size}.", "Check the announced length.")


def _check_digest(digest: str | None) -> None:
    try:
        _DIGEST.validate_python(digest)
    except ValidationError as error:
        raise Invalid(
            f"The digest {digest!r:.100} of the whole file is malformed.",
            "Send 64 hexadecimal digits of its sha256, or 32 of its xxh128.",
        ) from error


@dataclass(frozen=True)
class _Kin:
    """What bears on the name of a file that is to be published."""

    published: Mapping[str, Upload]  # other versions of it, by path
    quarantined: Sequence[Upload]
    awaited: str | None  # the one of its names that a dataset waits for
    growing: str | None  # and the one at which a series of such files grows


def _kin(tx: Transaction, experiment: str, paths: Sequence[str]) -> dict[str, _Kin]:
    """By the path of each file's first version."""
    others = tx.uploads.versions(experiment, paths)
    parts = {path: formats.part(PurePosixPath(path)) for path in paths}
    # a master may wait for what is a detector's file by its name; a series is a dataset under each version
    awaited = {
        name: path
        for path, part in parts.items()
        if part is not None and not part.is_member
        for name in versions(path)
    }
    series = {part.dataset for part in parts.values() if part and part.is_member and part.dataset}
    waiting = tx.datasets.awaited(experiment, awaited) if awaited else []
    growing = (
        tx.datasets.growing(experiment, [name for one in series for name in versions(one)]) if series else []
    )
    found = {}
    for path, part in parts.items():
        mine = others.get(path, ())
        names = versions(path)
        homes = versions(part.dataset) if part and part.is_member and part.dataset else ()
        home = next((home for home in growing if home in homes), None)
        found[path] = _Kin(
            published={one.path: one for one in mine if one.state in PUBLISHED},
            quarantined=[one for one in mine if one.state is UploadState.QUARANTINED],
            awaited=next((name for name in waiting if awaited[name] == path), None),
            growing=None if home is None else names[homes.index(home)],
        )
    return found


def _begun(tx: Transaction, principal: Principal, id_: str) -> Upload | None:
    return _writable(tx, principal, id_) if tx.uploads.get(id_) else None


def _begin(tx: Transaction, upload: Upload, parts: Sequence[Upload]) -> bool:
    """False when another request has begun it since this one looked."""
    if tx.uploads.get(upload.id) is not None:
        return False
    if tx.uploads.forget([part.id for part in parts]) != len(parts):
        raise Conflict(f"A part of {upload.path} is no longer there.", "Send the file again.")
    _Quota.of(tx, upload.experiment).require(upload)
    tx.uploads.create(upload)
    return True


def _begin_all(tx: Transaction, new: Sequence[Upload]) -> dict[str, BeamhubError]:
    """Begins uploads of one experiment; those that can't begin, and why, by their ids."""
    begun = tx.uploads.all([upload.id for upload in new])
    quota = _Quota.of(tx, new[0].experiment)
    refused: dict[str, BeamhubError] = {}
    for upload in new:
        try:
            if upload.id in begun:
                raise busy(upload)
            quota.require(upload)
        except BeamhubError as error:
            refused[upload.id] = error
    if fresh := [upload for upload in new if upload.id not in refused]:
        tx.uploads.create(*fresh)
    return refused


@dataclass
class _Quota:
    """All that has been announced to an experiment has to fit into its quota."""

    quota: int | None
    volume: int  # bytes of what has been

    @classmethod
    def of(cls, tx: Transaction, experiment: str) -> _Quota:
        found = tx.experiments.get(experiment)
        quota = found.quota if found else None
        return cls(quota, tx.uploads.volume(experiment) if quota is not None else 0)

    @property
    def left(self) -> int:
        """How many bytes may still come."""
        return MAX_SIZE if self.quota is None else self.quota - self.volume

    def require(self, upload: Upload, *, announced: bool = False) -> None:
        """Raises QuotaExceeded unless this upload fits in too; it is counted already if it has been
        announced."""
        volume = self.volume if announced else self.volume + upload.size
        if self.quota is not None and volume > self.quota:
            raise QuotaExceeded(
                f"With {upload.path} ({upload.size} bytes) the uploads of {upload.experiment} come to "
                f"{volume} bytes; its quota is {self.quota}.",
                "Ask the staff of its instrument to raise the quota; then send on: what has arrived is kept.",
            )
        self.volume = volume


def _destination(tx: Transaction, principal: Principal, experiment: str | None) -> tuple[str, str]:
    """The area and the experiment that a new file of this principal goes to."""
    if principal.instrument is None:
        if experiment is None:
            raise Invalid(
                "The experiment is missing.", "Say which experiment's shared/ folder the file is for."
            )
        access.require(tx, principal, experiment, Action.UPLOAD_SHARED)
        return folders.SHARED, experiment
    instrument = access.require_instrument(tx, principal, principal.instrument, Action.UPLOAD_RAW)
    active = instrument.active_experiment
    if active is None or experiment not in (None, active):
        raise Conflict(
            f"{experiment or 'No experiment'} is {'not ' if experiment else ''}active on {instrument.id}.",
            "Ask the staff of the instrument to make an experiment active on it.",
        )
    access.require(tx, principal, active, Action.UPLOAD_RAW)
    orders.require_running(instrument)
    return folders.RAW, active


def _readable(tx: Transaction, principal: Principal, id_: str) -> Upload:
    upload = tx.uploads.get(id_)
    if upload is None:
        raise _unknown(id_)
    if principal.instrument is None:
        try:
            access.require(tx, principal, upload.experiment, Action.READ)
        except NotFound as error:
            raise _unknown(id_) from error
    elif upload.instrument != principal.instrument:
        raise _unknown(id_)
    return upload


def _writable(tx: Transaction, principal: Principal, id_: str) -> Upload:
    """An upload goes on as it was begun: by the same sender, while that one may."""
    upload = _readable(tx, principal, id_)
    if upload.created_by != principal.name:
        raise _unknown(id_)
    action = Action.UPLOAD_SHARED if principal.instrument is None else Action.UPLOAD_RAW
    access.require(tx, principal, upload.experiment, action)
    return upload


def _continued(tx: Transaction, principal: Principal, id_: str) -> Upload:
    upload = _writable(tx, principal, id_)
    if upload.state is UploadState.RECEIVING:
        _Quota.of(tx, upload.experiment).require(upload, announced=True)  # it may have been lowered
    return upload


def _unknown(id_: str) -> NotFound:
    return NotFound(f"There is no upload {id_[:64]!r} of yours here.", "Announce the file again.")
