"""Rows of datasets and of the data files that their masters point to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from beamhub.schemas import Dataset, DatasetKind, DatasetState, Page, Quantity
from beamhub.store.pages import paginate
from beamhub.store.tables import dataset_files, datasets


@dataclass(frozen=True)
class DatasetFile:
    """A data file of a dataset; `frames` is None until it has arrived."""

    number: int
    path: str
    frames: int | None


class Datasets:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, dataset: int) -> Dataset | None:
        row = self._connection.execute(select(datasets).where(datasets.c.id == dataset)).first()
        return _dataset(row) if row else None

    def list(
        self,
        experiment: str,
        *,
        state: DatasetState | None = None,
        after: str | None,
        limit: int,
    ) -> Page[Dataset]:
        """Newest first."""
        query = select(datasets).where(datasets.c.experiment == experiment)
        if state is not None:
            query = query.where(datasets.c.state == state)
        return paginate(
            self._connection, query, [datasets.c.id], _dataset, after=after, limit=limit, descending=True
        )

    def receiving(self) -> Sequence[Dataset]:
        query = select(datasets).where(datasets.c.state == DatasetState.RECEIVING).order_by(datasets.c.id)
        return [_dataset(row) for row in self._connection.execute(query)]

    def create(
        self,
        *,
        experiment: str,
        name: str,
        path: str,
        kind: DatasetKind,
        frames_announced: int,
        shape: tuple[int, int],
        metadata: Mapping[str, Quantity],
        files: Sequence[str],
    ) -> Dataset:
        """A dataset that is being received, none of its data files (paths in `files`) there yet."""
        rows, columns = shape
        inserted = self._connection.execute(
            insert(datasets)
            .values(
                experiment=experiment,
                name=name,
                path=path,
                kind=kind,
                state=DatasetState.RECEIVING,
                frames_announced=frames_announced,
                frames_readable=0,
                rows=rows,
                columns=columns,
                metadata={key: value.model_dump() for key, value in metadata.items()},
                created=datetime.now(UTC),
            )
            .returning(datasets)
        ).one()
        if files:
            numbered = [
                {"dataset": inserted.id, "number": number, "path": file}
                for number, file in enumerate(files, 1)
            ]
            self._connection.execute(insert(dataset_files), numbered)
        return _dataset(inserted)

    def change(self, dataset: int, **values: Any) -> None:
        """Sets columns: state, frames_readable, ended."""
        self._connection.execute(update(datasets).where(datasets.c.id == dataset).values(**values))

    def files(self, dataset: int) -> Sequence[DatasetFile]:
        """In the order of the master's links."""
        query = select(dataset_files.c.number, dataset_files.c.path, dataset_files.c.frames)
        query = query.where(dataset_files.c.dataset == dataset).order_by(dataset_files.c.number)
        return [DatasetFile(*row) for row in self._connection.execute(query)]

    def needing(self, experiment: str, path: str) -> Sequence[int]:
        """Ids of the datasets that this file, which has not arrived for them yet, belongs to."""
        query = (
            select(datasets.c.id)
            .join(dataset_files, datasets.c.id == dataset_files.c.dataset)
            .where(
                datasets.c.experiment == experiment,
                dataset_files.c.frames.is_(None),
                dataset_files.c.path == path,
            )
            .distinct()
            .order_by(datasets.c.id)
        )
        return list(self._connection.scalars(query))

    def awaited(self, experiment: str, paths: Collection[str]) -> str | None:
        """The one of these paths that the newest dataset being received waits for."""
        query = (
            select(dataset_files.c.path)
            .join(datasets, datasets.c.id == dataset_files.c.dataset)
            .where(
                datasets.c.experiment == experiment,
                datasets.c.state == DatasetState.RECEIVING,
                dataset_files.c.frames.is_(None),
                dataset_files.c.path.in_(paths),
            )
            .order_by(datasets.c.id.desc())
        )
        return self._connection.scalars(query).first()

    def arrived(self, dataset: int, path: str, frames: int) -> None:
        self._connection.execute(
            update(dataset_files)
            .where(dataset_files.c.dataset == dataset, dataset_files.c.path == path)
            .values(frames=frames)
        )


def _dataset(row: Row[Any]) -> Dataset:
    values = row._mapping
    return Dataset.model_validate({**values, "shape": (values["rows"], values["columns"])})
