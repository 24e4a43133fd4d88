"""Publications: what has come is verified, flushed to the disk, given its name, and told of.

Never is anything replaced, and every step may be done twice: a kill at any moment is gone on from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from beamhub import datasetstate, folders
from beamhub.errors import BeamhubError, ChecksumMismatch, Conflict, Gone
from beamhub.events import emit, emit_all
from beamhub.incoming import AHEAD, Held, Source, damaged, explained, versions
from beamhub.names import Arrival, Kin, Names, choose, kin_of
from beamhub.schemas import Upload, UploadState
from beamhub.store import Store, Transaction
from beamhub.store.uploads import PARTIAL
from beamhub.underway import Underway
from beamhub.workers import Workers

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


class Publications:
    """All files on their way to their names. `examine` is asked about each when it is published (see
    beamhub.datasets)."""

    def __init__(self, store: Store, workers: Workers, underway: Underway, examine: Examine) -> None:
        self._store = store
        self._workers = workers
        self._incoming = workers.incoming
        self._underway = underway
        self._examine = examine
        self.tasks: set[asyncio.Task[Any]] = set()

    def go_on(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Does work whose sender may go away; the service waits for it when it ends."""

        def ended(task: asyncio.Task[T]) -> None:
            self.tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error and not isinstance(error, BeamhubError):  # those are the sender's affair, and told
                log.error("%s could not be published", what, exc_info=error)

        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(ended)
        return task

    def begin_to_finish(
        self, upload: Upload, file: Held, held: contextlib.AsyncExitStack
    ) -> asyncio.Task[Upload]:
        """Begins to verify and publish `file`; `held` is let go afterwards."""

        async def finish() -> Upload:
            async with held:
                return await self._finish(upload, file)

        return self.go_on(finish(), f"upload {upload.id} ({upload.path})")

    async def _finish(self, upload: Upload, file: Held) -> Upload:
        """Verifies and publishes an upload whose bytes have all come, or lie elsewhere. May be repeated, and
        then reads nothing again."""
        try:
            if isinstance(file, Source):
                file = await self._workers.read(upload, self._incoming.bring, file)
            digest = await self._verified(upload, file)
        except ChecksumMismatch as error:
            if 0 < self._underway.agreed(upload) < upload.size:
                await self._workers.whole(self._underway.take_back, upload, file)
                raise damaged(upload) from error
            with await self._workers.claim(upload), contextlib.suppress(Conflict, Gone):  # given up meanwhile
                await self.fail(upload, error.detail, upload.created_by)
            raise
        except OSError as error:
            raise explained(error, upload) from error
        with await self._workers.claim(upload):
            published = await self._publish(upload.model_copy(update={"digest": digest}), file)
        self._underway.forget(upload.id)
        return published

    async def _verified(self, upload: Upload, file: Held) -> str:
        """The digest of the bytes, which stay now. Raises ChecksumMismatch."""
        left = upload.size - self._underway.of(upload, file).position  # to be read, while the disk writes
        flushing = {asyncio.ensure_future(self._workers.run(file.flush))} if left > AHEAD else set()
        try:
            back = left == 0 or isinstance(file, Source)
            while not back:
                back = await self._workers.read(upload, self._underway.read_back, upload, file)
            verify = self._incoming.verify, upload, file, self._underway.of(upload, file)
            slow = upload.source is not None
            return await (self._workers.read(upload, *verify) if slow else self._workers.run(*verify))
        finally:
            for flushed in flushing:
                await flushed

    async def _publish(self, upload: Upload, file: Held) -> Upload:
        def look(tx: Transaction) -> tuple[Upload | None, Kin]:
            return tx.uploads.get(upload.id), kin_of(tx, upload.experiment, [upload.path])[upload.path]

        def find() -> tuple[Upload | None, Kin, Names | Upload]:
            current, kin = self._store.read_sync(look)
            return current, kin, choose(self._incoming, upload, kin)

        current, kin, found = await self._workers.run(find)
        if current is None or current.state is UploadState.FAILED:
            raise Gone(f"The upload of {upload.path} was given up meanwhile.", "Announce the file again.")
        if current.state is not UploadState.RECEIVING:
            return current
        if isinstance(found, Upload):
            await self._workers.run(self._incoming.withdraw, upload, kin.published.keys())
            return await self._merge(upload, found)
        (placed,) = await self.place([Arrival(upload, file, found)])
        if isinstance(placed, Exception):
            raise placed
        return placed

    async def place(self, arrivals: Sequence[Arrival]) -> Sequence[Upload | BeamhubError]:
        """Publishes verified files of one sender in one experiment, whose names are claimed. For each, its
        upload, or why it could not be published."""
        first = arrivals[0].upload
        files = [(arrival.upload, arrival.file, arrival.names) for arrival in arrivals]
        results: dict[str, Upload | BeamhubError] = {}
        placed: dict[str, Upload] = {}
        try:
            paths = await self._workers.run(self._incoming.publish, first.experiment, files)
        except OSError as error:
            raise explained(error, first) from error
        for arrival, path in zip(arrivals, paths, strict=True):
            upload = arrival.upload
            match path:
                case str():
                    placed[upload.id] = arrival.as_published(path)
                case Conflict():
                    await self.fail(upload, path.detail, upload.created_by)
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
            datasetstate.withdraw(tx, first.experiment, [arrival.upload.path for arrival in arrivals])
            findings.record(tx)
            _outdate(tx, *placed.values())
            return tx.uploads.all(placed)

        if placed:
            results |= await self._store.write(complete)
            await self._workers.run(self._incoming.discard, *placed.values())
        return [results[arrival.upload.id] for arrival in arrivals]

    async def _quarantine(self, upload: Upload, file: Held, reason: str) -> Upload:
        """What is built to mislead its readers reaches none of them."""
        announced = file.upload.path
        await self._workers.run(self._incoming.isolate, upload, file, upload.path)

        def work(tx: Transaction) -> Upload | None:
            change = {"path": upload.path, "version": upload.version, "digest": upload.digest}
            tx.uploads.end(upload.id, UploadState.QUARANTINED, error=reason, **change)
            datasetstate.withdraw(tx, upload.experiment, [announced])
            _emit(tx, upload, "file.quarantined", upload.created_by, reason=reason)
            _outdate(tx, upload)
            return tx.uploads.get(upload.id)

        quarantined = await self._store.write(work)
        await self._workers.run(self._incoming.discard, upload)
        return quarantined or upload

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
                experiment=known.experiment,  # another one where its dataset has just been moved
                path=known.path,
                version=known.version,
                digest=upload.digest,
            )
            datasetstate.withdraw(tx, upload.experiment, [upload.path])
            return tx.uploads.get(upload.id)

        merged = await self._store.write(work)
        await self._workers.run(self._incoming.discard, upload)
        return merged or twin

    async def fail(self, upload: Upload, reason: str, actor: str) -> None:
        """Gives up an upload whose name is claimed. Raises Conflict if it has arrived, Gone if it was given
        up before."""

        def going(tx: Transaction) -> Upload:
            current = tx.uploads.get(upload.id)
            if current is None or current.state is UploadState.FAILED:
                raise Gone(f"The upload of {upload.path} was given up before.", "Nothing is left of it.")
            if current.state is not UploadState.RECEIVING:
                raise Conflict(f"The upload of {upload.path} is over.", "Published files stay.")
            return current

        def published(tx: Transaction) -> Collection[str]:
            going(tx)
            return tx.uploads.published(upload.experiment, versions(upload.path)).keys()

        def work(tx: Transaction) -> None:
            if going(tx).concat == PARTIAL:
                tx.uploads.forget([upload.id])
                return
            tx.uploads.end(upload.id, UploadState.FAILED, error=reason, frames=None)
            datasetstate.withdraw(tx, upload.experiment, [upload.path])
            _emit(tx, upload, "upload.failed", actor, reason=reason)

        others = await self._store.read(published)
        await self._workers.run(self._incoming.withdraw, upload, others)
        await self._store.write(work)
        await self._workers.run(self._incoming.discard, upload)


def _outdate(tx: Transaction, *arrived: Upload) -> None:
    """What was signed off without these files of one experiment is no longer so."""
    if late := [upload for upload in arrived if upload.path.startswith(f"{folders.RAW}/")]:
        told = [f"{upload.path} has arrived after the check." for upload in late]
        tx.finalisations.outdate(late[0].experiment, *told)


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
