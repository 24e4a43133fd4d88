"""The route of many small files in one request."""

from __future__ import annotations

from pydantic import ValidationError

from beamhub.api.problems import Refusal, described, invalid
from beamhub.api.routes import Call, route
from beamhub.batches import Whole
from beamhub.body import Body, pieces
from beamhub.errors import BeamhubError, Invalid, TooLarge
from beamhub.schemas import BATCH, BATCH_BYTES, Batch, Deliveries, Delivery, Upload

MAX_HEAD = 2**20  # bytes


@route("POST", "uploads/batch", status=200, streams_body=BATCH, keyed=True)
async def deliver_files(call: Call) -> Deliveries:
    """Send many small files at once.

    The body is a line of JSON (`files`: what each is called, its size, its digest, its key), and then the
    bytes of all files, one behind the other, at most 8 MiB. Each file is verified, durable and published when
    this answers, or refused by itself, with the problem that it would have had alone; its `key` is what the
    `Idempotency-Key` is to an announcement. What keeps all of them from beginning refuses the request.
    """
    if call.headers.get("Content-Type") != BATCH:
        raise Refusal(415, f"The body's type is not {BATCH}.", "Send it with this type.")
    with call.service.uploads.reception.collecting(call.principal):
        batch, content = await _read(call.body)
        files, begin = [], 0
        for told in batch.files:
            end = begin + told.size
            files.append(Whole(told.filename, content[begin:end], told.digest, told.key))
            begin = end
        answers = await call.service.batches.deliver(call.principal, files, batch.experiment)
    first = answers[0]
    if isinstance(first, BeamhubError) and all(answer is first for answer in answers):
        raise first
    return Deliveries(items=[_delivery(answer) for answer in answers])


async def _read(whole: Body) -> tuple[Batch, memoryview]:
    """The head of a batch, and the bytes of its files."""
    body = bytearray()
    head: Batch | None = None
    size = 0
    async for chunk in pieces(whole):
        body += chunk
        if head is None and (end := body.find(b"\n", len(body) - len(chunk))) >= 0:
            head = _head(bytes(body[:end]))
            size = sum(file.size for file in head.files)
            if size > BATCH_BYTES:
                raise TooLarge(
                    f"The files have {size} bytes; a batch has at most {BATCH_BYTES}.",
                    "Send several batches.",
                )
            del body[: end + 1]
        if len(body) > (MAX_HEAD if head is None else size):
            break
    if head is None:
        raise Invalid(
            f"The batch does not begin with a line of JSON of at most {MAX_HEAD} bytes.",
            "Send its head first.",
        )
    if len(body) != size:
        came = "more" if len(body) > size else len(body)
        raise Invalid(f"The batch announces {size} bytes of files, and {came} came.", "Send exactly these.")
    return head, memoryview(body)


def _head(line: bytes) -> Batch:
    try:
        return Batch.model_validate_json(line)
    except ValidationError as error:
        raise invalid(error, "head of the batch") from error


def _delivery(answer: Upload | BeamhubError) -> Delivery:
    return (
        Delivery(problem=described(answer)) if isinstance(answer, BeamhubError) else Delivery(upload=answer)
    )
