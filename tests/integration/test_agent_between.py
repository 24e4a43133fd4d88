"""What stands between agent and service answers in its place, breaks off, or is slow: the agent goes on."""

from __future__ import annotations

import base64
import threading

import httpx
import pytest
from beamhub.schemas import Problem, UploadState

from tests.integration.agents import PATIENCE, RunningAgent, write_large
from tests.integration.between import RESET, between

SIZE = 16  # MiB
EARLY = "it answers before all has been sent"


def page(status: str, *headers: str, body: str = "<html><h1>Sorry</h1></html>") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"])
    return f"{head}\r\n\r\n{body}".encode()


ODD = {
    "answers 502 Bad Gateway": page("502 Bad Gateway"),
    "answers 404 Not Found": page("404 Not Found"),
    "answers 403 Forbidden": page("403 Forbidden"),
    "answers 413 Request Entity Too Large": page("413 Request Entity Too Large"),
    "answers 429 Too Many Requests": page("429 Too Many Requests", "Retry-After: 1"),
    "answers 302 Found and sends to /hub/login: check url under [service]": page(
        "302 Found", "Location: /hub/login"
    ),
    "does not answer like beamhub: check url under [service]": page("200 OK", body='{"id": "1", "exper'),
    EARLY: page("204 No Content", f"Upload-Offset: {SIZE << 20}", body=""),
    "does not answer (": RESET,
}


@pytest.mark.parametrize("reason", ODD)
def test_odd_answers_in_the_middle_of_a_file_lose_nothing(agent: RunningAgent, reason: str) -> None:
    with between(agent.service.url) as proxy:
        agent.url = proxy.url
        agent.upload |= {"limit": '"8 MB/s"', "parallel": "1"}
        agent.start()
        write_large(agent.data / "large.cbf", SIZE)
        agent.until_halfway()

        answer = ODD[reason]
        proxy.odd = lambda piece: answer if reason != EARLY or piece.startswith(b"PATCH ") else None
        if reason == EARLY:  # to a request that begins
            agent.kill()
            agent.start()
        agent.until(lambda: reason in agent.log)
        proxy.odd = lambda piece: None

        agent.until_arrived("large.cbf")
        agent.assert_all_there_once()
        assert len(agent.uploads()) == 1, "it was begun again"
        agent.until(lambda: agent.status is not None and not agent.status.errors)
        assert agent.status is not None
        assert agent.status.failed == 0


def test_a_slow_line_is_filled_by_files_side_by_side(agent: RunningAgent) -> None:
    """However long answers take, as many files are asked for as may be in flight, each by two requests."""
    many = 6
    waiting = threading.Barrier(many, timeout=PATIENCE)

    def together(piece: bytes) -> None:
        if piece.startswith((b"POST ", b"PATCH ")):
            waiting.wait()

    agent.upload["parallel"] = str(many)
    with between(agent.service.url) as proxy:
        agent.url = proxy.url
        proxy.odd = together
        for number in range(2 * many):
            write_large(agent.data / f"{number}.cbf", 1)
        agent.start()
        agent.until_arrived(*(f"{number}.cbf" for number in range(2 * many)))

    sent = [head.split(b" ")[0] for head in proxy.heads if not head.startswith((b"GET ", b"PUT "))]
    assert sorted(sent) == [b"PATCH"] * 2 * many + [b"POST"] * 2 * many
    assert {u.state for u in agent.uploads()} == {UploadState.COMPLETE}
    agent.assert_all_there_once()


def test_a_file_over_which_the_service_fails_does_not_keep_the_others(agent: RunningAgent) -> None:
    fault = '{"title": "Internal error", "status": 500, "detail": "The service failed to answer this."}'
    answer = page("500 Internal Server Error", "Content-Type: application/problem+json", body=fault)
    names = [base64.b64encode(name) for name in (b"small-1.log", b"large-1.cbf")]  # in announcements
    marks = [b'"small-1.log"', *names]  # and in a batch
    agent.upload["parallel"] = "1"
    with between(agent.service.url) as proxy:
        agent.url = proxy.url
        proxy.odd = lambda piece: answer if any(mark in piece for mark in marks) else None
        for number in (1, 2):
            (agent.data / f"small-{number}.log").write_text(f"{number}")
            write_large(agent.data / f"large-{number}.cbf", 1)
        agent.start()
        agent.until_arrived("small-2.log", "large-2.cbf")
        assert set(agent.files()) == {"small-2.log", "large-2.cbf"}
        assert "failed to answer this" in agent.log
        proxy.odd = lambda piece: None

        agent.until_arrived("small-1.log", "large-1.cbf")
        agent.assert_all_there_once()


def test_a_newer_agent_is_heard_and_knows_what_the_service_lacks(agent: RunningAgent) -> None:
    """What the one tells and the other does not know is left out; of a route that is not there the service
    says so itself, which the agent tells from a proxy that has lost the service."""
    beat = {"host": "detector", "version": "9.0", "state": "idle", "weather": "fine"}
    token = {"Authorization": f"Bearer {agent.beamtime.agent_token}"}
    api = f"{agent.service.url}/services/beamhub/api/v1"
    with httpx.Client(headers=token) as newer:
        heard = newer.put(f"{api}/instruments/{agent.beamtime.instrument}/heartbeat", json=beat)
        missing = newer.put(f"{api}/uploads/1/colours", json={})
    assert heard.status_code == 200
    assert agent.status is not None
    assert agent.status.version == "9.0"
    assert missing.status_code == 404
    assert Problem.model_validate_json(missing.content).status == 404
