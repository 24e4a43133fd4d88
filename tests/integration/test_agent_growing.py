"""Files that are sent while they grow."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import httpx
import pytest
from beamhub.schemas import UploadState
from beamhub.testing import write_dataset

from tests.integration.agents import PATIENCE, RunningAgent, grown

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
    agent.settings["wait_for_files"] = "0"
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
