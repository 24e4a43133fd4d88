"""Pictures of frames: marking, cutting, binning and colouring, compiled and without holding the interpreter.

In every array here the largest value of its type means "masked": a pixel that does not count. Such pixels
take no part in a maximum, and a binned pixel is masked when all its pixels are.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MASKED_COLOUR = (70, 90, 150)


class RegionError(ValueError):
    """A region or a binning that doesn't fit the frame."""


def mark(image: NDArray[Any], bad: NDArray[np.bool_], highest: int) -> NDArray[Any]:
    """A copy of a frame in which pixels that are `bad`, negative or above `highest` are masked."""
    from beamhub.frames import compiled

    marked = np.empty_like(image)
    compiled.mark(image, bad, highest, np.iinfo(image.dtype).max, marked)
    return marked


def cut(image: NDArray[Any], region: tuple[int, int, int, int]) -> NDArray[Any]:
    """The part of a frame in `region`: (x0, y0, x1, y1) in pixels, x1 and y1 not included.

    Raises:
        RegionError: it is empty or reaches beyond the frame.
    """
    x0, y0, x1, y1 = region
    rows, columns = image.shape
    if not (0 <= x0 < x1 <= columns and 0 <= y0 < y1 <= rows):
        raise RegionError(
            f"the region x {x0} to {x1}, y {y0} to {y1} doesn't lie in a frame of {columns} × {rows} pixels"
        )
    return np.ascontiguousarray(image[y0:y1, x0:x1])


def bin_max(image: NDArray[Any], size: int) -> NDArray[Any]:
    """Each block of `size` × `size` pixels as its largest one, so that no spot is lost.

    Raises:
        RegionError: the size is not positive.
    """
    if size < 1:
        raise RegionError(f"can't bin by {size}; take 1 or more")
    if size == 1:
        return image
    from beamhub.frames import compiled

    rows, columns = image.shape
    binned = np.empty((-(-rows // size), -(-columns // size)), image.dtype)
    compiled.bin_max(image, size, np.empty(columns, image.dtype), binned)
    return binned


def to_png(
    image: NDArray[Any], low: float = 0, high: float | None = None, scale: Literal["log", "linear"] = "log"
) -> bytes:
    """A frame as a PNG: white where counts are `low`, black where they are `high`, masked pixels blue.

    Args:
        high: by default the 99.9th percentile of the pixels that count, and at least 10 above `low`.
    """
    masked = np.iinfo(image.dtype).max
    if high is None:
        counting = image[image != masked]
        high = max(low + 10, float(np.percentile(counting, 99.9)) if counting.size else 0.0)
    steps = np.clip((np.arange(max(2, min(int(high) + 2, 65_536))) - low) / max(high - low, 1e-9), 0, 1)
    if scale == "log":
        steps = np.log1p(99 * steps) / np.log(100)
    shades = (254 - np.round(254 * steps)).astype(np.uint8)
    from beamhub.frames import compiled

    indices = np.empty(image.shape, np.uint8)
    compiled.shade(image, masked, shades, indices)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette([channel for grey in range(255) for channel in (grey, grey, grey)] + [*MASKED_COLOUR])
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def to_npy(image: NDArray[Any]) -> bytes:
    """A frame in NumPy's .npy format."""
    stream = io.BytesIO()
    np.save(stream, image, allow_pickle=False)
    return stream.getvalue()


def warm() -> None:
    """Compile (or load from the cache) what the first picture would otherwise wait for."""
    for dtype in (np.uint8, np.uint16, np.uint32, np.int32):
        image = np.frombuffer(bytes(16 * dtype().itemsize), dtype).reshape(4, 4)  # read-only, as from a file
        to_png(bin_max(mark(image, np.zeros((4, 4), np.bool_), 1), 2))
