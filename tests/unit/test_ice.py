"""Background and ice rings, on simulated frames of which it is known what is in them."""

from __future__ import annotations

import numpy as np
import pytest
from beamhub.simulation.acquisition import Acquisition
from beamhub.simulation.crystal import Crystal
from beamhub.simulation.photons import Exposure
from beamhub_notebooks.geometry import Geometry
from beamhub_notebooks.ice import SPACINGS, IceRings
from beamhub_notebooks.radial import Profile, Radial
from beamhub_notebooks.spots import Frame, SpotFinder


def measure(scan: Acquisition, frame: Frame) -> tuple[Geometry, Profile]:
    pixel = scan.detector.pixel
    fast, slow = scan.beam_centre
    geometry = Geometry(scan.wavelength, scan.distance, (pixel, pixel), (slow, fast), scan.detector.shape)
    mask = scan.mask != 0
    return geometry, Radial(geometry, mask).profile(frame, SpotFinder(mask).find(frame))


def exposed(scan: Acquisition) -> Frame:
    exposure = Exposure(scan)
    exposure.prepare()
    return exposure.image(0)


def test_ice_is_found_where_it_is_and_only_there() -> None:
    clean = Acquisition(frames=1)
    icy = Acquisition(frames=1, ice=0.5)
    geometry, without = measure(clean, exposed(clean))
    _, with_ice = measure(icy, exposed(icy))
    rings = IceRings(geometry)

    assert not rings.found(without)
    assert rings.found(with_ice)
    # the rings at low resolution lie on the detector all round
    strong = {ring.spacing: ring for ring in rings.measure(with_ice)}
    for spacing in SPACINGS[:3]:
        assert strong[spacing].excess > 0.1
        assert strong[spacing].significance > 6


def test_a_strong_crystal_is_not_taken_for_ice() -> None:
    scan = Acquisition(frames=1, width=1.0, crystal=Crystal(strength=5000))
    geometry, profile = measure(scan, exposed(scan))

    assert not IceRings(geometry).found(profile)


def test_background_is_that_between_the_spots() -> None:
    dark = Acquisition(frames=1, crystal=Crystal(strength=0))
    bright = Acquisition(frames=1)
    expected = measure(dark, exposed(dark))[1].background
    frame = exposed(bright)
    usable = frame[(bright.mask == 0) & (frame != np.iinfo(frame.dtype).max)]

    background = measure(bright, frame)[1].background

    assert background == pytest.approx(expected, rel=0.02)
    assert background < usable.mean()


def test_a_frame_without_usable_pixels_has_no_background() -> None:
    geometry = Geometry(1.0, 0.1, (75e-6, 75e-6), (10.0, 10.0), (20, 20))
    mask = np.zeros((20, 20), np.bool_)
    frame: Frame = np.full((20, 20), 65535, np.uint16)

    profile = Radial(geometry, mask).profile(frame, SpotFinder(mask).find(frame))

    assert np.isnan(profile.background)
    assert np.isnan(profile.mean()).all()
    assert IceRings(geometry).measure(profile) == []
