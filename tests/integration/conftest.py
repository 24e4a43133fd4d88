"""What several files of tests start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.laboratory import Lab


@pytest.fixture
async def lab(tmp_path: Path, database_url: str) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, database_url)
    yield lab
    await asyncio.to_thread(lab.store.close)
