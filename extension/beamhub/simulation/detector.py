"""Virtual detectors: they expose frame after frame at their rate, and write what an EIGER's filewriter or a
PILATUS would."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from beamhub.simulation.acquisition import AXIS, Acquisition
from beamhub.simulation.minicbf import write_frame
from beamhub.simulation.nexus import DataFile, SwmrFile, hidden, write_master
from beamhub.simulation.photons import Exposure


class VirtualDetector:
    """Records one acquisition into a folder.

    The master appears first, then each data file under its final name when it is closed, as from an EIGER.
    `<prefix>_truth.json` beside them holds what is really true of the crystal and the geometry.

    Args:
        folder: where to; it is made if it is not there.
        prefix: what the files' names begin with.
        scan: what to record.
        images_per_file: frames in a data file.
        rate: frames per second.
    """

    def __init__(
        self, folder: Path, prefix: str, scan: Acquisition, images_per_file: int = 10, rate: float = 10.0
    ) -> None:
        if not prefix or "/" in prefix or prefix.startswith(".") or not prefix.isprintable():
            raise ValueError(f"{prefix!r} can't begin a file's name")
        if images_per_file < 1 or not rate > 0:
            raise ValueError("images per file and rate must be positive")
        self.folder = folder
        self.prefix = prefix
        self.scan = scan
        self.images_per_file = images_per_file
        self.rate = rate
        self.exposure = Exposure(scan)

    @property
    def dataset(self) -> Path:
        """What the dataset is known by."""
        return self.master

    @property
    def master(self) -> Path:
        return self.folder / f"{self.prefix}_master.h5"

    @property
    def truth(self) -> Path:
        return self.folder / f"{self.prefix}_truth.json"

    def data_file(self, number: int) -> Path:
        """The final name of a data file, numbered from 1."""
        return self.folder / f"{self.prefix}_data_{number:06d}.h5"

    def run(self, on_frame: Callable[[int], None] | None = None, stop: threading.Event | None = None) -> int:
        """Record all frames, or until `stop` is set: the data file at hand is then closed as it is.

        Args:
            on_frame: called after each frame with how many are written.

        Returns:
            How many frames were written.

        Raises:
            FileExistsError: the folder holds a dataset of this name already.
        """
        if taken := self._taken():
            raise FileExistsError(f"{taken} exists already; choose another prefix")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.exposure.prepare()
        self._write_truth()
        return self._record(on_frame or (lambda _: None), stop)

    def _taken(self) -> Path | None:
        return self.master if self.master.exists() else None

    def _record(self, on_frame: Callable[[int], None], stop: threading.Event | None) -> int:
        frames, size = self.scan.frames, self.images_per_file
        firsts = range(0, frames, size)
        files = [(self.data_file(n).name, min(size, frames - first)) for n, first in enumerate(firsts, 1)]
        write_master(self.master, self.scan, files, 1 / self.rate)
        written = 0
        begin = time.monotonic()
        for number, (_, count) in enumerate(files, 1):
            with DataFile(self.data_file(number), self.scan, written, count) as file:
                for _ in range(count):
                    image = self.exposure.image(written)
                    if self._stopped(stop, begin + (written + 1) / self.rate):
                        return written
                    file.append(image)
                    written += 1
                    on_frame(written)
        return written

    @staticmethod
    def _stopped(stop: threading.Event | None, until: float) -> bool:
        """Wait until a frame's exposure ends, or `stop` is set."""
        delay = max(0.0, until - time.monotonic())
        if stop is not None:
            return stop.wait(delay)
        time.sleep(delay)
        return False

    def _write_truth(self) -> None:
        temporary = hidden(self.truth)
        temporary.write_text(json.dumps(truth(self.exposure), allow_nan=False) + "\n")
        temporary.rename(self.truth)


class VirtualSwmr(VirtualDetector):
    """The same in one file, the master, which readers may open while it is written (SWMR)."""

    def _record(self, on_frame: Callable[[int], None], stop: threading.Event | None) -> int:
        begin = time.monotonic()
        with SwmrFile(self.master, self.scan, 1 / self.rate) as file:
            for index in range(self.scan.frames):
                image = self.exposure.image(index)
                if self._stopped(stop, begin + (index + 1) / self.rate):
                    return index
                file.append(image)
                on_frame(index + 1)
        return self.scan.frames


class VirtualPilatus(VirtualDetector):
    """The same with a file for each frame, `<prefix>_00001.cbf` and so on, and no master."""

    @property
    def dataset(self) -> Path:
        return self.folder / f"{self.prefix}_#####.cbf"

    def frame_file(self, number: int) -> Path:
        """The final name of a frame's file, numbered from 1."""
        return self.folder / f"{self.prefix}_{number:05d}.cbf"

    def _taken(self) -> Path | None:
        return self.frame_file(1) if self.frame_file(1).exists() else None

    def _record(self, on_frame: Callable[[int], None], stop: threading.Event | None) -> int:
        begin = time.monotonic()
        for index in range(self.scan.frames):
            image = self.exposure.image(index)
            if self._stopped(stop, begin + (index + 1) / self.rate):
                return index
            path = self.frame_file(index + 1)
            write_frame(hidden(path), self.scan, index, image, 1 / self.rate)
            hidden(path).rename(path)
            on_frame(index + 1)
        return self.scan.frames


def truth(exposure: Exposure) -> dict[str, Any]:
    """The ground truth: parameters, lattice, and each reflection that sends the detector a photon or more.

    `reflections` is a table by columns: hkl, the angle of its passage (degrees), pixel (fast, slow), photons
    when recorded in full. A grid scan also tells the crystal's shape, and for each frame the part of the beam
    that met it.
    """
    scan, spots = exposure.scan, exposure.reflections
    crystal, seen = scan.crystal, spots.photons >= 1
    parameters = asdict(scan)
    del parameters["crystal"], parameters["grid"], parameters["detector"]
    told = {
        "acquisition": parameters,
        "detector": asdict(scan.detector) | {"shape": scan.detector.shape, "beam_centre": scan.beam_centre},
        "crystal": asdict(crystal),
        "cell": [*crystal.edges, 90.0, 90.0, 90.0],
        "space_group": crystal.space_group,
        "laue_group": crystal.laue_group,
        "wavelength": scan.wavelength,
        "axis": AXIS.tolist(),
        "reciprocal_basis": crystal.reciprocal_basis.tolist(),
        "reflections": {
            "hkl": spots.hkl[seen].tolist(),
            "phi": _rounded(spots.phi[seen], 4),
            "x": _rounded(spots.x[seen], 2),
            "y": _rounded(spots.y[seen], 2),
            "photons": _rounded(spots.photons[seen], 1),
        },
    }
    if scan.grid is not None:
        told["grid"] = asdict(scan.grid) | {
            "crystal": scan.grid.crystal,
            "overlap": _rounded(scan.grid.overlap, 4),
        }
    return told


def _rounded(values: Any, digits: int) -> list[float]:
    rounded: list[float] = np.round(values, digits).tolist()
    return rounded
