"""A watched directory, and the agent's process that looks into the HDF5 files there."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from beamhub.agent.reader import Reader

LIBVER = ("v110", "v110")


def waiting_python(path: Path, gate: Path) -> Path:
    """A Python that begins when somebody writes a line into `gate`."""
    os.mkfifo(gate)
    path.write_text(f'#!/bin/sh\nread -r _ < "{gate}"\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o700)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    return root


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    reader = Reader()
    yield reader
    await reader.close()
