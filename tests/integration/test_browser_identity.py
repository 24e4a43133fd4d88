"""A signed-in browser and the service, behind a real hub: whose pages may do what with its cookie."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from beamhub_hub.testing import RunningDemo

API = "/services/beamhub/api/v1/"
OF_A_SCRIPT = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def browser(demo: RunningDemo) -> Iterator[httpx.Client]:
    """Ada's, with the service's cookie."""
    with demo.browser("ada") as signed_in:
        signed_in.get(f"{API}me", headers={"Accept": "text/html"})
        yield signed_in


def xsrf(browser: httpx.Client) -> str:
    return browser.cookies.get("_xsrf", path="/services/beamhub/") or ""


def test_scripts_of_other_pages_can_neither_read_nor_write(demo: RunningDemo, browser: httpx.Client) -> None:
    """Other people's servers live on the same host: the browser sends the cookie for their scripts too."""
    experiment = f"{API}experiments/{demo.credentials.experiment}"
    assert browser.get(experiment, headers=OF_A_SCRIPT).status_code == 401
    assert browser.patch(experiment, json={"title": "Forged"}, headers=OF_A_SCRIPT).status_code == 401
    assert browser.patch(experiment, json={"title": "Forged"}).status_code == 401
    forged = OF_A_SCRIPT | {"X-XSRFToken": "guessed"}
    assert browser.patch(experiment, json={"title": "Forged"}, headers=forged).status_code == 401


def test_scripts_of_the_services_own_pages_can(demo: RunningDemo, browser: httpx.Client) -> None:
    experiment = f"{API}experiments/{demo.credentials.experiment}"
    own = OF_A_SCRIPT | {"X-XSRFToken": xsrf(browser)}
    title = browser.get(experiment, headers=own).json()["title"]
    assert browser.patch(experiment, json={"title": title}, headers=own).status_code == 200
    # an EventSource has no headers of its own
    url, headers = f"{API}events?_xsrf={xsrf(browser)}", OF_A_SCRIPT | {"Accept": "text/event-stream"}
    with browser.stream("GET", url, headers=headers) as feed:
        assert feed.status_code == 200
        assert next(feed.iter_lines()) == "retry: 1000"


def test_a_token_needs_nothing_else(demo: RunningDemo) -> None:
    headers = {"Authorization": f"token {demo.credentials.users['ada'].token}"}
    with httpx.Client(base_url=demo.url, headers=headers) as program:
        experiment = f"{API}experiments/{demo.credentials.experiment}"
        title = program.get(experiment).json()["title"]
        assert program.patch(experiment, json={"title": title}).status_code == 200


def test_any_name_of_the_hub_will_do(demo: RunningDemo) -> None:
    headers = {"Authorization": f"token {demo.credentials.users['ada'].token}", "Host": "hub.example.org"}
    assert httpx.get(f"{demo.url}{API}me", headers=headers).status_code == 200
