"""NXmx (NeXus application definition), and DECTRIS EIGER filewriter 1.6 and 1.8: HDF5.

What the files say: a master announces the dataset and names its data files; these hold the frames. Nothing
that a file links to is followed. `beamhub.frames.nxmx_frames` reads the frames.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 (registers the filters for files that HDF5 itself must decode)
import numpy as np
from h5py import h5d
from numpy.typing import NDArray

from beamhub.frames import hdf5
from beamhub.frames.format import (
    MAX_FILES,
    MAX_FRAMES,
    DataFile,
    DatasetInfo,
    check_size,
    plain_text,
)
from beamhub.frames.hdf5 import Elsewhere
from beamhub.frames.outside import HostileFile, UnreadableFile, confined_name
from beamhub.schemas import DatasetKind, Quantity

DATA = "/entry/data/data"
STACKS = (DATA, "/data")  # in data files: DECTRIS's, and those that Odin writes
INSTRUMENT, SAMPLE = "/entry/instrument", "/entry/sample"
DETECTOR = f"{INSTRUMENT}/detector"
SPECIFIC = f"{DETECTOR}/detectorSpecific"

_BITSHUFFLE, _LZ4 = 32008, 32004  # registered HDF5 filters
_BITSHUFFLE_CODECS = {2: "bslz4", 3: "bszstd"}


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
    "underload_value": ("", (f"{DETECTOR}/underload_value",)),
    "bit_depth_image": ("", (f"{DETECTOR}/bit_depth_image",)),
    "bit_depth_readout": ("", (f"{DETECTOR}/bit_depth_readout",)),
    "detector_readout_time": ("s", (f"{DETECTOR}/detector_readout_time",)),
    "threshold_energy": ("eV", (f"{DETECTOR}/threshold_energy",)),
    "gain_setting": ("", (f"{DETECTOR}/gain_setting",)),
    "detector_number": ("", (f"{DETECTOR}/detector_number", f"{DETECTOR}/serial_number")),
    "total_flux": ("Hz", (f"{INSTRUMENT}/beam/total_flux", f"{SAMPLE}/beam/total_flux")),
    "attenuator_transmission": ("", (f"{INSTRUMENT}/attenuator/attenuator_transmission",)),
    "sample_name": ("", (f"{SAMPLE}/name",)),
    "instrument_name": ("", (f"{INSTRUMENT}/name",)),
    "source_name": ("", ("/entry/source/name",)),
    "start_time": ("", ("/entry/start_time",)),
}
_AXES = ("omega", "phi", "chi", "kappa")  # that a sample may turn about
_ANGLES = (f"{SAMPLE}/transformations", f"{SAMPLE}/goniometer")
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


def inspect_master(path: Path, root: Path) -> DatasetInfo:
    """Read what a master file announces.

    Args:
        path: the master file.
        root: the folder that neither the file nor anything it names may leave.

    Raises:
        HostileFile: it points out of its folder, or makes absurd claims.
        UnreadableFile: it is damaged or not a master file.
    """
    with hdf5.opened(path, root) as file:
        return announced(file, path.name)


def announced(file: h5py.File, name: str, *, written: bool = False) -> DatasetInfo:
    """As `inspect_master`, of a file that is open.

    Args:
        written: it is still written: how many frames there are by now says nothing of how many there will be.
    """
    sizes = _sizes(file, name)
    if sizes is None:
        raise UnreadableFile(name, "it is not a detector's master file: it tells no number or size of frames")
    frames, shape, dtype = sizes
    metadata = _metadata(file, name)
    kind, positions = _scan(file, name, frames)
    total = None if written and _may_grow(file, name) else frames
    return DatasetInfo(kind, total, shape, dtype, _files(file, name, total), metadata | positions)


def _may_grow(file: h5py.File, name: str) -> bool:
    """Whether only the frames that are there by now say how many there will be."""
    stack = hdf5.plain_dataset(file, DATA, name)
    if stack is None or _images(file, name):
        return False
    now, most = (stack.get_space().get_simple_extent_dims(maxdims=maxdims) for maxdims in (False, True))
    return bool(most > now)


def inspect_data_file(path: Path, root: Path, link: str | None = None) -> DataFileInfo:
    """Read what a data file holds. `link` is the dataset's path inside it, where a master tells it.

    Raises:
        HostileFile: it points out of its folder.
        UnreadableFile: it is damaged, holds no frames, or only points to those of its neighbours.
    """
    name = path.name
    with hdf5.opened(path, root) as file:
        dataset = frames_of(file, name, link or stack_of(file, name))
        shape, dtype = _checked(dataset, name)
        return DataFileInfo(len(chunk_table(dataset)), (shape[1], shape[2]), dtype, first_of(dataset))


def stack_of(file: h5py.File, name: str) -> str:
    """Where a data file keeps its frames, if it has any."""
    return next((link for link in STACKS if isinstance(hdf5.find(file, link, name), h5d.DatasetID)), DATA)


def frames_of(file: h5py.File, name: str, link: str) -> h5d.DatasetID:
    """The dataset at `link` of a data file: chunked, stored in the very file, and reached by no link.

    Raises:
        UnreadableFile: there is no such dataset, or not one of whole frames, or they lie in another file of
            its folder.
    """
    item = hdf5.find(file, link, name)
    if isinstance(item, Elsewhere):
        raise UnreadableFile(name, f"its frames are only a link to {item.file!r}")
    if not isinstance(item, h5d.DatasetID):
        raise UnreadableFile(name, f"there are no frames at {link!r}")
    layout = item.get_create_plist()
    if layout.get_layout() == h5d.VIRTUAL:
        raise UnreadableFile(name, "its frames are a virtual dataset: they lie in other files")
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


def codec_of(dataset: h5d.DatasetID) -> str | None:
    """How each frame is packed: "" where it is not, None where only HDF5 can unpack it."""
    layout = dataset.get_create_plist()
    filters = [layout.get_filter(n) for n in range(layout.get_nfilters())]
    if dataset.dtype.newbyteorder("<") != dataset.dtype:
        return None
    if not filters:
        return ""
    (kind, _, settings, *_), *more = filters
    if more:
        return None
    if kind == _BITSHUFFLE and len(settings) > 4:
        return _BITSHUFFLE_CODECS.get(settings[4])
    return "lz4" if kind == _LZ4 else None


def first_of(dataset: h5d.DatasetID) -> int | None:
    """The number (from 0) of a data file's first frame in the dataset, where the file tells."""
    low = h5py.Dataset(dataset).attrs.get("image_nr_low")
    return int(low) - 1 if low is not None and 1 <= int(low) <= MAX_FRAMES else None


def mask_of(file: h5py.File, name: str, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """True where a pixel doesn't count; None where the file does not tell.

    Raises:
        UnreadableFile: it tells of other pixels than the frames'.
    """
    for place in (f"{DETECTOR}/pixel_mask", f"{SPECIFIC}/pixel_mask"):
        found = hdf5.plain_dataset(file, place, name)
        if found is None:
            continue
        if found.shape != shape:
            raise UnreadableFile(name, "its pixel mask has another size than its frames")
        bad: NDArray[np.bool_] = hdf5.value(file, place, name) != 0
        return bad
    return None


def _checked(dataset: h5d.DatasetID, name: str) -> tuple[tuple[int, int, int], str]:
    """Shape and type of a stack of frames, if it is one a detector could have written."""
    shape = tuple(int(n) for n in dataset.get_space().get_simple_extent_dims())
    dtype = dataset.dtype
    if len(shape) != 3 or dtype.kind not in "ui" or dtype.itemsize > 4:
        raise UnreadableFile(name, "it holds no stack of frames of whole numbers")
    check_size(name, shape[0], (shape[1], shape[2]))
    return (shape[0], shape[1], shape[2]), dtype.name


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
            if item.dtype.itemsize > 4:
                raise UnreadableFile(name, f"its frames are of {dtype}; more than 32 bits are not understood")
    columns, rows = (
        _whole(hdf5.value(file, f"{SPECIFIC}/{axis}_pixels_in_detector", name)) for axis in ("x", "y")
    )
    frames = _images(file, name) or (extent[0] if len(extent) == 3 else 0)
    if len(extent) == 3:
        rows, columns = extent[1], extent[2]
    if not frames or not rows or not columns:
        return None
    if not dtype:
        bits = _whole(hdf5.value(file, f"{DETECTOR}/bit_depth_image", name)) or 32
        dtype = f"uint{bits}" if bits in (8, 16, 32) else "uint32"
    check_size(name, frames, (rows, columns))
    return frames, (rows, columns), dtype


def _images(file: h5py.File, name: str) -> int | None:
    """How many frames were asked for, where that is told."""
    images, triggers = (
        _whole(hdf5.value(file, f"{SPECIFIC}/{key}", name)) for key in ("nimages", "ntrigger")
    )
    return images * (triggers or 1) if images else None


def _whole(number: Any) -> int | None:
    """A scalar (or array of one) as a positive whole number, else None."""
    if number is None or np.size(number) != 1:
        return None
    item = np.asarray(number).reshape(-1)[0]
    if not np.issubdtype(np.asarray(item).dtype, np.number) or not np.isfinite(item) or item <= 0:
        return None
    return int(item)


def _files(file: h5py.File, name: str, frames: int | None) -> tuple[DataFile, ...]:
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
        files[first] = DataFile(confined_name(name, source), link, first, count)
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
    text = plain_text(text)
    return Quantity(value=text) if text and not wanted else None


def _scan(file: h5py.File, name: str, frames: int) -> tuple[DatasetKind, dict[str, Quantity]]:
    """What moved: the sample through the beam (raster), its rotation (rotation), or nothing (still)."""
    rows, columns = (_distinct(hdf5.value(file, place, name), frames) for place in _GRID)
    if rows * columns == frames and frames > 1:
        return DatasetKind.RASTER, {
            "grid_rows": Quantity(value=rows),
            "grid_columns": Quantity(value=columns),
        }
    stood: dict[str, Quantity] = {}
    for axis, place in itertools.product(_AXES, _ANGLES):
        angles = _angles(file, f"{place}/{axis}", name)
        if angles is None:
            continue
        increment = float(angles[1] - angles[0]) if len(angles) > 1 else 0.0
        found = {
            f"{axis}_start": Quantity(value=float(angles[0]), unit="deg"),
            f"{axis}_increment": Quantity(value=round(increment, 9), unit="deg"),
        }
        if increment:
            return DatasetKind.ROTATION, stood | found
        stood = found | stood
    return DatasetKind.STILL, stood


def _angles(file: h5py.File, place: str, name: str) -> NDArray[np.float64] | None:
    """The positions of an axis at the beginning of each frame, in degrees; None if they are not told."""
    told = hdf5.value(file, place, name)
    if told is None or np.asarray(told).dtype.kind not in "fiu" or np.size(told) == 0:
        return None
    angles: NDArray[np.float64] = np.asarray(told, float).reshape(-1)
    angles = angles * _FACTORS.get((hdf5.unit(file, place, name), "deg"), 1)
    return angles if np.isfinite(angles[:2]).all() else None


def _distinct(positions: Any, frames: int) -> int:
    """How many different positions an axis took, 0 if it has not one position per frame."""
    if positions is None or np.size(positions) != frames or np.asarray(positions).dtype.kind not in "fiu":
        return 0
    return len(np.unique(np.round(np.asarray(positions, float), 9)))
