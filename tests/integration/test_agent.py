"""The agent against the real service, each in its own process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from beamhub import __version__
from beamhub.agent.journal import Journal
from beamhub.schemas import DatasetState, UploadState
from beamhub.testing import free_port, write_dataset

from tests.integration.agents import LARGE, PATIENCE, RunningAgent, write_large

# --- files that arrive ----------------------------------------------------------------------------------


def test_a_dataset_that_was_there_and_one_that_appears(agent: RunningAgent, tmp_path: Path) -> None:
    write_dataset(agent.data, "early")
    agent.start()
    agent.until_arrived("early_master.h5", "early_data_000001.h5", "early_data_000002.h5")

    (agent.data / "run 2").mkdir()
    for path in write_dataset(tmp_path, "late"):
        path.rename(agent.data / "run 2" / path.name)
    (agent.data / "run 2" / "Notes: α, 100 %.txt").write_text("settled, not renamed")
    (agent.data / "empty").touch()
    late = ("late_master.h5", "late_data_000001.h5", "late_data_000002.h5", "Notes: α, 100 %.txt")
    agent.until_arrived(*(f"run 2/{name}" for name in late), "empty")

    agent.assert_all_there_once()
    datasets = agent.service.client("ada").datasets(agent.beamtime.experiment)
    assert {(d.path, d.frames_readable, d.state) for d in datasets} == {
        ("raw/early_master.h5", 4, DatasetState.COMPLETE),
        ("raw/run 2/late_master.h5", 4, DatasetState.COMPLETE),
    }


def test_many_small_files(agent: RunningAgent) -> None:
    for number in range(80):
        folder = agent.data / f"grid {number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.cbf").write_text(f"frame {number}")

    result = agent.run("--once")

    assert result.returncode == 0, result.stderr
    agent.assert_all_there_once()


def test_a_file_is_not_sent_while_it_may_grow(agent: RunningAgent) -> None:
    agent.settings["settle"] = "3600"
    agent.start()
    growing = agent.data / "growing"
    with growing.open("w") as file:
        file.write("first half, ")
        file.flush()
        agent.until(lambda: agent.status is not None and agent.status.state == "waiting")
        file.write("second half")
    assert agent.uploads() == []

    growing.rename(agent.data / "grown.txt")

    agent.until_arrived("grown.txt")
    agent.assert_all_there_once()


def test_a_file_is_read_once(agent: RunningAgent) -> None:
    agent.start()
    agent.until(lambda: agent.status is not None)
    assert agent.process is not None
    counters = Path(f"/proc/{agent.process.pid}/io")

    def bytes_read() -> int:
        return int(counters.read_text().split()[1])

    before = bytes_read()
    write_large(agent.data / "large.cbf")
    agent.until_arrived("large.cbf")
    assert 1 <= (bytes_read() - before) / (LARGE * 2**20) < 1.2
    (upload,) = agent.uploads()
    assert (upload.digest_by, upload.digest_follows) == ("sender", "xxh128")
    agent.assert_all_there_once()


def test_masters_go_first(agent: RunningAgent) -> None:
    sam = agent.service.client("sam")
    sam.activate(agent.beamtime.instrument, None)
    agent.start()
    for path in reversed(write_dataset(agent.folder, "lyso", frames=8)):
        path.rename(agent.data / path.name)
    agent.until(lambda: agent.status is not None and agent.status.queued_files == 5)
    sam.activate(agent.beamtime.instrument, agent.beamtime.experiment)
    agent.until(lambda: len(agent.files()) == 5)

    begun = sorted(agent.uploads(), key=lambda upload: upload.created)
    # two are in flight at a time, and those two may have been data files when staff were slow
    assert "raw/lyso_master.h5" in [upload.path for upload in begun[:3]]


def test_an_older_file_that_is_written_anew_becomes_another_version(agent: RunningAgent) -> None:
    agent.start()
    (agent.data / "scan.txt").write_text("first")
    agent.until_arrived("scan.txt")
    (agent.data / "scan.txt").write_text("second")
    agent.until(lambda: len(agent.files()) == 2)

    folder = agent.service.data_dir / agent.beamtime.experiment / "raw"
    assert (folder / "scan.txt").read_text() == "first"
    assert sorted(path.read_text() for path in folder.rglob("*.txt")) == ["first", "second"]


def test_links_and_pipes_are_told_and_not_followed(agent: RunningAgent) -> None:
    secret = agent.folder / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (agent.data / "link").symlink_to(secret / "key")
    (agent.data / "folder").symlink_to(secret)
    os.mkfifo(agent.data / "pipe")
    (agent.data / "plain").write_text("plain")
    agent.start()
    agent.until_arrived("plain")
    agent.until(lambda: agent.status is not None and len(agent.status.file_errors) == 3)

    status = agent.status
    assert status is not None
    assert sorted(status.file_errors) == [
        f"{agent.data}/folder is a symbolic link: it is not followed and not sent",
        f"{agent.data}/link is a symbolic link: it is not followed and not sent",
        f"{agent.data}/pipe is a pipe: it is not followed and not sent",
    ]
    agent.assert_all_there_once()


# --- how fast -------------------------------------------------------------------------------------------


def test_a_limit_that_is_lifted_while_it_holds(agent: RunningAgent) -> None:
    agent.upload["limit"] = '"1 MB/s"'
    agent.start()
    write_large(agent.data / "large.cbf")  # more than three minutes, at that rate
    agent.until_halfway()
    agent.until(lambda: agent.status is not None and agent.status.rate > 0)
    status = agent.status
    assert status is not None
    assert status.rate < 1.2e6
    assert (status.state, status.version, status.queued_files) == ("uploading", __version__, 1)
    assert 0 < status.queued_bytes < LARGE * 2**20
    assert [(file.name, file.experiment) for file in status.current] == [
        ("large.cbf", agent.beamtime.experiment)
    ]
    assert 0 < (status.free_disk or 0) < shutil.disk_usage(agent.data).total

    agent.upload["limit"] = '"fast"'
    agent.command()
    agent.signal(signal.SIGHUP)
    agent.until(lambda: "nothing is changed: " in agent.log)
    assert "take a restart" not in agent.log
    agent.upload["limit"] = '"900 MB/s"'
    agent.settings["settle"] = "0.3"
    agent.command()
    agent.signal(signal.SIGHUP)
    agent.until_arrived("large.cbf")

    assert "sending at most 900 MB/s" in agent.log
    assert "other changes of the configuration than the limit take a restart of the agent" in agent.log
    agent.assert_all_there_once()


# --- the command ----------------------------------------------------------------------------------------


def test_check(agent: RunningAgent) -> None:
    result = agent.run("--check")
    assert result.returncode == 0, result.stdout
    assert (
        f"✓ {agent.service.url} accepts the token of instrument {agent.beamtime.instrument}" in result.stdout
    )
    assert f"✓ files go to experiment {agent.beamtime.experiment}" in result.stdout

    agent.service.client("sam").activate(agent.beamtime.instrument, None)
    assert "! no experiment is active on it" in agent.run("--check").stdout

    agent.token("wrong")
    result = agent.run("--check")
    assert result.returncode == 1
    assert "is not accepted" in result.stdout


def test_check_finds_what_is_wrong_with_the_journal_and_the_names(agent: RunningAgent) -> None:
    (agent.folder / "other").mkdir()
    agent.tables = '[[watch]]\npath = "other"\n'
    Journal(agent.folder / "journal.sqlite", "another-one").close()
    result = agent.run("--check")
    assert result.returncode == 1
    assert "belongs to instrument another-one" in result.stdout
    assert "become versions of each other: give one of them a prefix" in result.stdout

    (agent.folder / "journal.sqlite").write_bytes(b"damaged" * 1000)
    (agent.data / "a").touch()
    for option in ("--check", "--dry-run", "--once"):
        result = agent.run(option)
        assert result.returncode == 1
        assert "move it away" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_check_without_a_service(agent: RunningAgent) -> None:
    port = free_port()
    command = agent.command("--check")
    text = (agent.folder / "sync.toml").read_text()
    (agent.folder / "sync.toml").write_text(text.replace(agent.service.url, f"http://127.0.0.1:{port}"))

    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    assert result.returncode == 1
    assert f"✗ http://127.0.0.1:{port} can't be reached" in result.stdout


def test_dry_run(agent: RunningAgent) -> None:
    (agent.data / "old").write_text("old")
    assert agent.run("--once").returncode == 0
    (agent.data / "a").write_text("a" * 1234)
    (agent.data / ".hidden").write_text("a")
    (agent.data / "link").symlink_to("a")

    result = agent.run("--dry-run")

    assert result.returncode == 0
    assert "1,234  a\n" in result.stdout
    assert "link is a symbolic link" in result.stdout
    assert "1 files with 1,234 bytes would be sent" in result.stdout
    assert set(agent.files()) == {"old"}


def test_two_agents_with_one_journal(agent: RunningAgent) -> None:
    agent.start()
    agent.until(lambda: agent.status is not None)

    result = agent.run("--once")

    assert result.returncode == 1
    assert "another agent already works with the journal" in result.stderr


def test_options_that_exclude_each_other(agent: RunningAgent) -> None:
    result = agent.run("--once", "--dry-run")
    assert result.returncode == 2
    assert "exclude each other" in result.stderr


def test_the_agent_imports_nothing_heavy() -> None:
    code = "import sys, beamhub.agent.command; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(run.stdout.split())

    assert "httpx" in modules
    assert not modules & {
        "numpy",
        "h5py",
        "sqlalchemy",
        "alembic",
        "tornado",
        "jupyter_server",
        "traitlets",
        "numba",
    }


def test_files_that_the_service_sees_are_published_where_they_lie(
    own_agent: RunningAgent, tmp_path: Path
) -> None:
    agent, service = own_agent, own_agent.service
    service.settings["in_place"] = {agent.beamtime.instrument: [str(agent.data)]}
    service.restart()
    agent.settings["in_place"] = "true"
    for path in write_dataset(tmp_path, "lyso"):
        path.rename(agent.data / path.name)
    agent.start()
    agent.until_arrived("lyso_master.h5", "lyso_data_000001.h5", "lyso_data_000002.h5")
    (dataset,) = service.client("ada").datasets(agent.beamtime.experiment)
    assert (dataset.state, dataset.frames_readable) == (DatasetState.COMPLETE, 4)

    write_large(agent.data / "large.h5")
    service.kill()
    service.start()
    agent.until_arrived("large.h5")
    agent.assert_all_there_once()
    raw = service.data_dir / agent.beamtime.experiment / "raw"
    for upload in service.client("ada").uploads(agent.beamtime.experiment, state=UploadState.COMPLETE):
        source = agent.data / Path(upload.path).name
        assert upload.source == str(source)
        assert (raw / source.name).samefile(source)  # nothing was sent, and nothing copied
