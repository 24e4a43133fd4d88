"""Uploads: files on their way into an experiment, by the rules of tus, without HTTP.

Bytes go to a temporary file; how many there are is its size, and nothing else. When the last one has come,
the whole file is read back, compared with the digest that the sender announced, flushed to the disk, given
its name (never replacing what is there), and only then the upload is complete. A kill at any moment leaves a
temporary file to go on with, or one that `recover` finishes: every step may be done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from beamhub import access, folders, orders
from beamhub.access import Action, Principal
from beamhub.errors import BeamhubError, ChecksumMismatch, Conflict, Gone, Invalid, NotFound, TooLarge
from beamhub.events import Live, emit
from beamhub.incoming import Incoming, explained, versions
from beamhub.schemas import Page, Upload, UploadState
from beamhub.store import Store, Transaction

log = logging.getLogger(__name__)
T = TypeVar("T")
# Looks at a published file; what it returns is run in the transaction that completes the upload.
Examine = Callable[[Upload], Awaitable[Callable[[Transaction], None]]]

CHECKSUMS = ("sha1", "sha256", "md5")  # tus demands sha1
EXPIRES = timedelta(days=1)  # after its last byte, an unfinished upload is given up
MAX_SIZE = 8 * 2**40  # bytes
WRITE = 256 * 2**10  # bytes at a time: the fastest size where it was measured
THREADS = 4
PROGRESS = 0.25  # seconds between live messages about one upload


class Uploads:
    """All uploads. `examine` is asked about each file when it is published (see beamhub.datasets)."""

    def __init__(self, store: Store, live: Live, data_dir: Path, examine: Examine) -> None:
        self._store = store
        self._live = live
        self._incoming = Incoming(data_dir)
        self._examine = examine
        self._threads = ThreadPoolExecutor(THREADS, "beamhub-upload")
        self._appending: set[str] = set()
        self._finishing: set[asyncio.Task[Upload]] = set()
        self._publishing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def close(self) -> None:
        """Waits for the files that are being published."""
        await asyncio.gather(*self._finishing, return_exceptions=True)
        self._threads.shutdown()

    # --- the tus verbs ---

    async def create(
        self,
        principal: Principal,
        path: str,
        size: int,
        digest: str,
        experiment: str | None = None,
        *,
        key: str | None = None,
    ) -> Upload:
        """Announces a file of `size` bytes with this sha256.

        An instrument's file goes below raw/ of the experiment that is active at this moment, a user's below
        shared/ of `experiment`. A file that is there already, with the same content, comes back as its
        complete upload: nothing has to be sent. Who announces it again with the same `key` gets the upload
        that the first announcement began, also when a kill has kept its answer back.
        Raises Invalid, Conflict (no active experiment), Unavailable (paused), DiskFull.
        """
        name = folders.parse(path, new=True)
        if not 0 <= size <= MAX_SIZE:
            raise Invalid(f"A file has 0 to {MAX_SIZE} bytes, not {size}.", "Check the announced length.")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise Invalid(
                "The sha256 of the whole file is missing or malformed.", "Send 64 hexadecimal digits."
            )
        id_ = _id(principal, key) if key else secrets.token_hex(16)
        if begun := await self._store.read(lambda tx: tx.uploads.get(id_)):
            await self._store.read(lambda tx: _writable(tx, principal, id_))
            if (begun.size, begun.digest) != (size, digest) or experiment not in (None, begun.experiment):
                raise Invalid(
                    f"The Idempotency-Key {key!r} has announced another file.", "Use a new key for each file."
                )
            return await self._finish(begun) if size == 0 else await self._run(self._incoming.measured, begun)
        area, place = await self._store.read(lambda tx: _destination(tx, principal, experiment))
        upload = Upload(
            id=id_,
            experiment=place,
            instrument=principal.instrument,
            path=f"{area}/{name}",
            size=size,
            offset=0,
            digest=digest,
            version=1,
            state=UploadState.RECEIVING,
            created=datetime.now(UTC),
            ended=None,
            created_by=principal.name,
        )
        _, _, twin = await self._versions(upload)
        if twin:
            return twin
        await self._run(self._incoming.make_room, upload)
        if not await self._store.write(lambda tx: _begin(tx, upload)):
            return await self.create(principal, path, size, digest, experiment, key=key)
        return await self._finish(upload) if size == 0 else upload

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
        chunks: AsyncIterator[bytes],
        checksum: tuple[str, bytes] | None = None,
    ) -> Upload:
        """Adds bytes from `offset` on; after the last one the file is verified and published.

        `checksum` (algorithm, digest) is of these chunks; if it does not fit, they are discarded. Without
        one, what has come before the connection broke is kept. Raises Conflict (wrong offset, or another
        request is sending: nothing is changed), ChecksumMismatch, TooLarge, DiskFull, Gone.
        """
        upload = await self._store.read(lambda tx: _writable(tx, principal, id_))
        if upload.state is UploadState.FAILED:
            raise Gone(f"The upload of {upload.path} has failed: {upload.error}", "Announce the file again.")
        with self._alone(upload):
            upload = await self._run(self._incoming.measured, upload)
            if offset != upload.offset:
                raise Conflict(
                    f"The next byte of {upload.path} is {upload.offset}, not {offset}.",
                    "Ask for the offset and go on from there.",
                )
            if upload.state is not UploadState.RECEIVING:
                return upload
            written = await self._receive(upload, chunks, checksum)
            if written < upload.size:
                return upload.model_copy(update={"offset": written})
            # a sender that goes away now does not stop what it has waited for
            return await asyncio.shield(self._begin_to_finish(upload))

    async def terminate(self, principal: Principal, id_: str) -> None:
        """Gives up an upload that is on its way. A published file stays: Conflict."""
        upload = await self._store.read(lambda tx: _writable(tx, principal, id_))
        async with self._lock(upload):
            await self._fail(upload, f"given up by {principal.name}", principal.name)

    # --- after a kill, and now and then ---

    async def recover(self) -> None:
        """Cleans up what a kill has left behind, and begins to finish what can be finished.

        To be called before anything is received. Files may be large: they are verified in the background.
        """
        waiting = await self._store.read(lambda tx: tx.uploads.receiving())
        known = {upload.id for upload in waiting}
        await self._run(lambda: self._incoming.remove_orphans(known))
        for upload in waiting:
            if not await self._run(self._incoming.temporary(upload).exists):
                await self._fail(upload, "its bytes are gone from the disk", access.SYSTEM.name)
            elif (await self._run(self._incoming.measured, upload)).offset == upload.size:
                self._begin_to_finish(upload)

    async def expire(self, now: datetime) -> None:
        """Gives up uploads that have had no byte for long."""
        for upload in await self._store.read(lambda tx: tx.uploads.receiving()):
            if (
                upload.id not in self._appending
                and await self._run(self._incoming.touched, upload) < now - EXPIRES
            ):
                with contextlib.suppress(Conflict):  # it has come to its end meanwhile
                    async with self._lock(upload):
                        await self._fail(upload, f"not continued for {EXPIRES}", access.SYSTEM.name)

    # --- receiving ---

    async def _receive(
        self, upload: Upload, chunks: AsyncIterator[bytes], checksum: tuple[str, bytes] | None
    ) -> int:
        """Writes the chunks behind the upload's offset; the new offset."""
        if checksum is not None and checksum[0] not in CHECKSUMS:
            raise Invalid(
                f"The checksum {checksum[0]!r} is not known.", f"Use one of {', '.join(CHECKSUMS)}."
            )
        hasher = hashlib.new(checksum[0], usedforsecurity=False) if checksum else None
        position, buffer, told = upload.offset, bytearray(), 0.0

        async def flush() -> None:
            nonlocal position, buffer
            block, buffer = buffer, bytearray()
            writing = asyncio.ensure_future(self._run(self._incoming.write, upload, position, block, hasher))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait({writing})  # the thread goes on: nothing else may touch the file before
                raise
            position += len(block)

        try:
            try:
                async for chunk in chunks:
                    if position + len(buffer) + len(chunk) > upload.size:
                        raise TooLarge(
                            f"{upload.path} was announced with {upload.size} bytes, and more came.",
                            "Announce it again, with its real size.",
                        )
                    buffer += chunk
                    if len(buffer) >= WRITE:
                        await flush()
                        if time.monotonic() - told >= PROGRESS:
                            self._tell(upload, position)
                            told = time.monotonic()
            finally:
                await flush()
            if checksum and hasher and not secrets.compare_digest(hasher.digest(), checksum[1]):
                raise ChecksumMismatch(
                    f"A part of {upload.path} was damaged on its way.", "Send it again from the same offset."
                )
        except BaseException as error:
            # what no checksum vouches for, or a full disk has cut, has not arrived
            await self._run(self._incoming.cut, upload, upload.offset if checksum else position)
            if isinstance(error, OSError):
                raise explained(error, upload) from error
            raise
        self._tell(upload, position)
        return position

    def _tell(self, upload: Upload, offset: int) -> None:
        self._live.publish(
            "upload.progress",
            experiment=upload.experiment,
            instrument=upload.instrument,
            subject=upload.id,
            data={"path": upload.path, "size": upload.size, "offset": offset},
        )

    # --- publishing ---

    def _begin_to_finish(self, upload: Upload) -> asyncio.Task[Upload]:
        def ended(task: asyncio.Task[Upload]) -> None:
            self._finishing.discard(task)
            error = None if task.cancelled() else task.exception()
            if error and not isinstance(error, BeamhubError):  # those are the sender's affair, and told
                log.error("upload %s (%s) could not be published", upload.id, upload.path, exc_info=error)

        task = asyncio.create_task(self._finish(upload))
        self._finishing.add(task)
        task.add_done_callback(ended)
        return task

    async def _finish(self, upload: Upload) -> Upload:
        """Verifies and publishes an upload whose bytes have all come. May be repeated."""
        async with self._lock(upload):
            current = await self._store.read(lambda tx: tx.uploads.get(upload.id))
            if current is None or current.state is not UploadState.RECEIVING:
                return current or upload
            try:
                await self._run(self._incoming.verify, upload)
                published, awaited, twin = await self._versions(upload)
                if twin:
                    return await self._merge(upload, twin)
                paths = versions(upload.path)
                path = await self._run(
                    self._incoming.publish, upload, [awaited, *paths] if awaited else paths
                )
            except (ChecksumMismatch, Conflict) as error:
                await self._fail(upload, error.detail, upload.created_by)
                raise
            except OSError as error:
                raise explained(error, upload) from error
            placed = upload.model_copy(
                update={
                    "path": path,
                    "version": paths.index(path) + 1,
                    "state": UploadState.COMPLETE,
                    "offset": upload.size,
                }
            )
            record = await self._examine(placed)

            def complete(tx: Transaction) -> Upload | None:
                tx.uploads.supersede(upload.experiment, published)
                tx.uploads.end(upload.id, UploadState.COMPLETE, path=path, version=placed.version)
                _emit(tx, placed, "file.complete", upload.created_by)
                record(tx)
                return tx.uploads.get(upload.id)

            completed = await self._store.write(complete)
            await self._run(self._incoming.discard, upload)
            return completed or placed

    async def _versions(self, upload: Upload) -> tuple[set[str], str | None, Upload | None]:
        """Of an upload that is not published yet: where other versions of it are, where a dataset waits for
        it, and the published file that it equals."""
        paths = versions(upload.path)
        published, awaited = await self._store.read(
            lambda tx: (
                tx.uploads.published(upload.experiment, paths),
                tx.datasets.awaited(upload.experiment, paths),
            )
        )
        if awaited in published:  # something else came there, and can't be replaced
            awaited = None
        if awaited is None:
            for twin in published.values():
                if twin.digest == upload.digest and await self._run(self._incoming.still_there, twin):
                    return set(published), None, twin
        return set(published), awaited, None

    async def _merge(self, upload: Upload, twin: Upload) -> Upload:
        """The same file has been published while this one was on its way: nothing new has come."""

        def work(tx: Transaction) -> Upload | None:
            tx.uploads.end(upload.id, UploadState.SUPERSEDED, path=twin.path, version=twin.version)
            return tx.uploads.get(upload.id)

        merged = await self._store.write(work)
        await self._run(self._incoming.discard, upload)
        return merged or twin

    async def _fail(self, upload: Upload, reason: str, actor: str) -> None:
        def work(tx: Transaction) -> None:
            current = tx.uploads.get(upload.id)
            if current is None or current.state is not UploadState.RECEIVING:
                raise Conflict(f"The upload of {upload.path} is over.", "Published files stay.")
            tx.uploads.end(upload.id, UploadState.FAILED, error=reason)
            _emit(tx, upload, "upload.failed", actor, reason=reason)

        await self._store.write(work)
        await self._run(self._incoming.discard, upload)

    # --- one at a time ---

    @contextlib.contextmanager
    def _alone(self, upload: Upload) -> Iterator[None]:
        """One request at a time adds to an upload."""
        if upload.id in self._appending:
            raise Conflict(
                f"Another request is sending {upload.path}.",
                "Wait for it, ask for the offset, and go on from there.",
            )
        self._appending.add(upload.id)
        try:
            yield
        finally:
            self._appending.discard(upload.id)

    def _lock(self, upload: Upload) -> asyncio.Lock:
        """One upload at a time is published under a name."""
        return self._publishing.setdefault((upload.experiment, upload.path), asyncio.Lock())

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


def _id(principal: Principal, key: str) -> str:
    """The id of the upload that this principal announces with this key, at every repetition."""
    return hashlib.sha256(f"{principal.kind}:{principal.name}\0{key}".encode()).hexdigest()[:32]


def _begin(tx: Transaction, upload: Upload) -> bool:
    """False when it has been begun already."""
    if tx.uploads.get(upload.id):
        return False
    tx.uploads.create(upload)
    return True


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


def _unknown(id_: str) -> NotFound:
    return NotFound(f"There is no upload {id_[:64]!r} of yours here.", "Announce the file again.")
