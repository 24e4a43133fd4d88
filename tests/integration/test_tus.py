"""Uploads by the tus protocol: with a client that knows nothing of beamhub, and byte by byte on the wire."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from email.utils import parsedate_to_datetime

import httpx
import pytest
import xxhash
from beamhub.announcements import MAX_SIZE
from beamhub.leftovers import EXPIRES
from beamhub.schemas import Role
from beamhub.testing import Beamtime, RunningService

from tests.integration.tus import BINARY, TUS, agent_of, metadata


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime(members={"ben": Role.COLLABORATOR})


@pytest.fixture
def agent(service: RunningService, beamtime: Beamtime) -> Iterator[httpx.Client]:
    with agent_of(service, beamtime.agent_token) as client:
        yield client


def announce(agent: httpx.Client, name: str, content: bytes) -> str:
    """The URL of a new upload."""
    headers = {"Upload-Length": str(len(content))}
    headers |= metadata(filename=name, sha256=hashlib.sha256(content).hexdigest())
    answer = agent.post("uploads", headers=headers)
    assert answer.status_code == 201
    return str(httpx.URL(str(answer.url)).join(answer.headers["Location"]))


def send(agent: httpx.Client, url: str, offset: int, content: bytes, **headers: str) -> httpx.Response:
    given = {"Upload-Offset": str(offset), **BINARY, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return agent.patch(url, headers=given, content=content)


def offset_of(agent: httpx.Client, url: str) -> int:
    return int(agent.head(url).headers["Upload-Offset"])


def test_a_kill_that_keeps_the_answer_back_begins_no_second_upload(own_service: RunningService) -> None:
    service = own_service
    beamtime = service.beamtime()
    content = os.urandom(200_000)
    headers = {"Authorization": f"Bearer {beamtime.agent_token}", **TUS, "Idempotency-Key": "once"}
    headers |= {"Upload-Length": str(len(content))}
    headers |= metadata(filename="a.cbf", sha256=hashlib.sha256(content).hexdigest())
    port = httpx.URL(service.url).port
    assert port is not None
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            path = httpx.URL(f"{service.api}uploads").path
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n{head}\r\n".encode())
            service.kill()
        service.start()
    answer = httpx.post(f"{service.api}uploads", headers=headers)
    assert answer.status_code == 201
    with httpx.Client(headers=headers) as agent:
        url = str(httpx.URL(service.api).join(answer.headers["Location"]))
        assert send(agent, url, 0, content).status_code == 204
    assert [u.id for u in service.client("ada").uploads(beamtime.experiment)] == [answer.json()["id"]]


def test_what_the_service_can_do(service: RunningService) -> None:
    answer = httpx.options(f"{service.api}uploads")
    assert answer.status_code == 204
    assert answer.headers["Tus-Version"] == "1.0.0"
    assert set(answer.headers["Tus-Extension"].split(",")) == {
        "creation",
        "creation-with-upload",
        "creation-defer-length",
        "termination",
        "checksum",
        "expiration",
        "concatenation",
    }
    assert {"sha1", "sha256", "xxh128"} <= set(answer.headers["Tus-Checksum-Algorithm"].split(","))


def test_an_upload_in_parts(agent: httpx.Client) -> None:
    content = os.urandom(700_000)
    url = announce(agent, "parts.h5", content)
    assert offset_of(agent, url) == 0
    answer = send(agent, url, 0, content[:300_000])
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "300000")
    expires = parsedate_to_datetime(answer.headers["Upload-Expires"]) - parsedate_to_datetime(
        answer.headers["Date"]
    )
    assert abs(expires - EXPIRES) <= timedelta(seconds=1)
    assert send(agent, url, 100, content[100:]).status_code == 409
    assert offset_of(agent, url) == 300_000
    assert send(agent, url, 300_000, content[300_000:]).headers["Upload-Offset"] == "700000"
    head = agent.head(url)
    assert (head.status_code, head.headers["Upload-Length"]) == (200, "700000")
    assert agent.get(url).json()["state"] == "complete"


def test_an_announcement_brings_the_beginning_of_the_file(agent: httpx.Client) -> None:
    content = os.urandom(700_000)
    digest = xxhash.xxh3_128(content[:300_000]).digest()
    headers = {"Upload-Length": str(len(content)), **BINARY, **metadata(filename="with-announcement")}
    headers |= {"Upload-Checksum": f"xxh128 {base64.b64encode(digest).decode()}", "Idempotency-Key": "with"}
    answer = agent.post("uploads", headers=headers, content=content[:300_000])
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "300000")
    again = agent.post("uploads", headers=headers, content=content[:300_000])  # the answer was lost
    assert (again.json()["id"], again.headers["Upload-Offset"]) == (answer.json()["id"], "300000")
    url = str(answer.url.join(answer.headers["Location"]))
    assert send(agent, url, 300_000, content[300_000:]).headers["Upload-Offset"] == "700000"
    done = agent.get(url).json()
    assert (done["state"], done["digest_by"]) == ("complete", "service")

    small = {"Upload-Length": "5", **BINARY, **metadata(filename="small")}
    assert agent.post("uploads", headers=small, content=b"small").json()["state"] == "complete"
    assert (
        agent.post("uploads", headers=small | {"Content-Type": "text/plain"}, content=b"small").status_code
        == 415
    )


def test_a_length_and_a_digest_that_come_later(agent: httpx.Client) -> None:
    content = os.urandom(700_000)
    later = {"Upload-Defer-Length": "1", **metadata(filename="grows.log", digest="xxh128")}
    answer = agent.post("uploads", headers=later | BINARY, content=content[:300_000])
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (201, "300000")
    assert answer.headers["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in answer.headers
    url = str(answer.url.join(answer.headers["Location"]))
    head = agent.head(url)
    assert (head.headers["Upload-Offset"], head.headers["Upload-Defer-Length"]) == ("300000", "1")
    assert send(agent, url, 300_000, content[300_000:], Upload_Length="299999").status_code == 409
    sent = send(agent, url, 300_000, content[300_000:], Upload_Length="700000")
    assert (sent.status_code, sent.headers["Upload-Length"]) == (204, "700000")
    assert agent.get(url).json()["state"] == "receiving"
    content = b"changed" + content[7:]
    part = {"Content-Range": "bytes 0-6/*", **BINARY}
    assert agent.put(url, headers=part, content=b"changed").status_code == 204
    assert agent.put(url, headers=part, content=b"change").status_code == 422
    assert (
        agent.put(url, headers=part | {"Content-Range": "bytes 0-6/7"}, content=b"changed").status_code == 400
    )
    digest = metadata(xxh128=xxhash.xxh3_128_hexdigest(content))
    assert send(agent, url, 700_000, b"", **digest).status_code == 204
    done = agent.get(url).json()
    assert (done["state"], done["digest_by"], done["size"]) == ("complete", "sender", 700_000)
    known = {"Upload-Length": "700000", **metadata(filename="grows.log", digest="xxh128")}
    assert agent.post("uploads", headers=known).status_code == 428  # it may be there already

    for wrong in (
        {"Upload-Defer-Length": "2"},
        {"Upload-Length": "1"},
        {"Upload-Concat": f"final;{url}"},
        metadata(filename="grows.log", digest="md5"),
    ):
        assert agent.post("uploads", headers=later | wrong).status_code in (400, 422), wrong


def test_a_file_put_together_from_parts(agent: httpx.Client) -> None:
    content = os.urandom(900_000)
    urls = []
    for start in (0, 300_000, 600_000):
        part = {"Upload-Length": "300000", "Upload-Concat": "partial", **BINARY}
        answer = agent.post("uploads", headers=part, content=content[start : start + 300_000])
        urls.append(str(answer.url.join(answer.headers["Location"])))
        head = agent.head(urls[-1])
        assert (head.headers["Upload-Offset"], head.headers["Upload-Concat"]) == ("300000", "partial")
    ids = [url.rpartition("/")[2] for url in urls]
    assert not {upload["id"] for upload in agent.get("uploads").json()["items"]} & set(ids)
    final = metadata(filename="joined.h5", xxh128=xxhash.xxh3_128_hexdigest(content))
    final |= {"Upload-Concat": f"final;{' '.join(urls)}"}
    answer = agent.post("uploads", headers=final)
    assert (answer.status_code, answer.json()["state"], answer.json()["size"]) == (201, "complete", 900_000)
    url = str(answer.url.join(answer.headers["Location"]))
    head = agent.head(url)
    assert head.headers["Upload-Concat"] == final["Upload-Concat"]
    assert head.headers["Upload-Offset"] == "900000"
    assert send(agent, url, 900_000, b"").status_code == 403
    assert [agent.head(url).status_code for url in urls] == [404, 404, 404]  # the parts are gone
    assert agent.post("uploads", headers=final).status_code == 404
    for wrong in ("final;", "final", "partial;", f"final;{url}", "first"):
        headers = final | {"Upload-Concat": wrong}
        assert agent.post("uploads", headers=headers).status_code in (400, 422), wrong


def test_an_upload_that_failed_is_begun_again(agent: httpx.Client) -> None:
    url = announce(agent, "given-up", b"given up")
    agent.delete(url)
    assert agent.head(url).status_code == 410


def test_damaged_bytes_are_refused(agent: httpx.Client) -> None:
    content = b"precious"
    url = announce(agent, "precious", content)
    good = base64.b64encode(hashlib.sha1(content).digest()).decode()
    answer = send(agent, url, 0, b"precioux", Upload_Checksum=f"sha1 {good}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (460, "application/problem+json")
    assert offset_of(agent, url) == 0
    assert send(agent, url, 0, content, Upload_Checksum=f"crc32 {good}").status_code == 400
    assert send(agent, url, 0, content, Upload_Checksum=f"sha1 {good}").status_code == 204


def test_a_file_that_differs_from_its_digest_is_never_published(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    url = announce(agent, "promised", b"promised")
    assert send(agent, url, 0, b"delivery").status_code == 460
    assert agent.get(url).json()["state"] == "failed"
    assert "raw/promised" not in [file.path for file in service.client("ada").files(beamtime.experiment)]


def test_a_broken_connection_keeps_what_has_arrived(
    service: RunningService, agent: httpx.Client, beamtime: Beamtime
) -> None:
    content = os.urandom(1_000_000)  # so little that its sender is heard out before it is refused
    url = announce(agent, "broken.h5", content)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = (
            f"PATCH {httpx.URL(url).raw_path.decode()} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {beamtime.agent_token}\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        connection.sendall(head.encode() + content[:500_000])
    # the connection's end may be noticed after the next request: until then another one is sending
    while (answer := send(agent, url, offset := offset_of(agent, url), content[offset:])).status_code == 409:
        continue
    assert (answer.status_code, answer.headers["Upload-Offset"]) == (204, "1000000")
    assert agent.get(url).json()["state"] == "complete"


def test_the_same_file_twice_is_sent_once(agent: httpx.Client) -> None:
    content = os.urandom(1000)
    url = announce(agent, "twice", content)
    send(agent, url, 0, content)
    again = announce(agent, "twice", content)
    assert offset_of(agent, again) == len(content)


def test_an_upload_can_be_given_up(agent: httpx.Client) -> None:
    url = announce(agent, "mistake", b"mistake")
    assert agent.delete(url).status_code == 204
    assert send(agent, url, 0, b"mistake").status_code in (404, 410)
    assert agent.delete(url).status_code == 410
    # clients behind strict proxies say so in another way
    url = announce(agent, "mistake", b"mistake")
    assert agent.post(url, headers={"X-HTTP-Method-Override": "DELETE"}).status_code == 204


def test_an_empty_file(agent: httpx.Client) -> None:
    assert agent.get(announce(agent, "empty", b"")).json()["state"] == "complete"


def test_faulty_requests(agent: httpx.Client) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    good = {"Upload-Length": "1", **metadata(filename="x", sha256=digest)}
    assert agent.post("uploads", headers=good | {"Tus-Resumable": "0.2.2"}).status_code == 412
    assert agent.post("uploads", headers=good | {"Upload-Length": "-1"}).status_code == 400
    assert agent.post("uploads", headers=good | {"Upload-Length": f"{MAX_SIZE + 1}"}).status_code == 413
    assert agent.post("uploads", headers=good | {"Upload-Metadata": "filename ?"}).status_code == 400
    twice = {"Upload-Metadata": f"{good['Upload-Metadata']},filename eQ=="}
    assert agent.post("uploads", headers=good | twice).status_code == 400
    for wrong in (
        metadata(filename="x", sha256="abc"),
        metadata(filename="x", xxh128=digest),
        metadata(filename="x", sha256=digest, xxh128="0" * 32),
    ):
        assert agent.post("uploads", headers=good | wrong).status_code == 422
    assert agent.post("uploads", headers=good | metadata(sha256=digest)).status_code == 400
    assert agent.post("uploads", headers=good | metadata(filename="without-digest")).status_code == 201
    url = announce(agent, "y", b"y")
    assert agent.patch(url, headers={"Upload-Offset": "0"}, content=b"y").status_code == 415
    assert agent.patch(url, headers=BINARY, content=b"y").status_code == 400
    assert send(agent, url, 0, b"too much").status_code == 413
    assert send(agent, f"{url}0", 0, b"y").status_code == 404
    assert send(agent, url, 0, b"y").status_code == 204


def test_metadata_that_only_the_client_understands(agent: httpx.Client) -> None:
    odd = f"thumbnail {base64.b64encode(bytes(range(256))).decode()}, is_private,  filetype  "
    announced = {
        "Upload-Length": "1",
        "Upload-Metadata": f"{odd}, {metadata(filename='odd')['Upload-Metadata']}",
    }
    answer = agent.post("uploads", headers=announced)
    assert (answer.status_code, answer.json()["path"]) == (201, "raw/odd")
    url = str(answer.url.join(answer.headers["Location"]))
    assert agent.head(url).headers["Upload-Metadata"] == announced["Upload-Metadata"]
    assert send(agent, url, 0, b"1").status_code == 204
    assert agent.head(url).headers["Upload-Metadata"] == announced["Upload-Metadata"]
    latin = [(b"Upload-Length", b"1"), (b"Upload-Metadata", b"filename eA==,\xe9 eA==")]
    assert agent.post("uploads", headers=latin).status_code == 400


def test_only_the_sender_goes_on_with_an_upload(service: RunningService, agent: httpx.Client) -> None:
    url = announce(agent, "mine", b"mine")
    headers = {"Authorization": f"token {service.tokens['ben']}", **TUS}
    with httpx.Client(headers=headers) as ben:
        assert ben.get(url).status_code == 200
        assert send(ben, url, 0, b"mine").status_code == 404
        assert ben.delete(url).status_code == 404
    with httpx.Client(headers=TUS) as nobody:
        assert send(nobody, url, 0, b"mine").status_code == 401
    assert offset_of(agent, url) == 0
