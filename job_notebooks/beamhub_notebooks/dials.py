"""Running DIALS, step by step, and reading what it found.

DIALS (Winter, G. et al. (2018), "DIALS: implementation and evaluation of a new integration package", Acta
Cryst. D74, 85-97) lives in a Python of its own, so everything goes through its programs and the files they
write: experiment lists (`.expt`, JSON), the statistics of `dials.scale` (JSON), logs, and MTZ through gemmi.

    process = Processing("dials", cpus=2)
    process.run("import", "/data/lysozyme_master.h5")
    process.run("find_spots", "imported.expt")
    print(spots_per_frame(process.log("find_spots")))
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import hdf5plugin
import numpy as np

from beamhub_notebooks.errors import ProcessingError
from beamhub_notebooks.live import LiveDataset

MIN_SPOTS = 20  # with fewer, indexing cannot work: the orientation, cell and geometry alone are 16 unknowns

LATTICE_TOLERANCE = 5.0  # degrees: by how much a lattice may miss a symmetry, as dials.cosym has it

# What helps when a program of DIALS stops, in one sentence.
REMEDIES = {
    "import": "Check that the master file and all of its data files are complete.",
    "slice_sequence": "Choose first and last frame within the dataset.",
    "find_spots": "Look at some frames in the viewer: is there diffraction, was the shutter open?",
    "index": (
        "Check beam centre and distance in the viewer (a wrong one is the most frequent reason), give unit "
        "cell and space group if they are known, or take a range of frames that show diffraction."
    ),
    "refine": "Take a range of frames in which the crystal diffracts well and does not slip.",
    "integrate": "Give a lower resolution, such as 3 Å, or a range of frames that show diffraction.",
    "symmetry": "Give the space group if it is known, or take more frames.",
    "cosym": "Leave out jobs with few reflections, or take more frames: datasets need reflections in common.",
    "scale": "Give a lower resolution, such as 3 Å, or take more frames.",
    "merge": "Give a lower resolution, such as 3 Å, or take more datasets.",
    "export": "See the log of this step.",
}


@dataclass(frozen=True)
class Step:
    """A finished step."""

    name: str
    seconds: float
    log: Path


class Processing:
    """A DIALS processing: a folder with its files and logs, and the CPUs it may use."""

    def __init__(self, folder: str | Path = "dials", *, cpus: int = 1) -> None:
        """Create `folder` where it is missing.

        Raises:
            ProcessingError: DIALS is not installed.
        """
        if shutil.which("dials.import") is None:
            raise ProcessingError(
                "DIALS is not installed where this job ran: there is no `dials.import` on the PATH. On "
                "Debian and Ubuntu, `apt-get install dials` provides it."
            )
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cpus = cpus

    def log(self, name: str) -> Path:
        """Where the output of a step goes, line by line as it is printed."""
        return self.folder / f"{name}.log"

    @property
    def version(self) -> str:
        """Such as "3.12"."""
        self.run("version")
        found = re.search(r"DIALS (\S+)", self.log("version").read_text("utf-8", "replace"))
        return found[1] if found else "unknown"

    def run(self, program: str, *arguments: str | Path, name: str | None = None) -> Step:
        """Run `dials.<program>` in the folder and wait for its end.

        Args:
            program: such as "find_spots".
            arguments: as on the command line; they pass no shell.
            name: of the log, when a program runs more than once.

        Raises:
            ProcessingError: the program reports a failure.
        """
        name = name or program
        started = time.monotonic()
        with self.log(name).open("wb") as log:
            ended = subprocess.run(
                [f"dials.{program}", *map(str, arguments)],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if ended.returncode != 0:
            reason = _reason(self.log(name), ended.returncode)
            raise ProcessingError(f"dials.{program} stopped: {reason} {REMEDIES.get(program, '')}".strip())
        return Step(name, time.monotonic() - started, self.log(name))

    def _environment(self) -> dict[str, str]:
        """Only what DIALS needs: what belongs to this Python (plot backend, paths) would break its own."""
        kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
        return {name: os.environ[name] for name in kept if name in os.environ} | {
            "HOME": str(self.folder),
            # the bitshuffle filter; set for our own Python, it would break writing
            "HDF5_PLUGIN_PATH": str(hdf5plugin.PLUGIN_PATH),
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": str(self.cpus),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }


def _reason(log: Path, code: int) -> str:
    """The sentence in which a program of DIALS says why it stopped."""
    if code < 0:
        return f"it was ended by signal {-code}; often there was not enough memory."
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    sorry = [line.removeprefix("Sorry:").strip() for line in lines if line.startswith("Sorry:")]
    reason = sorry[-1] if sorry else (lines[-1] if lines else f"it ended with code {code}")
    reason = re.sub(r"^\w*(Error|Exception|Sorry):\s*", "", reason)
    reason = re.sub(r"^Please report this error to \S+\s*", "", reason)
    return reason[:300].rstrip(".") + "."


# --- what is known beforehand -------------------------------------------------------------------------------


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


def import_arguments(dataset: LiveDataset) -> list[str]:
    """Arguments of `dials.import`: the master, a series' template, or the files of a series with holes up to
    the first hole."""
    if not dataset.open_ended:
        return [str(dataset.path)]
    if dataset.published == dataset.announced:
        return [f"template={dataset.path}"]
    return [str(dataset.frames.file(index)) for index in range(dataset.published)]


def image_number(dataset: LiveDataset, frame: int) -> int:
    """What DIALS calls a frame (from 1): it counts a series' images by the numbers in their names."""
    return dataset.frames.first_number + frame - 1


def frame_range(frames: int, first: int | None, last: int | None) -> tuple[int, int] | None:
    """First and last frame (from 1) to process, None if these are all.

    Raises:
        ProcessingError: there is no such range in the dataset.
    """
    start = 1 if first is None else first
    stop = frames if last is None else last
    if not 1 <= start <= stop <= frames:
        raise ProcessingError(
            f"There are no frames {start} to {stop}: the dataset has frames 1 to {frames}. "
            "Choose first and last frame among these."
        )
    return None if (start, stop) == (1, frames) else (start, stop)


# --- what the steps found -----------------------------------------------------------------------------------


def spots_per_frame(log: Path, first: int = 1) -> dict[int, int]:
    """Frame number -> spots centred on it, from the log of `dials.find_spots per_image_statistics=True`.

    Args:
        log: in which frames are counted from 1.
        first: number of the first frame.

    Raises:
        ProcessingError: there are too few to go on.
    """
    rows = re.findall(r"^\| +(\d+) \| +(\d+) \|", log.read_text("utf-8", "replace"), re.MULTILINE)
    spots = {int(frame) + first - 1: int(count) for frame, count in rows}
    total = sum(spots.values())
    if total < MIN_SPOTS:
        found = "No spots found" if total == 0 else f"Only {total} spots found"
        where = f"on any of {len(spots)} frames" if total == 0 else f"on {len(spots)} frames"
        raise ProcessingError(
            f"{found} {where}: not enough to index. Look at some frames in the viewer: if there is "
            "diffraction that was not found, lower 'Spot strength' or 'Smallest spot'; if there is none, "
            "centre the crystal again."
        )
    return spots


def indexed_fraction(log: Path) -> float:
    """The part of the spots that the lattice explains, from the log of `dials.index`."""
    tables = re.findall(
        r"^\| +\d+ \| +(\d+) \| +(\d+) \| +[\d.]+% +\|", log.read_text("utf-8", "replace"), re.MULTILINE
    )
    indexed, rest = map(int, tables[-1])
    return indexed / max(indexed + rest, 1)


def screw_axes(log: Path) -> dict[str, bool | None]:
    """Screw axis -> present, absent, or None if no reflection tells; from the log of `dials.symmetry`."""
    rows = re.findall(
        r"^\| (\d\d\w) +\| +([\d.]+) +\| +(\d+) +\| +(\d+) +\|",
        log.read_text("utf-8", "replace"),
        re.MULTILINE,
    )
    return {
        axis: float(score) > 0.5 if int(present) + int(absent) else None
        for axis, score, present, absent in rows
    }


def screw_axes_text(axes: Mapping[str, bool | None]) -> str:
    """What `screw_axes` found, in sentences."""
    if not axes:
        return "Screw axes were not looked for."
    words = {True: "present", False: "absent", None: "not measured"}
    found = ", ".join(f"{axis}: {words[present]}" for axis, present in axes.items())
    return (
        f"Screw axes: {found}. A screw axis that was not measured is not in the space group's name, and no "
        "intensities tell mirror images such as P41 and P43 apart: give the space group if you know it."
    )


def suggested_resolution(log: Path) -> float | None:
    """Where CC½ falls to 0.3, in Å, if that is within the data; from the log of `dials.scale`."""
    found = re.search(
        r"Resolution limit suggested from CC½ fit.*: ([\d.]+)", log.read_text("utf-8", "replace")
    )
    return float(found[1]) if found else None


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


def reindexed(log: Path) -> int:
    """How many datasets were indexed in another way than most; from the log of `dials.cosym`."""
    _, _, found = log.read_text("utf-8", "replace").partition("Reindexing operators:")
    groups = [len(ids.split(",")) for ids in re.findall(r"^\S+: \[([\d, ]+)\]$", found, re.MULTILINE)]
    return sum(groups) - max(groups, default=0)


def count(experiments: Path) -> int:
    """How many datasets a `.expt` file has."""
    return len(json.loads(experiments.read_bytes())["experiment"])


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


# what is drawn of shells over their middle, and the units
CURVES = {
    "resolution": "Å",
    "cc_half": "",
    "i_over_sigma": "",
    "completeness": "%",
    "multiplicity": "",
    "r_meas": "",
}


@dataclass(frozen=True)
class Shell:
    """Merging statistics of a shell of resolution, or of all data."""

    d_max: float  # Å
    d_min: float  # Å
    observations: int
    unique: int
    multiplicity: float
    completeness: float  # percent
    i_over_sigma: float
    r_merge: float | None
    r_meas: float | None
    r_pim: float | None
    cc_half: float | None


@dataclass(frozen=True)
class Merging:
    """What `dials.scale` says about the scaled data."""

    overall: Shell
    low: Shell
    high: Shell
    shells: tuple[Shell, ...]
    frames: tuple[int, ...]
    scale: tuple[float, ...]  # per frame
    r_merge: tuple[float, ...]  # per frame

    def curves(self) -> Iterator[dict[str, float]]:
        """A row of `CURVES` for each shell, for a series; what could not be computed is left out."""
        for shell in self.shells:
            row = {"resolution": round((2 / (1 / shell.d_max**2 + 1 / shell.d_min**2)) ** 0.5, 3)}
            values = {name: getattr(shell, name) for name in CURVES if name != "resolution"}
            yield row | {name: value for name, value in values.items() if value is not None}

    def table(self) -> str:
        """All shells and the whole, as text."""
        header = (
            "Å",
            "Å",
            "observed",
            "unique",
            "multipl.",
            "compl. %",
            "I/σ",
            "Rmerge",
            "Rmeas",
            "Rpim",
            "CC½",
        )
        rows = [
            (
                f"{shell.d_max:.2f}",
                f"{shell.d_min:.2f}",
                str(shell.observations),
                str(shell.unique),
                f"{shell.multiplicity:.1f}",
                f"{shell.completeness:.1f}",
                f"{shell.i_over_sigma:.1f}",
                *(
                    "" if value is None else f"{value:.3f}"
                    for value in (shell.r_merge, shell.r_meas, shell.r_pim, shell.cc_half)
                ),
            )
            for shell in (*self.shells, self.overall)
        ]
        return "\n".join("".join(f"{entry:>9}" for entry in row) for row in (header, *rows))

    @classmethod
    def of(cls, statistics: Path) -> Merging:
        """Read the file that `dials.scale output.json=...` wrote.

        Raises:
            ProcessingError: there were too few reflections for any statistics.
        """
        content = json.loads(statistics.read_bytes())
        tables = content.get("scaling_tables", {})
        if not tables.get("overall") or not tables.get("resolution_binned"):
            raise ProcessingError(
                "Too few reflections were measured more than once to say how good the data are. "
                "Take more frames."
            )
        names = [_plain(row[0]) for row in tables["overall"]]
        overall, low, high = (
            _shell(dict(zip(names, column, strict=True)))
            for column in list(zip(*tables["overall"], strict=True))[1:]
        )
        header = [_plain(name) for name in tables["resolution_binned"][0]]
        scale, r_merge = content["batch_plots"]["scale_rmerge_vs_batch"]["data"][:2]
        return cls(
            overall=overall,
            low=low,
            high=high,
            shells=tuple(
                _shell(dict(zip(header, row, strict=True))) for row in tables["resolution_binned"][1:]
            ),
            frames=tuple(map(int, scale["x"])),
            scale=tuple(map(float, scale["y"])),
            r_merge=tuple(map(float, r_merge["y"])),
        )


# how the columns of DIALS' tables are called, overall and in shells
_COLUMNS = {
    "observations": ("Observations", "N(obs)"),
    "unique": ("Unique reflections", "N(unique)"),
    "multiplicity": ("Multiplicity",),
    "completeness": ("Completeness",),
    "i_over_sigma": ("Mean I/σ(I)",),
    "r_merge": ("Rmerge",),
    "r_meas": ("Rmeas",),
    "r_pim": ("Rpim",),
    "cc_half": ("CC½",),
}


def _shell(named: Mapping[str, Any]) -> Shell:
    """One shell out of a column's or row's entries, which are texts with units, stars and empty places.

    DIALS also writes 0 for what it cannot compute because nothing was measured twice: that is no CC½ of 0.
    """
    d_max, d_min = (float(edge) for edge in str(named["Resolution (Å)"]).split(" - "))
    values: dict[str, float | None] = {}
    for field, names in _COLUMNS.items():
        text = next(str(named[name]) for name in names if name in named).rstrip("%*")
        values[field] = float(text) if text else None
    return Shell(
        d_max=d_max,
        d_min=d_min,
        observations=int(values["observations"] or 0),
        unique=int(values["unique"] or 0),
        multiplicity=values["multiplicity"] or 0.0,
        completeness=values["completeness"] or 0.0,
        i_over_sigma=values["i_over_sigma"] or 0.0,
        r_merge=values["r_merge"] or None,
        r_meas=values["r_meas"] or None,
        r_pim=values["r_pim"] or None,
        cc_half=values["cc_half"] or None,
    )


def _plain(text: str) -> str:
    return re.sub(r"<[^>]*>", "", text)
