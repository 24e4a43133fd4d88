"""Frames as they arrive, against what h5py reads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from beamhub.frames.format import MissingFrameError
from beamhub.frames.outside import HostileFile, UnreadableFile
from beamhub.frames.reader import open_dataset
from beamhub.simulation.acquisition import Acquisition, Detector
from beamhub.simulation.detector import VirtualDetector
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

FRAMES, PER_FILE = 11, 3
SHAPE = (86, 80)
SCAN = Acquisition(Detector("tiny", (1, 2), 0.05, module=(80, 40), gap=(4, 6)), FRAMES, distance=0.05)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The master of a complete dataset of four data files."""
    detector = VirtualDetector(tmp_path_factory.mktemp("complete"), "x", SCAN, PER_FILE, rate=1000)
    detector.run()
    return detector.master


def by_h5py(master: Path) -> NDArray[Any]:
    with h5py.File(master) as file:
        frames: NDArray[Any] = file["entry/data/data"][()]
    return frames


def partly(complete: Path, folder: Path, files: Iterable[int]) -> Path:
    """A dataset of which only some of the data files (numbered from 1) have arrived."""
    for name in [complete.name, *(f"x_data_{number:06d}.h5" for number in files)]:
        (folder / name).hardlink_to(complete.with_name(name))
    return folder / complete.name


def test_frames_are_those_that_h5py_reads(complete: Path) -> None:
    expected = by_h5py(complete)
    frames = open_dataset(complete)
    assert len(frames) == frames.readable() == FRAMES
    for index in range(FRAMES):
        assert np.array_equal(frames.frame(index), expected[index])
    assert np.array_equal(open_dataset(complete).frame(5), expected[5])


def test_mask(complete: Path) -> None:
    bad = open_dataset(complete).mask
    assert np.array_equal(bad, SCAN.mask != 0)
    assert bad[40:46].all()
    assert (open_dataset(complete).frame(0)[bad] == 65535).all()
    assert (open_dataset(complete).frame(0)[~bad] < 65535).all()


@settings(deadline=None, max_examples=16)
@given(arrived=st.sets(st.integers(1, 4)))
def test_what_has_arrived_is_readable_and_nothing_else(
    complete: Path, tmp_path_factory: pytest.TempPathFactory, arrived: set[int]
) -> None:
    frames = open_dataset(partly(complete, tmp_path_factory.mktemp("partly"), arrived))
    expected = by_h5py(complete)
    leading = 0
    for index in range(FRAMES):
        there = index // PER_FILE + 1 in arrived
        assert frames.has(index) == there
        if there:
            assert np.array_equal(frames.frame(index), expected[index])
            leading += leading == index
        else:
            with pytest.raises(MissingFrameError, match=f"frame {index + 1} of .* has not arrived"):
                frames.frame(index)
    assert frames.readable() == leading


def test_frames_become_readable_while_the_files_arrive(complete: Path, tmp_path: Path) -> None:
    master = partly(complete, tmp_path, [])
    frames = open_dataset(master)
    seen = [frames.readable()]
    for number in range(1, 5):
        name = f"x_data_{number:06d}.h5"
        (tmp_path / name).hardlink_to(complete.with_name(name))
        seen.append(frames.readable())
    assert seen == [0, 3, 6, 9, 11]


@pytest.mark.parametrize("index", [-1, FRAMES, 10**9])
def test_frames_that_there_are_not(complete: Path, index: int) -> None:
    assert not open_dataset(complete).has(index)
    with pytest.raises(MissingFrameError, match=f"frames 1 to {FRAMES}"):
        open_dataset(complete).frame(index)


def test_several_threads_read_at_once(complete: Path) -> None:
    expected, frames, together = by_h5py(complete), open_dataset(complete), threading.Barrier(4)

    def read(seed: int) -> bool:
        together.wait()
        order = np.random.default_rng(seed).permutation(FRAMES)
        return all(np.array_equal(frames.frame(int(index)), expected[index]) for index in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


def by_hand(folder: Path, dtype: str = "<u2", first: int | None = None, **filters: Any) -> NDArray[Any]:
    """A dataset written as SIMPLON 1.6 did, links only, one data file; its frames."""
    folder.mkdir(exist_ok=True)
    top = np.iinfo(dtype).max
    frames = np.random.default_rng(3).poisson(2, (4, *SHAPE)).astype(dtype)
    frames[:, 2, 3] = top
    with h5py.File(folder / "x_master.h5", "w") as file:
        specific = file.create_group("entry/instrument/detector/detectorSpecific")
        told = {
            "nimages": 4,
            "ntrigger": 1,
            "x_pixels_in_detector": SHAPE[1],
            "y_pixels_in_detector": SHAPE[0],
        }
        for name, number in told.items():
            specific[name] = number
        file["entry/instrument/detector/bit_depth_image"] = np.dtype(dtype).itemsize * 8
        file["entry/data/data_000001"] = h5py.ExternalLink("x_data_000001.h5", "/entry/data/data")
    with h5py.File(folder / "x_data_000001.h5", "w") as file:
        data = file.create_dataset("entry/data/data", data=frames, chunks=(1, *SHAPE), **filters)
        if first is not None:
            data.attrs["image_nr_low"] = first
    return frames


@pytest.mark.parametrize("dtype", ["<u1", "<u2", "<u4", ">u2"])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"compression": hdf5plugin.Bitshuffle(cname="lz4")},
        {"compression": hdf5plugin.Bitshuffle(cname="zstd")},
        {"compression": hdf5plugin.LZ4()},
        {"compression": hdf5plugin.LZ4(), "shuffle": True},
        {"compression": "gzip"},
        {"compression": hdf5plugin.Zstd()},
    ],
    ids=["plain", "bslz4", "bszstd", "lz4", "shuffle-lz4", "gzip", "zstd"],
)
def test_all_ways_of_compression(tmp_path: Path, dtype: str, filters: dict[str, Any]) -> None:
    expected = by_hand(tmp_path, dtype, **filters)
    frames = open_dataset(tmp_path / "x_master.h5")
    assert frames.readable() == 4
    for index in range(4):
        found = frames.frame(index)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        assert np.array_equal(found, expected[index])
    assert not frames.mask.any()


def test_counts_above_saturation_are_masked(tmp_path: Path) -> None:
    expected = by_hand(tmp_path)
    with h5py.File(tmp_path / "x_master.h5", "r+") as file:
        file["entry/instrument/detector/saturation_value"] = 3
    frame = open_dataset(tmp_path / "x_master.h5").frame(0)
    assert np.array_equal(frame, np.where(expected[0] > 3, 65535, expected[0]))


def test_frames_of_another_size(tmp_path: Path) -> None:
    by_hand(tmp_path)
    with h5py.File(tmp_path / "x_data_000001.h5", "w") as file:
        file.create_dataset("entry/data/data", (4, 5, 5), "u2", chunks=(1, 5, 5))
    with pytest.raises(UnreadableFile, match="another size"):
        open_dataset(tmp_path / "x_master.h5").frame(0)


def test_damaged_frames(tmp_path: Path) -> None:
    """A chunk that unpacks to something else, or to much more than a frame."""
    by_hand(tmp_path, compression=hdf5plugin.Bitshuffle(cname="lz4"))
    huge = (10**13).to_bytes(8, "big") + (8192).to_bytes(4, "big") + b"x" * 50
    with h5py.File(tmp_path / "x_data_000001.h5", "r+") as file:
        data = file["entry/data/data"]
        _, chunk = data.id.read_direct_chunk((0, 0, 0))
        data.id.write_direct_chunk((0, 0, 0), huge)
        data.id.write_direct_chunk((1, 0, 0), chunk[: len(chunk) // 2])
        data.id.write_direct_chunk((2, 0, 0), b"x")
    for index in range(3):
        with pytest.raises(UnreadableFile, match=f"frame {index + 1} in it is damaged"):
            open_dataset(tmp_path / "x_master.h5").frame(index)


def test_a_data_file_that_points_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere"
    by_hand(secret)
    by_hand(tmp_path / "raw")
    with h5py.File(tmp_path / "raw" / "x_data_000001.h5", "w") as file:
        link = h5py.ExternalLink(str(secret / "x_data_000001.h5"), "/entry/data/data")
        file.require_group("entry/data")["data"] = link
    with pytest.raises(HostileFile):
        open_dataset(tmp_path / "raw" / "x_master.h5").frame(0)


def test_frames_in_the_master_itself(tmp_path: Path) -> None:
    path = tmp_path / "x_master.h5"
    expected = np.arange(2 * 5 * 7, dtype="u4").reshape(2, 5, 7)
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", data=expected, chunks=(1, 5, 7))
    frames = open_dataset(path)
    assert len(frames) == frames.readable() == 2
    assert np.array_equal(frames.frame(1), expected[1])


def test_a_file_tells_where_its_frames_belong(tmp_path: Path) -> None:
    """Links don't say how many frames a file holds: then the second file's own word on its first counts."""
    by_hand(tmp_path)
    with h5py.File(tmp_path / "x_master.h5", "r+") as file:
        file["entry/instrument/detector/detectorSpecific/nimages"][()] = 8
        file["entry/data/data_000002"] = h5py.ExternalLink("x_data_000002.h5", "/entry/data/data")
    (tmp_path / "x_data_000001.h5").rename(tmp_path / "x_data_000002.h5")
    with h5py.File(tmp_path / "x_data_000002.h5", "r+") as file:
        file["entry/data/data"].attrs["image_nr_low"] = 5
    frames = open_dataset(tmp_path / "x_master.h5")
    assert [frames.has(index) for index in range(8)] == [False] * 4 + [True] * 4
    assert frames.readable() == 0
