"""Following a dataset while its files arrive one by one, or while they are written.

A file appears under its final name when it is complete; of one that is still written, it is known which
frames have come. So all there is to watch for is the one frame that comes next, every `POLL` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from beamhub.frames import formats
from beamhub.frames.format import MissingFrameError
from beamhub.frames.reader import open_dataset

from beamhub_notebooks.errors import ProcessingError
from beamhub_notebooks.geometry import Geometry
from beamhub_notebooks.spots import Frame

T = TypeVar("T")

POLL = 0.1  # seconds


class LiveDataset:
    """A dataset that may still be growing."""

    def __init__(self, data: str | Path) -> None:
        """Read what is announced: by the master file, also while that is still written, or by the first file
        of a series `lyso_#####.cbf`.

        Raises:
            FileProblem: (of `beamhub.frames.outside`) it is no dataset, or damaged.
        """
        self.path = Path(data)
        self.frames = open_dataset(self.path)

    @property
    def name(self) -> str:
        """The dataset's name."""
        path = PurePosixPath(self.path)
        format_ = formats.of(path)
        return (format_.title(path) if format_ else None) or path.stem

    @property
    def announced(self) -> int:
        """How many frames there will be; where nobody knows, up to the last that is there."""
        return len(self.frames)

    @property
    def open_ended(self) -> bool:
        """Whether nobody knows how many frames will come."""
        return self.frames.info.frames_announced is None

    @property
    def readable(self) -> int:
        """How many frames, from the first one on, can be read now."""
        return self.frames.readable()

    @property
    def published(self) -> int:
        """How many frames, from the first one on, lie in files that are complete: other programs can read
        them."""
        return self.frames.published()

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """True where a pixel must not be used."""
        return self.frames.mask

    @property
    def geometry(self) -> Geometry:
        """Where its pixels lie."""
        return Geometry.of(self.frames.info.metadata, self.frames.info.shape)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of a raster; None for other datasets."""
        size = [self.frames.info.metadata.get(name) for name in ("grid_rows", "grid_columns")]
        rows, columns = (item.value if item is not None else None for item in size)
        return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None

    def on_grid(
        self, frames: Sequence[int], values: Sequence[float]
    ) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
        """One value per frame of a raster, by row and column (NaN: not measured), and where it is largest.

        Rows and columns count from 1; frames go along the rows.

        Raises:
            ValueError: the dataset is no raster.
        """
        if self.grid is None:
            raise ValueError(f"{self.name} is not a raster")
        laid_out = np.full(self.grid, np.nan)
        laid_out.flat[np.asarray(frames, np.int64) - 1] = values
        row, column = np.unravel_index(int(np.nanargmax(laid_out)), laid_out.shape)
        return laid_out, (int(row) + 1, int(column) + 1)

    def outcome(self, done: int) -> str:
        """What there is when `done` frames have arrived, in a few words.

        Raises:
            ProcessingError: there is not a single one.
        """
        if done == 0 and self.readable:
            raise ProcessingError(
                f"The frames of {self.name} that have arrived lie in a file that is still written: they can "
                "be looked at, but other programs can't read them yet. Run this again when it is complete."
            )
        if done == 0:
            raise ProcessingError(
                f"No frame of {self.name} has arrived. Look whether the instrument's agent is connected, and "
                "run this again when files arrive."
            )
        if self.open_ended:
            lost = self.announced - done
            return _frames(done) + (f", {lost} among them missing" if lost > 0 else "")
        if done < self.announced:
            return f"stopped early after {done} of {self.announced} frames"
        return f"all {self.announced} frames"

    def progress(self, done: int) -> tuple[float | None, str]:
        """How far the work has come with `done` frames, 0 to 1 (None: unknown), and in words."""
        if self.open_ended:
            return None, _frames(done)
        return done / self.announced, f"{done} of {self.announced} frames"

    def map(
        self, analyse: Callable[[Frame], T], *, threads: int = 1, stall_timeout: float = 120.0
    ) -> Iterator[tuple[int, T]]:
        """`analyse` every frame as it arrives: frame numbers (from 1) and results, in the order of the
        frames.

        Ends when all announced frames are done, when nothing more can come (where nobody knows how many
        frames there will be: when the file is complete), or when nothing new has come for `stall_timeout`
        seconds. Then also what came after the first missing file is analysed.

        Args:
            analyse: called in several threads at once.
            threads: how many.
            stall_timeout: seconds.
        """
        done = 0
        with ThreadPoolExecutor(threads) as pool:
            while self._arrives(done, stall_timeout):
                for number, result in self._analyse(pool, analyse, range(done, self.frames.run_ends(done))):
                    yield number, result
                    done = number
            later = [number for number in range(done, self.announced) if self.frames.has(number)]
            yield from self._analyse(pool, analyse, later)

    def _analyse(
        self, pool: ThreadPoolExecutor, analyse: Callable[[Frame], T], numbers: Sequence[int]
    ) -> Iterator[tuple[int, T]]:
        """Frames are numbered from 0 here. Ends before one that has been taken away: it is sent again."""

        def read_and_analyse(number: int) -> T:
            return analyse(_counts(self.frames.frame(number)))

        results = pool.map(read_and_analyse, numbers)
        for number in numbers:
            try:
                result = next(results)
            except MissingFrameError:
                return
            yield number + 1, result

    def _arrives(self, number: int, stall_timeout: float) -> bool:
        """Wait for a frame (from 0); False if it can't come, or if nothing at all has come for
        `stall_timeout` seconds."""
        while True:
            arrived, begun = self.frames.files_arrived(), time.monotonic()
            while True:
                if not self.open_ended and number >= self.announced:
                    return False
                ended = self.frames.ended()  # before the look: it may end between the two
                # of a series, the first that came need not be the first frame
                if self.frames.has(number) and (number > 0 or self.frames.begun):
                    return True
                if ended:
                    return False
                if max(time.monotonic() - begun, self.frames.quiet()) >= stall_timeout:
                    break
                time.sleep(POLL)
            if self.frames.files_arrived() == arrived:
                return False


def _frames(count: int) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def _counts(frame: npt.NDArray[Any]) -> Frame:
    """A frame as unsigned integers (some detectors write signed ones), masked pixels at the largest value."""
    if frame.dtype.kind == "u":
        return frame
    unsigned = np.dtype(frame.dtype.str.replace("i", "u"))
    masked = frame == np.iinfo(frame.dtype).max
    return np.where(masked, np.iinfo(unsigned).max, frame).astype(unsigned)
