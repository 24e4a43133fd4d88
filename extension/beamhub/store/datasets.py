"""Rows of datasets and of the data files that their masters point to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, func, insert, select, update

from beamhub.schemas import Dataset, DatasetKind, DatasetState, Page, Quantity
from beamhub.store.pages import among, containing, paginate
from beamhub.store.tables import dataset_files, datasets

# asked for with each event: made once, because that takes longer than to look for it
_ONE = select(datasets).where(datasets.c.id == bindparam("dataset"))
RUN = 1000  # files of a series that are looked at together


@dataclass(frozen=True)
class DatasetFile:
    """A data file of a dataset. `frames` is None until it has arrived; `growing`, how many have come of one
    that is still written.

    `number` is its place among the master's links, from 1; in a series, the number in its name."""

    number: int
    path: str
    frames: int | None
    growing: int | None = None


class Datasets:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, dataset: int) -> Dataset | None:
        row = self._connection.execute(_ONE, {"dataset": dataset}).first()
        return _dataset(row) if row else None

    def require(self, dataset: int) -> Dataset:
        """One that must be there: something refers to it."""
        found = self.get(dataset)
        if found is None:
            raise AssertionError(f"dataset {dataset} has no row")
        return found

    def at(self, experiment: str, path: str) -> Dataset | None:
        query = select(datasets).where(datasets.c.experiment == experiment, datasets.c.path == path)
        row = self._connection.execute(query).first()
        return _dataset(row) if row else None

    def list(
        self,
        experiment: str,
        *,
        state: DatasetState | None = None,
        name: str | None = None,
        after: str | None,
        limit: int,
    ) -> Page[Dataset]:
        """Newest first; with `name`, those that have it in their name or path."""
        query = select(datasets).where(datasets.c.experiment == experiment)
        if state is not None:
            query = query.where(datasets.c.state == state)
        if name is not None:
            query = query.where(containing(self._connection, name, datasets.c.name, datasets.c.path))
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
        format: str,  # noqa: A002 (its name in the API)
        kind: DatasetKind,
        open_ended: bool,
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
                format=format,
                kind=kind,
                open_ended=open_ended,
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
        self._name_files(inserted.id, files)
        return _dataset(inserted)

    def announce(
        self,
        dataset: int,
        kind: DatasetKind,
        frames: int,
        shape: tuple[int, int],
        metadata: Mapping[str, Quantity],
        files: Sequence[str],
        *,
        open_ended: bool,
    ) -> None:
        """Its master tells this now; it has told other things while it was still written."""
        told = {key: value.model_dump() for key, value in metadata.items()}
        rows, columns = shape
        self.change(
            dataset,
            kind=kind,
            open_ended=open_ended,
            frames_announced=frames,
            rows=rows,
            columns=columns,
            metadata=told,
        )
        if [file.path for file in self.files(dataset)] != list(files):
            self._connection.execute(delete(dataset_files).where(dataset_files.c.dataset == dataset))
            self._name_files(dataset, files)

    def _name_files(self, dataset: int, files: Sequence[str]) -> None:
        if files:
            numbered = [
                {"dataset": dataset, "number": number, "path": file} for number, file in enumerate(files, 1)
            ]
            self._connection.execute(insert(dataset_files), numbered)

    def change(self, dataset: int, **values: Any) -> None:
        """Sets columns: state, kind, metadata, open_ended, frames_announced, frames_readable, rows, columns,
        ended."""
        self._connection.execute(update(datasets).where(datasets.c.id == dataset).values(**values))

    def move(self, dataset: int, experiment: str, name: str, path: str, files: Mapping[str, str]) -> None:
        """It belongs to another experiment now, where its files have other paths (old → new)."""
        self.change(dataset, experiment=experiment, name=name, path=path)
        for old, new in files.items():
            self._connection.execute(
                update(dataset_files)
                .where(dataset_files.c.dataset == dataset, dataset_files.c.path == old)
                .values(path=new)
            )

    def sharing(self, dataset: Dataset, paths: Collection[str]) -> str | None:
        """The name of another dataset of its experiment that one of these files belongs to."""
        query = (
            select(datasets.c.name)
            .join(dataset_files, datasets.c.id == dataset_files.c.dataset)
            .where(
                datasets.c.experiment == dataset.experiment,
                datasets.c.id != dataset.id,
                among(self._connection, dataset_files.c.path, paths),
            )
        )
        return self._connection.scalars(query).first()

    def files(self, dataset: int) -> Sequence[DatasetFile]:
        """In the order of the master's links."""
        columns = (
            dataset_files.c.number,
            dataset_files.c.path,
            dataset_files.c.frames,
            dataset_files.c.growing,
        )
        query = select(*columns)
        query = query.where(dataset_files.c.dataset == dataset).order_by(dataset_files.c.number)
        return [DatasetFile(*row) for row in self._connection.execute(query)]

    def has_any(self, dataset: int, paths: Collection[str]) -> bool:
        """Whether one of these paths is a data file's of the dataset."""
        query = select(dataset_files.c.number).where(
            dataset_files.c.dataset == dataset, among(self._connection, dataset_files.c.path, paths)
        )
        return self._connection.execute(query).first() is not None

    def add(self, dataset: int, *files: DatasetFile) -> None:
        """Files of a series, with their numbers; what had such a number before gives it up."""
        numbers = [file.number for file in files]
        mine = dataset_files.c.dataset == dataset
        self._connection.execute(delete(dataset_files).where(mine, dataset_files.c.number.in_(numbers)))
        self._connection.execute(
            insert(dataset_files),
            [
                {"dataset": dataset, "number": file.number, "path": file.path, "frames": file.frames}
                for file in files
            ],
        )

    def span(self, dataset: int) -> tuple[int, int] | None:
        """The lowest and the highest number of a series' files."""
        query = select(func.min(dataset_files.c.number), func.max(dataset_files.c.number))
        first, last = self._connection.execute(query.where(dataset_files.c.dataset == dataset)).one()
        return None if first is None else (first, last)

    def run_ends(self, dataset: int, start: int) -> int:
        """The number of a series' first file from `start` on that is not there, or holds no frame."""
        query = select(dataset_files.c.number).where(
            dataset_files.c.dataset == dataset, dataset_files.c.frames > 0
        )
        query = query.order_by(dataset_files.c.number).limit(RUN)
        while True:
            numbers = self._connection.scalars(query.where(dataset_files.c.number >= start)).all()
            length = next((n for n, number in enumerate(numbers) if number != start + n), len(numbers))
            start += length
            if length < RUN:
                return start

    def needing(self, experiment: str, paths: Collection[str]) -> Mapping[int, Sequence[str]]:
        """The datasets that files at these paths, which have not arrived for them yet, belong to: id ->
        their paths."""
        query = (
            select(datasets.c.id, dataset_files.c.path)
            .join(dataset_files, datasets.c.id == dataset_files.c.dataset)
            .where(
                datasets.c.experiment == experiment,
                dataset_files.c.frames.is_(None),
                among(self._connection, dataset_files.c.path, paths),
            )
            .distinct()
            .order_by(datasets.c.id, dataset_files.c.path)
        )
        found = defaultdict[int, Any](list)
        for id_, path in self._connection.execute(query):
            found[id_].append(path)
        return found

    def awaited(self, experiment: str, paths: Collection[str]) -> Sequence[str]:
        """Those of these paths that datasets being received wait for, the newest dataset's first."""
        query = (
            select(dataset_files.c.path)
            .join(datasets, datasets.c.id == dataset_files.c.dataset)
            .where(
                datasets.c.experiment == experiment,
                datasets.c.state == DatasetState.RECEIVING,
                dataset_files.c.frames.is_(None),
                among(self._connection, dataset_files.c.path, paths),
            )
            .order_by(datasets.c.id.desc())
        )
        return list(self._connection.scalars(query))

    def growing(self, experiment: str, paths: Collection[str]) -> Sequence[str]:
        """Those of these paths (of series) where datasets are being received, the newest first."""
        query = select(datasets.c.path).where(
            datasets.c.experiment == experiment,
            datasets.c.state == DatasetState.RECEIVING,
            datasets.c.open_ended,
            among(self._connection, datasets.c.path, paths),
        )
        return list(self._connection.scalars(query.order_by(datasets.c.id.desc())))

    def arrived(self, dataset: int, frames: Mapping[str, int]) -> None:
        """Data files have come, with so many frames: path -> frames."""
        self._count(dataset, frames, dataset_files.c.frames)

    def grows(self, dataset: int, frames: Mapping[str, int]) -> None:
        """So many frames have come of files that are still written: path -> frames."""
        self._count(dataset, frames, dataset_files.c.growing)

    def withdraw(self, experiment: str, paths: Collection[str]) -> Collection[int]:
        """Nothing is known any longer of the frames of these files, which were still written; the datasets
        that they belong to."""
        grew = dataset_files.c.growing.is_not(None), among(self._connection, dataset_files.c.path, paths)
        query = select(datasets.c.id).join(dataset_files, datasets.c.id == dataset_files.c.dataset)
        found = set(self._connection.scalars(query.where(datasets.c.experiment == experiment, *grew)))
        for dataset in found:
            changed = update(dataset_files).where(dataset_files.c.dataset == dataset, *grew)
            self._connection.execute(changed.values(growing=None))
        return found

    def _count(self, dataset: int, frames: Mapping[str, int], column: ColumnElement[int | None]) -> None:
        statement = update(dataset_files).where(
            dataset_files.c.dataset == dataset, dataset_files.c.path == bindparam("_path")
        )
        self._connection.execute(
            statement.values({column: bindparam("_frames")}),
            [{"_path": path, "_frames": count} for path, count in frames.items()],
        )


def _dataset(row: Row[Any]) -> Dataset:
    values = row._mapping
    return Dataset.model_validate({**values, "shape": (values["rows"], values["columns"])})
