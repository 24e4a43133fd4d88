"""One facility and one browser for the whole story."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Browser

from tests.acceptance.people import People
from tests.chromium import chromium
from tests.conftest import StartDemo

PICTURES = Path(__file__).parents[2] / ".test" / "pictures"


@pytest.fixture(scope="session")
def facility(start_demo: StartDemo) -> RunningDemo:
    """A facility for one story; nothing acquired yet."""
    if not shutil.which("dials.import"):
        pytest.skip("DIALS is not installed: apt-get install dials")
    return start_demo("--no-acquisition")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def people(browser: Browser, facility: RunningDemo) -> Iterator[People]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    people = People(browser, facility, PICTURES)
    yield people
    assert people.complaints == []
