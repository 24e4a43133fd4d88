"""Datasets: what the published files amount to, and the frames that can be read of them now.

A dataset begins when its master file arrives. Its data files are known from then on by their exact paths,
whether they have come before it or come after; frames become readable in their order, up to the first file
that is missing. A series, which has no master, begins with whichever of its files arrives first, and grows
until nothing has come for long, or somebody says that it has ended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from beamhub import access, folders
from beamhub.access import SYSTEM, Action, Principal
from beamhub.errors import Conflict, Gone, Invalid, NotFound
from beamhub.events import emit
from beamhub.frames import formats
from beamhub.frames.format import Contents, DatasetInfo, MissingFrameError, Part
from beamhub.frames.inspect import Inspector, Mask, Place
from beamhub.frames.outside import FileProblem, HostileFile
from beamhub.incoming import versions
from beamhub.publications import Findings
from beamhub.schemas import Dataset, DatasetState, Page, Upload
from beamhub.silence import Silences
from beamhub.store import Store, Transaction
from beamhub.store.datasets import DatasetFile

if TYPE_CHECKING:  # an ingest process, which shows no frames, does without numpy
    from numpy.typing import NDArray

MASKS = 8  # kept; that of a 16M detector has 18 MB
GROWTH = ("dataset.started", "dataset.frames")  # what shows that a dataset is still being received


class Datasets:
    """All datasets. `stall` is how long one may go without a new file before it counts as stopped early."""

    def __init__(
        self,
        store: Store,
        data_dir: Path,
        inspector: Inspector,
        *,
        stall: timedelta = timedelta(minutes=5),
    ) -> None:
        self._store = store
        self._data_dir = data_dir
        self._inspector = inspector
        self._silences = Silences[int](stall)
        self._masks: OrderedDict[int, Mask] = OrderedDict()

    async def list(
        self,
        principal: Principal,
        experiment: str,
        *,
        state: DatasetState | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[Dataset]:
        """Newest first."""

        def work(tx: Transaction) -> Page[Dataset]:
            access.require(tx, principal, experiment, Action.READ)
            return tx.datasets.list(experiment, state=state, after=after, limit=limit)

        return await self._store.read(work)

    async def get(self, principal: Principal, id_: int) -> Dataset:
        return await self._store.read(lambda tx: _readable(tx, principal, id_))

    async def master_path(self, principal: Principal, id_: int) -> Path:
        """The absolute path of the master file. Only uploads write to raw/: no link can be in its way."""
        dataset = await self.get(principal, id_)
        return self._data_dir / dataset.experiment / dataset.path

    async def frame(
        self,
        principal: Principal,
        id_: int,
        number: int,
        *,
        bin: int = 1,  # noqa: A002 (its name in the API)
        region: tuple[int, int, int, int] | None = None,
    ) -> NDArray[Any]:
        """Frame `number` (from 1) as counts, rows by columns; masked pixels have the type's largest value.

        `region` (x0, y0, x1, y1, in pixels, ends not included) is cut out first; then each block of `bin` x
        `bin` pixels becomes its largest one. Raises NotFound while the frame has not arrived, Invalid for a
        region beyond it, Gone if its file is damaged.
        """
        dataset, first = await self._store.read(lambda tx: _with_first(tx, _readable(tx, principal, id_)))
        if not 1 <= number <= dataset.frames_readable:
            raise NotFound(
                f"{dataset.name} has no frame {number} to read: frames 1 to {dataset.frames_readable} of"
                f" {dataset.frames_announced} have arrived.",
                "Wait for it, or ask for another.",
            )
        home = self._data_dir / dataset.experiment
        place = Place(dataset.format, home / dataset.path, home / folders.RAW, first)
        try:
            counts = await self._inspector.counts(place, number - 1, dataset.shape)
            mask = await self._mask(dataset, place)
        except (FileProblem, FileNotFoundError, MissingFrameError) as error:
            raise Gone(
                f"Frame {number} of {dataset.name} can't be read: {error}.",
                "Ask the operators to look after it.",
            ) from error

        from beamhub.frames import picture  # numpy, which an ingest process does without

        def finish() -> NDArray[Any]:
            image = picture.mark(counts, mask.bad, mask.saturation)
            return picture.bin_max(picture.cut(image, region) if region else image, bin)

        try:
            return await asyncio.to_thread(finish)
        except picture.RegionError as error:
            raise Invalid(f"Frame {number} of {dataset.name}: {error}.", "Ask for a part of it.") from error

    async def _mask(self, dataset: Dataset, place: Place) -> Mask:
        mask = self._masks.get(dataset.id)
        if mask is None:
            mask = await self._inspector.mask(place, dataset.shape)
        self._masks[dataset.id] = mask
        self._masks.move_to_end(dataset.id)
        while len(self._masks) > MASKS:
            self._masks.popitem(last=False)
        return mask

    async def end(self, principal: Principal, id_: int) -> Dataset:
        """Says that nothing more will come of a dataset: it is complete, or incomplete, from now on.

        Raises Conflict if it has ended.
        """

        def work(tx: Transaction) -> Dataset:
            dataset = _readable(tx, principal, id_)
            access.require(tx, principal, dataset.experiment, Action.OPERATE)
            if dataset.state is not DatasetState.RECEIVING:
                raise Conflict(f"{dataset.name} has ended: it is {dataset.state}.", "There is nothing to do.")
            return _end(tx, dataset, principal.name)

        return await self._store.write(work)

    # --- arriving files ---

    async def examine(self, uploads: Sequence[Upload]) -> Findings:
        """Looks at files of one experiment that have just been published; what is to be recorded of them is
        run in the transaction that completes their uploads. A detector file that can't be used stays a file,
        and its upload says why; one that is built to mislead its readers is hostile."""
        detectors: list[tuple[Upload, Part, Place]] = []
        for upload in uploads:
            path = PurePosixPath(upload.path)
            if path.parts[0] == folders.RAW and (part := formats.part(path)):
                home = self._data_dir / upload.experiment
                detectors.append((upload, part, Place(part.format, home / path, home / folders.RAW)))
        answers = await self._inspector.look_at_all([place for _, _, place in detectors])
        looked: list[_Looked] = []
        hostile: dict[str, str] = {}
        for (upload, part, _), answer in zip(detectors, answers, strict=True):
            match answer:
                case HostileFile():
                    hostile[upload.id] = answer.reason
                case FileProblem():
                    reason = f"not usable as a detector file: {answer.reason}"
                    looked.append(_Looked(upload, part, Contents(None, None), reason))
                case _:
                    looked.append(_Looked(upload, part, answer))
        return Findings(hostile, lambda tx: _arrived(tx, looked))

    async def expire(self, now: float) -> None:
        """Marks as incomplete what has stopped early: no new file for long, and none on its way. `now`:
        seconds of the monotonic clock."""
        grown = await self._store.read(_grown)
        silent = {id_: grown[id_] for id_ in self._silences.too_long(grown, now)}
        if not silent:
            return
        if await self._store.read(lambda tx: _stopped(tx, silent)):
            await self._store.write(lambda tx: _give_up(tx, silent))


@dataclass(frozen=True)
class _Looked:
    """A detector's file that has arrived, and what it holds."""

    upload: Upload
    part: Part
    contents: Contents
    problem: str = ""  # why nothing can be read in it

    @property
    def frames(self) -> int:
        return self.contents.frames or 0


def _arrived(tx: Transaction, files: Sequence[_Looked]) -> None:
    """Files of one experiment have come: what datasets they begin, and which grow by them."""
    tx.uploads.change({file.upload.id: {"error": file.problem} for file in files if file.problem})
    counted = [file for file in files if file.contents.frames is not None]
    tx.uploads.change({file.upload.id: {"frames": file.frames} for file in counted})
    series: dict[str, list[_Looked]] = {}
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


def _grown(tx: Transaction) -> dict[int, datetime]:
    """When each dataset that is being received has last grown."""
    return {dataset.id: _last_growth(tx, dataset) for dataset in tx.datasets.receiving()}


def _last_growth(tx: Transaction, dataset: Dataset) -> datetime:
    return tx.events.latest(dataset.experiment, str(dataset.id), GROWTH) or dataset.created


def _give_up(tx: Transaction, silent: Mapping[int, datetime]) -> None:
    for dataset in _stopped(tx, silent):
        _end(tx, dataset, SYSTEM.name)


def _stopped(tx: Transaction, silent: Mapping[int, datetime]) -> Sequence[Dataset]:
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
    if dataset.open_ended:
        parts = (formats.part(PurePosixPath(path)) for path in paths)
        return any(part and part.dataset and dataset.path in versions(part.dataset) for part in parts)
    return tx.datasets.has_any(dataset.id, paths)


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


def _master_arrived(tx: Transaction, upload: Upload, part: Part, info: DatasetInfo) -> None:
    folder = PurePosixPath(upload.path).parent
    files = [str(folder / data.name) for data in info.files]
    dataset = _create(tx, upload, part, info, files, info.frames_announced or 0)
    _emit(tx, dataset, "dataset.started", upload.instrument, upload.created_by)
    if frames := tx.uploads.frames(upload.experiment, files):
        _data_arrived(tx, dataset.id, frames, upload)


def _data_arrived(tx: Transaction, id_: int, frames: Mapping[str, int], upload: Upload) -> None:
    """Data files of this dataset have come, the last with this upload: path -> frames."""
    tx.datasets.arrived(id_, frames)
    before = tx.datasets.require(id_)
    readable, missing = 0, False
    for file in tx.datasets.files(id_):
        missing = missing or file.frames is None
        readable += 0 if missing else file.frames or 0
    readable = min(readable, before.frames_announced)
    complete = readable == before.frames_announced
    dataset = before.model_copy(
        update={
            "frames_readable": readable,
            "state": DatasetState.COMPLETE if complete else DatasetState.RECEIVING,
            "ended": datetime.now(UTC) if complete else None,
        }
    )
    tx.datasets.change(id_, state=dataset.state, frames_readable=readable, ended=dataset.ended)
    _emit(tx, dataset, "dataset.frames", upload.instrument, upload.created_by, file=max(frames))
    if complete and before.state is not DatasetState.COMPLETE:
        _emit(tx, dataset, "dataset.complete", upload.instrument, upload.created_by)


def _members_arrived(tx: Transaction, path: str, files: Sequence[_Looked]) -> None:
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


def _end(tx: Transaction, dataset: Dataset, actor: str) -> Dataset:
    """Nothing more comes: a series is complete if it has no holes, all else has stopped early."""
    readable = dataset.frames_readable
    span = tx.datasets.span(dataset.id) if dataset.open_ended else None
    if span:
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


def _with_first(tx: Transaction, dataset: Dataset) -> tuple[Dataset, int | None]:
    """A dataset and, if it is a series, the number of its first file."""
    span = tx.datasets.span(dataset.id) if dataset.open_ended else None
    return dataset, span[0] if span else None


def _readable(tx: Transaction, principal: Principal, id_: int) -> Dataset:
    dataset = tx.datasets.get(id_)
    try:
        if dataset is not None:
            access.require(tx, principal, dataset.experiment, Action.READ)
            return dataset
    except NotFound:
        pass
    raise NotFound(f"There is no dataset {id_} here.", "Look for it in the experiment's list of datasets.")
