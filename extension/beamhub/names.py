"""The names that arriving files get: never one that is taken, and the one that a dataset waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from beamhub.frames import formats
from beamhub.incoming import Held, Incoming, versions
from beamhub.schemas import Upload, UploadState
from beamhub.store import Transaction
from beamhub.store.uploads import PUBLISHED


@dataclass(frozen=True)
class Kin:
    """What bears on the name of a file that is to be published."""

    published: Mapping[str, Upload]  # other versions of it, by path
    quarantined: Sequence[Upload]
    awaited: str | None  # the one of its names that a dataset waits for
    growing: str | None  # and the one at which a series of such files grows


def kin_of(tx: Transaction, experiment: str, paths: Sequence[str]) -> dict[str, Kin]:
    """By the path of each file's first version."""
    others = tx.uploads.versions(experiment, paths)
    parts = {path: formats.part(PurePosixPath(path)) for path in paths}
    # a master may wait for what is a detector's file by its name; a series is a dataset under each version
    awaited = {
        name: path
        for path, part in parts.items()
        if part is not None and not part.is_member
        for name in versions(path)
    }
    series = {part.dataset for part in parts.values() if part and part.is_member and part.dataset}
    waiting = tx.datasets.awaited(experiment, awaited) if awaited else []
    growing = (
        tx.datasets.growing(experiment, [name for one in series for name in versions(one)]) if series else []
    )
    found = {}
    for path, part in parts.items():
        mine = others.get(path, ())
        names = versions(path)
        homes = versions(part.dataset) if part and part.is_member and part.dataset else ()
        home = next((home for home in growing if home in homes), None)
        found[path] = Kin(
            published={one.path: one for one in mine if one.state in PUBLISHED},
            quarantined=[one for one in mine if one.state is UploadState.QUARANTINED],
            awaited=next((name for name in waiting if awaited[name] == path), None),
            growing=None if home is None else names[homes.index(home)],
        )
    return found


@dataclass(frozen=True)
class Names:
    """What a file that is not published yet may be called."""

    earlier: frozenset[str]  # where other versions of it are
    awaited: str | None  # where something waits for it


def choose(incoming: Incoming, upload: Upload, kin: Kin) -> Names | Upload:
    """Of an upload that is not published yet: the names that it may get, or the published file that it
    equals."""
    published = frozenset(kin.published)
    for twin in kin.quarantined:
        if twin.digest == upload.digest:
            return twin
    awaited = kin.awaited
    if awaited in published:  # something else came there, and can't be replaced
        awaited = None
    if awaited is None and upload.digest is not None:
        for twin in kin.published.values():
            if incoming.holds(twin, upload.size, upload.digest):
                return twin
    if awaited is None and kin.growing not in published:
        awaited = kin.growing
    return Names(published, awaited)


@dataclass(frozen=True)
class Arrival:
    """A file that has come, verified, to be published."""

    upload: Upload
    file: Held
    found: Names

    @property
    def earlier(self) -> frozenset[str]:
        return self.found.earlier

    @property
    def names(self) -> Sequence[str]:
        """What it may be called, the best first."""
        awaited = self.found.awaited
        return [*((awaited,) if awaited else ()), *versions(self.upload.path)]

    def as_published(self, path: str) -> Upload:
        """Its upload, now that the file has this name."""
        return self.upload.model_copy(
            update={
                "path": path,
                "version": versions(self.upload.path).index(path) + 1,
                "state": UploadState.COMPLETE,
                "offset": self.upload.size,
            }
        )
