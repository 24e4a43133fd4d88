from __future__ import annotations

import zlib
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from beamhub.schemas import Dataset, DatasetKind, DatasetState, Quantity
from beamhub_cockpit.frames import Wanted, describe, pack
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from pydantic import ValidationError


def counts_of(dtype: type[np.unsignedinteger[Any]], masked: int) -> st.SearchStrategy[NDArray[Any]]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, max_side=12)
    return arrays.arrays(dtype, shapes, elements=st.integers(0, min(300, masked - 1)) | st.just(masked))


images = counts_of(np.uint8, 2**8 - 1) | counts_of(np.uint16, 2**16 - 1) | counts_of(np.uint32, 2**32 - 1)


@given(images)
def test_counts_and_masked_pixels_come_through(counts: NDArray[Any]) -> None:
    packed = pack(counts)
    back = np.frombuffer(zlib.decompress(packed.data), f"<u{packed.depth}").reshape(
        packed.height, packed.width
    )
    masked = counts == np.iinfo(counts.dtype).max
    assert np.array_equal(back == np.iinfo(back.dtype).max, masked)
    assert np.array_equal(back[~masked], counts[~masked])
    assert packed.depth == (1 if counts[~masked].max(initial=0) < 255 else 2)


def test_strong_pixels_keep_their_counts() -> None:
    counts = np.array([[0, 70_000], [2**32 - 1, 65_535]], np.uint32)
    packed = pack(counts)
    back = np.frombuffer(zlib.decompress(packed.data), "<u4").reshape(2, 2)
    assert packed.depth == 4
    assert np.array_equal(back, counts)


@pytest.mark.parametrize(
    "change",
    [
        {"x1": 0},
        {"frame": 0},
        {"bin": 0},
        {"bin": 10_000},
        {"y1": 10**9},
        {"x0": 30},
        {"frame": "1; drop"},
        {"more": 1},
    ],
)
def test_a_browser_may_not_ask_for_nonsense(change: dict[str, Any]) -> None:
    asked = {"action": "get", "id": 1, "frame": 1, "x0": 0, "y0": 0, "x1": 20, "y1": 16, "bin": 1}
    Wanted.model_validate(asked)
    with pytest.raises(ValidationError):
        Wanted.model_validate(asked | change)


def test_geometry_in_metres_where_it_is_known() -> None:
    dataset = Dataset(
        id=1,
        experiment="mx-2026-00001",
        name="lyso",
        path="raw/lyso_master.h5",
        kind=DatasetKind.ROTATION,
        state=DatasetState.COMPLETE,
        frames_announced=4,
        frames_readable=4,
        shape=(16, 20),
        metadata={
            "wavelength": Quantity(value=1.0, unit="angstrom"),
            "detector_distance": Quantity(value=200, unit="mm"),
            "x_pixel_size": Quantity(value=75e-6, unit="m"),
            "beam_center_x": Quantity(value="<b>", unit="pixel"),
        },
        created=datetime.now(UTC),
        ended=None,
    )
    told = describe(dataset)
    assert (told["rows"], told["columns"], told["frames"]) == (16, 20, 4)
    assert (told["wavelength"], told["distance"], told["pixel_x"]) == (1.0, pytest.approx(0.2), 75e-6)
    assert told["center_x"] is told["pixel_y"] is None
