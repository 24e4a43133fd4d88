"""The simulated crystal, against what gemmi knows of its space group."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest
from beamhub.simulation.crystal import Crystal, absent

OPERATIONS = gemmi.SpaceGroup(Crystal.space_group).operations()


def test_absences_are_those_of_the_space_group() -> None:
    axis = np.arange(-9, 10)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    expected = [OPERATIONS.is_systematically_absent(list(index)) for index in hkl.tolist()]
    assert np.array_equal(absent(hkl), expected)


def test_space_group_belongs_to_the_laue_group() -> None:
    assert gemmi.SpaceGroup(Crystal.space_group).laue_str() == Crystal.laue_group


def test_indices_are_all_that_are_allowed() -> None:
    crystal = Crystal()
    found = {tuple(index) for index in crystal.indices(5.0).tolist()}
    cell = gemmi.UnitCell(*crystal.edges, 90, 90, 90)
    n, m = int(crystal.a / 5) + 1, int(crystal.c / 5) + 1
    for h in range(-n, n + 1):
        for k in range(-n, n + 1):
            for l in range(-m, m + 1):  # noqa: E741 (Miller index)
                index = (h, k, l)
                visible = index != (0, 0, 0) and cell.calculate_d(list(index)) >= 5.0
                assert (index in found) == (visible and not OPERATIONS.is_systematically_absent(list(index)))


def test_equivalent_reflections_are_equally_strong() -> None:
    crystal = Crystal(seed=3)
    hkl = crystal.indices(4.0)
    expected = crystal.intensities(hkl)
    for operation in OPERATIONS.sym_ops:
        turned = np.array([operation.apply_to_hkl(list(index)) for index in hkl.tolist()])
        assert np.array_equal(crystal.intensities(turned), expected)
        assert np.array_equal(crystal.intensities(-turned), expected)


def test_intensities_are_distributed_as_wilson_says() -> None:
    """⟨I²⟩/⟨I⟩² is 2 for acentric, 3 for centric reflections; the mean falls off with B."""
    crystal = Crystal(b_factor=0)
    hkl = crystal.indices(1.2)
    hkl = hkl[(hkl >= 0).all(axis=1) & (hkl[:, 0] >= hkl[:, 1])]  # one of each set of equivalents
    groups = OPERATIONS
    centric = np.array([groups.is_reflection_centric(list(index)) for index in hkl.tolist()])
    strong = crystal.intensities(hkl)
    assert strong.mean() == pytest.approx(1, abs=0.03)
    for kind, expected in ((~centric, 2.0), (centric, 3.0)):
        moment = (strong[kind] ** 2).mean() / strong[kind].mean() ** 2
        assert moment == pytest.approx(expected, rel=0.1)
    falling = Crystal(b_factor=30).intensities(hkl)
    assert falling == pytest.approx(strong * np.exp(-15 * crystal.q(hkl) ** 2))


def test_intensities_do_not_depend_on_what_else_is_measured() -> None:
    crystal = Crystal()
    wide, narrow = crystal.indices(3.0), crystal.indices(6.0)
    known = dict(zip(map(tuple, wide.tolist()), crystal.intensities(wide), strict=True))
    again = [known[tuple(index)] for index in narrow.tolist()]
    assert np.array_equal(crystal.intensities(narrow), again)


@pytest.mark.parametrize("seed", range(5))
def test_orientation_is_a_rotation(seed: int) -> None:
    u = Crystal(seed=seed).orientation
    assert u @ u.T == pytest.approx(np.eye(3))
    assert np.linalg.det(u) == pytest.approx(1)
    assert not np.allclose(u, Crystal(seed=seed + 1).orientation)


def test_reciprocal_basis_has_the_cell() -> None:
    crystal = Crystal()
    real = np.linalg.inv(crystal.reciprocal_basis)  # rows are a, b, c
    assert np.linalg.norm(real, axis=1) == pytest.approx(crystal.edges)
