"""What badly meant or badly made uploads get, byte by byte on the wire."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import xxhash
from beamhub.incoming import BLOCK
from beamhub.schemas import BATCH, UploadState
from beamhub.testing import Beamtime, RunningService, running_service

from tests.integration.tus import agent_of, announce, metadata, open_patch, send


@pytest.fixture
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime()


@pytest.fixture
def agent(service: RunningService, beamtime: Beamtime) -> Iterator[httpx.Client]:
    with agent_of(service, beamtime.agent_token) as client:
        yield client


# --- names ----------------------------------------------------------------------------------------------


MISLEADING = [
    *(".", "..", "../x", "a/../../x", "/etc/x", "//x", "a//x", "x/", "a\\x"),
    *("a\0x", "a\nx", "a\rx", "a\x1bx", " x", "x ", "\u2003"),
    *("x" * 256, "é" * 128, "a/" * 40 + "x", "x" * 1000),
    *(".incoming/x", ".x", "..x", "version-2/x", "x/version-10"),
    *("a\u202ex", "a\u2066x", "a\u200bx", "a\ufeffx", "a\u00adx", "a\u3164x", "a\ufe0fx"),
    *("e\u0301", "．．/x", "‥", "․x", "a／x", "．incoming/x", "ｖersion-2/x", "version-２/x"),
]


@pytest.mark.parametrize("name", MISLEADING)
def test_a_name_that_misleads_is_refused(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client, name: str
) -> None:
    answer = agent.post("uploads", headers={"Upload-Length": "0", **metadata(filename=name)})
    assert (answer.status_code, answer.json()["title"]) == (400, "Bad name"), name
    assert service.client("ada").files(beamtime.experiment) == []


NOWHERE = ["../x", "/etc/x", "a\0x", ".incoming/x", "x" * 1100]


@pytest.mark.parametrize("name", NOWHERE)
def test_every_other_door_refuses_such_a_name_too(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client, name: str
) -> None:
    ada = {"Authorization": f"token {service.tokens['ada']}"}
    head = json.dumps({"files": [{"filename": name, "size": 0}]}).encode() + b"\n"
    together = agent.post("uploads/batch", content=head, headers={"Content-Type": BATCH})
    part = metadata(filename=name) | {"Upload-Length": "0", "Upload-Concat": "partial"}
    mine = metadata(filename=name, experiment=beamtime.experiment) | {"Upload-Length": "0"}
    listed = agent.get(f"experiments/{beamtime.experiment}/files", params={"prefix": name}, headers=ada)
    answers = {
        "part": agent.post("uploads", headers=part),
        "member": agent.post("uploads", headers=mine | ada),
        "list": listed,
    }
    for door, answer in answers.items():
        assert (answer.status_code, answer.json()["title"]) == (400, "Bad name"), (door, answer.text)
    assert together.json()["title"] == "Bad name", together.text
    assert service.client("ada").files(beamtime.experiment) == []


@pytest.mark.parametrize("source", ["x", "/storage/../etc/x", "/storage/a\0x", ""])
def test_a_source_that_is_no_full_path_is_refused(agent: httpx.Client, source: str) -> None:
    digest = f"xxh128:{xxhash.xxh3_128_hexdigest(b'')}"
    lying = {"source": source, "filename": "x", "size": 0, "digest": digest}
    answer = agent.post("uploads/in-place", json=lying)
    assert (answer.status_code, answer.json()["title"]) == (400, "Bad name")


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e/%2e%2e/x",
        "%2Fetc%2Fx",
        "x..",
        "é.h5",
        "α β.h5",
        "ﬁ.h5",
        "аdmin",
        "raw/x",
        "-rf",
        "$(id)",
        "CON",
    ],
)
def test_any_other_name_stays_below_raw(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client, name: str
) -> None:
    def others() -> set[Path]:
        found = service.data_dir.rglob("[!.]*")
        return {path for path in found if beamtime.experiment not in path.parts}

    before = others()
    answer = agent.post("uploads", headers={"Upload-Length": "0", **metadata(filename=name)})
    assert answer.status_code == 201, answer.text
    assert (service.data_dir / beamtime.experiment / "raw" / name).is_file()
    assert [file.path for file in service.client("ada").files(beamtime.experiment)] == [f"raw/{name}"]
    assert others() == before


def test_a_members_client_composes_what_a_macintosh_has_taken_apart(
    service: RunningService, beamtime: Beamtime, tmp_path: Path
) -> None:
    (tmp_path / "re\u0301sume\u0301.txt").write_text("x")
    (file,) = tmp_path.iterdir()
    assert service.client("ada").upload(file, beamtime.experiment).path == "shared/r\xe9sum\xe9.txt"


# --- who may --------------------------------------------------------------------------------------------


def test_another_instruments_token_finds_no_upload(service: RunningService, agent: httpx.Client) -> None:
    url = announce(agent, "mine", 4)
    with agent_of(service, service.beamtime().agent_token) as stranger:
        for answer in (
            stranger.get(url),
            stranger.head(url),
            send(stranger, url, 0, b"mine"),
            stranger.delete(url),
            stranger.post("uploads", headers={"Upload-Concat": f"final;{url}", **metadata(filename="x")}),
        ):
            assert answer.status_code == 404
    assert agent.head(url).headers["Upload-Offset"] == "0"


def test_a_token_that_is_revoked_ends_with_the_next_request(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    url = announce(agent, "half", 8)
    assert send(agent, url, 0, b"1234").status_code == 204
    token = service.client("sam").new_instrument_token(beamtime.instrument).token
    for answer in (send(agent, url, 4, b"5678"), agent.head(url), agent.delete(url)):
        assert answer.status_code == 401
    with agent_of(service, token) as renewed:
        assert renewed.head(url).headers["Upload-Offset"] == "4"
        assert send(renewed, url, 4, b"5678").status_code == 204
        assert renewed.get(url).json()["state"] == "complete"


def test_two_agents_send_the_same_file(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    content = os.urandom(3_000_000)

    def run(digest: str | None) -> str:
        url = announce(agent, "same.h5", len(content), digest)
        for offset in range(0, len(content), 1_000_000):
            assert send(agent, url, offset, content[offset : offset + 1_000_000]).status_code == 204
        return str(agent.get(url).json()["path"])

    with ThreadPoolExecutor(2) as agents:  # one of them does not even know the digest
        paths = list(agents.map(run, [xxhash.xxh3_128_hexdigest(content), None]))
    assert paths == ["raw/same.h5"] * 2
    files = service.client("ada").files(beamtime.experiment)
    assert [file.path for file in files] == ["raw/same.h5"]
    assert service.client("ada").file(beamtime.experiment, "raw/same.h5") == content
    published = service.client("ada").uploads(beamtime.experiment, state=UploadState.COMPLETE)
    assert len(published) == 1


# --- clients that take for ever -------------------------------------------------------------------------


def test_a_head_that_does_not_end_ends_the_connection(impatient: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=60) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(b"x")
        assert connection.recv(1000) == b""


def test_an_upload_that_trickles_is_ended_and_goes_on_later(impatient: RunningService) -> None:
    beamtime = impatient.beamtime()
    content = os.urandom(10_000)
    with agent_of(impatient, beamtime.agent_token) as agent:
        agent.headers["Connection"] = "close"  # one that rests is ended after half a second, too
        url = announce(agent, "slow", len(content))
        with open_patch(impatient, beamtime.agent_token, url, len(content)) as connection:
            sent = 0
            while not select.select([connection], [], [], 0.05)[0]:
                connection.sendall(content[sent : sent + 1])
                sent += 1
            assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")
        while (
            answer := send(agent, url, offset := _offset(agent, url), content[offset:])
        ).status_code == 409:
            continue  # what has come is just being kept
        assert 0 < offset <= sent
        assert answer.headers["Upload-Offset"] == str(len(content))
        assert agent.get(url).json()["state"] == "complete"


def test_a_document_that_trickles_is_refused(impatient: RunningService) -> None:
    token = impatient.tokens["sam"]
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=60) as connection:
        connection.sendall(
            f"POST {httpx.URL(impatient.api).path}experiments HTTP/1.1\r\nHost: a\r\n"
            f"Authorization: token {token}\r\nContent-Type: application/json\r\n"
            "Content-Length: 1000\r\n\r\n{".encode()
        )
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_holds_many_requests_open_waits_for_itself(tmp_path: Path) -> None:
    with running_service(tmp_path / "service", uploads_at_once=1) as service:
        beamtime, other = service.beamtime(), service.beamtime()
        with (
            agent_of(service, beamtime.agent_token) as agent,
            agent_of(service, other.agent_token) as another,
        ):
            content = os.urandom(2 * BLOCK)
            first, second = announce(agent, "first", len(content)), announce(agent, "second", 4)
            with open_patch(service, beamtime.agent_token, first, len(content)) as connection:
                connection.sendall(content[:BLOCK])
                while _offset(agent, first) < BLOCK:
                    continue  # until it has begun
                refused = send(agent, second, 0, b"1234")
                assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
                assert send(another, announce(another, "a", 4), 0, b"1234").status_code == 204
                connection.sendall(content[BLOCK:])
                assert connection.recv(10_000).startswith(b"HTTP/1.1 204 ")
            assert send(agent, second, 0, b"1234").status_code == 204


def _offset(agent: httpx.Client, url: str) -> int:
    return int(agent.head(url).headers["Upload-Offset"])


def test_a_length_that_is_none_is_refused(service: RunningService, beamtime: Beamtime) -> None:
    path, told = httpx.URL(service.api).path, len(service.log)
    for length in (b"\xb2", b"-1", b"1_0", b"9" * 5000):
        head = f"POST {path}uploads HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {beamtime.agent_token}\r\n"
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            connection.sendall(head.encode() + b"Content-Length: " + length + b"\r\n\r\n12345")
            assert connection.recv(10_000).startswith(b"HTTP/1.1 400 ")
    assert "failed to answer" not in service.log[told:]
