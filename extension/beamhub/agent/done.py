"""The detector says that it has finished a file: a small HTTP server in the agent, and the hook for it.

    POST /done   {"files": ["/data/eiger/lyso_master.h5"]}

Such a file is ready at once. Nothing else can be asked for, and no file outside the watched directories is
touched, whatever is said.
"""

from __future__ import annotations

import asyncio
import hmac
import http.client
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType

import h11
from pydantic import Field, ValidationError

from beamhub.schemas import Model, Problem, Request
from beamhub.text import one_line

from .config import ConfigError, Done
from .file import encodable, printable

log = logging.getLogger("beamhub.agent")

MAX_BODY = 4 << 20  # bytes
MAX_HEAD = 16 << 10
MAX_CONNECTIONS = 64
PATIENCE = 10.0  # seconds for a whole request


class Finished(Request):
    """What the detector says: these files, by their absolute paths, will not change any more."""

    files: list[str] = Field(min_length=1)


class Heard(Model):
    """The answer: which of them are on their way (or have arrived already), and why others are not."""

    ready: list[str]
    refused: dict[str, str]


class Refused(Exception):  # noqa: N818 (it is an answer)
    """The request itself is not as it should be."""

    def __init__(self, status: int, title: str, remedy: str) -> None:
        self.problem = Problem(title=title, status=status, remedy=remedy)


class Listener:
    """Listens while its context lasts, on a TCP port (callers show a token) or a unix socket.

    Args:
        finished: told of each path; "" when the file is ready now, else the reason why it can't be sent.

    Raises:
        ConfigError: from entering: it can't listen there.
    """

    def __init__(self, done: Done, finished: Callable[[str], Awaitable[str]]) -> None:
        self._done = done
        self._finished = finished
        self._token = done.read_token()
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def __aenter__(self) -> Listener:
        try:
            if path := self._done.socket:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._server = await asyncio.start_unix_server(self._serve, path)
                path.chmod(0o660)  # who may say it: the agent's user and group
            else:
                self._server = await asyncio.start_server(self._serve, *self._done.address)
        except OSError as error:
            raise ConfigError(f"listen under [done]: {self._done.listen} can't be used ({error})") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.close()
            await self._server.wait_closed()
        if self._done.socket:
            self._done.socket.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of one connection."""
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                async with asyncio.timeout(PATIENCE):
                    await self._answer(h11.Connection(h11.SERVER, MAX_HEAD), reader, writer)
        except (TimeoutError, ConnectionError, h11.LocalProtocolError) as error:
            log.info("a done message broke off: %s", one_line(str(error), 200) or type(error).__name__)
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        status: int
        answer: Heard | Problem
        try:
            finished = await self._heed(connection, reader, writer)
        except Refused as refused:
            status, answer = refused.problem.status, refused.problem
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            answer = Problem(title="That is no HTTP request.", status=status, remedy="Speak HTTP/1.1.")
        else:
            answer = await self._hear(finished)
            status = 422 if answer.refused else 200
        body = answer.model_dump_json().encode()
        headers = [
            ("Content-Type", "application/json" if isinstance(answer, Heard) else "application/problem+json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        await writer.drain()

    async def _heed(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Finished:
        """What the request says, if it may say it."""
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(
                        connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                    )
                connection.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Request):
                self._admit(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    raise Refused(
                        413, "The message is too long.", f"Name fewer files at once: {MAX_BODY} bytes."
                    )
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise ConnectionError("the caller has gone")
        try:
            return Finished.model_validate_json(body)
        except ValidationError as error:
            raise Refused(
                400, "The message is not as it should be.", 'Send {"files": ["/absolute/path", …]}.'
            ) from error

    def _admit(self, request: h11.Request) -> None:
        headers = dict(request.headers)
        if self._token is not None:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token.encode()):
                raise Refused(
                    401,
                    "The token is missing or wrong.",
                    "Send `Authorization: Bearer …` with the token of token_file under [done].",
                )
        if request.target != b"/done":
            raise Refused(404, "There is nothing here but /done.", "POST to /done.")
        if request.method != b"POST":
            raise Refused(405, "Only POST is known.", "POST to /done.")

    async def _hear(self, finished: Finished) -> Heard:
        ready: list[str] = []
        refused: dict[str, str] = {}
        for path in finished.files:
            if reason := await self._finished(path):
                log.warning("done message: %s %s", printable(path), reason)
                refused[path] = reason
            else:
                ready.append(path)
        return Heard(ready=ready, refused=refused)


def tell(done: Done, paths: Sequence[Path]) -> Heard:
    """Tells the running agent that these files are finished: what a detector's hook does.

    Raises:
        ConfigError: the agent can't be reached, or does not accept the token.
    """
    # by their real folders, since those are what is watched; a link in the file's own place stays one
    files = [os.path.join(os.path.realpath(path.parent), path.name) for path in paths]  # noqa: PTH118
    unsayable = {file: "has a name that is not UTF-8" for file in files if not encodable(file)}
    if len(unsayable) == len(files):
        return Heard(ready=[], refused=unsayable)
    message = Finished(files=[file for file in files if file not in unsayable])
    token = done.read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection = _Connection(done)
    try:
        connection.request("POST", "/done", message.model_dump_json().encode(), headers)
        response = connection.getresponse()
        body = response.read(MAX_BODY)
        if response.status not in (200, 422):
            problem = Problem.model_validate_json(body)
            raise ConfigError(f"the agent at {done.listen} answers: {problem.title} {problem.remedy}")
        heard = Heard.model_validate_json(body)
    except (ValidationError, http.client.HTTPException) as error:
        raise ConfigError(f"what listens at {done.listen} is no beamhub agent") from error
    except OSError as error:
        raise ConfigError(
            f"no agent listens at {done.listen} ({one_line(str(error), 200)}): "
            "once it runs, it finds the files by itself and sends them when they have settled"
        ) from error
    finally:
        connection.close()
    return heard.model_copy(update={"refused": heard.refused | unsayable})


class _Connection(http.client.HTTPConnection):
    """To a port, or to a socket."""

    def __init__(self, done: Done) -> None:
        host, port = ("agent", 80) if done.socket else done.address
        super().__init__(host, port, timeout=PATIENCE)
        self._socket = done.socket

    def connect(self) -> None:
        if self._socket is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._socket))
