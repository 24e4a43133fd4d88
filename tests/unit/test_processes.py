"""Programs under guard: they end, with all that they started, when they are told to and when their parent
dies.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from beamhub_hub import guard
from beamhub_hub.processes import Ended, Programs, end_stale

# starts a daemon in a session of its own that ignores every polite signal, tells its pid, and waits
STUBBORN = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with open(sys.argv[1], "w") as pipe:
        pipe.write(str(os.getpid()))
    time.sleep(600)
time.sleep(600)
"""

PARENT = """
import sys, time
from pathlib import Path
from beamhub_hub.processes import Programs
Programs(Path(sys.argv[1])).start("stubborn", sys.argv[2:])
time.sleep(600)
"""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pid"
    os.mkfifo(path)
    return path


def gone(pid: int) -> bool:
    """Wait for the end of any process, not only of a child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 120)[0])
    finally:
        os.close(handle)


def test_stop_ends_what_a_program_left_behind(tmp_path: Path, fifo: Path) -> None:
    with Programs(tmp_path / "state") as programs:
        programs.start("stubborn", [sys.executable, "-c", STUBBORN, str(fifo)])
        daemon = int(fifo.read_text())
    assert gone(daemon)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_parent(tmp_path: Path, fifo: Path, number: int) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PARENT,
            str(tmp_path / "state"),
            *[sys.executable, "-c", STUBBORN, str(fifo)],
        ]
    )
    daemon = int(fifo.read_text())
    parent.send_signal(number)
    parent.wait()
    assert gone(daemon)


def test_the_program_ends_when_its_guard_is_killed_and_the_rest_at_the_next_start(
    tmp_path: Path, fifo: Path
) -> None:
    state = tmp_path / "state"
    programs = Programs(state)
    program = programs.start("stubborn", [sys.executable, "-c", STUBBORN, str(fifo)])
    daemon = int(fifo.read_text())
    program.guard.kill()
    program.guard.wait()
    assert end_stale(tmp_path / "another") == 0
    assert end_stale(state) >= 1
    assert gone(daemon)


def test_an_unexpected_end_is_told_with_the_log(tmp_path: Path) -> None:
    with Programs(tmp_path) as programs:
        program = programs.start("hub", [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"])
        program.guard.wait()
        with pytest.raises(Ended, match=r"hub ended unexpectedly \(3\).*\n.*no such thing"):
            program.check()


def test_a_program_hears_sigint_although_the_demo_was_started_in_the_background(tmp_path: Path) -> None:
    shown = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Programs(tmp_path) as programs:
            program = programs.start("signals", [sys.executable, "-c", shown])
            assert program.guard.wait() == 0
            assert program.tail() == "True"
    finally:
        signal.signal(signal.SIGINT, before)


def test_descendants_of_nobody() -> None:
    assert guard.descendants(2**22 + 1) == []


def test_the_guard_needs_its_parent(tmp_path: Path) -> None:
    touch = "from pathlib import Path; import sys; Path(sys.argv[1]).touch()"
    made: Callable[[], bool] = (tmp_path / "made").exists
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            guard.__file__,
            "1",
            "1",
            sys.executable,
            "-c",
            touch,
            str(tmp_path / "made"),
        ],
        check=False,
    )
    assert done.returncode == 1
    assert not made()
