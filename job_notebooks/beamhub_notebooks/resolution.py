"""To which resolution does a crystal diffract? An estimate from the spots of a single frame.

Inside its limit, a rotating crystal puts spots evenly into reciprocal space; outside there are hardly any
(this is also what DISTL builds upon: Zhang, Z., Sauter, N. K., van den Bedem, H., Snell, G. & Deacon, A. M.
(2006), "Automated diffraction image analysis and spot searching for high-throughput crystal screening", J.
Appl. Cryst. 39, 112-119). DISTL takes 1/d³ as the measure of reciprocal space; here it is the volume that the
usable pixels really sweep, so that gaps, masks and the corners of the detector do not look like a limit. A
pixel at the scattering angle 2θ sweeps, when the crystal turns, a volume in proportion to cos³2θ (its solid
angle on a flat detector) times sin 2θ (the inverse Lorentz factor, averaged over the directions of the axis).

The limit encloses the volume in which nine tenths of the spots lie, divided by nine tenths: exact for an even
density, close to the last spots for one that fades, and not moved by a few spots far out. A single frame of a
crystal with a small cell has its spots in lunes, which shells of resolution cut at random; a volume of nine
tenths averages over them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from beamhub_notebooks.geometry import Geometry
from beamhub_notebooks.spots import Spots

MIN_SPOTS = 10  # with fewer, no estimate
QUANTILE = 0.9


class ResolutionLimit:
    """Estimates the resolution limit of one detector's frames."""

    def __init__(self, geometry: Geometry, mask: npt.NDArray[np.bool_]) -> None:
        """`mask` is True where a pixel must not be used."""
        self.geometry = geometry
        rings = geometry.rings()[~mask]
        angle = geometry.angle(np.arange(int(rings.max(initial=0)) + 1) + 0.5)
        swept = np.bincount(rings, minlength=len(angle)) * np.cos(angle) ** 3 * np.sin(angle)
        self._volume = np.concatenate(([0.0], np.cumsum(swept)))  # inside of each ring
        self._volume /= max(self._volume[-1], 1e-300)

    def volume(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Which part (0..1) of the swept volume lies at lower resolution than a point in pixels."""
        return np.asarray(np.interp(self.geometry.ring(x, y), np.arange(len(self._volume)), self._volume))

    def estimate(self, spots: Spots) -> float | None:
        """The limit in Å, None if there are too few spots to tell; at best the corner of the detector."""
        if len(spots) < MIN_SPOTS:
            return None
        volume = np.quantile(self.volume(spots.x, spots.y), QUANTILE) / QUANTILE
        ring = np.interp(min(float(volume), 1.0), self._volume, np.arange(len(self._volume)))
        return float(self.geometry.spacing(ring))
