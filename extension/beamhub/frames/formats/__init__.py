"""The formats that are understood. To add one, write its class and list it here."""

from __future__ import annotations

from pathlib import PurePosixPath

from beamhub.frames.format import Format, Part
from beamhub.frames.formats.nxmx import Nxmx
from beamhub.frames.formats.series import Cbf, Tiff

FORMATS: dict[str, Format] = {one.name: one for one in (Nxmx(), Cbf(), Tiff())}


def part(path: PurePosixPath) -> Part | None:
    """What a file is by its name; None for a plain file."""
    return next(filter(None, (one.part(path) for one in FORMATS.values())), None)


def is_series(dataset: PurePosixPath) -> bool:
    """Whether a dataset is one of many files of its own name, a frame each, and not begun by a master."""
    return part(dataset) is None


def of(dataset: PurePosixPath) -> Format | None:
    """The format of a dataset, by its path."""
    return next((one for one in FORMATS.values() if one.title(dataset) is not None), None)
