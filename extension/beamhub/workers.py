"""Workers: the threads in which all is done that waits for the disk, and what they hold meanwhile.

Who has asked for something may be cancelled at any moment; nothing is left held then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from beamhub.incoming import Held, Incoming
from beamhub.schemas import Upload

T = TypeVar("T")
THREADS = 4
BATCHES = 2  # prepared at a time; others wait for their turn
CLAIM = 0.01  # seconds between attempts to claim a name that somebody else is publishing under


class Workers:
    def __init__(self, data_dir: Path) -> None:
        self.incoming = Incoming(data_dir)
        self._threads = ThreadPoolExecutor(THREADS, "beamhub-upload")
        # threads of their own, which may wait for names: those who have the names need the others
        self._preparing = ThreadPoolExecutor(BATCHES, "beamhub-batch")
        # and those that receive or read large files, which are busy for long
        self._receivers = ThreadPoolExecutor(THREADS, "beamhub-receive")
        self._readers = ThreadPoolExecutor(THREADS, "beamhub-read")
        # by instrument: its storage may hang, and keeps only those waiting who read there
        self._elsewhere: dict[str | None, ThreadPoolExecutor] = {}

    def close(self) -> None:
        """Nothing may be asked for any more."""
        pools = (self._preparing, self._threads, self._receivers, self._readers, *self._elsewhere.values())
        for threads in pools:
            threads.shutdown()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def prepare(self, work: Callable[..., T], *arguments: object) -> T:
        """As `run`, for what may wait for names."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work, *arguments)

    async def whole(self, work: Callable[..., T], *arguments: object) -> T:
        """As `run`; a caller that is cancelled waits for the thread, which still uses what it was given."""
        return await self._ended(self._threads, work, *arguments)

    async def receive(self, work: Callable[..., T], *arguments: object) -> T:
        """As `whole`, for what may take long."""
        return await self._ended(self._receivers, work, *arguments)

    async def read(self, upload: Upload, work: Callable[..., T], *arguments: object) -> T:
        """As `whole`, for what reads a large file: this upload's."""
        threads = self._readers
        if upload.source is not None:
            if upload.instrument not in self._elsewhere:
                self._elsewhere[upload.instrument] = ThreadPoolExecutor(THREADS, "beamhub-elsewhere")
            threads = self._elsewhere[upload.instrument]
        return await self._ended(threads, work, *arguments)

    async def let_go(self, held: Held | contextlib.ExitStack) -> None:
        """What is closed last may free the place of a large file that has been given up, which takes long."""
        await self.whole(held.close)

    async def _ended(self, threads: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
        working = asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            raise

    async def held(self, hold: Callable[[Upload], Held], upload: Upload) -> Held:
        """As `hold` does, in a thread; a caller that is cancelled meanwhile leaves nothing held."""
        return await self._kept(asyncio.ensure_future(self.run(hold, upload)), Held.close)

    async def claim(self, upload: Upload) -> contextlib.ExitStack:
        """One upload at a time is published under a name, in all processes. To be left with `with`."""
        while True:
            claiming = asyncio.ensure_future(self.run(self.incoming.claim, upload.experiment, [upload.path]))
            claim = await self._kept(claiming, lambda claim: os.close(claim) if claim is not None else None)
            if claim is not None:
                stack = contextlib.ExitStack()
                stack.callback(os.close, claim)
                return stack
            await asyncio.sleep(CLAIM)

    async def _kept(self, making: asyncio.Future[T], end: Callable[[T], object]) -> T:
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(lambda made: made.exception() or end(made.result()))
            raise
