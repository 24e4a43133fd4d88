"""Programs that run beside each other and end together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beamhub_hub import guard

MARK = "BEAMHUB_DEMO"  # in the environment of all that belongs to one state folder, with that folder as value
GRACE = 5.0  # seconds that a program has for ending by itself


class Ended(Exception):  # noqa: N818 (reads as what happened)
    """A program ended that should have gone on."""


@dataclass(frozen=True)
class Program:
    """A running program under its guard."""

    name: str
    log: Path
    guard: subprocess.Popen[bytes]

    def check(self) -> None:
        """Raise Ended, with the last lines of its log, if the program isn't running any more."""
        code = self.guard.poll()
        if code is not None:
            raise Ended(f"{self.name} ended unexpectedly ({code}). {self.log} closes with:\n{self.tail()}")

    def tail(self, lines: int = 12) -> str:
        with self.log.open("rb") as stream:
            stream.seek(max(0, self.log.stat().st_size - 8192))
            return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


class Programs:
    """The programs of one state folder. Leaving the context ends them all."""

    def __init__(self, state: Path) -> None:
        self.state = state.resolve()
        self.running: list[Program] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Program:
        """Start a program; its output goes to `logs/<name>.log`."""
        log = self.state / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(GRACE), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), MARK: str(self.state)},
            )
        program = Program(name, log, process)
        self.running.append(program)
        return program

    def stop(self) -> None:
        """End all programs and wait until nothing is left of them."""
        for program in self.running:
            with contextlib.suppress(ProcessLookupError):
                program.guard.terminate()
        for program in self.running:
            program.guard.wait()
        self.running.clear()
        end_stale(self.state)


def end_stale(state: Path) -> int:
    """Kill what an earlier run on `state` left running, if its guards were killed too; the number of
    processes.
    """
    mark = f"{MARK}={state.resolve()}".encode()
    stale = [pid for pid in _processes() if pid != os.getpid() and mark in _environment(pid)]
    for pid in stale:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(mark in _environment(pid) for pid in stale) and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(stale)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    """The variables that a process was started with; none if it has ended or belongs to somebody else."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return []
