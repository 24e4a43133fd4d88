"""Datasets: what the files of an experiment amount to, and the frames that can be read of them now."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from beamhub import access, datasetstate, folders
from beamhub.access import Action, Principal
from beamhub.datasetstate import Looked
from beamhub.errors import Conflict, Gone, Invalid, NotFound
from beamhub.frames import formats
from beamhub.frames.format import Contents, MissingFrameError, Part
from beamhub.frames.inspect import Inspector, Mask, Place
from beamhub.frames.outside import FileProblem, HostileFile, superblock
from beamhub.publications import Findings
from beamhub.schemas import Dataset, DatasetState, Page, Upload
from beamhub.silence import Silences
from beamhub.store import Store, Transaction

if TYPE_CHECKING:  # an ingest process, which shows no frames, does without numpy
    from numpy.typing import NDArray

MASKS = 8  # kept; that of a 16M detector has 18 MB


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
        name: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[Dataset]:
        """Newest first; with `name`, those that have it in their name or path."""

        def work(tx: Transaction) -> Page[Dataset]:
            access.require(tx, principal, experiment, Action.READ)
            return tx.datasets.list(experiment, state=state, name=name, after=after, limit=limit)

        return await self._store.read(work)

    async def get(self, principal: Principal, id_: int) -> Dataset:
        return await self._store.read(lambda tx: access.require_dataset(tx, principal, id_))

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
        dataset, first = await self._store.read(
            lambda tx: _with_first(tx, access.require_dataset(tx, principal, id_))
        )
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
            series = formats.is_series(PurePosixPath(dataset.path))
            published = series or await asyncio.to_thread(place.path.exists)
            mask = await self._inspector.mask(place, dataset.shape)
            if not published:  # it may still be told another one
                return mask
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
            dataset = access.require_dataset(tx, principal, id_)
            access.require(tx, principal, dataset.experiment, Action.OPERATE)
            if dataset.state is not DatasetState.RECEIVING:
                raise Conflict(f"{dataset.name} has ended: it is {dataset.state}.", "There is nothing to do.")
            return datasetstate.end(tx, dataset, principal.name)

        return await self._store.write(work)

    # --- arriving files ---

    async def examine(self, uploads: Sequence[Upload]) -> Findings:
        """Looks at files of one experiment that have just been published; what is to be recorded of them is
        run in the transaction that completes their uploads. A detector file that can't be used stays a file,
        and its upload says why; one that is built to mislead its readers is hostile, and so is any other HDF5
        file in raw/, whatever it is called."""
        found: list[tuple[Upload, Part | None, Place]] = []
        for upload in uploads:
            path = PurePosixPath(upload.path)
            if path.parts[0] == folders.RAW:
                part, home = formats.part(path), self._data_dir / upload.experiment
                place = Place(part.format if part else None, home / path, home / folders.RAW)
                found.append((upload, part, place))
        looking = await asyncio.to_thread(lambda: [one for one in found if one[1] or _is_hdf5(one[2])])
        answers = await self._inspector.look_at_all([place for _, _, place in looking])
        looked: list[Looked] = []
        hostile: dict[str, str] = {}
        for (upload, part, _), answer in zip(looking, answers, strict=True):
            match answer:
                case HostileFile():
                    hostile[upload.id] = answer.reason
                case _ if part is None:
                    continue
                case FileProblem():
                    reason = f"not usable as a detector file: {answer.reason}"
                    looked.append(Looked(upload, part, Contents(None, None), reason))
                case _:
                    looked.append(Looked(upload, part, answer))
        return Findings(hostile, lambda tx: datasetstate.arrived(tx, looked))

    async def expire(self, now: float) -> None:
        """Marks as incomplete what has stopped early: no new file for long, and none on its way. `now`:
        seconds of the monotonic clock."""
        last = await self._store.read(datasetstate.grown)
        silent = {id_: last[id_] for id_ in self._silences.too_long(last, now)}
        if not silent:
            return
        if await self._store.read(lambda tx: datasetstate.stopped(tx, silent)):
            await self._store.write(lambda tx: datasetstate.give_up(tx, silent))


def _is_hdf5(place: Place) -> bool:
    """Whether a published file is one, by its content."""
    try:
        with place.path.open("rb") as file:
            return superblock(file.fileno()) is not None
    except FileNotFoundError:
        return False


def _with_first(tx: Transaction, dataset: Dataset) -> tuple[Dataset, int | None]:
    """A dataset and, if it is a series, the number of its first file."""
    series = formats.is_series(PurePosixPath(dataset.path))
    span = tx.datasets.span(dataset.id) if series else None
    return dataset, span[0] if span else None
