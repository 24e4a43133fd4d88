"""What a run of tests, benchmarks or pictures writes and starts: nothing of it stays. One that was killed
could not tidy; the next one does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

PREFIX = "beamhub-run-"
ALSO = "also"  # in the folder of a run: a link to another one that is the run's
PATIENCE = 10.0  # seconds for processes that are killed


@contextmanager
def temporary_folder(also: Path | None = None) -> Iterator[Path]:
    """A folder for all that is temporary in this process and in those that it starts. It ends with the
    context.

    Args:
        also: another folder that the next run removes if this one is killed.
    """
    place = Path(tempfile.gettempdir())
    with ExitStack() as stack:
        with _held(place, wait=True):  # nobody else tidies before the folder is held
            for left in place.glob(f"{PREFIX}*"):
                _tidy(left)
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            stack.callback(shutil.rmtree, folder)
            stack.enter_context(_held(folder))
            if also is not None:
                stack.enter_context(_held(also))
                (folder / ALSO).symlink_to(also.resolve())
        folder.chmod(0o711)  # PostgreSQL runs as a user of its own
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


def end_on_signals() -> None:
    """SIGTERM, and the end of the terminal, do what Ctrl-C does: what has been started is ended."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def _held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """This process has the folder, until it lets go or dies. Raises BlockingIOError if another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Ends what a run has left running and removes what it has left, if it has died."""
    for one in (folder / ALSO, folder):  # the link goes last
        # somebody has it, or it is gone, or somebody else's
        with contextlib.suppress(BlockingIOError, FileNotFoundError, PermissionError), _held(one):
            path = one.resolve()
            end = time.monotonic() + PATIENCE
            while (left := _started_for(path)) and time.monotonic() < end:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
            shutil.rmtree(path, onerror=_insist)


def _started_for(folder: Path) -> list[int]:
    """The processes whose temporary files are in the folder, and the sandboxes with something of it."""
    name = re.escape(bytes(folder)) + rb"(?:/|\0|$)"
    variable, argument = re.compile(rb"(?:^|\0)TMPDIR=" + name), re.compile(rb"\0" + name)
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            command = (entry / "cmdline").read_bytes()
            sandbox = command.startswith(b"bwrap\0") and argument.search(command)
            if sandbox or variable.search((entry / "environ").read_bytes()):
                found.append(int(entry.name))
    return found


def _insist(function: Callable[..., Any], path: str, _error: object) -> None:
    """Folders of jobs that have ended are read-only. What can't be removed is left to the next run."""
    with contextlib.suppress(OSError):
        if function in (os.unlink, os.rmdir):
            Path(path).parent.chmod(0o700)
            function(path)
