"""NXmx (NeXus application definition), and DECTRIS EIGER filewriter 1.6 and 1.8: HDF5.

A master file announces the dataset and names its data files. The place of every frame in its data file is
looked up once; reading a frame is then one `pread` and one decompression, both outside the interpreter's lock
and HDF5's, so that several threads read at once. Nothing that a file links to is followed: the data files are
opened by the names the master gives, inside its own folder, and only frames that lie in the data file itself
are read. Of a file that is still written, `beamhub.frames.growing` knows the places of the frames.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import h5py
import hdf5plugin  # noqa: F401 (registers the filters for files that HDF5 itself must decode)
import numpy as np
from dectris.compression import decompress
from h5py import h5d
from numpy.typing import NDArray

from beamhub.frames import hdf5
from beamhub.frames.format import (
    MAX_FILES,
    MAX_FRAMES,
    DataFile,
    DatasetInfo,
    Frames,
    MissingFrameError,
    check_size,
    plain_text,
)
from beamhub.frames.growing import Come
from beamhub.frames.hdf5 import Elsewhere
from beamhub.frames.outside import HostileFile, UnreadableFile, confined_name, open_confined
from beamhub.schemas import DatasetKind, Quantity

LOOKS = 3  # at a file that is published or begun anew meanwhile
DATA = "/entry/data/data"
STACKS = (DATA, "/data")  # in data files: DECTRIS's, and those that Odin writes
INSTRUMENT, SAMPLE = "/entry/instrument", "/entry/sample"
DETECTOR = f"{INSTRUMENT}/detector"
SPECIFIC = f"{DETECTOR}/detectorSpecific"

_BITSHUFFLE, _LZ4 = 32008, 32004  # registered HDF5 filters
_BITSHUFFLE_CODECS = {2: "bslz4", 3: "bszstd"}
T = TypeVar("T")


# --- what the files say -------------------------------------------------------------------------------------


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


# --- the frames ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """Where a file keeps its frames, as many as there are now.

    `codec`: "" for plain bytes, None where only HDF5 can decode. `table` has of each frame its first byte,
    how many there are, and which filters have been left out; of a file that is still written, `come` knows.
    """

    path: Path
    link: str
    first: int | None
    frames: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    codec: str | None
    table: tuple[tuple[int, int, int], ...] = ()
    come: Come | None = None

    def place(self, position: int) -> tuple[int, int, int]:
        """Raises FileNotFoundError if the file is not there any more."""
        if self.come is None:
            return self.table[position]
        place = self.come.place(position)
        if place is None:
            raise FileNotFoundError(self.path.name)
        return *place, 0

    def check(self, info: DatasetInfo) -> None:
        """Raises UnreadableFile for frames that don't fit into those that the master announces."""
        if self.shape != info.shape or self.dtype.itemsize > np.dtype(info.dtype).itemsize:
            raise UnreadableFile(self.path.name, "its frames are of another size than its master announces")


class NxmxFrames(Frames):
    """The frames that a master file announces, also while it or its data files are still written.

    Raises as `inspect_master` does.
    """

    def __init__(self, master: Path, root: Path) -> None:
        self.name = master.name
        self._master = master
        self._root = root
        self._lock = threading.Lock()
        self._stored: dict[DataFile, _Stored] = {}  # published files, which never change
        self._masks: dict[str | None, NDArray[np.bool_]] = {}  # as it was told; None: by the published master
        self._info: DatasetInfo | None = None
        self._master_published = False
        self._info = self.info

    @property
    def info(self) -> DatasetInfo:  # type: ignore[override]
        """What the master announces; while it is still written, what is known of it.

        Raises UnreadableFile if the master has other frames than was told while it was written.
        """
        with self._lock:
            before, published = self._info, self._master_published
        if before is not None and published:
            return before
        found = self._either(
            self._master,
            lambda: (inspect_master(self._master, self._root), True),
            lambda come: (come.stack.info, False) if come.stack.info else None,
        )
        if found is None:
            if before is None:
                raise FileNotFoundError(f"there is no file {self.name}")
            return before  # it has been taken away
        info, published = found
        if before is not None and (info.shape, info.dtype) != (before.shape, before.dtype):
            raise UnreadableFile(
                self.name, "its frames are of another size than was told while it was written"
            )
        with self._lock:
            if self._master_published and self._info is not None:  # meanwhile
                return self._info
            self._info, self._master_published = info, published
        return info

    def __len__(self) -> int:
        announced = self.info.frames_announced
        return self.run_ends() if announced is None else announced

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where a pixel doesn't count, by the master's pixel mask."""
        found = self._either(
            self._master,
            lambda: self._kept_mask(None, self._read_mask),
            lambda come: self._kept_mask(come.stack.mask, come.stack.bad),
        )
        if found is not None:
            return found
        with self._lock:  # it has been taken away
            kept = list(self._masks.values())
        return kept[0] if kept else np.zeros(self.info.shape, np.bool_)

    def _kept_mask(self, told: str | None, read: Callable[[], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        with self._lock:
            for key in (None, told):
                if key in self._masks:
                    return self._masks[key]
        bad = read()
        if bad.shape != self.info.shape:
            raise UnreadableFile(self.name, "its pixel mask has another size than its frames")
        with self._lock:
            self._masks = {told: bad}
        return bad

    def _read_mask(self) -> NDArray[np.bool_]:
        """Of the published master. Raises FileNotFoundError if there is none."""
        with hdf5.opened(self._master, self._root) as file:
            bad = mask_of(file, self.name, self.info.shape)
        return np.zeros(self.info.shape, np.bool_) if bad is None else bad

    def run_ends(self, start: int = 0) -> int:
        while (found := self._find(start)) is not None:
            stored, position = found
            start += stored.frames - position
        return min(start, _end(self.info))

    def published(self) -> int:
        count = 0
        while (found := self._find(count)) is not None and found[0].come is None:
            stored, position = found
            count += stored.frames - position
        return min(count, _end(self.info))

    def has(self, index: int) -> bool:
        return self._find(index) is not None

    def file(self, index: int) -> Path | None:
        found = self._find(index)
        return found[0].path if found and found[0].come is None else None

    def files_arrived(self) -> int:
        return sum(map(self._arrived, self.info.files))

    def _arrived(self, file: DataFile) -> int:
        path = self._master.parent / file.name
        if path.exists():
            return 1
        come = Come.find(path)
        return come.frames if come else 0

    def ended(self) -> bool:
        """A published file never changes."""
        files = reversed(self.info.files)  # the one that is missing is most likely the last
        return self._master_published and all((self._master.parent / file.name).exists() for file in files)

    def counts(self, index: int) -> NDArray[Any]:
        for _ in range(LOOKS):
            found = self._find(index)
            if found is None:
                break
            stored, position = found
            try:
                return self._decode(stored, position)
            except FileNotFoundError:
                if stored.come is None:
                    raise
        if index < 0 or index >= _end(self.info):
            raise MissingFrameError(f"{self.name} has frames 1 to {len(self)}, not {index + 1}")
        raise MissingFrameError(f"frame {index + 1} of {self.name} has not arrived")

    def _find(self, index: int) -> tuple[_Stored, int] | None:
        """The data file that holds a frame, and the frame's place in it; None while it has not arrived."""
        info = self.info
        if not 0 <= index < _end(info):
            return None
        following: int | None = 0  # the number of the next file's first frame, where that is known
        for file in info.files:
            if file.first is not None and file.frames is not None and info.frames_announced is not None:
                begin, end = file.first, file.first + file.frames
                if not begin <= index < end:
                    following = end
                    continue
            stored = self._look_up(file, info)
            if stored is None:
                following = None
                continue
            first = next((n for n in (file.first, stored.first, following) if n is not None), None)
            if first is not None and first <= index < first + stored.frames:
                return stored, index - first
            following = None if first is None else first + stored.frames
        return None

    def _look_up(self, file: DataFile, info: DatasetInfo) -> _Stored | None:
        """Where a data file keeps its frames; None while it has not arrived."""
        with self._lock:
            if file in self._stored:
                return self._stored[file]
        path = self._master.parent / file.name

        def read() -> _Stored:
            with hdf5.opened(path, self._root) as opened:
                stored = _table(path, file.link, frames_of(opened, path.name, file.link))
            stored.check(info)
            with self._lock:
                return self._stored.setdefault(file, stored)

        def know(come: Come) -> _Stored | None:
            told = come.stack
            if _plain(told.link) != _plain(file.link):
                return None
            stored = _Stored(
                path,
                file.link,
                told.first,
                come.frames,
                told.shape,
                np.dtype(told.dtype).newbyteorder("<"),
                told.codec,
                come=come,
            )
            stored.check(info)
            return stored

        return self._either(path, read, know)

    @staticmethod
    def _either(path: Path, read: Callable[[], T], know: Callable[[Come], T | None]) -> T | None:
        """What `read` makes of a published file; what `know` makes of one that is still written; None where
        there is neither."""
        for _ in range(LOOKS):
            try:
                return read()
            except FileNotFoundError:
                pass
            if come := Come.find(path):
                return know(come)
        return None

    def _decode(self, stored: _Stored, position: int) -> NDArray[Any]:
        """Raises FileNotFoundError if the file is not there any more."""
        offset, size, skipped_filters = stored.place(position)
        info = self.info
        if stored.codec is None or skipped_filters:
            return self._decode_slowly(stored, position)
        expected = info.shape[0] * info.shape[1] * stored.dtype.itemsize
        if size > 2 * expected + 65_536:
            raise UnreadableFile(stored.path.name, f"frame {position + 1} in it claims {size} bytes")
        fd = stored.come.open() if stored.come else open_confined(stored.path, self._root)
        try:
            if offset + size > os.fstat(fd).st_size:
                raise UnreadableFile(stored.path.name, f"frame {position + 1} in it lies beyond its end")
            chunk = os.pread(fd, size, offset)
        finally:
            os.close(fd)
        try:
            # the stream begins with its unpacked size: believed only when it is that of a frame
            if stored.codec and int.from_bytes(chunk[:8], "big") != expected:
                raise ValueError("it unpacks to another size than a frame's")
            plain = (
                decompress(chunk, stored.codec, elem_size=stored.dtype.itemsize) if stored.codec else chunk
            )
            frame: NDArray[Any] = np.frombuffer(plain, stored.dtype).reshape(info.shape)
        except (ValueError, RuntimeError) as error:
            raise UnreadableFile(
                stored.path.name, f"frame {position + 1} in it is damaged ({error})"
            ) from error
        return frame.astype(info.dtype, copy=False)

    def _decode_slowly(self, stored: _Stored, position: int) -> NDArray[Any]:
        with hdf5.opened(stored.path, self._root) as file:
            dataset = frames_of(file, stored.path.name, stored.link)
            frame: NDArray[Any] = h5py.Dataset(dataset)[position]
        return frame.astype(self.info.dtype, copy=False)


def _end(info: DatasetInfo) -> int:
    """The first frame that can't come."""
    return MAX_FRAMES if info.frames_announced is None else info.frames_announced


def _plain(link: str) -> PurePosixPath:
    return PurePosixPath("/", link)


def _table(path: Path, link: str, dataset: h5d.DatasetID) -> _Stored:
    table = tuple(chunk_table(dataset))
    first, codec, shape = first_of(dataset), codec_of(dataset), dataset.shape[1:]
    return _Stored(path, link, first, len(table), shape, dataset.dtype, codec, table)
