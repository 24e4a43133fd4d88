"""What happens, as it happens."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

from beamhub.client.wire import ApiError, Pauses, Unreachable, Wire
from beamhub.schemas import Event


@dataclass(frozen=True)
class Message:
    """One message of the live feed. Stored events have an `id`; progress and the like are not kept, and have
    none."""

    id: int | None
    kind: str
    experiment: str | None = None
    instrument: str | None = None
    subject: str = ""
    actor: str = ""
    time: datetime | None = None
    data: dict[str, Any] = field(default_factory=dict)


class Events(Wire):
    def past_events(
        self, experiment: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Stored events after the one with id `after`, oldest first."""
        return self._list(Event, "events", limit, experiment=experiment, after=after)

    def events(
        self, experiment: str | None = None, last_id: int | None = None
    ) -> Generator[Message, None, None]:
        """What happens from now on (or after event `last_id`), as it happens; never ends by itself.

        Breaks of the connection are bridged: no stored event is lost or told twice. A refusal is raised.
        Close it where it outlives its loop (`contextlib.closing`): its connection stays open until then.
        """
        pauses = Pauses()
        params = {"experiment": experiment} if experiment else {}
        while True:
            headers = {"Accept": "text/event-stream"} | (
                {} if last_id is None else {"Last-Event-ID": str(last_id)}
            )
            try:
                with self._stream(
                    "events", params=params, headers=headers, timeout=httpx.Timeout(30.0, connect=10.0)
                ) as answer:
                    for message in messages(answer.iter_lines()):
                        pauses.reset()
                        if message.id is not None:
                            last_id = message.id
                        if message.kind:
                            yield message
            except ApiError as error:
                if error.status < 500:
                    raise
            except Unreachable:
                if last_id is None:  # never connected: nothing to resume
                    raise
            pauses.wait()


def messages(lines: Iterator[str]) -> Iterator[Message]:
    """Messages of a text/event-stream; one without a kind only tells where to resume."""
    kind, id_, data = "", None, ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "id":
            id_ = int(value)
        elif name == "data":
            data += value
        elif not line and (kind or id_ is not None):
            content = json.loads(data) if data else {}
            when = content.get("time")
            yield Message(
                id=id_,
                kind=kind,
                experiment=content.get("experiment"),
                instrument=content.get("instrument"),
                subject=content.get("subject", ""),
                actor=content.get("actor", ""),
                time=datetime.fromisoformat(when) if when else None,
                data=content.get("data", {}),
            )
            kind, id_, data = "", None, ""
