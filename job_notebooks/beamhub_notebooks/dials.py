"""Running DIALS, step by step, and reading its logs.

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import hdf5plugin

from beamhub_notebooks.errors import ProcessingError
from beamhub_notebooks.live import LiveDataset

MIN_SPOTS = 20  # with fewer, indexing cannot work: the orientation, cell and geometry alone are 16 unknowns

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
        found = re.search(r"DIALS (\S+)", _text(self.log("version")))
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


def _text(log: Path) -> str:
    return log.read_text("utf-8", "replace")


def _reason(log: Path, code: int) -> str:
    """The sentence in which a program of DIALS says why it stopped."""
    if code < 0:
        return f"it was ended by signal {-code}; often there was not enough memory."
    lines = [line.strip() for line in _text(log).splitlines() if line.strip()]
    sorry = [line.removeprefix("Sorry:").strip() for line in lines if line.startswith("Sorry:")]
    reason = sorry[-1] if sorry else (lines[-1] if lines else f"it ended with code {code}")
    reason = re.sub(r"^\w*(Error|Exception|Sorry):\s*", "", reason)
    reason = re.sub(r"^Please report this error to \S+\s*", "", reason)
    return reason[:300].rstrip(".") + "."


# --- what the steps work on -------------------------------------------------------------------------------


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
    rows = re.findall(r"^\| +(\d+) \| +(\d+) \|", _text(log), re.MULTILINE)
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
    tables = re.findall(r"^\| +\d+ \| +(\d+) \| +(\d+) \| +[\d.]+% +\|", _text(log), re.MULTILINE)
    indexed, rest = map(int, tables[-1])
    return indexed / max(indexed + rest, 1)


def screw_axes(log: Path) -> dict[str, bool | None]:
    """Screw axis -> present, absent, or None if no reflection tells; from the log of `dials.symmetry`."""
    rows = re.findall(
        r"^\| (\d\d\w) +\| +([\d.]+) +\| +(\d+) +\| +(\d+) +\|",
        _text(log),
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
    found = re.search(r"Resolution limit suggested from CC½ fit.*: ([\d.]+)", _text(log))
    return float(found[1]) if found else None


def reindexed(log: Path) -> int:
    """How many datasets were indexed in another way than most; from the log of `dials.cosym`."""
    _, _, found = _text(log).partition("Reindexing operators:")
    groups = [len(ids.split(",")) for ids in re.findall(r"^\S+: \[([\d, ]+)\]$", found, re.MULTILINE)]
    return sum(groups) - max(groups, default=0)


def count(experiments: Path) -> int:
    """How many datasets a `.expt` file has."""
    return len(json.loads(experiments.read_bytes())["experiment"])
