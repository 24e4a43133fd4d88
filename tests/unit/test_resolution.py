"""Geometry and the estimated resolution limit, against Bragg's law and a real lattice."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from beamhub.schemas import Quantity
from beamhub.simulation.acquisition import Acquisition
from beamhub.simulation.photons import reflections
from beamhub_notebooks.errors import ProcessingError
from beamhub_notebooks.geometry import Geometry
from beamhub_notebooks.resolution import ResolutionLimit
from beamhub_notebooks.spots import Spots

METADATA = {
    "wavelength": Quantity(value=1.0, unit="angstrom"),
    "detector_distance": Quantity(value=0.1, unit="m"),
    "x_pixel_size": Quantity(value=75e-6, unit="m"),
    "y_pixel_size": Quantity(value=75e-6, unit="m"),
    "beam_center_x": Quantity(value=500.0, unit="pixel"),
    "beam_center_y": Quantity(value=520.0, unit="pixel"),
}
GEOMETRY = Geometry.of(METADATA, (1062, 1028))


def geometry_of(scan: Acquisition) -> Geometry:
    pixel = scan.detector.pixel
    fast, slow = scan.beam_centre
    return Geometry(scan.wavelength, scan.distance, (pixel, pixel), (slow, fast), scan.detector.shape)


def spots_at(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Spots:
    none = np.zeros(0, np.int32)
    return Spots(x, y, np.full(len(x), 5, np.int32), np.full(len(x), 100.0), (none, none))


def test_resolution_follows_from_braggs_law() -> None:
    # 2θ = 45° where the distance from the beam equals that of the detector
    radius = 0.1 / 75e-6
    expected = 1.0 / (2 * math.sin(math.radians(22.5)))

    assert GEOMETRY.resolution(500 + radius, 520) == pytest.approx(expected)
    assert GEOMETRY.resolution(500, 520 - radius) == pytest.approx(expected)
    assert GEOMETRY.spacing(radius) == pytest.approx(expected)
    assert GEOMETRY.resolution(500, 520) == math.inf


def test_rings_are_one_pixel_wide_and_centred_on_the_beam() -> None:
    rings = GEOMETRY.rings()

    assert rings[520, 500] == rings[519, 499] == 0
    assert rings[520, 600] == 100
    assert rings[0, 0] == int(math.hypot(499.5, 519.5))


def test_the_nearest_edge_ends_the_full_rings() -> None:
    assert GEOMETRY.edge == pytest.approx(float(GEOMETRY.resolution(0, 520)))


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("value", [None, 0.0, -1.0, math.nan, "far"])
def test_unusable_metadata_are_named(name: str, value: float | str | None) -> None:
    metadata = METADATA | {name: Quantity(value=value)}

    with pytest.raises(ProcessingError, match=name.replace("_", " ")):
        Geometry.of(metadata, (10, 10))


@pytest.mark.parametrize("limit", [2.3, 3.0, 4.0])
def test_a_lattice_cut_at_a_limit_has_that_limit(limit: float) -> None:
    """On average: a single frame cuts the lattice in lunes."""
    scan = Acquisition(frames=20, width=0.5)
    geometry = geometry_of(scan)
    seen = reflections(scan)
    estimator = ResolutionLimit(geometry, scan.mask != 0)
    inside = geometry.resolution(seen.x, seen.y) >= limit
    estimates = []
    for frame in range(20):
        now = inside & (seen.phi >= 0.5 * frame) & (seen.phi < 0.5 * (frame + 1))
        estimate = estimator.estimate(spots_at(seen.x[now], seen.y[now]))
        assert estimate is not None
        estimates.append(estimate)

    assert np.median(estimates) == pytest.approx(limit, rel=0.04)
    assert np.mean(np.abs(np.array(estimates) / limit - 1)) < 0.1


def test_a_few_spots_far_out_do_not_move_it() -> None:
    scan = Acquisition()
    geometry = geometry_of(scan)
    estimator = ResolutionLimit(geometry, scan.mask != 0)
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1028, 4000), rng.uniform(0, 1062, 4000)
    near = geometry.resolution(x, y) > 4
    far = np.flatnonzero(~near)[: near.sum() // 30]
    alone = estimator.estimate(spots_at(x[near], y[near]))
    with_noise = estimator.estimate(spots_at(np.append(x[near], x[far]), np.append(y[near], y[far])))

    assert alone is not None
    assert with_noise == pytest.approx(alone, rel=0.05)


def test_few_spots_tell_nothing() -> None:
    estimator = ResolutionLimit(GEOMETRY, np.zeros((1062, 1028), np.bool_))
    x = np.linspace(10, 1000, 10)

    assert [estimator.estimate(spots_at(x[:n], x[:n])) for n in range(10)] == [None] * 10
    assert estimator.estimate(spots_at(x, x)) is not None
