"""Following a dataset: order, gaps, early stops."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from beamhub.simulation.acquisition import Acquisition, Detector, Grid
from beamhub.simulation.detector import VirtualPilatus
from beamhub.simulation.nexus import write_master
from beamhub.testing import write_dataset
from beamhub_notebooks.errors import ProcessingError
from beamhub_notebooks.live import LiveDataset
from beamhub_notebooks.spots import Frame

from tests.growth import Growth


@pytest.fixture
def growing(tmp_path: Path) -> tuple[Path, list[tuple[Path, Path]]]:
    """A master of six frames in three data files, and (where they are kept back, where they belong)."""
    master, *files = write_dataset(tmp_path, "grow", frames=6, per_file=2)
    kept_back = []
    for path in files:
        hidden = path.with_name(f".{path.name}")
        path.rename(hidden)
        kept_back.append((hidden, path))
    return master, kept_back


def level(frame: Frame) -> int:
    """What frame n of `write_dataset` shows everywhere: n."""
    return int(frame[5, 5])


def test_frames_come_in_order_while_files_arrive(growing: tuple[Path, list[tuple[Path, Path]]]) -> None:
    master, files = growing
    dataset = LiveDataset(master)
    hidden, path = files[0]
    hidden.rename(path)
    seen = []
    for number, shown in dataset.map(level, threads=2, stall_timeout=60):
        seen.append((number, shown))
        if number % 2 == 0 and number < 6:  # the next file arrives when this one is done
            hidden, path = files[number // 2]
            hidden.rename(path)

    assert seen == [(n, n) for n in range(1, 7)]
    assert dataset.readable == dataset.announced == 6
    assert dataset.outcome(len(seen)) == "all 6 frames"


def test_files_that_arrive_out_of_order_are_taken_in_order(
    growing: tuple[Path, list[tuple[Path, Path]]],
) -> None:
    master, files = growing
    for hidden, path in reversed(files):
        hidden.rename(path)

    assert [number for number, _ in LiveDataset(master).map(level)] == [1, 2, 3, 4, 5, 6]


def test_an_acquisition_that_stops_ends_the_wait(growing: tuple[Path, list[tuple[Path, Path]]]) -> None:
    master, files = growing
    files[0][0].rename(files[0][1])
    dataset = LiveDataset(master)
    seen = [number for number, _ in dataset.map(level, stall_timeout=0.3)]

    assert seen == [1, 2]
    assert dataset.outcome(2) == "stopped early after 2 of 6 frames"


def test_nothing_at_all_is_a_plain_failure(growing: tuple[Path, list[tuple[Path, Path]]]) -> None:
    dataset = LiveDataset(growing[0])

    assert list(dataset.map(level, stall_timeout=0.2)) == []
    with pytest.raises(ProcessingError, match="No frame of grow has arrived"):
        dataset.outcome(0)


def test_what_came_after_a_lost_file_is_not_lost(tmp_path: Path) -> None:
    scan = Acquisition(frames=4)
    files = [("lost_data_000001.h5", 2), ("lost_data_000002.h5", 2)]
    write_master(tmp_path / "lost_master.h5", scan, files, 0.1)
    _write_blank(tmp_path / "lost_data_000002.h5", 2, scan.detector.shape)

    dataset = LiveDataset(tmp_path / "lost_master.h5")
    seen = [number for number, _ in dataset.map(lambda frame: frame.shape, stall_timeout=0.2)]

    assert seen == [3, 4]


def test_masked_pixels_and_geometry_come_from_the_master(tmp_path: Path) -> None:
    scan = Acquisition(frames=1)
    write_master(tmp_path / "one_master.h5", scan, [("one_data_000001.h5", 1)], 0.1)
    dataset = LiveDataset(tmp_path / "one_master.h5")

    assert (dataset.mask == (scan.mask != 0)).all()
    assert dataset.geometry.wavelength == pytest.approx(scan.wavelength)
    assert dataset.geometry.centre == pytest.approx(scan.beam_centre[::-1])
    assert dataset.grid is None
    with pytest.raises(ValueError, match="not a raster"):
        dataset.on_grid([1], [1])


def test_a_raster_is_laid_out_row_by_row(tmp_path: Path) -> None:
    scan = Acquisition(frames=6, grid=Grid(2, 3))
    write_master(tmp_path / "grid_master.h5", scan, [("grid_data_000001.h5", 6)], 0.1)
    dataset = LiveDataset(tmp_path / "grid_master.h5")

    heat, best = dataset.on_grid([1, 2, 3, 4, 6], [0, 5, 1, 2, 9])

    assert dataset.grid == (2, 3)
    np.testing.assert_array_equal(heat, [[0, 5, 1], [2, np.nan, 9]])
    assert best == (2, 3)


@pytest.fixture
def series(tmp_path: Path) -> tuple[Path, list[tuple[Path, Path]]]:
    """A series of four frames, and (where they are kept back, where they belong); the first is there."""
    scan = Acquisition(Detector("tiny", (1, 1), 0.1, (40, 30), (0, 0)), 4, distance=0.1, dtype="uint32")
    detector = VirtualPilatus(tmp_path, "s", scan, rate=1000)
    detector.run()
    kept_back = []
    for number in range(2, 5):
        path = detector.frame_file(number)
        kept_back.append((path.rename(path.with_name(f".{path.name}")), path))
    return detector.dataset, kept_back


def test_a_series_is_followed_until_nothing_comes(series: tuple[Path, list[tuple[Path, Path]]]) -> None:
    path, files = series
    dataset = LiveDataset(path)
    assert (dataset.name, dataset.open_ended, dataset.announced) == ("s", True, 1)
    seen = []
    for number, shape in dataset.map(lambda frame: frame.shape, stall_timeout=1):
        seen.append(number)
        assert shape == (30, 40)
        if files:
            hidden, there = files.pop(0)
            os.utime(hidden)  # as an upload that has just been received
            hidden.rename(there)

    assert seen == [1, 2, 3, 4]
    assert dataset.outcome(4) == "4 frames"
    assert dataset.progress(4) == (None, "4 frames")


def test_a_series_that_is_over_is_not_waited_for(series: tuple[Path, list[tuple[Path, Path]]]) -> None:
    """Long after its last file nothing more can be expected; what came after a hole counts all the same."""
    path, ((_, _), (hidden, there), _) = series
    hidden.rename(there)
    for file in path.parent.glob("*.cbf"):
        os.utime(file, (0, 0))
    dataset = LiveDataset(path)
    started = time.monotonic()
    seen = [number for number, _ in dataset.map(lambda frame: None, stall_timeout=3600)]

    assert seen == [1, 3]
    assert time.monotonic() - started < 600
    assert dataset.outcome(2) == "2 frames, 1 among them missing"


def test_a_series_whose_first_file_is_late_begins_with_it(
    series: tuple[Path, list[tuple[Path, Path]]],
) -> None:
    path, files = series
    first = path.with_name("s_00001.cbf")
    late = first.rename(path.with_name(".late"))
    files[0][0].rename(files[0][1])
    dataset = LiveDataset(path)
    assert not dataset.frames.begun
    frames = dataset.map(lambda frame: None, stall_timeout=3600)
    with ThreadPoolExecutor(1) as pool:
        number = pool.submit(lambda: next(frames)[0])
        late.rename(first)
        assert number.result(60) == 1
        frames.close()  # type: ignore[attr-defined]


def test_signed_frames_become_counts(tmp_path: Path) -> None:
    import h5py

    master, path, *_ = write_dataset(tmp_path, "signed", frames=1, per_file=1)
    image: npt.NDArray[np.int32] = np.full((1, 16, 20), 7, np.int32)
    image[0, 3, 4] = -1
    with h5py.File(master, "a") as file:
        file["entry/instrument/detector/bit_depth_image"][...] = 32
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", data=image, chunks=(1, 16, 20))
    ((_, frame),) = LiveDataset(master).map(lambda frame: frame)

    assert frame.dtype.kind == "u"
    assert frame[5, 5] == 7
    assert frame[3, 4] == np.iinfo(frame.dtype).max


# --- files that are still written ---------------------------------------------------------------------------


def write_single(folder: Path, frames: int, *, announced: bool = True) -> Path:
    """As `write_dataset`, but in one file that can be read while it is written."""
    import h5py
    from beamhub.simulation.nexus import LIBVER

    (master,) = write_dataset(folder, "kept", frames=0)
    path = folder / "one_master.h5"
    with h5py.File(path, "w", libver=LIBVER) as file, h5py.File(master) as told:
        told.copy("entry", file)
        specific = file["entry/instrument/detector/detectorSpecific"]
        del specific["nimages"]
        if announced:
            specific["nimages"] = frames
        counts = np.broadcast_to(np.arange(frames)[:, None, None] + 1, (frames, 16, 20)).astype(np.uint16)
        file.create_dataset("entry/data/data", data=counts, chunks=(1, 16, 20), maxshape=(None, 16, 20))
    return path


@pytest.fixture
def growth(tmp_path: Path) -> Growth:
    return Growth(write_single(tmp_path, 5), tmp_path / "home" / "raw" / "one_master.h5")


def test_frames_come_while_their_file_is_written(growth: Growth) -> None:
    growth.grow(1)
    dataset = LiveDataset(growth.path)
    seen = []
    for number, shown in dataset.map(level, threads=2, stall_timeout=60):
        seen.append((number, shown))
        if number < 5:
            growth.grow(number + 1)
        assert dataset.progress(number) == (number / 5, f"{number} of 5 frames")
        assert dataset.published == 0

    assert seen == [(n, n) for n in range(1, 6)]
    assert dataset.outcome(len(seen)) == "all 5 frames"
    assert not growth.path.exists(), "all announced frames are there before it is complete"


def test_where_nobody_knows_how_many_it_ends_with_the_file(tmp_path: Path) -> None:
    growth = Growth(write_single(tmp_path, 5, announced=False), tmp_path / "home" / "raw" / "one_master.h5")
    growth.grow(2)
    dataset = LiveDataset(growth.path)
    assert (dataset.open_ended, dataset.announced) == (True, 2)
    seen = []
    for number, _ in dataset.map(level, stall_timeout=3600):
        seen.append(number)
        if number == 2:
            assert dataset.progress(2) == (None, "2 frames")
            assert dataset.outcome(2) == "2 frames"
            growth.grow(4)
        elif number == 4:
            growth.publish()

    assert seen == [1, 2, 3, 4, 5]
    assert not dataset.open_ended
    assert dataset.outcome(5) == "all 5 frames"
    assert dataset.progress(5) == (1, "5 of 5 frames")


def test_a_file_that_stopped_early_is_not_waited_for(tmp_path: Path) -> None:
    """Nothing can come any more when all files are complete."""
    import h5py

    path = write_single(tmp_path, 5)
    with h5py.File(path, "a") as file:
        file["entry/data/data"].resize(3, 0)
    growth = Growth(path, tmp_path / "home" / "raw" / "one_master.h5")
    growth.grow(1)
    dataset = LiveDataset(growth.path)
    seen = []
    for number, _ in dataset.map(level, stall_timeout=3600):
        seen.append(number)
        if number == 1:
            growth.publish()

    assert seen == [1, 2, 3]
    assert dataset.outcome(3) == "stopped early after 3 of 5 frames"


def test_a_file_that_is_sent_again_from_its_beginning(growth: Growth, tmp_path: Path) -> None:
    growth.grow(3)
    dataset = LiveDataset(growth.path)
    again = Growth(growth.source, growth.path, "2")
    seen = []

    def slowly(frame: Frame) -> int:
        if level(frame) == 2:
            growth.withdraw()
        return level(frame)

    frames = dataset.map(slowly, stall_timeout=3600)
    with ThreadPoolExecutor(1) as pool:
        for expected in range(1, 6):
            following = pool.submit(next, frames)
            if expected == 3:
                again.grow(1)
                again.grow(5)
            seen.append(following.result(60))

    assert seen == [(n, n) for n in range(1, 6)]


def test_growth_counts_as_something_that_comes(growth: Growth) -> None:
    """Frames that come after a hole: of one data file, none of the one before."""
    growth.grow(1)
    dataset = LiveDataset(growth.path)
    before = dataset.frames.files_arrived()
    growth.grow(2)
    assert dataset.frames.files_arrived() != before
    assert [number for number, _ in dataset.map(level, stall_timeout=0.3)] == [1, 2]
    assert dataset.outcome(2) == "stopped early after 2 of 5 frames"


def test_other_programs_are_told_that_they_have_to_wait(growth: Growth) -> None:
    growth.grow(2)
    dataset = LiveDataset(growth.path)
    with pytest.raises(ProcessingError, match="still written"):
        dataset.outcome(dataset.published)


def _write_blank(path: Path, frames: int, shape: tuple[int, int]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", data=np.zeros((frames, *shape), np.uint16), chunks=(1, *shape))
