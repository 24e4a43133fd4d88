"""Do beforehand what jobs would wait for: `python -m beamhub_notebooks.warm`.

All kernels are compiled into numba's cache (`NUMBA_CACHE_DIR`, or a place of the user's own), and matplotlib
gets to know the system's fonts. Run it again after an upgrade, or on another kind of processor: numba notices
by itself what is out of date.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from beamhub.frames import picture

from beamhub_notebooks import plots
from beamhub_notebooks.geometry import Geometry
from beamhub_notebooks.radial import Radial
from beamhub_notebooks.spots import Frame, SpotFinder

TYPES = ("uint8", "uint16", "uint32")  # of frames that detectors write


def main() -> None:
    """Run every kernel once for each data type of frames, and draw once."""
    picture.warm()
    geometry = Geometry(1.0, 0.1, (75e-6, 75e-6), (16.0, 16.0), (32, 32))
    mask = np.zeros(geometry.shape, np.bool_)
    finder, radial = SpotFinder(mask), Radial(geometry, mask)
    for dtype in TYPES:
        frame: Frame = np.ones(geometry.shape, dtype)
        frame[10:12, 10:12] = 100
        radial.profile(frame, finder.find(frame))
    figure = plots.spots_per_frame([1, 2], [10, 20], title="warm")
    figure.savefig(BytesIO())


if __name__ == "__main__":
    main()
