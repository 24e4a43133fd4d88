"""What is recorded and how: detector model, geometry, and the sample's way through the beam.

Frame of reference: McStas' and NeXus', metres, the beam along +z, the origin in the crystal. The detector
stands perpendicular to the beam, its rows along -x, its columns along -y; the goniometer turns about -x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from beamhub.simulation.crystal import Crystal, Floats

AXIS = np.array([-1.0, 0.0, 0.0])
FAST = np.array([-1.0, 0.0, 0.0])
SLOW = np.array([0.0, -1.0, 0.0])

GAP, DEAD, NOISY = 1, 2, 16  # bits of a DECTRIS pixel mask
BEAM_STOP_RADIUS, BEAM_STOP_ARM = 1.2e-3, 0.5e-3  # m


@dataclass(frozen=True)
class Detector:
    """A pixel detector of equal modules.

    `modules`, `module` and `gap` are (columns, rows): how many modules, the pixels of one, the pixels between
    them. `distance` (m) is where it usually stands.
    """

    name: str
    modules: tuple[int, int]
    distance: float
    module: tuple[int, int] = (1028, 512)
    gap: tuple[int, int] = (12, 38)
    pixel: float = 75e-6  # m
    sensor: float = 450e-6  # m of silicon

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        columns, rows = (
            n * m + (n - 1) * g for n, m, g in zip(self.modules, self.module, self.gap, strict=True)
        )
        return rows, columns

    def mask(self, seed: int) -> NDArray[np.uint32]:
        """DECTRIS pixel mask: 0 where a pixel counts, GAP between modules, and a few DEAD and NOISY ones."""
        mask = np.full(self.shape, GAP, np.uint32)
        (across, down), (columns, rows), (gap_x, gap_y) = self.modules, self.module, self.gap
        for j in range(down):
            for i in range(across):
                top, left = j * (rows + gap_y), i * (columns + gap_x)
                mask[top : top + rows, left : left + columns] = 0
        rng = np.random.default_rng([seed, 2])
        some = math.prod(self.shape) // 100_000
        for bit in (DEAD, NOISY):
            y, x = (rng.integers(0, size, some) for size in self.shape)
            mask[y, x] |= np.where(mask[y, x] & GAP, 0, bit).astype(np.uint32)
        return mask


EIGER = {
    "1M": Detector("EIGER2 1M", (1, 2), 0.13),
    "4M": Detector("EIGER2 4M", (2, 4), 0.15),
    "16M": Detector("EIGER2 16M", (4, 8), 0.25),
}

_pilatus = partial(Detector, module=(487, 195), gap=(7, 17), pixel=172e-6)
PILATUS = {
    "300K": _pilatus("PILATUS3 300K", (1, 3), 0.1),
    "1M": _pilatus("PILATUS3 1M", (2, 5), 0.2),
    "2M": _pilatus("PILATUS3 2M", (3, 8), 0.25),
    "6M": _pilatus("PILATUS3 6M", (5, 12), 0.35),
}


@dataclass(frozen=True)
class Grid:
    """A grid scan: rows × columns of positions `step` m apart, an elliptic crystal somewhere among them."""

    rows: int
    columns: int
    step: float = 20e-6
    seed: int = 7

    @cached_property
    def positions(self) -> tuple[Floats, Floats]:
        """(y, x) in m of each frame, row by row, relative to the centre."""
        y = (np.arange(self.rows) - (self.rows - 1) / 2) * self.step
        x = (np.arange(self.columns) - (self.columns - 1) / 2) * self.step
        return np.repeat(y, self.columns), np.tile(x, self.rows)

    @cached_property
    def crystal(self) -> dict[str, float]:
        """The ellipse: centre y, x and half axes in m, angle in rad; it lies well inside the grid."""
        rng = np.random.default_rng([self.seed, 3])
        height, width = self.rows * self.step, self.columns * self.step
        return {
            "y": float(rng.uniform(-0.12, 0.12)) * height,
            "x": float(rng.uniform(-0.12, 0.12)) * width,
            "long": float(rng.uniform(0.28, 0.34)) * min(height, width),
            "short": float(rng.uniform(0.14, 0.2)) * min(height, width),
            "angle": float(rng.uniform(0, math.pi)),
        }

    @cached_property
    def overlap(self) -> Floats:
        """The part of the beam (a disc as wide as a step) that meets the crystal, for each frame, 0 to 1."""
        fine = (np.arange(21) - 10) / 21 * self.step
        dy, dx = (d.ravel() for d in np.meshgrid(fine, fine, indexing="ij"))
        beam = np.hypot(dy, dx) <= self.step / 2
        y, x = self.positions
        shape = self.crystal
        v = y[:, None] + dy[beam] - shape["y"]
        u = x[:, None] + dx[beam] - shape["x"]
        cos, sin = math.cos(shape["angle"]), math.sin(shape["angle"])
        inside = ((u * cos + v * sin) / shape["long"]) ** 2 + ((v * cos - u * sin) / shape["short"]) ** 2 <= 1
        part: Floats = inside.mean(axis=1, dtype=np.float64)
        return part


@dataclass(frozen=True)
class Acquisition:
    """One dataset to be recorded: a rotation or, with a `grid`, a grid scan (the goniometer stands still).

    Args:
        frames: how many; a grid scan has rows × columns.
        width: degrees per frame. In a grid scan, what a rotation would have covered in a frame's time: it
            sets how long a reflection that happens to be in its Bragg position is exposed.
        start: goniometer angle at the beginning, degrees.
        energy: keV.
        distance: from the crystal to the detector, m.
        exposure: seconds per frame.
        background: factor on air scatter and solvent ring; 1 gives up to two photons per pixel and frame.
        ice: factor on the rings of hexagonal ice; 0 for none.
        spot: standard deviation of a spot on the detector, pixels.
        seed: of the photons and of the faulty pixels.
    """

    detector: Detector = EIGER["1M"]
    frames: int = 60
    width: float = 0.5
    start: float = 0.0
    energy: float = 12.4
    distance: float = 0.13
    exposure: float = 0.1
    background: float = 1.0
    ice: float = 0.0
    spot: float = 1.0
    dtype: Literal["uint16", "uint32"] = "uint16"
    seed: int = 7
    crystal: Crystal = field(default_factory=Crystal)
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if self.grid is not None and self.frames != self.grid.rows * self.grid.columns:
            raise ValueError(f"a grid of {self.grid.rows} × {self.grid.columns} has not {self.frames} frames")
        if self.frames < 1 or self.width <= 0 or self.distance <= 0 or self.energy <= 0:
            raise ValueError("frames, width, distance and energy must be positive")

    @property
    def wavelength(self) -> float:
        """Å."""
        return 12.398419843 / self.energy

    @property
    def beam_centre(self) -> tuple[float, float]:
        """(fast, slow) in pixels: beside the middle, where modules meet."""
        rows, columns = self.detector.shape
        return columns * 0.51, rows * 0.446

    @property
    def masked(self) -> int:
        """The value of pixels that don't count."""
        return int(np.iinfo(self.dtype).max)

    @property
    def saturation(self) -> int:
        """The largest count that is reported as such."""
        return self.masked - 2

    @cached_property
    def mask(self) -> NDArray[np.uint32]:
        return self.detector.mask(self.seed)

    @property
    def angles(self) -> Floats:
        """Goniometer angle at the beginning of each frame, degrees."""
        steps = np.arange(self.frames, dtype=np.float64) * (0 if self.grid else 1)
        return self.start + self.width * steps

    @cached_property
    def pixel_positions(self) -> tuple[Floats, Floats, Floats]:
        """x, y (m) of the pixels' centres, and their distance (m) from the crystal."""
        rows, columns = self.detector.shape
        fast, slow = self.beam_centre
        x = -(np.arange(columns) + 0.5 - fast) * self.detector.pixel + np.zeros((rows, 1))
        y = -(np.arange(rows)[:, None] + 0.5 - slow) * self.detector.pixel + np.zeros(columns)
        return x, y, np.sqrt(x * x + y * y + self.distance**2)

    @cached_property
    def beam_stop(self) -> NDArray[np.bool_]:
        """True in the shadow of the beam stop and its arm."""
        x, y, _ = self.pixel_positions
        shadow: NDArray[np.bool_] = (np.hypot(x, y) < BEAM_STOP_RADIUS) | (
            (np.abs(x) < BEAM_STOP_ARM / 2) & (y < 0)
        )
        return shadow

    @property
    def d_min(self) -> float:
        """Resolution in the farthest corner, Å."""
        far = float(self.pixel_positions[2].max())
        return self.wavelength / (2 * math.sin(0.5 * math.acos(self.distance / far)))
