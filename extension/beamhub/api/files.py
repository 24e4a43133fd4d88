"""Files on their way out: read in threads, in blocks, the whole or one range."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import BinaryIO, Self

BLOCK = 256 * 2**10
# what a browser may show by itself: pictures without scripts
SAFE_INLINE = frozenset({"image/png", "image/jpeg"})


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `start + length` of a file."""

    start: int
    length: int
    partial: bool


def span_of(header: str | None, size: int) -> Span | None:
    """What a Range header asks for, as RFC 9110 has it; None: something beyond the end of the file.

    A header that makes no sense, and one of several ranges, asks for the whole file.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header or "")
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return Span(0, size, partial=False)
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    return Span(start, end - start + 1, partial=True) if start <= end else None


def media_type_of(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


@dataclass(frozen=True)
class Source:
    """An open file and what a browser is told about it."""

    file: BinaryIO
    size: int
    modified: str  # as HTTP has it
    media_type: str

    @classmethod
    def of(cls, file: BinaryIO, name: str) -> Self:
        status = os.fstat(file.fileno())
        return cls(file, status.st_size, formatdate(status.st_mtime, usegmt=True), media_type_of(name))

    async def blocks(self, span: Span) -> AsyncIterator[bytes]:
        position, end = span.start, span.start + span.length
        while position < end:
            length = min(BLOCK, end - position)
            block = await asyncio.to_thread(os.pread, self.file.fileno(), length, position)
            if not block:
                raise OSError("the file became shorter while it was read")
            yield block
            position += len(block)
