"""The crystal: a tetragonal lattice of space group P4₃2₁2 with the intensities of a protein."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

D_MIN = (
    0.9  # Å: intensities are drawn to this resolution, whatever the detector sees, so that they never change
)


@dataclass(frozen=True)
class Crystal:
    """A lysozyme-like crystal.

    Args:
        a, c: cell edges in Å (a = b, all angles 90°).
        b_factor: overall B in Å²; the mean intensity falls off as exp(-B/2d²).
        mosaicity: standard deviation of the rocking curve in degrees.
        strength: photons of an average reflection at low angle, Lorentz and polarisation factors being 1.
        seed: of the orientation and of the intensities. Its default shows most reflections within 30°.
    """

    a: float = 79.1
    c: float = 37.9
    b_factor: float = 22.0
    mosaicity: float = 0.1
    strength: float = 200.0
    seed: int = 7

    space_group = "P 43 21 2"
    laue_group = "4/mmm"

    @property
    def edges(self) -> tuple[float, float, float]:
        """a, b, c in Å."""
        return (self.a, self.a, self.c)

    @property
    def orientation(self) -> Floats:
        """U: a rotation drawn uniformly from all rotations (QR of a Gaussian matrix, Mezzadri 2007)."""
        q, r = np.linalg.qr(np.random.default_rng([self.seed, 0]).normal(size=(3, 3)))
        u: Floats = q * np.sign(np.diag(r))
        u *= np.sign(np.linalg.det(u))
        return u

    @property
    def reciprocal_basis(self) -> Floats:
        """A = U B in 1/Å: its columns are a*, b*, c* with the goniometer at zero."""
        return self.orientation @ np.diag(1 / np.array(self.edges))

    def indices(self, d_min: float) -> Ints:
        """hkl (n × 3) of all reflections to `d_min` Å that the space group allows, Friedel mates included."""
        limits = [math.ceil(edge / max(d_min, D_MIN)) for edge in self.edges]
        axes = [np.arange(-limit, limit + 1) for limit in limits]
        hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        q = self.q(hkl)
        kept: Ints = hkl[(q > 0) & (q <= 1 / max(d_min, D_MIN)) & ~absent(hkl)]
        return kept

    def q(self, hkl: Ints) -> Floats:
        """1/d in 1/Å."""
        lengths: Floats = np.linalg.norm(hkl / np.array(self.edges), axis=1)
        return lengths

    def intensities(self, hkl: Ints) -> Floats:
        """|F|² relative to its mean at low angle.

        Wilson (1949): exponentially distributed for acentric reflections, χ² with one degree of freedom for
        centric ones (hk0, h0l, hhl in point group 422). Equivalents under 4/mmm agree, Friedel mates too.
        """
        h, k, l = np.abs(hkl).T  # noqa: E741 (Miller indices)
        large, small = np.maximum(h, k), np.minimum(h, k)
        n, m = math.ceil(self.a / D_MIN) + 1, math.ceil(self.c / D_MIN) + 1
        squares = np.random.default_rng([self.seed, 1]).normal(size=(n, n, m, 2)) ** 2
        draw = squares[large, small, l]
        centric = (small == 0) | (large == small) | (l == 0)
        wilson = np.where(centric, draw[:, 0], draw.mean(axis=1))
        falling: Floats = wilson * np.exp(-0.5 * self.b_factor * self.q(hkl) ** 2)
        return falling


def absent(hkl: Ints) -> NDArray[np.bool_]:
    """Which reflections the screw axes of P4₃2₁2 extinguish: h00 and 0k0 but even, 00l but every fourth."""
    h, k, l = hkl.T  # noqa: E741 (Miller indices)
    along_a = (k == 0) & (l == 0) & (h % 2 != 0)
    along_b = (h == 0) & (l == 0) & (k % 2 != 0)
    along_c = (h == 0) & (k == 0) & (l % 4 != 0)
    extinct: NDArray[np.bool_] = along_a | along_b | along_c
    return extinct
