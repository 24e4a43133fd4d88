"""Many small files in one request, on the wire."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from beamhub.schemas import Deliveries, UploadState
from beamhub.testing import BASE_URL, Beamtime, RunningService

MEDIA = {"Content-Type": "application/vnd.beamhub.batch"}


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime()


@pytest.fixture
def agent(service: RunningService, beamtime: Beamtime) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {beamtime.agent_token}"}
    with httpx.Client(base_url=service.api, headers=headers, timeout=30) as client:
        yield client


def told(name: str, content: bytes, **more: Any) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"filename": name, "size": len(content), "digest": digest, **more}


def body(contents: dict[str, bytes], **more: Any) -> bytes:
    head = {"files": [told(name, content) for name, content in contents.items()], **more}
    return json.dumps(head).encode() + b"\n" + b"".join(contents.values())


def test_small_files_come_in_one_request(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    contents = {f"many/{number}.txt": os.urandom(number * 100) for number in range(256)}
    answer = agent.post("uploads/batch", content=body(contents), headers=MEDIA)
    assert answer.status_code == 200
    items = Deliveries.model_validate_json(answer.content).items
    raw = service.data_dir / beamtime.experiment / "raw"
    for item, (name, content) in zip(items, contents.items(), strict=True):
        assert item.upload is not None
        assert (item.upload.state, item.upload.path) == (UploadState.COMPLETE, f"raw/{name}")
        assert (raw / name).read_bytes() == content


def test_each_file_has_its_own_problem(agent: httpx.Client) -> None:
    good, damaged = told("alone/good.txt", b"good"), told("alone/damaged.txt", b"whole!!")
    head = {"files": [good, told("../bad.txt", b"bad"), damaged]}
    content = json.dumps(head).encode() + b"\ngoodbaddamaged"
    answer = agent.post("uploads/batch", content=content, headers=MEDIA)
    assert answer.status_code == 200
    first, second, third = Deliveries.model_validate_json(answer.content).items
    assert first.problem is None
    assert second.problem is not None
    assert (second.problem.status, second.upload) == (400, None)
    assert third.problem is not None
    assert third.problem.status == 460


def test_what_is_no_batch_is_refused(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    def status(content: bytes, headers: dict[str, str] = MEDIA) -> int:
        return agent.post("uploads/batch", content=content, headers=headers).status_code

    content = body({"no/batch.txt": b"12345"})
    assert status(content, {"Content-Type": "application/json"}) == 415
    assert status(b"") == 422
    assert status(b"no JSON\n12345") == 422
    assert status(b"{}\n") == 422
    assert status(b"x" * 2_000_000) == 422
    assert status(content[:-1]) == 422
    assert status(content + b"6") == 422
    assert status(body({f"{number}": b"x" for number in range(257)})) == 422
    assert status(body({f"{number}": bytes(2**20) for number in range(9)})) == 413
    assert status(body({"large.bin": bytes(2**20 + 1), "other": b""})) == 200
    assert status(body({"no/batch.txt": b"12345"}, experiment="mx-2000-00001")) == 409
    assert (
        agent.post("uploads/batch", content=content, headers=MEDIA | {"Authorization": ""}).status_code == 401
    )
    assert not (service.data_dir / beamtime.experiment / "raw" / "no").exists()


def test_a_connection_that_breaks_leaves_nothing(
    service: RunningService, beamtime: Beamtime, agent: httpx.Client
) -> None:
    content = body({f"broken/{number}.txt": os.urandom(10_000) for number in range(100)})
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        lines = [
            f"POST {BASE_URL}api/v1/uploads/batch HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {beamtime.agent_token}",
            f"Content-Type: {MEDIA['Content-Type']}",
            f"Content-Length: {len(content)}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + content[:-1])
    assert agent.get("uploads").status_code == 200
    assert not (service.data_dir / beamtime.experiment / "raw" / "broken").exists()
    answer = agent.post("uploads/batch", content=content, headers=MEDIA)
    assert answer.status_code == 200
    assert len(os.listdir(service.data_dir / beamtime.experiment / "raw" / "broken")) == 100  # noqa: PTH208
