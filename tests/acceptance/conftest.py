"""One facility and one browser for the whole story."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Browser, sync_playwright

from tests.acceptance.people import People
from tests.conftest import StartDemo

PICTURES = Path(__file__).parents[2] / ".test" / "pictures"
QUIET = (  # nothing that Chromium wants from elsewhere
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",  # tests may run as root, where Chromium's own sandbox does not start
)


@pytest.fixture(scope="session")
def facility(start_demo: StartDemo) -> RunningDemo:
    """A facility for one story; nothing acquired yet."""
    if not shutil.which("dials.import"):
        pytest.skip("DIALS is not installed: apt-get install dials")
    return start_demo("--no-acquisition")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def people(browser: Browser, facility: RunningDemo) -> Iterator[People]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    people = People(browser, facility, PICTURES)
    yield people
    assert people.complaints == []
