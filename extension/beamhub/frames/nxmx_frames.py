"""The frames of NXmx datasets (see beamhub.frames.nxmx).

The place of every frame in its data file is looked up once; reading a frame is then one `pread` and one
decompression, both outside the interpreter's lock and HDF5's, so that several threads read at once. The data
files are opened by the names the master gives, inside its own folder, and only frames that lie in the data
file itself are read. Of a file that is still written, `beamhub.frames.growing` knows the places.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import h5py
import numpy as np
from dectris.compression import decompress
from h5py import h5d
from numpy.typing import NDArray

from beamhub.frames import hdf5
from beamhub.frames.format import MAX_FRAMES, DataFile, DatasetInfo, Frames, MissingFrameError
from beamhub.frames.growing import Come
from beamhub.frames.nxmx import chunk_table, codec_of, first_of, frames_of, inspect_master, mask_of
from beamhub.frames.outside import UnreadableFile, open_confined

LOOKS = 3  # at a file that is published or begun anew meanwhile
T = TypeVar("T")


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
