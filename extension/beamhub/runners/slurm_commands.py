"""Slurm's commands: how they are called, and whether one has said no, or nobody could answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping
from datetime import UTC, datetime

from beamhub.runners import Unavailable
from beamhub.runners.slurm_words import clock
from beamhub.text import one_line

# What these commands say when nobody could answer, or no more is taken for now; all else is a refusal.
LATER_MAYBE = re.compile(
    r"unable to contact|connect failure|connection refused|communication|timed out|zero bytes|temporarily|"
    r"socket|try again|MaxSubmit|protocol authentication|munge|backup controller",
    re.IGNORECASE,
)
PREFIX = re.compile(r"^\w+: error: (Batch job submission failed: )?")  # of what they say


class Refused(Exception):  # noqa: N818 (reads as what happened)
    """A command of Slurm said no; the message is what it said."""


class Commands:
    """Calls them, each with this environment and for so many seconds at most."""

    def __init__(self, environment: Mapping[str, str], timeout: float) -> None:
        self._environment = environment
        self._timeout = timeout
        self.silent: datetime | None = None  # since when Slurm has not answered

    async def call(self, *argv: str, errors: bool = False) -> str:
        """What the command prints; with `errors`, what it prints there. Raises Refused or Unavailable, and
        OSError where it is not installed."""
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise OSError(f"Slurm's command {argv[0]} is not installed on the service's machine") from error
        try:
            async with asyncio.timeout(self._timeout):
                output, complaints = await process.communicate()
        except TimeoutError as error:
            self.silent = self.silent or datetime.now(UTC)
            raise Unavailable(self.silence()) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        lines = (PREFIX.sub("", line).strip() for line in complaints.decode(errors="replace").splitlines())
        told = one_line("; ".join(filter(None, lines)), 500)
        if process.returncode == 0:
            self.silent = None
            return told if errors else output.decode(errors="replace")
        if LATER_MAYBE.search(told):
            if "MaxSubmit" in told:
                raise Unavailable(f"Slurm takes no more jobs for now: {told}.")
            self.silent = self.silent or datetime.now(UTC)
            raise Unavailable(self.silence())
        self.silent = None
        raise Refused(told.removesuffix(".") or f"{argv[0]} failed ({process.returncode})")

    def silence(self) -> str:
        """A sentence about it, as long as Slurm does not answer."""
        now = datetime.now(UTC)
        return f"Slurm has not answered since {clock(self.silent or now, now)}; its jobs are as they were."
