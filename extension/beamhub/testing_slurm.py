"""Fixtures of a real Slurm cluster of two nodes on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beamhub import cluster
from beamhub.cluster import Cluster


@contextlib.contextmanager
def running_cluster(folder: Path, **settings: Any) -> Iterator[Cluster]:
    """A cluster in `folder`; `settings` are those of `beamhub.cluster.Cluster`."""
    if reason := cluster.missing():
        pytest.skip(reason)
    running = Cluster(folder, **settings)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests, which none stops."""
    with running_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def own_slurm(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose daemons a test may kill."""
    with running_cluster(tmp_path / "slurm") as running:
        yield running
