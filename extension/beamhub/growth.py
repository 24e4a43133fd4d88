"""Growth: files that are still written, and whose frames can be read already."""

from __future__ import annotations

from pathlib import PurePosixPath

from beamhub import datasetstate, folders
from beamhub.access import Principal
from beamhub.announcements import readable, writable
from beamhub.errors import Conflict, Gone, Invalid
from beamhub.frames import formats
from beamhub.frames.growing import Growing
from beamhub.incoming import explained
from beamhub.schemas import Upload, UploadState
from beamhub.store import Store, Transaction
from beamhub.workers import Workers


class Growth:
    """What senders tell of the files that they send while those grow."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers
        self._incoming = workers.incoming

    async def show(self, principal: Principal, id_: str, growing: Growing) -> Upload:
        """Lets members read these frames of a file that is on its way; its datasets count them.

        The sender vouches for them: the bytes of each have come, and will stay as they are. Where a file of
        this name is published already, that one is shown. Raises Invalid (no detector's file), Conflict
        (frames are left out, or have not come), Gone (all has come, or it was given up).
        """
        upload = await self._store.read(lambda tx: writable(tx, principal, id_))
        _require_growing(upload)
        part = formats.part(PurePosixPath(upload.path))
        if part is None or part.is_member or not upload.path.startswith(f"{folders.RAW}/"):
            raise Invalid(f"{upload.path} is no detector's file of frames.", "Only send it.")
        if await self._store.read(lambda tx: tx.uploads.published(upload.experiment, [upload.path])):
            return upload
        content = self._incoming.temporary(upload)
        try:
            frames = await self._workers.run(self._incoming.previews.show, upload, content, growing)
        except OSError as error:
            raise explained(error, upload) from error

        def work(tx: Transaction) -> Upload:
            _require_growing(readable(tx, principal, id_))
            datasetstate.grows(tx, upload, growing.stack, frames)
            return readable(tx, principal, id_)

        try:
            grown = await self._store.write(work)
        except Gone:  # since it was read: what has just been shown of it goes, too
            await self._workers.run(self._incoming.previews.discard, upload)
            raise
        return await self._workers.run(self._incoming.measured, grown)


def _require_growing(upload: Upload) -> None:
    if upload.state is not UploadState.RECEIVING:
        raise Gone(f"The upload of {upload.path} is over: it is {upload.state}.", "Ask for its state.")
    if not upload.digest_follows or upload.concat or upload.source:
        raise Conflict(f"{upload.path} is not sent while it grows.", "Promise its digest when announcing it.")
