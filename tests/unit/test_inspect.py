"""Looking into detector files: as they should be, damaged ones, and ones built to reach other files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from beamhub.frames.format import DataFile
from beamhub.frames.nxmx import DATA, inspect_data_file, inspect_master
from beamhub.frames.outside import HostileFile, UnreadableFile
from beamhub.schemas import DatasetKind
from beamhub.simulation.acquisition import Grid

from tests.unit.inspecting import (
    LIBVER,
    SHAPE,
    entry,
    outside,
    record,
    recorded,
    untouched,
    virtual_open_ended,
)

__all__ = ["outside", "recorded"]

# following a link that it should not follow, a test would hang on a pipe that nobody writes to
pytestmark = pytest.mark.timeout(60)


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
