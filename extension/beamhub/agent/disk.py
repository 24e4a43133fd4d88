"""Threads for what may keep whoever does it waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

PARTING = 1.0  # seconds for the last answers

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """Whatever touches a watched directory is done in its threads: a file server that is gone keeps whoever
    asks it waiting, for ever, and must not keep those who see to other directories.

    Args:
        threads: at most so many questions at a time; more wait for an answer to an earlier one.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._asked = set[Future[Any]]()

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Asks in a thread; nobody needs to wait for the answer."""
        asked = self._pool.submit(partial(function, *args, **kwargs))
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        return asyncio.wrap_future(asked)

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer of a function that is called in a thread."""
        return await self.begin(function, *args, **kwargs)

    async def close(self) -> bool:
        """Takes no more questions. Whether all that were asked are answered; one that hangs may stay."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if asked := [asyncio.wrap_future(future) for future in list(self._asked)]:
            await asyncio.wait(asked, timeout=PARTING)
        return not self._asked
