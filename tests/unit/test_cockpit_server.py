from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from beamhub_cockpit.identity import viewer
from beamhub_cockpit.links import Links
from beamhub_cockpit.server import Kernels, check_owner, harmless_header, tell_kernel
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application, HTTPError, RequestHandler

KERNEL = "0b0f7b0e-4c39-4a53-9a1c-0f0c8d6f2a11"


def v1(*parts: bytes) -> bytes:
    """A websocket message of the v1 protocol: count of offsets, offsets, parts."""
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return b"".join(n.to_bytes(8, "little") for n in (len(offsets), *offsets)) + b"".join(parts)


def handler(*arguments: str, **headers: str) -> RequestHandler:
    class Connection:
        def set_close_callback(self, _callback: object) -> None: ...

    request = HTTPServerRequest(
        start_line=RequestStartLine("GET", "/", "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "127.0.0.1", **headers}),
        connection=Connection(),  # type: ignore[arg-type]
    )
    found = RequestHandler(Application(), request)
    found.path_args, found.path_kwargs = list(arguments), {}
    return found


def test_the_header_of_a_message() -> None:
    header = {"msg_type": "execute_input"}
    message = v1(b"iopub", json.dumps(header).encode(), b"{}", b"{}", b"{}")
    assert harmless_header(message) == header


@given(st.binary(max_size=200))
def test_no_message_is_too_strange(message: bytes) -> None:
    found = harmless_header(message)
    assert found is None or isinstance(found, dict)


@given(st.integers(65, 2**64 - 1), st.binary(max_size=100))
def test_a_message_that_claims_billions_of_parts_costs_nothing(count: int, rest: bytes) -> None:
    assert harmless_header(count.to_bytes(8, "little") + rest) is None


def test_the_browsers_own_word_about_the_viewer_does_not_count() -> None:
    request = handler(**{"X-Beamhub-User": "ada", "X-Beamhub-Token": "stolen"})
    tell_kernel(request, "", "")
    assert "X-Beamhub-User" not in request.request.headers
    assert "X-Beamhub-Token" not in request.request.headers

    tell_kernel(request, "eve", "of eve")
    assert request.request.headers["X-Beamhub-User"] == "eve"
    assert request.request.headers["X-Beamhub-Token"] == "of eve"


def test_a_kernel_answers_to_its_owner_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Kernels.owners, KERNEL, "ada")
    check_owner(handler(KERNEL), "ada")
    check_owner(handler("cockpit.ipynb"), "eve")
    with pytest.raises(HTTPError) as refused:
        check_owner(handler(KERNEL), "eve")
    assert refused.value.status_code == 404


def test_a_cold_kernel_finds_its_viewer_and_forgets_the_token() -> None:
    environment = {
        "HTTP_X_BEAMHUB_USER": "ada",
        "HTTP_X_BEAMHUB_TOKEN": "of ada",
        "QUERY_STRING": "experiment=mx-2026-00001&x=%3Cb%3E",
        "BEAMHUB_URL": "http://127.0.0.1:1",
        "JUPYTERHUB_BASE_URL": "/hub/of/us/",
    }
    found = viewer(environment)
    assert (found.name, found.token, found.hub_url, found.base_url) == (
        "ada",
        "of ada",
        "http://127.0.0.1:1",
        "/hub/of/us/",
    )
    assert found.query == {"experiment": "mx-2026-00001", "x": "<b>"}
    assert "HTTP_X_BEAMHUB_TOKEN" not in environment
    assert "of ada" not in repr(found)


def test_a_session_is_started_on_the_way_to_it() -> None:
    link = urlsplit(Links("/", "ben").session("mx-2026-00001", "processed/3/notebook.ipynb"))
    assert link.path == "/hub/spawn/ben/mx-2026-00001"
    assert parse_qs(link.query) == {"next": ["/user/ben/mx-2026-00001/lab/tree/processed/3/notebook.ipynb"]}


@given(st.text(max_size=20), st.text(max_size=20))
def test_links_stay_on_this_site(name: str, path: str) -> None:
    links = Links("/", "ada")
    found: list[Any] = [
        links.cockpit(name),
        links.job_file(3, path),
        links.session(name, path),
        links.api(name, path),
    ]
    for link in found:
        assert link.isascii()
        assert link.startswith(("/services/", "/hub/", "/user/"))
        assert not set(link) & set(" <>\"'\\`")
