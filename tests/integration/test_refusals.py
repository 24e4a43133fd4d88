"""Who is refused while it still sends, however slowly, hears why."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest
from beamhub.schemas import ExperimentChange, Problem, UploadState
from beamhub.testing import RunningService, running_service

from tests.integration.agents import RunningAgent, write_large
from tests.integration.tus import agent_of, announce

PATIENCE = 0.5  # seconds of the service
PIECE, PACE = 2**18, 0.06  # bytes at a time, and seconds between them
PIECES = 40  # several times as long as the service's patience, and more than the kernel keeps


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("impatient"), patience=PATIENCE) as service:
        yield service


def slowly(service: RunningService, method: str, path: str, headers: dict[str, str]) -> HTTPResponse:
    """The answer to a request whose sender looks for it only when all has been sent."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        told = {"Host": "127.0.0.1", "Content-Length": str(PIECES * PIECE), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
        connection.sendall("\r\n".join([*lines, "\r\n"]).encode())
        for _ in range(PIECES):
            select.select([], [], [], PACE)
            connection.sendall(bytes(PIECE))
        answer = HTTPResponse(connection, method=method)
        answer.begin()
        return answer


def test_who_sends_slowly_hears_a_refusal(impatient: RunningService) -> None:
    beamtime = impatient.beamtime()
    good = f"Bearer {beamtime.agent_token}"
    tus = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    with agent_of(impatient, beamtime.agent_token) as agent:
        agent.headers["Connection"] = "close"  # one that rests is ended after half a second, too
        url = announce(agent, "slow.bin", PIECES * PIECE)
        path = httpx.URL(url).path
        for headers, status, title in (
            ({"Authorization": "Bearer revoked", **tus}, 401, "Unauthorized"),
            ({"Authorization": good, **tus, "Upload-Offset": "1"}, 409, "Conflict"),
            ({"Authorization": good, **tus, "Content-Type": "text/plain"}, 415, "Unsupported Media Type"),
        ):
            answer = slowly(impatient, "PATCH", path, headers)
            problem = Problem.model_validate_json(answer.read())
            assert (answer.status, problem.title) == (status, title)
            assert problem.detail
            assert answer.getheader("Connection") == "close"
        where = path.partition("uploads")[0] + "experiments"
        assert slowly(impatient, "POST", where, {"Authorization": good}).status == 413
        assert agent.get(url).json()["offset"] == 0


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """For less time than an agent with a limit takes for one part, and more than between its heartbeats."""
    with running_service(tmp_path_factory.mktemp("waiting"), patience=3.0) as service:
        yield service


@pytest.fixture
def agent(waiting: RunningService, tmp_path: Path) -> Iterator[RunningAgent]:
    agent = RunningAgent(tmp_path / "agent", waiting, waiting.beamtime())
    agent.upload["limit"] = '"8 MB/s"'
    yield agent
    if agent.process is not None:
        agent.kill()


def began(agent: RunningAgent) -> None:
    write_large(agent.data / "large.cbf", 64)
    agent.start()
    agent.until_halfway()


def arrived(agent: RunningAgent) -> None:
    agent.upload["limit"] = '"1 GB/s"'
    agent.kill()
    agent.start()
    agent.until_arrived("large.cbf")
    agent.assert_all_there_once()
    assert [upload.state for upload in agent.uploads()] == [UploadState.COMPLETE]
    assert "does not answer" not in agent.log
    assert "can't be reached" not in agent.log


def test_an_agent_with_a_limit_hears_that_the_quota_is_used_up(agent: RunningAgent) -> None:
    sam = agent.service.client("sam")
    began(agent)
    sam.change_experiment(agent.beamtime.experiment, ExperimentChange(quota=2**20))
    agent.until(lambda: agent.status is not None and any("its quota is" in e for e in agent.status.errors))
    sam.change_experiment(agent.beamtime.experiment, ExperimentChange(quota=None))
    arrived(agent)


def test_an_agent_with_a_limit_hears_that_its_token_is_revoked(agent: RunningAgent) -> None:
    began(agent)
    token = agent.service.client("sam").new_instrument_token(agent.beamtime.instrument).token
    agent.until(lambda: agent.log.count("the token of instrument") > 0)
    agent.token(token)
    arrived(agent)
