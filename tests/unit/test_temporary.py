"""Runs of tests that were killed: the next one removes what they have left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.temporary import PREFIX

# tells its folder and a process that it has started, and waits
RUN = """
import os, subprocess, sys, tempfile
from pathlib import Path
from tests.temporary import end_on_signals, temporary_folder

end_on_signals()
with temporary_folder(also=Path(sys.argv[1])) as folder:
    Path(tempfile.mkdtemp(), "file").touch()
    Path(sys.argv[1], "read only").mkdir()
    Path(sys.argv[1], "read only", "file").touch()
    Path(sys.argv[1], "read only").chmod(0o500)
    left = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        print(folder, left.pid, flush=True)
        sys.stdin.read()
    finally:
        left.kill()
        left.wait()
"""

Start = Callable[[str], tuple["subprocess.Popen[str]", Path, int]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a run, with a folder of this name that is also its own."""
    (tmp_path / "tmp").mkdir()
    runs = ExitStack()

    def start(name: str) -> tuple[subprocess.Popen[str], Path, int]:
        (tmp_path / name).mkdir()
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
            cwd=Path(__file__).parents[2],
        )
        runs.enter_context(run)
        runs.callback(run.kill)
        assert run.stdout
        folder, pid = run.stdout.readline().split()
        return run, Path(folder), int(pid)

    with runs:
        yield start


def end(run: subprocess.Popen[str]) -> None:
    run.communicate()
    assert run.returncode == 0


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "tmp").iterdir()}


def test_what_a_killed_run_has_left_goes_with_the_next(start: Start, tmp_path: Path) -> None:
    killed, folder, pid = start("killed")
    assert folder.parent == tmp_path / "tmp"
    assert folder.name.startswith(PREFIX)
    process = os.pidfd_open(pid)
    killed.kill()
    killed.communicate()
    assert left(tmp_path) == {folder.name}
    following, own, _ = start("following")
    assert left(tmp_path) == {own.name}
    assert not (tmp_path / "killed").exists()
    assert select.select([process], [], [], 60)[0], "its process lives on"
    os.close(process)
    end(following)
    assert left(tmp_path) == set()
    assert (tmp_path / "following").exists(), "it is for who wants to look why a test failed"


def test_what_runs_at_the_same_time_is_left_alone(start: Start, tmp_path: Path) -> None:
    first, one, pid = start("first")
    second, other, _ = start("second")
    assert left(tmp_path) == {one.name, other.name}
    os.kill(pid, 0)
    for run in (first, second):
        end(run)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_asked_to_end_tidies(start: Start, tmp_path: Path, number: int) -> None:
    run, _, pid = start("run")
    run.send_signal(number)
    run.communicate()
    assert run.returncode != 0
    assert left(tmp_path) == set()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
