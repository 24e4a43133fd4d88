"""Orders: what the staff tell an instrument's agent, and what it tells them.

The agent asks: the answer to each of its heartbeats says whether it may begin files, and what it is to do
once. A command is delivered until the agent has said that it has obeyed it. While uploads are paused, the
service refuses new ones itself (see beamhub.uploads), whatever the agent does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.errors import Conflict, NotFound, Unavailable
from beamhub.events import Live, emit
from beamhub.schemas import (
    AgentCommand,
    AgentFile,
    AgentFiles,
    AgentOrders,
    CommandKind,
    FilesChoice,
    Heartbeat,
    Instrument,
    JournalReport,
    Page,
    UploadsPaused,
)
from beamhub.store import Store, Transaction

AT_ONCE = 50  # commands in the answer to one heartbeat
MOST = 1000  # commands that may wait for an agent


class Orders:
    """The orders of all instruments."""

    def __init__(self, store: Store, live: Live) -> None:
        self._store = store
        self._live = live

    # --- the agent ---

    async def heartbeat(self, principal: Principal, id_: str, heartbeat: Heartbeat) -> AgentOrders:
        """The agent tells how it is: kept as the instrument's `agent`, and shown live; the answer tells it
        what to do."""

        def work(tx: Transaction) -> tuple[Instrument, AgentOrders]:
            instrument = access.require_instrument(tx, principal, id_, Action.UPLOAD_RAW)
            tx.instruments.beat(id_, heartbeat)
            for command in tx.commands.obeyed(id_, heartbeat.acknowledged):
                _emit(tx, principal, instrument, "agent.obeyed", str(command.id), {"order": command.kind})
            paused = instrument.uploads_paused
            return instrument, AgentOrders(
                paused=paused is not None,
                paused_reason=f"paused by {paused.by}: {paused.reason}" if paused else "",
                commands=list(tx.commands.waiting(id_, AT_ONCE)),
            )

        instrument, orders = await self._store.write(work)
        # staff of the instrument get both, the whole one last
        seen = [(active, heartbeat.as_seen_in(active))] if (active := instrument.active_experiment) else []
        for experiment, beat in (*seen, (None, heartbeat)):
            self._live.publish(
                "agent.heartbeat",
                experiment=experiment,
                instrument=id_,
                subject=id_,
                data=beat.model_dump(mode="json"),
            )
        return orders

    async def tell_files(self, principal: Principal, id_: str, files: AgentFiles) -> None:
        """The agent tells what it has not sent, part by part."""

        def work(tx: Transaction) -> None:
            access.require_instrument(tx, principal, id_, Action.UPLOAD_RAW)
            tx.agent_files.replace(id_, files)

        await self._store.write(work)

    async def report(self, principal: Principal, id_: str, command: int, report: JournalReport) -> None:
        """The agent answers a `report` command, part by part; `agent.reported` tells that all is there."""

        def work(tx: Transaction) -> None:
            instrument = access.require_instrument(tx, principal, id_, Action.UPLOAD_RAW)
            asked = tx.commands.get(command)
            if asked is None or asked.instrument != id_ or asked.kind is not CommandKind.REPORT:
                raise NotFound(f"Nobody has asked {id_} for a report {command}.", "Leave it out.")
            if tx.commands.report(command, report):
                _emit(tx, principal, instrument, "agent.reported", str(command), {})

        await self._store.write(work)

    # --- the staff ---

    async def files(
        self,
        principal: Principal,
        id_: str,
        *,
        state: Literal["failed", "skipped"] | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[AgentFile]:
        """What the agent has not sent, and why."""

        def work(tx: Transaction) -> Page[AgentFile]:
            access.require_instrument(tx, principal, id_, Action.OPERATE)
            return tx.agent_files.list(id_, state=state, after=after, limit=limit)

        return await self._store.read(work)

    async def commands(self, principal: Principal, id_: str) -> Page[AgentCommand]:
        """What the agent has been told and has not obeyed yet."""

        def work(tx: Transaction) -> Page[AgentCommand]:
            access.require_instrument(tx, principal, id_, Action.OPERATE)
            return Page[AgentCommand](items=list(tx.commands.waiting(id_, MOST)))

        return await self._store.read(work)

    async def pause(self, principal: Principal, id_: str, reason: str) -> Instrument:
        """No upload of this instrument begins from now on; those on their way are finished."""

        def work(tx: Transaction) -> Instrument:
            instrument = access.require_instrument(tx, principal, id_, Action.OPERATE)
            paused = UploadsPaused(reason=reason, by=principal.name, since=datetime.now(UTC))
            tx.instruments.change(id_, uploads_paused=paused.model_dump(mode="json"))
            _emit(tx, principal, instrument, "uploads.paused", id_, {"reason": reason})
            return access.require_instrument(tx, principal, id_)

        return await self._store.write(work)

    async def resume(self, principal: Principal, id_: str) -> Instrument:
        """Uploads may begin again. Does nothing where they may."""

        def work(tx: Transaction) -> Instrument:
            instrument = access.require_instrument(tx, principal, id_, Action.OPERATE)
            if instrument.uploads_paused:
                tx.instruments.change(id_, uploads_paused=None)
                _emit(tx, principal, instrument, "uploads.resumed", id_, {})
            return access.require_instrument(tx, principal, id_)

        return await self._store.write(work)

    async def command(
        self, principal: Principal, id_: str, kind: CommandKind, choice: FilesChoice
    ) -> AgentCommand:
        """Tells the agent to do something with some of its files. Raises Conflict when too much waits."""
        return await self._store.write(lambda tx: order(tx, principal, id_, kind, choice))


def order(
    tx: Transaction,
    principal: Principal,
    id_: str,
    kind: CommandKind,
    choice: FilesChoice,
    experiment: str | None = None,
) -> AgentCommand:
    """Keeps a command until the agent asks; for those who may operate the instrument."""
    instrument = access.require_instrument(tx, principal, id_, Action.OPERATE)
    if len(tx.commands.waiting(id_, MOST)) == MOST:
        raise Conflict(
            f"The agent of {id_} has {MOST} orders to obey already.", "Start the agent, and wait for it."
        )
    command = tx.commands.create(id_, kind, principal.name, choice, experiment)
    data = choice.model_dump(mode="json", exclude_defaults=True)
    _emit(tx, principal, instrument, "agent.ordered", str(command.id), {"order": kind, **data})
    return command


def require_running(instrument: Instrument) -> None:
    """Raises Unavailable while uploads of this instrument are paused."""
    if paused := instrument.uploads_paused:
        raise Unavailable(
            f"Uploads of {instrument.id} are paused by {paused.by}: {paused.reason}.",
            "Wait until the staff resume them.",
        )


def _emit(
    tx: Transaction,
    principal: Principal,
    instrument: Instrument,
    kind: str,
    subject: str,
    data: dict[str, Any],
) -> None:
    emit(
        tx,
        kind,
        actor=principal.name,
        instrument=instrument.id,
        experiment=instrument.active_experiment,
        subject=subject,
        data=data,
    )
