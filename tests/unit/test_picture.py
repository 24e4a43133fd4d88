"""Marking, cutting, binning and colouring frames, against what numpy says."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from beamhub.frames.picture import MASKED_COLOUR, RegionError, bin_max, cut, mark, to_png
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

TYPES: st.SearchStrategy[Any] = st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32])
SHAPES = st.tuples(st.integers(1, 23), st.integers(1, 23))


@st.composite
def frames(draw: st.DrawFn) -> NDArray[Any]:
    """Frames with many masked, saturated and equal pixels."""
    dtype: type[np.integer[Any]] = draw(TYPES)
    top = int(np.iinfo(dtype).max)
    values = st.sampled_from([0, 1, 2, 100, top - 2, top - 1, top])
    image: NDArray[Any] = draw(arrays(dtype, draw(SHAPES), elements=values))
    return image


@settings(deadline=None)
@given(frames(), st.integers(1, 30))
def test_bin_max_keeps_the_largest_pixel_that_counts(image: NDArray[Any], size: int) -> None:
    masked = np.iinfo(image.dtype).max
    binned = bin_max(image, size)
    rows, columns = image.shape
    assert binned.shape == (-(-rows // size), -(-columns // size))
    assert binned.dtype == image.dtype
    for j in range(binned.shape[0]):
        for i in range(binned.shape[1]):
            block = image[j * size : (j + 1) * size, i * size : (i + 1) * size]
            counting = block[block != masked]
            assert binned[j, i] == (counting.max() if counting.size else masked)


@settings(deadline=None)
@given(frames(), st.data())
def test_mark(image: NDArray[Any], data: st.DataObject) -> None:
    masked = np.iinfo(image.dtype).max
    highest = data.draw(st.sampled_from([0, 2, 99, masked - 1]))
    bad = data.draw(arrays(np.bool_, image.shape))
    marked = mark(image, bad, highest)
    assert np.array_equal(marked, np.where(bad | (image > highest), masked, image))


def test_negative_counts_are_masked() -> None:
    image = np.array([[-1, -2, 0, 5]], np.int32)
    marked = mark(image, np.zeros((1, 4), np.bool_), 2**31 - 2)
    assert marked.tolist() == [[2**31 - 1, 2**31 - 1, 0, 5]]


@given(frames(), st.data())
def test_cut(image: NDArray[Any], data: st.DataObject) -> None:
    rows, columns = image.shape
    y0, x0 = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, rows)), data.draw(st.integers(x0 + 1, columns))
    part = cut(image, (x0, y0, x1, y1))
    assert part.flags.c_contiguous
    assert np.array_equal(part, image[y0:y1, x0:x1])


@pytest.mark.parametrize(
    "region", [(0, 0, 0, 4), (3, 0, 2, 4), (-1, 0, 4, 4), (0, 0, 6, 4), (0, 0, 4, 5), (5, 4, 9, 9)]
)
def test_regions_that_do_not_fit(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(RegionError):
        cut(np.zeros((4, 5), np.uint16), region)


@pytest.mark.parametrize("size", [0, -3])
def test_binnings_that_make_no_sense(size: int) -> None:
    with pytest.raises(RegionError):
        bin_max(np.zeros((4, 5), np.uint16), size)


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_png_is_darker_where_there_are_more_photons(scale: Any) -> None:
    image = np.array([[0, 1, 5, 20, 40, 65533, 65535]], np.uint16)
    picture = Image.open(io.BytesIO(to_png(image, 0, 40, scale))).convert("RGB")
    colours = [picture.getpixel((x, 0)) for x in range(7)]
    greys = [colour[0] for colour in colours[:6] if isinstance(colour, tuple)]
    assert greys[0] == 254
    assert greys == sorted(greys, reverse=True)
    assert greys[3] > greys[4] == greys[5] == 0
    assert colours[6] == MASKED_COLOUR


@settings(deadline=None)
@given(frames())
def test_every_frame_has_a_picture(image: NDArray[Any]) -> None:
    picture = Image.open(io.BytesIO(to_png(image)))
    assert picture.size == (image.shape[1], image.shape[0])
