"""What a detector file says about itself, read without following it anywhere.

`inspect_master` and `inspect_data_file` do the looking; `Inspector` runs them in a child process whose memory
and time are bounded, because a file from outside may be built to exhaust or crash its reader.

Formats: NXmx (NeXus application definition) and DECTRIS EIGER filewriter 1.6 and 1.8 masters.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from h5py import h5d
from pydantic import TypeAdapter

from beamhub.frames import hdf5
from beamhub.frames.hdf5 import Elsewhere, HostileFile, UnreadableFile
from beamhub.schemas import DatasetKind, Quantity

MAX_FRAMES = 10_000_000
MAX_PIXELS = 1 << 28
MAX_FILES = 20_000
DATA = "/entry/data/data"
INSTRUMENT, SAMPLE = "/entry/instrument", "/entry/sample"
DETECTOR = f"{INSTRUMENT}/detector"
SPECIFIC = f"{DETECTOR}/detectorSpecific"


@dataclass(frozen=True)
class DataFile:
    """One data file of a dataset, as the master names it.

    `name` is relative to the master's folder, `link` the dataset's path inside the data file. `first` is the
    number (from 0) of its first frame and `frames` how many it will hold; None where only the file can tell.
    """

    name: str
    link: str = DATA
    first: int | None = None
    frames: int | None = None


@dataclass(frozen=True)
class MasterInfo:
    """What a master file announces. `shape` is (rows, columns); `metadata` carries NeXus names with units."""

    kind: DatasetKind
    frames_announced: int
    shape: tuple[int, int]
    dtype: str
    files: tuple[DataFile, ...]
    metadata: dict[str, Quantity]


@dataclass(frozen=True)
class DataFileInfo:
    """What a data file holds: `frames` that are really stored (from its beginning, without holes).

    `first` is the number (from 0) of its first frame in the dataset, where the file tells.
    """

    frames: int
    shape: tuple[int, int]
    dtype: str
    first: int | None


# name: (unit, where it may be found); the first that is there counts
_METADATA: dict[str, tuple[str, tuple[str, ...]]] = {
    "wavelength": (
        "angstrom",
        (f"{INSTRUMENT}/beam/incident_wavelength", f"{SAMPLE}/beam/incident_wavelength"),
    ),
    "photon_energy": ("eV", (f"{SPECIFIC}/photon_energy", f"{INSTRUMENT}/beam/incident_energy")),
    "detector_distance": ("m", (f"{DETECTOR}/detector_distance", f"{DETECTOR}/distance")),
    "beam_center_x": ("pixel", (f"{DETECTOR}/beam_center_x",)),
    "beam_center_y": ("pixel", (f"{DETECTOR}/beam_center_y",)),
    "x_pixel_size": ("m", (f"{DETECTOR}/x_pixel_size",)),
    "y_pixel_size": ("m", (f"{DETECTOR}/y_pixel_size",)),
    "sensor_thickness": ("m", (f"{DETECTOR}/sensor_thickness",)),
    "sensor_material": ("", (f"{DETECTOR}/sensor_material",)),
    "count_time": ("s", (f"{DETECTOR}/count_time",)),
    "frame_time": ("s", (f"{DETECTOR}/frame_time",)),
    "description": ("", (f"{DETECTOR}/description",)),
    "saturation_value": (
        "",
        (
            f"{DETECTOR}/saturation_value",
            f"{SPECIFIC}/saturation_value",
            f"{SPECIFIC}/countrate_correction_count_cutoff",
        ),
    ),
    "bit_depth_image": ("", (f"{DETECTOR}/bit_depth_image",)),
    "sample_name": ("", (f"{SAMPLE}/name",)),
}
_OMEGA = (f"{SAMPLE}/transformations/omega", f"{SAMPLE}/goniometer/omega")
_GRID = (f"{SAMPLE}/transformations/grid_y", f"{SAMPLE}/transformations/grid_x")  # rows, columns
_FACTORS = {
    ("mm", "m"): 1e-3,
    ("um", "m"): 1e-6,
    ("µm", "m"): 1e-6,
    ("nm", "angstrom"): 10.0,
    ("keV", "eV"): 1e3,
    ("ms", "s"): 1e-3,
    ("us", "s"): 1e-6,
    ("rad", "deg"): 180 / math.pi,
}


def inspect_master(path: Path, root: Path) -> MasterInfo:
    """Read what a master file announces.

    Args:
        path: the master file.
        root: the folder that neither the file nor anything it names may leave.

    Raises:
        HostileFile: it points out of its folder, or makes absurd claims.
        UnreadableFile: it is damaged or not a master file.
    """
    name = path.name
    with hdf5.opened(path, root) as file:
        sizes = _sizes(file, name)
        if sizes is None:
            raise UnreadableFile(
                name, "it is not a detector's master file: it tells no number or size of frames"
            )
        frames, shape, dtype = sizes
        metadata = _metadata(file, name)
        kind, positions = _scan(file, name, frames)
        return MasterInfo(kind, frames, shape, dtype, _files(file, name, frames), metadata | positions)


def inspect_data_file(path: Path, root: Path, link: str = DATA) -> DataFileInfo:
    """Read what a data file holds. `link` is the dataset's path inside it, as the master has it.

    Raises:
        HostileFile: it points out of its folder or its frames don't lie in the file itself.
        UnreadableFile: it is damaged or holds no frames.
    """
    name = path.name
    with hdf5.opened(path, root) as file:
        dataset = frames_of(file, name, link)
        low = h5py.Dataset(dataset).attrs.get("image_nr_low")
        shape, dtype = _checked(dataset, name)
        first = int(low) - 1 if low is not None and 1 <= int(low) <= MAX_FRAMES else None
        return DataFileInfo(len(chunk_table(dataset)), (shape[1], shape[2]), dtype, first)


def frames_of(file: h5py.File, name: str, link: str) -> h5d.DatasetID:
    """The dataset at `link` of a data file: chunked, stored in the very file, and reached by no link.

    Raises:
        HostileFile: its values lie elsewhere.
        UnreadableFile: there is no such dataset, or not one of whole frames.
    """
    item = hdf5.find(file, link, name)
    if isinstance(item, Elsewhere):
        raise HostileFile(name, f"its frames are only a link to {item.file!r}")
    if not isinstance(item, h5d.DatasetID):
        raise UnreadableFile(name, f"there are no frames at {link!r}")
    layout = item.get_create_plist()
    if layout.get_layout() == h5d.VIRTUAL:
        raise HostileFile(name, "its frames are a virtual dataset: they lie in other files")
    if layout.get_layout() != h5d.CHUNKED:
        raise UnreadableFile(name, "its frames are not stored one by one (chunked)")
    shape, _ = _checked(item, name)
    if layout.get_chunk() != (1, *shape[1:]):
        raise UnreadableFile(name, "its frames are not stored one frame a chunk")
    return item


def chunk_table(dataset: h5d.DatasetID) -> list[tuple[int, int, int]]:
    """(offset in the file, bytes, filter mask) of each stored frame, from the first one to the first hole."""
    stored: dict[int, tuple[int, int, int]] = {}
    dataset.chunk_iter(
        lambda c: stored.__setitem__(c.chunk_offset[0], (c.byte_offset, c.size, c.filter_mask))
    )
    table: list[tuple[int, int, int]] = []
    while (entry := stored.get(len(table))) is not None:
        table.append(entry)
    return table


def _checked(dataset: h5d.DatasetID, name: str) -> tuple[tuple[int, int, int], str]:
    """Shape and type of a stack of frames, if it is one a detector could have written."""
    shape = tuple(int(n) for n in dataset.get_space().get_simple_extent_dims())
    dtype = dataset.dtype
    if len(shape) != 3 or dtype.kind not in "ui" or dtype.itemsize > 4:
        raise UnreadableFile(name, "it holds no stack of frames of whole numbers")
    _check_size(name, shape[0], (shape[1], shape[2]))
    return (shape[0], shape[1], shape[2]), dtype.name


def _check_size(name: str, frames: int, shape: tuple[int, int]) -> None:
    if (
        not 0 <= frames <= MAX_FRAMES
        or min(shape) < 1
        or max(shape) > 65_535
        or math.prod(shape) > MAX_PIXELS
    ):
        raise HostileFile(name, f"it claims {frames} frames of {shape[0]} × {shape[1]} pixels")


def _sizes(file: h5py.File, name: str) -> tuple[int, tuple[int, int], str] | None:
    """(announced frames, (rows, columns), dtype)."""
    item = hdf5.find(file, DATA, name)
    extent: tuple[int, ...] = ()
    dtype = ""
    if isinstance(item, h5d.DatasetID) and len(item.dtype.shape) == 0 and item.dtype.kind in "ui":
        layout = item.get_create_plist()
        # the extent of a virtual dataset comes from its properties: asking the dataset may open its sources
        virtual = layout.get_layout() == h5d.VIRTUAL
        if not virtual or layout.get_virtual_count():
            space = layout.get_virtual_vspace(0) if virtual else item.get_space()
            extent = tuple(int(n) for n in space.get_simple_extent_dims())
            dtype = item.dtype.name
    images, triggers = (
        _whole(hdf5.value(file, f"{SPECIFIC}/{key}", name)) for key in ("nimages", "ntrigger")
    )
    columns, rows = (
        _whole(hdf5.value(file, f"{SPECIFIC}/{axis}_pixels_in_detector", name)) for axis in ("x", "y")
    )
    frames = images * (triggers or 1) if images else (extent[0] if len(extent) == 3 else 0)
    if len(extent) == 3:
        rows, columns = extent[1], extent[2]
    if not frames or not rows or not columns:
        return None
    if not dtype:
        bits = _whole(hdf5.value(file, f"{DETECTOR}/bit_depth_image", name)) or 32
        dtype = f"uint{bits}" if bits in (8, 16, 32) else "uint32"
    _check_size(name, frames, (rows, columns))
    return frames, (rows, columns), dtype


def _whole(number: Any) -> int | None:
    """A scalar (or array of one) as a positive whole number, else None."""
    if number is None or np.size(number) != 1:
        return None
    item = np.asarray(number).reshape(-1)[0]
    if not np.issubdtype(np.asarray(item).dtype, np.number) or not np.isfinite(item) or item <= 0:
        return None
    return int(item)


def _files(file: h5py.File, name: str, frames: int) -> tuple[DataFile, ...]:
    """The data files in the order of their frames: the virtual sources, else the `data_NNNNNN` links."""
    item = hdf5.find(file, DATA, name)
    if isinstance(item, h5d.DatasetID):
        layout = item.get_create_plist()
        if layout.get_layout() != h5d.VIRTUAL:
            return (DataFile(name, DATA, 0, frames),)  # the frames lie in the master itself
        files = _virtual_files(file, name, layout)
        if files:
            return files
    links: list[DataFile] = []
    group = hdf5.find(file, "/entry/data", name)
    if group is not None and not isinstance(group, Elsewhere | h5d.DatasetID):
        for key in sorted(group):
            target = hdf5.find(file, f"/entry/data/{os.fsdecode(key)}", name)
            if re.fullmatch(rb"data_\d{1,9}", key) and isinstance(target, Elsewhere):
                links.append(DataFile(target.file, target.path))
    if not links:
        raise UnreadableFile(name, "it names no data files")
    if len(links) > MAX_FILES:
        raise HostileFile(name, f"it names more than {MAX_FILES} data files")
    return tuple(links)


def _virtual_files(file: h5py.File, name: str, layout: Any) -> tuple[DataFile, ...]:
    files: dict[int, DataFile] = {}
    if layout.get_virtual_count() > MAX_FILES:
        raise HostileFile(name, f"it names more than {MAX_FILES} data files")
    for index in range(layout.get_virtual_count()):
        low, high = layout.get_virtual_vspace(index).get_select_bounds()
        first, count = int(low[0]), int(high[0]) - int(low[0]) + 1
        source, link = layout.get_virtual_filename(index), layout.get_virtual_dsetname(index)
        if source == ".":  # a virtual dataset over the master's own links
            target = hdf5.find(file, link, name)
            if not isinstance(target, Elsewhere):
                raise UnreadableFile(
                    name, f"its virtual dataset takes frames from {link[:200]!r}, which has none"
                )
            source, link = target.file, target.path
        if not 0 <= first < MAX_FRAMES or not 1 <= count <= MAX_FRAMES:
            raise HostileFile(name, "its virtual dataset claims an endless number of frames")
        files[first] = DataFile(hdf5.confined_name(name, source), link, first, count)
    return tuple(files[first] for first in sorted(files))


def _metadata(file: h5py.File, name: str) -> dict[str, Quantity]:
    found: dict[str, Quantity] = {}
    for key, (unit, places) in _METADATA.items():
        for place in places:
            quantity = _quantity(hdf5.value(file, place, name), hdf5.unit(file, place, name), unit)
            if quantity is not None:
                found[key] = quantity
                break
    return found


def _quantity(number: Any, has: str, wanted: str) -> Quantity | None:
    """A scalar with its unit converted to `wanted`; None if it is no scalar or not finite."""
    if number is None or np.size(number) != 1:
        return None
    item = np.asarray(number).reshape(-1)[0]
    if isinstance(item, np.integer | np.floating):
        factor = _FACTORS.get((has, wanted), 1)
        # a float32 0.13 shall not become 0.12999999523
        exact = float(str(item)) if isinstance(item, np.floating) else item.item()
        plain = exact * factor if factor != 1 else exact
        return Quantity(value=plain, unit=wanted) if math.isfinite(plain) else None
    text = item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
    text = "".join(c if c.isprintable() else " " for c in text[:200]).strip()
    return Quantity(value=text) if text and not wanted else None


def _scan(file: h5py.File, name: str, frames: int) -> tuple[DatasetKind, dict[str, Quantity]]:
    """What moved: the sample through the beam (raster), its rotation (rotation), or nothing (still)."""
    rows, columns = (_distinct(hdf5.value(file, place, name), frames) for place in _GRID)
    if rows * columns == frames and frames > 1:
        return DatasetKind.RASTER, {
            "grid_rows": Quantity(value=rows),
            "grid_columns": Quantity(value=columns),
        }
    for place in _OMEGA:
        omega = hdf5.value(file, place, name)
        if omega is None or np.asarray(omega).dtype.kind not in "fiu" or np.size(omega) == 0:
            continue
        angles = np.asarray(omega, float).reshape(-1)
        angles = angles * _FACTORS.get((hdf5.unit(file, place, name), "deg"), 1)
        increment = float(angles[1] - angles[0]) if len(angles) > 1 else 0.0
        if not (math.isfinite(angles[0]) and math.isfinite(increment)):
            continue
        found = {
            "omega_start": Quantity(value=float(angles[0]), unit="deg"),
            "omega_increment": Quantity(value=round(increment, 9), unit="deg"),
        }
        return (DatasetKind.ROTATION if increment else DatasetKind.STILL), found
    return DatasetKind.STILL, {}


def _distinct(positions: Any, frames: int) -> int:
    """How many different positions an axis took, 0 if it has not one position per frame."""
    if positions is None or np.size(positions) != frames or np.asarray(positions).dtype.kind not in "fiu":
        return 0
    return len(np.unique(np.round(np.asarray(positions, float), 9)))


# --- the bounded child process ----------------------------------------------------------------------

_MASTER, _DATA_FILE = TypeAdapter(MasterInfo), TypeAdapter(DataFileInfo)
_PROBLEM = TypeAdapter(dict[str, str])
Info = TypeVar("Info")


class Inspector:
    """Looks at files in a child process with bounded memory, CPU time and wall-clock time.

    The child lives on between files (starting it costs half a second) and is replaced when a file has
    crashed it or run it out of its bounds; that file is then unreadable. One file at a time.

    Args:
        memory: address space of the child, bytes.
        seconds: CPU time and wall-clock time for one file.
    """

    def __init__(self, memory: int = 2 << 30, seconds: float = 20.0) -> None:
        self._memory = memory
        self._seconds = seconds
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def master(self, path: Path, root: Path) -> MasterInfo:
        """`inspect_master` in the child. Raises what that raises."""
        return await self._ask(_MASTER, "master", path, root, DATA)

    async def data_file(self, path: Path, root: Path, link: str = DATA) -> DataFileInfo:
        """`inspect_data_file` in the child. Raises what that raises."""
        return await self._ask(_DATA_FILE, "data_file", path, root, link)

    async def close(self) -> None:
        """End the child. The next question would start another."""
        async with self._turn:
            await self._end()

    async def _ask(self, answers: TypeAdapter[Info], what: str, path: Path, root: Path, link: str) -> Info:
        question = {"what": what, "path": os.fspath(path), "root": os.fspath(root), "link": link}
        async with self._turn:
            line = await self._answer(path.name, json.dumps(question).encode() + b"\n")
        kind, _, rest = line.partition(b" ")
        try:  # whoever has taken over the child may answer anything
            if kind == b"ok":
                return answers.validate_json(rest)
            problem = _PROBLEM.validate_json(rest)
        except ValueError as error:
            raise UnreadableFile(path.name, "its reader gave a senseless answer") from error
        if kind == b"missing":
            raise FileNotFoundError(problem["reason"])
        raise (HostileFile if kind == b"hostile" else UnreadableFile)(problem["file"], problem["reason"])

    async def _answer(self, name: str, question: bytes) -> bytes:
        """The child's answer about a file; a child that can't give one is ended."""
        tried_before = self._child is not None
        try:
            async with asyncio.timeout(self._seconds):
                line = await self._exchange(question)
                if not line and tried_before:  # it may have died of something else in the meantime
                    await self._end()
                    line = await self._exchange(question)
        except TimeoutError as error:
            await self._end()
            raise UnreadableFile(name, f"looking at it took more than {self._seconds:g} s") from error
        except asyncio.CancelledError:
            await self._end()  # its answer would be taken for the next question's
            raise
        if not line:
            await self._end()
            raise UnreadableFile(name, "looking at it exhausted or crashed its reader")
        return line

    async def _exchange(self, question: bytes) -> bytes:
        """The child's answer, b"" if it died over the question."""
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                "beamhub.frames.inspect",
                str(self._memory),
                str(math.ceil(self._seconds)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
                # nothing of the service's environment; no filter plugins from elsewhere; no threads' arenas
                env={"OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::", "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        child = self._child
        if child.stdin is None or child.stdout is None:
            return b""
        try:
            child.stdin.write(question)
            await child.stdin.drain()
            line = await child.stdout.readline()
        except (BrokenPipeError, ConnectionResetError, ValueError):  # ValueError: an endless line
            return b""
        return line if line.endswith(b"\n") else b""

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            child.kill()
        await child.wait()
        if child.stdin is not None:
            child.stdin.close()


def _serve(memory: int, seconds: int) -> None:
    """The child: one question a line on stdin, one answer a line on stdout, until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for line in sys.stdin.buffer:
        question = json.loads(line)
        path, root = Path(question["path"]), Path(question["root"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = math.ceil(used.ru_utime + used.ru_stime)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds + 1, resource.RLIM_INFINITY))
        try:
            if question["what"] == "master":
                answer = b"ok " + _MASTER.dump_json(inspect_master(path, root))
            else:
                answer = b"ok " + _DATA_FILE.dump_json(inspect_data_file(path, root, question["link"]))
        except HostileFile as problem:
            answer = _problem("hostile", problem.file, problem.reason)
        except UnreadableFile as problem:
            answer = _problem("unreadable", problem.file, problem.reason)
        except FileNotFoundError:
            answer = _problem("missing", path.name, f"there is no file {path.name}")
        except MemoryError:
            answer = _problem("unreadable", path.name, "reading it needs more memory than is allowed")
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _problem(kind: str, file: str, reason: str) -> bytes:
    return f"{kind} ".encode() + json.dumps({"file": file, "reason": reason}).encode()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
