"""What an instrument's agent tells, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from beamhub.client.wire import Wire, quoted
from beamhub.schemas import (
    AgentCommand,
    AgentFile,
    AgentOrders,
    Because,
    FilesChoice,
    Heartbeat,
    Instrument,
    Page,
    SkipRequest,
)


class Agents(Wire):
    def heartbeat(self, instrument: str, heartbeat: Heartbeat) -> AgentOrders:
        """What an instrument's agent tells every few seconds; the answer says what it is to do."""
        return self._send(AgentOrders, "PUT", f"instruments/{quoted(instrument)}/heartbeat", heartbeat)

    def pause_uploads(self, instrument: str, reason: str) -> Instrument:
        """The instrument begins no upload any more; what is on its way is finished."""
        return self._send(Instrument, "POST", f"{_uploads(instrument)}/pause", Because(reason=reason))

    def resume_uploads(self, instrument: str) -> Instrument:
        return self._send(Instrument, "POST", f"{_uploads(instrument)}/resume")

    def retry_uploads(
        self, instrument: str, paths: Sequence[str] = (), *, pattern: str | None = None, reason: str = ""
    ) -> AgentCommand:
        """The agent sends again what has failed: these files, those of the pattern, or all."""
        choice = FilesChoice(paths=list(paths), pattern=pattern, reason=reason)
        return self._send(AgentCommand, "POST", f"{_uploads(instrument)}/retry", choice)

    def skip_uploads(
        self, instrument: str, paths: Sequence[str] = (), *, pattern: str | None = None, reason: str
    ) -> AgentCommand:
        """The agent leaves out these files, or those of the pattern, that have not arrived."""
        choice = SkipRequest(paths=list(paths), pattern=pattern, reason=reason)
        return self._send(AgentCommand, "POST", f"{_uploads(instrument)}/skip", choice)

    def unskip_uploads(
        self, instrument: str, paths: Sequence[str] = (), *, pattern: str | None = None, reason: str = ""
    ) -> AgentCommand:
        """The agent sends after all what was to be skipped: these files, those of the pattern, or all."""
        choice = FilesChoice(paths=list(paths), pattern=pattern, reason=reason)
        return self._send(AgentCommand, "POST", f"{_uploads(instrument)}/unskip", choice)

    def agent_files(
        self,
        instrument: str,
        *,
        state: Literal["failed", "skipped"] | None = None,
        limit: int | None = None,
    ) -> list[AgentFile]:
        """What the agent has not sent, and why."""
        return self._list(AgentFile, f"instruments/{quoted(instrument)}/agent/files", limit, state=state)

    def agent_commands(self, instrument: str) -> list[AgentCommand]:
        """What the agent has been told to do and has not done yet."""
        return self._get(Page[AgentCommand], f"instruments/{quoted(instrument)}/agent/commands").items


def _uploads(instrument: str) -> str:
    return f"instruments/{quoted(instrument)}/uploads"
