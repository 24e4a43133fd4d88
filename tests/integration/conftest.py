"""What several files of tests start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from beamhub.testing import RunningService, running_service

from tests.integration.agents import RunningAgent
from tests.integration.laboratory import Lab


@pytest.fixture
async def lab(tmp_path: Path, database_url: str) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, database_url)
    yield lab
    await lab.end()


@pytest.fixture
def agent(service: RunningService, tmp_path: Path) -> Iterator[RunningAgent]:
    agent = RunningAgent(tmp_path / "agent", service, service.beamtime())
    yield agent
    if agent.process is not None:
        agent.kill()


@pytest.fixture
def own_agent(own_service: RunningService, tmp_path: Path) -> Iterator[RunningAgent]:
    """With a service that may be killed."""
    agent = RunningAgent(tmp_path / "agent", own_service, own_service.beamtime())
    yield agent
    if agent.process is not None:
        agent.kill()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that waits half a second for clients that send too slowly."""
    with running_service(tmp_path_factory.mktemp("impatient"), patience=0.5) as service:
        yield service
