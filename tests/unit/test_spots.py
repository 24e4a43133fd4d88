"""The spot finder, against the criterion written down plainly, and against what must always hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from beamhub_notebooks.spots import Frame, SpotFinder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Mask = npt.NDArray[np.bool_]
MASKED = 65535


def plain_strong(
    frame: Frame, mask: Mask, sigma_background: float, sigma_strong: float
) -> set[tuple[int, int]]:
    """DIALS' dispersion criterion, pixel by pixel."""
    usable = ~mask & (frame != np.iinfo(frame.dtype).max)
    strong = set()
    for y, x in zip(*np.nonzero(usable), strict=True):
        near = np.s_[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
        values = frame[near][usable[near]].astype(np.float64)
        m, s, q = len(values), values.sum(), (values**2).sum()
        if m < 2 or float(frame[y, x]) * m - s <= sigma_strong * np.sqrt(s * m):
            continue
        if q * m - s * s - s * (m - 1) > s * sigma_background * np.sqrt(2 * (m - 1)):
            strong.add((int(y), int(x)))
    return strong


def groups(pixels: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """Pixels that share edges, together."""
    left, found = set(pixels), []
    while left:
        group, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            group.add((y, x))
            for neighbour in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    todo.append(neighbour)
        found.append(group)
    return found


@st.composite
def frames(draw: st.DrawFn) -> tuple[Frame, Mask]:
    """Frames with some bright patches on Poisson noise, some pixels masked in either way."""
    rows, columns = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(["uint8", "uint16", "uint32"]))
    mean = np.full((rows, columns), draw(st.sampled_from([0.05, 0.5, 3.0, 20.0])))
    for _ in range(draw(st.integers(0, 6))):
        y, x = rng.integers(0, rows), rng.integers(0, columns)
        mean[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] += rng.uniform(1, 60)
    frame = rng.poisson(mean).astype(dtype)
    frame[rng.random(frame.shape) < 0.02] = np.iinfo(dtype).max
    return frame, rng.random(frame.shape) < draw(st.sampled_from([0.0, 0.1, 0.6]))


@settings(max_examples=60, deadline=None)
@given(frames())
def test_strong_pixels_and_spots_are_those_of_the_plain_criterion(case: tuple[Frame, Mask]) -> None:
    frame, mask = case
    expected = plain_strong(frame, mask, 6.0, 3.0)

    spots = SpotFinder(mask, max_separation=np.inf).find(frame)

    assert set(zip(spots.strong[0].tolist(), spots.strong[1].tolist(), strict=True)) == expected
    sizes = sorted(len(group) for group in groups(expected) if len(group) >= 3)
    assert sorted(spots.pixels.tolist()) == sizes


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 50), st.integers(8, 60), st.floats(0.0, 2.0))
def test_a_spot_is_one_spot_wherever_it_is(y: int, x: int, background: float) -> None:
    rng = np.random.default_rng(7)
    frame: Frame = rng.poisson(background, (64, 72)).astype(np.uint16)
    frame[y - 1 : y + 2, x - 1 : x + 2] = [[20, 40, 20], [40, 80, 40], [20, 40, 20]]

    spots = SpotFinder(np.zeros(frame.shape, np.bool_), min_pixels=5).find(frame)

    assert len(spots) == 1
    assert spots.x[0] == pytest.approx(x + 0.5, abs=0.2)
    assert spots.y[0] == pytest.approx(y + 0.5, abs=0.2)
    assert spots.counts[0] >= 280


@settings(max_examples=40, deadline=None)
@given(frames(), st.data())
def test_what_a_masked_pixel_holds_does_not_matter(case: tuple[Frame, Mask], data: st.DataObject) -> None:
    frame, mask = case
    finder = SpotFinder(mask)
    before = finder.find(frame)
    noise: Frame = data.draw(hnp.arrays(frame.dtype, frame.shape))
    after = finder.find(np.where(mask, noise, frame))

    assert before.x.tolist() == after.x.tolist()
    assert before.counts.tolist() == after.counts.tolist()
    assert not any(mask[y, x] for y, x in zip(*after.strong, strict=True))


def test_two_spots_beside_a_gap_are_two() -> None:
    frame: Frame = np.ones((40, 60), np.uint16)
    mask = np.zeros(frame.shape, np.bool_)
    mask[:, 29:31] = True
    frame[:, 29:31] = MASKED
    frame[18:22, 26:29] = frame[18:22, 31:34] = 50

    assert len(SpotFinder(mask).find(frame)) == 2


@pytest.mark.parametrize(("pixels", "kept"), [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_small_spots_are_noise(pixels: int, kept: int) -> None:
    frame: Frame = np.ones((30, 30), np.uint16)
    frame[15, 10 : 10 + pixels] = 90

    assert len(SpotFinder(np.zeros(frame.shape, np.bool_)).find(frame)) == kept


def test_a_long_streak_is_not_a_spot() -> None:
    frame: Frame = np.ones((40, 40), np.uint16)
    frame[10, 5:20] = 40
    frame[10, 5] = 60

    assert len(SpotFinder(np.zeros(frame.shape, np.bool_)).find(frame)) == 0
    assert len(SpotFinder(np.zeros(frame.shape, np.bool_), max_separation=50).find(frame)) == 1


def test_huge_counts_stay_exact() -> None:
    frame: Frame = np.ones((60, 30), np.uint32)
    frame[5:8, 5:8] = 2**32 - 2
    frame[40:43, 5:8] = 50

    spots = SpotFinder(np.zeros(frame.shape, np.bool_)).find(frame)

    assert spots.y.tolist() == pytest.approx([6.5, 41.5])


@pytest.mark.parametrize("memory", ["read-only", "Fortran", "cut out"])
def test_any_memory_layout_gives_the_same(memory: str) -> None:
    rng = np.random.default_rng(3)
    frame: Frame = rng.poisson(1.0, (50, 60)).astype(np.uint16)
    frame[20:23, 30:33] = 60
    other: Frame
    if memory == "Fortran":
        other = np.asfortranarray(frame)
    elif memory == "cut out":
        wide: Frame = np.zeros((50, 120), np.uint16)
        wide[:, ::2] = frame
        other = wide[:, ::2]
    else:
        other = np.frombuffer(frame.tobytes(), frame.dtype).reshape(frame.shape)
    finder = SpotFinder(np.zeros(frame.shape, np.bool_))

    assert finder.find(other).x.tolist() == finder.find(frame).x.tolist() != []


@pytest.mark.parametrize("frame", [np.zeros((9, 10), np.uint16), np.zeros((10, 10), np.float32)])
def test_a_frame_of_another_detector_is_refused(frame: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"\(10, 10\) unsigned integers"):
        SpotFinder(np.zeros((10, 10), np.bool_)).find(frame)
