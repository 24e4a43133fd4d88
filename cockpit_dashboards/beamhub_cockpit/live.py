"""Keeps a page current without ever blocking or racing its kernel.

Three threads, one duty each. The kernel's own loop alone touches widgets. One *worker* does everything
else, one thing after the other: it asks the service, changes what the page knows, and builds what is to
be shown; so nothing that the page knows needs a lock. One *listener* reads the service's event stream and
hands each message to the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Final, TypeVar

from beamhub.client import ApiError, Message, Unreachable

T = TypeVar("T")
TICK: Final = 2.0  # seconds
BREATH: Final = 0.2  # seconds between two drawings while things keep coming


class Live:
    """The worker and the listener of one page.

    Args:
        loop: the kernel's loop, on which widgets may be touched.
        draw: builds what is to be shown (on the worker) and returns what shows it (run on the loop).
        failed: told of an error in some work (on the worker).
        tick: called on the worker every couple of seconds.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        draw: Callable[[], Callable[[], None]],
        failed: Callable[[Exception], None],
        tick: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._draw = draw
        self._failed = failed
        self._tick = tick
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._following = threading.Event()
        self.heard = time.monotonic()  # when the listener last heard anything

    def start(self) -> None:
        threading.Thread(target=self._run, name="beamhub-worker", daemon=True).start()

    def stop(self) -> None:
        """Ends the worker after what is already queued, and the listener at its next message."""
        self._following.clear()
        self._work.put(None)

    def do(self, work: Callable[[], None]) -> None:
        """Have the worker do something; what it changes is drawn soon after. May be called on any thread."""
        self._work.put(work)

    def show(self, apply: Callable[[], None]) -> None:
        """Run something on the kernel's loop, where widgets may be touched. May be called on any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody looks any more
            self._loop.call_soon_threadsafe(apply)

    def call(self, make: Callable[[], T]) -> T:
        """Run something on the kernel's loop and wait for what it returns. On the worker only."""
        made: Future[T] = Future()

        def run() -> None:
            try:
                made.set_result(make())
            except Exception as error:
                made.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return made.result(timeout=30)

    def follow(self, messages: Callable[[], Iterator[Message]], handle: Callable[[Message], None]) -> None:
        """Listen from now on, unless already listening."""
        if self._following.is_set():
            return
        self._following.set()

        def listen() -> None:
            while self._following.is_set():
                try:
                    for message in messages():
                        if not self._following.is_set():
                            return
                        self.heard = time.monotonic()
                        self.do(lambda message=message: handle(message))  # type: ignore[misc]
                except (ApiError, Unreachable) as error:
                    self.do(lambda error=error: self._failed(error))  # type: ignore[misc]
                    time.sleep(TICK)

        threading.Thread(target=listen, name="beamhub-listener", daemon=True).start()

    @property
    def following(self) -> bool:
        return self._following.is_set()

    def pause(self) -> None:
        """Stop listening: nobody looks. `follow` starts again."""
        self._following.clear()

    def _run(self) -> None:
        drawn = 0.0
        changed = False
        ticked = time.monotonic()
        while True:
            wait = max(0.0, drawn + BREATH - time.monotonic()) if changed else TICK
            try:
                work = self._work.get(timeout=wait)
                if work is None:
                    return
                self._try(work)
                changed = True
            except queue.Empty:
                if not changed:
                    self._try(self._tick)
                    ticked = time.monotonic()
                    changed = True
            now = time.monotonic()
            if changed and now >= drawn + BREATH:
                self._try(lambda: self.show(self._draw()))
                drawn, changed = time.monotonic(), False
            if now - ticked > TICK:
                self._try(self._tick)
                ticked = now

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._failed(error)
