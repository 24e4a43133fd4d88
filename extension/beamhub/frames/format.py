"""What a detector format is: which files make a dataset, what they say about it, and how a frame is read.

A format is one class that fits `Format`, listed in `beamhub.frames.formats`. The service uses nothing of it
but names (`part`, `title`); whatever opens a file (`look`, `frames`) runs where memory and time are bounded:
in the child process of `beamhub.frames.inspect`, or in a job's sandbox.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from beamhub.frames.outside import HostileFile
from beamhub.schemas import DatasetKind, Quantity

if TYPE_CHECKING:  # an ingest process, which shows no frames, does without numpy
    import numpy as np
    from numpy.typing import NDArray

MAX_FRAMES = 10_000_000
MAX_FILES = 20_000  # of a dataset that a master announces
MAX_PIXELS = 1 << 28
MAX_SIDE = 65_535


@dataclass(frozen=True)
class Part:
    """What a file's name tells.

    `dataset` is the path of the dataset that the file begins or belongs to: a master's own path, or that of a
    series, `run/lyso_#####.cbf`; None for a data file, which only a master can place. `number` is the file's
    own in a series, else None.
    """

    format: str
    dataset: str | None
    number: int | None = None

    @property
    def is_member(self) -> bool:
        """Whether it is a file of a series."""
        return self.number is not None


@dataclass(frozen=True)
class DataFile:
    """One data file of a dataset, as the master names it.

    `name` is relative to the master's folder, `link` the dataset's path inside the data file. `first` is the
    number (from 0) of its first frame and `frames` how many it will hold; None where only the file can tell.
    """

    name: str
    link: str
    first: int | None = None
    frames: int | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """What is announced of a dataset.

    `frames_announced` is None where nobody knows how many will come (a series of files, or a file that is
    still written and doesn't tell). `shape` is (rows, columns), `dtype` numpy's name of the counts' type;
    `metadata` has NXmx names and their units.
    """

    kind: DatasetKind
    frames_announced: int | None
    shape: tuple[int, int]
    dtype: str
    files: tuple[DataFile, ...]
    metadata: dict[str, Quantity]


@dataclass(frozen=True)
class Contents:
    """What a file holds: the announcement of a dataset, frames (whole ones, to the first hole), or both."""

    info: DatasetInfo | None
    frames: int | None


class Frames(abc.ABC):
    """The frames of one dataset, numbered from 0, as far as they have arrived; any thread may read any."""

    name: str  # of the master, or of the series
    info: DatasetInfo
    first_number = 1  # what the instrument calls the first frame

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many are announced; where nobody knows, up to the last that is there."""

    @abc.abstractmethod
    def has(self, index: int) -> bool:
        """Whether the frame has arrived."""

    @abc.abstractmethod
    def counts(self, index: int) -> NDArray[Any]:
        """A frame as it was stored: rows × columns of whole numbers.

        Raises:
            MissingFrameError: it has not arrived.
            HostileFile, UnreadableFile: its file is not what it should be.
        """

    @abc.abstractmethod
    def files_arrived(self) -> int:
        """How many of its files are there; of one that is still written, each of its frames counts."""

    @abc.abstractmethod
    def file(self, index: int) -> Path | None:
        """The file that a frame lies in; None while it is not there, or still written."""

    @property
    @abc.abstractmethod
    def mask(self) -> NDArray[np.bool_]:
        """True where a pixel doesn't count."""

    @property
    def begun(self) -> bool:
        """Whether it is known which frame is the first."""
        return True

    def ended(self) -> bool:
        """Whether it is known that nothing more can come."""
        return False

    def quiet(self) -> float:
        """For how many seconds no file has come, 0 where that can't be told."""
        return 0.0

    @property
    def saturation(self) -> int:
        """The largest count that is a measurement; what is above, is masked."""
        import numpy as np

        top = int(np.iinfo(self.info.dtype).max)
        told = self.info.metadata.get("saturation_value")
        return min(top - 1, int(told.value)) if told and isinstance(told.value, int | float) else top - 1

    def run_ends(self, start: int = 0) -> int:
        """The first frame from `start` on that has not arrived."""
        while self.has(start):
            start += 1
        return start

    def readable(self) -> int:
        """How many frames from the first on have arrived without a gap."""
        return self.run_ends()

    def published(self) -> int:
        """How many of these lie in files that are complete, so that other programs can read them."""
        return self.readable()

    def frame(self, index: int) -> NDArray[Any]:
        """A frame in which masked pixels have the largest value of the type. Raises as `counts` does."""
        from beamhub.frames import picture  # compiled code, which those who only look at files do without

        return picture.mark(self.counts(index), self.mask, self.saturation)


class MissingFrameError(LookupError):
    """The frame has not arrived (yet), or the dataset has no such frame."""


class Format(Protocol):
    """A way in which detectors store their frames."""

    name: str  # in the store and in the API

    def part(self, path: PurePosixPath) -> Part | None:
        """What a file of this name is, None if it is none of this format. Looks at the name only."""

    def title(self, dataset: PurePosixPath) -> str | None:
        """What a dataset at this path is called, None if it is none of this format."""

    def look(self, path: Path, root: Path) -> Contents:
        """What a file that has arrived holds.

        Args:
            path: the file.
            root: the folder that neither the file nor anything it names may leave.

        Raises:
            HostileFile: it points out of its folder, or makes absurd claims.
            UnreadableFile: it is damaged, or not what its name says.
            FileNotFoundError: it is gone.
        """

    def frames(self, dataset: Path, root: Path, first: int | None = None) -> Frames:
        """The frames of the dataset at this path. Raises as `look` does.

        Args:
            first: the number of a series' first file, if it is known better than by looking into the folder.
        """


def check_size(name: str, frames: int, shape: tuple[int, int]) -> None:
    """Raises HostileFile for frames that no detector takes."""
    if (
        not 0 <= frames <= MAX_FRAMES
        or min(shape) < 1
        or max(shape) > MAX_SIDE
        or math.prod(shape) > MAX_PIXELS
    ):
        raise HostileFile(name, f"it claims {frames} frames of {shape[0]} × {shape[1]} pixels")


def plain_text(text: str) -> str:
    """One line of printable text out of a header, at most 200 characters."""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()
