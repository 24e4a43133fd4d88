"""Quarantine: files that are built to mislead their readers, such as HDF5 files that point outside their
experiment. They lie outside the experiments' folders, where no member, session, job or viewer gets at them,
until the staff release or delete them. Nothing here opens one.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.errors import Conflict, NotFound
from beamhub.events import emit
from beamhub.incoming import Incoming, versions
from beamhub.schemas import Page, Upload, UploadState
from beamhub.store import Store, Transaction


class Quarantine:
    """What the staff do with quarantined files. Uploads put them there (see beamhub.publications)."""

    def __init__(self, store: Store, data_dir: Path) -> None:
        self._store = store
        self._incoming = Incoming(data_dir)

    async def list(
        self, principal: Principal, instrument: str, *, after: str | None = None, limit: int = 100
    ) -> Page[Upload]:
        """Of an instrument, newest first; `error` is the reason."""

        def work(tx: Transaction) -> Page[Upload]:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            return tx.uploads.list(
                instrument=instrument, state=UploadState.QUARANTINED, after=after, limit=limit
            )

        return await self._store.read(work)

    async def release(self, principal: Principal, id_: str, reason: str) -> Upload:
        """Publishes the file all the same, for people to look at: no dataset is made of it, and the service
        itself still opens no file that it leads to. Raises Conflict if it is not in quarantine."""
        return await asyncio.to_thread(self._release, principal, id_, reason)

    def _release(self, principal: Principal, id_: str, reason: str) -> Upload:
        upload = self._store.read_sync(lambda tx: _quarantined(tx, principal, id_))
        with self._claimed(upload):
            self._store.read_sync(lambda tx: _quarantined(tx, principal, id_))
            path = self._incoming.release(upload)
            paths = versions(upload.path)

            def work(tx: Transaction) -> Upload:
                tx.uploads.supersede(upload.experiment, paths)
                note = f"{upload.error} (released from quarantine by {principal.name}: {reason})"
                version = paths.index(path) + 1
                tx.uploads.end(id_, UploadState.COMPLETE, path=path, version=version, error=note)
                tx.finalisations.outdate(upload.experiment, f"{path} has been released from quarantine.")
                _emit(tx, principal, upload, "file.released", path, reason)
                return tx.uploads.get(id_) or upload

            released = self._store.write_sync(work)
            self._incoming.quarantined(upload).unlink(missing_ok=True)
        return released

    async def delete(self, principal: Principal, id_: str, reason: str) -> Upload:
        """Deletes the file; its upload stays on record as failed. Raises Conflict if it is not in
        quarantine."""
        return await asyncio.to_thread(self._delete, principal, id_, reason)

    def _delete(self, principal: Principal, id_: str, reason: str) -> Upload:
        upload = self._store.read_sync(lambda tx: _quarantined(tx, principal, id_))

        def work(tx: Transaction) -> Upload:
            upload = _quarantined(tx, principal, id_)
            note = f"{upload.error} (deleted from quarantine by {principal.name}: {reason})"
            tx.uploads.end(id_, UploadState.FAILED, error=note)
            _emit(tx, principal, upload, "file.deleted", upload.path, reason)
            return tx.uploads.get(id_) or upload

        with self._claimed(upload):  # somebody may be releasing it
            deleted = self._store.write_sync(work)
            self._incoming.quarantined(deleted).unlink(missing_ok=True)
        return deleted

    async def recover(self) -> None:
        """Ends what a kill has left half done: what is on record as quarantined has no other name, what is
        not is not there."""
        await asyncio.to_thread(self._recover)

    def _recover(self) -> None:
        for file in self._incoming.in_quarantine():
            upload = self._known(file.name)
            if upload is None or upload.state is UploadState.RECEIVING:  # just on its way there
                continue
            with self._claimed(upload), contextlib.suppress(FileNotFoundError):
                current = self._known(file.name)
                if current is not None and current.state is UploadState.QUARANTINED:
                    self._incoming.take_back(current)
                else:
                    file.unlink()

    def _claimed(self, upload: Upload) -> contextlib.AbstractContextManager[None]:
        """While nobody publishes a version of the same file."""
        return self._incoming.claimed(upload.experiment, versions(upload.path)[0])

    def _known(self, id_: str) -> Upload | None:
        return self._store.read_sync(lambda tx: tx.uploads.get(id_))


def _quarantined(tx: Transaction, principal: Principal, id_: str) -> Upload:
    upload = tx.uploads.get(id_)
    try:
        if upload is not None:
            access.require(tx, principal, upload.experiment, Action.OPERATE)
    except NotFound:
        upload = None
    if upload is None:
        raise NotFound(f"There is no upload {id_[:64]!r} here.", "Look for it in the quarantine's list.")
    if upload.state is not UploadState.QUARANTINED:
        raise Conflict(
            f"{upload.path} is not in quarantine: it is {upload.state}.", "There is nothing to do."
        )
    return upload


def _emit(tx: Transaction, principal: Principal, upload: Upload, kind: str, path: str, reason: str) -> None:
    emit(
        tx,
        kind,
        actor=principal.name,
        instrument=upload.instrument,
        experiment=upload.experiment,
        subject=upload.id,
        data={"path": path, "size": upload.size, "reason": reason},
    )
