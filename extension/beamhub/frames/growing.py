"""Files that are still written: which of their frames have come, and where in the file each lies.

What has come of such a file lies in an experiment's folder `.growing`, beside a list of the frames in it that
are whole. HDF5 itself can't read such a file, whose own lists are from different moments; it need not: a
frame is read from its place and unpacked. The sender vouches for the list: it has found each frame in the
lists of the original, which a SWMR writer adds it to after it has written it, and has then sent the bytes as
they were after that.

There are three files for each: `<upload>` has the bytes, `<upload>.json` (a `Label`) tells whose they are and
how frames are stored, and `<upload>.frames` has 16 bytes for each frame, in their order: where it begins and
how long it is, as unsigned little-endian numbers. The last one grows behind the first, and the label is
there before both, so whoever reads beside the writer finds nothing that is not there.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import math
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError

from beamhub.folders import RAW
from beamhub.frames.format import (
    MAX_FILES,
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_SIDE,
    DatasetInfo,
    check_size,
    plain_text,
)
from beamhub.frames.outside import (
    FileProblem,
    HostileFile,
    UnreadableFile,
    confined_name,
    open_regular,
)
from beamhub.schemas import Request

if TYPE_CHECKING:  # an ingest process, which shows no frames, does without numpy
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("beamhub.frames")

FOLDER = ".growing"  # in an experiment's folder
LABEL, TABLE = ".json", ".frames"  # behind the name of the file that they are of
MAX_LABEL = 1 << 21  # bytes
MAX_MASK = 1 << 19  # bytes of one, packed
MAX_TOLD = 10_000  # frames that are told at a time
MAX_METADATA, MAX_NAME = 100, 60  # of what is announced, and of one name
_ENTRY = struct.Struct("<QQ")
ENTRY = _ENTRY.size  # bytes of a frame in a table
_PLACE = 2**63 - 1
_KEPT = 64  # labels that a process remembers


def _shape(shape: tuple[int, int]) -> tuple[int, int]:
    try:
        check_size("the file", 0, shape)
    except FileProblem as problem:
        raise ValueError(problem.reason) from problem
    return shape


def _possible(info: DatasetInfo) -> DatasetInfo:
    """An announcement that could have been read in a file here."""
    try:
        check_size("the file", info.frames_announced or 0, info.shape)
        for file in info.files:
            if confined_name("the file", file.name) != file.name:
                raise ValueError(f"names {file.name[:200]!r} in a roundabout way")
    except FileProblem as problem:
        raise ValueError(problem.reason) from problem
    if len(info.files) > MAX_FILES or len(info.metadata) > MAX_METADATA:
        raise ValueError("announces too much")
    for name, quantity in info.metadata.items():
        if not (name.isidentifier() and len(name) <= MAX_NAME and _is_plain(quantity.value)):
            raise ValueError(f"tells {name[:MAX_NAME]!r}, which is not a finite number or one line of text")
    return info


def _is_plain(value: object) -> bool:
    match value:
        case str():
            return value == plain_text(value)
        case float():
            return math.isfinite(value)
        case list():
            return False
        case _:
            return True


def _mask(packed: str) -> str:
    try:
        base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error
    return packed


Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Offset = Annotated[int, Field(ge=0, le=_PLACE)]
Bytes = Annotated[int, Field(ge=1, le=4 * 2 * MAX_PIXELS)]


class Stack(Request):
    """How the frames of a file that is still written are stored in it."""

    link: str = Field(max_length=1000, description="the path of the frames inside the file")
    shape: Annotated[tuple[Side, Side], AfterValidator(_shape)] = Field(
        description="rows and columns of a frame"
    )
    dtype: Literal["uint8", "uint16", "uint32", "int8", "int16", "int32"]
    codec: Literal["", "lz4", "bslz4", "bszstd"] = Field(description="how each frame is packed")
    first: int | None = Field(
        None, ge=0, le=MAX_FRAMES, description="the number (from 0) of its first frame, where the file tells"
    )
    info: Annotated[DatasetInfo, AfterValidator(_possible)] | None = Field(
        None, description="what the file announces, if it announces a dataset"
    )
    mask: Annotated[str, AfterValidator(_mask)] = Field(
        "", max_length=MAX_MASK, description="one bit a pixel, 1: it doesn't count; by zlib, in base64"
    )

    def bad(self) -> NDArray[np.bool_]:
        """The mask: True where a pixel doesn't count. Raises UnreadableFile."""
        import numpy as np

        rows, columns = self.shape
        if not self.mask:
            return np.zeros(self.shape, np.bool_)
        size = (rows * columns + 7) // 8
        unpacking = zlib.decompressobj()
        try:
            bits = unpacking.decompress(base64.b64decode(self.mask), size)
        except zlib.error as error:
            raise UnreadableFile("the mask", f"it is damaged ({error})") from error
        if len(bits) != size:
            raise UnreadableFile("the mask", "it is of another size than the frames")
        bad: NDArray[np.bool_] = np.unpackbits(np.frombuffer(bits, np.uint8), count=rows * columns) != 0
        return bad.reshape(self.shape)


class Growing(Stack):
    """What is known of a file that is still written, and the frames that have been added to it."""

    begin: int = Field(0, ge=0, le=MAX_FRAMES, description="the frame of the file that `chunks` begin with")
    chunks: tuple[tuple[Offset, Bytes], ...] = Field(
        max_length=MAX_TOLD, description="where each frame lies: the first of its bytes, and how many"
    )

    @property
    def stack(self) -> Stack:
        """What is known of the file."""
        return Stack(**{name: getattr(self, name) for name in Stack.model_fields})

    @property
    def frames(self) -> int:
        """How many there are, from the first one on."""
        return self.begin + len(self.chunks)

    @property
    def end(self) -> int:
        """The first byte behind all of these frames."""
        return max((offset + size for offset, size in self.chunks), default=0)


def packed(bad: NDArray[np.bool_]) -> str:
    """A mask as `Stack` has it; "" if it is too large for that."""
    import numpy as np

    text = base64.b64encode(zlib.compress(np.packbits(bad.reshape(-1)).tobytes(), 6)).decode()
    return text if len(text) <= MAX_MASK else ""


class Label(Request):
    """Whose bytes those of a file are that is still written."""

    path: str  # that it is going to have, relative to the experiment's folder
    stack: Stack


def entries(chunks: Sequence[tuple[int, int]]) -> bytes:
    """As they are in a table."""
    return b"".join(_ENTRY.pack(*chunk) for chunk in chunks)


class Come:
    """A file that is still written, as it lies in the experiment: `file` has its bytes."""

    def __init__(self, file: Path, stack: Stack) -> None:
        self.file = file
        self.stack = stack
        self._table = file.with_suffix(TABLE)

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """What has come of the file that is going to be `path`; None where nothing is known of it."""
        path = path.absolute()
        for room in path.parents:
            home = room.parent
            if room.name == RAW and stat.S_ISDIR(_mode(home / FOLDER)):
                found = cls._all(home / FOLDER, str(path.relative_to(home)))
                return max(found, key=lambda come: come.frames, default=None)
        return None

    @classmethod
    def _all(cls, folder: Path, path: str) -> list[Self]:
        """One, but where several senders send the same file."""
        labels = dict[str, Label | None]()
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            labels = {entry.name: _label(entry) for entry in entries if entry.name.endswith(LABEL)}
        found = (
            cls(folder / name.removesuffix(LABEL), label.stack)
            for name, label in labels.items()
            if label is not None and label.path == path
        )
        return [come for come in found if stat.S_ISREG(_mode(come.file))]

    def open(self) -> int:
        """A file descriptor of its bytes. Raises FileNotFoundError if it has just been published or taken
        away, HostileFile."""
        return open_regular(self.file)

    @property
    def frames(self) -> int:
        """How many have come by now, from the first one on."""
        with contextlib.suppress(FileNotFoundError):
            return min(self._table.stat().st_size // ENTRY, MAX_FRAMES)
        return 0

    def place(self, frame: int) -> tuple[int, int] | None:
        """Where frame `frame` (from 0) lies in the file: its first byte, and how many; None while it has not
        come."""
        with contextlib.suppress(FileNotFoundError):
            table = open_regular(self._table)
            try:
                entry = os.pread(table, ENTRY, frame * ENTRY)
            finally:
                os.close(table)
            if len(entry) == ENTRY:
                offset, size = _ENTRY.unpack(entry)
                return offset, size
        return None


def _mode(path: Path) -> int:
    """0 where there is nothing."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


_known: dict[str, tuple[tuple[int, ...], Label | None]] = {}  # with the stamps of the files


def _label(entry: os.DirEntry[str]) -> Label | None:
    """A label, read once. None where it has just been taken away, or makes no sense: then the frames of this
    one file are not seen before it is published."""
    try:
        stamp = _stamp(entry.stat(follow_symlinks=False))
        if (known := _known.get(entry.path)) and known[0] == stamp:
            return known[1]
        with os.fdopen(open_regular(Path(entry)), "rb") as stream:
            stamp = _stamp(os.fstat(stream.fileno()))
            label = Label.model_validate_json(stream.read(MAX_LABEL))
    except FileNotFoundError:
        return None
    except HostileFile as problem:
        log.warning("%s", problem)
        label = None
    except ValidationError as error:
        log.warning("%s tells of no file that is written (%d faults)", entry.path, error.error_count())
        label = None
    _known[entry.path] = stamp, label
    while len(_known) > _KEPT:
        _known.pop(next(iter(_known)), None)
    return label


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
