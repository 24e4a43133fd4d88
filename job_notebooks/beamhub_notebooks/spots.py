"""Bragg spots on one frame.

A pixel is strong where its neighbourhood is more widely dispersed than a Poisson background is, and where it
stands out of that neighbourhood: the `dispersion` criterion of DIALS (Winter, G. et al. (2018), "DIALS:
implementation and evaluation of a new integration package", Acta Cryst. D74, 85-97), which goes back to the
spot finder of XDS (Kabsch, W. (2010), Acta Cryst. D66, 125-132). Strong pixels that share an edge make a
spot. The defaults are those of DIALS for photon-counting detectors.

Sums over the neighbourhood are kept running along the columns, so that the time for a frame does not depend
on the height of its background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from beamhub_notebooks.compiled import kernel

Frame = npt.NDArray[np.unsignedinteger[Any]]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

# Counts are cut here: the sum of the squares of 49 such pixels is still exact in a float64.
CEILING = 2**23


@dataclass(frozen=True)
class Spots:
    """The spots of one frame, and the strong pixels they are made of.

    Positions are in pixels, the first pixel reaching from 0 to 1.
    """

    x: Floats  # centroid along the fast axis
    y: Floats  # centroid along the slow axis
    pixels: Ints  # strong pixels in each spot
    counts: Floats  # sum over these
    strong: tuple[Ints, Ints]  # rows and columns of all strong pixels, those of rejected spots included

    def __len__(self) -> int:
        return len(self.x)


class SpotFinder:
    """Finds spots on the frames of one detector; safe to use from several threads at once."""

    def __init__(
        self,
        mask: npt.NDArray[np.bool_],
        *,
        sigma_background: float = 6.0,
        sigma_strong: float = 3.0,
        min_pixels: int = 3,
        max_pixels: int = 1000,
        max_separation: float = 2.0,
        radius: int = 3,
    ) -> None:
        """Describe what a spot is.

        Args:
            mask: True where a pixel must not be used (gap, dead, hot); shape of the frames.
            sigma_background: how far, in standard deviations, the dispersion of a neighbourhood has to exceed
                that of a Poisson background.
            sigma_strong: how far, in standard deviations, a strong pixel stands above its neighbourhood's
                mean.
            min_pixels: smaller spots are taken for noise.
            max_pixels: larger ones for a beam stop's shadow, a ring or the direct beam.
            max_separation: in pixels, between brightest pixel and centroid; what is longer is not one spot.
            radius: of the neighbourhood, in pixels: 3 is a square of 7 x 7.
        """
        self.usable = np.ascontiguousarray(~mask)
        self.sigma_background = float(sigma_background)
        self.sigma_strong = float(sigma_strong)
        self.min_pixels = int(min_pixels)
        self.max_pixels = int(max_pixels)
        self.max_separation = float(max_separation)
        self.radius = int(radius)

    def find(self, frame: Frame) -> Spots:
        """Spots on `frame`; pixels at the data type's largest value are masked, as DECTRIS writes them.

        Raises:
            ValueError: the frame has another shape than the mask, or holds no counts.
        """
        if frame.shape != self.usable.shape or frame.dtype.kind != "u":
            raise ValueError(
                f"a frame of this detector has {self.usable.shape} unsigned integers, "
                f"not {frame.shape} of {frame.dtype}"
            )
        frame = np.require(frame, requirements=["C", "W"])  # one memory layout: one compiled version
        rows, columns = _strong_pixels(
            frame,
            self.usable,
            frame.dtype.type(np.iinfo(frame.dtype).max),
            self.radius,
            self.sigma_background,
            self.sigma_strong,
        )
        x, y, pixels, counts, separation = _measure(
            frame, rows, columns, *_label(rows, columns, frame.shape[1])
        )
        kept = (pixels >= self.min_pixels) & (pixels <= self.max_pixels) & (separation <= self.max_separation)
        return Spots(x[kept], y[kept], pixels[kept], counts[kept], (rows, columns))


@kernel
def _strong_pixels(
    frame: Frame,
    usable: npt.NDArray[np.bool_],
    masked: np.unsignedinteger[Any],
    radius: int,
    sigma_background: float,
    sigma_strong: float,
) -> tuple[Ints, Ints]:
    """Rows and columns of the strong pixels, in reading order.

    With m usable pixels in the neighbourhood, s the sum of their counts and q the sum of squares, the
    variance is compared with the mean: q m - s^2 - s (m-1) > s sigma_background sqrt(2 (m-1)); and the
    pixel's count v with the mean: v m - s > sigma_strong sqrt(s m). Few pixels come as far as that: the
    others have failed a quicker test.
    """
    height, width = frame.shape
    size = 2 * radius + 1
    counts = np.zeros((size, width), np.int32)  # the last rows read, 0 where not usable
    good = np.zeros((size, width), np.int32)
    padded_m = np.zeros(width + 2 * radius, np.int32)  # sums over these rows, along each column
    padded_s = np.zeros(width + 2 * radius, np.int32)
    padded_q = np.zeros(width + 2 * radius, np.float64)
    column_m = padded_m[radius : radius + width]
    column_s = padded_s[radius : radius + width]
    column_q = padded_q[radius : radius + width]
    box_m = np.zeros(width, np.int32)  # sums over the neighbourhood of each pixel of a row
    box_s = np.zeros(width, np.int32)
    candidate = np.zeros(width, np.bool_)
    dispersion = sigma_background * np.sqrt(2.0 * np.maximum(np.arange(size * size + 1) - 1.0, 0.0))
    rows = np.empty(0, np.int32)
    columns = np.empty(0, np.int32)
    found = 0

    for y in range(height + radius):
        row = counts[y % size]
        row_good = good[y % size]
        _take_out(row, row_good, column_m, column_s, column_q)  # the oldest
        if y < height:
            _read(frame[y], usable[y], masked, row, row_good)
            _take_in(row, row_good, column_m, column_s, column_q)
        else:
            row_good[:] = 0
            row[:] = 0
        centre = y - radius
        if centre < 0:
            continue

        box_m[:] = 0
        box_s[:] = 0
        for k in range(size):
            shifted_m = padded_m[k : k + width]
            shifted_s = padded_s[k : k + width]
            for x in range(width):
                box_m[x] += shifted_m[x]
            for x in range(width):
                box_s[x] += shifted_s[x]
        row = counts[centre % size]
        _candidates(row, box_m, box_s, sigma_strong, candidate)
        if found + width > len(rows):
            rows = np.concatenate((rows, np.empty(len(rows) + width, np.int32)))
            columns = np.concatenate((columns, np.empty(len(columns) + width, np.int32)))
        for x in range(width):
            if not candidate[x] or box_m[x] < 2:
                continue
            m = np.float64(box_m[x])
            s = np.float64(box_s[x])
            if row[x] * m - s > sigma_strong * np.sqrt(s * m):
                q = 0.0
                for k in range(size):
                    q += padded_q[x + k]
                if q * m - s * s - s * (m - 1) > s * dispersion[box_m[x]]:
                    rows[found] = centre
                    columns[found] = x
                    found += 1
    return rows[:found].copy(), columns[:found].copy()


# Each small loop goes over one row and few arrays, in a form that compiles to vector instructions.


@kernel
def _read(
    pixels: Frame, usable: npt.NDArray[np.bool_], masked: np.unsignedinteger[Any], row: Ints, good: Ints
) -> None:
    """A row's counts, 0 where they are not usable."""
    for x in range(len(row)):
        good[x] = np.int32(usable[x]) & np.int32(pixels[x] != masked)
    for x in range(len(row)):
        row[x] = np.int32(min(pixels[x], CEILING)) * good[x]


@kernel
def _take_in(row: Ints, good: Ints, m: Ints, s: Ints, q: Floats) -> None:
    """Adds a row to the sums along each column."""
    for x in range(len(row)):
        m[x] += good[x]
    for x in range(len(row)):
        s[x] += row[x]
    for x in range(len(row)):
        q[x] += np.float64(row[x]) * np.float64(row[x])


@kernel
def _take_out(row: Ints, good: Ints, m: Ints, s: Ints, q: Floats) -> None:
    """Takes a row from the sums along each column."""
    for x in range(len(row)):
        m[x] -= good[x]
    for x in range(len(row)):
        s[x] -= row[x]
    for x in range(len(row)):
        q[x] -= np.float64(row[x]) * np.float64(row[x])


@kernel
def _candidates(row: Ints, m: Ints, s: Ints, sigma_strong: float, candidate: npt.NDArray[np.bool_]) -> None:
    """Which pixels may be strong: in single precision and with a margin, which costs nothing."""
    loose = np.float32(0.99 * sigma_strong * sigma_strong)
    for x in range(len(row)):
        above = np.float32(row[x]) * np.float32(m[x]) - np.float32(s[x])
        candidate[x] = (above > 0) & (above * above > loose * np.float32(s[x]) * np.float32(m[x]))


@kernel
def _label(rows: Ints, columns: Ints, width: int) -> tuple[Ints, int]:
    """Number the groups of pixels that share edges: a number from 0 for each pixel, and how many there are.

    Pixels come in reading order. Groups are trees, each pixel pointing to an earlier one of its group.
    """
    n = len(rows)
    parent = np.empty(n, np.int32)
    above = np.full(width, -1, np.int32)  # the last pixel met in each column
    for k in range(n):
        root = k
        if k > 0 and rows[k - 1] == rows[k] and columns[k - 1] == columns[k] - 1:
            root = parent[k - 1]
            while parent[root] != root:
                root = parent[root]
        up = above[columns[k]]
        if up >= 0 and rows[up] == rows[k] - 1:
            while parent[up] != up:
                parent[up] = parent[parent[up]]
                up = parent[up]
            low, high = min(root, up), max(root, up)
            parent[high] = low
            root = low
        parent[k] = root
        above[columns[k]] = k
    labels = np.empty(n, np.int32)
    groups = 0
    for k in range(n):
        if parent[k] == k:
            labels[k] = groups
            groups += 1
        else:
            labels[k] = labels[parent[k]]
    return labels, groups


@kernel
def _measure(
    frame: Frame, rows: Ints, columns: Ints, labels: Ints, groups: int
) -> tuple[Floats, Floats, Ints, Floats, Floats]:
    """Centroid (x, y), size, counts, and distance from centroid to brightest pixel, of each group."""
    x = np.zeros(groups)
    y = np.zeros(groups)
    pixels = np.zeros(groups, np.int32)
    counts = np.zeros(groups)
    peak = np.full(groups, -1, np.int32)
    for k in range(len(rows)):
        group = labels[k]
        value = np.float64(frame[rows[k], columns[k]])
        x[group] += value * (columns[k] + 0.5)
        y[group] += value * (rows[k] + 0.5)
        pixels[group] += 1
        counts[group] += value
        best = peak[group]
        if best < 0 or value > frame[rows[best], columns[best]]:
            peak[group] = k
    separation = np.zeros(groups)
    for group in range(groups):
        x[group] /= counts[group]
        y[group] /= counts[group]
        best = peak[group]
        separation[group] = np.hypot(columns[best] + 0.5 - x[group], rows[best] + 0.5 - y[group])
    return x, y, pixels, counts, separation
