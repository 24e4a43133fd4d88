"""Where a pixel lies, and which resolution it sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from beamhub_notebooks.errors import ProcessingError

Floats = npt.NDArray[np.float64]


class HasValue(Protocol):
    """A quantity of a master file's metadata."""

    @property
    def value(self) -> Any: ...


@dataclass(frozen=True)
class Geometry:
    """A flat detector standing upright in a monochromatic beam.

    A tilt or an offset in two-theta is not taken into account: on such a detector the resolutions are those
    of an upright one, good enough to watch a measurement, not to process it.
    """

    wavelength: float  # Å
    distance: float  # m, crystal to detector
    pixel: tuple[float, float]  # m, (slow, fast)
    centre: tuple[float, float]  # pixels, (slow, fast), the beam on the detector
    shape: tuple[int, int]  # rows, columns

    @classmethod
    def of(cls, metadata: Mapping[str, HasValue], shape: tuple[int, int]) -> Geometry:
        """From a master file's metadata, under their NeXus names.

        Raises:
            ProcessingError: something is missing or cannot be true.
        """

        def positive(name: str) -> float:
            value = metadata[name].value if name in metadata else None
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ProcessingError(
                    f"The master file gives no usable {name.replace('_', ' ')} (found: {value!r}), so no "
                    "resolution can be computed. Have it set at the detector before the next measurement."
                )
            return float(value)

        return cls(
            wavelength=positive("wavelength"),
            distance=positive("detector_distance"),
            pixel=(positive("y_pixel_size"), positive("x_pixel_size")),
            centre=(positive("beam_center_y"), positive("beam_center_x")),
            shape=shape,
        )

    def two_theta(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
        """Scattering angle in radians; `x` (fast), `y` (slow) in pixels, the first one from 0 to 1."""
        across = (np.asarray(x, np.float64) - self.centre[1]) * self.pixel[1]
        down = (np.asarray(y, np.float64) - self.centre[0]) * self.pixel[0]
        return np.arctan2(np.hypot(across, down), self.distance)

    def resolution(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
        """Lattice spacing d in Å that reflects to a point (Bragg's law); infinite in the beam itself."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.wavelength / (2 * np.sin(self.two_theta(x, y) / 2)))

    def ring(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
        """Distance of a point from the beam, in ring widths."""
        return np.asarray(np.tan(self.two_theta(x, y)) * self.distance / self.width)

    def rings(self) -> npt.NDArray[np.int32]:
        """For each pixel the number of the ring around the beam that it belongs to; rings are one pixel wide.

        Ring r holds scattering angles from `angle(r)` up to `angle(r + 1)`.
        """
        y, x = np.ogrid[: self.shape[0], : self.shape[1]]
        return self.ring(x + 0.5, y + 0.5).astype(np.int32)

    def angle(self, ring: npt.ArrayLike) -> Floats:
        """Scattering angle in radians at a distance of `ring` ring widths from the beam."""
        return np.arctan(np.asarray(ring, np.float64) * self.width / self.distance)

    @property
    def edge(self) -> float:
        """Lattice spacing d in Å at the nearest edge of the detector: full rings end here."""
        rows, columns = self.shape
        y, x = self.centre
        return float(self.resolution([x, x, 0, columns], [0, rows, y, y]).max())

    @property
    def width(self) -> float:
        """Of a ring, in m."""
        return min(self.pixel)

    def spacing(self, ring: npt.ArrayLike) -> Floats:
        """Lattice spacing d in Å at a distance of `ring` ring widths from the beam."""
        with np.errstate(divide="ignore"):
            return np.asarray(self.wavelength / (2 * np.sin(self.angle(ring) / 2)))
