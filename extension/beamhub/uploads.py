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
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.announcements import (
    Announced,
    begin,
    continued,
    destination,
    expect,
    id_of,
    is_whole,
    readable,
    settled,
    writable,
)
from beamhub.body import Body, Followed
from beamhub.errors import BadName, Conflict, DigestRequired, Forbidden, Gone, Invalid
from beamhub.events import Live
from beamhub.incoming import Held
from beamhub.leftovers import Leftovers
from beamhub.names import Kin, choose, kin_of
from beamhub.publications import Examine, Publications
from beamhub.reception import AT_ONCE, Reception
from beamhub.schemas import DigestAlgorithm, Page, Upload, UploadState
from beamhub.store import Store, Transaction
from beamhub.store.uploads import PARTIAL
from beamhub.underway import Underway
from beamhub.workers import CLAIM, Workers

MAX_PARTS = 500  # of one file: all are open while it is put together
REWRITE = 2**20  # bytes replaced at a time, at most
LONGEST_PAUSE = 0.5  # seconds between looks at what another request with the same key is doing


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
        self._store = store
        self._in_place = in_place or {}
        self.workers = Workers(data_dir)
        self._incoming = self.workers.incoming
        underway = Underway(self._incoming.marks)
        self.reception = Reception(store, live, self.workers, underway, at_once)
        self.publications = Publications(store, self.workers, underway, examine)
        self.leftovers = Leftovers(store, self.workers, underway, self.publications)

    async def close(self) -> None:
        """Waits for the files that are being published."""
        while self.publications.tasks:
            await asyncio.gather(*self.publications.tasks, return_exceptions=True)
        self.workers.close()

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
        metadata: str | None = None,
    ) -> Upload:
        """Announces a file of `size` bytes (None: `append` will tell) with this digest (see beamhub.digests).

        An instrument's file goes below raw/ of the experiment that is active at this moment, a user's below
        shared/ of `experiment`. A file that is there already, with the same content, comes back as its
        complete upload: nothing has to be sent. Without a digest, what comes is taken as it is; with
        `digest_follows`, nothing is published before `append` has brought that digest. Who announces it again
        with the same `key` gets the upload that the first announcement began, also when a kill has kept its
        answer back. With `partial`, it is a part for `concatenate`, and never published by itself. `metadata`
        is kept as it is, for a tus client that asks.

        Raises BadName, Invalid, Conflict (no active experiment), Unavailable (paused), QuotaExceeded,
        DiskFull, DigestRequired (there is a file of this name and size, and only the digest tells whether it
        is this).
        """
        concat = PARTIAL if partial else None
        file = Announced(
            path,
            size,
            digest,
            experiment,
            concat=concat,
            digest_follows=digest_follows,
            metadata=metadata,
        )
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
        metadata: str | None = None,
    ) -> Upload:
        """Makes one file of these partial uploads, in this order; it is then verified and published like any
        other, and the parts are gone. `concat` is how tus names them. Raises as `create`, and Conflict if a
        part is not complete."""
        if len(parts) > MAX_PARTS:
            raise Invalid(
                f"A file has at most {MAX_PARTS} parts, not {len(parts)}.", "Send fewer and larger ones."
            )
        id_ = id_of(principal, key) if key else None
        begun = await self._store.read(lambda tx: tx.uploads.get(id_) if id_ else None)
        if begun:
            file = Announced(path, begun.size, digest, experiment, concat=concat, metadata=metadata)
            return await self._announce(principal, file, key)

        def look(tx: Transaction) -> list[Upload]:
            found = [writable(tx, principal, part) for part in parts]
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

        async def join(upload: Upload, file: Held) -> Held:
            async with contextlib.AsyncExitStack() as until_then:
                held: list[Held] = []
                for part in found:
                    held.append(await self.workers.held(self._incoming.hold, part))
                    until_then.push_async_callback(self.workers.let_go, held[-1])
                await self.workers.read(upload, self._incoming.join, file, held)
            return file

        file = Announced(path, size, digest, experiment or place, concat=concat, metadata=metadata)
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
        if not where.is_absolute() or ".." in where.parts or "\0" in source:
            raise BadName(
                f"{source[:200]!r} is no absolute path without `..`.", "Say where the file lies, in full."
            )
        roots = self._in_place.get(principal.instrument or "", ())
        root = next((root for root in roots if where.is_relative_to(root)), None)
        if root is None:
            raise Forbidden(
                f"{principal.name} may not register {source[:200]!r}: it does not lie in a folder that is "
                "open for this.",
                "Upload it, or ask the operators to open its folder (in_place in jupyterhub_config.py).",
            )

        async def find(upload: Upload, file: Held) -> Held:
            return await self.workers.read(upload, self._incoming.source, upload, root, file)

        file = Announced(path, size, digest, experiment, source=str(where))
        return await self._announce(principal, file, key, fill=find)

    async def _announce(
        self,
        principal: Principal,
        file: Announced,
        key: str | None,
        *,
        fill: Callable[[Upload, Held], Awaitable[Held]] | None = None,
        parts: Sequence[Upload] = (),
    ) -> Upload:
        """The upload of this file, begun now or before. `fill` finds all its bytes somewhere else than at the
        sender, given the empty temporary file, and returns the file that has them."""
        file.check()
        id_ = id_of(principal, key) if key else secrets.token_hex(16)
        pause = CLAIM
        while (upload := await self._attempt(principal, file, id_, fill, parts)) is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return upload

    async def _attempt(
        self,
        principal: Principal,
        file: Announced,
        id_: str,
        fill: Callable[[Upload, Held], Awaitable[Held]] | None,
        parts: Sequence[Upload],
    ) -> Upload | None:
        """As `_announce`; None while another request announces the same with the same key."""
        async with contextlib.AsyncExitStack() as until_then:
            held = contextlib.ExitStack()
            until_then.push_async_callback(self.workers.let_go, held)
            room = await self.workers.whole(self._room, principal, file, id_, fill is not None, held)
            if room is None or room.file is None:
                return room and room.upload
            upload, content = room.upload, room.file
            try:
                if fill:
                    content = held.enter_context(await fill(upload, content))
                if not room.begun and not await self._store.write(
                    lambda tx: begin(tx, principal, file, upload, parts)
                ):
                    return None
            except Exception:
                if not room.begun:
                    await self.workers.run(self._incoming.discard, upload)
                raise
            for part in parts:
                await self.workers.run(self._incoming.discard, part)
            if file.concat == PARTIAL or not (fill or is_whole(upload, 0)):
                return upload
            # a sender that goes away now does not stop what it has waited for
            return await asyncio.shield(
                self.publications.begin_to_finish(upload, content, until_then.pop_all())
            )

    def _room(
        self, principal: Principal, file: Announced, id_: str, fills: bool, held: contextlib.ExitStack
    ) -> _Room | None:
        """Where the bytes of this file are to collect, held; None while another request announces it, or has
        just done so. `fills`: so much work follows that this is better known before. Blocks."""

        def look(tx: Transaction) -> tuple[Upload, bool, Kin | None]:
            if tx.uploads.get(id_):
                return writable(tx, principal, id_), True, None
            proposed = file.proposed(principal, id_, *destination(tx, principal, file.experiment))
            kin = kin_of(tx, proposed.experiment, [proposed.path]) if file.concat != PARTIAL else {}
            return proposed, False, kin.get(proposed.path)

        upload, begun, kin = self._store.read_sync(look)
        if begun:
            if not file.is_of(upload):
                raise Invalid(
                    "The Idempotency-Key has announced another file before.", "Use a new key for each file."
                )
            waits = not is_whole(upload, 0) and not upload.source
            if upload.state is not UploadState.RECEIVING or waits:
                return _Room(self._incoming.measured(upload), begun)
        elif kin:
            found = choose(self._incoming, upload, kin)
            if isinstance(found, Upload):
                return _Room(found, begun)
            if file.digest_follows and any(there.size == file.size for there in kin.published.values()):
                raise DigestRequired(
                    f"There is a {file.path} of {file.size} bytes already.", "Announce it with its digest."
                )
        hold = self._incoming.hold if begun else self._incoming.make_room
        try:
            empty = held.enter_context(hold(upload))
        except Conflict:
            return None
        except Gone:  # since the look above, unless its bytes are lost
            now = self._store.read_sync(lambda tx: tx.uploads.get(id_))
            if now and now.state is UploadState.RECEIVING:
                raise
            return None
        if fills and not begun and self._store.read_sync(lambda tx: tx.uploads.get(id_)):
            return None
        return _Room(upload, begun, empty)

    async def get(self, principal: Principal, id_: str) -> Upload:
        def work() -> Upload:
            upload = self._store.read_sync(lambda tx: readable(tx, principal, id_))
            if upload.state is UploadState.RECEIVING and self._incoming.arrived(upload) is None:
                # it has come to its end since, unless its bytes are lost
                upload = self._store.read_sync(lambda tx: readable(tx, principal, id_))
            return self._incoming.measured(upload)

        return await self.workers.run(work)

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
        items = await self.workers.run(lambda: [self._incoming.measured(upload) for upload in page.items])
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
        one, what has come before the connection broke is kept. The digest behind a `Followed` body is of all
        of the file up to there; if it does not fit, what has come since one last did is discarded.
        `size` and `digest` are of the whole file, where its announcement has left them open. Raises Conflict
        (wrong offset, or another request is sending: nothing is changed), ChecksumMismatch, TooLarge,
        DiskFull, Gone, Invalid.
        """
        upload = await self._store.read(lambda tx: continued(tx, principal, id_))
        if upload.state is UploadState.FAILED:
            raise Gone(f"The upload of {upload.path} has failed: {upload.error}", "Announce the file again.")
        if upload.source or (upload.concat or PARTIAL) != PARTIAL:
            raise Forbidden(f"Nothing is to be sent of {upload.path}.", "Ask for its state.")
        if upload.state is not UploadState.RECEIVING:
            expect(upload, offset)
            return upload
        try:
            file = await self.workers.held(self._incoming.hold, upload)
        except Gone:
            now = await self._store.read(lambda tx: readable(tx, principal, id_))
            if now.state is UploadState.RECEIVING:  # its bytes are gone from the disk
                raise
            # it has come to its end since it was read
            return await self.append(principal, id_, offset, body, checksum, size=size, digest=digest)
        async with contextlib.AsyncExitStack() as until_then:
            until_then.push_async_callback(self.workers.let_go, file)
            until_then.enter_context(self.reception.one_more(principal))
            upload = upload.model_copy(update={"offset": file.position})
            expect(upload, offset)
            if upload.deferred or digest is not None or size is not None:
                upload = await self._store.write(lambda tx: settled(tx, upload, size, digest))
            await self.reception.receive(upload, file, body, checksum)
            arrived = file.position
            upload = upload.model_copy(
                update={"offset": arrived, "size": arrived if upload.deferred else upload.size}
            )
            followed = body.digest if isinstance(body, Followed) and arrived == upload.size else None
            if followed and upload.digest_follows and not upload.deferred:
                upload = await self._store.write(lambda tx: settled(tx, upload, None, followed))
            if not is_whole(upload, arrived) or upload.concat == PARTIAL:
                return upload
            # a sender that goes away now does not stop what it has waited for
            return await asyncio.shield(self.publications.begin_to_finish(upload, file, until_then.pop_all()))

    async def rewrite(
        self,
        principal: Principal,
        id_: str,
        begin: int,
        end: int,
        body: Body,
        checksum: tuple[str, bytes] | None = None,
    ) -> Upload:
        """Replaces the bytes from `begin` to before `end` of what has come so far.

        For files that are sent while they grow, and whose writer also changes what it has written before.
        Only the digest at the end can vouch for all, so it has to have been promised; `checksum` is of these
        bytes. Raises Invalid, ChecksumMismatch, Conflict (its digest has come, nothing has come there,
        another request is sending), TooLarge, Gone.
        """
        if not 0 <= begin < end <= begin + REWRITE:
            raise Invalid(f"From 1 to {REWRITE} bytes are replaced at a time.", "Replace them in parts.")
        upload = await self._store.read(lambda tx: writable(tx, principal, id_))
        if upload.state is not UploadState.RECEIVING or not upload.digest_follows or upload.digest:
            raise Conflict(
                f"What has come of {upload.path} can't be replaced.",
                "Promise its digest when announcing it, and send that last.",
            )
        file = await self.workers.held(self._incoming.hold, upload)
        async with contextlib.AsyncExitStack() as until_then:
            until_then.push_async_callback(self.workers.let_go, file)
            until_then.enter_context(self.reception.one_more(principal))
            await self.reception.replace(file, begin, end, body, checksum)
            return upload.model_copy(update={"offset": file.size()})

    async def terminate(self, principal: Principal, id_: str) -> None:
        """Gives up an upload that is on its way. A published file stays: Conflict. Raises Gone for one that
        was given up before."""
        upload = await self._store.read(lambda tx: writable(tx, principal, id_))
        with await self.workers.claim(upload):
            await self.publications.fail(upload, f"given up by {principal.name}", principal.name)


class _Room(NamedTuple):
    """The temporary file of an upload."""

    upload: Upload
    begun: bool  # by an earlier request
    file: Held | None = None  # None: nothing is to be put into it now
