from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from beamhub.schemas import AgentStatus, Experiment, ExperimentState, Instrument, UploadsPaused
from beamhub_cockpit import aside
from beamhub_cockpit.html import Element, find, text
from beamhub_cockpit.scene import Transfer

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def card(agent: AgentStatus | None, *transfers: Transfer, staff: bool = False, **known: Any) -> Element:
    experiment = Experiment(
        id="mx-1-2026-00001",
        instrument="mx-1",
        title="Lysozyme",
        state=ExperimentState.RUNNING,
        pi="ada",
        active=True,
        created=NOW,
        started=NOW,
        ended=None,
        folder="/data/mx-1-2026-00001",
        actions=["instrument.operate"] if staff else [],
    )
    instrument = Instrument(
        id="mx-1",
        title="Beamline",
        technique="MX",
        staff=["sam"],
        active_experiment=experiment.id,
        automation=True,
        agent=agent,
        created=NOW,
        **known,
    )
    return aside.instrument(instrument, experiment, list(transfers), 0)


def status(**told: Any) -> AgentStatus:
    about = {"host": "det-1", "version": "1.2.3", "connected": True, "last_seen": NOW}
    return AgentStatus.model_validate(about | told)


def test_all_that_a_heartbeat_tells_is_shown() -> None:
    agent = status(
        state="uploading",
        queued_files=12,
        queued_bytes=3_400_000_000,
        rate=250e6,
        free_disk=7_000_000_000_000,
        errors=["the service can't be reached"],
        file_errors=["/data/link is a symbolic link"],
        failed=3,
        skipped=2,
    )
    flying = Transfer("lyso_data_000007.h5", 100_000_000, 25_000_000, 0.0, "mx-1-2026-00001")
    shown = card(agent, flying, staff=True)
    [state] = find(shown, "bh-agent-state")
    assert text(state) == "connected"
    facts = {text(pair.children[0]): _plain(pair.children[1]) for pair in _pairs(shown)}
    assert (facts["Host"], facts["Agent"]) == ("det-1", "1.2.3")
    assert facts["Free disk"] == "7.0 TB"
    [speed] = find(shown, "bh-upload-rate")
    assert _plain(speed) == "250 MB/s"
    [name] = find(shown, "bh-upload-name")
    assert text(name) == "lyso_data_000007.h5"
    assert "12 files (3.4 GB) still to send" in _plain(shown)
    assert [text(error) for error in find(shown, "bh-agent-error")] == [*agent.errors, *agent.file_errors]
    [unsent] = find(shown, "bh-unsent-open")
    assert text(unsent) == "3 failed · 2 left out …"


@pytest.mark.parametrize(
    ("file", "said", "known"),
    [
        ({"growing": True}, "25.0 MB, still written", False),
        ({}, "25.0 MB of 25.0 MB", True),  # all has come, and is being verified
        ({"arrived": True}, "25.0 MB", True),
    ],
)
def test_only_what_has_arrived_looks_so(file: dict[str, bool], said: str, known: bool) -> None:
    flying = Transfer("lyso_master.h5", 25_000_000, 25_000_000, 0.0, "mx-1-2026-00001", **file)
    shown = card(status(), flying)
    assert _plain(find(shown, "bh-upload-bytes")[0]) == said
    [upload] = find(shown, "bh-upload")
    assert bool(find(upload, "bh-progress-unknown")) is not known
    assert bool(find(upload, "bh-tone-good")) is bool(file.get("arrived"))
    head = text(find(shown, "bh-uploads-head")[0])
    assert head.startswith("Just uploaded" if file.get("arrived") else "Uploading")


def test_an_agent_that_is_silent_or_was_never_there_is_told() -> None:
    assert "No heartbeat: check that the agent runs" in text(card(status(connected=False)))
    assert "The sync agent has never reported." in text(card(None))


def test_who_does_not_operate_sees_a_pause_and_no_way_to_end_it() -> None:
    paused = UploadsPaused(reason="vacuum", by="sam", since=NOW)
    for staff in (False, True):
        shown = card(status(errors=["paused by sam: vacuum"]), staff=staff, uploads_paused=paused)
        [why] = find(shown, "bh-paused-why")
        assert text(why) == "vacuum"
        assert bool(find(shown, "bh-uploads-resume")) is staff
        assert not find(shown, "bh-agent-error"), "it is said once"


def _plain(shown: Element | str | None) -> str:
    """Its text with spaces of the usual width."""
    return text(shown or "").replace("\u202f", " ").replace("\xa0", " ")


def _pairs(shown: Element) -> list[Element]:
    [facts] = find(shown, "bh-facts")
    return [child for child in facts.children if isinstance(child, Element)]
