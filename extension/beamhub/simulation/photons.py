"""From crystal and geometry to counted photons: Ewald construction, partiality, background, counting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from beamhub.simulation.acquisition import AXIS, Acquisition
from beamhub.simulation.crystal import Floats, Ints

ICE_RINGS = (3.897, 3.669, 3.441, 2.671, 2.249, 2.072, 1.948, 1.918, 1.883, 1.721)  # Å, hexagonal ice
POLARISED = 0.99  # of the beam, horizontally
REACH = 4.0  # standard deviations of the rocking curve that are followed


@dataclass(frozen=True)
class Reflections:
    """Each passage of a reflection through the Ewald sphere that the detector sees: one entry in each array.

    `hkl` n × 3; `phi` the angle of the passage in degrees; `zeta` Kabsch's factor (the rocking curve is
    1/zeta wider in phi than the mosaicity); `x`, `y` where on the detector, in pixels (pixel i reaches from i
    to i + 1); `photons` expected when it is recorded in full.
    """

    hkl: Ints
    phi: Floats
    zeta: Floats
    x: Floats
    y: Floats
    photons: Floats


def polarisation(x: Any, y: Any) -> Any:
    """The polarisation factor for the direction (x, y, ·) of a unit vector."""
    return POLARISED * (1 - x * x) + (1 - POLARISED) * (1 - y * y)


def background(scan: Acquisition) -> Floats:
    """Expected photons per pixel and frame besides the reflections: air scatter, solvent ring, ice rings."""
    x, y, r = scan.pixel_positions
    cos = scan.distance / r
    q = 2 * np.sin(0.5 * np.arccos(cos)) / scan.wavelength
    air = 1.2 * np.exp(-q / 0.10)
    solvent = 0.9 * np.exp(-0.5 * ((q - 1 / 3.2) / 0.05) ** 2) + 0.25 * np.exp(-q / 0.5)
    scattered = scan.background * (air + solvent)
    if scan.ice:
        scattered += scan.ice * sum(np.exp(-0.5 * ((q - 1 / d) / 0.0015) ** 2) for d in ICE_RINGS)
    # cos³: a pixel's solid angle, seen from the crystal, away from the detector's centre
    image = scattered * polarisation(x / r, y / r) * cos**3
    image[scan.beam_stop] *= 0.03  # what the air behind the stop scatters
    photons: Floats = image
    return photons


def reflections(scan: Acquisition) -> Reflections:
    """All reflections of the crystal that come near the Ewald sphere during the scan and hit the detector.

    A reciprocal lattice point q, turned by φ about the axis m, lies on the sphere when |s0 + q(φ)| = |s0|, so
    A cos φ + B sin φ + C = 0 with A = q⊥·s0, B = (m × q)·s0, C = q∥·s0 + q²/2 (Rossmann 1979): two solutions
    or none.
    """
    crystal = scan.crystal
    hkl = crystal.indices(scan.d_min)
    s0 = np.array([0.0, 0.0, 1 / scan.wavelength])
    q = hkl @ crystal.reciprocal_basis.T
    along = (q @ AXIS)[:, None] * AXIS
    radial, tangential = q - along, np.cross(AXIS, q)
    a, b, c = radial @ s0, tangential @ s0, along @ s0 + 0.5 * crystal.q(hkl) ** 2
    reach = np.hypot(a, b)
    meets = np.flatnonzero(np.abs(c) < reach)
    middle, half = np.arctan2(b, a)[meets], np.arccos(-c[meets] / reach[meets])
    which = np.concatenate([meets, meets])
    phi = np.concatenate([middle + half, middle - half])

    # the turns in which they pass within the scan, with a lead for those that are only partly recorded
    begin, end = (
        math.radians(scan.angles[0]),
        math.radians(scan.angles[-1] + (0 if scan.grid else scan.width)),
    )
    lead = 0.3
    phi = begin - lead + np.mod(phi - (begin - lead), 2 * np.pi)
    turns = [phi + 2 * np.pi * turn for turn in range(math.floor((end - begin + 2 * lead) / (2 * np.pi)) + 1)]
    which, phi = np.concatenate([which] * len(turns)), np.concatenate(turns)
    near = phi < end + lead
    which, phi = which[near], phi[near]

    cos, sin = np.cos(phi)[:, None], np.sin(phi)[:, None]
    s1 = (s0 + along[which] + radial[which] * cos + tangential[which] * sin) * scan.wavelength
    across = np.cross(s1, s0 * scan.wavelength)
    speed = np.abs(across @ AXIS)  # of the passage through the sphere: the inverse Lorentz factor
    zeta = speed / np.maximum(np.linalg.norm(across, axis=1), 1e-9)
    near = (s1[:, 2] > 0.2) & (
        zeta > 0.05
    )  # forwards, and not along the axis where they never leave the sphere
    which, phi, s1, speed, zeta = which[near], phi[near], s1[near], speed[near], zeta[near]

    x, y = _hits(scan, s1)
    photons = crystal.strength * crystal.intensities(hkl)[which] / speed
    photons *= polarisation(s1[:, 0], s1[:, 1])
    photons *= 1 + 0.1 * np.sin(phi + 0.5)  # the crystal's volume in the beam changes as it turns
    rows, columns = scan.detector.shape
    on = (x > -5) & (y > -5) & (x < columns + 5) & (y < rows + 5)
    return Reflections(hkl[which][on], np.rad2deg(phi)[on], zeta[on], x[on], y[on], photons[on])


def _hits(scan: Acquisition, s1: Floats) -> tuple[Floats, Floats]:
    """Where (fast, slow, in pixels) rays along the unit vectors `s1` are counted, on average.

    Photons are absorbed a little below the sensor's surface, which moves oblique ones outwards (parallax).
    """
    attenuation = 7900.0 * (scan.energy / 10) ** -2.93  # of silicon, 1/m
    path = scan.detector.sensor / s1[:, 2]
    depth = 1 / attenuation - (path + 1 / attenuation) * np.exp(-attenuation * path)
    fast, slow = scan.beam_centre
    x = fast - (s1[:, 0] / s1[:, 2] * scan.distance + s1[:, 0] * depth) / scan.detector.pixel
    y = slow - (s1[:, 1] / s1[:, 2] * scan.distance + s1[:, 1] * depth) / scan.detector.pixel
    return x, y


@dataclass(frozen=True)
class Exposure:
    """A scan ready to be recorded: all that doesn't change from frame to frame, computed once."""

    scan: Acquisition

    @cached_property
    def reflections(self) -> Reflections:
        return reflections(self.scan)

    @cached_property
    def background(self) -> Floats:
        return background(self.scan)

    @cached_property
    def _partials(self) -> tuple[Ints, Ints, Floats]:
        """(where each frame's partials begin, their reflections, their photons), sorted by frame."""
        scan, spots = self.scan, self.reflections
        sigma = scan.crystal.mosaicity / spots.zeta
        if scan.grid is not None:
            # the crystal stands still: each reflection is as bright as its rocking curve is high here
            height = np.exp(-0.5 * ((scan.start - spots.phi) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
            bright = np.flatnonzero(height * scan.width * spots.photons > 1e-3)
            hit = np.flatnonzero(scan.grid.overlap)
            frames, which = np.repeat(hit, len(bright)), np.tile(bright, len(hit))
            photons = spots.photons[which] * height[which] * scan.width * scan.grid.overlap[frames]
        else:
            first = np.floor((spots.phi - REACH * sigma - scan.start) / scan.width).astype(np.int64)
            last = np.floor((spots.phi + REACH * sigma - scan.start) / scan.width).astype(np.int64)
            first, last = np.clip(first, 0, scan.frames), np.clip(last + 1, 0, scan.frames)
            which = np.repeat(np.arange(len(first)), last - first)
            order = np.arange(len(which)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
            frames = first[which] + order
            angle = scan.start + frames * scan.width - spots.phi[which]
            scale = 1 / (np.sqrt(2) * sigma[which])
            part = 0.5 * (_erf((angle + scan.width) * scale) - _erf(angle * scale))
            photons = spots.photons[which] * part
        seen = photons > 1e-3
        frames, which, photons = frames[seen], which[seen], photons[seen]
        by_frame = np.argsort(frames, kind="stable")
        begins = np.searchsorted(frames[by_frame], np.arange(scan.frames + 1))
        return begins, which[by_frame], photons[by_frame]

    def partials(self, frame: int) -> tuple[Ints, Floats]:
        """The reflections that light up on a frame (as indices), and the photons expected of each."""
        begins, which, photons = self._partials
        part = slice(begins[frame], begins[frame + 1])
        return which[part], photons[part]

    @cached_property
    def _dark(self) -> Floats:
        """The chance of no background photon; in single precision, rare pixels would get far too many."""
        return np.exp(-self.background)

    def prepare(self) -> None:
        """Compute what all frames share, and compile."""
        self.image(0)

    def image(self, frame: int) -> NDArray[Any]:
        """The counts of a frame (from 0), as the detector reports them; masked pixels have the largest value.

        The same acquisition gives the same frames, in whatever order they are asked for.
        """
        scan = self.scan
        which, photons = self.partials(frame)
        counts = np.empty(scan.detector.shape, np.int32)
        rng = np.random.default_rng([scan.seed, 4, frame])
        count_background(rng, self.background, self._dark, counts)
        spots = self.reflections
        count_spots(rng, spots.x[which], spots.y[which], photons, scan.spot, scan.beam_stop, counts)
        image: NDArray[Any] = np.minimum(counts, min(scan.saturation, np.iinfo(counts.dtype).max)).astype(
            scan.dtype
        )
        image[scan.mask != 0] = scan.masked
        return image


def _erf(x: Floats) -> Floats:
    """Abramowitz & Stegun 7.1.26, |error| < 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    value: Floats = np.sign(x) * (1 - t * series * np.exp(-x * x))
    return value


@numba.njit(cache=True, nogil=True)
def count_background(rng: Any, mean: Any, none: Any, counts: Any) -> None:
    """Fill `counts` with Poisson numbers of the given means; `none` is exp(-mean), the chance of no photon.

    Inversion: walk up the cumulative distribution until it passes a uniform number. With a mean around one
    photon that takes two steps, with a mean of many another method is faster.
    """
    rows, columns = mean.shape
    for y in range(rows):
        for x in range(columns):
            expected = mean[y, x]
            if expected > 30:
                counts[y, x] = rng.poisson(expected)
                continue
            uniform = rng.random()
            term = none[y, x]
            total = term
            photons = 0
            while uniform > total and (term > 1e-18 or photons < expected):  # `total` may round to below 1
                photons += 1
                term *= expected / photons
                total += term
            counts[y, x] = photons


@numba.njit(cache=True, nogil=True)
def count_spots(rng: Any, x: Any, y: Any, expected: Any, sigma: float, blocked: Any, counts: Any) -> None:
    """Add each spot's photons one by one: a Poisson number of them, each somewhere in the Gaussian spot."""
    rows, columns = counts.shape
    for spot in range(len(x)):
        for _ in range(rng.poisson(expected[spot])):
            i = int(np.floor(x[spot] + sigma * rng.standard_normal()))
            j = int(np.floor(y[spot] + sigma * rng.standard_normal()))
            if 0 <= i < columns and 0 <= j < rows and not blocked[j, i]:
                counts[j, i] += 1
