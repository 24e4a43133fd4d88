"""Datasets: what the published files amount to, and the frames that can be read of them now.

A dataset begins when its master file arrives. Its data files are known from then on by their exact paths,
whether they have come before it or come after; frames become readable in their order, up to the first file
that is missing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from beamhub import access, folders
from beamhub.access import SYSTEM, Action, Principal
from beamhub.errors import Gone, Invalid, NotFound
from beamhub.events import emit
from beamhub.frames import picture, reader
from beamhub.frames.hdf5 import FileProblem
from beamhub.frames.inspect import Inspector, MasterInfo
from beamhub.schemas import Dataset, DatasetState, Page, Upload
from beamhub.store import Store, Transaction

MASTER = re.compile(r"(?P<name>.+)_master\.h5")
READERS = 4  # frames decoded at the same time
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
        self._stall = stall
        self._threads = ThreadPoolExecutor(READERS, "beamhub-frames")

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
        dataset = await self.get(principal, id_)
        if not 1 <= number <= dataset.frames_readable:
            raise NotFound(
                f"{dataset.name} has no frame {number} to read: frames 1 to {dataset.frames_readable} of"
                f" {dataset.frames_announced} have arrived.",
                "Wait for it, or ask for another.",
            )
        master = self._data_dir / dataset.experiment / dataset.path
        root = self._data_dir / dataset.experiment / folders.RAW

        def read() -> NDArray[Any]:
            image = reader.dataset(master, root).frame(number - 1)
            return picture.bin_max(picture.cut(image, region) if region else image, bin)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except picture.RegionError as error:
            raise Invalid(f"Frame {number} of {dataset.name}: {error}.", "Ask for a part of it.") from error
        except (FileProblem, FileNotFoundError, reader.MissingFrameError) as error:
            raise Gone(
                f"Frame {number} of {dataset.name} can't be read: {error}.",
                "Ask the operators to look after it.",
            ) from error

    def close(self) -> None:
        """Waits for the frames that are being read."""
        self._threads.shutdown()

    # --- arriving files ---

    async def examine(self, upload: Upload) -> Callable[[Transaction], None]:
        """Looks at a file that has just been published; the result is to be run in the transaction that
        completes its upload. A detector file that can't be used stays a file, and its upload says why."""
        path = PurePosixPath(upload.path)
        if path.parts[0] != folders.RAW or path.suffix != ".h5":
            return lambda _tx: None
        root = self._data_dir / upload.experiment / folders.RAW
        file = self._data_dir / upload.experiment / path
        try:
            if MASTER.fullmatch(path.name):
                master = await self._inspector.master(file, root)
                own = [data for data in master.files if data.name == path.name]  # it holds frames itself
                frames = (await self._inspector.data_file(file, root, own[0].link)).frames if own else None
                return lambda tx: self._master_arrived(tx, upload, master, frames)
            frames = (await self._inspector.data_file(file, root)).frames
            return lambda tx: self._data_arrived(tx, upload, frames)
        except FileProblem as problem:
            reason = f"not usable as a detector file: {problem.reason}"
            return lambda tx: tx.uploads.change(upload.id, error=reason)

    def _master_arrived(
        self, tx: Transaction, upload: Upload, master: MasterInfo, frames: int | None
    ) -> None:
        if frames is not None:
            tx.uploads.change(upload.id, frames=frames)
        where = PurePosixPath(upload.path)
        files = [str(where.parent / data.name) for data in master.files]
        dataset = tx.datasets.create(
            experiment=upload.experiment,
            name=_name(where, upload.version),
            path=upload.path,
            kind=master.kind,
            frames_announced=master.frames_announced,
            shape=master.shape,
            metadata=master.metadata,
            files=files,
        )
        _emit(tx, dataset, "dataset.started", upload.instrument, upload.created_by)
        for path, count in sorted(tx.uploads.frames(upload.experiment, files).items()):
            _arrived(tx, dataset.id, path, count, upload)

    def _data_arrived(self, tx: Transaction, upload: Upload, frames: int) -> None:
        tx.uploads.change(upload.id, frames=frames)
        for dataset in tx.datasets.needing(upload.experiment, upload.path):
            _arrived(tx, dataset, upload.path, frames, upload)

    async def expire(self, now: datetime) -> None:
        """Marks as incomplete what has stopped early: no new file for long, and none on its way."""
        if await self._store.read(lambda tx: self._stalled(tx, now)):
            await self._store.write(lambda tx: self._give_up(tx, now))

    def _stalled(self, tx: Transaction, now: datetime) -> Sequence[Dataset]:
        coming = {(upload.experiment, upload.path) for upload in tx.uploads.receiving()}
        stalled = []
        for dataset in tx.datasets.receiving():
            grown = tx.events.latest(dataset.experiment, str(dataset.id), GROWTH) or dataset.created
            files = tx.datasets.files(dataset.id)
            if now - grown >= self._stall and not any((dataset.experiment, f.path) in coming for f in files):
                stalled.append(dataset)
        return stalled

    def _give_up(self, tx: Transaction, now: datetime) -> None:
        for dataset in self._stalled(tx, now):
            tx.datasets.change(dataset.id, state=DatasetState.INCOMPLETE, ended=now)
            experiment = tx.experiments.get(dataset.experiment)
            instrument = experiment.instrument if experiment else None
            _emit(tx, dataset, "dataset.incomplete", instrument, SYSTEM.name)


def _arrived(tx: Transaction, id_: int, path: str, frames: int, upload: Upload) -> None:
    """A data file of this dataset has come."""
    tx.datasets.arrived(id_, path, frames)
    before = tx.datasets.get(id_)
    if before is None:
        raise AssertionError(f"dataset {id_} has files, but no row")
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
    _emit(tx, dataset, "dataset.frames", upload.instrument, upload.created_by, file=path)
    if complete and before.state is not DatasetState.COMPLETE:
        _emit(tx, dataset, "dataset.complete", upload.instrument, upload.created_by)


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


def _name(path: PurePosixPath, version: int) -> str:
    """What a master file's dataset is called."""
    match = MASTER.fullmatch(path.name)
    name = match["name"] if match else path.stem
    return name if version == 1 else f"{name}.v{version}"


def _readable(tx: Transaction, principal: Principal, id_: int) -> Dataset:
    dataset = tx.datasets.get(id_)
    try:
        if dataset is not None:
            access.require(tx, principal, dataset.experiment, Action.READ)
            return dataset
    except NotFound:
        pass
    raise NotFound(f"There is no dataset {id_} here.", "Look for it in the experiment's list of datasets.")
