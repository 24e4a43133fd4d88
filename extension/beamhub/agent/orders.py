"""What the staff have told the agent: whether it may begin files, and what to do with some of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from pydantic import BaseModel

from beamhub.schemas import (
    AgentCommand,
    AgentFile,
    AgentFiles,
    AgentOrders,
    CommandKind,
    JournalLine,
    JournalReport,
)

from .file import shortened
from .journal import Journal
from .pause import Pause
from .service import Service, UnavailableError

log = logging.getLogger("beamhub.agent")
M = TypeVar("M", bound=BaseModel)

AGAIN = 2.0  # seconds until an order is tried again that the service did not let the agent obey
PART_ITEMS, PART_BYTES = 250, 500_000  # at most, in one message
MOST_PARTS = 40  # of the list of files that are not sent
LONGEST_NAME, LONGEST_REASON = 1000, 500  # characters


class Files(Protocol):
    """The agent's files, by their paths. What is done to them may be done twice."""

    def waiting(self) -> Iterator[tuple[str, str]]:
        """(path, name below raw/) of all that is known here and has neither arrived nor failed nor been
        skipped."""
        ...

    def failed(self) -> Iterator[tuple[str, str, str]]:
        """(path, name, reason) of all that could not be sent."""
        ...

    def held(self) -> Iterator[tuple[str, str]]:
        """(path, name) of all that is held back because it does not seem to be complete."""
        ...

    def skipped(self) -> Iterator[tuple[str, str, str]]:
        """(path, name, reason) of all that is not to be sent."""
        ...

    def unsent(self) -> object:
        """Is another one as soon as other files have failed or been skipped, or for other reasons."""
        ...

    def lines(self, experiment: str) -> Iterator[JournalLine]:
        """All that is known of this experiment, and all that has not begun for any."""
        ...

    async def retry(self, path: str) -> None: ...

    async def release(self, path: str) -> None: ...

    async def skip(self, path: str, reason: str) -> None: ...

    async def unskip(self, path: str) -> None: ...


class Orders:
    """Obeys what comes with the answers to heartbeats: each command once, in their order."""

    def __init__(self, service: Service, journal: Journal, pause: Pause, files: Files) -> None:
        self._service = service
        self._journal = journal
        self._pause = pause
        self._files = files
        self._commands: list[AgentCommand] = []
        self._news = asyncio.Event()
        self._told: object = None  # of which files that are not sent the service knows
        self.obeyed = asyncio.Event()  # a command has been obeyed since this was cleared

    def heed(self, orders: AgentOrders) -> None:
        """Takes in what the service says now; `follow` does the rest."""
        self._pause.hold(orders.paused_reason or "paused by the staff" if orders.paused else "")
        self._commands = list(orders.commands)
        self._news.set()

    async def follow(self) -> None:
        """Obeys, until it is cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                for command in self._commands:
                    if command.id > self._journal.obeyed():
                        await self._obey(command)
                        self._journal.obey(command.id)
                        self.obeyed.set()
                await self._tell()
            except UnavailableError as error:
                log.info("an order has to wait: %s", error)
                await asyncio.sleep(AGAIN)
                self._news.set()

    async def _obey(self, command: AgentCommand) -> None:
        log.info(
            "%s wants to %s %s", command.created_by, command.kind, command.pattern or command.paths or "all"
        )
        files = self._files
        match command.kind:
            case CommandKind.RETRY:
                for path, name, _ in list(files.failed()):
                    if _concerns(command, name):
                        await files.retry(path)
                if command.paths or command.pattern is not None:  # all that has failed does not mean these
                    for path, name in list(files.held()):
                        if _concerns(command, name):
                            await files.release(path)
            case CommandKind.SKIP:
                reason = f"skipped by {command.created_by}: {command.reason}"
                known = [*files.waiting(), *((path, name) for path, name, _ in files.failed())]
                # also what a kill has left half skipped
                known += [(path, name) for path, name, _ in files.skipped()]
                for path, name in known:
                    if _concerns(command, name):
                        await files.skip(path, reason)
            case CommandKind.UNSKIP:
                for path, name, _ in list(files.skipped()):
                    if _concerns(command, name):
                        await files.unskip(path)
            case CommandKind.REPORT:
                await self._report(command)

    async def _report(self, command: AgentCommand) -> None:
        lines = await asyncio.to_thread(list, self._files.lines(command.experiment or ""))
        part = 0
        async for items, last in _parts(lines):
            part += 1
            await self._service.report(command.id, JournalReport(part=part, last=last, items=items))

    async def _tell(self) -> None:
        """Keeps the service's list of what is not sent up to date."""
        if (unsent := self._files.unsent()) == self._told:
            return
        files = [
            AgentFile(name=name, state="failed", reason=shortened(reason, LONGEST_REASON))
            for _, name, reason in self._files.failed()
        ] + [
            AgentFile(name=name, state="skipped", reason=shortened(reason, LONGEST_REASON))
            for _, name, reason in self._files.skipped()
        ]
        files.sort(key=lambda file: file.name)
        del files[MOST_PARTS * PART_ITEMS :]
        part = 0
        async for items, last in _parts(files):
            part += 1
            await self._service.tell_files(AgentFiles(part=part, last=last, items=items))
            if part == MOST_PARTS:
                break
        self._told = unsent


def _concerns(command: AgentCommand, name: str) -> bool:
    """Does the command mean the file that is shown by this name?"""
    if command.pattern is not None:
        last = name.rsplit("/", 1)[-1]
        if fnmatchcase(name, command.pattern) or fnmatchcase(last, command.pattern):
            return True
    return name in command.paths or (command.pattern is None and not command.paths)


async def _parts(items: list[M]) -> AsyncIterator[tuple[list[M], bool]]:
    """The items in messages of a size that the service takes, and whether each is the last; at least one."""
    part: list[M] = []
    size = 0
    for item in items:
        length = len(item.model_dump_json())
        if part and (len(part) == PART_ITEMS or size + length > PART_BYTES):
            yield part, False
            part, size = [], 0
        part.append(item)
        size += length
    yield part, True
