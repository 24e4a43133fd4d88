"""Ice on the crystal: powder rings at the lattice spacings of hexagonal ice.

The spacings are those of ice Ih (a = 4.498, c = 7.338 Å, P 6₃/mmc), as XDS lists them for
EXCLUDE_RESOLUTION_RANGE (Kabsch, W. (2010), Acta Cryst. D66, 125-132). How ice looks in diffraction data, and
how it harms them: Thorn, A. et al. (2017), "AUSPEX: a graphical tool for X-ray diffraction data analysis",
Acta Cryst. D73, 729-737.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from beamhub_notebooks.geometry import Geometry
from beamhub_notebooks.radial import Profile

# Å. Left out are 1.948, 1.918 and 1.883: they lie so close together that there is no background between them.
SPACINGS = (3.897, 3.669, 3.441, 2.671, 2.249, 2.072, 1.721)

# Relative distances from a ring's spacing.
BAND = 0.006  # belongs to the ring
FLANK = (0.012, 0.026)  # background on either side


@dataclass(frozen=True)
class Ring:
    """One ice ring on one frame."""

    spacing: float  # Å
    excess: float  # counts above the background, as a fraction of it
    significance: float  # the same in standard deviations


class IceRings:
    """Looks for ice rings in the background of one detector's frames."""

    def __init__(
        self, geometry: Geometry, *, min_excess: float = 0.08, min_significance: float = 6.0
    ) -> None:
        """An ice ring stands `min_excess` (fraction) and `min_significance` (σ) above its surroundings."""
        self.geometry = geometry
        self.min_excess = min_excess
        self.min_significance = min_significance

    def measure(self, profile: Profile) -> list[Ring]:
        """All rings that lie on the detector, ice or not.

        The surroundings are taken as the mean of an inner and an outer flank, so that a background that
        rises or falls evenly does not count as a ring.
        """
        spacing = self.geometry.spacing(np.arange(len(profile.pixels)) + 0.5)
        rings = []
        for ice in SPACINGS:
            offset = spacing / ice - 1
            band = np.abs(offset) <= BAND
            inner = (offset >= FLANK[0]) & (offset <= FLANK[1])
            outer = (-offset >= FLANK[0]) & (-offset <= FLANK[1])
            counts, pixels = zip(
                *((profile.counts[part].sum(), profile.pixels[part].sum()) for part in (band, inner, outer)),
                strict=True,
            )
            if min(pixels) < 100:
                continue
            level, low, high = (c / p for c, p in zip(counts, pixels, strict=True))
            around = (low + high) / 2
            # Poisson: the variance of a mean over n pixels is the mean divided by n
            sigma = np.sqrt(level / pixels[0] + (low / pixels[1] + high / pixels[2]) / 4)
            if around > 0 and sigma > 0:
                rings.append(Ring(ice, float(level / around - 1), float((level - around) / sigma)))
        return rings

    def found(self, profile: Profile) -> bool:
        """Is there at least one ice ring?"""
        return any(
            ring.excess >= self.min_excess and ring.significance >= self.min_significance
            for ring in self.measure(profile)
        )
