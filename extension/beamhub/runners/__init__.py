"""Where jobs run. A runner starts, watches and ends the processes of jobs; it knows nothing of the store.

A job is started in two steps, so that a service that is killed at any moment neither loses a job nor runs it
twice: `prepare` makes a process that waits and has done nothing yet, and returns how it can be found again;
when that has been remembered, `release` lets it go. A process whose service dies before the release ends
without having run.

All methods but `warm` may block: call them in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from beamhub.schemas import JobSpec, Profile

Ref = dict[str, JsonValue]


@dataclass(frozen=True)
class Status:
    """Of a job's processes: whether any is alive, and why the runner ended them if it did."""

    alive: bool
    reason: str = ""


class Runner(Protocol):
    cpus: int  # how many there are for all jobs together

    def prepare(self, spec: JobSpec, profile: Profile, experiment: Path) -> Ref:
        """A process that waits to run the job in `spec.folder`; of the data it will see the experiment's
        folder, read-only, and write to its own. Raises OSError."""

    def release(self, ref: Ref) -> None:
        """Lets a prepared process go."""

    def poll(self, refs: Sequence[Ref]) -> list[Status]:
        """How each of them is."""

    def cancel(self, ref: Ref) -> None:
        """Ends all processes of the job, at once. `poll` tells when they are gone."""

    async def warm(self) -> None:
        """Does what can be done once to make all jobs start faster."""
