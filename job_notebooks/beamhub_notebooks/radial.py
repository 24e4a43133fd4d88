"""The background around the beam: mean counts in rings, Bragg spots left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from beamhub_notebooks.compiled import kernel
from beamhub_notebooks.geometry import Geometry
from beamhub_notebooks.spots import Frame, Ints, Spots

GROW = 3  # pixels around a strong one that are left out too: the tails of its spot


@dataclass(frozen=True)
class Profile:
    """Background of one frame, in rings one pixel wide around the beam."""

    counts: npt.NDArray[np.float64]  # sum over the pixels of each ring
    pixels: npt.NDArray[np.int64]  # how many there are

    @property
    def background(self) -> float:
        """Mean counts of a background pixel; NaN where a frame has none."""
        pixels = int(self.pixels.sum())
        return float(self.counts.sum()) / pixels if pixels else float("nan")

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean counts of a background pixel in each ring; NaN in rings without pixels."""
        return np.where(self.pixels > 0, self.counts / np.maximum(self.pixels, 1), np.nan)


class Radial:
    """Measures the background of one detector's frames; safe to use from several threads at once."""

    def __init__(self, geometry: Geometry, mask: npt.NDArray[np.bool_]) -> None:
        """`mask` is True where a pixel must not be used."""
        self.geometry = geometry
        self.rings = np.where(mask, -1, geometry.rings()).astype(np.int32)

    def profile(self, frame: Frame, spots: Spots) -> Profile:
        """Background of `frame`, without the pixels of `spots` and `GROW` pixels around them."""
        frame = np.require(frame, requirements=["C", "W"])
        counts = np.zeros(int(self.rings.max()) + 1)
        pixels = np.zeros(len(counts), np.int64)
        masked = frame.dtype.type(np.iinfo(frame.dtype).max)
        _sum_rings(frame, self.rings, masked, *spots.strong, GROW, counts, pixels)
        return Profile(counts, pixels)


@kernel
def _sum_rings(
    frame: Frame,
    rings: Ints,
    masked: np.unsignedinteger[Any],
    rows: Ints,
    columns: Ints,
    grow: int,
    counts: npt.NDArray[np.float64],
    pixels: npt.NDArray[np.int64],
) -> None:
    """Add each pixel to its ring, unless a strong one is near."""
    height, width = frame.shape
    near = np.zeros((height, width), np.bool_)
    for k in range(len(rows)):
        for y in range(max(0, rows[k] - grow), min(height, rows[k] + grow + 1)):
            for x in range(max(0, columns[k] - grow), min(width, columns[k] + grow + 1)):
                near[y, x] = True
    for y in range(height):
        for x in range(width):
            ring = rings[y, x]
            if ring >= 0 and frame[y, x] != masked and not near[y, x]:
                counts[ring] += frame[y, x]
                pixels[ring] += 1
