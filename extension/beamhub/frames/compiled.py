"""The loops over all pixels of a frame, compiled on first use.

A module of its own, imported where it is needed: the compiler takes 50 MB of memory, which processes that
only receive files can do without.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def mark(image: Any, bad: Any, highest: int, masked: int, marked: Any) -> None:
    rows, columns = image.shape
    for y in range(rows):
        for x in range(columns):
            value = image[y, x]
            marked[y, x] = masked if bad[y, x] or value > highest or value < 0 else value


@numba.njit(cache=True, nogil=True)
def bin_max(image: Any, size: int, best: Any, binned: Any) -> None:
    """Row by row, so that the inner loop is vectorised.

    One is added to each value before they are compared, wrapping round: the masked value becomes the smallest
    of its type and loses to every other. Taking the one away again restores both.
    """
    rows, columns = image.shape
    number = image.dtype.type
    for j in range(binned.shape[0]):
        top = j * size
        for x in range(columns):
            best[x] = number(image[top, x] + 1)
        for y in range(top + 1, min(top + size, rows)):
            for x in range(columns):
                value = number(image[y, x] + 1)
                best[x] = value if value > best[x] else best[x]
        for i in range(binned.shape[1]):
            largest = best[i * size]
            for x in range(i * size + 1, min((i + 1) * size, columns)):
                largest = max(largest, best[x])
            binned[j, i] = number(largest - 1)


@numba.njit(cache=True, nogil=True)
def shade(image: Any, masked: int, shades: Any, indices: Any) -> None:
    rows, columns = image.shape
    brightest = len(shades) - 1
    for y in range(rows):
        for x in range(columns):
            value = image[y, x]
            indices[y, x] = 255 if value == masked else shades[min(np.int64(value), brightest)]
