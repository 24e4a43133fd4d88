"""Frames of files that are still written, against those of the files when they are complete."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from beamhub.frames import growing
from beamhub.frames.format import DataFile, Frames, MissingFrameError
from beamhub.frames.growing import Come, Label, Stack
from beamhub.frames.inspect import Inspector, Place
from beamhub.frames.outside import FileProblem, HostileFile, UnreadableFile
from beamhub.frames.reader import open_dataset
from beamhub.simulation.acquisition import Acquisition, Detector
from beamhub.simulation.detector import VirtualDetector, VirtualSwmr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from tests.growth import Growth, looked_at

FRAMES = 6
SHAPE = (86, 80)
SCAN = Acquisition(Detector("tiny", (1, 2), 0.05, module=(80, 40), gap=(4, 6)), FRAMES, distance=0.05)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A master that holds its frames, complete."""
    detector = VirtualSwmr(tmp_path_factory.mktemp("single"), "x", SCAN, rate=1000)
    detector.run()
    return detector.master


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The master of two data files of three frames."""
    detector = VirtualDetector(tmp_path_factory.mktemp("several"), "x", SCAN, 3, rate=1000)
    detector.run()
    return detector.master


@pytest.fixture(scope="module")
def unannounced(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `single`, but nothing in it says how many frames there will be."""
    path = tmp_path_factory.mktemp("unannounced") / "x_master.h5"
    shutil.copy(single, path)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        for name in ("nimages", "ntrigger"):
            del file[f"entry/instrument/detector/detectorSpecific/{name}"]
    return path


@pytest.fixture(scope="module")
def expected(single: Path) -> NDArray[Any]:
    with h5py.File(single) as file:
        frames: NDArray[Any] = file["entry/data/data"][()]
    return frames


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "raw"
    path.mkdir(parents=True)
    return path


def check(frames: Frames, expected: NDArray[Any], there: int) -> None:
    """The first frames are there, and no others."""
    assert frames.readable() == there
    for index in range(FRAMES + 2):
        assert frames.has(index) == (index < there)
        if index < there:
            assert np.array_equal(frames.frame(index), expected[index])
        else:
            with pytest.raises(MissingFrameError):
                frames.frame(index)


def test_frames_are_read_while_the_master_is_written(single: Path, raw: Path, expected: NDArray[Any]) -> None:
    growth = Growth(single, raw / "x_master.h5")
    with pytest.raises(FileNotFoundError):
        open_dataset(growth.path)
    growth.grow(1)
    frames = open_dataset(growth.path)
    assert frames.info == looked_at(single)[0].info
    assert np.array_equal(frames.mask, SCAN.mask != 0)
    assert (len(frames), frames.files_arrived(), frames.published()) == (FRAMES, 1, 0)
    for number in range(1, FRAMES + 1):
        growth.grow(number)
        check(frames, expected, number)
        assert frames.file(0) is None
        assert not frames.ended()
        assert frames.files_arrived() == number
    growth.publish()
    check(frames, expected, FRAMES)
    assert (frames.published(), frames.file(0), frames.ended()) == (FRAMES, growth.path, True)
    assert np.array_equal(frames.mask, open_dataset(single).mask)
    assert frames.info == open_dataset(single).info


def test_how_many_will_come_is_known_when_the_file_is_complete(
    unannounced: Path, raw: Path, expected: NDArray[Any]
) -> None:
    growth = Growth(unannounced, raw / "x_master.h5")
    growth.grow(2)
    frames = open_dataset(growth.path)
    assert (frames.info.frames_announced, len(frames), frames.ended()) == (None, 2, False)
    check(frames, expected, 2)
    growth.grow(5)
    assert len(frames) == 5
    check(frames, expected, 5)
    growth.publish()
    assert (frames.info.frames_announced, len(frames), frames.ended()) == (FRAMES, FRAMES, True)
    check(frames, expected, FRAMES)


def test_frames_are_read_while_data_files_are_written(
    several: Path, raw: Path, expected: NDArray[Any]
) -> None:
    shutil.copy(several, raw)
    first, second = (
        Growth(several.with_name(f"x_data_00000{n}.h5"), raw / f"x_data_00000{n}.h5", str(n)) for n in (1, 2)
    )
    frames = open_dataset(raw / "x_master.h5")
    assert (frames.files_arrived(), frames.readable()) == (0, 0)
    first.grow(2)
    check(frames, expected, 2)
    first.grow(3)
    second.grow(1)
    check(frames, expected, 4)
    assert (frames.published(), frames.files_arrived()) == (0, 4)
    first.publish()
    check(frames, expected, 4)
    assert (frames.published(), frames.files_arrived(), frames.ended()) == (3, 2, False)
    assert [frames.file(index) for index in (2, 3)] == [first.path, None]
    second.publish()
    check(frames, expected, 6)
    assert frames.ended()


def test_what_is_taken_away_is_not_there(single: Path, raw: Path, expected: NDArray[Any]) -> None:
    """An upload that failed, and the one that begins anew."""
    growth = Growth(single, raw / "x_master.h5")
    growth.grow(4)
    frames = open_dataset(growth.path)
    bad = frames.mask
    growth.withdraw()
    check(frames, expected, 0)
    assert np.array_equal(frames.mask, bad)
    again = Growth(single, raw / "x_master.h5", "2")
    again.grow(1)
    check(frames, expected, 1)


def test_the_sender_that_is_ahead_counts(single: Path, raw: Path, expected: NDArray[Any]) -> None:
    Growth(single, raw / "x_master.h5", "1").grow(2)
    Growth(single, raw / "x_master.h5", "2").grow(3)
    Growth(single, raw / "y_master.h5", "3").grow(5)
    check(open_dataset(raw / "x_master.h5"), expected, 3)


def test_other_frames_than_were_told_are_refused(single: Path, raw: Path, tmp_path: Path) -> None:
    growth = Growth(single, raw / "x_master.h5")
    growth.grow(2)
    frames = open_dataset(growth.path)
    with h5py.File(growth.path, "w") as file:
        file.create_dataset("entry/data/data", (2, 5, 5), "u2", chunks=(1, 5, 5))
    growth.withdraw()
    with pytest.raises(UnreadableFile, match="another size than was told"):
        frames.frame(0)


MOVES = ["grow", "withdraw", "publish", "look", "open", "begin anew"]


@settings(deadline=None, max_examples=40)
@given(
    moves=st.lists(st.sampled_from(MOVES), min_size=1, max_size=14),
    kind=st.sampled_from(["single", "unannounced", "several"]),
)
def test_no_order_of_events_shows_a_wrong_frame(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    expected: NDArray[Any],
    moves: list[str],
    kind: str,
) -> None:
    source: Path = request.getfixturevalue(kind)
    raw = tmp_path_factory.mktemp("home") / "raw"
    raw.mkdir()
    name, first = "x_master.h5", 0
    if kind == "several":
        shutil.copy(source, raw)
        shutil.copy(source.with_name("x_data_000001.h5"), raw)
        name, first = "x_data_000002.h5", 3
    growth, told, uploads = Growth(source.with_name(name), raw / name, "0"), 0, 1
    opened: list[Frames] = []
    for move in moves:
        whole = FRAMES - first
        if growth.path.exists():
            told = whole
        elif move == "grow":
            told = growth.grow(min(told + 1, whole))
        elif move == "withdraw":
            growth.withdraw()
            told = 0
        elif move == "begin anew":
            growth.withdraw()
            growth, told, uploads = Growth(source.with_name(name), raw / name, str(uploads)), 0, uploads + 1
        elif move == "publish":
            growth.publish()
            told = whole
        if move == "open" and (told or first):
            opened.append(open_dataset(raw / "x_master.h5"))
        for frames in opened:
            check(frames, expected, first + told)


def test_readers_beside_the_writer_see_whole_frames_only(
    single: Path, raw: Path, expected: NDArray[Any]
) -> None:
    growth = Growth(single, raw / "x_master.h5")
    growth.grow(1)

    def read() -> bool:
        frames = open_dataset(growth.path)
        while True:
            ended, there = frames.ended(), 0
            for index in range(FRAMES):
                try:
                    counts = frames.frame(index)
                except MissingFrameError:
                    continue
                assert np.array_equal(counts, expected[index])
                there += 1
            if ended:
                return there == FRAMES

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for upload in range(2, 8):
            for number in range(1, FRAMES + 1):
                growth.grow(number)
            growth.withdraw()
            growth = Growth(single, raw / "x_master.h5", str(upload))
            growth.grow(1)
        growth.publish()
        assert all(reader.result(60) for reader in readers)


# --- all kinds of frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i4"])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"compression": hdf5plugin.Bitshuffle(cname="lz4")},
        {"compression": hdf5plugin.Bitshuffle(cname="zstd")},
        {"compression": hdf5plugin.LZ4()},
    ],
    ids=["plain", "bslz4", "bszstd", "lz4"],
)
def test_all_ways_of_compression(raw: Path, tmp_path: Path, dtype: str, filters: dict[str, Any]) -> None:
    source = tmp_path / "x_master.h5"
    counts = np.random.default_rng(3).poisson(2, (3, *SHAPE)).astype(dtype)
    with h5py.File(source, "w", libver=("v110", "v110")) as file:
        file.create_dataset("entry/data/data", data=counts, chunks=(1, *SHAPE), **filters)
    growth = Growth(source, raw / "x_master.h5")
    growth.grow(2)
    frames = open_dataset(growth.path)
    assert len(frames) == 3, "its stack has this size from the beginning and can't grow"
    for index in range(2):
        assert np.array_equal(frames.counts(index), counts[index])
        assert frames.counts(index).dtype == np.dtype(dtype)
    assert not frames.mask.any()


# --- what is told may be wrong ------------------------------------------------------------------------------


@pytest.fixture
def told(single: Path, raw: Path) -> Growth:
    growth = Growth(single, raw / "x_master.h5")
    growth.grow(2)
    return growth


@pytest.mark.parametrize(
    "entry",
    [
        (0, 0),
        (0, 8),
        (5, 1000),
        (2**63 - 1, 100),
        (2**64 - 1, 2**64 - 1),
        (0, 2**64 - 1),
        (2**63 - 50, 1000),
        (10**9, 1000),
        (0, 10_000),
        (0, 70_000),
        (0, 100_000),
    ],
)
def test_places_that_make_no_sense(told: Growth, entry: tuple[int, int]) -> None:
    frames = open_dataset(told.path)
    told.list_frames([(0, 0), (0, 0), entry])
    with pytest.raises(UnreadableFile, match="frame 3 in it"):
        frames.frame(2)
    frames.frame(1)


@settings(deadline=None, max_examples=100)
@given(entry=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), place=st.integers(0, 20_000))
def test_any_place_is_survived(
    single: Path, tmp_path_factory: pytest.TempPathFactory, entry: tuple[int, int], place: int
) -> None:
    growth = Growth(single, tmp_path_factory.mktemp("home") / "raw" / "x_master.h5")
    growth.grow(0)
    growth.list_frames([entry, (place, 5000)])
    growth.incoming.write_bytes(single.read_bytes())
    frames = open_dataset(growth.path)
    for index in range(2):
        try:
            frames.frame(index)
        except UnreadableFile:
            continue


@settings(deadline=None, max_examples=60)
@given(
    content=st.binary(max_size=2000),
    codec=st.sampled_from(["", "lz4", "bslz4", "bszstd"]),
    packed=st.binary(),
)
def test_any_content_is_survived(
    single: Path, tmp_path_factory: pytest.TempPathFactory, content: bytes, codec: str, packed: bytes
) -> None:
    growth = Growth(single, tmp_path_factory.mktemp("home") / "raw" / "x_master.h5")
    stack = looked_at(single)[0].model_copy(update={"codec": codec})
    expects = (SHAPE[0] * SHAPE[1] * 2).to_bytes(8, "big") + (8192).to_bytes(4, "big")
    growth.incoming.write_bytes(content + expects + packed)
    growth.file.hardlink_to(growth.incoming)
    growth.tell(Label(path="raw/x_master.h5", stack=stack).model_dump_json())
    growth.list_frames([(0, len(content) or 1), (len(content), 12 + len(packed))])
    frames = open_dataset(growth.path)
    for index in range(2):
        with pytest.raises(UnreadableFile):
            frames.frame(index)


def test_no_link_is_followed(told: Growth, single: Path) -> None:
    frames = open_dataset(told.path)
    told.file.unlink()
    told.file.symlink_to(single)
    assert not frames.has(0)
    come = Come(told.file, looked_at(single)[0])
    with pytest.raises(HostileFile):
        come.open()
    told.file.unlink()
    os.mkfifo(told.file)
    assert not frames.has(0)
    with pytest.raises(HostileFile):
        come.open()


def test_a_label_that_is_a_link_or_none_at_all_is_not_believed(
    told: Growth, tmp_path: Path, expected: NDArray[Any]
) -> None:
    frames = open_dataset(told.path)
    label = told.label.read_text()
    kept = tmp_path / "kept"
    kept.write_text(label)
    told.label.unlink()
    told.label.symlink_to(kept)
    check(frames, expected, 0)
    told.label.unlink()
    for wrong in ("", "[]", label[:-1], label.replace("bslz4", "gzip"), "\x00"):
        told.tell(wrong)
        check(frames, expected, 0)
    told.tell(label)
    check(frames, expected, 2)


@pytest.mark.parametrize("name", ["../y.h5", "/y.h5", "a/../../../other/raw/x_data_000001.h5", "a%b.h5", ""])
def test_no_file_elsewhere_is_named(single: Path, name: str) -> None:
    stack = looked_at(single)[0]
    assert stack.info
    wrong = stack.model_dump(mode="json")
    wrong["info"]["files"][0]["name"] = name
    with pytest.raises(ValidationError):
        Stack.model_validate(wrong)


def test_what_is_too_large_is_refused(single: Path) -> None:
    stack = looked_at(single)[0].model_dump(mode="json")
    files = [DataFile("a.h5", "/a")] * 20_001
    for wrong in ({"shape": [65_535, 65_535]}, {"info": stack["info"] | {"files": files}}):
        with pytest.raises(ValidationError):
            Stack.model_validate(stack | wrong)


def test_a_mask_of_another_size(single: Path, told: Growth) -> None:
    stack = looked_at(single)[0].model_copy(update={"mask": growing.packed(np.zeros((5, 5), np.bool_))})
    told.tell(Label(path="raw/x_master.h5", stack=stack).model_dump_json())
    with pytest.raises(UnreadableFile, match="the mask"):
        open_dataset(told.path).frame(0)


# --- in the service's child ---------------------------------------------------------------------------------


@pytest.fixture
async def inspector() -> Any:
    inspector = Inspector(children=1, memory=600 << 20)
    yield inspector
    await inspector.close()


async def test_the_childs_frames_are_those_of_now(
    inspector: Inspector, single: Path, raw: Path, expected: NDArray[Any]
) -> None:
    place = Place("nxmx", raw / "x_master.h5", raw)
    with pytest.raises(FileNotFoundError):
        await inspector.counts(place, 0, SHAPE)
    growth = Growth(single, place.path)
    for number in range(1, FRAMES):
        growth.grow(number)
        counts = await inspector.counts(place, number - 1, SHAPE)
        assert np.array_equal(counts, open_dataset(single).counts(number - 1))
        with pytest.raises(MissingFrameError):
            await inspector.counts(place, number, SHAPE)
    assert np.array_equal((await inspector.mask(place, SHAPE)).bad, SCAN.mask != 0)
    growth.withdraw()
    with pytest.raises(FileNotFoundError):
        await inspector.counts(place, 0, SHAPE)
    again = Growth(single, place.path, "2")
    again.grow(1)
    with pytest.raises(MissingFrameError):
        await inspector.counts(place, 1, SHAPE)
    again.publish()
    assert np.array_equal(await inspector.counts(place, 5, SHAPE), open_dataset(single).counts(5))
    assert np.array_equal((await inspector.mask(place, SHAPE)).bad, SCAN.mask != 0)


async def test_other_frames_under_the_same_name(
    inspector: Inspector, single: Path, raw: Path, tmp_path: Path
) -> None:
    """An upload that was given up, and one of something else."""
    place = Place("nxmx", raw / "x_master.h5", raw)
    first = Growth(single, place.path)
    first.grow(1)
    await inspector.counts(place, 0, SHAPE)
    first.withdraw()
    other = tmp_path / "x_master.h5"
    with h5py.File(other, "w", libver=("v110", "v110")) as file:
        file.create_dataset("entry/data/data", data=np.ones((1, 5, 7), np.uint16), chunks=(1, 5, 7))
    Growth(other, place.path, "2").grow(1)
    assert (await inspector.counts(place, 0, (5, 7)) == 1).all()


async def test_the_child_survives_what_is_told(inspector: Inspector, told: Growth, single: Path) -> None:
    place = Place("nxmx", told.path, told.path.parent)
    told.list_frames([(0, 0), (0, 0), (2**64 - 1, 2**64 - 1), (0, 2**40), (2**63 - 1, 100), (7, 7000)])
    await inspector.counts(place, 0, SHAPE)
    (child,) = (child.process for child in inspector._all if child.process)
    for index in range(2, 6):
        with pytest.raises(FileProblem):
            await inspector.counts(place, index, SHAPE)
    huge = looked_at(single)[0].model_copy(update={"shape": (16384, 16384)})
    assert huge.info
    huge = huge.model_copy(update={"info": huge.info.__class__(**(vars(huge.info) | {"shape": huge.shape}))})
    told.tell(Label(path="raw/x_master.h5", stack=huge).model_dump_json())
    with pytest.raises(FileProblem):
        await inspector.counts(place, 0, (16384, 16384))
    assert child.poll() is None
