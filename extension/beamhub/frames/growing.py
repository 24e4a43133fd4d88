"""Files that are still written: which of their frames have come, and where in the file each lies.

What has come of such a file lies in an experiment's folder `.growing`, beside an index of the frames in it
that are whole. HDF5 itself can't read such a file, whose own lists are from different moments; it need not:
a frame is read from its place and unpacked. The sender vouches for the index: it has found each frame in the
lists of the original, which a SWMR writer adds it to after it has written it, and has then sent the bytes as
they were after that.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import stat
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError

from beamhub.frames.format import MAX_FRAMES, MAX_PIXELS, MAX_SIDE, DatasetInfo, check_size
from beamhub.frames.outside import FileProblem, UnreadableFile
from beamhub.schemas import Request

if TYPE_CHECKING:  # an ingest process, which shows no frames, does without numpy
    import numpy as np
    from numpy.typing import NDArray

FOLDER = ".growing"  # in an experiment's folder
INDEX = ".json"  # behind the name of the file that it is of
MAX_INDEX = 1 << 29  # bytes
MAX_MASK = 1 << 19  # bytes of one, packed
MAX_TOLD = 10_000  # frames that are told at a time
PLACE = 2**63 - 1


def _sizes(info: DatasetInfo) -> DatasetInfo:
    try:
        check_size("the file", info.frames_announced or 0, info.shape)
    except FileProblem as problem:
        raise ValueError(problem.reason) from problem
    return info


def _mask(packed: str) -> str:
    try:
        base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error
    return packed


Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Offset = Annotated[int, Field(ge=0, le=PLACE)]
Bytes = Annotated[int, Field(ge=1, le=4 * 2 * MAX_PIXELS)]


class Growing(Request):
    """What is known of a file that is still written, and of the frames that have been added to it."""

    link: str = Field(max_length=1000, description="the path of the frames inside the file")
    shape: tuple[Side, Side] = Field(description="rows and columns of a frame")
    dtype: Literal["uint8", "uint16", "uint32", "int8", "int16", "int32"]
    codec: Literal["", "lz4", "bslz4", "bszstd"] = Field(description="how each frame is packed")
    first: int | None = Field(
        None, ge=0, le=MAX_FRAMES, description="the number (from 0) of its first frame, where the file tells"
    )
    info: Annotated[DatasetInfo, AfterValidator(_sizes)] | None = Field(
        None, description="what the file announces, if it announces a dataset"
    )
    mask: Annotated[str, AfterValidator(_mask)] = Field(
        "", max_length=MAX_MASK, description="one bit a pixel, 1: it doesn't count; by zlib, in base64"
    )
    begin: int = Field(0, ge=0, le=MAX_FRAMES, description="the frame of the file that `chunks` begin with")
    chunks: tuple[tuple[Offset, Bytes], ...] = Field(
        max_length=MAX_FRAMES, description="where each frame lies: the first of its bytes, and how many"
    )

    @property
    def frames(self) -> int:
        """How many there are, from the first one on."""
        return self.begin + len(self.chunks)

    @property
    def end(self) -> int:
        """The first byte behind all of these frames."""
        return max((offset + size for offset, size in self.chunks), default=0)

    def followed_by(self, more: Growing) -> Growing:
        """All that is known after this. Raises ValueError where something lies between the two."""
        if more.begin > self.frames or self.begin:
            raise ValueError(f"frames {self.frames + 1} to {more.begin} have not been told")
        return more.model_copy(
            update={
                "begin": 0,
                "chunks": self.chunks[: more.begin] + more.chunks,
                "mask": more.mask or self.mask,
            }
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


def packed(bad: NDArray[np.bool_]) -> str:
    """A mask as `Growing` has it; "" if it is too large for that."""
    import numpy as np

    text = base64.b64encode(zlib.compress(np.packbits(bad.reshape(-1)).tobytes(), 6)).decode()
    return text if len(text) <= MAX_MASK else ""


class Index(Request):
    """What lies beside a file that is still written."""

    path: str  # that it is going to have, relative to the experiment's folder
    growing: Growing


class Come:
    """A file that is still written, as it lies in the experiment: `file` has its bytes."""

    def __init__(self, file: Path, growing: Growing) -> None:
        self.file = file
        self.growing = growing

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """What has come of the file that is going to be `path`; None where nothing is known of it."""
        for home in path.parents:
            folder = home / FOLDER
            if _is_folder(folder):
                return cls._find(folder, str(PurePosixPath(path.relative_to(home))))
        return None

    @classmethod
    def _find(cls, folder: Path, path: str) -> Self | None:
        best: Self | None = None
        for place in folder.glob(f"*{INDEX}"):
            index = _read(place)
            if index and index.path == path and (best is None or index.growing.frames > best.growing.frames):
                best = cls(place.with_suffix(""), index.growing)
        return best


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False


def _read(path: Path) -> Index | None:
    """An index; None where it has just been taken away."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_INDEX)
    except FileNotFoundError:
        return None
    try:
        return Index.model_validate_json(content)
    except ValidationError as error:
        raise UnreadableFile(path.name, f"it is no index of frames ({error.error_count()} faults)") from error
