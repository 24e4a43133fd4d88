"""Digests underway: of what this process has seen coming of each file, from its beginning on."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from beamhub.digests import Running
from beamhub.incoming import Held, Stamp, running_digest
from beamhub.schemas import Upload


class Underway:
    """The digests in the making, and the states of the files that they are of."""

    def __init__(self) -> None:
        self._digests: dict[str, tuple[Stamp, Running]] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def of(self, upload: Upload, file: Held) -> Running:
        """The digest of what has come of a file, as far as this process has seen it come. That is all of it,
        unless there was a kill, or another process has written into it."""
        if upload.source is not None:  # others may have changed it
            return running_digest(upload)
        stamp, running = self._digests.get(upload.id, (None, None))
        if running is None or stamp != file.stamp:
            running = running_digest(upload)
            self._digests[upload.id] = (file.stamp, running)
        return running

    def keep(self, upload: Upload, file: Held, running: Running) -> None:
        """It is of the file as it is now."""
        self._digests[upload.id] = (file.stamp, running)

    def known(self) -> AbstractSet[str]:
        """The ids of the uploads that there are digests of."""
        return frozenset(self._digests)

    def forget(self, *ids: str) -> None:
        for id_ in ids:
            self._digests.pop(id_, None)
