"""Leftovers: what killed processes have left behind, and uploads that nobody goes on with.

Nothing is lost by a kill: a temporary file is gone on with, or brought to its end here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta

from beamhub.access import SYSTEM
from beamhub.announcements import is_whole
from beamhub.errors import Conflict, Gone
from beamhub.incoming import remove
from beamhub.publications import Publications
from beamhub.schemas import Upload, UploadState
from beamhub.silence import Silences
from beamhub.store import Store
from beamhub.store.uploads import PARTIAL
from beamhub.underway import Underway
from beamhub.workers import Workers

log = logging.getLogger(__name__)

EXPIRES = timedelta(days=1)  # after its last byte, an unfinished upload is given up


class Leftovers:
    """To be looked after now and then, in every process."""

    def __init__(
        self, store: Store, workers: Workers, underway: Underway, publications: Publications
    ) -> None:
        self._store = store
        self._workers = workers
        self._incoming = workers.incoming
        self._underway = underway
        self._publications = publications
        self._silences = Silences[str](EXPIRES)

    async def recover(self) -> None:
        """Cleans up what a killed process has left behind, and begins to finish what can be finished, in the
        background. What a living process has in hand is left to it."""
        found, had = await self._workers.run(self._incoming.found), self._underway.known()
        shown = await self._workers.run(self._incoming.previews.found)
        waiting = await self._store.read(lambda tx: tx.uploads.receiving())
        known = {upload.id for upload in waiting}
        self._underway.forget(*(had - known))
        await self._workers.run(self._incoming.previews.sweep, shown, known)
        for temporary in found:
            id_ = temporary.name.partition(".")[0]
            if id_ not in known:
                with _alone(f"the temporary file {temporary}"):
                    await self._workers.run(remove, temporary, lambda id_=id_: self._receiving(id_))
        arrived = await self._workers.run(lambda: [self._incoming.arrived(upload) for upload in waiting])
        for upload, count in zip(waiting, arrived, strict=True):
            if count is not None and (not is_whole(upload, count) or upload.concat == PARTIAL):
                continue  # more has to come
            with _alone(f"upload {upload.id} ({upload.path})"):
                await self._bring_to_its_end(upload)

    async def _bring_to_its_end(self, upload: Upload) -> None:
        try:
            file = await self._workers.held(self._incoming.hold, upload)
        except Conflict:
            return  # somebody does
        except Gone:
            with await self._workers.claim(upload), contextlib.suppress(Conflict, Gone):  # it has meanwhile
                await self._publications.fail(upload, "its bytes are gone from the disk", SYSTEM.name)
        else:
            async with contextlib.AsyncExitStack() as held:
                held.push_async_callback(self._workers.let_go, file)
                if is_whole(upload, file.size()):
                    self._publications.begin_to_finish(upload, file, held.pop_all())

    async def expire(self, now: float) -> None:
        """Gives up uploads that have had no byte for long. `now`: seconds of the monotonic clock."""
        receiving = {
            upload.id: upload for upload in await self._store.read(lambda tx: tx.uploads.receiving())
        }
        touched = await self._workers.run(self._incoming.touched, receiving.values())
        for id_ in self._silences.too_long(touched, now):
            upload = receiving[id_]
            with _alone(f"upload {upload.id} ({upload.path})"):
                try:
                    file = await self._workers.held(self._incoming.hold, upload)
                    async with contextlib.AsyncExitStack() as held:
                        held.push_async_callback(self._workers.let_go, file)
                        held.enter_context(await self._workers.claim(upload))
                        await self._publications.fail(upload, f"not continued for {EXPIRES}", SYSTEM.name)
                except (Conflict, Gone):
                    continue  # it goes on, or has come to its end meanwhile

    def _receiving(self, id_: str) -> bool:
        upload = self._store.read_sync(lambda tx: tx.uploads.get(id_))
        return upload is not None and upload.state is UploadState.RECEIVING


@contextlib.contextmanager
def _alone(what: str) -> Iterator[None]:
    """A file that can't be looked after keeps no other one from being."""
    try:
        yield
    except OSError as error:
        log.error("%s can't be looked after: %s", what, error)
