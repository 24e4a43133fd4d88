"""Interpreters that wait for a job, so that it begins as soon as it is let go.

Each waits in a sandbox of its own, with all imported that notebooks usually need, and a kernel that answers.
What a sandbox sees is fixed when it is made: so there are some for each experiment that jobs are expected of,
and each has a folder already that becomes the job's when it is used. The folder is renamed then, and what is
mounted in the sandbox goes with it. An interpreter serves one job, and no code of anybody has run in it
before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beamhub.folders import PROCESSED
from beamhub.run import READY

log = logging.getLogger(__name__)

SLOTS = ".slots"  # in an experiment's folder of jobs
REST = 60.0  # seconds after which it is tried again what has failed
SPARE = 8  # the part of the machine's memory, 1/8, that those who wait leave free


@dataclass(frozen=True)
class Slot:
    """An interpreter that waits."""

    experiment: Path
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def ready(self) -> bool:
        return (self.folder / READY).exists()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # there are others
            self.folder.parent.rmdir()


class Pool:
    """All methods block for some milliseconds, and may be called from any thread.

    Args:
        data_dir: the folder of all experiments.
        size: how many wait for each experiment.
        limit: how many wait altogether.
        spawn: starts an interpreter that waits in a folder, for a job of an experiment.
    """

    def __init__(
        self, data_dir: Path, size: int, limit: int, spawn: Callable[[Path, Path], subprocess.Popen[bytes]]
    ) -> None:
        self._data_dir = data_dir
        self._size = size
        self._limit = limit
        self._spawn = spawn
        self._slots: deque[Slot] = deque()  # the oldest first
        self._alone = False  # the slots of services before this one are gone
        self._rests = 0.0  # until when, monotonic
        self._lock = threading.Lock()

    def expect(self, experiments: Sequence[Path]) -> None:
        """Has interpreters wait for jobs of these experiments and no others. One at a time is made: call it
        again and again."""
        with self._lock:
            for slot in list(self._slots):
                if slot.process.poll() is not None:
                    self._give_up(f"one has ended by itself: {_tail(slot.folder / 'log.txt')}")
                if slot.process.returncode is not None or slot.experiment not in experiments or _short():
                    self._slots.remove(slot)
                    slot.end()
            if experiments and not self._alone:
                for left in self._data_dir.glob(f"*/{PROCESSED}/{SLOTS}"):
                    shutil.rmtree(left, ignore_errors=True)
            self._alone = bool(experiments)
            wanted = self._wanted(experiments)
            if wanted is not None and all(slot.ready for slot in self._slots) and not _short():
                self._add(wanted)

    def take(self, folder: Path, experiment: Path) -> subprocess.Popen[bytes] | None:
        """An interpreter for the job that has been laid into `folder`; None if none is ready. (Until it is,
        its sandbox may still have to be made, of a folder that has to be where it was.)"""
        with self._lock:
            for slot in [slot for slot in self._slots if slot.experiment == experiment and slot.ready]:
                self._slots.remove(slot)
                if slot.process.poll() is None:
                    self._move(folder, slot)
                    return slot.process
                slot.end()
        return None

    def ready(self, experiment: Path) -> int:
        """How many wait for jobs of an experiment and have nothing left to do before."""
        with self._lock:
            return sum(slot.ready for slot in self._slots if slot.experiment == experiment)

    def _wanted(self, experiments: Sequence[Path]) -> Path | None:
        """The experiment that most lacks one who waits."""
        if not experiments or len(self._slots) >= self._limit or time.monotonic() < self._rests:
            return None
        waiting = [slot.experiment for slot in self._slots]
        poorest = min(experiments, key=waiting.count)
        return poorest if waiting.count(poorest) < self._size else None

    def _add(self, experiment: Path) -> None:
        folder = _slots(experiment) / secrets.token_hex(8)
        try:
            folder.mkdir(parents=True)
            self._slots.append(Slot(experiment, folder, self._spawn(folder, experiment)))
        except OSError as error:
            self._give_up(str(error))

    def _move(self, folder: Path, slot: Slot) -> None:
        """Makes the slot's folder the job's."""
        try:
            (slot.folder / READY).unlink(missing_ok=True)
            for path in folder.iterdir():
                path.rename(slot.folder / path.name)
            slot.folder.rename(folder)
        except OSError:
            slot.end()
            self._size = 0  # this storage can't do it, and never will
            raise

    def _give_up(self, reason: str) -> None:
        log.warning("jobs start more slowly for a while, as no interpreters wait for them: %s", reason)
        self._rests = time.monotonic() + REST


def _slots(experiment: Path) -> Path:
    return experiment / PROCESSED / SLOTS


def _short() -> bool:
    """Whether memory is needed for something better."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {line[0]: int(line[1]) for line in lines}
    return sizes["MemAvailable:"] < sizes["MemTotal:"] // SPARE


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-500:].strip() or "it has said nothing"
    return "its log is gone"
