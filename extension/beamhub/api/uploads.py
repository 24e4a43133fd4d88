"""Routes of uploads: the tus 1.0 protocol, and JSON about uploads beside it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from pydantic import Field

from beamhub.announcements import MAX_SIZE
from beamhub.api.problems import Refusal
from beamhub.api.routes import Call, Paging, Reply, route
from beamhub.body import Body, Followed
from beamhub.digests import ALGORITHMS
from beamhub.errors import Gone, Invalid
from beamhub.frames.growing import Growing
from beamhub.leftovers import EXPIRES
from beamhub.reception import CHECKSUMS
from beamhub.schemas import Because, DigestAlgorithm, Page, Registration, Upload, UploadState

DIGESTS = {name: len(hasher().digest()) for name, hasher in CHECKSUMS.items()}  # bytes of each
TUS: dict[str, dict[str, Any]] = {"Tus-Resumable": {"const": "1.0.0"}}
OFFSET: dict[str, dict[str, Any]] = {"Upload-Offset": {"type": "integer", "minimum": 0}}
ANNOUNCED: dict[str, dict[str, Any]] = {
    "Upload-Length": {"type": "integer", "minimum": 0, "maximum": MAX_SIZE},
    "Upload-Metadata": {"type": "string", "description": "`key base64, key base64, …`"},
}
DEFERRED: dict[str, dict[str, Any]] = {
    "Upload-Defer-Length": {"type": "integer", "const": 1, "description": "instead of the length"}
}
CONCAT: dict[str, dict[str, Any]] = {
    "Upload-Concat": {"type": "string", "description": "`partial`, or `final;` and the parts' URLs"}
}
CHECKSUM: dict[str, dict[str, Any]] = {
    "Upload-Checksum": {"type": "string", "description": "`algorithm base64`"}
}
FOLLOWS: dict[str, dict[str, Any]] = {
    "Upload-Digest-Follows": {
        "enum": list(ALGORITHMS),
        "description": "the body ends with this digest, in binary, of the file from its beginning to there",
    }
}
METADATA = {"filename", "experiment", "digest", *ALGORITHMS}  # what is taken of it
_SIZE = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/\*")


class UploadQuery(Paging):
    experiment: str | None = Field(None, description="needed from users; an agent sees its instrument's")
    state: UploadState | None = None


@route("OPTIONS", "uploads", public=True)
async def describe_tus(call: Call) -> Reply[None]:  # noqa: ARG001 (as every route)
    """What this service can do of tus."""
    headers = {
        "Tus-Version": "1.0.0",
        "Tus-Extension": "creation,creation-with-upload,creation-defer-length,termination,checksum,"
        "expiration,concatenation",
        "Tus-Max-Size": str(MAX_SIZE),
        "Tus-Checksum-Algorithm": ",".join(DIGESTS),
    }
    return Reply(None, 204, headers)


@route("GET", "uploads")
async def list_uploads(call: Call, query: UploadQuery) -> Page[Upload]:
    """An experiment's uploads, newest first."""
    return await call.service.uploads.list(call.principal, **query.model_dump())


@route(
    "POST",
    "uploads",
    streams_body="application/offset+octet-stream",
    headers=TUS | ANNOUNCED | DEFERRED | CONCAT | CHECKSUM | FOLLOWS,
    keyed=True,
)
async def create_upload(call: Call) -> Reply[Upload]:
    """Announce a file that is to be sent.

    `Upload-Metadata` has its `filename` (a path, which may have folders), the digest of the whole file as
    `sha256` or `xxh128` (hexadecimal) and, from users, the `experiment`. Without a digest the service
    computes one when all has come, and can't tell whether that is what the sender has; `digest`, the name of
    an algorithm, promises one that the last PATCH brings. With `Upload-Defer-Length: 1` a later PATCH
    brings the length. An instrument's agent
    sends into the experiment that is active now (its `raw/`), a user into the `shared/` of an experiment. A
    file that is there already, with the same content, is complete at once. Repeated with the same
    `Idempotency-Key`, the announcement finds the upload that it has begun, however far that is by now.

    A body is the beginning of the file. With `Upload-Concat: partial` it is a part that is never published by
    itself; `final;` and the parts' URLs make one file of them, which is answered once it has been verified
    and published.
    """
    _require_tus(call)
    metadata = _metadata(call.headers.get("Upload-Metadata", ""))
    digest, follows = _digest(metadata), _following(metadata)
    concat = call.headers.get("Upload-Concat")
    where = {
        "experiment": metadata.get("experiment"),
        "key": call.headers.get("Idempotency-Key"),
        "metadata": call.headers.get("Upload-Metadata"),
    }
    uploads = call.service.uploads
    if concat is None or concat == "partial":
        # clients need not name what is never published by itself
        name = metadata.get("filename", "" if concat is None else "part")
        size, partial = _length(call), concat is not None
        checksum = _checksum(call.headers.get("Upload-Checksum"))
        upload = await uploads.create(
            call.principal, name, size, digest, partial=partial, digest_follows=follows, **where
        )
        if _brings_bytes(call) and upload.state is UploadState.RECEIVING and not upload.offset:
            upload = await uploads.append(call.principal, upload.id, 0, _body(call), checksum)
    else:
        name, parts = metadata.get("filename", ""), _parts(concat)
        if follows:
            raise Invalid("All of this file has come, so no digest can follow.", "Send its digest now.")
        upload = await uploads.concatenate(call.principal, name, parts, concat, digest, **where)
    return Reply(upload, headers={**_progress(upload), "Location": f"{call.path.rstrip('/')}/{upload.id}"})


@route("POST", "uploads/in-place", keyed=True)
async def register_file(call: Call, body: Registration) -> Upload:
    """Publish a file that lies on storage which the service sees, without sending it.

    For an instrument's agent, and files in the folders that the operators have opened for it. The answer
    comes once the file has been verified by reading it, and published in the `raw/` of the active experiment.
    """
    return await call.service.uploads.register(
        call.principal,
        body.source,
        body.filename,
        body.size,
        body.digest,
        body.experiment,
        key=call.headers.get("Idempotency-Key"),
    )


@route("GET", "uploads/{upload}")
async def get_upload(call: Call, upload: str) -> Upload:
    """How far an upload is, and whether it has been verified and published."""
    return await call.service.uploads.get(call.principal, upload)


@route("HEAD", "uploads/{upload}", headers=TUS)
async def head_upload(call: Call, upload: str) -> Reply[None]:
    """How many bytes have arrived (`Upload-Offset`), and what the file was announced with."""
    _require_tus(call)
    found = await call.service.uploads.get(call.principal, upload)
    if found.state is UploadState.FAILED:  # a client that would go on has to begin again
        raise Gone(f"The upload of {found.path} has failed: {found.error}", "Announce the file again.")
    headers = _progress(found)
    headers.pop("Upload-Expires", None)  # counted from the last byte, whose time is not known here
    if found.metadata:
        headers["Upload-Metadata"] = found.metadata
    return Reply(None, 200, headers)


@route(
    "PATCH",
    "uploads/{upload}",
    streams_body="application/offset+octet-stream",
    headers=TUS | OFFSET | ANNOUNCED | CHECKSUM | FOLLOWS,
)
async def append_to_upload(call: Call, upload: str) -> Reply[None]:
    """Send the bytes from `Upload-Offset` on.

    The last ones are answered once the file has been verified and published. With `Upload-Checksum`, bytes
    that were damaged on their way are refused (460) and forgotten. What the announcement has left open comes
    with any of them, which may have no bytes: `Upload-Length`, and the digest of the whole file in
    `Upload-Metadata`.

    With `Upload-Digest-Follows: xxh128`, which is not of tus, the body ends with 16 bytes more (`sha256`:
    32): the digest of the file from its beginning to there. Where it does not fit, what has come since one
    last did is forgotten (460), and the offset says where to go on. The one behind the last bytes is that of
    the whole file. So a sender digests each byte once, and a damaged one costs one part."""
    _require_tus(call)
    _require_bytes(call)
    offset = _number(call, "Upload-Offset")
    checksum = _checksum(call.headers.get("Upload-Checksum"))
    size = _number(call, "Upload-Length") if "Upload-Length" in call.headers else None
    digest = _digest(_metadata(call.headers.get("Upload-Metadata", "")))
    found = await call.service.uploads.append(
        call.principal, upload, offset, _body(call), checksum, size=size, digest=digest
    )
    return Reply(None, 204, _progress(found))


@route(
    "PUT",
    "uploads/{upload}",
    streams_body="application/offset+octet-stream",
    headers=TUS | CHECKSUM | {"Content-Range": {"type": "string", "pattern": _RANGE.pattern}},
)
async def rewrite_upload(call: Call, upload: str) -> Reply[None]:
    """Replace some bytes of what has been sent, before the promised digest has come.

    `Content-Range: bytes 0-1023/*` says which. This is not of tus: it is for files that are sent while they
    grow, and whose writer also changes what it has written before."""
    _require_tus(call)
    _require_bytes(call)
    span = _RANGE.fullmatch(call.headers.get("Content-Range", ""))
    if not span:
        raise Refusal(
            400, "The header Content-Range is missing or not like bytes 0-1023/*.", "Say which bytes."
        )
    begin, end = int(span[1]), int(span[2]) + 1
    checksum = _checksum(call.headers.get("Upload-Checksum"))
    found = await call.service.uploads.rewrite(call.principal, upload, begin, end, call.body, checksum)
    return Reply(None, 204, _progress(found))


@route("PUT", "uploads/{upload}/frames")
async def show_frames(call: Call, upload: str, body: Growing) -> Upload:
    """Let members read frames of a detector's file that is sent while it grows, before all of it has come.

    For the agent, which finds them in the lists of an HDF5 file that is open for SWMR writing. The bytes of
    each have to have been sent, as they were when it was in these lists. `begin` says which frame `chunks`
    begin with; `frames` of the answer, how many are known now: where it is less, tell those between (409)."""
    return await call.service.growth.show(call.principal, upload, body)


@route("GET", "instruments/{instrument}/quarantine")
async def list_quarantine(call: Call, instrument: str, query: Paging) -> Page[Upload]:
    """Files that are kept from everybody because they are built to mislead their readers (staff)."""
    return await call.service.quarantine.list(call.principal, instrument, **query.model_dump())


@route("POST", "uploads/{upload}/release", status=200)
async def release_upload(call: Call, upload: str, body: Because) -> Upload:
    """Publish a quarantined file after all; no dataset is made of it (staff)."""
    return await call.service.quarantine.release(call.principal, upload, body.reason)


@route("POST", "uploads/{upload}/discard", status=200)
async def discard_upload(call: Call, upload: str, body: Because) -> Upload:
    """Delete a quarantined file; its upload stays on record (staff)."""
    return await call.service.quarantine.delete(call.principal, upload, body.reason)


@route("DELETE", "uploads/{upload}", headers=TUS)
async def terminate_upload(call: Call, upload: str) -> None:
    """Stop an upload that is on its way and forget what has arrived. A published file stays."""
    _require_tus(call)
    await call.service.uploads.terminate(call.principal, upload)


def _require_tus(call: Call) -> None:
    if call.headers.get("Tus-Resumable") != "1.0.0":
        raise Refusal(
            412,
            "The header Tus-Resumable is missing or not 1.0.0.",
            "Use a tus 1.0 client.",
            Tus_Version="1.0.0",
        )


def _progress(upload: Upload) -> dict[str, str]:
    length = {"Upload-Defer-Length": "1"} if upload.deferred else {"Upload-Length": str(upload.size)}
    headers = {"Upload-Offset": str(upload.offset), **length}
    if upload.concat is not None:
        headers["Upload-Concat"] = upload.concat
    if upload.state is UploadState.RECEIVING:
        headers["Upload-Expires"] = format_datetime(datetime.now(UTC) + EXPIRES, usegmt=True)
    return headers


def _require_bytes(call: Call) -> None:
    if call.headers.get("Content-Type") != "application/offset+octet-stream":
        raise Refusal(
            415, "The body's type is not application/offset+octet-stream.", "Send it with this type."
        )


def _brings_bytes(call: Call) -> bool:
    """Whether an announcement has a body, which is the beginning of the file then."""
    if call.headers.get("Content-Length", "0") == "0" and "Transfer-Encoding" not in call.headers:
        return False
    _require_bytes(call)
    return True


def _parts(concat: str) -> list[str]:
    """The ids of the uploads that a file is to be put together from."""
    kind, _, urls = concat.partition(";")
    ids = [url.rstrip("/").rpartition("/")[2] for url in urls.split()]
    if kind != "final" or not all(ids) or not ids:
        raise Refusal(
            400,
            f"The Upload-Concat {concat[:60]!r} is not valid.",
            "Send partial, or final; and the parts' URLs.",
        )
    return ids


def _number(call: Call, header: str) -> int:
    text = call.headers.get(header, "")
    if not _SIZE.fullmatch(text):
        raise Refusal(400, f"The header {header} is missing or not a number of bytes.", "Send it.")
    return int(text)


def _length(call: Call) -> int | None:
    """Of a file that is announced; None: it comes later."""
    deferred = call.headers.get("Upload-Defer-Length")
    if deferred is None:
        return _number(call, "Upload-Length")
    if deferred != "1" or "Upload-Length" in call.headers:
        raise Refusal(
            400, "Upload-Defer-Length is not 1, or there is an Upload-Length as well.", "Send one of them."
        )
    return None


def _digest(metadata: Mapping[str, str]) -> str | None:
    """Of the whole file."""
    digests = [f"{name}:{metadata[name].lower()}" for name in ALGORITHMS if name in metadata]
    if len(digests) > 1:
        raise Invalid(f"Upload-Metadata has {len(digests)} digests of the file.", "Send one of them.")
    return digests[0] if digests else None


def _body(call: Call) -> Body:
    """The bytes of a file, and perhaps its digest behind them."""
    name = call.headers.get("Upload-Digest-Follows")
    if name is None:
        return call.body
    length = call.headers.get("Content-Length", "")
    if not _SIZE.fullmatch(length):
        raise Refusal(411, "Where a digest follows, the length has to be known.", "Send Content-Length.")
    return Followed(call.body, int(length), _algorithm(name))


def _following(metadata: Mapping[str, str]) -> DigestAlgorithm | None:
    """The algorithm of a digest that comes with the last bytes."""
    name = metadata.get("digest")
    return None if name is None else _algorithm(name)


def _algorithm(name: str) -> DigestAlgorithm:
    for algorithm in ALGORITHMS:
        if name == algorithm:
            return algorithm
    raise Invalid(f"No digest {name[:60]!r} can be promised.", f"Use {' or '.join(ALGORITHMS)}.")


def _metadata(header: str) -> dict[str, str]:
    """`key base64, key base64, …` as tus has it."""
    if not (header.isascii() and header.isprintable()):
        raise Refusal(400, "Upload-Metadata has other characters than those of ASCII.", "Encode it.")
    pairs = [part.strip().partition(" ") for part in header.split(",") if part.strip()]
    given = {key: value for key, _, value in pairs}
    if len(given) < len(pairs):
        raise Refusal(400, "Upload-Metadata has a key twice.", "Give each once.")
    metadata: dict[str, str] = {}
    for key, value in given.items():
        try:
            content = base64.b64decode(value, validate=True)
            if key in METADATA:  # others are for whoever has sent them, and may be anything
                metadata[key] = content.decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise Refusal(
                400, f"Upload-Metadata has a value for {key!r} that is not UTF-8 in base64.", "Encode it."
            ) from error
    return metadata


def _checksum(header: str | None) -> tuple[str, bytes] | None:
    """`algorithm base64`."""
    if header is None:
        return None
    algorithm, _, value = header.partition(" ")
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        digest = b""
    if DIGESTS.get(algorithm) != len(digest) or not digest:
        raise Refusal(
            400,
            f"The checksum {header[:60]!r} is none that this service knows.",
            f"Use {' or '.join(DIGESTS)}.",
        )
    return algorithm, digest
