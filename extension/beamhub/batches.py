"""Batches: many small files that come in one request, and share looks at the store, flushes and commits."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from beamhub.access import Principal
from beamhub.announcements import Announced, begin_all, destination, id_of
from beamhub.body import Chunks
from beamhub.digests import ALGORITHMS, algorithm_of
from beamhub.errors import BeamhubError, Invalid, TooLarge
from beamhub.incoming import USUAL, different, explained, flush
from beamhub.names import Arrival, choose, kin_of
from beamhub.schemas import Upload, UploadState
from beamhub.store import Store, Transaction
from beamhub.uploads import Uploads

BATCH_FILE = 2**20  # bytes of one of the files of a batch, at most


@dataclass(frozen=True)
class Whole:
    """A small file with all its bytes, as a sender delivers it."""

    path: str
    content: memoryview
    digest: str | None = None
    key: str | None = None

    def checked(self, experiment: str | None) -> Announced:
        """What is known of it, once its bytes are those that were announced. Raises BadName,
        Invalid, ChecksumMismatch."""
        size = len(self.content)
        file = Announced(self.path, size, self.digest, experiment)
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


class Batches:
    """Files that come many at once."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self._store = store
        self._uploads = uploads
        self._workers = uploads.workers
        self._incoming = uploads.workers.incoming
        self._publications = uploads.publications

    async def deliver(
        self, principal: Principal, files: Sequence[Whole], experiment: str | None = None
    ) -> Sequence[Upload | BeamhubError]:
        """Publishes small files whose bytes are here; each comes to what it would come to by itself.

        They share looks at the store, flushes of the disk and transactions. The answer has, in their order,
        each one's upload, or why it was refused: none keeps the others back.
        """
        work = self._deliver(principal, files, experiment)
        task = self._publications.go_on(work, f"a batch of {len(files)} files")
        return await asyncio.shield(task)  # a sender that goes away does not stop what it has waited for

    async def _deliver(
        self, principal: Principal, files: Sequence[Whole], experiment: str | None
    ) -> Sequence[Upload | BeamhubError]:
        batch = await self._workers.prepare(self._prepare, principal, files, experiment)
        answers = batch.answers
        async with contextlib.AsyncExitStack() as until_then:
            until_then.push_async_callback(self._workers.let_go, batch.held)
            arrivals = batch.arrivals
            if arrivals:
                new = [arrival.upload for arrival in arrivals.values()]
                refused = await self._store.write(lambda tx: begin_all(tx, principal, experiment, new))
                for number in [n for n, arrival in arrivals.items() if arrival.upload.id in refused]:
                    upload = arrivals.pop(number).upload
                    answers[number] = refused[upload.id]
                    await self._workers.run(self._incoming.discard, upload)
            if arrivals:
                placed = await self._publications.place(list(arrivals.values()))
                answers |= dict(zip(arrivals, placed, strict=True))
        for number in batch.begun:
            answers[number] = await self._go_on(principal, files[number], experiment)
        return [answers[number] for number in range(len(files))]

    def _prepare(self, principal: Principal, files: Sequence[Whole], experiment: str | None) -> _Batch:
        """All that comes before the rows of a batch: which of its files are refused or there already; the
        others claimed, and durable in their temporary files."""
        answers: dict[int, Upload | BeamhubError] = {}
        told: dict[int, Announced] = {}
        paths = Counter(file.path for file in files)
        for number, file in enumerate(files):
            try:
                told[number] = file.checked(experiment)
                if paths[file.path] > 1:
                    raise Invalid(f"{file.path} is in the batch {paths[file.path]} times.", "Send one each.")
            except BeamhubError as error:
                told.pop(number, None)
                answers[number] = error
        ids = {n: id_of(principal, key) if (key := files[n].key) else secrets.token_hex(16) for n in told}

        def look(tx: Transaction) -> tuple[set[str], tuple[str, str] | BeamhubError]:
            begun = set(tx.uploads.all(ids.values()))
            try:
                return begun, destination(tx, principal, experiment)
            except BeamhubError as error:
                return begun, error

        known, where = self._store.read_sync(look)
        begun = [number for number, id_ in ids.items() if id_ in known]
        fresh = {number: file for number, file in told.items() if ids[number] not in known}
        if isinstance(where, BeamhubError):
            return _Batch({**answers, **dict.fromkeys(fresh, where)}, begun)
        uploads = {number: file.proposed(principal, ids[number], *where) for number, file in fresh.items()}
        with contextlib.ExitStack() as held:
            place, names = where[1], [upload.path for upload in uploads.values()]
            held.enter_context(self._incoming.claimed(place, *names))
            kin = self._store.read_sync(lambda tx: kin_of(tx, place, names))
            arrivals: dict[int, Arrival] = {}
            for number, upload in uploads.items():
                try:
                    found = choose(self._incoming, upload, kin[upload.path])
                    if isinstance(found, Upload):
                        answers[number] = found
                        continue
                    kept = held.enter_context(self._incoming.keep(upload, files[number].content))
                    arrivals[number] = Arrival(upload, kept, found)
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
            upload = await self._uploads.create(principal, *told, key=file.key)
            if upload.state is UploadState.RECEIVING:
                upload = await self._uploads.append(
                    principal, upload.id, upload.offset, Chunks(rest(upload.offset))
                )
        except BeamhubError as error:
            return error
        return upload


@dataclass
class _Batch:
    """What has become of the files of a delivery, by their numbers in it."""

    answers: dict[int, Upload | BeamhubError]
    begun: Sequence[int] = ()  # that were announced before
    arrivals: dict[int, Arrival] = field(default_factory=dict)  # that are to be published
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # until they are
