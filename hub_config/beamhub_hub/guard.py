"""Runs one program and ends with it, or ends it: nothing that the program started outlives this process's
parent.

`python -I -S guard.py PARENT_PID GRACE COMMAND…` (plain Python without packages, so that it costs nothing
to start). Whatever the program leaves behind, daemons and sessions of their own included, becomes a child
of the guard, as the guard is a *subreaper*; so it can end all of it. The kernel tells the guard when its
parent dies, even of `kill -9`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOP = {signal.SIGTERM, signal.SIGHUP}
# the terminal sends SIGINT to all; the parent decides what ends when, and in which order
HEARD = {*STOP, signal.SIGINT, signal.SIGCHLD}


def prctl(option: int, value: int) -> None:
    """The system call; OSError if it fails."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def run(parent: int, grace: float, command: list[str]) -> int:
    """Run `command`, at most until SIGTERM comes or `parent` dies; its exit code, once nothing is left of it.

    Args:
        grace: seconds between the program's own SIGTERM and the end of everything that is still there.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # died before the kernel was asked to tell
        return 1
    program = subprocess.Popen(command, start_new_session=True, preexec_fn=_own_signals)
    while program.poll() is None:
        heard = signal.sigwait(HEARD)
        if heard in STOP:
            program.terminate()
            _wait(program, grace)
            break
        if heard == signal.SIGCHLD:
            _reap(program.pid)
    _end_rest()
    return program.wait()


def _own_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    for number in HEARD:
        signal.signal(number, signal.SIG_DFL)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(program: subprocess.Popen[bytes], grace: float) -> None:
    end = time.monotonic() + grace
    while program.poll() is None and (left := end - time.monotonic()) > 0:
        signal.sigtimedwait([signal.SIGCHLD], left)


def _end_rest() -> None:
    """Kill all descendants, and whatever they start meanwhile, until there are none."""
    while children := descendants(os.getpid()):
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _reap(program: int) -> None:
    """Collect adopted children that have ended; the program's own end is Popen's to notice."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == program:
                return
            os.waitpid(ended.si_pid, 0)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, parents first."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in children for found in (child, *descendants(child))]


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
