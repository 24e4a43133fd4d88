"""Detector files as they should be, and ones that reach for others: what tests of looking into them share."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import h5py
import pytest
from beamhub.simulation.acquisition import Acquisition, Detector, Grid
from beamhub.simulation.detector import VirtualDetector

TINY = Detector("tiny", (1, 2), 0.05, module=(80, 40), gap=(4, 6))
SHAPE = (86, 80)
LIBVER = ("v110", "v110")


def record(folder: Path, frames: int = 6, grid: Grid | None = None) -> Path:
    detector = VirtualDetector(folder, "x", Acquisition(TINY, frames, distance=0.05, grid=grid), 4, rate=1000)
    detector.run()
    return detector.master


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must not be touched: a pipe, on which opening to read would wait for ever."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    os.mkfifo(folder / "secret.h5")
    return folder / "secret.h5"


def untouched(pipe: Path) -> bool:
    """Whether nobody has the pipe open for reading at this moment."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def entry(file: h5py.File) -> h5py.Group:
    return file.require_group("entry/data")


def virtual_open_ended(file: h5py.File, pipe: Path) -> None:
    """Merely asking for the shape of this one opens its source."""
    layout = h5py.VirtualLayout((4, 5, 5), "u2", maxshape=(None, 5, 5))
    source = h5py.VirtualSource(str(pipe), "d", (4, 5, 5), maxshape=(None, 5, 5))
    endless = slice(0, h5py.h5s.UNLIMITED, 1)
    layout[endless, :, :] = source[endless, :, :]
    entry(file).create_virtual_dataset("data", layout)
