"""The REST API over HTTP: who asks, and the form of requests and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from beamhub.client import Client, Unreachable
from beamhub.schemas import Role
from beamhub.testing import Beamtime, RunningService

from tests.integration.asking import beamtime, http

__all__ = ["beamtime", "http"]


# --- who asks ------------------------------------------------------------------------------------------


def test_everybody_is_who_the_token_says(service: RunningService, beamtime: Beamtime) -> None:
    ada, sam, operator = (service.client(name).me() for name in ("ada", "sam", "operator"))
    assert (ada.name, ada.kind, ada.operator, ada.staff_of) == ("ada", "user", False, [])
    assert beamtime.instrument in sam.staff_of
    assert (operator.kind, operator.operator) == ("service", True)
    agent = service.agent(beamtime).me()
    assert (agent.kind, agent.operator) == ("instrument", False)


@pytest.mark.parametrize("header", [None, "token wrong", "Bearer wrong", "Basic YTpi", "token"])
def test_no_valid_credentials_are_a_401_problem(service: RunningService, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.get(f"{service.api}me", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "WWW-Authenticate" in answer.headers
    assert answer.json()["remedy"]


def test_a_browser_without_credentials_is_sent_to_the_login(service: RunningService) -> None:
    headers = {"Accept": "text/html,*/*", "Sec-Fetch-Mode": "navigate"}
    answer = httpx.get(f"{service.api}me", headers=headers)
    assert answer.status_code == 302
    assert "login" in answer.headers["Location"]
    # what a page's script fetches is no navigation
    assert httpx.get(f"{service.api}me", headers=headers | {"Sec-Fetch-Mode": "cors"}).status_code == 401


def test_a_cookie_needs_the_xsrf_token_to_write(service: RunningService, beamtime: Beamtime) -> None:
    path = f"{service.api}experiments/{beamtime.experiment}"
    with httpx.Client(cookies={"beamhub-testing": service.tokens["ada"]}) as browser:
        assert browser.get(path).status_code == 200
        refusal = browser.patch(path, json={"title": "Forged"})
        assert refusal.status_code == 403
        assert refusal.headers["Content-Type"] == "application/problem+json"
        browser.cookies.set("_xsrf", "the page's own")
        answer = browser.patch(path, json={"title": "Meant"}, headers={"X-XSRFToken": "the page's own"})
        assert answer.status_code == 200
    assert service.client("ada").experiment(beamtime.experiment).title == "Meant"


def test_nothing_of_the_jupyter_server_itself_is_reachable(service: RunningService) -> None:
    root = f"{service.url}/services/beamhub/"
    headers = {"Authorization": f"token {service.tokens['ada']}"}
    with httpx.Client(headers=headers) as client:
        for path in (
            "api/kernels",
            "api/contents",
            "api/sessions",
            "api/terminals",
            "files/x",
            "api/spec.yaml",
        ):
            assert client.get(root + path).status_code == 404
            assert client.post(root + path, json={}).status_code in (404, 405)
        assert client.get(root).headers["Location"] == "/services/cockpit/"


# --- the form of requests and answers ------------------------------------------------------------------


def test_unknown_routes_and_methods_are_problems(http: httpx.Client) -> None:
    answer = http.get("nonsense")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
    answer = http.delete("me")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert http.get("jobs/one").status_code == 404
    assert http.get(f"jobs/{2**70}").status_code == 404


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=many", "limit=5&limit=6", "colour=red", "after=%ff", "state=lost", "after=bogus"],
)
def test_query_parameters_are_checked(http: httpx.Client, query: str) -> None:
    answer = http.get(f"experiments?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"]


def test_bodies_are_checked(http: httpx.Client, beamtime: Beamtime) -> None:
    path = f"experiments/{beamtime.experiment}"
    json_type = {"Content-Type": "application/json"}
    assert http.patch(path, content=b"{", headers=json_type).status_code == 400
    assert http.patch(path, content=b'{"title": NaN}', headers=json_type).status_code == 400
    assert http.patch(path, content=b'{"title": 1e400}', headers=json_type).status_code == 400
    assert http.patch(path, content=b"[" * 100_000, headers=json_type).status_code == 400
    assert http.patch(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert http.patch(path, json={"title": "x", "colour": "red"}).json()["errors"][0]["field"] == "colour"
    assert http.patch(path, json=["title"]).status_code == 422
    assert http.patch(path, json={"title": "line\nbreak"}).status_code == 422
    assert http.patch(path, json={"title": "x" * 2**21}).status_code == 413


def test_answers_are_not_kept_and_not_sniffed(http: httpx.Client) -> None:
    headers = http.get("me").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_head_and_options(http: httpx.Client) -> None:
    answer = http.head("me")
    assert (answer.status_code, answer.content) == (200, b"")
    answer = http.options("me")
    assert (answer.status_code, answer.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")


def test_lists_come_in_pages(service: RunningService) -> None:
    beamtime = service.beamtime()
    sam = service.client("sam")
    for number in range(4):
        sam.create_experiment(beamtime.instrument, f"Run {number}", pi="ada")
    with httpx.Client(
        base_url=service.api, headers={"Authorization": f"token {service.tokens['sam']}"}
    ) as http:
        seen: list[str] = []
        params: dict[str, Any] = {"instrument": beamtime.instrument, "limit": 2}
        while True:
            page = http.get("experiments", params=params).json()
            assert len(page["items"]) <= 2
            seen += [item["id"] for item in page["items"]]
            if page["next"] is None:
                break
            params["after"] = page["next"]
    assert seen == [e.id for e in sam.experiments(instrument=beamtime.instrument)]
    assert len(seen) == 5


# --- idempotency ---------------------------------------------------------------------------------------


def test_a_repeated_post_gets_the_first_answer(http: httpx.Client, beamtime: Beamtime) -> None:
    path, body = f"experiments/{beamtime.experiment}/members", {"user": "newcomer", "role": "viewer"}
    first = http.post(path, json=body, headers={"Idempotency-Key": "add-newcomer"})
    http.delete(f"{path}/newcomer")
    again = http.post(path, json=body, headers={"Idempotency-Key": "add-newcomer"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "newcomer" not in [m["user"] for m in http.get(path).json()["items"]]


def test_a_key_is_for_one_request_of_one_caller(http: httpx.Client, service: RunningService) -> None:
    beamtime = service.beamtime(members={"ben": Role.PI})
    path, key = f"experiments/{beamtime.experiment}/members", {"Idempotency-Key": "k"}
    assert http.post(path, json={"user": "newcomer"}, headers=key).status_code == 201
    assert http.post(path, json={"user": "latecomer"}, headers=key).status_code == 422
    other = {"Authorization": f"token {service.tokens['ben']}"} | key
    assert http.post(path, json={"user": "latecomer"}, headers=other).status_code == 201
    assert (
        http.post(path, json={"user": "newcomer"}, headers={"Idempotency-Key": "x" * 300}).status_code == 422
    )


def test_a_secret_answer_is_kept_nowhere(service: RunningService) -> None:
    beamtime = service.beamtime()
    headers = {"Authorization": f"token {service.tokens['sam']}", "Idempotency-Key": "again"}
    with httpx.Client(base_url=service.api, headers=headers) as http:
        path = f"instruments/{beamtime.instrument}/token"
        first, second = http.post(path).json()["token"], http.post(path).json()["token"]
    assert first != second
    for file in (service.data_dir / ".beamhub").glob("beamhub.sqlite*"):
        assert second.encode() not in file.read_bytes()


def test_a_refused_request_leaves_its_key_free(http: httpx.Client, beamtime: Beamtime) -> None:
    path, key = f"experiments/{beamtime.experiment}/members", {"Idempotency-Key": "second-try"}
    assert http.post(path, json={"user": ""}, headers=key).status_code == 422
    assert http.post(path, json={"user": "newcomer"}, headers=key).status_code == 201


# --- the client ----------------------------------------------------------------------------------------


def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9", "token") as client:
        with pytest.raises(Unreachable):
            client.me()
        with pytest.raises(Unreachable):
            next(client.events())
    with pytest.raises(ValueError, match="hub"):
        Client("hub.example.org", "token")
