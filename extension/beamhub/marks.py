"""Marks: how far files that are arriving are known to be as their senders have them, for processes to come.

A mark is the digest of a file's beginning that its sender has told and the service has found, and where that
ends. Whoever reads the file back knows it again by it. One that is missing costs at most that more is sent
again. All of it blocks: to be called in threads, by who holds the file.
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

SUFFIX = ".agreed"
_MARK = re.compile(r"([0-9]{20}) ([a-z0-9]+:[0-9a-f]+)\n")


class Mark(NamedTuple):
    position: int
    digest: str


class Marks:
    """The files `<data_dir>/<experiment>/.incoming/<upload>.agreed`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def find(self, upload: Upload) -> Mark | None:
        try:
            mark = _MARK.fullmatch(self._place(upload).read_text(errors="replace"))
        except FileNotFoundError:
            return None
        return Mark(int(mark[1]), mark[2]) if mark else None

    def put(self, upload: Upload, agreed: Running) -> None:
        """In place of an earlier one, which it is as long as: a kill leaves the one or the other."""
        with contextlib.suppress(OSError):  # the disk is full, say, and the earlier one is still true
            mark = os.open(
                self._place(upload), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            try:
                os.pwrite(mark, f"{agreed.position:020} {agreed}\n".encode(), 0)
            finally:
                os.close(mark)

    def remove(self, upload: Upload) -> None:
        """To be done before anything changes that it speaks of."""
        self._place(upload).unlink(missing_ok=True)

    def _place(self, upload: Upload) -> Path:
        return self._data_dir / upload.experiment / folders.INCOMING / f"{upload.id}{SUFFIX}"
