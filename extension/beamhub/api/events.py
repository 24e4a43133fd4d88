"""Routes of the log: pages of it, and the live feed.

What a caller may see is asked anew with every look at the log and for every unstored message, so that a
change of membership counts at once, on feeds that are open too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from pydantic import Field, JsonValue, TypeAdapter

from beamhub import access
from beamhub.access import Action
from beamhub.api.routes import Call, EventStream, Paging, route
from beamhub.errors import Invalid
from beamhub.events import Message, Scope
from beamhub.schemas import Event, Page
from beamhub.store import Transaction

HEARTBEAT = 10.0  # seconds between comments that keep idle connections open
LIFETIME = 600.0  # seconds; a client that goes on afterwards has its credentials checked again
_JSON: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class EventQuery(Paging):
    after: str | None = Field(None, pattern="^[0-9]{1,18}$", description="id of the last event already known")
    experiment: str | None = Field(None, description="only this experiment's")


@route("GET", "events", media=("text/event-stream",))
async def list_events(call: Call, query: EventQuery) -> Page[Event] | EventStream:
    """What has happened, oldest first; with `Accept: text/event-stream`, what happens from now on.

    As server-sent events, stored events carry their id, so that `Last-Event-ID` (or `after`) resumes where a
    connection broke; progress messages, which are not stored, carry none.
    """
    if "text/event-stream" in call.headers.get("Accept", ""):
        return await _feed(call, query)
    return await _page(call, query)


@route("GET", "audit")
async def audit(call: Call, query: EventQuery) -> Page[Event]:
    """The audit trail: who did what, when. Staff see their instruments', operators the whole facility's."""
    staff = await call.service.store.read(lambda tx: access.staff_of(tx, call.principal))
    if not staff:
        access.require_operator(call.principal)
    return await _page(call, query)


async def _page(call: Call, query: EventQuery) -> Page[Event]:
    def work(tx: Transaction) -> Page[Event]:
        scope = _scope(tx, call, query.experiment)
        return tx.events.page(
            after=int(query.after or 0),
            limit=query.limit,
            experiments=scope.experiments,
            instruments=scope.instruments,
        )

    return await call.service.store.read(work)


async def _feed(call: Call, query: EventQuery) -> EventStream:
    known = call.headers.get("Last-Event-ID") or query.after
    if known is not None and not (known.isascii() and known.isdigit() and len(known) < 19):
        raise Invalid("Last-Event-ID is not the id of an event.", "Leave it out to start from now.")

    def work(tx: Transaction) -> int:
        _scope(tx, call, query.experiment)  # may the caller listen here at all?
        return tx.events.head()

    head = await call.service.store.read(work)
    return EventStream(_blocks(call, query.experiment, head if known is None else int(known)))


async def _blocks(call: Call, experiment: str | None, after: int) -> AsyncGenerator[str]:
    """The blocks of a text/event-stream. The first only tells from where a broken connection can resume."""
    yield f"retry: 1000\nid: {after}\n\n"
    store, feed, live = call.service.store, call.service.feed, call.service.live
    deadline = asyncio.get_running_loop().time() + LIFETIME
    events = feed.gatherings(after, lambda tx: _scope(tx, call, experiment))
    with live.subscribe() as messages:
        stored = asyncio.create_task(_next(events))
        unstored: asyncio.Task[Message] = asyncio.create_task(messages.get())
        try:
            while asyncio.get_running_loop().time() < deadline:
                done, _ = await asyncio.wait(
                    {stored, unstored}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    yield ": still here\n\n"
                if stored in done:
                    yield "".join(map(_stored, stored.result()))
                    stored = asyncio.create_task(_next(events))
                if unstored in done:
                    batch = [unstored.result()]
                    while not messages.empty():
                        batch.append(messages.get_nowait())
                    scope = await store.read(lambda tx: _scope(tx, call, experiment))
                    seen = [message for message in batch if _visible(scope, message)]
                    if seen:
                        yield "".join(_block(message.kind, _content(message)) for message in seen)
                    unstored = asyncio.create_task(messages.get())
        finally:
            stored.cancel()
            unstored.cancel()
            await asyncio.wait({stored, unstored})
            await events.aclose()


async def _next(events: AsyncIterator[Sequence[Event]]) -> Sequence[Event]:
    return await anext(events)


def _scope(tx: Transaction, call: Call, experiment: str | None) -> Scope:
    """What the caller may see now. Raises NotFound where that excludes the one experiment asked for."""
    if experiment is None:
        return access.scope(tx, call.principal)
    access.require(tx, call.principal, experiment, Action.READ)
    return Scope(frozenset({experiment}))


def _visible(scope: Scope, message: Message) -> bool:
    if scope.experiments is None:
        return True
    if message.experiment is not None:
        return message.experiment in scope.experiments
    return message.instrument in scope.instruments


def _content(message: Message) -> dict[str, Any]:
    return {
        "experiment": message.experiment,
        "instrument": message.instrument,
        "subject": message.subject,
        "data": dict(message.data),
    }


def _stored(event: Event) -> str:
    data = event.model_dump_json(exclude={"id"})
    return f"event: {event.kind}\nid: {event.id}\ndata: {data}\n\n"


def _block(kind: str, content: dict[str, Any]) -> str:
    data = _JSON.dump_json(content).decode()  # one line: JSON escapes line breaks
    return f"event: {kind}\ndata: {data}\n\n"
