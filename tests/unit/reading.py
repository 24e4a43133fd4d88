"""A watched directory, and the agent's process that looks into the HDF5 files there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from beamhub.agent.reader import Reader

LIBVER = ("v110", "v110")


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
