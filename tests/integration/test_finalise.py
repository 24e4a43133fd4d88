"""An experiment is signed off when all has arrived, with a manifest that anybody can check."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import httpx
import pytest
from beamhub.client import ApiError, Client
from beamhub.schemas import (
    CommandKind,
    ExperimentState,
    Finalisation,
    FinalisationState,
    Heartbeat,
    UploadState,
)
from beamhub.testing import RunningService, write_dataset

from tests.integration.agents import PATIENCE, RunningAgent
from tests.integration.test_move import FILES
from tests.unit.test_quarantine import EVIL

State = FinalisationState


@pytest.fixture
def sam(service: RunningService) -> Client:
    return service.client("sam")


def ended(sam: Client, experiment: str) -> Finalisation:
    return sam.finalised(experiment, timeout=PATIENCE)


def checked(folder: Path) -> str:
    """What coreutils say of the manifest."""
    command = ["sha256sum", "--check", "--strict", "sha256sums"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_all_has_arrived(agent: RunningAgent, sam: Client) -> None:
    experiment, instrument = agent.beamtime.experiment, agent.beamtime.instrument
    folder = agent.service.data_dir / experiment
    agent.start()
    for path in write_dataset(agent.folder, "lyso"):
        path.rename(agent.data / path.name)
    (agent.data / "Notes: α, 100 %.txt").write_text("settled")
    (agent.data / "bad").write_text("not wanted")
    agent.until_arrived(*FILES, "Notes: α, 100 %.txt", "bad")

    sam.finalise(experiment)
    assert ended(sam, experiment).state is State.DONE
    assert checked(folder).splitlines() == [
        f"raw/{name}: OK" for name in sorted([*FILES, "Notes: α, 100 %.txt", "bad"])
    ]
    about = json.loads((folder / "sha256sums.json").read_text())
    assert (about["signed_off_by"], about["files"], about["differences"]) == ("sam", 5, [])
    assert (folder / "sha256sums").stat().st_mode & 0o777 == 0o440
    assert sam.experiment(experiment).state is ExperimentState.PROCESSING
    assert sam.instrument(instrument).active_experiment is None
    kinds = [event.kind for event in sam.past_events(experiment)]
    assert kinds[-1] == "experiment.finalised"
    assert agent.service.client("ada").finalisation(experiment).progress == 1.0

    sam.activate(instrument, experiment)
    assert sam.finalisation(experiment).state is State.OUTDATED


def test_what_the_agent_still_has_blocks_unless_it_is_forced(agent: RunningAgent, sam: Client) -> None:
    experiment, instrument = agent.beamtime.experiment, agent.beamtime.instrument
    agent.start()
    (agent.data / "sent").write_text("sent")
    agent.until_arrived("sent")
    sam.pause_uploads(instrument, "vacuum")
    for name in ("late", "unwanted"):
        (agent.data / name).write_text(name)
    agent.until(lambda: agent.status is not None and agent.status.queued_files == 2)
    sam.skip_uploads(instrument, ["unwanted"], reason="a test")

    sam.finalise(experiment)
    blocked = ended(sam, experiment)
    assert (blocked.state, blocked.differences) == (State.BLOCKED, ["raw/late has not been sent yet."])
    assert sam.experiment(experiment).active
    assert not (agent.service.data_dir / experiment / "sha256sums").exists()
    with pytest.raises(ValueError, match="say why"):
        sam.finalise(experiment, force=True)
    sam.finalise(experiment, force=True, reason="the late one is known")
    forced = ended(sam, experiment)
    assert (forced.state, forced.forced, forced.differences) == (State.DONE, True, blocked.differences)
    assert checked(agent.service.data_dir / experiment) == "raw/sent: OK\n"
    with pytest.raises(ApiError):
        agent.service.client("ada").finalise(experiment)


def test_what_staff_have_deleted_from_quarantine_is_not_missing(agent: RunningAgent, sam: Client) -> None:
    experiment = agent.beamtime.experiment
    agent.start()
    (agent.data / "evil_data_000001.h5.new").write_bytes(EVIL)
    (agent.data / "evil_data_000001.h5.new").rename(agent.data / "evil_data_000001.h5")
    agent.until(lambda: bool(sam.quarantine(agent.beamtime.instrument)))
    [evil] = sam.quarantine(agent.beamtime.instrument)
    sam.finalise(experiment)
    [difference] = ended(sam, experiment).differences
    assert difference.startswith("raw/evil_data_000001.h5 is in quarantine: ")
    sam.discard_upload(evil.id, "nobody here made it")
    sam.finalise(experiment)
    assert ended(sam, experiment).state is State.DONE


def test_an_agent_that_does_not_answer_blocks(agent: RunningAgent, sam: Client) -> None:
    agent.start()
    agent.until(lambda: agent.status is not None)
    agent.kill()
    sam.finalise(agent.beamtime.experiment)
    blocked = ended(sam, agent.beamtime.experiment)
    assert blocked.state is State.BLOCKED
    assert "has not told what it knows" in blocked.differences[0]


def test_what_does_not_fit_is_told_in_plain_words(service: RunningService, tmp_path: Path) -> None:
    beamtime, sam = service.beamtime(), service.client("sam")
    raw = service.data_dir / beamtime.experiment / "raw"
    device = service.agent(beamtime)
    for name in ("gone", "cut", "fine"):
        (tmp_path / name).write_text(name)
        device.upload(tmp_path / name)
    (tmp_path / "evil_data_000001.h5").write_bytes(EVIL)
    evil = device.upload(tmp_path / "evil_data_000001.h5")
    assert evil.state is UploadState.QUARANTINED
    (raw / "gone").unlink()
    (raw / "cut").chmod(0o600)
    os.truncate(raw / "cut", 1)
    (raw / "stray").write_text("from nowhere")
    sam.finalise(beamtime.experiment)
    assert ended(sam, beamtime.experiment).differences == [
        f"raw/evil_data_000001.h5 is in quarantine: {evil.error}.",
        "raw/cut has 1 bytes on the disk, not 3.",
        "raw/gone has arrived, and is gone from the disk.",
        "raw/stray is on the disk, and no upload has brought it.",
    ]


def test_counts_and_digests_are_compared_with_the_agents_journal(
    service: RunningService, tmp_path: Path
) -> None:
    """What an agent would say whose journal and the experiment have come apart."""
    beamtime, sam = service.beamtime(), service.client("sam")
    instrument, device = beamtime.instrument, service.agent(beamtime)
    arrived = {}
    for name in ("fine", "other", "longer", "both"):
        (tmp_path / name).write_text(name)
        arrived[name] = device.upload(tmp_path / name)
    (tmp_path / "both").write_text("a second version")
    second = device.upload(tmp_path / "both")
    hello = Heartbeat(host="detector", version="1")
    device.heartbeat(instrument, hello)

    sam.finalise(beamtime.experiment)
    [order] = device.heartbeat(instrument, hello).commands
    assert order.kind is CommandKind.REPORT

    def line(name: str, state: str = "arrived", **known: object) -> dict[str, object]:
        upload = arrived.get(name)
        size, digest = (upload.size, upload.digest) if upload else (4, f"sha256:{0:064}")
        return {"name": name, "state": state, "size": size, "digest": digest, **known}

    told = [
        line("fine"),
        line("other", digest=f"sha256:{1:064}"),
        line("longer", size=7),
        line("both", size=second.size, digest=second.digest),
        line("lost"),
        line("late", "queued"),
        line("bad", "failed", reason="can't be read (EIO)"),
        line("unwanted", "skipped", reason="skipped by sam: a test"),
        line("elsewhere", experiment="mx-2026-99999"),
    ]
    where = f"{service.api}instruments/{instrument}/agent/reports/{order.id}"
    identity = {"Authorization": f"Bearer {beamtime.agent_token}"}
    for part, items in enumerate((told[:4], told[4:]), 1):
        report = {"part": part, "last": part == 2, "items": items}
        httpx.put(where, json=report, headers=identity).raise_for_status()

    blocked = ended(sam, beamtime.experiment)
    assert (blocked.state, blocked.differences) == (
        State.BLOCKED,
        [
            "raw/other is not what the agent has sent: size or digest differ.",
            "raw/longer is not what the agent has sent: size or digest differ.",
            "raw/lost has arrived, says the agent, and is not in the experiment.",
            "raw/late has not been sent yet.",
            "raw/bad could not be sent: can't be read (EIO).",
        ],
    )


def test_digests_of_the_agents_own_journal_are_compared(agent: RunningAgent, sam: Client) -> None:
    agent.start()
    names = ["fine", "small", "large"]
    for name in names:
        (agent.data / name).write_bytes(os.urandom(2**20 if name == "large" else 10))
    agent.until_arrived(*names)
    agent.until(lambda: agent.status is not None and agent.status.arrived == len(names))
    agent.kill()
    with contextlib.closing(sqlite3.connect(agent.folder / agent.journal)) as journal, journal:
        others = "UPDATE files SET digest = 'xxh128:' || printf('%032d', 7) WHERE path NOT LIKE '%/fine'"
        assert journal.execute(others).rowcount == 2
    agent.start()
    sam.finalise(agent.beamtime.experiment)
    blocked = ended(sam, agent.beamtime.experiment)
    assert (blocked.state, sorted(blocked.differences)) == (
        State.BLOCKED,
        [f"raw/{name} is not what the agent has sent: size or digest differ." for name in sorted(names[1:])],
    )


def test_what_has_been_moved_is_not_missing(agent: RunningAgent, sam: Client) -> None:
    experiment = agent.beamtime.experiment
    agent.start()
    for path in write_dataset(agent.folder, "lyso"):
        path.rename(agent.data / path.name)
    agent.until_arrived(*FILES)
    (dataset,) = sam.datasets(experiment)
    right = sam.create_experiment(agent.beamtime.instrument, "The right one", pi="ben").id
    sam.move_dataset(dataset.id, right, "wrong sample")
    sam.finalise(experiment)
    assert ended(sam, experiment).state is State.DONE
    assert (agent.service.data_dir / experiment / "sha256sums").read_text() == ""
    sam.move_dataset(dataset.id, experiment, "it was right")
    assert sam.finalisation(experiment).state is State.OUTDATED


def test_kills_while_it_is_signed_off(own_service: RunningService, tmp_path: Path) -> None:
    beamtime, sam = own_service.beamtime(), own_service.client("sam")
    raw = own_service.data_dir / beamtime.experiment / "raw"
    block = os.urandom(2**20)
    for number in range(8):  # that no upload has brought: their digests have to be computed
        (raw / f"{number}").write_bytes(block * (number + 1) * 4)
    sam.finalise(beamtime.experiment, force=True, reason="copied by hand")
    for share in (0, 0.25, 0.5, 0.75):
        while (found := sam.finalisation(beamtime.experiment)).progress < share:
            assert found.state in (State.CHECKING, State.HASHING)
        own_service.kill()
        own_service.start()
    assert ended(sam, beamtime.experiment).state is State.DONE
    assert checked(raw.parent).count(": OK") == 8
    assert [path.name for path in raw.parent.glob(".sha256sums*")] == []
    kinds = [event.kind for event in sam.past_events(beamtime.experiment)]
    assert kinds.count("experiment.finalised") == 1


def test_what_can_not_be_signed_off_says_why_and_may_be_tried_again(
    service: RunningService, tmp_path: Path
) -> None:
    beamtime, sam = service.beamtime(), service.client("sam")
    (tmp_path / "scan").write_text("scan")
    service.agent(beamtime).upload(tmp_path / "scan")
    obstacle = service.data_dir / beamtime.experiment / "sha256sums"
    obstacle.mkdir()
    sam.finalise(beamtime.experiment)
    blocked = ended(sam, beamtime.experiment)
    assert blocked.state is State.BLOCKED
    assert blocked.differences[0].startswith("It could not be signed off: [Errno")
    obstacle.rmdir()
    sam.finalise(beamtime.experiment)
    assert ended(sam, beamtime.experiment).state is State.DONE
    assert checked(obstacle.parent) == "raw/scan: OK\n"
