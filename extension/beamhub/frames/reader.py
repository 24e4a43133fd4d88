"""Frames of a dataset, as far as they have arrived.

The place of every frame in its data file is looked up once; reading a frame is then one `pread` and one
decompression, both outside the interpreter's lock and HDF5's, so that several threads read at once. Nothing
that a file links to is followed: the data files are opened by the names the master gives, inside its own
folder, and only frames that lie in the data file itself are read.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 (registers the filters for files that HDF5 itself must decode)
import numpy as np
from dectris.compression import decompress
from h5py import h5d
from numpy.typing import NDArray

from beamhub.frames import hdf5, picture
from beamhub.frames.hdf5 import UnreadableFile
from beamhub.frames.inspect import (
    DETECTOR,
    SPECIFIC,
    DataFile,
    MasterInfo,
    chunk_table,
    frames_of,
    inspect_master,
)

_BITSHUFFLE, _LZ4 = 32008, 32004  # registered HDF5 filters
_BITSHUFFLE_CODECS = {2: "bslz4", 3: "bszstd"}


class MissingFrameError(LookupError):
    """The frame has not arrived (yet), or the dataset has no such frame."""


@dataclass(frozen=True)
class _Stored:
    """Where a data file keeps its frames. `codec`: "" for plain bytes, None where only HDF5 can decode."""

    path: Path
    link: str
    first: int | None
    table: tuple[tuple[int, int, int], ...]
    dtype: np.dtype[Any]
    codec: str | None


class FrameIndex:
    """The frames of one dataset; any thread may read any of them.

    Args:
        master: the master file.
        root: the folder that nothing may leave; the master's own by default.

    Raises:
        HostileFile, UnreadableFile, FileNotFoundError: as `inspect_master` does.
    """

    def __init__(self, master: Path, root: Path | None = None) -> None:
        self._master = master
        self._root = root or master.parent
        self.info: MasterInfo = inspect_master(master, self._root)
        self._stored: dict[DataFile, _Stored] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many frames are announced."""
        return self.info.frames_announced

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        """True where a pixel doesn't count, by the master's pixel mask."""
        with hdf5.opened(self._master, self._root) as file:
            for place in (f"{DETECTOR}/pixel_mask", f"{SPECIFIC}/pixel_mask"):
                found = hdf5.plain_dataset(file, place, self._master.name)
                if found is None:
                    continue
                if found.shape != self.info.shape:
                    raise UnreadableFile(self._master.name, "its pixel mask has another size than its frames")
                bad: NDArray[np.bool_] = hdf5.value(file, place, self._master.name) != 0
                return bad
        return np.zeros(self.info.shape, np.bool_)

    @functools.cached_property
    def saturation(self) -> int:
        """The largest count that is a measurement; what is above, is masked."""
        top = int(np.iinfo(self.info.dtype).max)
        told = self.info.metadata.get("saturation_value")
        return min(top - 1, int(told.value)) if told and isinstance(told.value, int | float) else top - 1

    def readable(self) -> int:
        """How many frames from the first on have arrived without a gap."""
        count = 0
        while count < len(self) and (found := self._find(count)) is not None:
            stored, position = found
            count += len(stored.table) - position
        return min(count, len(self))

    def has(self, index: int) -> bool:
        """Whether the frame (from 0) has arrived."""
        return 0 <= index < len(self) and self._find(index) is not None

    def frame(self, index: int) -> NDArray[Any]:
        """A frame (from 0): rows × columns, masked pixels having the largest value of the type.

        Raises:
            MissingFrameError: it has not arrived.
            HostileFile, UnreadableFile: its data file is not what it should be.
        """
        found = self._find(index) if 0 <= index < len(self) else None
        if found is None:
            raise MissingFrameError(
                f"frame {index + 1} of {self._master.name} has not arrived"
                if 0 <= index < len(self)
                else f"{self._master.name} has frames 1 to {len(self)}, not {index + 1}"
            )
        stored, position = found
        return picture.mark(self._decode(stored, position), self.mask, self.saturation)

    def _find(self, index: int) -> tuple[_Stored, int] | None:
        """The data file that holds a frame, and the frame's place in it; None while it has not arrived."""
        following: int | None = 0  # the number of the next file's first frame, where that is known
        for file in self.info.files:
            if file.first is not None and file.frames is not None:
                begin, end = file.first, file.first + file.frames
                if not begin <= index < end:
                    following = end
                    continue
            stored = self._look_up(file)
            if stored is None:
                following = None
                continue
            first = next((n for n in (file.first, stored.first, following) if n is not None), None)
            if first is not None and first <= index < first + len(stored.table):
                return stored, index - first
            following = None if first is None else first + len(stored.table)
        return None

    def _look_up(self, file: DataFile) -> _Stored | None:
        """Where a data file keeps its frames; None while it has not arrived. Arrived files never change."""
        with self._lock:
            if file in self._stored:
                return self._stored[file]
        path = self._master.parent / file.name
        try:
            with hdf5.opened(path, self._root) as opened:
                stored = self._table(path, file.link, frames_of(opened, path.name, file.link))
        except FileNotFoundError:
            return None
        with self._lock:
            return self._stored.setdefault(file, stored)

    def _table(self, path: Path, link: str, dataset: h5d.DatasetID) -> _Stored:
        low = h5py.Dataset(dataset).attrs.get("image_nr_low")
        shape = dataset.shape
        if shape[1:] != self.info.shape or dataset.dtype.itemsize > np.dtype(self.info.dtype).itemsize:
            raise UnreadableFile(path.name, "its frames are of another size than its master announces")
        layout = dataset.get_create_plist()
        filters = [layout.get_filter(n) for n in range(layout.get_nfilters())]
        codec: str | None = None
        if dataset.dtype.newbyteorder("<") == dataset.dtype:
            if not filters:
                codec = ""
            elif len(filters) == 1 and filters[0][0] == _LZ4:
                codec = "lz4"
            elif len(filters) == 1 and filters[0][0] == _BITSHUFFLE and len(filters[0][2]) > 4:
                codec = _BITSHUFFLE_CODECS.get(filters[0][2][4])
        first = int(low) - 1 if low is not None and int(low) >= 1 else None
        return _Stored(path, link, first, tuple(chunk_table(dataset)), dataset.dtype, codec)

    def _decode(self, stored: _Stored, position: int) -> NDArray[Any]:
        offset, size, skipped_filters = stored.table[position]
        size_of = stored.dtype.itemsize
        if stored.codec is None or skipped_filters:
            return self._decode_slowly(stored, position)
        expected = self.info.shape[0] * self.info.shape[1] * size_of
        if size > 2 * expected + 65_536:
            raise UnreadableFile(stored.path.name, f"frame {position + 1} in it claims {size} bytes")
        fd = hdf5.open_confined(stored.path, self._root)
        try:
            chunk = os.pread(fd, size, offset)
        finally:
            os.close(fd)
        try:
            # the stream begins with its unpacked size: believed only when it is that of a frame
            if stored.codec and int.from_bytes(chunk[:8], "big") != expected:
                raise ValueError("it unpacks to another size than a frame's")
            plain = decompress(chunk, stored.codec, elem_size=size_of) if stored.codec else chunk
            frame: NDArray[Any] = np.frombuffer(plain, stored.dtype).reshape(self.info.shape)
        except (ValueError, RuntimeError) as error:
            raise UnreadableFile(
                stored.path.name, f"frame {position + 1} in it is damaged ({error})"
            ) from error
        return frame.astype(self.info.dtype, copy=False)

    def _decode_slowly(self, stored: _Stored, position: int) -> NDArray[Any]:
        with hdf5.opened(stored.path, self._root) as file:
            dataset = frames_of(file, stored.path.name, stored.link)
            frame: NDArray[Any] = h5py.Dataset(dataset)[position]
        return frame.astype(self.info.dtype, copy=False)


def dataset(master: Path, root: Path | None = None) -> FrameIndex:
    """The frames of a dataset; the index of recently used ones is kept."""
    status = master.stat()
    return _dataset(master, root, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=16)
def _dataset(master: Path, root: Path | None, _version: tuple[int, ...]) -> FrameIndex:
    return FrameIndex(master, root)


def read_frame(master: Path, index: int, root: Path | None = None) -> NDArray[Any]:
    """Frame `index` (from 0) of a dataset: see `FrameIndex.frame`."""
    return dataset(master, root).frame(index)


def mask(master: Path, root: Path | None = None) -> NDArray[np.bool_]:
    """True where a pixel doesn't count: see `FrameIndex.mask`."""
    return dataset(master, root).mask
