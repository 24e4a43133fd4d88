"""Marks: how far files that are arriving are known to be as their senders have them, for processes to come.

A mark is the digest of a file's beginning that its sender has told and the service has found, and where that
ends. Whoever reads the file back knows it again by it. One that is missing costs at most that more is sent
again.

A doubt is where bytes begin that come with a checksum which nobody has compared yet, of a file that nothing
else vouches for. After a kill, what lies behind it has not arrived.

All of it blocks: to be called in threads, by who holds the file.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from beamhub import folders
from beamhub.digests import Running
from beamhub.schemas import Upload

AGREED, DOUBTED = ".agreed", ".doubted"
_MARK = re.compile(r"([0-9]{20}) ([a-z0-9]+:[0-9a-f]+)\n")


class Mark(NamedTuple):
    position: int
    digest: str


class Marks:
    """The files `<upload>.agreed` and `<upload>.doubted` beside an upload's temporary file."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def find(self, upload: Upload) -> Mark | None:
        try:
            mark = _MARK.fullmatch(self._place(upload, AGREED).read_text(errors="replace"))
        except FileNotFoundError:
            return None
        return Mark(int(mark[1]), mark[2]) if mark else None

    def put(self, upload: Upload, agreed: Running) -> None:
        """In place of an earlier one, which it is as long as: a kill leaves the one or the other."""
        with contextlib.suppress(OSError):  # the disk is full, say, and the earlier one is still true
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            mark = os.open(self._place(upload, AGREED), flags, 0o600)
            try:
                os.pwrite(mark, f"{agreed.position:020} {agreed}\n".encode(), 0)
            finally:
                os.close(mark)

    def remove(self, upload: Upload) -> None:
        """To be done before anything changes that it speaks of."""
        self._place(upload, AGREED).unlink(missing_ok=True)

    def doubt(self, upload: Upload, position: int) -> None:
        """All that comes from here on, until `believe`."""
        self._place(upload, DOUBTED).write_text(str(position))

    def doubted(self, upload: Upload) -> int | None:
        """From where on; None: nothing is, or nothing has come there before a kill."""
        try:
            text = self._place(upload, DOUBTED).read_text()
        except FileNotFoundError:
            return None
        return int(text) if text else None

    def believe(self, upload: Upload) -> None:
        """All that is there."""
        self._place(upload, DOUBTED).unlink(missing_ok=True)

    def discard(self, upload: Upload) -> None:
        """The upload is over."""
        self.remove(upload)
        self.believe(upload)

    def _place(self, upload: Upload, suffix: str) -> Path:
        return self._data_dir / upload.experiment / folders.INCOMING / f"{upload.id}{suffix}"
