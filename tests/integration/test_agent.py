"""The agent against the real service, each in its own process, stopped and killed at bad moments."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import httpx
import pytest
from beamhub.agent.journal import Journal
from beamhub.schemas import AgentStatus, DatasetState, File, Upload, UploadState
from beamhub.testing import Beamtime, RunningService, free_port, write_dataset

PATIENCE = 100.0  # seconds, of a slow machine
HANGING = Path(__file__).parents[1] / "hanging_files.py"
LARGE = 192  # MiB: some tenths of a second to send


@dataclass
class RunningAgent:
    """`beamhub sync` in a process of its own, watching `data`."""

    folder: Path
    service: RunningService
    beamtime: Beamtime
    process: subprocess.Popen[bytes] | None = None
    settings: dict[str, str] = field(default_factory=lambda: {"settle": "0.2"})  # of [[watch]]
    upload: dict[str, str] = field(default_factory=lambda: {"parallel": "2"})
    tables: str = ""  # more of them
    environment: dict[str, str] = field(default_factory=dict)  # beyond the tests' own
    url: str = ""  # of the service, if not its own
    wrapper: list[str] = field(default_factory=list)  # a command that starts it
    journal: str = "journal.sqlite"

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True)
        self.token(self.beamtime.agent_token)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def token(self, token: str) -> None:
        new = self.folder / "token.new"
        new.write_text(token)
        new.chmod(0o600)
        new.rename(self.folder / "token")

    def command(self, *options: str) -> list[str]:
        watch, upload = (
            "\n".join(f"{key} = {value}" for key, value in table.items())
            for table in (self.settings, self.upload)
        )
        (self.folder / "sync.toml").write_text(
            f'[service]\nurl = "{self.url or self.service.url}"\ntoken_file = "token"\n'
            f'[instrument]\nid = "{self.beamtime.instrument}"\n'
            f'[journal]\npath = "{self.journal}"\n[upload]\n{upload}\n'
            f'[[watch]]\npath = "data"\n{watch}\n{self.tables}'
        )
        return [sys.executable, "-m", "beamhub.cli", "sync", str(self.folder / "sync.toml"), *options]

    def start(self) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *self.command()], stdout=log, stderr=log, env=os.environ | self.environment
            )

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=os.environ | self.environment,
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        assert self.process is not None
        self.signal(signal.SIGTERM)
        code = self.process.wait(timeout=PATIENCE)
        self.process = None
        return code

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    # --- what has become of it all ---

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert self.process is None or self.process.poll() is None, f"the agent has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"it did not happen; the agent's log:\n{self.log}"
            time.sleep(0.01)

    @property
    def status(self) -> AgentStatus | None:
        return self.service.client("sam").instrument(self.beamtime.instrument).agent

    def uploads(self, experiment: str | None = None) -> list[Upload]:
        return self.service.client("ada").uploads(experiment or self.beamtime.experiment)

    def files(self, experiment: str | None = None) -> dict[str, File]:
        files = self.service.client("ada").files(experiment or self.beamtime.experiment, "raw")
        return {file.path.removeprefix("raw/"): file for file in files if file.path.startswith("raw/")}

    def until_arrived(self, *names: str) -> None:
        def complete() -> set[str]:
            uploads = self.uploads()
            return {u.path.removeprefix("raw/") for u in uploads if u.state is UploadState.COMPLETE}

        self.until(lambda: set(names) <= complete())

    def until_halfway(self) -> Upload:
        """Waits until the service has a part of one file."""
        found: list[Upload] = []

        def halfway() -> bool:
            found[:] = [u for u in self.uploads() if u.state is UploadState.RECEIVING and u.offset > 0]
            return bool(found)

        self.until(halfway)
        return found[0]

    def assert_all_there_once(self, experiment: str | None = None) -> None:
        """Every file that was to be sent is published, byte for byte, in one version; and nothing else."""
        expected = {
            str(path.relative_to(self.data)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.data.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        folder = self.service.data_dir / (experiment or self.beamtime.experiment)
        found = {
            str(path.relative_to(folder / "raw")): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (folder / "raw").rglob("*")
            if path.is_file()
        }
        assert found == expected
        self.until(lambda: not list((folder / ".incoming").iterdir()))  # the temporary name goes last
        complete = [u.path for u in self.uploads(experiment) if u.state is UploadState.COMPLETE]
        assert len(complete) == len(set(complete)) == len(expected)


@pytest.fixture
def agent(service: RunningService, tmp_path: Path) -> Iterator[RunningAgent]:
    agent = RunningAgent(tmp_path / "agent", service, service.beamtime())
    yield agent
    if agent.process is not None:
        agent.kill()


@pytest.fixture
def own_agent(own_service: RunningService, tmp_path: Path) -> Iterator[RunningAgent]:
    """With a service that may be killed."""
    agent = RunningAgent(tmp_path / "agent", own_service, own_service.beamtime())
    yield agent
    if agent.process is not None:
        agent.kill()


def write_large(path: Path, mebibytes: int = LARGE) -> None:
    """A file of which each part is different, under its final name at once."""
    block = os.urandom(2**20)
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb") as file:
        for number in range(mebibytes):
            file.write(number.to_bytes(8, "big") + block[8:])
    hidden.rename(path)


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


# --- files that grow by design --------------------------------------------------------------------------

WRITER = """
import sys, h5py, numpy
with h5py.File(sys.argv[1], "w", libver=("v110", "v110")) as file:
    shape = {"shape": (0, 512, 512), "maxshape": (None, 512, 512), "chunks": (1, 512, 512)}
    frames = file.create_dataset("frames", dtype="u4", **shape)
    if sys.argv[2] == "swmr":
        file.swmr_mode = True
    for line in sys.stdin:
        for _ in range(int(line)):
            number = len(frames)
            frames.resize(number + 1, 0)
            frames[number] = numpy.random.default_rng(number).integers(2**32, size=(512, 512), dtype="u4")
            frames.flush()
        file.flush()
        print(number, flush=True)
"""


@dataclass
class Writer:
    """A detector's process that adds frames of 1 MiB to an HDF5 file when it is told to."""

    path: Path
    mode: str = "swmr"

    def __enter__(self) -> Writer:
        command = [sys.executable, "-c", WRITER, str(self.path), self.mode]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input: it closes the file
        assert self.process.returncode == 0

    def write(self, frames: int) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{frames}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()


def grown(agent: RunningAgent, mebibytes: int) -> Callable[[], bool]:
    """Whether so much of a growing file has come."""

    def enough() -> bool:
        return any(u.deferred and u.offset >= mebibytes * 2**20 for u in agent.uploads())

    return enough


def test_a_file_open_for_swmr_is_sent_while_it_grows(own_agent: RunningAgent) -> None:
    agent = own_agent
    agent.start()
    with Writer(agent.data / "scan.h5") as writer:
        writer.write(8)
        agent.until(grown(agent, 8))
        agent.kill()
        writer.write(8)
        agent.start()
        agent.until(grown(agent, 16))
        agent.service.kill()
        writer.write(8)
        agent.service.start()
        agent.until(grown(agent, 24))
        assert agent.files() == {}, "nobody can read a file while it grows"
        writer.write(1)
    agent.until_arrived("scan.h5")

    agent.assert_all_there_once()
    (upload,) = agent.uploads()
    assert (upload.deferred, upload.digest_by, upload.version) == (False, "sender", 1)
    again = re.search(r"scan.h5 was sent while it grew: ([0-9.]+) MB, of which ([0-9.]+) MB again", agent.log)
    assert again
    sent, changed = map(float, again.groups())
    assert 0 < changed < sent / 2
    folder = agent.service.data_dir / agent.beamtime.experiment / "raw"
    with h5py.File(folder / "scan.h5") as file:
        assert file["frames"].shape == (25, 512, 512)


def test_the_agent_is_killed_when_a_file_that_grew_is_ready(agent: RunningAgent) -> None:
    agent.upload["limit"] = '"8 MB/s"'
    agent.start()
    with Writer(agent.data / "scan.h5") as writer:
        writer.write(4)
        agent.until(grown(agent, 4))
        agent.kill()
        writer.write(20)
    agent.start()
    agent.until(lambda: any(u.offset > 6 * 2**20 for u in agent.uploads()))
    agent.kill()
    agent.start()
    agent.until_arrived("scan.h5")
    agent.assert_all_there_once()
    assert len(agent.uploads()) == 1


def test_what_a_master_names_is_sent_while_it_grows(agent: RunningAgent) -> None:
    agent.start()
    master, data = write_dataset(agent.folder, "live")[:2]
    master.rename(agent.data / master.name)
    agent.until_arrived(master.name)
    with Writer(agent.data / data.name, "plain") as writer:
        writer.write(4)
        agent.until(grown(agent, 4))
        writer.write(2)
    agent.until_arrived(data.name)
    agent.assert_all_there_once()
    assert f"{data.name} was sent while it grew" in agent.log


def test_what_the_configuration_names_is_sent_while_it_grows(agent: RunningAgent) -> None:
    agent.settings |= {"grow": '["*.log"]', "settle": "1"}
    agent.start()
    with (agent.data / "motors.log").open("wb") as log, (agent.data / "cut.log").open("wb") as cut:
        for file in (log, cut):
            file.write(os.urandom(5 * 2**20 + 7))
            file.flush()
        agent.until(lambda: sum(u.deferred and u.offset == 5 * 2**20 for u in agent.uploads()) == 2)
        cut.truncate(2**20)
        log.write(os.urandom(2**20))
        log.flush()
    agent.until_arrived("motors.log", "cut.log")
    agent.assert_all_there_once()
    states = sorted((u.path, u.state) for u in agent.uploads())
    assert states == [
        ("raw/cut.log", UploadState.COMPLETE),
        ("raw/cut.log", UploadState.FAILED),
        ("raw/motors.log", UploadState.COMPLETE),
    ]


def say_done(agent: RunningAgent, path: Path) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(agent.folder / "done.sock"))) as detector:
        answer = detector.post("http://agent/done", json={"files": [str(path)]}, timeout=PATIENCE)
    assert answer.json()["ready"] == [str(path)]


@pytest.mark.parametrize("noticed", [True, False])
def test_a_file_that_grows_on_when_it_was_ready(agent: RunningAgent, noticed: bool) -> None:
    sam, path = agent.service.client("sam"), agent.data / "motors.log"
    agent.settings |= {"grow": '["*.log"]', "settle": "3600"}
    agent.tables = '[done]\nlisten = "./done.sock"\n'
    agent.start()
    path.write_bytes(os.urandom(4 * 2**20 + 7))
    agent.until(grown(agent, 4))
    (begun,) = agent.uploads()
    sam.pause_uploads(agent.beamtime.instrument, reason="a look at it")
    agent.until(lambda: "a look at it" in agent.log)
    say_done(agent, path)
    agent.until(lambda: agent.status is not None and agent.status.queued_files == 1)
    with path.open("ab") as file:
        file.write(os.urandom(2 * 2**20))
        file.flush()
        if noticed:  # as the writer has closed it; else it is found when it is to be sent
            file.close()
            agent.until(lambda: agent.status is not None and agent.status.queued_files == 0)
        sam.resume_uploads(agent.beamtime.instrument)
        agent.until(grown(agent, 6))
    say_done(agent, path)
    agent.until_arrived("motors.log")

    agent.assert_all_there_once()
    assert [upload.id for upload in agent.uploads()] == [begun.id], "it was sent again from its beginning"

    with path.open("ab") as file:
        file.write(b"more, when it is published")
    say_done(agent, path)
    agent.until(lambda: len(agent.files()) == 2)
    raw = agent.service.data_dir / agent.beamtime.experiment / "raw"
    assert max(raw.rglob("*.log"), key=lambda file: file.stat().st_size).read_bytes() == path.read_bytes()


def test_files_that_grow_side_by_side(agent: RunningAgent) -> None:
    size = 12 * 2**20
    agent.settings |= {"grow": '["*.log"]', "settle": "3600"}
    agent.upload["limit"] = '"4 MB/s"'
    agent.tables = '[done]\nlisten = "./done.sock"\n'
    agent.start()
    paths = [agent.data / f"{number}.log" for number in range(2)]
    for path in paths:
        path.write_bytes(os.urandom(size + 7))
    agent.until(lambda: sum(u.deferred and 0 < u.offset < size for u in agent.uploads()) == 2)
    del agent.upload["limit"]
    agent.command()
    agent.signal(signal.SIGHUP)
    agent.until(lambda: sum(u.deferred and u.offset == size for u in agent.uploads()) == 2)
    for path in paths:
        say_done(agent, path)
    agent.until_arrived("0.log", "1.log")
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

    agent.upload["limit"] = '"fast"'
    agent.command()
    agent.signal(signal.SIGHUP)
    agent.until(lambda: "nothing is changed: " in agent.log)
    agent.upload["limit"] = '"900 MB/s"'
    agent.command()
    agent.signal(signal.SIGHUP)
    agent.until_arrived("large.cbf")

    assert "sending at most 900 MB/s" in agent.log
    agent.assert_all_there_once()


# --- interruptions --------------------------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_sent(agent: RunningAgent) -> None:
    agent.start()
    path = agent.data / "large.cbf"
    write_large(path)
    agent.until_halfway()
    agent.signal(signal.SIGSTOP)
    with path.open("r+b") as file:
        file.write(b"changed")
    agent.signal(signal.SIGCONT)

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
    del agent.upload["limit"]
    agent.command()
    agent.signal(signal.SIGHUP)
    agent.until_arrived("grown", "shrunk", "new", "deleted")

    agent.until(lambda: "old was deleted or renamed before it had been sent" in agent.log)
    folder = agent.service.data_dir / agent.beamtime.experiment / "raw"
    assert (folder / "deleted").read_bytes() == content, "it was open, and could be saved"
    deleted.write_bytes(content)
    agent.assert_all_there_once()


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
    agent.start()
    (agent.data / "settles").write_text("settles")
    write_large(agent.data / "large.cbf")
    agent.until_halfway()
    agent.kill()
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
    agent.start()
    agent.until_arrived("small")
    write_large(agent.data / "large.cbf")
    upload = agent.until_halfway()
    agent.kill()
    for name in ("meanwhile", "another"):
        (agent.data / name).write_text(name)

    agent.start()
    agent.until_arrived("large.cbf", "meanwhile", "another")

    agent.assert_all_there_once()
    assert [u.id for u in agent.uploads() if u.path == "raw/large.cbf"] == [upload.id], "it was begun twice"
    assert agent.log.count("small has arrived") == 1, "it was sent twice"


def test_the_service_is_killed_and_started_again(own_agent: RunningAgent) -> None:
    agent = own_agent
    agent.start()
    write_large(agent.data / "large.cbf")
    upload = agent.until_halfway()
    agent.service.kill()
    (agent.data / "meanwhile").write_text("meanwhile")
    agent.until(lambda: "can't be reached" in agent.log)
    agent.service.start()
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
    agent.start()
    write_large(agent.data / "large.cbf")
    agent.until_halfway()

    assert agent.stop() == 0
    assert "Traceback" not in agent.log
    assert agent.run("--once").returncode == 0
    agent.assert_all_there_once()


def test_a_file_belongs_to_the_experiment_that_was_active_when_it_began(agent: RunningAgent) -> None:
    sam = agent.service.client("sam")
    later = sam.create_experiment(agent.beamtime.instrument, "The next one", pi="ada").id
    agent.start()
    write_large(agent.data / "large.cbf")
    agent.until_halfway()
    agent.signal(signal.SIGSTOP)
    sam.activate(agent.beamtime.instrument, later)
    agent.signal(signal.SIGCONT)
    agent.until_arrived("large.cbf")

    agent.assert_all_there_once()
    assert agent.files(later) == {}


def test_a_file_that_has_to_begin_again_does_not_change_the_experiment(agent: RunningAgent) -> None:
    sam = agent.service.client("sam")
    later = sam.create_experiment(agent.beamtime.instrument, "The next one", pi="ada").id
    agent.start()
    write_large(agent.data / "large.cbf")
    upload = agent.until_halfway()
    agent.kill()
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
    agent.settings |= {"polling": "true", "rescan": "1"}
    agent.upload["limit"] = '"4 MB/s"'
    agent.tables = (
        '[[watch]]\npath = "near"\npolling = false\nsettle = 0.2\ngrow = ["*.log"]\n'
        '[done]\nlisten = "./done.sock"\n'
    )
    agent.wrapper = ["unshare", "-Urm", sys.executable, str(HANGING), str(agent.data), str(server)]
    agent.start()
    agent.until(lambda: sum(u.state is UploadState.RECEIVING and u.offset > 0 for u in agent.uploads()) == 2)
    number = int(server.read_text())
    try:
        os.kill(number, signal.SIGSTOP)  # all slots of one directory are taken
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
        os.kill(number, signal.SIGSTOP)
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


def test_more_watchers_than_the_kernel_allows(agent: RunningAgent) -> None:
    none = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    agent.wrapper = ["unshare", "-Ur", "sh", "-c", none, "sh"]
    agent.start()
    (agent.data / "a").write_text("a")
    agent.until_arrived("a")
    agent.until(lambda: agent.status is not None and "max_user_instances" in str(agent.status.errors))


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
