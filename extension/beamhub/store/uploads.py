"""Rows of uploads."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Update, bindparam, delete, func, insert, select, update

from beamhub import folders
from beamhub.schemas import Page, Upload, UploadState
from beamhub.store.pages import among, paginate, unindexed
from beamhub.store.tables import uploads

PUBLISHED = (UploadState.COMPLETE, UploadState.SUPERSEDED)
ARRIVED = (*PUBLISHED, UploadState.QUARANTINED)
PARTIAL = "partial"  # `concat` of an upload that is to become a part of another one

# built once: to build them takes longer than to answer them, and they are asked with each file
_ONE = select(uploads).where(uploads.c.id == bindparam("id"))
_COMING = select(func.count()).where(
    uploads.c.state == UploadState.RECEIVING, uploads.c.created_by == bindparam("created_by")
)


class Uploads:
    """The `offset` of an upload that has arrived is its size; others have 0 here, as the bytes on disk know
    better."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, upload: str) -> Upload | None:
        row = self._connection.execute(_ONE, {"id": upload}).first()
        return _upload(row) if row else None

    def all(self, ids: Collection[str]) -> dict[str, Upload]:
        """Those of these that there are."""
        query = select(uploads).where(among(self._connection, uploads.c.id, ids))
        return {row.id: _upload(row) for row in self._connection.execute(query)}

    def list(
        self,
        *,
        experiment: str | None = None,
        instrument: str | None = None,
        state: UploadState | None = None,
        after: str | None,
        limit: int,
    ) -> Page[Upload]:
        """Newest first, without those that are to become parts of others."""
        query = select(uploads).where(uploads.c.concat.is_distinct_from(PARTIAL))
        few = state not in (None, UploadState.COMPLETE)  # most are complete
        for column, value in ((uploads.c.experiment, experiment), (uploads.c.instrument, instrument)):
            if value is not None:
                query = query.where((unindexed(column) if few else column) == value)
        if state is not None:
            query = query.where((uploads.c.state if few else unindexed(uploads.c.state)) == state)
        order = [uploads.c.created, uploads.c.id]
        return paginate(self._connection, query, order, _upload, after=after, limit=limit, descending=True)

    def receiving(self) -> Sequence[Upload]:
        """All that are on their way, oldest first."""
        query = select(uploads).where(uploads.c.state == UploadState.RECEIVING)
        return [
            _upload(row) for row in self._connection.execute(query.order_by(uploads.c.created, uploads.c.id))
        ]

    def on_their_way(self, experiment: str) -> Sequence[str]:
        """What those are called that are on their way to this experiment."""
        query = select(uploads.c.path).where(
            uploads.c.state == UploadState.RECEIVING, unindexed(uploads.c.experiment) == experiment
        )
        return self._connection.scalars(query.order_by(uploads.c.created, uploads.c.id)).all()

    def count_on_their_way(self, created_by: str) -> int:
        """How many uploads of this sender are."""
        return self._connection.scalar(_COMING, {"created_by": created_by}) or 0

    def published(self, experiment: str, paths: Collection[str]) -> dict[str, Upload]:
        """What was published at these paths last."""
        query = select(uploads).where(
            uploads.c.experiment == experiment,
            among(self._connection, uploads.c.path, paths),
            uploads.c.state.in_(PUBLISHED),
        )
        query = query.order_by(uploads.c.ended)
        return {row.path: _upload(row) for row in self._connection.execute(query)}

    def of(self, experiment: str) -> Sequence[Upload]:
        """All that are on their way to this experiment or have arrived there."""
        query = select(uploads).where(uploads.c.experiment == experiment)
        query = query.where(uploads.c.state.in_((*ARRIVED, UploadState.RECEIVING)))
        return [_upload(row) for row in self._connection.execute(query.order_by(uploads.c.ended))]

    def elsewhere(
        self, experiment: str, instrument: str, digests: Collection[str]
    ) -> frozenset[tuple[str, int, str]]:
        """The files with one of these contents that have been published in other experiments of an
        instrument: name, size and digest."""
        query = select(uploads.c.path, uploads.c.size, uploads.c.digest).where(
            uploads.c.instrument == instrument,
            uploads.c.experiment != experiment,
            among(self._connection, uploads.c.digest, digests),
            unindexed(uploads.c.state).in_(PUBLISHED),
        )
        rows = self._connection.execute(query) if digests else ()
        return frozenset((row.path.rpartition("/")[2], row.size, row.digest) for row in rows)

    def versions(self, experiment: str, paths: Collection[str]) -> Mapping[str, Sequence[Upload]]:
        """What has arrived under these paths, in any version: by the path of the first, the oldest first.
        What is in quarantine is among it."""
        query = select(uploads).where(
            uploads.c.experiment == experiment,
            among(self._connection, uploads.c.first_path, paths),
            uploads.c.state.in_(ARRIVED),
        )
        found = defaultdict[str, Any](list)
        for row in self._connection.execute(query.order_by(uploads.c.ended)):
            found[row.first_path].append(_upload(row))
        return found

    def frames(self, experiment: str, paths: Collection[str]) -> dict[str, int]:
        """How many frames the detector files published at these paths have."""
        return self._frames(experiment, paths, PUBLISHED)

    def growing(self, experiment: str, paths: Collection[str]) -> dict[str, int]:
        """How many frames have come of the files that are still written and are to have these paths."""
        return self._frames(experiment, paths, [UploadState.RECEIVING])

    def _frames(
        self, experiment: str, paths: Collection[str], states: Sequence[UploadState]
    ) -> dict[str, int]:
        query = select(uploads.c.path, uploads.c.frames).where(
            uploads.c.experiment == experiment,
            among(self._connection, uploads.c.path, paths),
            uploads.c.state.in_(states),
            uploads.c.frames.is_not(None),
        )
        return {row.path: row.frames for row in self._connection.execute(query)}

    def volume(self, experiment: str) -> int:
        """Bytes of all that has been published in an experiment or is on its way there."""
        mine = uploads.c.experiment == experiment
        of_each = select(func.max(uploads.c.size).label("size")).where(mine, uploads.c.state.in_(PUBLISHED))
        published = of_each.group_by(uploads.c.path).subquery()  # twins are there only once
        coming = select(func.sum(uploads.c.size)).where(mine, uploads.c.state == UploadState.RECEIVING)
        total = select(func.sum(published.c.size))
        return sum(int(self._connection.scalar(query) or 0) for query in (total, coming))

    def forget(self, ids: Collection[str]) -> int:
        """Removes uploads that have become parts of another one, or were given up before; how many."""
        these = among(self._connection, uploads.c.id, ids)
        return self._connection.execute(delete(uploads).where(these)).rowcount

    def create(self, *new: Upload) -> None:
        self._connection.execute(
            insert(uploads), [_named(upload.model_dump(exclude={"offset"})) for upload in new]
        )

    def change(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Sets columns (path, version, state, error, ended, frames, digest) of uploads, the same ones of
        each: id -> column -> value."""
        if not values:
            return
        columns = _named(next(iter(values.values()))).keys()
        self._connection.execute(
            _change(tuple(columns)),
            [
                {"_id": id_, **{f"_{column}": value for column, value in _named(one).items()}}
                for id_, one in values.items()
            ],
        )

    def move(self, source: str, target: str, path: str, new: str, version: int) -> None:
        """What was published at this path of one experiment is now in another."""
        self._connection.execute(
            update(uploads)
            .where(uploads.c.experiment == source, uploads.c.path == path, uploads.c.state.in_(PUBLISHED))
            .values(_named({"experiment": target, "path": new, "version": version}))
        )

    def end(self, upload: str, state: UploadState, **values: Any) -> None:
        self.end_all({upload: values}, state)

    def end_all(self, values: Mapping[str, Mapping[str, Any]], state: UploadState) -> None:
        """As `end`, with the values of each; id -> column -> value, the same columns of each."""
        now = datetime.now(UTC)
        self.change({id_: {**one, "state": state, "ended": now} for id_, one in values.items()})

    def supersede(self, experiment: str, paths: Collection[str]) -> None:
        """What was published at these paths is no longer the newest version."""
        if not paths:
            return
        self._connection.execute(
            update(uploads)
            .where(
                uploads.c.experiment == experiment,
                among(self._connection, uploads.c.path, paths),
                uploads.c.state == UploadState.COMPLETE,
            )
            .values(state=UploadState.SUPERSEDED)
        )


@functools.cache
def _change(columns: tuple[str, ...]) -> Update:
    """Sets these columns of one upload."""
    statement = update(uploads).where(uploads.c.id == bindparam("_id"))
    return statement.values({column: bindparam(f"_{column}") for column in columns})


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """These columns, and the one that follows from the path."""
    more = {"first_path": folders.unversioned(values["path"])} if "path" in values else {}
    return {**values, **more}


def _upload(row: Row[Any]) -> Upload:
    values = row._mapping
    offset = values["size"] if values["state"] in ARRIVED else 0
    return Upload.model_validate({**values, "offset": offset})
