"""What an instrument's agent tells, and what it is told."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from beamhub.schemas.models import Model, Request
from beamhub.schemas.words import AgentPath, Line, Reason

__all__ = [
    "AgentCommand",
    "AgentFile",
    "AgentFiles",
    "AgentOrders",
    "AgentStatus",
    "CommandKind",
    "FileProgress",
    "FilesChoice",
    "Heartbeat",
    "JournalLine",
    "JournalReport",
    "SkipRequest",
]


class FileProgress(Model):
    """One file that the agent is sending just now."""

    name: str
    size: int
    sent: int
    experiment: str | None = None  # that its upload was begun for; None: it has not been begun


class Heartbeat(Request):
    """What the agent tells every few seconds. A newer one may tell more, and is heard all the same."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    host: Line
    version: Line
    state: Literal["idle", "uploading", "waiting", "error"] = "idle"
    queued_files: int = Field(0, ge=0)
    queued_bytes: int = Field(0, ge=0)
    rate: float = Field(0.0, ge=0, description="bytes per second over the last seconds")
    free_disk: int | None = Field(None, ge=0)
    current: list[FileProgress] = Field(default=[], max_length=32)
    errors: list[Annotated[str, StringConstraints(max_length=500)]] = Field(default=[], max_length=20)
    file_errors: list[Annotated[str, StringConstraints(max_length=500)]] = Field(
        default=[], max_length=20, description="of single files, whosever they are: for staff"
    )
    arrived: int = Field(0, ge=0, description="files that its journal knows to be published")
    failed: int = Field(0, ge=0, description="files that it could not send; `agent/files` says why")
    skipped: int = Field(0, ge=0, description="files that staff told it to leave out")
    acknowledged: int = Field(0, ge=0, description="the last of its commands that it has obeyed")

    def as_seen_in(self, experiment: str) -> Self:
        """What members of the active experiment may see of it: no names of others' files."""
        current = [file for file in self.current if file.experiment in (None, experiment)]
        return self.model_copy(update={"current": current, "file_errors": []})


class AgentStatus(Heartbeat, Model):
    """The agent's last heartbeat, and whether it is recent."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    connected: bool
    last_seen: datetime


class CommandKind(StrEnum):
    RETRY = "retry"  # send again what has failed
    SKIP = "skip"  # leave files out that wait, are on their way or have failed
    UNSKIP = "unskip"  # send them after all
    REPORT = "report"  # tell all that the journal knows of an experiment


class AgentCommand(Model):
    """What the staff want the agent to do. It may be delivered more than once, and is obeyed once."""

    id: int
    instrument: str
    kind: CommandKind
    paths: list[str] = []  # below raw/, as the agent shows them
    pattern: str | None = None  # glob on such a path or its last part; neither: all that it can concern
    reason: str = ""
    experiment: str | None = None  # of a report
    created: datetime
    created_by: str


class AgentOrders(Model):
    """The answer to a heartbeat: what the agent is to do from now on."""

    paused: bool = False  # begin no file; what is on its way is finished
    paused_reason: str = ""
    commands: list[AgentCommand] = []  # not obeyed yet, oldest first


class AgentFile(Model):
    """A file that has not been sent, and why."""

    name: AgentPath  # below raw/
    state: Literal["failed", "skipped"]
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    size: int = Field(0, ge=0, le=2**63 - 1)


class AgentFiles(Request):
    """One part of the list of the files that the agent has not sent: it replaces this part of the list
    before, and with `last` all parts behind it."""

    part: int = Field(1, ge=1, le=40)
    last: bool = True
    items: list[AgentFile] = Field(max_length=250)


class JournalLine(Model):
    """A file of an experiment, as the agent's journal knows it."""

    name: AgentPath  # below raw/
    size: int = Field(ge=0, le=2**63 - 1)
    digest: Annotated[str, StringConstraints(max_length=200)] | None = None  # None: not read yet
    state: Literal["queued", "arrived", "failed", "skipped"]
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    experiment: str | None = None  # None: not begun, so it goes to whichever is active then


class JournalReport(Request):
    """One part of the answer to a `report` command; the whole has come when parts 1 to the last are there."""

    part: int = Field(1, ge=1, le=100_000)
    last: bool = True
    items: list[JournalLine] = Field(max_length=250)


class FilesChoice(Request):
    """Which of the agent's files: these, those whose path or name fits the pattern, or all."""

    paths: list[AgentPath] = Field(default=[], max_length=100)
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    reason: Reason = ""


class SkipRequest(FilesChoice):
    reason: Reason = Field(min_length=1)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.paths and self.pattern is None:
            raise ValueError("say which files: paths or a pattern")
        return self
