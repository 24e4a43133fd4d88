"""Digests underway: of what this process has seen coming of each file, or has read back."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from beamhub.digests import Running
from beamhub.incoming import TURN, Held, Source, Stamp, running_digest
from beamhub.marks import Mark, Marks
from beamhub.schemas import Upload


@dataclass
class _Seen:
    """What is known of a file, as long as its stamp is this one."""

    stamp: Stamp
    running: Running
    agreed: Running  # of its beginning, as its sender has sent it
    before: Running  # the same, before others wrote into the file: they may have changed also that


class Underway:
    """The digests in the making, and the states of the files that they are of."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._files: dict[str, _Seen] = {}

    def __len__(self) -> int:
        return len(self._files)

    def of(self, upload: Upload, file: Held) -> Running:
        """The digest of what has come of a file, as far as this process has seen it come or has read it. That
        is all of it, unless there was a kill, or another process has written into it."""
        if isinstance(file, Source):  # others may have changed it
            return running_digest(upload)
        return self._seen(upload, file).running

    def keep(self, upload: Upload, file: Held, running: Running) -> None:
        """It is of the file as it is now."""
        known = self._files.get(upload.id) or _nothing(upload, file)
        self._files[upload.id] = replace(known, stamp=file.stamp, running=running)

    def read_back(self, upload: Upload, file: Held) -> bool:
        """Reads on in what others have received of a file, for a moment; whether that was all. Blocks.

        Where they have left a mark, this process knows as they did how far the file is as its sender has it.
        Then it need not read again what it has known before: that still leads to their mark.
        """
        seen, size = self._seen(upload, file), file.size()
        mark = self._marks.find(upload)
        if mark is None or mark.position > size:  # a power cut has taken some of it
            mark = Mark(0, "")
        again = seen.running.position < seen.before.position <= mark.position
        running = seen.before if again else seen.running
        marked = again or running.position < mark.position
        end = mark.position if marked else size
        running.catch_up(file.fileno(), end, TURN)
        if marked and running.position == end:
            seen.before = running_digest(upload)
            if str(running) == mark.digest:
                seen.running, seen.agreed = running, running.copy()
        return seen.running.position == size

    def agrees(self, upload: Upload, file: Held, digest: str) -> bool:
        """Whether all that has come of a file, and is in its running digest, is what its sender has. It is
        remembered for `take_back`, and marked for processes to come. Blocks."""
        seen = self._seen(upload, file)
        if str(seen.running) != digest:
            return False
        seen.agreed = seen.running.copy()
        if upload.deferred or file.position < upload.size:
            self._marks.put(upload, seen.agreed)
        return True

    def agreed(self, upload: Upload) -> int:
        """How many bytes of a file that has just been read are as its sender has told of a part of it."""
        seen = self._files.get(upload.id)
        return seen.agreed.position if seen else 0

    def take_back(self, upload: Upload, file: Held) -> None:
        """Forgets what has come since a digest last agreed. Blocks."""
        agreed = self._seen(upload, file).agreed
        mark = self._marks.find(upload)
        if mark and mark.position > agreed.position:
            self._marks.remove(upload)
        file.cut(agreed.position)
        self._files[upload.id] = _Seen(file.stamp, agreed.copy(), agreed, running_digest(upload))

    def replace(self, upload: Upload, file: Held, begin: int, block: bytes) -> None:
        """Writes other bytes where some have come, so that nothing is known of the file any more. Blocks."""
        self._marks.remove(upload)
        self.forget(upload.id)
        file.write(begin, block)

    def known(self) -> AbstractSet[str]:
        """The ids of the uploads that there are digests of."""
        return frozenset(self._files)

    def forget(self, *ids: str) -> None:
        for id_ in ids:
            self._files.pop(id_, None)

    def _seen(self, upload: Upload, file: Held) -> _Seen:
        seen = self._files.get(upload.id)
        if seen is None or seen.stamp != file.stamp:
            before = max(seen.agreed, seen.before, key=lambda known: known.position) if seen else None
            seen = _nothing(upload, file, before)
            self._files[upload.id] = seen
        return seen


def _nothing(upload: Upload, file: Held, before: Running | None = None) -> _Seen:
    """Nothing is known of the file as it is now."""
    running, agreed = running_digest(upload), running_digest(upload)
    return _Seen(file.stamp, running, agreed, before or running_digest(upload))
