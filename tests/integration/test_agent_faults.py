"""The agent and the service, stopped and killed at bad moments, and what people have to mend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import httpx
import pytest
from beamhub.schemas import UploadState

from tests.integration.agents import PATIENCE, SLOW, RunningAgent, grown, write_large

HANGING = Path(__file__).parents[1] / "hanging_files.py"


# --- interruptions --------------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_sent(agent: RunningAgent) -> None:
    agent.upload["limit"] = SLOW
    agent.start()
    path = agent.data / "large.cbf"
    write_large(path)
    agent.until_halfway()
    agent.signal(signal.SIGSTOP)
    with path.open("r+b") as file:
        file.write(b"changed")
    agent.signal(signal.SIGCONT)
    agent.hurry()

    agent.until_arrived("large.cbf")
    agent.assert_all_there_once()
    assert "changed while it was read" in agent.log
    assert {u.state for u in agent.uploads()} == {UploadState.COMPLETE, UploadState.FAILED}, (
        "nothing was begun"
    )


def test_what_happens_to_files_while_they_are_sent(agent: RunningAgent) -> None:
    agent.upload |= {"parallel": "4", "limit": '"4 MB/s"'}
    agent.start()
    grown, shrunk, old_name, deleted = (agent.data / name for name in ("grown", "shrunk", "old", "deleted"))
    for path in (grown, shrunk, old_name, deleted):
        write_large(path, 8)
    content = deleted.read_bytes()
    agent.until(lambda: sum(u.offset > 0 for u in agent.uploads()) == 4)

    with grown.open("ab") as file:
        file.write(b"more")
    os.truncate(shrunk, 2**20)
    old_name.rename(agent.data / "new")
    deleted.unlink()
    agent.hurry()
    agent.until_arrived("grown", "shrunk", "new", "deleted")

    agent.until(lambda: f"old is called {agent.data / 'new'} now" in agent.log)
    folder = agent.service.data_dir / agent.beamtime.experiment / "raw"
    assert (folder / "deleted").read_bytes() == content, "it was open, and could be saved"
    deleted.write_bytes(content)
    agent.assert_all_there_once()


@pytest.mark.parametrize("when", ["known by its new name", "found later"])
def test_a_folder_that_is_renamed_before_its_files_are_sent(agent: RunningAgent, when: str) -> None:
    sam = agent.service.client("sam")
    sam.pause_uploads(agent.beamtime.instrument, reason="vacuum")
    agent.start()
    agent.until(lambda: "vacuum" in agent.log)
    folder = agent.data / "run"
    folder.mkdir()
    for number in range(30):
        hidden = folder / f".{number}"
        hidden.write_bytes(os.urandom(10_000 if number % 2 else 300_000))
        hidden.rename(folder / f"{number}.cbf")
    agent.until(lambda: agent.status is not None and agent.status.queued_files == 30)
    if when == "found later":
        folder.rename(agent.folder / "aside")
        sam.resume_uploads(agent.beamtime.instrument)
        agent.until(lambda: agent.status is not None and agent.status.failed == 30)
        (agent.folder / "aside").rename(agent.data / "lyso_1")
    else:
        folder.rename(agent.data / "lyso_1")
        agent.until(lambda: agent.status is not None and agent.status.queued_files == 60)
        sam.resume_uploads(agent.beamtime.instrument)

    agent.until_arrived(*(f"lyso_1/{number}.cbf" for number in range(30)))
    agent.assert_all_there_once()
    agent.until(lambda: agent.status is not None and agent.status.state == "idle")
    assert agent.status is not None
    assert agent.status.failed == 0
    assert agent.status.file_errors == []


def test_two_agents_send_the_same_files(agent: RunningAgent) -> None:
    for number in range(20):
        (agent.data / f"{number}.cbf").write_bytes(os.urandom(100_000))
    write_large(agent.data / "large.cbf", 24)
    other = RunningAgent(agent.folder / "other", agent.service, agent.beamtime)
    other.data.rmdir()
    other.data.symlink_to(agent.data)  # as two computers see one file system

    with subprocess.Popen(other.command("--once")) as sending:
        result = agent.run("--once")

    assert (result.returncode, sending.returncode) == (0, 0), result.stderr
    agent.assert_all_there_once()


def clock(shift: str) -> dict[str, str]:
    """The environment of a process whose clock is wrong: `+1d`, or what a file says at each moment."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    always = {"LD_PRELOAD": str(library), "NO_FAKE_STAT": "1"}  # files' times come from the kernel
    if "/" not in shift:
        return always | {"FAKETIME": shift}
    # as on a real computer, the monotonic clock is not set with the other
    setting = {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return always | setting | {"FAKETIME_TIMESTAMP_FILE": shift}


@pytest.mark.parametrize("shift", ["+1d", "-1d"])
@pytest.mark.parametrize("whose", ["agent", "service"])
def test_a_clock_that_is_wrong_by_a_day(
    own_agent: RunningAgent, monkeypatch: pytest.MonkeyPatch, whose: str, shift: str
) -> None:
    agent = own_agent
    if whose == "agent":
        agent.environment = clock(shift)
    else:
        with monkeypatch.context() as patch:
            for name, value in clock(shift).items():
                patch.setenv(name, value)
            agent.service.restart()
    agent.upload["limit"] = SLOW
    agent.start()
    (agent.data / "settles").write_text("settles")
    write_large(agent.data / "large.cbf")
    agent.until_halfway()
    agent.kill()
    del agent.upload["limit"]
    agent.start()

    agent.until_arrived("settles", "large.cbf")
    agent.until(lambda: agent.status is not None and agent.status.connected)
    agent.assert_all_there_once()
    assert len(agent.uploads()) == 2, "something was begun twice"


def test_a_clock_that_is_set_while_a_file_settles(agent: RunningAgent) -> None:
    now = agent.folder / "now"
    now.write_text("+0d")
    agent.environment = clock(str(now))
    agent.settings["settle"] = "5"
    agent.start()
    agent.until(lambda: agent.status is not None)
    (agent.data / "scan.txt").write_text("scan")
    written = time.monotonic()
    for shift in ("+1d", "-1d"):
        now.write_text(shift)
        before = agent.status
        agent.until(lambda before=before: agent.status != before)  # type: ignore[misc]
    agent.until_arrived("scan.txt")

    assert time.monotonic() - written >= 5, "it had not settled"
    agent.assert_all_there_once()


def test_the_agent_is_killed_and_started_again(agent: RunningAgent) -> None:
    (agent.data / "small").write_text("small")
    agent.upload["limit"] = SLOW
    agent.start()
    agent.until_arrived("small")
    write_large(agent.data / "large.cbf")
    upload = agent.until_halfway()
    agent.kill()
    del agent.upload["limit"]
    for name in ("meanwhile", "another"):
        (agent.data / name).write_text(name)

    agent.start()
    agent.until_arrived("large.cbf", "meanwhile", "another")

    agent.assert_all_there_once()
    assert [u.id for u in agent.uploads() if u.path == "raw/large.cbf"] == [upload.id], "it was begun twice"
    assert agent.log.count("small has arrived") == 1, "it was sent twice"


def test_the_service_is_killed_and_started_again(own_agent: RunningAgent) -> None:
    agent = own_agent
    agent.upload["limit"] = SLOW
    agent.start()
    write_large(agent.data / "large.cbf")
    upload = agent.until_halfway()
    agent.service.kill()
    (agent.data / "meanwhile").write_text("meanwhile")
    agent.until(lambda: "can't be reached" in agent.log)
    agent.service.start()
    agent.hurry()
    agent.until_arrived("large.cbf", "meanwhile")

    agent.assert_all_there_once()
    assert [u.id for u in agent.uploads() if u.path == "raw/large.cbf"] == [upload.id], "it was begun twice"


def test_both_are_killed_in_turn(own_agent: RunningAgent) -> None:
    agent = own_agent
    for kills in range(4):
        for number in range(8):
            (agent.data / f"{kills}-{number}.cbf").write_bytes(os.urandom(50_000 * (number % 5)))
        write_large(agent.data / f"{kills}-large.cbf")
        agent.start()
        arrived = len(agent.files())
        agent.until(lambda arrived=arrived: len(agent.files()) > arrived)  # type: ignore[misc]
        agent.kill()
        if kills % 2:
            agent.service.kill()
            agent.service.start()

    result = agent.run("--once")

    assert result.returncode == 0, result.stderr
    agent.assert_all_there_once()


def test_a_restart_sends_nothing_again(agent: RunningAgent) -> None:
    for number in range(5):
        (agent.data / str(number)).write_text(str(number))
    first = agent.run("--once")
    assert first.stderr.count("has arrived") == 5
    before = agent.uploads()

    second = agent.run("--once")

    assert second.returncode == 0
    assert "has arrived" not in second.stderr
    assert agent.uploads() == before


def test_a_lost_journal_sends_nothing_again(agent: RunningAgent) -> None:
    (agent.data / "a").write_text("a")
    write_large(agent.data / "large.cbf", 3)
    assert agent.run("--once").returncode == 0
    before = agent.uploads()
    for path in agent.folder.glob("journal.sqlite*"):
        path.unlink()

    assert agent.run("--once").returncode == 0

    assert agent.uploads() == before
    agent.assert_all_there_once()


def test_sigterm_stops_in_the_middle_of_a_file(agent: RunningAgent) -> None:
    agent.upload["limit"] = SLOW
    agent.start()
    write_large(agent.data / "large.cbf")
    agent.until_halfway()

    assert agent.stop() == 0
    assert agent.files() == {}
    del agent.upload["limit"]
    assert "Traceback" not in agent.log
    assert agent.run("--once").returncode == 0
    agent.assert_all_there_once()


def test_a_file_belongs_to_the_experiment_that_was_active_when_it_began(agent: RunningAgent) -> None:
    sam = agent.service.client("sam")
    later = sam.create_experiment(agent.beamtime.instrument, "The next one", pi="ada").id
    agent.upload["limit"] = SLOW
    agent.start()
    write_large(agent.data / "large.cbf")
    agent.until_halfway()
    agent.signal(signal.SIGSTOP)
    sam.activate(agent.beamtime.instrument, later)
    agent.signal(signal.SIGCONT)
    agent.hurry()
    agent.until_arrived("large.cbf")

    agent.assert_all_there_once()
    assert agent.files(later) == {}


def test_a_file_that_has_to_begin_again_does_not_change_the_experiment(agent: RunningAgent) -> None:
    sam = agent.service.client("sam")
    later = sam.create_experiment(agent.beamtime.instrument, "The next one", pi="ada").id
    agent.upload["limit"] = SLOW
    agent.start()
    write_large(agent.data / "large.cbf")
    upload = agent.until_halfway()
    agent.kill()
    del agent.upload["limit"]
    sam.activate(agent.beamtime.instrument, later)
    agent.service.agent(agent.beamtime).cancel_upload(upload.id)

    result = agent.run("--once")

    assert result.returncode == 1
    assert f"{agent.beamtime.experiment} is not active on {agent.beamtime.instrument}" in result.stderr
    assert agent.files(later) == {}

    sam.activate(agent.beamtime.instrument, agent.beamtime.experiment)
    assert agent.run("--once").returncode == 0
    agent.assert_all_there_once()


def test_a_file_system_that_hangs(agent: RunningAgent) -> None:
    near, server = agent.folder / "near", agent.folder / "server"
    near.mkdir()
    agent.settings["rescan"] = "1"
    agent.upload["limit"] = '"4 MB/s"'
    agent.tables = (
        '[[watch]]\npath = "near"\npolling = false\nsettle = 0.2\ngrow = ["*.log"]\n'
        '[done]\nlisten = "./done.sock"\n'
    )
    agent.wrapper = ["unshare", "-Urm", sys.executable, str(HANGING), str(agent.data), str(server)]
    with (agent.folder / "told").open("wb") as told:  # no pipe: what serves the files keeps it
        subprocess.run([*agent.wrapper, *agent.command("--check")], stdout=told)
    os.kill(int(server.read_text()), signal.SIGKILL)
    checked = (agent.folder / "told").read_text()
    assert f"✓ {agent.data} is looked at every 1 s" in checked, "the kernel does not tell what others write"
    agent.start()
    agent.until(lambda: sum(u.state is UploadState.RECEIVING and u.offset > 0 for u in agent.uploads()) == 2)
    number = int(server.read_text())
    try:
        os.kill(number, signal.SIGUSR1)  # all slots of one directory are taken
        with h5py.File(near / "scan.h5", "w") as scan:  # a child has to be started to look into it
            scan["counts"] = 1
        write_large(near / "near.cbf", 1)
        (near / "settles.txt").write_text("settles")
        with (near / "motors.log").open("wb") as log:
            log.write(os.urandom(2**20))
            log.flush()
            agent.until(grown(agent, 1))
        agent.until_arrived("near.cbf", "settles.txt", "motors.log")
        silent = f"{agent.data} does not answer: is its file server there?"
        agent.until(lambda: agent.status is not None and silent in agent.status.errors)
        status = agent.status
        assert status is not None
        assert status.connected
        assert sum(u.state is UploadState.RECEIVING for u in agent.uploads()) == 2

        agent.hurry()
        (near / "done.cbf").write_text("done")
        message = {"files": [str(agent.data / "far-3.bin"), str(near / "done.cbf")]}
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(agent.folder / "done.sock"))) as detector:
            heard = detector.post("http://agent/done", json=message, timeout=PATIENCE).json()
        assert heard["ready"] == [str(near / "done.cbf")]
        assert "does not answer" in heard["refused"][str(agent.data / "far-3.bin")]
        sam = agent.service.client("sam")
        for name in ("far-2.bin", "far-3.bin"):
            sam.skip_uploads(agent.beamtime.instrument, [name], reason="not wanted")
        agent.until(lambda: agent.status is not None and agent.status.skipped == 2)

        os.kill(number, signal.SIGCONT)
        agent.until_arrived("far-1.bin", "done.cbf", "scan.h5")
        agent.until(lambda: agent.status is not None and not agent.status.errors)
        assert not {"far-2.bin", "far-3.bin"} & set(agent.files())
        os.kill(number, signal.SIGUSR1)
        near.joinpath("last.cbf").write_text("last")
        agent.until_arrived("last.cbf")
        agent.until(lambda: agent.status is not None and silent in agent.status.errors)
        assert agent.stop() == 0, "it waits for nobody when it is to end"
    finally:
        os.kill(number, signal.SIGKILL)  # which lets go whoever waits


# --- what people have to mend ---------------------------------------------------------------------------


def test_no_active_experiment(agent: RunningAgent) -> None:
    sam = agent.service.client("sam")
    sam.activate(agent.beamtime.instrument, None)
    (agent.data / "a").write_text("a")
    agent.start()
    agent.until(
        lambda: agent.status is not None and agent.status.state == "waiting" and bool(agent.status.errors)
    )
    status = agent.status
    assert status is not None
    assert status.queued_files == 1
    assert status.errors[0].startswith(f"No experiment is active on {agent.beamtime.instrument}: ")

    sam.activate(agent.beamtime.instrument, agent.beamtime.experiment)

    agent.until_arrived("a")
    agent.until(lambda: agent.status is not None and not agent.status.errors)
    agent.assert_all_there_once()


def test_a_token_that_is_replaced_while_the_agent_runs(agent: RunningAgent) -> None:
    agent.start()
    (agent.data / "a").write_text("a")
    agent.until_arrived("a")
    new = agent.service.client("sam").new_instrument_token(agent.beamtime.instrument)
    (agent.data / "b").write_text("b")
    agent.until(lambda: "is not accepted: ask for a new one with `beamhub instrument token" in agent.log)

    agent.token(new.token)

    agent.until_arrived("b")
    agent.assert_all_there_once()


def test_names_that_the_service_refuses_do_not_hold_up_others(agent: RunningAgent) -> None:
    (agent.data / "line\nbreak").write_text("a")
    (agent.data / "fine").write_text("b")

    result = agent.run("--once")

    assert result.returncode == 1
    assert r"line\nbreak" in result.stderr
    assert set(agent.files()) == {"fine"}


def test_the_watched_directory_goes_and_comes_back(agent: RunningAgent) -> None:
    agent.start()
    (agent.data / "a").write_text("a")
    agent.until_arrived("a")
    agent.data.rename(agent.folder / "unmounted")
    agent.until(lambda: agent.status is not None and any("is gone" in error for error in agent.status.errors))
    (agent.folder / "unmounted" / "b").write_text("b")
    (agent.folder / "unmounted").rename(agent.data)

    agent.until_arrived("b")
    agent.until(lambda: agent.status is not None and not agent.status.errors)
    agent.assert_all_there_once()


def test_a_disk_that_is_unmounted_and_mounted_again(agent: RunningAgent) -> None:
    """What lies below the mount point is an empty directory: nothing in it has been deleted."""
    data, disk = agent.data, agent.folder / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs disk {disk} && mount --bind {disk} {data} && exec "$@"'
    agent.wrapper = ["unshare", "-Urm", "sh", "-c", mount, "sh"]
    agent.upload["limit"] = '"4 MB/s"'
    agent.settings["grow"] = '["*.log"]'
    agent.start()
    agent.until(lambda: agent.status is not None)
    assert agent.process is not None
    inside = Path(f"/proc/{agent.process.pid}/root{disk}")
    enter = ["nsenter", "-t", str(agent.process.pid), "-U", "-m", "--preserve-credentials"]
    write_large(inside / "large.cbf", 16)
    (inside / "motors.log").write_bytes(os.urandom(2 << 20))
    for number in range(20):
        write_large(inside / f"waits-{number}.cbf", 1)
    agent.until_halfway()

    subprocess.run([*enter, "umount", "-l", data], check=True)
    agent.until(
        lambda: agent.status is not None and "is not on the disk any more" in str(agent.status.errors)
    )
    subprocess.run([*enter, "mount", "--bind", disk, data], check=True)
    del agent.upload["limit"]
    agent.command()
    agent.signal(signal.SIGHUP)
    agent.until_arrived("large.cbf", "motors.log", *(f"waits-{number}.cbf" for number in range(20)))

    assert "was deleted" not in agent.log
    assert len(agent.uploads()) == 22, "something was begun again"
    agent.until(lambda: agent.status is not None and not agent.status.errors)
    (inside / "later.cbf").write_text("later")
    agent.until_arrived("later.cbf")
    assert agent.status is not None
    assert agent.status.failed == 0


def test_an_agent_that_is_there_before_its_disk(agent: RunningAgent) -> None:
    """The directory is empty then, and files that were on their way seem to be deleted."""
    agent.upload["limit"] = '"2 MB/s"'
    agent.start()
    write_large(agent.data / "large.cbf", 16)
    agent.until_halfway()
    agent.kill()
    disk = agent.data.rename(agent.folder / "disk")
    agent.data.mkdir()
    sam = agent.service.client("sam")
    later = sam.create_experiment(agent.beamtime.instrument, "The next one", pi="ada").id
    sam.activate(agent.beamtime.instrument, later)
    del agent.upload["limit"]

    agent.start()
    agent.until(lambda: agent.status is not None and "is its disk mounted?" in str(agent.status.errors))
    agent.data.rmdir()
    disk.rename(agent.data)
    agent.until_arrived("large.cbf")

    agent.assert_all_there_once()
    assert len(agent.uploads()) == 1, "it was begun again"
    assert agent.files(later) == {}


def test_a_journal_on_a_full_disk(agent: RunningAgent) -> None:
    (agent.folder / "state").mkdir()
    agent.journal = "state/journal.sqlite"
    mount = f'mount -t tmpfs -o size=256k state {agent.folder}/state && exec "$@"'
    agent.wrapper = ["unshare", "-Urm", "sh", "-c", mount, "sh"]
    agent.settings["settle"] = "0.1"
    agent.start()
    agent.until(lambda: agent.status is not None)
    for number in range(500):
        (agent.data / f"{number}.cbf").write_text(str(number))
    assert agent.process is not None
    assert agent.process.wait(PATIENCE) == 1
    agent.process = None

    journal = agent.folder / "state" / "journal.sqlite"
    told = f"the journal {journal} can't be used (database or disk is full): free space on its disk"
    assert told in agent.log
    assert "Traceback" not in agent.log
    assert agent.status is not None
    assert told in agent.status.errors[0]

    agent.wrapper = []
    assert agent.run("--once").returncode == 0
    agent.assert_all_there_once()


@pytest.mark.parametrize("what", ["instances", "watches"])
def test_more_watchers_than_the_kernel_allows(agent: RunningAgent, what: str) -> None:
    none = f'echo 0 > /proc/sys/user/max_inotify_{what} && exec "$@"'
    agent.wrapper = ["unshare", "-Ur", "sh", "-c", none, "sh"]
    agent.start()
    agent.until(lambda: agent.status is not None and f"max_user_{what}" in str(agent.status.errors))
    (agent.data / "a").write_text("a")
    agent.until_arrived("a")
