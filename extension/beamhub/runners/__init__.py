"""Where jobs run. A runner starts, watches and ends the processes of jobs; it knows nothing of the store.

A job is started in two steps, so that a service that is killed at any moment neither loses a job nor runs it
twice: `prepare` makes what waits to run and has done nothing yet, and returns how it can be found again; when
that has been remembered, `release` lets it go. What is never released never runs: it ends by itself, or the
next `prepare` of the same job takes it up.

No method blocks the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from beamhub.schemas import JobSpec, Profile, RunnerState

Ref = dict[str, JsonValue]


class Unavailable(Exception):  # noqa: N818 (reads as what happened)
    """The runner can't be reached or takes no more just now. Nothing has been started that runs; it is to be
    tried again later. The message is a sentence for people."""


class Phase(StrEnum):
    WAITING = "waiting"  # for its turn, in the runner's own queue
    RUNNING = "running"
    GONE = "gone"  # nothing of it runs any more, nor ever will
    UNKNOWN = "unknown"  # can't be told now


@dataclass(frozen=True)
class Status:
    """How a job is, as far as its runner knows.

    Times and CPU-seconds are given by runners that keep accounts of their own; otherwise they are None, and
    what the service and the job's folder know counts.
    """

    phase: Phase
    reason: str = ""  # a sentence: what it waits for, or why it was ended
    started: datetime | None = None
    ended: datetime | None = None
    cpu_seconds: int | None = None  # CPUs that were allocated x elapsed time
    exit_code: int | None = None  # of its first process; as a shell has it, where a signal ended it
    elapsed: float | None = None  # seconds since it was handed over, by a clock that nobody can set
    again: bool = False  # it is gone by no doing of its own, and may be started again


class Runner(Protocol):
    @property
    def cpus(self) -> int | None:
        """How many there are for all jobs together; None: the runner has a queue of its own."""

    async def prepare(self, spec: JobSpec, profile: Profile, experiment: Path) -> Ref:
        """What waits to run the job in `spec.folder`; of the data it will see the experiment's folder,
        read-only, and write to its own. Raises OSError if the job can't be started at all, Unavailable if it
        can't be now."""

    async def release(self, ref: Ref) -> None:
        """Lets what has been prepared go. A runner that can't be reached now does so later, when it is
        polled."""

    async def poll(self, refs: Sequence[Ref]) -> list[Status]:
        """How each of them is."""

    async def estimate(self, profile: Profile, instrument: str) -> datetime | None:
        """When a job that was handed over now would probably begin; None if the runner does not know. Raises
        Unavailable, and OSError if it would not take such a job."""

    async def state(self) -> RunnerState:
        """What there is for its jobs now. What jobs of a runner with `cpus` use is not known to it."""

    async def accounts(self, attempts: Sequence[tuple[int, str]]) -> list[int | None]:
        """CPU-seconds of attempts that are over, as the runner's own accounts have them by now; None where
        it has none. Each attempt is a job's id and the runner's own name for it, with which its reference
        begins. Raises Unavailable."""

    async def cancel(self, ref: Ref) -> None:
        """Ends all processes of the job, at once. `poll` tells when they are gone."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Has `callback` called in the event loop when `poll` may have something new to tell. A runner that
        does not learn of that by itself never does."""

    async def warm(self) -> None:
        """Does what can be done once to make all jobs start faster."""

    async def expect(self, experiments: Sequence[Path]) -> None:
        """Gets ready for jobs of these experiments' folders, and no others; again and again, as it may take
        several times. None at all: the service ends."""
