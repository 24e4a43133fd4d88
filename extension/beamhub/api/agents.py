"""Routes of instruments' agents: what they tell, and what the staff tell them."""

from __future__ import annotations

from typing import Literal

from beamhub.api.routes import Call, Paging, route
from beamhub.schemas import (
    AgentCommand,
    AgentFile,
    AgentFiles,
    AgentOrders,
    Because,
    BigInt,
    CommandKind,
    FilesChoice,
    Heartbeat,
    Instrument,
    JournalReport,
    Page,
    SkipRequest,
)


class AgentFileQuery(Paging):
    state: Literal["failed", "skipped"] | None = None


@route("PUT", "instruments/{instrument}/heartbeat")
async def put_heartbeat(call: Call, instrument: str, body: Heartbeat) -> AgentOrders:
    """The instrument's agent tells how it is and what it sends just now; the answer tells it what to do.

    Commands are given again with every heartbeat until one comes with their id as `acknowledged`.
    """
    return await call.service.orders.heartbeat(call.principal, instrument, body)


@route("PUT", "instruments/{instrument}/agent/files")
async def put_agent_files(call: Call, instrument: str, body: AgentFiles) -> None:
    """The agent tells which files it has not sent and why, in parts of up to 250."""
    await call.service.orders.tell_files(call.principal, instrument, body)


@route("GET", "instruments/{instrument}/agent/files")
async def list_agent_files(call: Call, instrument: str, query: AgentFileQuery) -> Page[AgentFile]:
    """The files that the agent has not sent, because they failed or were to be skipped (staff)."""
    return await call.service.orders.files(call.principal, instrument, **query.model_dump())


@route("PUT", "instruments/{instrument}/agent/reports/{command}")
async def put_journal_report(call: Call, instrument: str, command: BigInt, body: JournalReport) -> None:
    """The agent answers a `report` command with what its journal knows, in parts of up to 250 files."""
    await call.service.orders.report(call.principal, instrument, command, body)


@route("GET", "instruments/{instrument}/agent/commands")
async def list_agent_commands(call: Call, instrument: str) -> Page[AgentCommand]:
    """What the agent has been told to do and has not done yet (staff)."""
    return await call.service.orders.commands(call.principal, instrument)


@route("POST", "instruments/{instrument}/uploads/pause", status=200)
async def pause_uploads(call: Call, instrument: str, body: Because) -> Instrument:
    """Begin no upload from this instrument; what is on its way is finished (staff)."""
    return await call.service.orders.pause(call.principal, instrument, body.reason)


@route("POST", "instruments/{instrument}/uploads/resume", status=200)
async def resume_uploads(call: Call, instrument: str) -> Instrument:
    """Let uploads from this instrument begin again (staff)."""
    return await call.service.orders.resume(call.principal, instrument)


@route("POST", "instruments/{instrument}/uploads/retry")
async def retry_uploads(call: Call, instrument: str, body: FilesChoice) -> AgentCommand:
    """Have the agent send again what has failed: these files, those of a pattern, or all (staff)."""
    return await call.service.orders.command(call.principal, instrument, CommandKind.RETRY, body)


@route("POST", "instruments/{instrument}/uploads/skip")
async def skip_uploads(call: Call, instrument: str, body: SkipRequest) -> AgentCommand:
    """Have the agent leave out files that wait, are on their way or have failed (staff)."""
    return await call.service.orders.command(call.principal, instrument, CommandKind.SKIP, body)


@route("POST", "instruments/{instrument}/uploads/unskip")
async def unskip_uploads(call: Call, instrument: str, body: FilesChoice) -> AgentCommand:
    """Have the agent send what was to be skipped: these files, those of a pattern, or all (staff)."""
    return await call.service.orders.command(call.principal, instrument, CommandKind.UNSKIP, body)
