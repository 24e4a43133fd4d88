"""Crystals as DIALS finds them: what is known of one beforehand, and whether several are of one form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from beamhub_notebooks.errors import ProcessingError

LATTICE_TOLERANCE = 5.0  # degrees: by how much a lattice may miss a symmetry, as dials.cosym has it


def known_crystal(space_group: str | None, unit_cell: Sequence[float] | None) -> list[str]:
    """Arguments of `dials.index` for what is known of the crystal.

    Raises:
        ProcessingError: no such space group, or the cell does not fit it.
    """
    arguments = []
    if space_group is not None:
        group = gemmi.find_spacegroup_by_name(space_group)
        if group is None or not group.is_sohncke():
            raise ProcessingError(
                f"{space_group!r} is not a space group that a protein crystal can have. "
                "Write it like P43212 or C2."
            )
        arguments.append(f"known_symmetry.space_group={group.short_name()}")
        if unit_cell is not None and not gemmi.UnitCell(*unit_cell).is_compatible_with_spacegroup(
            group, 0.01
        ):
            raise ProcessingError(
                f"The unit cell {' '.join(f'{length:g}' for length in unit_cell)} does not fit the space "
                f"group {group.hm}. Correct one of them, or leave one out."
            )
    if unit_cell is not None:
        arguments.append("known_symmetry.unit_cell=" + ",".join(f"{length:.6g}" for length in unit_cell))
    return arguments


@dataclass(frozen=True)
class Crystal:
    """The crystal of an experiment list."""

    cell: tuple[float, float, float, float, float, float]  # Å, degrees
    space_group: str  # Hermann-Mauguin
    laue_group: str
    mosaicity: float | None  # degrees, standard deviation of the rocking curve

    def __str__(self) -> str:
        lengths = ", ".join(f"{length:.2f}" for length in self.cell[:3])
        angles = ", ".join(f"{angle:.2f}" for angle in self.cell[3:])
        return f"{self.space_group}, unit cell {lengths} Å, {angles}°"

    @classmethod
    def of(cls, experiments: Path) -> Crystal:
        """Read a `.expt` file."""
        content = json.loads(experiments.read_bytes())
        crystal = content["crystal"][0]
        axes = np.array([crystal[f"real_space_{axis}"] for axis in "abc"], np.float64)
        a, b, c = np.linalg.norm(axes, axis=1).tolist()
        cosines = (axes @ axes.T) / np.outer((a, b, c), (a, b, c))
        alpha, beta, gamma = np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]])).tolist()
        operations = gemmi.symops_from_hall(crystal["space_group_hall_symbol"])
        group = gemmi.find_spacegroup_by_ops(operations)
        if group is None:
            raise ProcessingError(f"{experiments.name} has a space group in a setting that nobody uses.")
        width = (content.get("profile") or [{}])[0].get("sigma_m")
        return cls(
            cell=(a, b, c, alpha, beta, gamma),
            space_group=group.hm,
            laue_group=group.laue_str(),
            mosaicity=None if width is None else float(np.mean(width)),
        )


@dataclass(frozen=True)
class Integrated:
    """What a job of the DIALS template has left, before it scaled it."""

    job: str  # the number that its folder has
    experiments: Path
    reflections: Path
    crystal: Crystal

    @classmethod
    def of(cls, job: str | Path) -> Integrated:
        """Find it in the job's folder.

        Raises:
            ProcessingError: the job has left nothing of that kind.
        """
        folder = Path(job) / "dials"
        experiments, reflections = folder / "symmetrized.expt", folder / "symmetrized.refl"
        if not (experiments.is_file() and reflections.is_file()):
            raise ProcessingError(
                f"Job {Path(job).name} has left no integrated reflections. Choose jobs of the DIALS template "
                "that have finished."
            )
        return cls(f"job {Path(job).name}", experiments, reflections, Crystal.of(experiments))


def other_indexings(crystal: Crystal) -> list[str]:
    """How else its lattice can be indexed, such as ["-h,k,-l"]: what the unit cell allows and the Laue group
    does not contain. Empty if there is one way only, up to symmetry."""
    name, (*_, alpha, _beta, gamma) = crystal.space_group, crystal.cell
    group = gemmi.find_spacegroup_by_name(name, alpha, gamma)
    if group is None:
        raise ValueError(f"{name} is no space group")
    laws = gemmi.find_twin_laws(gemmi.UnitCell(*crystal.cell), group, LATTICE_TOLERANCE, False)
    return [law.as_hkl().triplet() for law in laws]


def require_same_form(datasets: Sequence[Integrated]) -> None:
    """Raise ProcessingError where these are not of one crystal form: another Laue group or centring, a cell
    edge that differs by more than 3 %, or an angle by more than 3°."""
    first = datasets[0]
    for other in datasets[1:]:
        one, two = first.crystal, other.crystal
        edges = zip(one.cell[:3], two.cell[:3], strict=True)
        angles = zip(one.cell[3:], two.cell[3:], strict=True)
        same = (one.laue_group, one.space_group[0]) == (two.laue_group, two.space_group[0])
        same &= all(abs(a - b) <= 0.03 * a for a, b in edges) and all(abs(a - b) <= 3 for a, b in angles)
        if not same:
            raise ProcessingError(
                f"These are not of one crystal form: {first.job} found {one}, {other.job} found {two}. Leave "
                "one out, or rerun one with the space group and the unit cell of the other."
            )
