"""Files on their way."""

from __future__ import annotations

import hashlib
import unicodedata
import uuid
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

from beamhub.client.outgoing import Outgoing
from beamhub.client.wire import ApiError, Pauses, Unreachable, Wire, given, quoted
from beamhub.schemas import (
    BATCH,
    BATCH_BYTES,
    BATCH_FILES,
    Batch,
    BatchFile,
    Because,
    Deliveries,
    Delivery,
    Problem,
    Upload,
    UploadState,
)

PART = 8 * 2**20  # bytes per PATCH of an upload


class Uploads(Wire):
    def uploads(
        self, experiment: str, *, state: UploadState | None = None, limit: int | None = None
    ) -> list[Upload]:
        return self._list(Upload, "uploads", limit, experiment=experiment, state=state)

    def upload_status(self, upload: str) -> Upload:
        return self._get(Upload, f"uploads/{quoted(upload)}")

    def quarantine(self, instrument: str) -> list[Upload]:
        """Files that are kept from everybody; `error` says why."""
        return self._list(Upload, f"instruments/{quoted(instrument)}/quarantine")

    def release_upload(self, upload: str, reason: str) -> Upload:
        """Publish a quarantined file after all."""
        return self._send(Upload, "POST", f"uploads/{quoted(upload)}/release", Because(reason=reason))

    def discard_upload(self, upload: str, reason: str) -> Upload:
        """Delete a quarantined file."""
        return self._send(Upload, "POST", f"uploads/{quoted(upload)}/discard", Because(reason=reason))

    def cancel_upload(self, upload: str) -> None:
        self._call("DELETE", f"uploads/{quoted(upload)}", headers={"Tus-Resumable": "1.0.0"})

    def upload_together(self, paths: Sequence[Path], experiment: str | None = None) -> list[Delivery]:
        """Send small files (of up to 1 MiB), many by one request, into `shared/`, with an instrument's token
        into `raw/`. In their order, what has become of each: its upload, or why it was refused."""
        deliveries: list[Delivery] = []
        together: list[tuple[BatchFile, bytes]] = []
        key, room = uuid.uuid4().hex, BATCH_BYTES
        for number, path in enumerate(paths):
            content = path.read_bytes()
            name = unicodedata.normalize("NFC", path.name)  # macOS takes accents apart
            if together and (len(content) > room or len(together) == BATCH_FILES):
                deliveries += self._deliver(together, experiment)
                together, room = [], BATCH_BYTES
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            file = BatchFile(filename=name, size=len(content), digest=digest, key=f"{key}-{number}")
            together.append((file, content))
            room -= len(content)
        return deliveries + (self._deliver(together, experiment) if together else [])

    def _deliver(self, files: Sequence[tuple[BatchFile, bytes]], experiment: str | None) -> list[Delivery]:
        head = Batch(files=[file for file, _ in files], experiment=experiment).model_dump_json().encode()
        answer = self._call(
            "POST",
            "uploads/batch",
            # it may be repeated, since each file has a key
            headers={"Content-Type": BATCH, "Idempotency-Key": uuid.uuid4().hex},
            content=b"".join([head, b"\n", *(content for _, content in files)]),
        )
        return Deliveries.model_validate_json(answer.content).items

    def upload(
        self,
        path: Path,
        experiment: str | None = None,
        *,
        name: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Upload:
        """Send a file into the experiment's `shared/` folder, as `name` (which may have folders). With an
        instrument's token it goes into `raw/` of the experiment that is active there.

        It is read once, and its digest sent with the last bytes. A broken connection resumes where it
        stopped; a file that is already there with the same content is not sent again. Of a file that changes
        meanwhile nothing is kept: ApiError. `progress(sent, size)` is called as bytes are taken in. Returns
        the complete upload.
        """
        composed = unicodedata.normalize("NFC", name or path.name)  # macOS takes accents apart
        named = given({"filename": composed, "experiment": experiment})
        with path.open("rb") as file:
            outgoing = Outgoing(file)
            try:
                upload = self._announce(outgoing.size, named | {"digest": "sha256"})
            except ApiError as error:
                if error.status != 428:
                    raise
                # one of this name and size is there already: only its digest tells whether it is this
                upload = self._announce(outgoing.size, named | {"sha256": outgoing.digest()})
            pauses, known = Pauses(), True  # how far it is
            while upload.state is UploadState.RECEIVING:
                try:
                    if known:
                        if progress:
                            progress(upload.offset, outgoing.size)
                        known = False
                        self._send_part(upload, outgoing)
                        pauses.reset()
                    upload, known = self.upload_status(upload.id), True
                except Unreachable:
                    pauses.wait()
                except ApiError as error:
                    # 409: it stands elsewhere; 429: too many at once; 460: damaged on the way;
                    # 502 to 504: being restarted
                    if error.status not in (409, 429, 460, 502, 503, 504):
                        raise
                    pauses.wait()
        if upload.state is UploadState.FAILED:
            raise ApiError(Problem(title="Upload failed", status=460, detail=upload.error))
        if progress:
            progress(outgoing.size, outgoing.size)
        return upload

    def _announce(self, size: int, metadata: dict[str, str]) -> Upload:
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(size),
            "Upload-Metadata": _metadata(metadata),
            "Idempotency-Key": uuid.uuid4().hex,
        }
        return Upload.model_validate_json(self._call("POST", "uploads", headers=headers).content)

    def _send_part(self, upload: Upload, outgoing: Outgoing) -> None:
        """The next bytes of a file; with the last ones its digest, which is of what has been sent."""
        length = min(PART, outgoing.size - upload.offset)
        blocks = outgoing.blocks(upload.offset, length)
        last = upload.digest_follows is not None and upload.offset + length == outgoing.size
        content = b"".join(blocks) if last else blocks
        if outgoing.changed(complete=last):
            self._call("DELETE", f"uploads/{upload.id}", headers={"Tus-Resumable": "1.0.0"})
            raise ApiError(
                Problem(
                    title="File changed",
                    status=422,
                    detail=f"{outgoing.name} changed while it was sent.",
                    remedy="Send it again once it is finished.",
                )
            )
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(upload.offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(length),
        }
        if last:
            headers["Upload-Metadata"] = _metadata({"sha256": outgoing.digest()})
        self._call("PATCH", f"uploads/{upload.id}", headers=headers, content=content)


def _metadata(values: dict[str, str]) -> str:
    """As tus has it in a header."""
    return ",".join(f"{key} {b64encode(value.encode()).decode()}" for key, value in values.items())
