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
from urllib.parse import quote

BLOCK = 256 * 2**10  # bytes handed on at once: fewer hops between loop and threads than Tornado's own 64 KiB
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


@dataclass(frozen=True)
class Source:
    """An open file and what a browser is told about it."""

    file: BinaryIO
    name: str
    size: int
    modified: str  # as HTTP has it

    @classmethod
    def of(cls, file: BinaryIO, name: str) -> Self:
        status = os.fstat(file.fileno())
        return cls(file, name, status.st_size, formatdate(status.st_mtime, usegmt=True))

    def headers(self, span: Span) -> dict[str, str]:
        """Of an answer with these bytes of it."""
        media_type = mimetypes.guess_type(self.name)[0]
        shown = media_type in SAFE_INLINE
        headers = {
            "Content-Type": media_type if media_type and shown else "application/octet-stream",
            "Content-Length": str(span.length),
            "Content-Disposition": f"{'inline' if shown else 'attachment'}; {_filename(self.name)}",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Accept-Ranges": "bytes",
            "Last-Modified": self.modified,
            "Cache-Control": "private, no-cache",
        }
        if span.partial:
            headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{self.size}"
        return headers

    async def blocks(self, span: Span) -> AsyncIterator[bytes]:
        """These bytes of it. Raises OSError if there are fewer by now."""
        position, end = span.start, span.start + span.length
        while position < end:
            length = min(BLOCK, end - position)
            block = await asyncio.to_thread(os.pread, self.file.fileno(), length, position)
            if not block:
                raise OSError("the file became shorter while it was read")
            yield block
            position += len(block)


def _filename(name: str) -> str:
    """RFC 6266: plain ASCII for old clients, the true name in UTF-8 for the others."""
    plain = re.sub(r'[^\w .()+-]|["\\]', "_", name, flags=re.ASCII)
    return f"filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
