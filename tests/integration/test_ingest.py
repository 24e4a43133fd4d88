"""Processes that take uploads beside the service: any takes the next part, and the service knows at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import httpx
import pytest
from beamhub.schemas import UploadState
from beamhub.testing import Beamtime, Ingest, RunningService, write_dataset

from tests.integration.test_events_feed import listening
from tests.integration.tus import BINARY, TUS, metadata


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime()


@pytest.fixture(scope="module")
def ingest(service: RunningService) -> Ingest:
    return service.ingest()


@pytest.fixture
def agent(service: RunningService, beamtime: Beamtime) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {beamtime.agent_token}", **TUS}
    with httpx.Client(headers=headers, timeout=60) as client:
        yield client


def announce(agent: httpx.Client, api: str, name: str, content: bytes) -> str:
    headers = {"Upload-Length": str(len(content))}
    headers |= metadata(filename=name, sha256=hashlib.sha256(content).hexdigest())
    answer = agent.post(f"{api}uploads", headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def send(agent: httpx.Client, api: str, upload: str, offset: int, content: bytes) -> httpx.Response:
    headers = {"Upload-Offset": str(offset), **BINARY}
    return agent.patch(f"{api}uploads/{upload}", headers=headers, content=content)


def test_any_process_takes_the_next_part(
    service: RunningService, ingest: Ingest, agent: httpx.Client, beamtime: Beamtime
) -> None:
    other = service.ingest()
    content = os.urandom(3_000_000)
    upload = announce(agent, ingest.api, "parts.bin", content)
    places = [service.api, ingest.api, other.api]
    for number, start in enumerate(range(0, len(content), 500_000)):
        answer = send(agent, places[number % 3], upload, start, content[start : start + 500_000])
        assert answer.status_code == 204
    for api in places:
        assert agent.get(f"{api}uploads/{upload}").json()["state"] == UploadState.COMPLETE
    assert service.client("ada").file(beamtime.experiment, "raw/parts.bin") == content


def test_several_share_one_port_and_one_may_die(
    service: RunningService, agent: httpx.Client, beamtime: Beamtime
) -> None:
    first = service.ingest()
    second = service.ingest(first.port)
    first.kill()
    content = os.urandom(1000)
    upload = announce(agent, second.api, "one.bin", content)
    assert send(agent, second.api, upload, 0, content).status_code == 204
    first.start()
    second.kill()
    upload = announce(agent, first.api, "two.bin", content)
    assert send(agent, first.api, upload, 0, content).status_code == 204


def test_identities_are_the_services(service: RunningService, ingest: Ingest, beamtime: Beamtime) -> None:
    where = f"{ingest.api}uploads?experiment={beamtime.experiment}"
    for name, status in (("ada", 200), ("eve", 404)):
        headers = {"Authorization": f"token {service.tokens[name]}"}
        assert httpx.get(where, headers=headers).status_code == status
    assert httpx.get(where).status_code == 401
    assert httpx.get(where, headers={"Authorization": "Bearer guessed"}).status_code == 401


def test_a_token_that_is_revoked_ends_in_every_process_with_the_next_request(
    service: RunningService, ingest: Ingest
) -> None:
    beamtime = service.beamtime()
    content = os.urandom(1000)
    headers = {"Authorization": f"Bearer {beamtime.agent_token}", **TUS}
    with httpx.Client(headers=headers, timeout=60) as agent:
        upload = announce(agent, ingest.api, "half.bin", content)
        assert send(agent, ingest.api, upload, 0, content[:500]).status_code == 204
        token = service.client("sam").new_instrument_token(beamtime.instrument).token
        assert send(agent, ingest.api, upload, 500, content[500:]).status_code == 401
        assert agent.head(f"{ingest.api}uploads/{upload}").status_code == 401
        agent.headers["Authorization"] = f"Bearer {token}"
        assert agent.head(f"{ingest.api}uploads/{upload}").headers["Upload-Offset"] == "500"
        assert send(agent, ingest.api, upload, 500, content[500:]).status_code == 204
    assert service.client("ada").file(beamtime.experiment, "raw/half.bin") == content


def test_what_an_ingest_process_publishes_the_service_tells_at_once(
    service: RunningService, ingest: Ingest, agent: httpx.Client, beamtime: Beamtime
) -> None:
    """Progress, which is never stored, too."""
    content = os.urandom(1_000_000)
    with listening(service, "ada", beamtime.experiment) as feed:
        feed.block()
        upload = announce(agent, ingest.api, "told.bin", content)
        send(agent, ingest.api, upload, 0, content)
        kinds = feed.kinds("file.complete")
    assert "upload.progress" in kinds


def test_a_dataset_that_an_ingest_process_takes(
    service: RunningService, ingest: Ingest, beamtime: Beamtime, agent: httpx.Client
) -> None:
    folder = service.folder / "taken"
    folder.mkdir()
    for path in write_dataset(folder, "taken"):
        content = path.read_bytes()
        upload = announce(agent, ingest.api, path.name, content)
        assert send(agent, ingest.api, upload, 0, content).status_code == 204
    (dataset,) = service.client("ada").datasets(beamtime.experiment)
    assert (dataset.name, dataset.frames_readable) == ("taken", 4)
