"""Series of CBF and TIFF files: as a PILATUS writes them, incomplete, and built to mislead."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import fabio.cbfimage
import fabio.tifimage
import numpy as np
import pytest
from beamhub.frames import formats
from beamhub.frames.format import MissingFrameError, Part
from beamhub.frames.formats.series import Cbf, Tiff
from beamhub.frames.inspect import Inspector, Place
from beamhub.frames.outside import FileProblem, HostileFile, UnreadableFile
from beamhub.frames.reader import open_dataset
from beamhub.schemas import DatasetKind
from beamhub.simulation.acquisition import Acquisition, Detector, Grid
from beamhub.simulation.detector import VirtualPilatus
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

TINY = Detector("PILATUS3 tiny", (2, 2), 0.1, module=(40, 30), gap=(7, 17), pixel=172e-6)
SHAPE = (77, 87)
SCAN = Acquisition(TINY, 5, distance=0.1, width=0.2, start=10, exposure=0.05, dtype="uint32")


def record(folder: Path, scan: Acquisition = SCAN) -> VirtualPilatus:
    detector = VirtualPilatus(folder, "x", scan, rate=1000)
    detector.run()
    return detector


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> VirtualPilatus:
    return record(tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def one(series: VirtualPilatus) -> bytes:
    return series.frame_file(1).read_bytes()


@pytest.fixture
async def inspector() -> AsyncIterator[Inspector]:
    inspector = Inspector(children=1)
    yield inspector
    await inspector.close()


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("raw/a/lyso_00017.cbf", Part("cbf", "raw/a/lyso_#####.cbf", 17)),
        ("raw/lyso_1_0001.cbf", Part("cbf", "raw/lyso_1_####.cbf", 1)),
        ("raw/lyso_00000.tif", Part("tiff", "raw/lyso_#####.tif", 0)),
        ("raw/lyso_00003.tiff", Part("tiff", "raw/lyso_#####.tiff", 3)),
        ("raw/a#b_001.cbf", Part("cbf", "raw/a#b_###.cbf", 1)),
        ("raw/x_master.h5", Part("nxmx", "raw/x_master.h5")),
        ("raw/x_data_000001.h5", Part("nxmx", None)),
        ("raw/x.nxs", Part("nxmx", "raw/x.nxs")),
        ("raw/scan_0001.h5", Part("nxmx", None)),
        ("raw/.nxs", None),
        ("raw/x.NXS", None),
        ("raw/lyso_00001.cbf.gz", None),
        ("raw/lyso_01.cbf", None),
        ("raw/lyso.cbf", None),
        ("raw/_00001.cbf", None),
        ("raw/lyso_#####.cbf", None),
        ("raw/lyso_١٢٣.cbf", None),
        ("raw/notes.txt", None),
        ("raw/00001.cbf", None),
    ],
)
def test_names(name: str, part: Part | None) -> None:
    assert formats.part(PurePosixPath(name)) == part


@given(name=st.from_regex(r"[a-z#_0-9]{1,12}_[0-9]{3,7}\.(cbf|tif|h5)", fullmatch=True))
def test_a_file_of_a_series_leads_to_its_dataset_and_back(name: str) -> None:
    part = formats.part(PurePosixPath(name))
    assert part is not None
    if part.number is not None:
        assert part.dataset is not None
        found = formats.of(PurePosixPath(part.dataset))
        assert found is not None
        assert found.name == part.format
        digits = re.search(r"#+(?=\.)", part.dataset)
        assert digits is not None
        assert name == re.sub(r"#+(?=\.\w+$)", f"{part.number:0{len(digits[0])}}", part.dataset)


def test_the_service_does_not_import_what_reads_and_draws_images() -> None:
    code = "import sys, jupyter_server.serverapp, beamhub.app; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert set(loaded) & {"fabio", "h5py", "numpy", "PIL", "numba", "lark"} == set()


# --- what a PILATUS writes ----------------------------------------------------------------------------------


def test_what_a_header_announces(series: VirtualPilatus) -> None:
    contents = Cbf().look(series.frame_file(3), series.folder)
    info = contents.info
    assert contents.frames == 1
    assert info is not None
    assert (info.kind, info.frames_announced, info.shape, info.dtype) == ("rotation", None, SHAPE, "int32")
    told = {name: (quantity.value, quantity.unit) for name, quantity in info.metadata.items()}
    assert told == {
        "wavelength": (pytest.approx(12.398419843 / 12.4, abs=1e-6), "angstrom"),
        "detector_distance": (0.1, "m"),
        "beam_center_x": (pytest.approx(SCAN.beam_centre[0], abs=0.01), "pixel"),
        "beam_center_y": (pytest.approx(SCAN.beam_centre[1], abs=0.01), "pixel"),
        "x_pixel_size": (172e-6, "m"),
        "y_pixel_size": (172e-6, "m"),
        "sensor_material": ("Si", ""),
        "sensor_thickness": (450e-6, "m"),
        "count_time": (0.05, "s"),
        "frame_time": (0.001, "s"),
        "saturation_value": (1_048_500, ""),
        "threshold_energy": (6200, "eV"),
        "attenuator_transmission": (1, ""),
        "omega_start": (pytest.approx(10.4), "deg"),
        "omega_increment": (0.2, "deg"),
        "description": ("PILATUS3 tiny, S/N 00-0000 (simulated)", ""),
    }


def test_headers_as_instruments_write_them(tmp_path: Path, one: bytes) -> None:
    """In millimetres, of another sensor, with signs and powers of ten; what makes no sense is left out."""
    for old, new in {
        b"# Detector_distance 0.100000 m": b"# Detector_distance 123.4 mm",
        b"# Silicon sensor, thickness 0.000450 m": b"# CdTe sensor, thickness 0.001000 m",
        b"# Start_angle 10.0000 deg.": b"# Start_angle -1.5e1 deg.",
        b"# Count_cutoff 1048500 counts": b"# Count_cutoff = 9e999 counts",
        b"# Filter_transmission 1.0000": b"# Filter_transmission not told\r\n# Flux 2.5e+11",
        b"# Beam_xy (": b"# Beam_xy = (",
    }.items():
        assert old in one
        one = one.replace(old, new)
    (tmp_path / "x_00001.cbf").write_bytes(one)
    info = Cbf().look(tmp_path / "x_00001.cbf", tmp_path).info
    assert info is not None
    told = {name: quantity.value for name, quantity in info.metadata.items()}
    assert told["detector_distance"] == pytest.approx(0.1234)
    assert (told["sensor_material"], told["sensor_thickness"]) == ("CdTe", 0.001)
    assert (told["omega_start"], told["total_flux"]) == (-15, 2.5e11)
    assert told["beam_center_x"] == pytest.approx(SCAN.beam_centre[0], abs=0.01)
    assert "saturation_value" not in told
    assert "attenuator_transmission" not in told


def test_a_scan_that_does_not_turn_is_of_stills(tmp_path: Path) -> None:
    scan = Acquisition(TINY, 2, distance=0.1, grid=Grid(1, 2))
    info = open_dataset(record(tmp_path, scan).dataset).info
    assert info.kind is DatasetKind.STILL


def test_frames_are_those_that_fabio_reads(series: VirtualPilatus) -> None:
    frames = open_dataset(series.dataset)
    assert len(frames) == frames.readable() == frames.files_arrived() == 5
    for index in range(5):
        theirs = fabio.cbfimage.CbfImage().read(str(series.frame_file(index + 1))).data
        ours = frames.counts(index)
        assert np.array_equal(ours, theirs)
        top = np.iinfo(np.int32).max
        assert np.array_equal(frames.frame(index), np.where(theirs < 0, top, theirs))
    assert np.array_equal(frames.mask, SCAN.mask != 0)


def by_fabio(path: Path, image: NDArray[Any]) -> Path:
    kind = fabio.tifimage.TifImage if path.suffix == ".tif" else fabio.cbfimage.CbfImage
    kind(data=image).write(str(path))
    return path


@pytest.mark.parametrize("suffix", ["tif", "cbf"])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32"])
def test_files_of_other_programs(tmp_path: Path, suffix: str, dtype: str) -> None:
    image = np.random.default_rng(2).integers(0, 60_000, (20, 30)).astype(dtype)
    by_fabio(tmp_path / f"a_0001.{suffix}", image)
    frames = open_dataset(tmp_path / f"a_####.{suffix}")
    assert (frames.info.shape, frames.info.dtype, frames.info.kind) == ((20, 30), dtype, "still")
    assert np.array_equal(frames.counts(0), image)


def test_a_tiff_of_a_pilatus_tells_its_geometry(tmp_path: Path) -> None:
    told = "# Pixel_size 172e-6 m x 172e-6 m\r\n# Silicon sensor, thickness 0.000320 m\r\n"
    told += "# Exposure_time 0.5 s\r\n# Count_cutoff 1048574 counts\r\n"
    path = tmp_path / "a_00001.tif"
    tiff(path, np.full((6, 4), 5, np.int32), told)
    info = Tiff().look(path, tmp_path).info
    assert info is not None
    assert info.metadata["y_pixel_size"].value == 172e-6
    assert info.metadata["count_time"].unit == "s"
    assert info.metadata["saturation_value"].value == 1_048_574


def tiff(path: Path, image: NDArray[np.int32], description: str) -> None:
    """One strip, little endian, its directory behind the image."""
    text, data = description.encode() + b"\0", image.tobytes()
    rows, columns = image.shape
    entries = [
        (256, 4, 1, columns),
        (257, 4, 1, rows),
        (258, 3, 1, 32),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (270, 2, len(text), 8 + len(data)),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, rows),
        (279, 4, 1, len(data)),
        (339, 3, 1, 2),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = 8 + len(data) + len(text)
    head = struct.pack("<2sHI", b"II", 42, start)
    path.write_bytes(head + data + text + struct.pack("<H", len(entries)) + directory + bytes(4))


# --- what is there ------------------------------------------------------------------------------------------


@given(numbers=st.sets(st.integers(0, 12), min_size=1))
def test_what_is_there_is_readable_up_to_the_first_hole(
    one: bytes, tmp_path_factory: pytest.TempPathFactory, numbers: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("holes")
    for number in numbers:
        (folder / f"x_{number:05d}.cbf").write_bytes(one)
    (folder / "x_000001.cbf").write_bytes(one)  # another series, by the number of its digits
    (folder / "xx_00001.cbf").write_bytes(one)
    frames = open_dataset(folder / "x_#####.cbf")
    first, last = min(numbers), max(numbers)
    assert frames.first_number == first
    assert frames.begun == (first < 2)
    assert len(frames) == last - first + 1
    assert frames.files_arrived() == len(numbers)
    assert frames.readable() == next(n for n in range(14) if first + n not in numbers)
    for index in range(len(frames)):
        assert frames.has(index) == (first + index in numbers)
    missing = next(n for n in range(14) if first + n not in numbers)
    with pytest.raises(MissingFrameError, match=f"frame {missing + 1} of x_#####.cbf has not arrived"):
        frames.counts(missing)


def test_a_series_of_which_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "x_#####.cbf")


# --- what is not as it says ---------------------------------------------------------------------------------


def header(name: bytes, value: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: re.sub(rb"(?m)^(" + name + rb":? ).*?\r$", rb"\g<1>" + value + b"\r", whole)


LIES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"root:x:0:0:root:/root:/bin/bash\n" * 100,
    "header only": lambda whole: whole[: whole.find(b"\x0c\x1a\x04\xd5")],
    "cut": lambda whole: whole[:-6000],
    "gzip": gzip.compress,
    "endless header": lambda whole: b"###CBF: " + b"# x\r\n" * 100_000 + whole,
    "no size": lambda whole: whole.replace(b"X-Binary-Size:", b"X-Binary-Nothing:"),
    "negative": header(b"X-Binary-Size-Fastest-Dimension", b"-87"),
    "longer": header(b"X-Binary-Size", b"99999999"),
    "more pixels": header(b"X-Binary-Size-Second-Dimension", b"60000"),
    "fewer pixels": header(b"X-Binary-Size-Second-Dimension", b"76"),
    "floats": header(b"X-Binary-Element-Type", b'"32-bit real IEEE"'),
    "64 bits": header(b"X-Binary-Element-Type", b'"signed 64-bit integer"'),
    "packed otherwise": lambda whole: whole.replace(b"x-CBF_BYTE_OFFSET", b"x-CBF_PACKED"),
    "flipped": lambda whole: whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:],
}


async def read(inspector: Inspector, path: Path) -> None:
    """As the service does with the first file of a series."""
    part = formats.part(PurePosixPath(path))
    assert part is not None
    assert part.dataset is not None
    found = await inspector.look(Place(part.format, path, path.parent))
    assert found.info is not None
    dataset = Place(part.format, Path(part.dataset), path.parent)
    assert (await inspector.counts(dataset, 0, found.info.shape)).shape == found.info.shape


@pytest.mark.parametrize("lie", LIES)
async def test_files_that_are_not_what_they_say(
    inspector: Inspector, tmp_path: Path, one: bytes, lie: str
) -> None:
    path = tmp_path / "x_00001.cbf"
    path.write_bytes(LIES[lie](one))
    with pytest.raises(UnreadableFile) as refused:
        await read(inspector, path)
    assert "crashed" not in refused.value.reason


@pytest.mark.parametrize(("rows", "columns"), [(10**9, 87), (70_000, 1), (0, 87), (60_000, 60_000)])
async def test_absurd_sizes(
    inspector: Inspector, tmp_path: Path, one: bytes, rows: int, columns: int
) -> None:
    path = tmp_path / "x_00001.cbf"
    whole = header(b"X-Binary-Size-Second-Dimension", str(rows).encode())(one)
    path.write_bytes(header(b"X-Binary-Size-Fastest-Dimension", str(columns).encode())(whole))
    with pytest.raises(HostileFile, match="claims"):
        await inspector.look(Place("cbf", path, tmp_path))


async def test_a_sparse_file_of_a_terabyte(inspector: Inspector, tmp_path: Path, one: bytes) -> None:
    path = tmp_path / "x_00001.cbf"
    with path.open("wb") as file:
        file.write(one)
        file.truncate(1 << 40)
    with pytest.raises(HostileFile, match="bytes for one frame"):
        await inspector.look(Place("cbf", path, tmp_path))


async def assert_refused_or_sound(
    inspector: Inspector, folder: Path, name: str, whole: bytes, places: Iterable[int], length: int
) -> None:
    """Whatever bytes are changed there: a clear refusal or a sound answer, nothing in between, and no dead
    child."""
    path, rng = folder / name, np.random.default_rng(1)
    refusals = []
    for at in places:
        damaged = bytearray(whole)
        damaged[at : at + length] = rng.bytes(length)
        path.write_bytes(damaged)
        try:
            await read(inspector, path)
        except FileProblem as problem:
            refusals.append(problem.reason)
    assert refusals
    assert not [reason for reason in refusals if "crashed" in reason]


async def test_damaged_anywhere(inspector: Inspector, tmp_path: Path, one: bytes) -> None:
    rng, begin = np.random.default_rng(2), one.find(b"\x0c\x1a\x04\xd5")
    places = [*rng.integers(0, begin, 60), *rng.integers(begin, len(one), 40)]
    await assert_refused_or_sound(inspector, tmp_path, "x_00001.cbf", one, places, 4)


async def test_damaged_tiffs(inspector: Inspector, tmp_path: Path) -> None:
    path = tmp_path / "x_00001.tif"
    tiff(path, np.full((6, 4), 5, np.int32), "# Exposure_time 0.5 s\r\n")
    whole = path.read_bytes()
    await assert_refused_or_sound(inspector, tmp_path, path.name, whole, range(0, len(whole), 2), 2)


def test_links_are_not_followed(tmp_path: Path, one: bytes) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (tmp_path / "secret.cbf").write_bytes(one)
    (folder / "x_00001.cbf").symlink_to(tmp_path / "secret.cbf")
    with pytest.raises(HostileFile, match="leads out"):
        Cbf().look(folder / "x_00001.cbf", folder)
    with pytest.raises(HostileFile, match="leads out"):
        open_dataset(folder / "x_#####.cbf")
