"""The simulated diffraction, against geometry done another way and against statistics."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from beamhub.simulation.acquisition import (
    AXIS,
    DEAD,
    EIGER,
    GAP,
    NOISY,
    Acquisition,
    Detector,
    Grid,
)
from beamhub.simulation.crystal import Crystal, Ints, absent
from beamhub.simulation.photons import ICE_RINGS, Exposure, count_background, reflections
from numpy.typing import NDArray

# half a 1M model's module: large enough for a few hundred reflections, small enough for many frames
SMALL = Detector("small", (1, 2), 0.06, module=(400, 180), gap=(12, 38))
SCAN = Acquisition(SMALL, frames=20, distance=0.06, crystal=Crystal(strength=2000, seed=3))


@pytest.fixture(scope="module")
def exposure() -> Exposure:
    return Exposure(SCAN)


def turned(scan: Acquisition, hkl: Ints, degrees: float) -> NDArray[np.float64]:
    """Reciprocal lattice points at a goniometer angle (Rodrigues' formula)."""
    q = hkl @ scan.crystal.reciprocal_basis.T
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    rotated: NDArray[np.float64] = q * cos + np.cross(AXIS, q) * sin + np.outer(q @ AXIS, AXIS) * (1 - cos)
    return rotated


def passages(scan: Acquisition, hkl: Ints) -> dict[tuple[int, ...], list[tuple[float, float, float]]]:
    """When and where reflections pass the Ewald sphere, found by turning the crystal in small steps.

    {hkl: [(degrees, fast, slow), ...]} with the pixel on a detector of no thickness.
    """
    s0 = np.array([0, 0, 1 / scan.wavelength])

    def excess(degrees: float) -> NDArray[np.float64]:
        lengths: NDArray[np.float64] = np.linalg.norm(s0 + turned(scan, hkl, degrees), axis=1)
        return lengths - 1 / scan.wavelength

    found: dict[tuple[int, ...], list[tuple[float, float, float]]] = {}
    step = 0.1
    angles = scan.start + np.arange(0, scan.frames * scan.width + step / 2, step)
    before = excess(angles[0])
    for degrees in angles[1:]:
        after = excess(degrees)
        for which in np.flatnonzero(before * after < 0):
            phi = degrees - step + step * before[which] / (before[which] - after[which])
            s1 = s0 + turned(scan, hkl[which : which + 1], phi)[0]
            fast = scan.beam_centre[0] - s1[0] / s1[2] * scan.distance / scan.detector.pixel
            slow = scan.beam_centre[1] - s1[1] / s1[2] * scan.distance / scan.detector.pixel
            found.setdefault(tuple(hkl[which].tolist()), []).append((phi, fast, slow))
        before = after
    return found


def test_reflections_pass_where_turning_the_crystal_takes_them() -> None:
    thin = dataclasses.replace(SMALL, sensor=1e-9)
    scan = dataclasses.replace(SCAN, detector=thin)
    spots = reflections(scan)
    inside = (spots.phi > 0.1) & (spots.phi < 9.9)
    expected = passages(scan, np.unique(spots.hkl[inside], axis=0))
    assert inside.sum() > 200
    for hkl, phi, x, y in zip(
        spots.hkl[inside].tolist(), spots.phi[inside], spots.x[inside], spots.y[inside], strict=True
    ):
        nearest = min(expected[tuple(hkl)], key=lambda passage: abs(passage[0] - phi))
        assert nearest[0] == pytest.approx(phi, abs=0.02)
        assert nearest[1:] == pytest.approx((x, y), abs=0.3)


def test_parallax_moves_spots_outwards() -> None:
    thin = reflections(dataclasses.replace(SCAN, detector=dataclasses.replace(SMALL, sensor=1e-9)))
    thick = reflections(SCAN)
    pairs = {(*hkl, round(phi, 3)): (x, y) for hkl, phi, x, y in zip(
        thin.hkl.tolist(), thin.phi, thin.x, thin.y, strict=True)}  # fmt: skip
    fast, slow = SCAN.beam_centre
    moved = []
    for hkl, phi, x, y in zip(thick.hkl.tolist(), thick.phi, thick.x, thick.y, strict=True):
        if (before := pairs.get((*hkl, round(phi, 3)))) is not None:
            moved.append(math.hypot(x - fast, y - slow) - math.hypot(before[0] - fast, before[1] - slow))
    assert len(moved) > 200
    assert 0 <= min(moved) <= max(moved) < 3


def test_a_reflection_is_recorded_in_full_over_its_frames(exposure: Exposure) -> None:
    spots, total = exposure.reflections, np.zeros(len(exposure.reflections.phi))
    for frame in range(SCAN.frames):
        which, photons = exposure.partials(frame)
        np.add.at(total, which, photons)
    reach = 4 * SCAN.crystal.mosaicity / spots.zeta
    whole = (spots.phi > reach) & (spots.phi < SCAN.frames * SCAN.width - reach) & (spots.photons > 10)
    assert whole.sum() > 100
    assert total[whole] == pytest.approx(spots.photons[whole], rel=1e-3)


def test_a_reflection_is_brightest_on_the_frame_of_its_passage(exposure: Exposure) -> None:
    spots = exposure.reflections
    for frame in range(SCAN.frames):
        which, photons = exposure.partials(frame)
        middle = (frame + 0.5) * SCAN.width
        near = np.abs(spots.phi[which] - middle) < SCAN.width / 4
        mostly = photons[near] / spots.photons[which][near]
        assert (mostly > 0.3 * np.minimum(1, spots.zeta[which][near] * 2)).all()


def test_spots_are_where_they_were_predicted(exposure: Exposure) -> None:
    """Each bright pixel belongs to a predicted spot, and each strong predicted spot is bright."""
    spots, background = exposure.reflections, exposure.background
    for frame in (0, 7, 19):
        image = exposure.image(frame).astype(float)
        image[SCAN.mask != 0] = 0
        image[SCAN.beam_stop] = 0
        which, photons = exposure.partials(frame)
        near = np.zeros(SMALL.shape, bool)
        for x, y, expected in zip(spots.x[which], spots.y[which], photons, strict=True):
            column, row = int(x), int(y)
            if expected > 0.05:
                near[max(0, row - 5) : row + 6, max(0, column - 5) : column + 6] = True
            inside = 3 <= row < SMALL.shape[0] - 3 and 3 <= column < SMALL.shape[1] - 3
            window = np.s_[row - 3 : row + 4, column - 3 : column + 4]
            if expected > 200 and inside and not (SCAN.mask[window].any() or SCAN.beam_stop[window].any()):
                noise = math.sqrt(expected + background[window].sum())
                assert image[window].sum() - background[window].sum() > 0.99 * expected - 6 * noise
        bright = image > background + 8 * np.sqrt(background) + 3
        assert bright.sum() > 20
        assert not (bright & ~near).any()


def test_systematic_absences_stay_dark() -> None:
    """Of the reflections along the axes, 004 and the others that are allowed shine, the rest does not."""
    crystal = Crystal(strength=5000, seed=3, b_factor=0)
    scan = dataclasses.replace(SCAN, crystal=crystal, frames=180, width=2.0)
    axis = np.arange(1, 16)
    zero = np.zeros_like(axis)
    axial = np.concatenate(
        [
            np.stack(list(index), axis=1)
            for index in ((zero, zero, axis), (axis, zero, zero), (zero, axis, zero))
        ]
    )
    exposure = Exposure(scan)
    shining = {tuple(hkl) for hkl in exposure.reflections.hkl.tolist()}
    assert not shining & {tuple(hkl) for hkl in axial[absent(axial)].tolist()}
    background, dark = exposure.background, 0
    for seen in passages(scan, axial[absent(axial)]).values():
        for phi, fast, slow in seen:
            row, column, frame = int(slow), int(fast), int(phi / scan.width)
            if not (4 <= row < SMALL.shape[0] - 4 and 4 <= column < SMALL.shape[1] - 4):
                continue
            window = np.s_[row - 2 : row + 3, column - 2 : column + 3]
            spots, (which, photons) = exposure.reflections, exposure.partials(frame)
            others = np.hypot(spots.x[which] - fast, spots.y[which] - slow) < 12
            if SCAN.mask[window].any() or photons[others].sum() > 1:
                continue  # a neighbour shines here, or nothing is counted
            image, expected = exposure.image(frame)[window], background[window].sum()
            assert abs(float(image.sum()) - expected) < 6 * math.sqrt(expected) + 6
            dark += 1
    assert dark >= 3


@pytest.mark.parametrize("mean", [0.01, 0.4, 2.0, 11.0, 60.0])
def test_photons_are_counted_as_poisson_says(mean: float) -> None:
    field = np.full((400, 500), mean)
    counts = np.empty(field.shape, np.int32)
    count_background(np.random.default_rng(5), field, np.exp(-field), counts)
    values = np.arange(counts.max() + 1)
    chance = np.exp(values * math.log(mean) - mean - [math.lgamma(n + 1) for n in values.tolist()])
    expected = chance * counts.size
    common = expected > 10
    observed = np.bincount(counts.ravel())
    chi_squared = (((observed - expected) ** 2 / expected)[common]).sum()
    freedom = common.sum()
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)
    assert counts.mean() == pytest.approx(mean, abs=5 * math.sqrt(mean / counts.size))
    assert counts.var() == pytest.approx(mean, rel=0.03)


def test_spots_are_poisson_distributed() -> None:
    """The same scan with other seeds for its photons: the variance of what is counted is its mean."""
    exposure = Exposure(SCAN)
    which, photons = exposure.partials(3)
    strongest = which[photons.argmax()]
    x, y = (int(place[strongest]) for place in (exposure.reflections.x, exposure.reflections.y))
    window = np.s_[y - 5 : y + 6, x - 5 : x + 6]
    sums = []
    for seed in range(80):
        again = Exposure(dataclasses.replace(SCAN, seed=seed))
        for shared in ("reflections", "background", "_partials", "_dark"):
            again.__dict__[shared] = getattr(exposure, shared)
        image = again.image(3)[window].astype(float)
        sums.append(image[image < 65535].sum())
    ratio = np.var(sums) / np.mean(sums)
    assert 0.4 < ratio < 1.8  # of 80 draws: the ratio's standard deviation is 0.16


def test_frames_are_the_same_in_any_order(exposure: Exposure) -> None:
    once = [exposure.image(frame) for frame in (0, 5, 11)]
    again = [Exposure(SCAN).image(frame) for frame in (11, 5, 0)]
    assert all(np.array_equal(a, b) for a, b in zip(once, reversed(again), strict=True))
    assert not np.array_equal(once[0], once[1])


def test_masked_pixels_have_the_largest_value_and_only_they(exposure: Exposure) -> None:
    image = exposure.image(2)
    assert np.array_equal(image == 65535, SCAN.mask != 0)
    assert (image[SCAN.mask == 0] <= SCAN.saturation).all()


def test_beam_stop_casts_a_shadow(exposure: Exposure) -> None:
    counting = SCAN.mask == 0
    shadow = SCAN.beam_stop & counting
    rows, columns = np.nonzero(SCAN.beam_stop)
    near = counting & ~SCAN.beam_stop
    near[: rows.min() - 20] = near[rows.max() + 20 :] = False
    near[:, : columns.min() - 20] = near[:, columns.max() + 20 :] = False
    image = np.mean([exposure.image(frame) for frame in range(8)], axis=0)
    assert shadow.sum() > 100
    assert image[shadow].mean() < 0.1 * image[near].mean()


def test_solvent_and_ice_make_rings() -> None:
    scan = Acquisition(distance=0.1, ice=2.0)
    r = scan.pixel_positions[2]
    d = scan.wavelength / (2 * np.sin(0.5 * np.arccos(scan.distance / r)))
    free = ~scan.beam_stop
    with_ice, without = (Exposure(dataclasses.replace(scan, ice=ice)).background for ice in (scan.ice, 0.0))

    def at(image: NDArray[np.float64], spacing: float) -> float:
        return float(image[free & (np.abs(d - spacing) < 0.02)].mean())

    assert at(without, 3.2) > 1.5 * at(without, 5.0)
    assert at(without, 3.2) > 1.5 * at(without, 2.3)
    assert at(without, 20.0) > at(without, 5.0)
    for ring in ICE_RINGS[:3]:
        assert at(with_ice, ring) > 1.5 * at(with_ice, ring - 0.12)
        assert at(without, ring) < 1.3 * at(without, ring - 0.12)


# --- detectors and grid scans ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("1M", (1062, 1028)), ("4M", (2162, 2068)), ("16M", (4362, 4148))]
)
def test_detector_models(name: str, shape: tuple[int, int]) -> None:
    detector = EIGER[name]
    assert detector.shape == shape
    mask = detector.mask(1)
    (across, down), (columns, rows) = detector.modules, detector.module
    assert ((mask & GAP) == 0).sum() == across * down * columns * rows
    for bit in (DEAD, NOISY):
        assert 1 <= ((mask & bit) != 0).sum() <= mask.size // 50_000
    assert not (mask & ~np.uint32(GAP | DEAD | NOISY)).any()
    assert not ((mask & GAP != 0) & (mask != GAP)).any()
    assert mask[512:550].all()


def test_a_grid_scan_shows_the_crystal_and_nothing_else() -> None:
    grid = Grid(6, 9, seed=2)
    scan = dataclasses.replace(SCAN, frames=54, grid=grid, width=0.5)
    exposure = Exposure(scan)
    overlap = grid.overlap.reshape(6, 9)
    assert overlap.max() == 1
    assert overlap[0].max() == overlap[-1].max() == overlap[:, 0].max() == overlap[:, -1].max() == 0
    full = exposure.partials(int(grid.overlap.argmax()))
    for frame, part in enumerate(grid.overlap):
        which, photons = exposure.partials(frame)
        if part == 0:
            assert len(which) == 0
            image = exposure.image(frame).astype(float)
            counting = scan.mask == 0
            expected = exposure.background[counting].sum()
            assert abs(image[counting].sum() - expected) < 6 * math.sqrt(expected)
        else:
            bright = full[1] * part > 2e-3
            known = dict(zip(which.tolist(), photons, strict=True))
            for spot, at_best in zip(full[0][bright].tolist(), full[1][bright], strict=True):
                assert known[spot] == pytest.approx(part * at_best)


def test_acquisitions_that_make_no_sense() -> None:
    for wrong in ({"frames": 0}, {"width": 0.0}, {"distance": -1.0}, {"frames": 7, "grid": Grid(2, 3)}):
        with pytest.raises(ValueError):
            dataclasses.replace(SCAN, **wrong)
