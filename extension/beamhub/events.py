"""Events: audit trail and live feed in one append-only log, and what is worth showing but not keeping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from beamhub.bus import Bus
from beamhub.schemas import Event
from beamhub.store import Store, Transaction

log = logging.getLogger(__name__)

BATCH = 100
GATHER = 0.02  # seconds between looks of a follower: what comes in quick succession is found at once
POLL = 2.0  # seconds; what other processes commit is told on the bus, which may fail
QUEUE = 256  # messages that wait for a slow subscriber


@dataclass(frozen=True)
class Scope:
    """What somebody may see of the log: the events of these experiments (None: of all), and those events of
    these instruments that belong to no experiment."""

    experiments: frozenset[str] | None
    instruments: frozenset[str] = frozenset()

    def admits(self, event: Event | Message) -> bool:
        """Whether this event or message may be seen."""
        if self.experiments is None or event.experiment in self.experiments:
            return True
        return event.experiment is None and event.instrument in self.instruments


EVERYTHING = Scope(None)


@dataclass(frozen=True)
class Message:
    """Something worth showing now, which is never stored: `upload.progress`, `job.progress`, `job.series`,
    `agent.heartbeat`, `experiment.progress`."""

    kind: str
    experiment: str | None
    instrument: str | None
    subject: str
    data: Mapping[str, Any]


def emit(
    tx: Transaction,
    kind: str,
    *,
    actor: str,
    instrument: str | None = None,
    experiment: str | None = None,
    subject: str = "",
    data: Mapping[str, Any] | None = None,
) -> Event:
    """Adds an event to the log, in the same transaction as the change that it tells of."""
    return tx.events.append(
        kind,
        actor=actor,
        instrument=instrument,
        experiment=experiment,
        subject=subject,
        data=dict(data or {}),
    )


def emit_all(
    tx: Transaction,
    kind: str,
    *,
    actor: str,
    instrument: str | None,
    experiment: str | None,
    data: Mapping[str, Mapping[str, Any]],
) -> None:
    """As `emit`, for many subjects at once: subject -> data."""
    tx.events.append_all(
        kind,
        actor=actor,
        instrument=instrument,
        experiment=experiment,
        data={subject: dict(one) for subject, one in data.items()},
    )


class Feed:
    """The log as it grows, for any number of followers: each event once, in order, none left out."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._wakes = 0
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        store.on_commit(self.wake)

    def wake(self) -> None:
        """Something may have been committed. May be called on any thread."""
        with self._lock:
            self._wakes += 1
            for loop, waiter in self._waiting:
                with contextlib.suppress(RuntimeError):  # the loop has been closed, and its follower with it
                    loop.call_soon_threadsafe(waiter.set)

    async def follow(
        self, after: int, scope: Callable[[Transaction], Scope] | None = None
    ) -> AsyncIterator[Event]:
        """As `gatherings`, one by one."""
        async with aclosing(self.gatherings(after, scope)) as gatherings:
            async for events in gatherings:
                for event in events:
                    yield event

    async def gatherings(
        self, after: int, scope: Callable[[Transaction], Scope] | None = None
    ) -> AsyncGenerator[Sequence[Event]]:
        """The committed events newer than `after`, then new ones as they are committed, without end: those
        that one look has found, at least one.

        `scope` says what the follower may see; it is asked again with each look at the log, on the same
        snapshot, so that a change of membership counts at once. None: everything.
        """

        def look(tx: Transaction) -> tuple[Sequence[Event], int]:
            seen = scope(tx) if scope else EVERYTHING
            found = tx.events.after(
                after, limit=BATCH, experiments=seen.experiments, instruments=seen.instruments
            )
            # what lies behind a full batch has not been looked at; behind any other nothing is left
            return found, found[-1].id if len(found) == BATCH else tx.events.head()

        while True:
            wakes = self._wakes
            found, after = await self._store.read(look)
            if found:
                yield found
            if len(found) < BATCH:
                await asyncio.sleep(GATHER)
                await self._wait(wakes)

    async def _wait(self, wakes: int) -> None:
        """Until something is committed after `wakes`, or the time to look has come anyway."""
        waiter = asyncio.Event()
        entry = (asyncio.get_running_loop(), waiter)
        with self._lock:
            if self._wakes != wakes:
                return
            self._waiting.add(entry)
        try:
            async with asyncio.timeout(POLL):
                await waiter.wait()
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(entry)


_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


class Live:
    """Fan-out of messages that are never stored. A subscriber that is too slow loses its oldest ones. With a
    bus, the subscribers of other processes hear them too."""

    def __init__(self, bus: Bus | None = None) -> None:
        self._bus = bus
        if bus is not None:
            bus.on_message(self._told)
        self._lock = threading.Lock()
        self._subscribers: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[Message]]] = set()

    def publish(
        self,
        kind: str,
        *,
        experiment: str | None,
        instrument: str | None,
        subject: str,
        data: Mapping[str, Any],
    ) -> None:
        """Hands a message to all who listen now. May be called on any thread."""
        message = Message(kind, experiment, instrument, subject, data)
        self._hand_out(message)
        if self._bus is not None:
            self._bus.tell(_MESSAGE.dump_json(message))

    def _told(self, text: bytes) -> None:
        try:
            self._hand_out(_MESSAGE.validate_json(text))
        except ValidationError as error:
            log.warning("another process told what is no message: %s", error)

    def _hand_out(self, message: Message) -> None:
        with self._lock:
            for loop, queue in self._subscribers:
                with contextlib.suppress(
                    RuntimeError
                ):  # the loop has been closed, and its subscriber with it
                    loop.call_soon_threadsafe(_offer, queue, message)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[Message]]:
        """`with live.subscribe() as queue: message = await queue.get()`"""
        entry = (asyncio.get_running_loop(), asyncio.Queue[Message](QUEUE))
        with self._lock:
            self._subscribers.add(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._subscribers.discard(entry)


def _offer(queue: asyncio.Queue[Message], message: Message) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(message)
