"""The staff in command: the real agent obeys, the real service remembers, and kills change nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from beamhub.client import Client
from beamhub.schemas import UploadState
from beamhub.testing import RunningService

from tests.integration.agents import SLOW, RunningAgent, write_large


@pytest.fixture
def sam(service: RunningService) -> Client:
    return service.client("sam")


def until_obeyed(agent: RunningAgent) -> None:
    agent.until(lambda: not agent.service.client("sam").agent_commands(agent.beamtime.instrument))


def unsent(agent: RunningAgent) -> dict[str, tuple[str, str]]:
    files = agent.service.client("sam").agent_files(agent.beamtime.instrument)
    return {file.name: (file.state, file.reason) for file in files}


def test_a_pause_lets_what_is_on_its_way_finish_and_begins_nothing(agent: RunningAgent, sam: Client) -> None:
    agent.upload["limit"] = SLOW
    agent.start()
    write_large(agent.data / "large.bin")
    agent.until_halfway()
    sam.pause_uploads(agent.beamtime.instrument, "vacuum")
    (agent.data / "small").write_text("small")
    agent.hurry()
    agent.until_arrived("large.bin")
    agent.until(
        lambda: (
            agent.status is not None
            and agent.status.state == "waiting"
            and "paused by sam: vacuum" in "".join(agent.status.errors[:1])
            and agent.status.queued_files == 1
        )
    )
    assert list(agent.files()) == ["large.bin"]

    sam.resume_uploads(agent.beamtime.instrument)
    agent.until_arrived("small")
    agent.assert_all_there_once()


def test_a_file_on_its_way_is_skipped_and_stays_so_until_it_is_wanted(
    agent: RunningAgent, sam: Client
) -> None:
    instrument = agent.beamtime.instrument
    agent.upload["limit"] = '"1 MB/s"'  # minutes, if nobody stopped it
    agent.start()
    write_large(agent.data / "large.bin")
    upload = agent.until_halfway()
    sam.skip_uploads(instrument, ["large.bin"], reason="ice on the crystal")
    until_obeyed(agent)

    assert agent.service.client("ada").upload_status(upload.id).state is UploadState.FAILED
    skipped = ("skipped", "skipped by sam: ice on the crystal")
    agent.until(lambda: unsent(agent) == {"large.bin": skipped})
    agent.until(lambda: agent.status is not None and agent.status.skipped == 1)
    agent.kill()
    agent.upload["limit"] = '"900 MB/s"'
    agent.start()
    (agent.data / "small").write_text("small")
    agent.until_arrived("small")
    assert list(agent.files()) == ["small"]
    assert unsent(agent) == {"large.bin": skipped}

    sam.unskip_uploads(instrument, pattern="*.bin")
    agent.until_arrived("large.bin")
    agent.assert_all_there_once()
    agent.until(lambda: not unsent(agent))
    agent.until(lambda: agent.status is not None and (agent.status.arrived, agent.status.skipped) == (2, 0))


def test_what_waits_is_skipped_by_a_pattern(agent: RunningAgent, sam: Client) -> None:
    instrument = agent.beamtime.instrument
    sam.pause_uploads(instrument, "sorting")
    agent.start()
    (agent.data / "tests").mkdir()
    for name in ("a.cbf", "b.cbf", "tests/c.cbf", "d.txt"):
        (agent.data / name).write_text(name)
    agent.until(lambda: agent.status is not None and agent.status.queued_files == 4)
    sam.skip_uploads(instrument, pattern="tests/*", reason="only tests")
    sam.skip_uploads(instrument, pattern="b.*", reason="blurred")
    until_obeyed(agent)
    sam.resume_uploads(instrument)
    agent.until_arrived("a.cbf", "d.txt")

    agent.until(lambda: set(unsent(agent)) == {"b.cbf", "tests/c.cbf"})
    assert set(agent.files()) == {"a.cbf", "d.txt"}


def test_what_failed_is_listed_and_tried_again(agent: RunningAgent, sam: Client) -> None:
    instrument, experiment = agent.beamtime.instrument, agent.beamtime.experiment
    agent.upload["limit"] = SLOW
    agent.start()
    write_large(agent.data / "large.bin")
    upload = agent.until_halfway()
    agent.signal(signal.SIGSTOP)
    sam.activate(instrument, None)
    agent.service.agent(agent.beamtime).cancel_upload(upload.id)
    agent.signal(signal.SIGCONT)
    agent.hurry()
    agent.until(lambda: "large.bin" in unsent(agent))
    state, reason = unsent(agent)["large.bin"]
    assert (state, bool(reason)) == ("failed", True)
    agent.until(lambda: agent.status is not None and agent.status.failed == 1)

    sam.activate(instrument, experiment)
    sam.retry_uploads(instrument)
    agent.until_arrived("large.bin")
    agent.assert_all_there_once()
    agent.until(lambda: not unsent(agent))


def test_orders_outlive_service_and_agent(own_service: RunningService, tmp_path: Path) -> None:
    agent = RunningAgent(tmp_path / "agent", own_service, own_service.beamtime())
    sam, instrument = own_service.client("sam"), agent.beamtime.instrument
    sam.pause_uploads(instrument, "night")
    agent.start()
    (agent.data / "a").write_text("a")
    agent.until(lambda: agent.status is not None and agent.status.queued_files == 1)
    agent.kill()
    order = sam.skip_uploads(instrument, ["a"], reason="empty")
    own_service.kill()
    own_service.start()
    assert sam.agent_commands(instrument) == [order]
    assert sam.instrument(instrument).uploads_paused

    agent.start()
    try:
        until_obeyed(agent)
        sam.resume_uploads(instrument)
        (agent.data / "b").write_text("b")
        agent.until_arrived("b")
        assert list(agent.files()) == ["b"]
    finally:
        agent.kill()
    trail = [(e.kind, e.actor) for e in sam.past_events(agent.beamtime.experiment)]
    about = [entry for entry in trail if entry[0].startswith(("uploads.", "agent."))]
    assert about == [
        ("uploads.paused", "sam"),
        ("agent.ordered", "sam"),
        ("agent.obeyed", f"instrument:{instrument}"),
        ("uploads.resumed", "sam"),
    ]
