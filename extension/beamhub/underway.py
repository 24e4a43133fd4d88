"""Digests underway: of what this process has seen coming of each file, from its beginning on."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from beamhub.digests import Running, algorithm_of
from beamhub.incoming import Held, Source, Stamp, running_digest
from beamhub.schemas import Upload


@dataclass
class _Seen:
    """What is known of a file, as long as its stamp is this one."""

    stamp: Stamp
    running: Running
    agreed: Running  # of its beginning, as its sender has sent it


class Underway:
    """The digests in the making, and the states of the files that they are of."""

    def __init__(self) -> None:
        self._files: dict[str, _Seen] = {}

    def __len__(self) -> int:
        return len(self._files)

    def of(self, upload: Upload, file: Held) -> Running:
        """The digest of what has come of a file, as far as this process has seen it come. That is all of it,
        unless there was a kill, or another process has written into it."""
        if isinstance(file, Source):  # others may have changed it
            return running_digest(upload)
        return self._seen(upload, file).running

    def keep(self, upload: Upload, file: Held, running: Running) -> None:
        """It is of the file as it is now."""
        known = self._files.get(upload.id)
        agreed = known.agreed if known else running_digest(upload)
        self._files[upload.id] = _Seen(file.stamp, running, agreed)

    def agrees(self, upload: Upload, file: Held, digest: str) -> bool:
        """Whether all that has come of a file is what has this digest; it is, where this process can't tell.
        `take_back` remembers how far it was."""
        seen = self._seen(upload, file)
        if seen.running.position != file.position or algorithm_of(digest) != seen.running.algorithm:
            return True
        if str(seen.running) != digest:
            return False
        seen.agreed = seen.running.copy()
        return True

    def take_back(self, upload: Upload, file: Held) -> None:
        """Forgets what has come since a digest last agreed. Blocks."""
        agreed = self._seen(upload, file).agreed
        file.cut(agreed.position)
        self._files[upload.id] = _Seen(file.stamp, agreed.copy(), agreed)

    def known(self) -> AbstractSet[str]:
        """The ids of the uploads that there are digests of."""
        return frozenset(self._files)

    def forget(self, *ids: str) -> None:
        for id_ in ids:
            self._files.pop(id_, None)

    def _seen(self, upload: Upload, file: Held) -> _Seen:
        seen = self._files.get(upload.id)
        if seen is None or seen.stamp != file.stamp:
            seen = _Seen(file.stamp, running_digest(upload), running_digest(upload))
            self._files[upload.id] = seen
        return seen
