"""Previews: what can be read of files that are still written, on disk (see beamhub.frames.growing).

Everything may be done twice, and by several processes at once. All of it blocks: to be called in threads.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from beamhub import folders
from beamhub.errors import Conflict, Gone
from beamhub.frames.growing import ENTRY, FOLDER, LABEL, TABLE, Growing, Label, entries
from beamhub.schemas import Upload


class Previews:
    """The files `<data_dir>/<experiment>/.growing/<upload>…`. Nobody but the service writes there."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def show(self, upload: Upload, content: Path, growing: Growing) -> int:
        """Lets everybody read these frames in `content`, the upload's temporary file. How many there are now,
        from the first one on.

        Raises Conflict where frames are left out, or lie beyond what has come; Gone where the upload is over.
        """
        place = self._place(upload)
        if not place.parent.is_dir():
            with folders.folder(self._data_dir / upload.experiment, PurePosixPath(FOLDER), create=True):
                pass
        try:
            come = content.stat().st_size
            if growing.end > come:
                raise Conflict(
                    f"{come} bytes of {upload.path} have come, and a frame ends at byte {growing.end}.",
                    "Send it first.",
                )
            _label(place.with_suffix(LABEL), upload, growing)
            with contextlib.suppress(FileExistsError):
                place.hardlink_to(content)
            return _enter(place.with_suffix(TABLE), upload, growing)
        except FileNotFoundError as error:
            self.discard(upload)
            raise Gone(f"The upload of {upload.path} is over.", "Ask for its state.") from error

    def discard(self, upload: Upload) -> None:
        """Nothing of it is shown any more."""
        place = self._place(upload)
        for file in (place.with_suffix(LABEL), place.with_suffix(TABLE), place):
            file.unlink(missing_ok=True)

    def found(self) -> list[Path]:
        """All files of all of them."""
        return list(self._data_dir.glob(f"*/{FOLDER}/*"))

    def sweep(self, found: Iterable[Path], going: Collection[str]) -> None:
        """Removes what a kill has left of uploads that are over. `going`: the ids of those that are on their
        way, asked for after `found`."""
        for file in found:
            if file.name.partition(".")[0] not in going:
                file.unlink(missing_ok=True)

    def _place(self, upload: Upload) -> Path:
        return self._data_dir / upload.experiment / FOLDER / upload.id


def _label(file: Path, upload: Upload, growing: Growing) -> None:
    """Tells whose bytes these are. A mask has to be told only once."""
    stack, before = growing.stack, file.read_bytes() if file.exists() else b""
    if before and not stack.mask:
        stack = stack.model_copy(update={"mask": Label.model_validate_json(before).stack.mask})
    label = Label(path=upload.path, stack=stack).model_dump_json().encode()
    if label != before:
        new = file.with_suffix(f".{secrets.token_hex(8)}")
        new.write_bytes(label)
        new.rename(file)


def _enter(file: Path, upload: Upload, growing: Growing) -> int:
    """Puts frames into a table, which is made with the first ones; how many it has now."""
    table = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        known = os.fstat(table).st_size // ENTRY
        if growing.begin > known:
            raise Conflict(
                f"{known} frames of {upload.path} are known, and this begins with frame {growing.begin + 1}.",
                "Tell those between.",
            )
        content, place = entries(growing.chunks), growing.begin * ENTRY
        while content:
            count = os.pwrite(table, content, place)
            content, place = content[count:], place + count
    finally:
        os.close(table)
    return max(known, growing.frames)
