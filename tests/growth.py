"""Files that are still written, as they lie in an experiment: what has come of them, beside what is known."""

from __future__ import annotations

import os
from pathlib import Path

from beamhub.frames import growing, swmr
from beamhub.frames.growing import Label, Stack
from beamhub.frames.outside import UnreadableFile


def looked_at(path: Path) -> tuple[Stack, list[tuple[int, int]]]:
    """What a file says that somebody may be writing: how its frames are stored, and where those are that are
    there. Raises UnreadableFile where nothing can be told yet."""
    told = swmr.frames_from(0, path, path.parent).growing
    if told is None:
        raise UnreadableFile(path.name, "it has no frames yet")
    return told.stack, list(told.chunks)


class Growth:
    """What the service keeps of an upload while it grows.

    Args:
        source: the file that is sent; it may still be written.
        path: where it is going to be, below an experiment's folder `raw`.
        upload: its name.
    """

    def __init__(self, source: Path, path: Path, upload: str = "1") -> None:
        self.source = source
        self.path = path
        home = next(folder for folder in path.parents if folder.name == "raw").parent
        self.incoming = home / ".incoming" / upload
        self.file = home / growing.FOLDER / upload
        self.label = self.file.with_name(upload + growing.LABEL)
        self.table = self.file.with_name(upload + growing.TABLE)
        self._name = str(path.relative_to(home))
        for folder in (self.path.parent, self.incoming.parent, self.file.parent):
            folder.mkdir(parents=True, exist_ok=True)

    def grow(self, frames: int | None = None) -> int:
        """So many of its frames have come, or all that have been written; how many these are."""
        stack, chunks = looked_at(self.source)
        chunks = chunks[:frames]
        self._receive(max((offset + size for offset, size in chunks), default=0))
        if not self.file.exists():
            self.file.hardlink_to(self.incoming)
            self.tell(Label(path=self._name, stack=stack).model_dump_json())
        self.list_frames(chunks)
        return len(chunks)

    def tell(self, label: str) -> None:
        temporary = self.label.with_name(f"{self.label.name}.part")
        temporary.write_text(label)
        temporary.rename(self.label)

    def list_frames(self, chunks: list[tuple[int, int]]) -> None:
        """Behind those that it has."""
        with self.table.open("ab") as table:
            table.write(growing.entries(chunks)[table.tell() :])

    def publish(self) -> None:
        """All of it has come."""
        self._receive(self.source.stat().st_size)
        self.path.hardlink_to(self.incoming)
        self.withdraw()

    def withdraw(self) -> None:
        """Nothing of it is kept under this name."""
        for path in (self.label, self.table, self.file, self.incoming):
            path.unlink(missing_ok=True)

    def _receive(self, end: int) -> None:
        flags = os.O_RDWR | os.O_CREAT
        with os.fdopen(os.open(self.incoming, flags, 0o600), "r+b") as file, self.source.open("rb") as source:
            file.write(source.read(end))
