"""The frames of a dataset, opened where the caller is: in a job's sandbox, or in the service's child."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from beamhub.frames import formats
from beamhub.frames.format import Frames
from beamhub.frames.outside import UnreadableFile


def open_dataset(path: Path, root: Path | None = None, first: int | None = None) -> Frames:
    """The frames of the dataset at `path`: a master file, or a series as `lyso_#####.cbf`.

    Args:
        root: the folder that nothing may leave; the dataset's own by default.
        first: the number of a series' first file; by default the lowest in its folder.

    Raises:
        HostileFile, UnreadableFile, FileNotFoundError: as `Format.look` does.
    """
    format_ = formats.of(PurePosixPath(path))
    if format_ is None:
        raise UnreadableFile(path.name, "it is no dataset of a known format")
    return format_.frames(path, root or path.parent, first)
