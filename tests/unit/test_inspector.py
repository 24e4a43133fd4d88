"""The child processes that look into detector files: they answer, refuse, and die without harm."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from beamhub.frames.format import Contents, MissingFrameError
from beamhub.frames.inspect import Inspector, Place
from beamhub.frames.nxmx import DATA, inspect_data_file, inspect_master
from beamhub.frames.outside import FileProblem, HostileFile, UnreadableFile
from beamhub.frames.reader import open_dataset
from beamhub.simulation.acquisition import Acquisition, Detector
from beamhub.simulation.detector import VirtualDetector

from tests.unit.inspecting import LIBVER, SHAPE, outside, recorded, untouched, virtual_open_ended
from tests.unit.reading import waiting_python

__all__ = ["outside", "recorded"]

# following a link that it should not follow, a test would hang on a pipe that nobody writes to
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def inspector() -> AsyncIterator[Inspector]:
    inspector = Inspector()
    yield inspector
    await inspector.close()


async def look(inspector: Inspector, path: Path) -> Contents:
    return await inspector.look(Place("nxmx", path, path.parent))


@pytest.fixture(scope="module")
def whole(recorded: Path) -> bytes:
    return recorded.read_bytes()


async def test_damaged_anywhere(inspector: Inspector, tmp_path: Path, whole: bytes) -> None:
    """Whatever byte of its structure is changed: a clear refusal or a sound answer, nothing in between."""
    rng = np.random.default_rng(1)
    path = tmp_path / "x_master.h5"
    refused = 0
    for at in rng.integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[at : at + 8] = rng.bytes(8)
        path.write_bytes(damaged)
        try:
            info = (await look(inspector, path)).info
        except FileProblem:
            refused += 1
        else:
            assert info is not None
            assert 1 <= (info.frames_announced or 0) <= 10_000_000
    assert refused > 0


async def test_an_attribute_of_half_a_gigabyte(tmp_path: Path) -> None:
    """It doesn't fit into the child's memory, and nobody needs it: the rest is told."""
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset(DATA, (1, 5, 5), "u2", chunks=(1, 5, 5))
        distance = file.create_dataset("entry/instrument/detector/distance", data=0.1)
        distance.attrs.create("units", np.zeros(1 << 26, "S8"))
    modest = Inspector(memory=400 << 20)
    info = (await look(modest, path)).info
    await modest.close()
    assert info is not None
    assert info.metadata["detector_distance"].value == 0.1


async def test_the_child_answers_as_the_functions_do(inspector: Inspector, recorded: Path) -> None:
    folder, data = recorded.parent, recorded.with_name("x_data_000002.h5")
    assert await look(inspector, recorded) == Contents(inspect_master(recorded, folder), None)
    assert await look(inspector, data) == Contents(None, inspect_data_file(data, folder).frames)


async def test_the_child_refuses_as_the_functions_do(
    inspector: Inspector, tmp_path: Path, outside: Path, recorded: Path
) -> None:
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        virtual_open_ended(file, outside)
    with pytest.raises(HostileFile, match="only files in its own folder may"):
        await look(inspector, path)
    path.write_text("no")
    with pytest.raises(UnreadableFile, match="not an HDF5 file"):
        await look(inspector, path)
    with pytest.raises(FileNotFoundError):
        await look(inspector, tmp_path / "none_master.h5")
    assert (await look(inspector, recorded)).info == inspect_master(recorded, recorded.parent)
    assert untouched(outside)


async def test_a_file_that_takes_too_long(recorded: Path) -> None:
    impatient = Inspector(seconds=1e-6)
    with pytest.raises(UnreadableFile, match="took more than"):
        await look(impatient, recorded)
    await impatient.close()


async def test_the_start_of_a_child_is_not_a_files_time(
    tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes long on a busy machine."""
    expected, gate = inspect_master(recorded, recorded.parent), tmp_path / "gate"
    monkeypatch.setattr(sys, "executable", str(waiting_python(tmp_path / "python", gate)))
    inspector = Inspector(seconds=3)
    looking = asyncio.create_task(look(inspector, recorded))
    await asyncio.wait({looking}, timeout=3.5)
    assert not looking.done()
    gate.write_text("begin\n")
    assert (await looking).info == expected
    await inspector.close()


def too_large(path: Path) -> None:
    """A name of 200 MiB."""
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", (1, 5, 5), "u2", chunks=(1, 5, 5))
        name = {"compression": hdf5plugin.Bitshuffle(), "chunks": (2**22,)}
        file.create_dataset("entry/sample/transformations/omega", (2**25 - 1,), "f8", **name)


async def test_a_file_that_takes_too_much_memory(tmp_path: Path) -> None:
    """More than the child may have."""
    path = tmp_path / "x_master.h5"
    too_large(path)
    modest = Inspector(memory=200 << 20)
    with pytest.raises(UnreadableFile, match=r"memory|exhausted"):
        await look(modest, path)
    await modest.close()


async def test_many_files_are_looked_at_with_one_question(
    inspector: Inspector, tmp_path: Path, outside: Path, recorded: Path
) -> None:
    evil, damaged = tmp_path / "evil_master.h5", tmp_path / "damaged_master.h5"
    with h5py.File(evil, "w", libver=LIBVER) as file:
        virtual_open_ended(file, outside)
    damaged.write_text("no")
    data = recorded.with_name("x_data_000002.h5")
    places = [Place("nxmx", path, path.parent) for path in (data, evil, damaged, recorded)]
    first, second, third, last = await inspector.look_at_all(places)
    assert isinstance(second, HostileFile)
    assert "only files in its own folder may" in second.reason
    assert isinstance(third, UnreadableFile)
    assert third.file == "damaged_master.h5"
    assert (first, last) == (await look(inspector, data), await look(inspector, recorded))
    assert await inspector.look_at_all([]) == []


@pytest.mark.parametrize("bound", ["memory", "seconds"])
async def test_none_of_many_suffers_for_another(tmp_path: Path, recorded: Path, bound: str) -> None:
    data, path = recorded.with_name("x_data_000002.h5"), tmp_path / "x_master.h5"
    too_large(path)
    bounded = Inspector(memory=200 << 20) if bound == "memory" else Inspector(seconds=1e-6)
    places = [Place("nxmx", one, one.parent) for one in (data, path)]
    first, second = await bounded.look_at_all(places)
    assert isinstance(second, UnreadableFile)
    assert isinstance(first, UnreadableFile) is (bound == "seconds")  # nothing is quick enough for that
    await bounded.close()


async def test_a_dead_child_is_replaced(inspector: Inspector, recorded: Path) -> None:
    whole = await look(inspector, recorded)
    (child,) = (child.process for child in inspector._all if child.process)
    child.kill()
    assert await look(inspector, recorded) == whole


async def test_frames_come_from_the_child_as_they_are(inspector: Inspector, recorded: Path) -> None:
    here, place = open_dataset(recorded), Place("nxmx", recorded, recorded.parent)
    found = await asyncio.gather(*(inspector.counts(place, index % 6, SHAPE) for index in range(30)))
    for index, counts in enumerate(found):
        assert np.array_equal(counts, here.counts(index % 6))
    mask = await inspector.mask(place, SHAPE)
    assert np.array_equal(mask.bad, here.mask)
    assert mask.saturation == here.saturation
    with pytest.raises(MissingFrameError, match="has frames 1 to 6"):
        await inspector.counts(place, 6, SHAPE)
    with pytest.raises(UnreadableFile, match="another size"):
        await inspector.counts(place, 0, (10, 10))


async def test_a_large_frame_may_be_a_childs_first(inspector: Inspector, tmp_path: Path) -> None:
    large = Detector("large", (1, 1), 0.05, module=(600, 400))
    detector = VirtualDetector(tmp_path, "x", Acquisition(large, 2, distance=0.05), 4, rate=1000)
    detector.run()
    master = detector.master
    place = Place("nxmx", master, master.parent)
    expected = open_dataset(master).counts(1)
    for _ in range(2):
        assert np.array_equal(await inspector.counts(place, 1, large.shape), expected)
        for child in inspector._all:
            if child.process is not None:
                child.process.kill()


def gzip_bomb() -> bytes:
    """600 MiB of zeros."""
    stream = zlib.compressobj(9)
    return b"".join(stream.compress(bytes(1 << 20)) for _ in range(600)) + stream.flush()


async def test_a_frame_that_unpacks_without_end(tmp_path: Path, recorded: Path) -> None:
    """HDF5 makes room for whatever a gzip stream holds, however small the frame is that it is said to be."""
    master = tmp_path / "x_master.h5"
    master.hardlink_to(recorded)
    with h5py.File(tmp_path / "x_data_000001.h5", "w") as file:
        frames = file.create_dataset(DATA, (4, *SHAPE), "u2", chunks=(1, *SHAPE), compression="gzip")
        frames.id.write_direct_chunk((0, 0, 0), gzip_bomb())
        frames[1] = 7
    modest = Inspector(memory=400 << 20)
    place = Place("nxmx", master, tmp_path)
    assert (await modest.look(Place("nxmx", tmp_path / "x_data_000001.h5", tmp_path))).frames == 2
    with pytest.raises(UnreadableFile):
        await modest.counts(place, 0, SHAPE)
    assert (await modest.counts(place, 1, SHAPE) == 7).all()
    await modest.close()


async def test_a_mask_that_unpacks_without_end(tmp_path: Path) -> None:
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, (1, 5, 5), "u2", chunks=(1, 5, 5))[0] = 1
        mask = file.create_dataset(
            "entry/instrument/detector/pixel_mask", (5, 5), "u4", chunks=(5, 5), compression="gzip"
        )
        mask.id.write_direct_chunk((0, 0), gzip_bomb())
    modest = Inspector(memory=400 << 20)
    with pytest.raises(UnreadableFile):
        await modest.mask(Place("nxmx", path, tmp_path), (5, 5))
    await modest.close()


async def test_what_is_slow_to_look_at_keeps_no_frame_waiting(recorded: Path) -> None:
    """Half of the children look at files; the others are left for frames."""
    inspector = Inspector(children=2)
    place = Place("nxmx", recorded, recorded.parent)
    looks = [asyncio.create_task(inspector.look(place)) for _ in range(50)]
    await asyncio.sleep(0)
    await inspector.counts(place, 0, SHAPE)
    assert not all(task.done() for task in looks)
    await asyncio.gather(*looks)
    await inspector.close()
