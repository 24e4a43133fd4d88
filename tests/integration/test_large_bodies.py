"""Bodies that are received past Tornado, byte by byte on the wire: the connection is as good as any other."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPConnection, HTTPResponse

import httpx
import pytest
import xxhash
from beamhub.api.wire import LARGE
from beamhub.incoming import BLOCK
from beamhub.testing import Beamtime, RunningService

from tests.integration.tus import BINARY, TUS, agent_of, announce, metadata, open_patch, send


@pytest.fixture
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime()


@pytest.fixture
def agent(service: RunningService, beamtime: Beamtime) -> Iterator[httpx.Client]:
    with agent_of(service, beamtime.agent_token) as client:
        yield client


def patch(
    connection: HTTPConnection, token: str, url: str, offset: int, content: bytes, **headers: str
) -> HTTPResponse:
    given = {"Authorization": f"Bearer {token}", **TUS, **BINARY, "Upload-Offset": str(offset), **headers}
    connection.request("PATCH", httpx.URL(url).path, content, given)
    return connection.getresponse()


def test_one_connection_carries_large_and_small_requests_by_turns(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    content = os.urandom(5 * BLOCK + 12345)
    url = announce(agent, "turns.bin", len(content), xxhash.xxh3_128_hexdigest(content))
    connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.connect()
    sock = connection.sock
    offset = 0
    for size in (LARGE, 1000, 2 * LARGE + 1, LARGE - 1, len(content)):
        part = content[offset : offset + size]
        answer = patch(connection, beamtime.agent_token, url, offset, part)
        assert (answer.status, answer.read()) == (204, b"")
        offset += len(part)
        assert answer.getheader("Upload-Offset") == str(offset)
        connection.request("GET", httpx.URL(url).path, headers=dict(agent.headers))
        assert connection.getresponse().read()
        assert connection.sock is sock  # it has never been closed
    connection.close()
    assert agent.get(url).json()["state"] == "complete"
    assert service.client("ada").file(beamtime.experiment, "raw/turns.bin") == content


def test_a_client_may_ask_before_it_sends_much_and_want_the_connection_closed(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    content = os.urandom(2 * LARGE)
    url = announce(agent, "asked.bin", len(content))
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        lines = [f"PATCH {httpx.URL(url).path} HTTP/1.1", "Host: a", f"Content-Length: {len(content)}"]
        given = {"Authorization": f"Bearer {beamtime.agent_token}", **TUS, **BINARY, "Upload-Offset": "0"}
        given |= {"Expect": "100-continue", "Connection": "close"}
        lines += [f"{name}: {value}" for name, value in given.items()]
        connection.sendall("\r\n".join([*lines, "\r\n"]).encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(content)
        answer = b""
        while received := connection.recv(10_000):  # to its end
            answer += received
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"Connection: close\r\n" in answer
    assert agent.get(url).json()["state"] == "complete"


def test_who_asks_before_it_sends_much_and_goes_leaves_nothing(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    url = announce(agent, "gone.bin", LARGE)
    lines = [f"PATCH {httpx.URL(url).path} HTTP/1.1", "Host: a", f"Content-Length: {LARGE}"]
    given = {"Authorization": f"Bearer {beamtime.agent_token}", **TUS, **BINARY, "Upload-Offset": "0"}
    lines += [f"{name}: {value}" for name, value in (given | {"Expect": "100-continue"}).items()]
    told = len(service.log)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            connection.sendall("\r\n".join([*lines, "\r\n"]).encode())
    while send(agent, url, 0, bytes(LARGE)).status_code == 409:
        continue  # one of them is just being given up
    assert agent.get(url).json()["state"] == "complete"
    assert "Traceback" not in service.log[told:]


def test_what_came_before_the_connection_broke_is_kept(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    content = os.urandom(4 * LARGE)
    url = announce(agent, "broken.bin", len(content), xxhash.xxh3_128_hexdigest(content))
    with open_patch(service, beamtime.agent_token, url, len(content)) as connection:
        connection.sendall(content[: 3 * LARGE])
    while (
        answer := send(agent, url, offset := int(agent.head(url).headers["Upload-Offset"]), content[offset:])
    ).status_code == 409:
        continue  # what has come is just being kept
    assert offset == 3 * LARGE
    assert (answer.status_code, agent.get(url).json()["state"]) == (204, "complete")


def test_a_refusal_is_heard_and_the_connection_goes_on(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    content = os.urandom(LARGE)
    url = announce(agent, "refused.bin", len(content))
    connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
    answer = patch(connection, beamtime.agent_token, url, 5, content)  # the wrong offset
    assert (answer.status, answer.getheader("Content-Type")) == (409, "application/problem+json")
    answer.read()
    sock = connection.sock
    wrong = {"Upload-Checksum": "md5 AAAAAAAAAAAAAAAAAAAAAA=="}
    answer = patch(connection, beamtime.agent_token, url, 0, content, **wrong)
    assert answer.status == 460
    answer.read()
    assert patch(connection, beamtime.agent_token, url, 0, content).status == 204
    assert connection.sock is sock
    connection.close()
    assert agent.get(url).json()["state"] == "complete"


async def test_who_sends_much_and_reads_late_hears_a_refusal(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    """As asynchronous clients do, which lose the answer as soon as they can't write any more."""
    content = bytes(32 * LARGE)
    url = announce(agent, "much.bin", len(content))

    async def slowly() -> AsyncIterator[bytes]:
        for start in range(0, len(content), LARGE):
            yield content[start : start + LARGE]
            await asyncio.sleep(0.01)  # the refusal is there before the end

    identity = {"Authorization": f"Bearer {beamtime.agent_token}"}
    headers = {**identity, **TUS, **BINARY, "Upload-Offset": "5", "Content-Length": str(len(content))}
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.patch(url, headers=headers, content=slowly())
    assert (answer.status_code, answer.headers["Connection"]) == (409, "close")


def test_more_than_was_announced_ends_the_connection(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    url = announce(agent, "more.bin", LARGE)
    with open_patch(service, beamtime.agent_token, url, 2**40) as connection:
        connection.sendall(bytes(LARGE + 1))
        assert connection.recv(10_000).startswith(b"HTTP/1.1 413 ")
    offset = int(agent.head(url).headers["Upload-Offset"])
    assert send(agent, url, offset, bytes(LARGE - offset)).status_code == 204
    assert agent.get(url).json()["state"] == "complete"


def test_a_large_upload_that_trickles_is_ended_and_keeps_what_has_come(impatient: RunningService) -> None:
    beamtime = impatient.beamtime()
    content = os.urandom(2 * LARGE)
    with agent_of(impatient, beamtime.agent_token) as agent:
        url = announce(agent, "slow", len(content))
        with open_patch(impatient, beamtime.agent_token, url, len(content)) as connection:
            sent = LARGE + 1000
            connection.sendall(content[:sent])
            while not select.select([connection], [], [], 0.05)[0]:
                connection.sendall(content[sent : sent + 1])
                sent += 1
            assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")
        while (
            answer := send(
                agent, url, offset := int(agent.head(url).headers["Upload-Offset"]), content[offset:]
            )
        ).status_code == 409:
            continue  # what has come is just being kept
        assert LARGE < offset <= sent
        assert (answer.status_code, agent.get(url).json()["state"]) == (204, "complete")


def test_the_service_stops_while_a_large_body_comes(own_service: RunningService) -> None:
    beamtime = own_service.beamtime()
    content = os.urandom(4 * LARGE)
    with agent_of(own_service, beamtime.agent_token) as agent:
        url = announce(agent, "stopped.bin", len(content), xxhash.xxh3_128_hexdigest(content))
        with open_patch(own_service, beamtime.agent_token, url, len(content)) as connection:
            connection.sendall(content[: 2 * LARGE])
            while int(agent.head(url).headers["Upload-Offset"]) < 2 * LARGE:
                continue
            assert own_service.stop() == 0
        own_service.start()
        assert int(agent.head(url).headers["Upload-Offset"]) == 2 * LARGE
        assert send(agent, url, 2 * LARGE, content[2 * LARGE :]).status_code == 204
        assert agent.get(url).json()["state"] == "complete"


def test_a_large_piece_of_a_growing_file_is_replaced(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    content = os.urandom(3 * LARGE)
    announced = {"Upload-Length": str(len(content)), **metadata(filename="grown.bin", digest="xxh128")}
    answer = agent.post("uploads", headers=announced)
    url = str(answer.url.join(answer.headers["Location"]))
    assert send(agent, url, 0, bytes(LARGE) + content[LARGE : 2 * LARGE]).status_code == 204
    where = {"Content-Range": f"bytes 0-{LARGE - 1}/*", **BINARY}
    assert agent.put(url, headers=where, content=content[:LARGE]).status_code == 204
    told = {"Upload-Offset": str(2 * LARGE), **BINARY, **metadata(xxh128=xxhash.xxh3_128_hexdigest(content))}
    assert agent.patch(url, headers=told, content=content[2 * LARGE :]).status_code == 204
    assert agent.get(url).json()["state"] == "complete"
    assert service.client("ada").file(beamtime.experiment, "raw/grown.bin") == content


def test_an_answer_that_comes_before_the_body_is_taken_in_says_that_it_ends_the_connection(
    service: RunningService, beamtime: Beamtime
) -> None:
    """Else the hub's proxy would send the next request, somebody else's, down a connection that is gone."""
    path = httpx.URL(service.api).path.rstrip("/")
    connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("GET", f"{path}/me", headers={"Accept": "text/html"})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Connection")) == (302, "close")
    answer.read()

    token = {"Authorization": f"Bearer {beamtime.agent_token}", "Content-Length": str(2**40)}
    connection.putrequest("POST", f"{path}/experiments")
    for name, value in token.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Connection")) == (413, "close")
    connection.close()
