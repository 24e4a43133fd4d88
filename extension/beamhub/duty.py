"""Duty: which of several service processes runs the jobs. One at a time does, and when it dies another takes
over within seconds.

A process that dies loses its duty with its last breath: with SQLite the kernel gives up its lock on a file,
with PostgreSQL the database gives up the lock of its connection. Where a whole machine dies or is cut off,
keep-alive packets tell the database of it; by then the process itself, if it lives, has noticed and stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TextIO

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between looks whether the duty is free, or still ours
PATIENCE = 2.0  # seconds that the database may take to answer whoever is on duty
KEY = 0x6265616D687563  # of PostgreSQL's advisory lock; the store's writers have the one before
# seconds; a machine that is gone is noticed after LOOK + PATIENCE at the earliest
KEEPALIVE = "SET tcp_keepalives_idle = 2; SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 2"


def connect(database_url: str, lock: Path) -> Duty:
    """The duty of all services that share this database; with SQLite, also this file."""
    return DatabaseDuty(database_url) if database_url.startswith("postgresql") else FileDuty(lock)


class Duty(ABC):
    """One process's part in it."""

    def __init__(self) -> None:
        self.on = False  # this process is on duty

    async def serve(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Waits until this process is on duty, and does `work` as long as it is; again and again. Ends only
        when `work` does, and with its error."""
        try:
            while True:
                while not await self.take():  # noqa: ASYNC110 (others hold it in other processes)
                    await asyncio.sleep(LOOK)
                log.info("this process runs the jobs from now on")
                if await self._work(work):
                    return
                log.warning("the database is away: this process runs no jobs until it has the duty again")
                await self.give_up()
        finally:
            await self.give_up()

    async def _work(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Whether the work has ended by itself, rather than the duty."""
        self.on = True
        working, lost = asyncio.create_task(work()), asyncio.create_task(self._lost())
        try:
            await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return working.done()
        finally:
            self.on = False
            working.cancel()
            lost.cancel()
            await asyncio.gather(working, lost, return_exceptions=True)

    @abstractmethod
    async def take(self) -> bool:
        """Whether the duty is this process's now."""

    @abstractmethod
    async def _lost(self) -> None:
        """Returns when the duty is this process's no longer."""

    @abstractmethod
    async def give_up(self) -> None:
        """Lets another process have it."""


class FileDuty(Duty):
    """A lock on a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: TextIO | None = None

    async def take(self) -> bool:
        file = self._path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    async def _lost(self) -> None:
        await asyncio.Event().wait()  # nobody takes it away

    async def give_up(self) -> None:
        if self._file is not None:
            self._file.close()


class DatabaseDuty(Duty):
    """An advisory lock of PostgreSQL, on a connection of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url.replace("+psycopg", "", 1)
        self._connection: Any = None

    async def take(self) -> bool:
        import psycopg

        try:
            if self._connection is None:
                self._connection = await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, connect_timeout=10
                )
                await self._connection.execute(KEEPALIVE)
            answer = await self._connection.execute("SELECT pg_try_advisory_lock(%s)", [KEY])
            (taken,) = await answer.fetchone()
        except psycopg.Error as error:
            log.debug("the database can't be asked who runs the jobs: %s", error)
            await self.give_up()
            return False
        except BaseException:
            await self.give_up()
            raise
        return bool(taken)

    async def _lost(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            look = asyncio.create_task(self._look())
            done, _ = await asyncio.wait({look}, timeout=PATIENCE)
            if not done:
                look.cancel()
                return
            if not look.result():
                return

    async def _look(self) -> bool:
        """Whether the connection is still there, and with it the lock."""
        import psycopg

        try:
            await self._connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    async def give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                await connection.close()
