"""What looks into HDF5 files for the agent: a child process with bounded memory and time, since a file may
crash its reader. So the agent itself stays small, too."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TypeVar

from pydantic import ValidationError

from beamhub.frames.bounded import BEGUN, START
from beamhub.frames.growing import Growing
from beamhub.schemas import Model

MEMORY = 1 << 30  # bytes of the child's address space
SECONDS = 20.0  # for one file, of the clock and of the CPU
REST = 60.0  # seconds without a question, after which the child ends
PARTING = 1.0  # seconds for a child that is killed
CRASHED = "exhausts or crashes what looks into it"


class Question(Model):
    """What the child is asked about the file `path`, which must lie below `root`.

    Args:
        begin: which frames are there from this one on; None: whether the file is complete.
    """

    path: str
    root: str
    begin: int | None = None


class Verdict(Model):
    """What a look into a file has shown.

    Args:
        problem: why the file isn't complete; "" if it is.
        hopeless: no waiting will change that.
        sources: what it points to, relative to its folder.
    """

    problem: str = ""
    hopeless: bool = False
    sources: tuple[str, ...] = ()


class Listing(Model):
    """The frames of a file that is still written.

    Args:
        problem: why they can't be told; "" if they can.
        hopeless: no waiting will change that.
        inode: of the file that has been looked into.
        growing: None while there are none.
        seconds: of CPU that it has taken.
    """

    problem: str = ""
    hopeless: bool = False
    inode: int = 0
    growing: Growing | None = None
    seconds: float = 0.0


A = TypeVar("A", Verdict, Listing)


class Reader:
    """Looks into HDF5 files, one at a time, in a child process that lives on between them."""

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self._memory = memory
        self._seconds = seconds
        self._child: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()
        self._asked = asyncio.Event()

    async def look(self, path: str, root: str) -> Verdict:
        """A verdict on the file `path` below `root`. A file that is too much for the child is hopeless."""
        return await self._ask(Question(path=path, root=root), Verdict)

    async def frames(self, path: str, root: str, begin: int) -> Listing:
        """The frames of a file that is still written, from `begin` (from 0) on."""
        return await self._ask(Question(path=path, root=root, begin=begin), Listing)

    async def rest(self, after: float = REST) -> None:
        """Ends the child whenever it has not been asked for so long, until this is cancelled; the next
        question starts another."""
        while True:
            self._asked.clear()
            try:
                async with asyncio.timeout(after):
                    await self._asked.wait()
            except TimeoutError:
                async with self._asking:
                    await self.close()
                await self._asked.wait()

    async def close(self) -> None:
        if (child := self._child) is None:
            return
        if child.returncode is None:
            child.kill()
        with contextlib.suppress(TimeoutError):  # one that waits for a disk ends when that answers
            async with asyncio.timeout(PARTING):
                await child.wait()
        if child.stdin is not None:
            child.stdin.close()
        self._child = None  # only now: whoever is kept from all this leaves it to the next

    async def _ask(self, question: Question, answer: type[A]) -> A:
        async with self._asking:
            self._asked.set()
            tried_before = self._child is not None
            try:
                line = await self._exchange(question)
                if not line and tried_before:  # it may have died of something else in the meantime
                    line = await self._exchange(question)
            except TimeoutError:
                await self.close()
                return answer(problem=f"takes more than {self._seconds:g} s to look into", hopeless=True)
            except asyncio.CancelledError:
                await self.close()
                raise
            try:
                return answer.model_validate_json(line)
            except ValidationError:
                await self.close()
                return answer(problem=CRASHED, hopeless=True)

    async def _exchange(self, question: Question) -> bytes:
        """The child's answer; b"" if it died over the question. Raises TimeoutError."""
        if self._child is None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                f"{__package__}.hdf5",
                str(self._memory),
                str(int(self._seconds)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
                # nothing of the agent's environment; no filter plugins; no threads' arenas
                env={"OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::", "LC_ALL": "C.UTF-8"},
                # or all of the agent waits until the child has closed what it inherited, which a file system
                # that hangs keeps it from (nor may it be the child's session); all closes by itself anyway
                close_fds=False,
            )
        child = self._child
        assert child.stdin  # noqa: S101 (a pipe)
        assert child.stdout  # noqa: S101
        try:
            async with asyncio.timeout(START):  # which is no fault of the file
                child.stdin.write(question.model_dump_json().encode() + b"\n")
                await child.stdin.drain()
                line = await child.stdout.readline()
            if line == BEGUN:
                end = time.monotonic() + self._seconds
                async with asyncio.timeout(self._seconds):
                    line = await child.stdout.readline()
                if time.monotonic() > end:
                    raise TimeoutError
        except (ConnectionError, ValueError):  # ValueError: an endless line
            line = b""
        if not line:
            await self.close()
        return line
