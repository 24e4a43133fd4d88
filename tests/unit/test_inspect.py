"""Detector files as they should be, damaged ones, and ones built to reach other files."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from beamhub.frames.format import Contents, DataFile, MissingFrameError
from beamhub.frames.inspect import Inspector, Place
from beamhub.frames.nxmx import DATA, inspect_data_file, inspect_master
from beamhub.frames.outside import FileProblem, HostileFile, UnreadableFile
from beamhub.frames.reader import open_dataset
from beamhub.schemas import DatasetKind
from beamhub.simulation.acquisition import Acquisition, Detector, Grid
from beamhub.simulation.detector import VirtualDetector

from tests.unit.reading import waiting_python

# following a link that it should not follow, a test would hang on a pipe that nobody writes to
pytestmark = pytest.mark.timeout(60)

TINY = Detector("tiny", (1, 2), 0.05, module=(80, 40), gap=(4, 6))
SHAPE = (86, 80)
LIBVER = ("v110", "v110")


def record(folder: Path, frames: int = 6, grid: Grid | None = None) -> Path:
    detector = VirtualDetector(folder, "x", Acquisition(TINY, frames, distance=0.05, grid=grid), 4, rate=1000)
    detector.run()
    return detector.master


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def whole(recorded: Path) -> bytes:
    return recorded.read_bytes()


@pytest.fixture
async def inspector() -> AsyncIterator[Inspector]:
    inspector = Inspector()
    yield inspector
    await inspector.close()


def test_master_of_a_rotation(recorded: Path) -> None:
    info = inspect_master(recorded, recorded.parent)
    assert (info.kind, info.frames_announced, info.shape) == (DatasetKind.ROTATION, 6, SHAPE)
    assert info.dtype == "uint16"
    assert info.files == (
        DataFile("x_data_000001.h5", "/entry/data/data", 0, 4),
        DataFile("x_data_000002.h5", "/entry/data/data", 4, 2),
    )
    told = {name: (quantity.value, quantity.unit) for name, quantity in info.metadata.items()}
    assert told["wavelength"] == (12.398419843 / 12.4, "angstrom")
    assert told["detector_distance"] == (0.05, "m")
    assert told["beam_center_x"] == (40.8, "pixel")
    assert told["x_pixel_size"] == (7.5e-5, "m")
    assert told["photon_energy"] == (12400, "eV")
    assert told["omega_start"] == (0, "deg")
    assert told["omega_increment"] == (0.5, "deg")
    assert told["saturation_value"] == (65533, "")
    assert told["threshold_energy"] == (6200, "eV")
    assert told["detector_readout_time"] == (1e-7, "s")
    assert told["source_name"] == ("beamhub simulation", "")
    assert told["description"] == ("DECTRIS tiny (simulated)", "")


def test_master_of_a_grid_scan(tmp_path: Path) -> None:
    master = record(tmp_path, 12, Grid(3, 4))
    info = inspect_master(master, tmp_path)
    assert (info.kind, info.frames_announced) == (DatasetKind.RASTER, 12)
    assert (info.metadata["grid_rows"].value, info.metadata["grid_columns"].value) == (3, 4)


def test_data_files(recorded: Path) -> None:
    first, second = (recorded.with_name(f"x_data_00000{n}.h5") for n in (1, 2))
    folder = recorded.parent
    assert inspect_data_file(first, folder).frames == 4
    info = inspect_data_file(second, folder)
    assert (info.frames, info.shape, info.dtype, info.first) == (2, SHAPE, "uint16", 4)


def test_frames_are_counted_up_to_the_first_hole(tmp_path: Path) -> None:
    path = tmp_path / "x_data_000001.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        data = file.create_dataset("entry/data/data", (10, 5, 7), "u4", chunks=(1, 5, 7))
        for index in (0, 1, 2, 5):
            data[index] = 1
    assert inspect_data_file(path, tmp_path).frames == 3


def test_master_with_links_only(tmp_path: Path) -> None:
    """As SIMPLON 1.6 wrote them: no virtual dataset, no word on how many frames a file holds."""
    with h5py.File(tmp_path / "x_master.h5", "w") as file:
        specific = file.create_group("entry/instrument/detector/detectorSpecific")
        for name, number in {
            "nimages": 100,
            "ntrigger": 3,
            "x_pixels_in_detector": 7,
            "y_pixels_in_detector": 5,
        }.items():
            specific[name] = number
        file["entry/instrument/detector/bit_depth_image"] = 32
        file["entry/instrument/detector/detector_distance"] = 120.0
        file["entry/instrument/detector/detector_distance"].attrs["units"] = "mm"
        for number in (2, 1):
            link = h5py.ExternalLink(f"x_data_00000{number}.h5", "/entry/data/data")
            file[f"entry/data/data_00000{number}"] = link
    info = inspect_master(tmp_path / "x_master.h5", tmp_path)
    assert (info.kind, info.frames_announced, info.shape, info.dtype) == ("still", 300, (5, 7), "uint32")
    assert info.files == (DataFile("x_data_000001.h5", DATA), DataFile("x_data_000002.h5", DATA))
    assert info.metadata["detector_distance"].value == pytest.approx(0.12)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must not be touched: a pipe, on which opening to read would wait for ever."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    os.mkfifo(folder / "secret.h5")
    return folder / "secret.h5"


def untouched(pipe: Path) -> bool:
    """Whether nobody has the pipe open for reading at this moment."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def entry(file: h5py.File) -> h5py.Group:
    return file.require_group("entry/data")


def absolute_link(file: h5py.File, pipe: Path) -> None:
    entry(file)["data_000001"] = h5py.ExternalLink(str(pipe), "/entry/data/data")


def climbing_link(file: h5py.File, pipe: Path) -> None:
    entry(file)["data_000001"] = h5py.ExternalLink("../elsewhere/secret.h5", "/entry/data/data")


def climbing_link_in_the_middle(file: h5py.File, pipe: Path) -> None:
    entry(file)["data_000001"] = h5py.ExternalLink("sub/../../elsewhere/secret.h5", "/d")


def link_deep_inside(file: h5py.File, pipe: Path) -> None:
    file.require_group("a/b/c/d")["e"] = h5py.ExternalLink(str(pipe), "/")


def link_in_place_of_the_entry(file: h5py.File, pipe: Path) -> None:
    file["entry"] = h5py.ExternalLink(str(pipe), "/entry")


def link_with_a_control_character(file: h5py.File, pipe: Path) -> None:
    entry(file)["data_000001"] = h5py.ExternalLink("a\nb.h5", "/d")


def link_by_pattern(file: h5py.File, pipe: Path) -> None:
    layout = h5py.VirtualLayout((4, 5, 5), "u2", maxshape=(None, 5, 5))
    endless = slice(0, h5py.h5s.UNLIMITED, 1)
    layout[endless, :, :] = h5py.VirtualSource("x_%b.h5", "d", (1, 5, 5))
    entry(file).create_virtual_dataset("data", layout)


def virtual(file: h5py.File, pipe: Path) -> None:
    layout = h5py.VirtualLayout((4, 5, 5), "u2")
    layout[0:4] = h5py.VirtualSource(str(pipe), "d", (4, 5, 5))
    entry(file).create_virtual_dataset("data", layout)


def virtual_climbing(file: h5py.File, pipe: Path) -> None:
    layout = h5py.VirtualLayout((4, 5, 5), "u2")
    layout[0:4] = h5py.VirtualSource("../elsewhere/secret.h5", "d", (4, 5, 5))
    entry(file).create_virtual_dataset("data", layout)


def virtual_open_ended(file: h5py.File, pipe: Path) -> None:
    """Merely asking for the shape of this one opens its source."""
    layout = h5py.VirtualLayout((4, 5, 5), "u2", maxshape=(None, 5, 5))
    source = h5py.VirtualSource(str(pipe), "d", (4, 5, 5), maxshape=(None, 5, 5))
    endless = slice(0, h5py.h5s.UNLIMITED, 1)
    layout[endless, :, :] = source[endless, :, :]
    entry(file).create_virtual_dataset("data", layout)


def virtual_elsewhere_in_the_file(file: h5py.File, pipe: Path) -> None:
    layout = h5py.VirtualLayout((1,), "u4")
    layout[0:1] = h5py.VirtualSource(str(pipe), "d", (1,))
    file.require_group("entry/instrument/detector/detectorSpecific").create_virtual_dataset("nimages", layout)


def soft_link_to_a_link(file: h5py.File, pipe: Path) -> None:
    """In two steps, one of them inside the file."""
    file["away"] = h5py.ExternalLink(str(pipe), "/entry/data/data")
    entry(file)["data_000001"] = h5py.SoftLink("/away")


def virtual_over_its_own_link(file: h5py.File, pipe: Path) -> None:
    """The virtual dataset names the file itself, where a link leads out."""
    entry(file)["data_000001"] = h5py.ExternalLink("../elsewhere/secret.h5", "d")
    layout = h5py.VirtualLayout((4, 5, 5), "u2")
    layout[0:4] = h5py.VirtualSource(".", "/entry/data/data_000001", (4, 5, 5))
    entry(file).create_virtual_dataset("data", layout)


def mask_in_another_file(file: h5py.File, pipe: Path) -> None:
    entry(file).create_dataset("data", (4, 5, 5), "u2", chunks=(1, 5, 5))
    layout = h5py.VirtualLayout((5, 5), "u4")
    layout[:] = h5py.VirtualSource(str(pipe), "d", (5, 5))
    file.create_group("entry/instrument/detector").create_virtual_dataset("pixel_mask", layout)


def text_in_another_file(file: h5py.File, pipe: Path) -> None:
    """What would be shown as the sample's name."""
    entry(file).create_dataset("data", (4, 5, 5), "u2", chunks=(1, 5, 5))
    file.create_group("entry/sample").create_dataset("name", (1,), "S40", external=[(str(pipe), 0, 40)])


def raw_storage(file: h5py.File, pipe: Path) -> None:
    entry(file).create_dataset("data", (4, 5, 5), "u2", external=[(str(pipe), 0, 200)])


def raw_storage_relative(file: h5py.File, pipe: Path) -> None:
    entry(file).create_dataset("text", (4,), "u1", external=[("../elsewhere/secret.h5", 0, 4)])


HOSTILE = [
    absolute_link,
    climbing_link,
    climbing_link_in_the_middle,
    link_deep_inside,
    link_in_place_of_the_entry,
    link_with_a_control_character,
    link_by_pattern,
    virtual,
    virtual_climbing,
    virtual_open_ended,
    virtual_elsewhere_in_the_file,
    soft_link_to_a_link,
    virtual_over_its_own_link,
    mask_in_another_file,
    text_in_another_file,
    raw_storage,
    raw_storage_relative,
]


@pytest.mark.parametrize("build", HOSTILE, ids=lambda build: build.__name__)
def test_nothing_outside_is_touched(
    build: Callable[[h5py.File, Path], None], tmp_path: Path, outside: Path
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    path = folder / "x_master.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        build(file, outside)
    with pytest.raises(HostileFile) as master:
        inspect_master(path, folder)
    with pytest.raises(HostileFile):
        inspect_data_file(path, folder)
    assert master.value.file == "x_master.h5"
    assert master.value.reason.startswith(("it ", "a dataset "))
    assert untouched(outside)


def test_a_data_file_must_hold_its_frames_itself(tmp_path: Path) -> None:
    """Links inside the folder are allowed in a file, but frames are not fetched through them."""
    with h5py.File(tmp_path / "inner.h5", "w") as file:
        file.create_dataset("entry/data/data", (2, 5, 5), "u2", chunks=(1, 5, 5))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        entry(file)["data"] = h5py.ExternalLink("inner.h5", "/entry/data/data")
    with pytest.raises(UnreadableFile, match="only a link"):
        inspect_data_file(tmp_path / "link.h5", tmp_path)
    with h5py.File(tmp_path / "virtual.h5", "w", libver=LIBVER) as file:
        layout = h5py.VirtualLayout((2, 5, 5), "u2")
        layout[:] = h5py.VirtualSource("inner.h5", "/entry/data/data", (2, 5, 5))
        entry(file).create_virtual_dataset("data", layout)
    with pytest.raises(UnreadableFile, match="virtual"):
        inspect_data_file(tmp_path / "virtual.h5", tmp_path)


def test_links_that_go_round_in_circles(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        entry(file)["data"] = h5py.SoftLink("/entry/data/other")
        entry(file)["other"] = h5py.SoftLink("/entry/data/data")
        file["entry/self"] = file["/"]
    with pytest.raises(HostileFile, match="circle"):
        inspect_data_file(path, tmp_path)


@pytest.mark.parametrize(
    ("frames", "shape"), [(2**40, (512, 512)), (10, (2**20, 2**20)), (10, (60_000, 60_000))]
)
def test_absurd_claims(tmp_path: Path, frames: int, shape: tuple[int, int]) -> None:
    path = tmp_path / "x_data_000001.h5"
    with h5py.File(path, "w") as file:
        chunk = (1, min(shape[0], 1024), min(shape[1], 1024))
        file.create_dataset("entry/data/data", (frames, *shape), "u2", chunks=chunk)
    for inspect in (inspect_master, inspect_data_file):
        with pytest.raises(HostileFile, match="claims"):
            inspect(path, tmp_path)


def test_compressed_bomb(tmp_path: Path) -> None:
    """Sixteen gigabytes of zeros where a wavelength should be, in a file of a few kilobytes."""
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data/data", (1, 5, 5), "u2", chunks=(1, 5, 5))
        beam = file.create_group("entry/instrument/beam")
        beam.create_dataset("incident_wavelength", (2**31,), "f8", chunks=(2**20,), compression="gzip")
    with pytest.raises(HostileFile, match="claims 17179869184 bytes"):
        inspect_master(path, tmp_path)


@pytest.mark.parametrize(("images", "triggers"), [(2**63, 1), (2**32, 2**31), (10**7, 2)])
def test_numbers_of_frames_that_nobody_takes(tmp_path: Path, images: int, triggers: int) -> None:
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w") as file:
        specific = file.create_group("entry/instrument/detector/detectorSpecific")
        specific["nimages"], specific["ntrigger"] = np.uint64(images), np.uint64(triggers)
        specific["x_pixels_in_detector"] = specific["y_pixels_in_detector"] = 5
        entry(file)["data_000001"] = h5py.ExternalLink("x_data_000001.h5", DATA)
    with pytest.raises(HostileFile, match="claims"):
        inspect_master(path, tmp_path)


def test_a_maze_of_groups(tmp_path: Path) -> None:
    """Deeper than any recursion, each group holding the way back."""
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w", libver="latest") as file:
        here = file["/"]
        for _ in range(2000):
            here["back"] = file["/"]
            here = here.create_group("on")
        here["out"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(HostileFile, match="only files in its own folder"):
        inspect_master(path, tmp_path)


def test_more_sources_than_any_acquisition_has(tmp_path: Path) -> None:
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        layout = h5py.VirtualLayout((20_001, 1, 1), "u2")
        for number in range(20_001):
            layout[number] = h5py.VirtualSource(f"{number}.h5", "d", (1, 1))
        entry(file).create_virtual_dataset("data", layout)
    with pytest.raises(HostileFile, match="more than 20000 data files"):
        inspect_master(path, tmp_path)


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


@pytest.mark.parametrize("axis", ["phi", "chi", "kappa"])
def test_a_sample_may_turn_about_any_axis(tmp_path: Path, axis: str) -> None:
    path = tmp_path / "x_master.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, (3, 5, 5), "u2", chunks=(1, 5, 5))
        file["entry/sample/goniometer/omega"] = [90.0, 90.0, 90.0]
        file[f"entry/sample/goniometer/{axis}"] = np.radians([10, 10.5, 11])
        file[f"entry/sample/goniometer/{axis}"].attrs["units"] = "rad"
    info = inspect_master(path, tmp_path)
    told = {name: quantity.value for name, quantity in info.metadata.items()}
    assert info.kind is DatasetKind.ROTATION
    assert told["omega_start"] == 90
    assert told[f"{axis}_start"] == pytest.approx(10)
    assert told[f"{axis}_increment"] == pytest.approx(0.5)
    assert info.metadata[f"{axis}_start"].unit == "deg"


def test_symbolic_links_and_special_files(tmp_path: Path, recorded: Path, outside: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a_master.h5").symlink_to(recorded)
    (folder / "b_master.h5").symlink_to(outside)
    os.mkfifo(folder / "c_master.h5")
    for name in ("a_master.h5", "b_master.h5", "c_master.h5"):
        with pytest.raises(HostileFile, match=r"leads out|not a regular file"):
            inspect_master(folder / name, folder)
    assert untouched(outside)


@pytest.mark.parametrize("kept", [0, 5, 100, 3000, 0.5, 0.99])
def test_truncated(tmp_path: Path, recorded: Path, kept: float) -> None:
    whole = recorded.with_name("x_data_000001.h5").read_bytes()
    path = tmp_path / "x_data_000001.h5"
    path.write_bytes(whole[: int(kept if kept > 1 or kept == 0 else kept * len(whole))])
    with pytest.raises(UnreadableFile, match=r"truncated|not an HDF5 file"):
        inspect_data_file(path, tmp_path)


def test_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "x_master.h5"
    path.write_text("root:x:0:0:root:/root:/bin/bash\n" * 100)
    with pytest.raises(UnreadableFile, match="not an HDF5 file"):
        inspect_master(path, tmp_path)


async def look(inspector: Inspector, path: Path) -> Contents:
    return await inspector.look(Place("nxmx", path, path.parent))


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


@pytest.mark.parametrize("what", ["group", "numbers", "contiguous", "flat", "floats", "blocks"])
def test_other_files(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        match what:
            case "group":
                file.create_group("entry/data/data")
            case "numbers":
                file["values"] = [1, 2, 3]
            case "contiguous":
                file["entry/data/data"] = np.zeros((2, 5, 5), "u2")
            case "flat":
                file.create_dataset("entry/data/data", data=np.zeros((5, 5), "u2"), chunks=(5, 5))
            case "floats":
                file.create_dataset("entry/data/data", data=np.zeros((2, 5, 5)), chunks=(1, 5, 5))
            case "blocks":
                file.create_dataset("entry/data/data", data=np.zeros((2, 5, 5), "u2"), chunks=(2, 5, 5))
    with pytest.raises(UnreadableFile):
        inspect_data_file(path, tmp_path)


# --- the child process --------------------------------------------------------------------------------


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
