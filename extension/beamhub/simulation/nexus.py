"""The files of a DECTRIS EIGER filewriter: an NXmx master, and data files of one compressed chunk a frame; or
one file of both, as SWMR writers (single writer, multiple readers) write it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from beamhub.simulation.acquisition import AXIS, FAST, SLOW, Acquisition

# readable by the HDF5 1.10 that Debian's DIALS brings; "latest" writes virtual datasets that it can't read
LIBVER = ("v110", "v110")
DATA = "/entry/data/data"


def hidden(path: Path) -> Path:
    """The temporary name of a file that is still being written, beside its final one."""
    return path.with_name(f".{path.name}.part")


class DataFile:
    """A data file while it is written; it gets its final name when it is closed.

    Args:
        path: its final name.
        first: number (from 0) of its first frame.
        frames: how many it is to hold.
    """

    def __init__(self, path: Path, scan: Acquisition, first: int, frames: int) -> None:
        self._path = path
        self._first = first
        self._written = 0
        self._file = h5py.File(hidden(path), "w", libver=LIBVER)
        self._file.create_group("entry").attrs["NX_class"] = np.bytes_("NXentry")
        self._file.create_group("entry/data").attrs["NX_class"] = np.bytes_("NXdata")
        self._data = _stack(self._file, scan, frames)

    def append(self, image: NDArray[Any]) -> None:
        self._data[self._written] = image
        self._written += 1

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._written:
            self._data.resize(self._written, axis=0)
            self._data.attrs["image_nr_low"] = self._first + 1
            self._data.attrs["image_nr_high"] = self._first + self._written
        self._file.close()
        if self._written and kind is None:
            hidden(self._path).rename(self._path)
        else:
            hidden(self._path).unlink()


class SwmrFile:
    """A master that holds its frames itself, while it is written: under its final name from the beginning,
    and open for readers beside its writer (SWMR).

    Args:
        path: its name.
        frame_time: seconds from frame to frame.
    """

    def __init__(self, path: Path, scan: Acquisition, frame_time: float) -> None:
        self._file = h5py.File(path, "x", libver=LIBVER)
        write = _Writer(self._file)
        _write_scan(write, scan, frame_time)
        write.group("entry/data", "NXdata").attrs["signal"] = np.bytes_("data")
        self._data = _stack(self._file, scan, 0)
        self._file.swmr_mode = True

    def append(self, image: NDArray[Any]) -> None:
        """Adds a frame; readers see it when this returns."""
        written = len(self._data)
        self._data.resize(written + 1, axis=0)
        self._data[written] = image
        self._data.flush()

    def __enter__(self) -> SwmrFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _stack(file: h5py.File, scan: Acquisition, frames: int) -> h5py.Dataset:
    """Room for frames, which may grow; each is a chunk."""
    shape = scan.detector.shape
    return file.create_dataset(
        DATA,
        (frames, *shape),
        scan.dtype,
        chunks=(1, *shape),
        maxshape=(None, *shape),
        compression=hdf5plugin.Bitshuffle(nelems=0, cname="lz4"),
    )


def write_master(path: Path, scan: Acquisition, files: Sequence[tuple[str, int]], frame_time: float) -> None:
    """Write the master file of a scan; it appears under its name when it is complete.

    Args:
        path: its final name.
        files: (name, frames) of the data files, which need not exist yet.
        frame_time: seconds from frame to frame.
    """
    with h5py.File(hidden(path), "w", libver=LIBVER) as file:
        write = _Writer(file)
        _write_scan(write, scan, frame_time)
        _write_links(write, scan, files)
    hidden(path).rename(path)


class _Writer:
    """Writes NeXus groups and fields, texts as the fixed-length ones that DECTRIS writes."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file

    def group(self, path: str, nexus_class: str) -> h5py.Group:
        group = self.file.require_group(path)
        group.attrs["NX_class"] = np.bytes_(nexus_class)
        return group

    def field(
        self, path: str, value: Any, units: str = "", dtype: str | None = None, **attributes: Any
    ) -> None:
        value = np.bytes_(value) if isinstance(value, str) else np.asarray(value, dtype)
        packed = {"compression": "gzip", "compression_opts": 1} if np.size(value) > 10_000 else {}
        field = self.file.create_dataset(path, data=value, **packed)
        for name, attribute in (attributes | ({"units": units} if units else {})).items():
            field.attrs[name] = np.bytes_(attribute) if isinstance(attribute, str) else attribute


def _write_scan(write: _Writer, scan: Acquisition, frame_time: float) -> None:
    """All but the frames."""
    _write_entry(write, scan, frame_time)
    _write_sample(write, scan)
    _write_detector(write, scan, frame_time)


def _write_entry(write: _Writer, scan: Acquisition, frame_time: float) -> None:
    entry = write.group("entry", "NXentry")
    entry.attrs["default"] = "data"
    write.file.attrs["default"] = "entry"
    write.field("entry/definition", "NXmx", version="1.0")
    begin = datetime.now(UTC)
    write.field("entry/start_time", begin.strftime("%Y-%m-%dT%H:%M:%SZ"))
    end = begin + timedelta(seconds=scan.frames * frame_time)
    write.field("entry/end_time_estimated", end.strftime("%Y-%m-%dT%H:%M:%SZ"))
    write.group("entry/source", "NXsource")
    write.field("entry/source/name", "beamhub simulation")
    write.group("entry/instrument", "NXinstrument")
    write.field("entry/instrument/name", "simulated beamline")
    write.group("entry/instrument/beam", "NXbeam")
    write.field("entry/instrument/beam/incident_wavelength", scan.wavelength, "angstrom", "f8")


def _write_sample(write: _Writer, scan: Acquisition) -> None:
    write.group("entry/sample", "NXsample")
    write.field("entry/sample/name", "simulated tetragonal lysozyme")
    write.file["entry/sample/beam"] = h5py.SoftLink("/entry/instrument/beam")
    width = 0.0 if scan.grid else scan.width
    moves = "entry/sample/transformations"
    write.group(moves, "NXtransformations")
    write.field(
        f"{moves}/omega",
        scan.angles,
        "degree",
        "f8",
        transformation_type="rotation",
        vector=AXIS,
        depends_on=".",
    )
    write.field(f"{moves}/omega_end", scan.angles + width, "degree", "f8")
    write.field(f"{moves}/omega_increment_set", width, "degree", "f8")
    write.field("entry/sample/depends_on", f"/{moves}/omega")
    if scan.grid:
        for name, vector, positions in zip(
            ("grid_y", "grid_x"), ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)), scan.grid.positions, strict=True
        ):
            write.field(
                f"{moves}/{name}",
                positions,
                "m",
                "f8",
                transformation_type="translation",
                vector=np.array(vector),
                depends_on=".",
            )
    old = "entry/sample/goniometer"  # where filewriter 1.6 had them
    write.group(old, "NXtransformations")
    write.field(f"{old}/omega", scan.angles, "degree", "f4")
    write.field(f"{old}/omega_end", scan.angles + width, "degree", "f4")
    write.field(f"{old}/omega_increment", width, "degree", "f4")
    write.field(f"{old}/omega_start", scan.start, "degree", "f4")


def _write_detector(write: _Writer, scan: Acquisition, frame_time: float) -> None:
    detector, place = scan.detector, "entry/instrument/detector"
    fast, slow = scan.beam_centre
    bits = np.iinfo(scan.dtype).bits
    write.group(place, "NXdetector")
    for name, text in {
        "description": f"DECTRIS {detector.name} (simulated)",
        "detector_number": "E-00-0000",
        "serial_number": "E-00-0000",
        "sensor_material": "Si",
        "type": "HPC",
        "depends_on": f"/{place}/transformations/det_z",
    }.items():
        write.field(f"{place}/{name}", text)
    for name, number, units, dtype in (
        ("sensor_thickness", detector.sensor, "m", "f4"),
        ("x_pixel_size", detector.pixel, "m", "f4"),
        ("y_pixel_size", detector.pixel, "m", "f4"),
        ("beam_center_x", fast, "pixel", "f4"),
        ("beam_center_y", slow, "pixel", "f4"),
        ("detector_distance", scan.distance, "m", "f4"),
        ("distance", scan.distance, "m", "f8"),
        ("count_time", scan.exposure, "s", "f4"),
        ("frame_time", frame_time, "s", "f4"),
        ("detector_readout_time", 1e-7, "s", "f4"),
        ("threshold_energy", scan.energy * 500, "eV", "f4"),
        ("bit_depth_readout", bits, "", "i4"),
        ("bit_depth_image", bits, "", "i4"),
        ("saturation_value", scan.saturation, "", "i8"),
        ("countrate_correction_applied", 1, "", "i4"),
        ("flatfield_correction_applied", 1, "", "i4"),
        ("pixel_mask_applied", 1, "", "i4"),
    ):
        write.field(f"{place}/{name}", number, units, dtype)
    _write_specific(write, scan, f"{place}/detectorSpecific")
    write.file[f"{place}/pixel_mask"] = h5py.SoftLink(f"/{place}/detectorSpecific/pixel_mask")
    _write_position(write, scan, place)


def _write_specific(write: _Writer, scan: Acquisition, place: str) -> None:
    """What EIGER's own software says of the detector."""
    rows, columns = scan.detector.shape
    write.group(place, "NXcollection")
    for name, text in {
        "eiger_fw_version": "release-2020.2.5",
        "software_version": "1.8.0",
        "compression": "bslz4",
        "trigger_mode": "ints" if scan.grid is None else "exts",
    }.items():
        write.field(f"{place}/{name}", text)
    for name, number, dtype in (
        ("nimages", scan.grid.columns if scan.grid else scan.frames, "u4"),
        ("ntrigger", scan.grid.rows if scan.grid else 1, "u4"),
        ("x_pixels_in_detector", columns, "u4"),
        ("y_pixels_in_detector", rows, "u4"),
        ("photon_energy", scan.energy * 1000, "f4"),
        ("countrate_correction_count_cutoff", scan.saturation, "u4"),
        ("saturation_value", scan.saturation, "u4"),
    ):
        write.field(f"{place}/{name}", number, dtype=dtype)
    write.field(f"{place}/pixel_mask", scan.mask)


def _write_position(write: _Writer, scan: Acquisition, place: str) -> None:
    """Where the detector is, and its pixels are on it."""
    rows, columns = scan.detector.shape
    fast, slow = scan.beam_centre
    write.group(f"{place}/transformations", "NXtransformations")
    write.field(
        f"{place}/transformations/det_z",
        [scan.distance],
        "m",
        "f8",
        transformation_type="translation",
        vector=np.array([0.0, 0.0, 1.0]),
        depends_on=".",
    )
    module = f"{place}/module"
    write.group(module, "NXdetector_module")
    write.field(f"{module}/data_origin", [0, 0], dtype="i4")
    write.field(f"{module}/data_size", [rows, columns], dtype="i4")
    offset = np.array([fast, slow, 0.0]) * scan.detector.pixel  # from the beam to the first pixel's corner
    write.field(
        f"{module}/module_offset",
        [np.linalg.norm(offset)],
        "m",
        "f8",
        transformation_type="translation",
        vector=offset / np.linalg.norm(offset),
        offset=np.zeros(3),
        depends_on=f"/{place}/transformations/det_z",
    )
    for name, vector in (("fast", FAST), ("slow", SLOW)):
        write.field(
            f"{module}/{name}_pixel_direction",
            [scan.detector.pixel],
            "m",
            "f8",
            transformation_type="translation",
            vector=vector,
            offset=np.zeros(3),
            depends_on=f"/{module}/module_offset",
        )


def _write_links(write: _Writer, scan: Acquisition, files: Sequence[tuple[str, int]]) -> None:
    """`data_NNNNNN` links as EIGER has them, and the virtual dataset over all of them that NXmx asks for."""
    rows, columns = scan.detector.shape
    group = write.group("entry/data", "NXdata")
    whole = h5py.VirtualLayout((scan.frames, rows, columns), scan.dtype)
    first = 0
    for number, (name, frames) in enumerate(files, 1):
        group[f"data_{number:06d}"] = h5py.ExternalLink(name, DATA)
        whole[first : first + frames] = h5py.VirtualSource(name, DATA, (frames, rows, columns))
        first += frames
    # frames that have not arrived read as masked, not as empty
    group.create_virtual_dataset("data", whole, fillvalue=scan.masked)
    group.attrs["signal"] = np.bytes_("data")
