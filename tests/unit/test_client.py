"""What the client makes of a text/event-stream."""

from __future__ import annotations

import pytest
from beamhub.client import Client, Message
from beamhub.client.events import messages


def test_messages_of_a_stream() -> None:
    lines = [
        *("retry: 1000", "id: 7", ""),
        *(": still here", ""),
        *("event: job.progress", 'data: {"experiment": "e", "subject": "3", "data": {"fraction": 0.5}}', ""),
        *("event: job.finished", "id: 8", 'data: {"subject": "3", "actor": "ada",', 'data: "data": {}}', ""),
        *("event: cut off", "id: 9"),
    ]
    resume, progress, finished = messages(iter(lines))
    assert resume == Message(id=7, kind="")
    assert (progress.id, progress.kind, progress.data) == (None, "job.progress", {"fraction": 0.5})
    assert (finished.id, finished.kind, finished.actor) == (8, "job.finished", "ada")


@pytest.mark.parametrize(
    ("given", "api"),
    [
        ("https://hub.example.org", "https://hub.example.org/services/beamhub/api/v1/"),
        ("https://hub.example.org/", "https://hub.example.org/services/beamhub/api/v1/"),
        ("http://h/base/", "http://h/base/services/beamhub/api/v1/"),
        ("http://h:1/services/beamhub/", "http://h:1/services/beamhub/api/v1/"),
    ],
)
def test_where_the_service_is(given: str, api: str) -> None:
    with Client(given, "token") as client:
        assert client.url == api


def test_the_environment_says_where_and_as_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEAMHUB_URL", "BEAMHUB_TOKEN", "JUPYTERHUB_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="BEAMHUB_URL is not set"):
        Client.from_environment()
    monkeypatch.setenv("BEAMHUB_URL", "http://h")
    with pytest.raises(ValueError, match="BEAMHUB_TOKEN is not set"):
        Client.from_environment()
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "session")
    Client.from_environment().close()
