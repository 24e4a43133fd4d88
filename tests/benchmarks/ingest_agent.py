"""The agent beside a detector: what it takes when nothing happens."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from beamhub.agent.file import look
from beamhub.agent.journal import Journal
from beamhub.schemas import AgentStatus
from beamhub.testing import Beamtime, RunningService, running_service

from tests.benchmarks.result import Result

WATCHED = 100_000  # files, in folders of 1000
SECONDS = 20.0


def rows() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name, running_service(Path(name) / "service") as service:
        yield from _idle(Path(name), service)


def _idle(folder: Path, service: RunningService) -> Iterator[Result]:
    """CPU of the agent's process over 20 s in which nothing happens; all files have arrived."""
    beamtime = service.beamtime()
    data = folder / "watched"
    journal = Journal(folder / "watched.sqlite", beamtime.instrument)
    for number in range(WATCHED):
        path = data / str(number // 1000) / f"{number}.cbf"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
        stamp = look(str(path))
        assert stamp
        journal.queue(str(path), stamp)
        journal.arrived(str(path))
    journal.close()
    for how in ("inotify", "polling"):
        with _agent(
            folder, service, beamtime, "watched", f"polling = {str(how == 'polling').lower()}"
        ) as agent:
            _until(lambda: _status(service, beamtime) is not None, agent)
            _until(partial(_quiet, agent), agent)
            before = _cpu(agent)
            time.sleep(SECONDS)
            used = 100 * (_cpu(agent) - before) / SECONDS
            peak = _peak(agent)
        what = f"agent, idle, {WATCHED:,} files watched by {how}"
        yield Result("ingest", what, used, "% of a core", 1.0)
        yield Result("ingest", f"its most memory ({how})", peak / 1e6, "MB", 150.0)


@contextmanager
def _agent(
    folder: Path, service: RunningService, beamtime: Beamtime, data: str, watch: str
) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "token").write_text(beamtime.agent_token)
    (folder / "token").chmod(0o600)
    config = folder / f"{data}.toml"
    config.write_text(
        f'[service]\nurl = "{service.url}"\ntoken_file = "token"\n'
        f'[instrument]\nid = "{beamtime.instrument}"\n'
        f'[journal]\npath = "{data}.sqlite"\n'
        f'[[watch]]\npath = "{data}"\n{watch}\n'
    )
    command = [sys.executable, "-m", "beamhub.cli", "sync", str(config)]
    with (folder / f"{data}.log").open("wb") as log, subprocess.Popen(command, stderr=log) as agent:
        yield agent
        if agent.returncode is None:
            agent.terminate()


def _status(service: RunningService, beamtime: Beamtime) -> AgentStatus | None:
    return service.client("sam").instrument(beamtime.instrument).agent


def _until(done: Callable[[], bool], agent: subprocess.Popen[bytes]) -> None:
    while not done():
        if agent.poll() is not None:
            raise SystemExit("the agent has ended")
        time.sleep(0.1)


def _quiet(agent: subprocess.Popen[bytes]) -> bool:
    """Has the first look at everything come to its end?"""
    before = _cpu(agent)
    time.sleep(1.0)
    return _cpu(agent) - before < 0.1


def _cpu(agent: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(agent: subprocess.Popen[bytes]) -> int:
    lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
