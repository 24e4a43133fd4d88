"""Datasets: files in any order, stopped early, sent again, hostile; and their frames."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from beamhub.access import Principal
from beamhub.batches import Batches, Whole
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.errors import Conflict, Forbidden, Gone, Invalid, NotFound
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.frames.reader import open_dataset
from beamhub.schemas import (
    Dataset,
    DatasetKind,
    DatasetState,
    ExperimentCreate,
    InstrumentChange,
    InstrumentCreate,
    Quantity,
    Upload,
    UploadState,
)
from beamhub.simulation.acquisition import Acquisition, Detector
from beamhub.simulation.detector import VirtualPilatus
from beamhub.simulation.nexus import DataFile, write_master
from beamhub.store import Store, Transaction
from beamhub.store.datasets import DatasetFile
from beamhub.uploads import Uploads

OPERATOR = Principal("root", "user", operator=True)
SAM, ADA, EVE = (Principal(name, "user") for name in ("sam", "ada", "eve"))
AGENT = Principal("instrument:mx", "instrument", instrument="mx")
DETECTOR = Detector("tiny", (1, 1), 0.1, module=(64, 48), gap=(0, 0))  # the simulated beam stop is larger
PER_FILE, FRAMES = 2, 6


def frame(number: int, run: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """What the detector saw, frames numbered from 1."""
    return np.arange(DETECTOR.shape[0] * DETECTOR.shape[1], dtype=np.uint16).reshape(DETECTOR.shape) % 100 + (
        number + 1000 * run
    )


def record(folder: Path, prefix: str = "lyso", run: int = 0, frames: int = FRAMES) -> list[Path]:
    """A dataset as a filewriter leaves it: its master, then its data files."""
    folder.mkdir(exist_ok=True)
    scan = Acquisition(detector=DETECTOR, frames=frames, seed=run + 1)
    counts = [min(PER_FILE, frames - first) for first in range(0, frames, PER_FILE)]
    names = [f"{prefix}_data_{number:06d}.h5" for number in range(1, len(counts) + 1)]
    master = folder / f"{prefix}_master.h5"
    write_master(master, scan, list(zip(names, counts, strict=True)), 0.1)
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        with DataFile(folder / name, scan, index * PER_FILE, count) as file:
            for number in range(count):
                file.append(frame(index * PER_FILE + number + 1, run))
    return [master, *(folder / name for name in names)]


@dataclass
class Site:
    store: Store
    folder: Path
    experiments: Experiments
    uploads: Uploads
    datasets: Datasets
    experiment: str
    clock: float = 0.0  # seconds

    async def silent(self, minutes: int) -> None:
        """So long nothing comes."""
        await self.datasets.expire(self.clock)
        self.clock += 60.0 * minutes
        await self.datasets.expire(self.clock)

    async def send(self, *files: Path) -> list[Upload]:
        return [await self._send(file) for file in files]

    async def _send(self, file: Path) -> Upload:
        content = await asyncio.to_thread(file.read_bytes)

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        upload = await self.uploads.create(AGENT, file.name, len(content), digest)
        if upload.state is UploadState.RECEIVING:
            upload = await self.uploads.append(AGENT, upload.id, 0, Chunks(chunks()))
        return upload

    async def deliver(self, *files: Path) -> list[Upload]:
        """All by one request."""
        content = await asyncio.to_thread(lambda: [memoryview(file.read_bytes()) for file in files])
        wholes = [Whole(file.name, one) for file, one in zip(files, content, strict=True)]
        return [
            one
            for one in await Batches(self.store, self.uploads).deliver(AGENT, wholes)
            if isinstance(one, Upload)
        ]

    async def all(self) -> list[Dataset]:
        return (await self.datasets.list(ADA, self.experiment)).items

    async def only(self) -> Dataset:
        (dataset,) = await self.all()
        return dataset

    def events(self) -> list[str]:
        found = self.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
        return [event.kind for event in found if event.kind.startswith("dataset.")]


on_both = pytest.mark.parametrize("site", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """One instrument `mx` with its active experiment of Ada's; on PostgreSQL where a parameter says so."""
    on_postgresql = getattr(request, "param", "sqlite") == "postgresql"
    url = request.getfixturevalue("postgresql_url" if on_postgresql else "database_url")
    store, live, folder = Store(url), Live(), tmp_path / "data"
    store.migrate()
    folder.mkdir()
    experiments = Experiments(store, folder)
    await experiments.create_instrument(OPERATOR, InstrumentCreate(id="mx", title="MX", staff=["sam"]))
    experiment = await experiments.create(SAM, ExperimentCreate(instrument="mx", title="L", pi="ada"))
    await experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=experiment.id))
    inspector = Inspector()
    datasets = Datasets(store, folder, inspector)
    uploads = Uploads(store, live, folder, datasets.examine)
    yield Site(store, folder, experiments, uploads, datasets, experiment.id)
    await uploads.close()
    await inspector.close()
    store.close()


@on_both
async def test_a_dataset_grows_file_by_file(site: Site, tmp_path: Path) -> None:
    master, *data = record(tmp_path / "run")
    await site.send(master)
    dataset = await site.only()
    assert (dataset.name, dataset.path, dataset.kind) == ("lyso", "raw/lyso_master.h5", DatasetKind.ROTATION)
    assert (dataset.state, dataset.frames_announced, dataset.frames_readable) == ("receiving", FRAMES, 0)
    assert dataset.shape == DETECTOR.shape
    assert dataset.metadata["wavelength"].unit == "angstrom"
    assert dataset.metadata["wavelength"].value == pytest.approx(0.99987, abs=1e-4)
    for readable, file in zip((2, 4, 6), data, strict=True):
        await site.send(file)
        assert (await site.only()).frames_readable == readable
    dataset = await site.only()
    assert dataset.state is DatasetState.COMPLETE
    assert dataset.ended
    assert site.events() == ["dataset.started", *["dataset.frames"] * 3, "dataset.complete"]


async def test_a_master_of_another_name_begins_a_dataset_too(site: Site, tmp_path: Path) -> None:
    """As at facilities that write `<name>.nxs`, with the frames at `/data` of files `.h5`."""
    master, *data = record(tmp_path / "run")
    with h5py.File(master, "r+") as file:
        del file["entry/data/data"]
        for number, path in enumerate(data, 1):
            del file[f"entry/data/data_{number:06d}"]
            file[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(path.name, "/data")
    for path in data:
        with h5py.File(path, "r+") as file:
            file.move("entry/data/data", "data")
    named = master.rename(master.with_name("lyso_7.nxs"))
    uploads = await site.send(data[0], named, *data[1:])
    assert [upload.error for upload in uploads] == [""] * 4
    dataset = await site.only()
    assert (dataset.name, dataset.path) == ("lyso_7", "raw/lyso_7.nxs")
    assert (dataset.state, dataset.frames_readable) == ("complete", FRAMES)
    for number in (1, FRAMES):
        assert (await site.datasets.frame(ADA, dataset.id, number) == frame(number)).mean() > 0.9


async def test_a_nexus_file_of_something_else_stays_a_file(site: Site, tmp_path: Path) -> None:
    for name, place in (("scan.nxs", "entry/data/counts"), ("scan_0001.h5", "entry/data/data")):
        counts = np.ones((3, *DETECTOR.shape), np.uint16)
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset(place, data=counts, chunks=(1, *DETECTOR.shape))
    (tmp_path / "text.nxs").write_text("no HDF5")
    scan, text, data = await site.send(
        *(tmp_path / name for name in ("scan.nxs", "text.nxs", "scan_0001.h5"))
    )
    assert [one.state for one in (scan, text, data)] == ["complete"] * 3
    assert "not a detector's master file" in scan.error
    assert "not an HDF5 file" in text.error
    assert data.error == ""
    assert await site.all() == []


async def test_files_may_come_in_any_order(site: Site, tmp_path: Path) -> None:
    for number, order in enumerate(itertools.permutations(range(4))):
        files = record(tmp_path / "run", f"run{number}")
        sent: set[int] = set()
        told = len(site.events())
        for index in order:
            await site.send(files[index])
            sent.add(index)
            if 0 in sent:
                leading = next(n for n in range(1, 5) if n not in sent) - 1
                assert (await site.all())[0].frames_readable == leading * PER_FILE
        assert (await site.all())[0].state is DatasetState.COMPLETE
        grown = 3 - order.index(0) + (order.index(0) > 0)  # what was there before its master counts at once
        assert site.events()[told:] == ["dataset.started", *["dataset.frames"] * grown, "dataset.complete"]


@on_both
async def test_files_may_come_all_at_once(site: Site, tmp_path: Path) -> None:
    files = record(tmp_path / "run")
    await asyncio.gather(*(site.send(file) for file in reversed(files)))
    dataset = await site.only()
    assert (dataset.state, dataset.frames_readable) == (DatasetState.COMPLETE, FRAMES)
    assert site.events().count("dataset.complete") == 1


async def test_two_datasets_do_not_mix(site: Site, tmp_path: Path) -> None:
    first, second = record(tmp_path / "a", "one"), record(tmp_path / "a", "one_data")
    await site.send(*second, *first[:2])
    found = {dataset.name: dataset.frames_readable for dataset in await site.all()}
    assert found == {"one": 2, "one_data": 6}


@on_both
async def test_what_stops_early_is_incomplete_and_may_still_go_on(site: Site, tmp_path: Path) -> None:
    master, one, two, three = record(tmp_path / "run")
    await site.send(master, one)
    for minutes in (0, 4):
        await site.datasets.expire(60.0 * minutes)
        assert (await site.only()).state is DatasetState.RECEIVING
    for minutes in (6, 7):
        await site.datasets.expire(60.0 * minutes)
    dataset = await site.only()
    assert (dataset.state, dataset.frames_readable) == (DatasetState.INCOMPLETE, 2)
    assert site.events() == ["dataset.started", "dataset.frames", "dataset.incomplete"]
    assert (await site.datasets.frame(ADA, dataset.id, 2)).shape == DETECTOR.shape
    await site.send(two)
    assert (await site.only()).state is DatasetState.RECEIVING
    await site.send(three)
    dataset = await site.only()
    assert (dataset.state, dataset.frames_readable) == (DatasetState.COMPLETE, FRAMES)


async def test_a_slow_network_is_no_stop(site: Site, tmp_path: Path) -> None:
    master, one, *_ = record(tmp_path / "run")
    await site.send(master)
    size = one.stat().st_size
    going = await site.uploads.create(
        AGENT, one.name, size, f"sha256:{hashlib.sha256(one.read_bytes()).hexdigest()}"
    )
    await site.silent(minutes=60)
    assert (await site.only()).state is DatasetState.RECEIVING
    await site.uploads.terminate(AGENT, going.id)
    await site.silent(minutes=60)
    assert (await site.only()).state is DatasetState.INCOMPLETE


@on_both
async def test_a_prefix_that_is_used_again_is_another_dataset(site: Site, tmp_path: Path) -> None:
    """Its files come under the names of the first run's; each master must find its own."""
    first = record(tmp_path / "one", run=0, frames=4)
    second = record(tmp_path / "two", run=1, frames=6)
    await site.send(*first)
    sent = await site.send(*second)
    assert [upload.path.split("/")[1] for upload in sent] == ["version-2"] * 4
    new, old = await site.all()
    assert (old.name, old.state, old.frames_announced) == ("lyso", DatasetState.COMPLETE, 4)
    assert (new.name, new.state, new.frames_announced) == ("lyso.v2", DatasetState.COMPLETE, 6)
    for dataset, run in ((old, 0), (new, 1)):
        found = await site.datasets.frame(ADA, dataset.id, 3)
        assert np.median(found - frame(3, run)) == 0
    again = await site.send(*second, *first)  # as an agent that has lost its journal
    assert all(upload.offset == upload.size for upload in again)
    assert len(await site.all()) == 2


async def test_frames_are_what_was_measured(site: Site, tmp_path: Path) -> None:
    master, one, *_ = record(tmp_path / "run")
    await site.send(master, one)
    dataset = await site.only()
    found = await site.datasets.frame(ADA, dataset.id, 2)
    counting = found != np.iinfo(found.dtype).max
    assert counting.mean() > 0.9
    assert np.array_equal(found[counting], frame(2)[counting])
    cut = await site.datasets.frame(ADA, dataset.id, 2, region=(8, 4, 24, 20))
    assert np.array_equal(cut, found[4:20, 8:24])
    small = await site.datasets.frame(ADA, dataset.id, 2, bin=4)
    assert small.shape == (DETECTOR.shape[0] // 4, DETECTOR.shape[1] // 4)
    for number in (0, -1, 3, 6, 7, 10**9):
        with pytest.raises(NotFound):
            await site.datasets.frame(ADA, dataset.id, number)
    with pytest.raises(Invalid):
        await site.datasets.frame(ADA, dataset.id, 1, region=(0, 0, 10_000, 10))
    many = await asyncio.gather(*(site.datasets.frame(ADA, dataset.id, 1 + n % 2) for n in range(20)))
    assert all(np.array_equal(image, many[n % 2]) for n, image in enumerate(many))


async def test_a_lost_file_is_said_to_be_lost(site: Site, tmp_path: Path) -> None:
    await site.send(*record(tmp_path / "run"))
    (site.folder / site.experiment / "raw" / "lyso_data_000002.h5").unlink()
    dataset = await site.only()
    with pytest.raises(Gone):
        await site.datasets.frame(ADA, dataset.id, 3)


@on_both
async def test_strangers_find_nothing(site: Site, tmp_path: Path) -> None:
    await site.send(*record(tmp_path / "run"))
    id_ = (await site.only()).id
    answers = set()
    for stranger, dataset in itertools.product((EVE, AGENT), (id_, id_ + 1)):
        for ask in (
            site.datasets.get(stranger, dataset),
            site.datasets.frame(stranger, dataset, 1),
        ):
            with pytest.raises(NotFound) as error:
                await ask
            answers.add(str(error.value).replace(str(dataset), "N"))
    assert len(answers) == 1  # the same, whether there is such a dataset or not
    with pytest.raises(NotFound):
        await site.datasets.list(EVE, site.experiment)


async def test_files_that_can_not_be_used_stay_files_and_say_why(site: Site, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["entry/data/data"] = np.zeros((1, 4, 4), np.uint16)
    with h5py.File(run / "hostile_master.h5", "w") as file:
        file["entry/instrument/detector/detectorSpecific/nimages"] = 1
        file["entry/instrument/detector/detectorSpecific/x_pixels_in_detector"] = 4
        file["entry/instrument/detector/detectorSpecific/y_pixels_in_detector"] = 4
        file["entry/data/data_000001"] = h5py.ExternalLink(str(secret), "/entry/data/data")
    (run / "garbage_master.h5").write_bytes(b"not HDF5")
    (run / "garbage_data_000001.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (run / "log.txt").write_bytes(b"no detector file at all")
    uploads = await site.send(*sorted(run.iterdir()))
    states = {upload.path: upload.state for upload in uploads}
    assert states.pop("raw/hostile_master.h5") is UploadState.QUARANTINED
    assert set(states.values()) == {UploadState.COMPLETE}
    complaints = {upload.path: upload.error for upload in uploads if upload.error}
    assert set(complaints) == {
        "raw/hostile_master.h5",
        "raw/garbage_master.h5",
        "raw/garbage_data_000001.h5",
    }
    assert await site.all() == []


async def test_what_people_put_into_shared_is_no_dataset(site: Site, tmp_path: Path) -> None:
    master, *_ = record(tmp_path / "run")
    content = master.read_bytes()

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    upload = await site.uploads.create(ADA, master.name, len(content), digest, site.experiment)
    await site.uploads.append(ADA, upload.id, 0, Chunks(chunks()))
    assert await site.all() == []


# --- series -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cbfs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six frames of a PILATUS."""
    scan = Acquisition(DETECTOR, FRAMES, distance=0.1, start=5, width=0.5, dtype="uint32")
    detector = VirtualPilatus(tmp_path_factory.mktemp("cbf"), "scan", scan, rate=1000)
    detector.run()
    return [detector.frame_file(number) for number in range(1, FRAMES + 1)]


def renamed(folder: Path, files: Iterable[Path], run: int = 0, start: int = 1) -> list[Path]:
    """The same frames under other numbers, as another run has them."""
    folder.mkdir(exist_ok=True)
    made = []
    for number, file in enumerate(files, start):
        made.append(folder / f"scan_{number:05d}.cbf")
        made[-1].write_bytes(file.read_bytes() + b" " * run)
    return made


@on_both
async def test_a_series_grows_frame_by_frame(site: Site, cbfs: list[Path]) -> None:
    for number, file in enumerate(cbfs, 1):
        await site.send(file)
        dataset = await site.only()
        assert (dataset.frames_readable, dataset.frames_announced) == (number, number)
        assert dataset.state is DatasetState.RECEIVING
    assert (dataset.name, dataset.path, dataset.format) == ("scan", "raw/scan_#####.cbf", "cbf")
    assert (dataset.kind, dataset.open_ended, dataset.shape) == ("rotation", True, DETECTOR.shape)
    assert dataset.metadata["detector_distance"] == Quantity(value=0.1, unit="m")
    assert site.events() == ["dataset.started", *["dataset.frames"] * FRAMES]
    await site.silent(minutes=6)
    dataset = await site.only()
    assert (dataset.state, dataset.frames_readable) == (DatasetState.COMPLETE, FRAMES)
    assert dataset.ended
    assert site.events()[-1] == "dataset.complete"
    here = open_dataset(cbfs[0].with_name("scan_#####.cbf"))
    for number in range(1, FRAMES + 1):
        found = await site.datasets.frame(ADA, dataset.id, number)
        assert np.array_equal(found, here.frame(number - 1))
    with pytest.raises(NotFound):
        await site.datasets.frame(ADA, dataset.id, FRAMES + 1)


@on_both
async def test_datasets_that_come_by_one_request(site: Site, cbfs: list[Path], tmp_path: Path) -> None:
    lyso, late = record(tmp_path / "run"), record(tmp_path / "run", "late", 1)
    cut = tmp_path / "cut_00002.cbf"
    cut.write_bytes(cbfs[1].read_bytes()[:2000])
    last = renamed(tmp_path / "last", cbfs[:1], 1, FRAMES + 1)
    await site.send(*late[1:])  # before their master
    plain = tmp_path / "log.txt"
    plain.write_text("plain")
    uploads = await site.deliver(plain, *reversed(cbfs), *lyso[:2], late[0], cut)
    assert [bool(upload.error) for upload in uploads] == [*[False] * (len(uploads) - 1), True]
    series, first, second = sorted(await site.all(), key=lambda dataset: dataset.path, reverse=True)
    assert (series.path, series.frames_readable, series.frames_announced) == (
        "raw/scan_#####.cbf",
        FRAMES,
        FRAMES,
    )
    assert series.metadata["detector_distance"] == Quantity(value=0.1, unit="m")
    assert (first.path, first.frames_readable, first.state) == ("raw/lyso_master.h5", PER_FILE, "receiving")
    assert (second.path, second.state) == ("raw/late_master.h5", DatasetState.COMPLETE)
    events = site.events()
    assert (events.count("dataset.started"), events.count("dataset.frames")) == (3, 3)
    await site.deliver(*lyso[2:], *last)
    states = {dataset.name: (dataset.state, dataset.frames_readable) for dataset in await site.all()}
    assert states["lyso"] == (DatasetState.COMPLETE, FRAMES)
    assert states["scan"] == (DatasetState.RECEIVING, FRAMES + 1)
    assert site.events()[-3:] == ["dataset.frames", "dataset.frames", "dataset.complete"] or (
        site.events()[-3:] == ["dataset.frames", "dataset.complete", "dataset.frames"]
    )


async def test_a_series_may_come_in_any_order(site: Site, cbfs: list[Path], tmp_path: Path) -> None:
    """Frames are counted from the first file; before that one has come, nobody can know which it is."""
    for run, order in enumerate(itertools.permutations(range(4))):
        files = renamed(tmp_path / "run", cbfs[:4], run + 1)
        sent: set[int] = set()
        for index in order:
            await site.send(files[index])
            sent.add(index)
            dataset = (await site.all())[0]
            leading = next(n for n in range(5) if n not in sent)
            assert dataset.frames_readable == leading
            assert dataset.frames_announced == max(sent) - min(sent) + 1
            assert dataset.name == ("scan" if run == 0 else f"scan.v{run + 1}")
            assert dataset.metadata["omega_start"].value == 5 + 0.5 * min(sent)
        await site.datasets.end(SAM, dataset.id)


async def test_a_series_with_a_hole_is_incomplete(site: Site, cbfs: list[Path]) -> None:
    await site.send(cbfs[0], cbfs[1], cbfs[3])
    await site.silent(minutes=6)
    dataset = await site.only()
    assert (dataset.state, dataset.frames_readable, dataset.frames_announced) == ("incomplete", 2, 4)
    await site.send(cbfs[2])
    dataset = await site.only()
    assert (dataset.state, dataset.frames_readable, dataset.frames_announced) == ("receiving", 4, 4)


async def test_a_series_may_start_anywhere(site: Site, cbfs: list[Path], tmp_path: Path) -> None:
    """At 0 as well as at 1; with another number, it is known to be the first when no more comes."""
    await site.send(*renamed(tmp_path / "run", cbfs[:3], start=0))
    assert (await site.only()).frames_readable == 3
    for file in renamed(tmp_path / "other", cbfs[:3], start=101):
        file = file.rename(file.with_name(file.name.replace("scan", "part")))
        await site.send(file)
    dataset = (await site.all())[0]
    assert (dataset.name, dataset.frames_readable, dataset.frames_announced) == ("part", 0, 3)
    dataset = await site.datasets.end(SAM, dataset.id)
    assert (dataset.state, dataset.frames_readable) == ("complete", 3)
    assert (await site.datasets.frame(ADA, dataset.id, 1)).shape == DETECTOR.shape


async def test_a_series_has_an_end_when_staff_say_so(site: Site, cbfs: list[Path]) -> None:
    await site.send(*cbfs)
    id_ = (await site.only()).id
    for person in (EVE, AGENT):
        with pytest.raises(NotFound):
            await site.datasets.end(person, id_)
    with pytest.raises(Forbidden):
        await site.datasets.end(ADA, id_)
    assert (await site.datasets.end(SAM, id_)).state is DatasetState.COMPLETE
    with pytest.raises(Conflict):
        await site.datasets.end(SAM, id_)
    assert site.events().count("dataset.complete") == 1


async def test_a_longer_series_under_a_used_name_stays_together(
    site: Site, cbfs: list[Path], tmp_path: Path
) -> None:
    """The first run had three frames; what the second has beyond them would find its name free."""
    await site.send(*renamed(tmp_path / "one", cbfs[:3], 1))
    second = renamed(tmp_path / "two", cbfs, 2)
    sent = await site.send(*second)
    assert [upload.path.split("/")[1] for upload in sent] == ["version-2"] * FRAMES
    new, old = await site.all()
    assert (old.name, old.frames_readable) == ("scan", 3)
    assert (new.name, new.frames_readable) == ("scan.v2", FRAMES)
    again = await site.send(*second, *renamed(tmp_path / "one", cbfs[:3], 1))  # with its journal lost
    assert all(upload.offset == upload.size for upload in again)
    assert [d.frames_readable for d in await site.all()] == [FRAMES, 3]


async def test_a_file_of_a_series_on_its_way_is_no_stop(site: Site, cbfs: list[Path], tmp_path: Path) -> None:
    await site.send(*renamed(tmp_path / "one", cbfs[:2], 1))
    later = renamed(tmp_path / "two", cbfs[:3], 2)
    await site.send(*later[:2])
    going = await site.uploads.create(AGENT, later[2].name, later[2].stat().st_size)
    await site.silent(minutes=60)
    assert {dataset.state for dataset in await site.all()} == {DatasetState.RECEIVING}
    await site.uploads.terminate(AGENT, going.id)
    await site.silent(minutes=60)
    assert {dataset.state for dataset in await site.all()} == {DatasetState.COMPLETE}


async def test_a_damaged_file_is_a_hole_in_its_series(site: Site, cbfs: list[Path], tmp_path: Path) -> None:
    files = renamed(tmp_path / "run", cbfs[:4])
    files[1].write_bytes(files[1].read_bytes()[:2000])
    uploads = await site.send(*files)
    assert [bool(upload.error) for upload in uploads] == [False, True, False, False]
    assert "truncated" in uploads[1].error
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.frames_announced) == (1, 4)
    first = renamed(tmp_path / "other", cbfs[:2])
    first[0].write_bytes(b"###CBF")
    await site.send(*(file.rename(file.with_name(file.name.replace("scan", "bad"))) for file in first))
    bad = (await site.all())[0]
    assert (bad.name, bad.frames_readable) == ("bad", 0)


async def test_files_without_a_place_in_a_series_are_plain_files(site: Site, cbfs: list[Path]) -> None:
    folder = cbfs[0].parent / "plain"
    folder.mkdir()
    (folder / "test.cbf").write_bytes(cbfs[0].read_bytes())
    (folder / "scan_00001.cbf.gz").write_bytes(gzip.compress(cbfs[0].read_bytes()))
    uploads = await site.send(*sorted(folder.iterdir()))
    assert [upload.error for upload in uploads] == ["", ""]
    assert await site.all() == []


async def test_the_end_of_a_run_in_a_long_series(site: Site, cbfs: list[Path]) -> None:
    await site.send(cbfs[0])
    id_ = (await site.only()).id

    def fill(tx: Transaction) -> None:
        numbers = (*range(2, 2500), *range(2501, 2600))
        tx.datasets.add(id_, *(DatasetFile(n, f"raw/scan_{n:05d}.cbf", 1) for n in numbers))

    await site.store.write(fill)
    starts = (1, 1500, 2500, 2501, 2600)
    ends = await site.store.read(lambda tx: [tx.datasets.run_ends(id_, start) for start in starts])
    assert ends == [2500, 2500, 2500, 2600, 2600]
