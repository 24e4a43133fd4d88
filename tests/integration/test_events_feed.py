"""The live feed: nothing lost, nothing twice, and nothing for whoever may not see it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from beamhub.client import ApiError
from beamhub.schemas import Heartbeat, Role
from beamhub.testing import RunningService

BEAT = Heartbeat(host="mx-control", version="0.1.0")


class Listener:
    """The lines of an open feed, as a browser gets them."""

    def __init__(self, answer: httpx.Response) -> None:
        self.lines = answer.iter_lines()

    def block(self) -> dict[str, str]:
        """The next block that is no comment: its fields."""
        fields: dict[str, str] = {}
        for line in self.lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif set(fields) - {""}:
                return fields
            else:
                fields = {}
        raise EOFError

    def kinds(self, until: str) -> list[str]:
        """Kinds of the messages up to and including the first of kind `until`."""
        kinds: list[str] = []
        while not kinds or kinds[-1] != until:
            block = self.block()
            if "event" in block:
                kinds.append(block["event"])
        return kinds


@contextmanager
def listening(
    service: RunningService, name: str, experiment: str | None = None, **headers: str
) -> Iterator[Listener]:
    url = f"{service.api}events" + (f"?experiment={experiment}" if experiment else "")
    headers = {"Authorization": f"token {service.tokens[name]}", "Accept": "text/event-stream", **headers}
    with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        yield Listener(answer)


def test_a_feed_begins_by_telling_where_it_can_be_resumed(service: RunningService) -> None:
    beamtime = service.beamtime()
    last = service.client("ada").past_events(beamtime.experiment)[-1].id
    with listening(service, "ada", beamtime.experiment) as feed:
        first = feed.block()
        assert "event" not in first
        assert int(first["id"]) >= last


def test_stored_events_have_ids_and_progress_has_none(service: RunningService) -> None:
    beamtime = service.beamtime()
    with listening(service, "ada", beamtime.experiment) as feed:
        feed.block()
        service.agent(beamtime).heartbeat(beamtime.instrument, BEAT)
        beat = feed.block()
        assert (beat["event"], "id" in beat) == ("agent.heartbeat", False)
        assert json.loads(beat["data"])["data"]["host"] == "mx-control"
        service.client("ada").add_member(beamtime.experiment, "ben")
        added = feed.block()
        assert (added["event"], int(added["id"]) > 0) == ("member.added", True)
        assert json.loads(added["data"])["subject"] == "ben"


def test_a_feed_resumes_without_loss_through_kills_of_the_service(own_service: RunningService) -> None:
    """A client that follows the log sees each event once, in order, whatever happens to its connections."""
    beamtime = own_service.beamtime()
    sam, ada = own_service.client("sam"), own_service.client("ada")
    seen: list[tuple[int | None, str]] = []
    done = threading.Event()

    def follow() -> None:
        for message in ada.events(beamtime.experiment, last_id=0):
            if message.id is not None:
                seen.append((message.id, message.kind))
            if message.subject == "last":
                break
        done.set()

    follower = threading.Thread(target=follow)
    follower.start()
    for number in range(2):
        for user in range(5):
            sam.add_member(beamtime.experiment, f"user-{number}-{user}")
        own_service.kill()
        own_service.start()
    sam.add_member(beamtime.experiment, "last")
    assert done.wait(60)
    follower.join()
    assert seen == [(event.id, event.kind) for event in sam.past_events(beamtime.experiment)]


def test_a_lost_membership_cuts_the_feed_at_once(service: RunningService) -> None:
    beamtime = service.beamtime(members={"ben": Role.COLLABORATOR})
    other = service.beamtime(members={"ben": Role.COLLABORATOR})
    ada = service.client("ada")
    with (
        listening(service, "ben") as everything,
        listening(service, "ben", beamtime.experiment) as narrow,
    ):
        everything.block()
        narrow.block()
        service.agent(beamtime).heartbeat(beamtime.instrument, BEAT)
        assert everything.block()["event"] == narrow.block()["event"] == "agent.heartbeat"
        ada.remove_member(beamtime.experiment, "ben")
        service.agent(beamtime).heartbeat(beamtime.instrument, BEAT)
        ada.add_member(beamtime.experiment, "newcomer")
        ada.add_member(other.experiment, "newcomer")
        # the feed of the experiment ends; that of everything goes on with what is left
        with pytest.raises(EOFError):
            narrow.block()
        message = everything.block()
        assert (message["event"], json.loads(message["data"])["experiment"]) == (
            "member.added",
            other.experiment,
        )
    with pytest.raises(ApiError) as error:
        next(service.client("ben").events(beamtime.experiment))
    assert error.value.status == 404


def test_a_new_member_sees_at_once(service: RunningService) -> None:
    beamtime = service.beamtime()
    with listening(service, "ben") as feed:
        feed.block()
        service.client("ada").add_member(beamtime.experiment, "ben")
        message = feed.block()
        assert (message["event"], json.loads(message["data"])["subject"]) == ("member.added", "ben")


def test_a_stranger_hears_nothing(service: RunningService) -> None:
    beamtime, mine = service.beamtime(), service.beamtime(members={"eve": Role.VIEWER})
    with listening(service, "eve") as feed:
        feed.block()
        service.agent(beamtime).heartbeat(beamtime.instrument, BEAT)
        service.client("ada").add_member(beamtime.experiment, "newcomer")
        service.client("ada").add_member(mine.experiment, "newcomer")
        message: dict[str, Any] = json.loads(feed.block()["data"])
        assert message["experiment"] == mine.experiment
    for path in (f"events?experiment={beamtime.experiment}", f"audit?experiment={beamtime.experiment}"):
        for accept in ("application/json", "text/event-stream"):
            headers = {"Authorization": f"token {service.tokens['eve']}", "Accept": accept}
            assert httpx.get(service.api + path, headers=headers).status_code in (403, 404)


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 30, ""])
def test_a_senseless_last_event_id_is_refused_or_ignored(service: RunningService, last: str) -> None:
    headers = {
        "Authorization": f"token {service.tokens['ada']}",
        "Accept": "text/event-stream",
        "Last-Event-ID": last,
    }
    with httpx.stream("GET", f"{service.api}events", headers=headers) as answer:
        assert answer.status_code == (422 if last else 200)
