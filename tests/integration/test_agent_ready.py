"""When a file is ready: what the detector says, and what HDF5 says."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import h5py
from beamhub.testing import write_dataset

from tests.integration.agents import RunningAgent, write_large

# --- what the detector says -----------------------------------------------------------------------------


def test_a_file_is_ready_when_the_detector_says_so(agent: RunningAgent) -> None:
    agent.settings["settle"] = "3600"
    agent.tables = '[done]\nlisten = "./done.sock"\n'
    (agent.data / "run").mkdir()
    (agent.data / "run" / "a.cbf").write_text("a")
    (agent.data / "b.cbf").write_text("b")
    (agent.data / "never.cbf").write_text("nobody says that it is finished")
    (agent.folder / "secret").write_text("secret")
    (agent.data / "link.cbf").symlink_to(agent.folder / "secret")
    (agent.folder / "alias").symlink_to(agent.data)
    agent.start()
    agent.until(lambda: agent.status is not None and agent.status.state == "waiting")

    said = agent.run("--done", f"{agent.data}/run/a.cbf", f"{agent.folder}/alias/b.cbf")
    assert (said.returncode, said.stderr) == (0, "")
    agent.until_arrived("run/a.cbf", "b.cbf")
    assert agent.run("--done", f"{agent.data}/b.cbf").returncode == 0, "it is there: nothing is wrong"

    outside = [agent.folder / "secret", agent.data / "../secret", agent.data / "run", agent.data / "nowhere"]
    outside += [agent.data / "link.cbf", agent.data / ".hidden"]
    for path in outside:
        said = agent.run("--done", str(path))
        assert said.returncode == 1
        assert said.stderr.startswith(str(path.parent.resolve()))
    assert set(agent.files()) == {"run/a.cbf", "b.cbf"}

    agent.stop()
    said = agent.run("--done", str(agent.data / "b.cbf"))
    assert said.returncode == 1
    assert "no agent listens" in said.stderr


def test_a_done_message_about_a_file_that_is_on_its_way(agent: RunningAgent) -> None:
    agent.settings["settle"] = "3600"
    agent.upload["limit"] = '"8 MB/s"'
    agent.tables = '[done]\nlisten = "./done.sock"\n'
    agent.start()
    path = agent.data / "large.cbf"
    write_large(path, 24)
    agent.until((agent.folder / "done.sock").exists)
    assert agent.run("--done", str(path)).returncode == 0
    agent.until_halfway()
    agent.signal(signal.SIGSTOP)
    with path.open("r+b") as file:
        file.write(b"changed")
    del agent.upload["limit"]
    with subprocess.Popen(agent.command("--done", str(path))) as said:
        agent.signal(signal.SIGHUP)
        agent.signal(signal.SIGCONT)
    assert said.returncode == 0

    agent.until_arrived("large.cbf")
    agent.assert_all_there_once()


def test_no_done_message_without_a_listener(agent: RunningAgent) -> None:
    said = agent.run("--done", "a")
    assert said.returncode == 1
    assert "there is no [done]" in said.stderr
    assert agent.run("--done").returncode == 2
    assert agent.run("a").returncode == 2


# --- HDF5 files that nobody renames into place ----------------------------------------------------------


def test_an_hdf5_file_is_sent_when_its_writer_has_closed_it(agent: RunningAgent) -> None:
    agent.start()
    with h5py.File(agent.data / "scan.h5", "w", libver=("v110", "v110")) as file:
        file["first"] = 1
        file.swmr_mode = True
        agent.until(lambda: "scan.h5 is held back: it has not been closed by its writer" in agent.log)
        assert agent.uploads() == []
        assert agent.process is not None
        mapped = Path(f"/proc/{agent.process.pid}/maps").read_text()
        assert "h5py" not in mapped, "a damaged file could take the agent along"
        file["first"][()] = 2
    agent.until_arrived("scan.h5")

    agent.assert_all_there_once()
    assert [u.path for u in agent.uploads()] == ["raw/scan.h5"], "half of it was sent"


def test_a_master_waits_for_its_files_unless_it_is_renamed(agent: RunningAgent) -> None:
    agent.start()
    paths = write_dataset(agent.folder, "settled")
    shutil.copyfile(paths[0], agent.data / paths[0].name)
    agent.until(lambda: "it points to settled_data_000001.h5, which is not there" in agent.log)
    live = write_dataset(agent.folder, "live")[0]
    live.rename(agent.data / live.name)
    agent.until_arrived(live.name)
    assert set(agent.files()) == {live.name}, "live feedback has to begin with the first frame"

    for path in paths[1:]:
        shutil.copyfile(path, agent.data / path.name)
    agent.until_arrived(*(path.name for path in paths))
    agent.assert_all_there_once()


def test_a_master_waits_for_a_file_that_is_itself_not_ready(agent: RunningAgent) -> None:
    """The file is there and has settled, but its writer has not closed it."""
    agent.start()
    master, first, second = write_dataset(agent.folder, "lyso")
    shutil.copyfile(first, agent.data / first.name)
    with h5py.File(agent.data / second.name, "w", libver=("v110", "v110")) as file:
        file.flush()
        agent.until(lambda: f"{second.name} is held back: it has not been closed" in agent.log)
        shutil.copyfile(master, agent.data / master.name)
        agent.until(lambda: f"it points to {second.name}, which has not settled" in agent.log)
        agent.until_arrived(first.name)
        assert set(agent.files()) == {first.name}
    agent.until_arrived(master.name, second.name)
    agent.assert_all_there_once()


def test_the_staff_let_a_file_go_that_its_writer_never_closes(agent: RunningAgent) -> None:
    agent.start()
    with h5py.File(agent.folder / "open.h5", "w", libver=("v110", "v110")) as file:
        file.flush()
        for name in ("scan.h5", "other.h5"):
            shutil.copyfile(agent.folder / "open.h5", agent.data / name)
    agent.until(lambda: agent.log.count("is held back: it has not been closed by its writer") == 2)
    sam, instrument = agent.service.client("sam"), agent.beamtime.instrument
    sam.retry_uploads(instrument)  # all that has failed, which these have not
    sam.retry_uploads(instrument, pattern="scan.*")

    agent.until_arrived("scan.h5")
    assert set(agent.files()) == {"scan.h5"}


def test_the_file_of_a_writer_that_was_killed_is_sent_in_the_end(agent: RunningAgent) -> None:
    agent.settings["wait_for_writer"] = "1"
    agent.start()
    path = agent.data / "scan.h5"
    with h5py.File(agent.folder / "open.h5", "w", libver=("v110", "v110")) as file:
        file.flush()
        shutil.copyfile(agent.folder / "open.h5", path)
    agent.until_arrived("scan.h5")

    agent.assert_all_there_once()
    agent.until(lambda: agent.status is not None and bool(agent.status.file_errors))
    status = agent.status
    assert status is not None
    assert status.file_errors == [f"{path} was sent as it is: it has not been closed by its writer"]
