"""Files from a member's machine into an experiment's shared/: in a real browser, behind a real hub."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from beamhub.schemas import Experiment, Role, UploadState
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.chromium import chromium

COCKPIT = "/services/cockpit/voila/render/cockpit.ipynb"
PART = 8 * 2**20  # what the page sends at once
AWAY = 10  # answers of a proxy: more than the page takes of a service that refuses
WAIT = 90_000  # ms; a good run needs a fiftieth of it
HOSTILE = "<img src=x onerror=document.title='taken'>.txt"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def experiment(demo: RunningDemo) -> Experiment:
    """Ada's, in which ben may only look."""
    made = demo.client("sam").create_experiment("sim-mx", "Shared files", "ada")
    demo.client("ada").add_member(made.id, "ben", Role.VIEWER)
    return made


@pytest.fixture(scope="module")
def people(browser: Browser, demo: RunningDemo) -> Iterator[dict[str, BrowserContext]]:
    """Everybody's browser, signed in."""
    contexts = {}
    for user in ("ada", "ben"):
        contexts[user] = browser.new_context(viewport={"width": 1440, "height": 900})
        contexts[user].set_default_timeout(WAIT)
        page = contexts[user].new_page()
        page.goto(f"{demo.url}/hub/login")
        page.locator("input[name=username]").fill(user)
        page.locator("input[name=password]").fill(demo.credentials.users[user].password)
        page.locator("[type=submit]").click()
        expect(page).to_have_url(f"{demo.url}{COCKPIT}")
        page.close()
    yield contexts
    for context in contexts.values():
        context.close()


@pytest.fixture
def page(people: dict[str, BrowserContext], demo: RunningDemo, experiment: Experiment) -> Iterator[Page]:
    """Ada's Cockpit, in which nothing goes wrong."""
    found = people["ada"].new_page()
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.goto(f"{demo.url}{COCKPIT}?experiment={experiment.id}")
    expect(found.locator(".bh-drop")).to_be_visible(timeout=WAIT)
    yield found
    found.close()
    assert wrong == []


class Gate:
    """Keeps a page's parts from a certain byte on waiting until it is opened."""

    def __init__(self, page: Page, offset: int) -> None:
        self._page = page
        self._offset = offset
        self._held: list[Route] = []
        page.route("**/api/v1/uploads/*", self._part)

    def _part(self, route: Route) -> None:
        offset = route.request.headers.get("upload-offset")
        if route.request.method == "PATCH" and int(offset or 0) >= self._offset:
            self._held.append(route)
        else:
            route.continue_()

    def wait(self) -> None:
        """Until a part has come."""
        while not self._held:
            self._page.evaluate("() => new Promise(requestAnimationFrame)")

    def lose(self) -> None:
        """The parts that wait get lost."""
        held, self._held = self._held, []
        for route in held:
            route.abort("internetdisconnected")

    def open(self) -> None:
        self._offset = sys.maxsize
        self.lose()


def test_what_is_chosen_arrives(
    page: Page, demo: RunningDemo, experiment: Experiment, tmp_path: Path
) -> None:
    """Several at once, with names and contents of all kinds; who may look sees and gets them."""
    contents = {HOSTILE: b"text", "größe.bin": os.urandom(PART + 1), "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    page.locator(".bh-drop input").set_input_files([tmp_path / name for name in contents])
    for name, content in contents.items():
        shown = page.locator(".bh-shared-file", has=page.locator(".bh-shared-name", has_text=name))
        expect(shown).to_have_count(1, timeout=WAIT)
        assert demo.client("ada").file(experiment.id, f"shared/{name}") == content
        with page.expect_download() as download:
            shown.locator("a").click()
        assert download.value.path().read_bytes() == content
    assert page.locator(".bh-shared-card img").count() == 0
    assert "taken" not in page.title()


def test_what_is_dropped_arrives(page: Page, demo: RunningDemo, experiment: Experiment) -> None:
    files = page.evaluate_handle(
        "() => { const all = new DataTransfer(); all.items.add(new File(['dropped'], 'd.txt')); return all; }"
    )
    zone = page.locator(".bh-drop")
    zone.dispatch_event("dragover", {"dataTransfer": files})
    zone.dispatch_event("drop", {"dataTransfer": files})
    expect(page.locator(".bh-shared-file[data-path='shared/d.txt']")).to_be_visible(timeout=WAIT)
    assert demo.client("ada").file(experiment.id, "shared/d.txt") == b"dropped"


def test_it_goes_on_after_a_break_a_pause_and_a_reload(
    page: Page, demo: RunningDemo, experiment: Experiment, tmp_path: Path
) -> None:
    file = tmp_path / "long.bin"
    file.write_bytes(os.urandom(3 * PART))
    gate = Gate(page, 2 * PART)
    page.locator(".bh-drop input").set_input_files(file)
    line = page.locator(".bh-send[data-name='long.bin']")
    gate.wait()
    expect(line).to_have_attribute("data-state", "sending")
    expect(line).to_contain_text("16.8 MB of 25.2 MB".replace(" MB", "\u202fMB"))

    page.context.set_offline(True)
    gate.lose()
    expect(line).to_have_attribute("data-state", "interrupted", timeout=WAIT)
    expect(line).to_contain_text("No connection. It goes on by itself")
    page.context.set_offline(False)
    gate.wait()
    line.locator(".bh-send-pause").click()
    expect(line).to_have_attribute("data-state", "paused")
    gate.lose()
    line.locator(".bh-send-resume").click()
    gate.wait()

    page.on("dialog", lambda dialog: dialog.accept())
    gate.open()
    page.reload()
    left = page.locator(".bh-left[data-name='long.bin']")
    expect(left).to_contain_text("Choose the same file again", timeout=WAIT)
    sent: list[int] = []
    page.on(
        "request",
        lambda request: (
            sent.append(int(request.headers["upload-offset"])) if request.method == "PATCH" else None
        ),
    )
    page.locator(".bh-drop input").set_input_files(file)
    expect(page.locator(".bh-shared-file[data-path='shared/long.bin']")).to_be_visible(timeout=WAIT)
    assert sent == [2 * PART]
    digest = hashlib.sha256(demo.client("ada").file(experiment.id, "shared/long.bin")).digest()
    assert digest == hashlib.sha256(file.read_bytes()).digest()
    expect(left).to_have_count(0)


def test_a_service_that_starts_again_is_waited_for(
    page: Page, demo: RunningDemo, experiment: Experiment, tmp_path: Path
) -> None:
    """However often the hub's proxy says meanwhile, to whatever is asked, that there is none."""
    file = tmp_path / "patient.bin"
    file.write_bytes(os.urandom(PART + 1))
    asked: Counter[str] = Counter()

    def proxy(route: Route) -> None:
        asked[route.request.method] += 1
        if route.request.method in ("POST", "PATCH", "HEAD") and asked[route.request.method] <= AWAY:
            route.fulfill(status=503, content_type="text/html", body="<h1>Service unavailable</h1>")
        else:
            route.continue_()

    page.route("**/api/v1/uploads", proxy)
    page.route("**/api/v1/uploads/*", proxy)
    page.locator(".bh-drop input").set_input_files(file)
    line = page.locator(".bh-send[data-name='patient.bin']")
    expect(line).to_contain_text("503", timeout=WAIT)
    page.evaluate(
        "() => { window.again = setInterval(() => window.dispatchEvent(new Event('online')), 50); }"
    )
    expect(page.locator(".bh-shared-file[data-path='shared/patient.bin']")).to_be_visible(timeout=WAIT)
    page.evaluate("() => clearInterval(window.again)")
    assert demo.client("ada").file(experiment.id, "shared/patient.bin") == file.read_bytes()
    assert {method: asked[method] > AWAY for method in ("POST", "PATCH", "HEAD")} == {
        "POST": True,
        "PATCH": True,
        "HEAD": True,
    }


def test_what_is_stopped_is_forgotten(
    page: Page, demo: RunningDemo, experiment: Experiment, tmp_path: Path
) -> None:
    file = tmp_path / "stopped.bin"
    file.write_bytes(os.urandom(2 * PART))
    gate = Gate(page, PART)
    page.locator(".bh-drop input").set_input_files(file)
    gate.wait()
    line = page.locator(".bh-send[data-name='stopped.bin']")
    line.locator(".bh-send-cancel").click()
    line.get_by_text("Go on").click()
    line.locator(".bh-send-cancel").click()
    with page.expect_response(lambda answer: answer.request.method == "DELETE" and answer.ok):
        line.locator(".bh-send-yes").click()
    expect(line).to_have_count(0)
    gate.open()
    uploads = demo.client("ada").uploads(experiment.id)
    assert next(u.state for u in uploads if u.path == "shared/stopped.bin") is UploadState.FAILED
    assert page.evaluate("Object.keys(localStorage).filter(key => key.startsWith('beamhub-upload:'))") == []


def test_what_the_service_refuses_is_said(page: Page) -> None:
    page.locator(".bh-drop input").set_input_files(
        {"name": "..", "mimeType": "text/plain", "buffer": b"climbs"}
    )
    line = page.locator(".bh-send[data-state=failed]")
    expect(line).to_be_visible(timeout=WAIT)
    expect(line.locator(".bh-send-said")).not_to_be_empty()
    expect(line.locator(".bh-send-retry")).to_be_visible()


def test_who_may_only_look_has_the_list_and_nothing_to_drop_on(
    people: dict[str, BrowserContext], demo: RunningDemo, experiment: Experiment
) -> None:
    page = people["ben"].new_page()
    page.goto(f"{demo.url}{COCKPIT}?experiment={experiment.id}")
    expect(page.locator(".bh-shared-file[data-path='shared/d.txt']")).to_be_visible(timeout=WAIT)
    expect(page.locator(".bh-drop")).to_be_hidden()
    page.close()


def test_no_token_comes_into_the_page(page: Page, demo: RunningDemo) -> None:
    token = demo.credentials.users["ada"].token
    requests: list[str] = []
    page.on("request", lambda request: requests.append(f"{request.url} {request.headers}"))
    page.reload()
    expect(page.locator(".bh-drop")).to_be_visible(timeout=WAIT)
    page.locator(".bh-drop input").set_input_files({"name": "t", "mimeType": "text/plain", "buffer": b"t"})
    expect(page.locator(".bh-shared-file[data-path='shared/t']")).to_be_visible(timeout=WAIT)
    seen = page.content() + "".join(requests)
    assert token not in seen
    assert "token=" not in seen
    assert "authorization" not in seen.lower()
