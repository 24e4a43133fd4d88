"""The frames of an HDF5 file that is still written, for readers beside its writer (SWMR).

The writer adds a frame to the lists in the file after it has written it, so what they name is there. (Not
where room for all frames has been allotted in advance: such a file's lists tell nothing.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
from h5py import h5d
from pydantic import ValidationError

from beamhub.frames import formats, hdf5, nxmx
from beamhub.frames.format import DatasetInfo
from beamhub.frames.growing import MAX_TOLD, Growing, packed
from beamhub.frames.outside import HostileFile, UnreadableFile


@dataclass(frozen=True)
class Listed:
    """What a look into a file has shown. `growing`: None while there are no frames from `begin` on."""

    inode: int
    growing: Growing | None


def frames_from(begin: int, path: Path, root: Path) -> Listed:
    """The frames of the file `path` below `root` from number `begin` (of those in the file, from 0) on: up to
    the first that is not there, or that only HDF5 can unpack, and no more than can be told at a time.

    The mask comes along with the first frames of a file.

    Raises:
        HostileFile: it points out of its folder, or makes absurd claims.
        UnreadableFile: it can't be read, perhaps at this moment only, or its frames can't be told.
        FileNotFoundError: it is gone.
    """
    name = path.name
    with hdf5.opened(path, root, swmr=True) as file:
        inode = os.fstat(file.id.get_vfd_handle()).st_ino
        link, info = _home(file, name)
        dataset = nxmx.frames_of(file, name, link)
        codec = nxmx.codec_of(dataset)
        if codec is None:
            raise UnreadableFile(name, "only HDF5 can unpack its frames")
        if dataset.get_create_plist().get_alloc_time() != h5d.ALLOC_TIME_INCR:
            raise UnreadableFile(name, "it has room for frames that are not written yet")
        chunks = _chunks(dataset, begin, packed=bool(codec))
        if not chunks:
            return Listed(inode, None)
        shape = dataset.shape[1:]
        bad = nxmx.mask_of(file, name, shape) if begin == 0 else None
        told: dict[str, Any] = {
            "link": link,
            "shape": shape,
            "dtype": dataset.dtype.name,
            "codec": codec,
            "first": nxmx.first_of(dataset),
            "info": info,
            "mask": "" if bad is None else packed(bad),
            "begin": begin,
            "chunks": chunks,
        }
        try:
            return Listed(inode, Growing.model_validate(told))
        except ValidationError as error:
            problem = error.errors()[0]
            raise HostileFile(name, f"{problem['loc'][0]} of its frames: {problem['msg']}") from error


def _home(file: h5py.File, name: str) -> tuple[str, DatasetInfo | None]:
    """Where a file keeps its own frames, and what it announces if it announces a dataset."""
    part = formats.part(PurePosixPath(name))
    if part is None or part.dataset is None:
        return nxmx.stack_of(file, name), None
    info = nxmx.announced(file, name, written=True)
    own = next((data.link for data in info.files if data.name == name), None)
    if own is None:
        raise UnreadableFile(name, "its frames lie in other files")
    return own, info


def _chunks(dataset: h5d.DatasetID, begin: int, *, packed: bool) -> list[tuple[int, int]]:
    frames, *shape = dataset.shape
    plain = int(shape[0] * shape[1] * dataset.dtype.itemsize)
    largest = 2 * plain + 65_536 if packed else plain
    end = min(frames, begin + MAX_TOLD)
    found: dict[int, tuple[int, int]] = {}

    def note(chunk: Any) -> None:
        number = chunk.chunk_offset[0]
        if begin <= number < end and chunk.filter_mask == 0 and chunk.size <= largest:
            found[number] = (chunk.byte_offset, chunk.size)

    dataset.chunk_iter(note)  # all in one go: to ask for one takes a look at all before it
    chunks: list[tuple[int, int]] = []
    while (chunk := found.get(begin + len(chunks))) is not None:
        chunks.append(chunk)
    return chunks
