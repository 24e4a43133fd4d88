"""How the local runner finds a job's processes among all of the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from beamhub.runners import Phase, Ref
from beamhub.runners import local as module
from beamhub.runners.local import LocalRunner, _descendants, _family, _process, _processes, _set_niceness

# a job whose processes start others: from a thread, and in sessions of their own
BRANCHED = """
import subprocess, sys, threading

def branch():
    sleeps = "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True).wait()"
    with subprocess.Popen([sys.executable, "-c", sleeps], start_new_session=True) as child:
        child.wait()

threading.Thread(target=branch).start()
subprocess.Popen(["sh", "-c", "sleep 600 & wait"]).wait()
"""

# a process that starts others, all the time, which leave its group at once
SWARMING = """
import os, signal, time

print("begun", flush=True)
end = time.monotonic() + 0.3
while time.monotonic() < end:
    if not os.fork():
        os.setsid()
        signal.pause()
print("done", flush=True)
signal.pause()
"""


@pytest.fixture
def job() -> Iterator[Ref]:
    """Five processes."""
    with subprocess.Popen([sys.executable, "-c", BRANCHED], start_new_session=True) as first:
        process = _process(first.pid)
        assert process
        while len(family := _descendants([first.pid], list(_processes()))) < 5:
            assert first.poll() is None
        yield {"pid": first.pid, "start_time": process.start_time, "memory": 1 << 30}
        for pid in family:
            with suppress(ProcessLookupError):  # it has ended by itself, for what it waited for has
                os.kill(pid, signal.SIGKILL)


def test_a_jobs_processes_are_found_without_a_look_at_all_others(
    job: Ref, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = list(_processes())
    assert _family(job) == _descendants([int(str(job["pid"]))], everything)
    runner = LocalRunner(1, tmp_path / "state", tmp_path / "data", warm=False, require_sandbox=True)

    def all_of_the_machine() -> None:
        raise AssertionError

    monkeypatch.setattr(module, "_processes", all_of_the_machine)
    [status] = asyncio.run(runner.poll([job]))
    assert status.phase is Phase.RUNNING


def test_another_process_has_no_part_in_a_job(job: Ref) -> None:
    assert _family({**job, "start_time": 0}) == set()
    assert _family({**job, "boot": "another"}) == set()


def test_where_the_kernel_does_not_tell_of_children_all_are_looked_at(
    job: Ref, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHILDREN", False)
    runner = LocalRunner(1, tmp_path / "state", tmp_path / "data", warm=False)
    assert _family(job) == set()
    [status] = asyncio.run(runner.poll([job]))
    assert status.phase is Phase.RUNNING


def test_what_is_started_meanwhile_has_the_niceness_too() -> None:
    with subprocess.Popen([sys.executable, "-c", SWARMING], stdout=subprocess.PIPE) as swarm:
        assert swarm.stdout
        swarm.stdout.readline()
        _set_niceness(swarm.pid, 7)
        swarm.stdout.readline()
        everything = list(_processes())
        family = _descendants([swarm.pid], everything)
        for pid in family:
            os.kill(pid, signal.SIGKILL)
    assert len(family) > 1
    assert {process.nice for process in everything if process.pid in family} == {7}
