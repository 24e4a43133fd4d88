"""Master files with all that they point to, and series of single frames."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from beamhub.schemas.models import Model, Quantity, Request
from beamhub.schemas.words import Reason

__all__ = ["Dataset", "DatasetKind", "DatasetMove", "DatasetState"]


class DatasetKind(StrEnum):
    ROTATION = "rotation"
    RASTER = "raster"  # a grid scan
    STILL = "still"


class DatasetState(StrEnum):
    RECEIVING = "receiving"
    COMPLETE = "complete"  # every announced frame is readable
    INCOMPLETE = "incomplete"  # stopped early


class Dataset(Model):
    """One master file with all that it points to, or a series of files of one frame each."""

    id: int
    experiment: str
    name: str  # the master's without "_master.h5" or ".nxs", the series' without its number
    path: str  # of the master, or as raw/lyso_#####.cbf, relative to the experiment's folder
    format: str = "nxmx"  # how frames are stored: nxmx, cbf, tiff
    kind: DatasetKind
    state: DatasetState
    open_ended: bool = False  # nobody knows how many frames will come: as many are announced as have come
    frames_announced: int
    frames_readable: int  # frames 1..frames_readable can be read now
    shape: tuple[int, int]  # rows (slow), columns (fast)
    metadata: dict[str, Quantity]  # NeXus names: wavelength, detector_distance, beam_center_x, ...
    created: datetime
    ended: datetime | None


class DatasetMove(Request):
    """To which other experiment of the same instrument a dataset belongs, and why."""

    experiment: Annotated[str, StringConstraints(min_length=1, max_length=60)]
    reason: Reason = Field(min_length=1)
