"""A dataset's state: what the files that have come amount to. All changes of its rows are made here.

A dataset begins when its master file arrives. Its data files are known from then on by their exact paths,
whether they have come before it or come after; frames become readable in their order, up to the first file
that is missing. A file that is still written counts with the frames that have come of it, be it the master
itself, with which the dataset begins then; but only what is published makes a dataset complete. A series,
which has no master, begins with whichever of its files arrives first, and grows until nothing has come for
long, or somebody says that it has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from beamhub.access import SYSTEM
from beamhub.events import emit
from beamhub.frames import formats
from beamhub.frames.format import MAX_FRAMES, Contents, DatasetInfo, Part
from beamhub.frames.growing import Stack
from beamhub.incoming import versions
from beamhub.schemas import Dataset, DatasetState, Upload
from beamhub.store import Transaction
from beamhub.store.datasets import DatasetFile

GROWTH = (
    "dataset.started",
    "dataset.frames",
    "dataset.growing",
)  # what shows that a dataset is still being received


@dataclass(frozen=True)
class Looked:
    """A detector's file that has arrived, and what it holds."""

    upload: Upload
    part: Part
    contents: Contents
    problem: str = ""  # why nothing can be read in it

    @property
    def frames(self) -> int:
        return self.contents.frames or 0


def arrived(tx: Transaction, files: Sequence[Looked]) -> None:
    """Files of one experiment have come: what datasets they begin, and which grow by them."""
    tx.uploads.change(
        {file.upload.id: {"error": file.problem, "frames": file.contents.frames} for file in files}
    )
    counted = [file for file in files if file.contents.frames is not None]
    series: dict[str, list[Looked]] = {}
    for file in files:
        if file.part.is_member and file.part.dataset:
            series.setdefault(file.part.dataset, []).append(file)
        elif file.contents.info is not None:
            _master_arrived(tx, file.upload, file.part, file.contents.info)
    for path, members in series.items():
        _members_arrived(tx, path, members)
    data = {file.upload.path: file for file in counted if not file.part.is_member and not file.contents.info}
    if data:
        experiment = next(iter(data.values())).upload.experiment
        for dataset, paths in tx.datasets.needing(experiment, data).items():
            frames = {path: data[path].frames for path in paths}
            _data_arrived(tx, dataset, frames, data[paths[-1]].upload)


def grown(tx: Transaction) -> dict[int, datetime]:
    """When each dataset that is being received has last grown."""
    return {dataset.id: _last_growth(tx, dataset) for dataset in tx.datasets.receiving()}


def _last_growth(tx: Transaction, dataset: Dataset) -> datetime:
    return tx.events.latest(dataset.experiment, str(dataset.id), GROWTH) or dataset.created


def give_up(tx: Transaction, silent: Mapping[int, datetime]) -> None:
    for dataset in stopped(tx, silent):
        end(tx, dataset, SYSTEM.name)


def stopped(tx: Transaction, silent: Mapping[int, datetime]) -> Sequence[Dataset]:
    """Those of these datasets, which have last grown then, that have not grown since and are not about to."""
    coming: dict[str, set[str]] = defaultdict(set)
    for upload in tx.uploads.receiving():
        coming[upload.experiment].add(upload.path)
    return [
        dataset
        for dataset in tx.datasets.receiving()
        if dataset.id in silent
        and _last_growth(tx, dataset) == silent[dataset.id]
        and not _awaits(tx, dataset, coming[dataset.experiment])
    ]


def _awaits(tx: Transaction, dataset: Dataset, paths: Collection[str]) -> bool:
    """Whether one of these files is the dataset's."""
    if _is_series(dataset):
        parts = (formats.part(PurePosixPath(path)) for path in paths)
        return any(part and part.dataset and dataset.path in versions(part.dataset) for part in parts)
    return tx.datasets.has_any(dataset.id, paths)


def grows(tx: Transaction, upload: Upload, stack: Stack, frames: int) -> None:
    """So many frames have come by now of a file that is still written."""
    tx.uploads.change({upload.id: {"frames": frames}})
    part = formats.part(PurePosixPath(upload.path))
    if stack.info is not None and part is not None and part.dataset == upload.path:
        _announced(tx, upload, part, stack.info, frames)
    for id_ in tx.datasets.needing(upload.experiment, [upload.path]):
        tx.datasets.grows(id_, {upload.path: frames})
        _grown(tx, id_, upload)


def withdraw(tx: Transaction, experiment: str, paths: Collection[str]) -> None:
    """Files that were still written are published now, or nothing will come of them: nothing is to be had of
    what has come so far."""
    for id_ in tx.datasets.withdraw(experiment, paths):
        _counted(tx, tx.datasets.require(id_))


def _create(
    tx: Transaction, upload: Upload, part: Part, info: DatasetInfo, files: Sequence[str], announced: int
) -> Dataset:
    path = part.dataset or upload.path
    title = formats.FORMATS[part.format].title(PurePosixPath(path)) or path
    return tx.datasets.create(
        experiment=upload.experiment,
        name=title if upload.version == 1 else f"{title}.v{upload.version}",
        path=path,
        format=part.format,
        kind=info.kind,
        open_ended=info.frames_announced is None,
        frames_announced=announced,
        shape=info.shape,
        metadata=info.metadata,
        files=files,
    )


def _is_series(dataset: Dataset) -> bool:
    return formats.is_series(PurePosixPath(dataset.path))


def _announced(tx: Transaction, upload: Upload, part: Part, info: DatasetInfo, frames: int = 0) -> Dataset:
    """What a master tells; it may have told other things while it was still written. `frames` have come,
    where it doesn't know how many will."""
    folder = PurePosixPath(upload.path).parent
    files = [str(folder / data.name) for data in info.files]
    open_ended = info.frames_announced is None
    announced = frames if info.frames_announced is None else info.frames_announced
    dataset = tx.datasets.at(upload.experiment, upload.path)
    if dataset is None:
        dataset = _create(tx, upload, part, info, files, announced)
        _emit(tx, dataset, "dataset.started", upload.instrument, upload.created_by)
    else:
        tx.datasets.announce(
            dataset.id, info.kind, announced, info.shape, info.metadata, files, open_ended=open_ended
        )
    return dataset


def _master_arrived(tx: Transaction, upload: Upload, part: Part, info: DatasetInfo) -> None:
    dataset = _announced(tx, upload, part, info)
    files = [file.path for file in tx.datasets.files(dataset.id)]
    if growing := tx.uploads.growing(upload.experiment, files):
        tx.datasets.grows(dataset.id, growing)
        _grown(tx, dataset.id, upload)
    if frames := tx.uploads.frames(upload.experiment, files):
        _data_arrived(tx, dataset.id, frames, upload)


def _grown(tx: Transaction, id_: int, upload: Upload) -> None:
    before = tx.datasets.require(id_)
    dataset = _counted(tx, before)
    if dataset.frames_readable != before.frames_readable:
        _emit(tx, dataset, "dataset.growing", upload.instrument, upload.created_by)


def _data_arrived(tx: Transaction, id_: int, frames: Mapping[str, int], upload: Upload) -> None:
    """Data files of this dataset have come, the last with this upload: path -> frames."""
    tx.datasets.arrived(id_, frames)
    before = tx.datasets.require(id_)
    readable, published = _count(tx, before)
    complete = published == before.frames_announced
    dataset = before.model_copy(
        update={
            "frames_readable": readable,
            "state": DatasetState.COMPLETE if complete else DatasetState.RECEIVING,
            "ended": datetime.now(UTC) if complete else None,
        }
    )
    tx.datasets.change(id_, state=dataset.state, frames_readable=readable, ended=dataset.ended)
    told = {"file": max(frames), "frames_published": published}
    _emit(tx, dataset, "dataset.frames", upload.instrument, upload.created_by, **told)
    if complete and before.state is not DatasetState.COMPLETE:
        _emit(tx, dataset, "dataset.complete", upload.instrument, upload.created_by)


def _counted(tx: Transaction, dataset: Dataset) -> Dataset:
    """The dataset, with the number of frames that can be read now."""
    readable, _ = _count(tx, dataset)
    values = {"frames_readable": readable}
    if dataset.open_ended:  # as many are announced as have come
        values["frames_announced"] = readable
    tx.datasets.change(dataset.id, **values)
    return dataset.model_copy(update=values)


def _count(tx: Transaction, dataset: Dataset) -> tuple[int, int]:
    """How many frames of a dataset with a master can be read, from the first one to the first hole, and how
    many of these are in published files."""
    published = growing = 0
    for file in tx.datasets.files(dataset.id):
        if file.frames is None:
            growing = file.growing or 0
            break
        published += file.frames
    most = MAX_FRAMES if dataset.open_ended else dataset.frames_announced
    return min(published + growing, most), min(published, most)


def _members_arrived(tx: Transaction, path: str, files: Sequence[Looked]) -> None:
    """Files of a series have come; those without `info` hold nothing that can be read."""
    by_number = {file.part.number: file for file in files if file.part.number is not None}
    usable = [file for number, file in sorted(by_number.items()) if file.contents.info is not None]
    newest = files[-1].upload
    before = tx.datasets.at(newest.experiment, path)
    if before is None:
        if not usable or usable[0].contents.info is None:  # nothing is known of the series yet
            return
        before = _create(tx, usable[0].upload, usable[0].part, usable[0].contents.info, [], 1)
        _emit(tx, before, "dataset.started", newest.instrument, newest.created_by)
    span = tx.datasets.span(before.id)
    tx.datasets.add(
        before.id, *(DatasetFile(n, file.upload.path, file.frames) for n, file in by_number.items())
    )
    values: dict[str, Any] = {"state": DatasetState.RECEIVING, "ended": None}
    lowest, highest = min(by_number), max(by_number)
    info = by_number[lowest].contents.info
    if span and lowest < span[0] and info is not None:  # where the scan starts, the first one knows
        values |= {"kind": info.kind, "metadata": {k: v.model_dump() for k, v in info.metadata.items()}}
    first, last = (min(span[0], lowest), max(span[1], highest)) if span else (lowest, highest)
    same_start = span is not None and span[0] == first
    readable = before.frames_readable if same_start else 0
    # what may not be the first frame is not counted as such: 0 or 1 is, others are when nothing has come
    if first <= 1 or before.frames_readable:
        readable = tx.datasets.run_ends(before.id, first + readable) - first
    values |= {"frames_announced": last - first + 1, "frames_readable": readable}
    tx.datasets.change(before.id, **values)
    dataset = tx.datasets.require(before.id)
    _emit(tx, dataset, "dataset.frames", newest.instrument, newest.created_by, file=newest.path)


def end(tx: Transaction, dataset: Dataset, actor: str) -> Dataset:
    """Nothing more comes: a series is complete if it has no holes, all else has stopped early."""
    readable = dataset.frames_readable
    complete = not dataset.open_ended and _count(tx, dataset)[1] == dataset.frames_announced
    if _is_series(dataset) and (span := tx.datasets.span(dataset.id)):
        readable = tx.datasets.run_ends(dataset.id, span[0]) - span[0]
        complete = readable == dataset.frames_announced
    state = DatasetState.COMPLETE if complete else DatasetState.INCOMPLETE
    tx.datasets.change(dataset.id, state=state, frames_readable=readable, ended=datetime.now(UTC))
    ended = tx.datasets.require(dataset.id)
    experiment = tx.experiments.get(dataset.experiment)
    instrument = experiment.instrument if experiment else None
    _emit(tx, ended, f"dataset.{state}", instrument, actor)
    return ended


def _emit(
    tx: Transaction, dataset: Dataset, kind: str, instrument: str | None, actor: str, **data: Any
) -> None:
    emit(
        tx,
        kind,
        actor=actor,
        instrument=instrument,
        experiment=dataset.experiment,
        subject=str(dataset.id),
        data={
            "name": dataset.name,
            "kind": dataset.kind,
            "frames_readable": dataset.frames_readable,
            "frames_announced": dataset.frames_announced,
            **data,
        },
    )
