"""Large bodies straight from their socket: Tornado's buffers would copy each byte twice more, on the loop.

A connection is taken away from Tornado after a request's head (`HTTP1Connection.detach`). Its body is taken
by threads, in as large pieces as are there; the connection is given back with the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
from asyncio import Future

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, StreamClosedError

LARGE = 2**20  # bytes of a body from which on this is worth its while
LINGER = 10  # milliseconds that a thread waits for the next bytes before it does something else
HEARD_OUT = 128 * 2**20  # bytes that are still taken after a refusal; parts of files have at most half of it


def length_of(headers: HTTPHeaders) -> int:
    """Of a request's body, as it is announced; 0 where that makes no sense, which Tornado refuses."""
    told = re.fullmatch("[0-9]{1,18}", headers.get("Content-Length", "0"))
    return int(told[0]) if told else 0


class Wire(HTTPConnection):
    """A connection with one request on it, whose body it is (see beamhub.body); it takes the answer, too."""

    def __init__(
        self, server: HTTPServer, request: HTTPServerRequest, length: int, *, wanted: bool = True
    ) -> None:
        """Takes the connection of this request, whose body has `length` bytes and is still to come. Who asks
        whether it is `wanted` is told so."""
        assert isinstance(request.connection, HTTP1Connection)  # noqa: S101 (see `fits`)
        stream = request.connection.detach()
        self._server = server
        self._reusable = _stays_open(server, request)
        self._socket = stream.socket.dup()
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        # what has been read behind the head
        begun = asyncio.ensure_future(stream.read_bytes(length, partial=True))
        read = begun.done() and begun.exception() is None
        self._beginning = memoryview(begun.result() if read else b"")
        stream.close()
        self._length = self.left = length
        self._over = False  # nothing more comes, or is wanted
        self._gone = False  # the sender
        self._coming: Future[None] | None = None
        self.waiting = True  # for the sender, rather than the sender for us
        self._answer: IOStream | None = None
        if wanted and request.headers.get("Expect", "").lower() == "100-continue":
            with contextlib.suppress(OSError):  # the sender has gone: who takes finds out
                self._socket.send(b"HTTP/1.1 100 (Continue)\r\n\r\n")

    @staticmethod
    def fits(request: HTTPServerRequest) -> int:
        """The length of a request's body, if it is for a wire; else 0."""
        length = length_of(request.headers)
        plain = (
            isinstance(request.connection, HTTP1Connection) and type(request.connection.stream) is IOStream
        )
        if not plain or "Transfer-Encoding" in request.headers:
            return 0
        closed = request.connection.stream.closed()  # type: ignore[union-attr]
        return length if length >= LARGE and not closed else 0

    # --- the body --------------------------------------------------------------------------------------

    @property
    def taken(self) -> int:
        return self._length - self.left

    async def come(self) -> bool:
        if self._beginning:
            return True
        if self._over or not self.left:
            return False
        loop = asyncio.get_running_loop()
        self._coming, self.waiting = loop.create_future(), True
        loop.add_reader(self._socket, self._wake)
        try:
            await self._coming
        finally:
            loop.remove_reader(self._socket)
            self.waiting = False
        return not self._over

    def _wake(self) -> None:
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)

    def take(self, buffer: memoryview) -> int:
        buffer = buffer[: self.left]
        if self._over or not buffer:
            return 0
        if self._beginning:
            count = min(len(buffer), len(self._beginning))
            buffer[:count] = self._beginning[:count]
            self._beginning = self._beginning[count:]
        else:
            count = self._receive(buffer)
        self.left -= count
        return count

    def _receive(self, buffer: memoryview) -> int:
        try:
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                self.waiting = True
                ready = self._poll.poll(LINGER)
                self.waiting = False
                if not ready:
                    return 0
                count = self._socket.recv_into(buffer)
        except OSError:  # the sender has gone: what has come is kept
            count = 0
        if not count:
            self._over = self._gone = True
        return count

    def end(self) -> None:
        """Nothing more is wanted."""
        self._over = True
        self._wake()

    async def drain(self) -> None:
        """Takes the rest for nothing: who is still sending often never reads the answer."""
        buffer = memoryview(bytearray(2**16))
        while await self.come():
            await asyncio.to_thread(self.take, buffer)

    # --- the answer --------------------------------------------------------------------------------------

    def set_close_callback(self, callback: None) -> None:
        """Nobody is told: what takes or writes finds out."""

    def write_headers(
        self,
        start_line: RequestStartLine | ResponseStartLine,
        headers: HTTPHeaders,
        chunk: bytes | None = None,
    ) -> Future[None]:
        assert isinstance(start_line, ResponseStartLine)  # noqa: S101
        self._reusable = self._reusable and not self.left
        if not self._reusable:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {start_line.code} {start_line.reason}"]
        lines += [f"{name}: {value}" for name, value in headers.get_all()]
        self._answer = IOStream(
            self._socket.dup(),
            max_buffer_size=self._server.max_buffer_size,
            read_chunk_size=self._server.read_chunk_size,
        )
        return self.write("\r\n".join([*lines, "\r\n"]).encode("latin1") + (chunk or b""))

    def write(self, chunk: bytes) -> Future[None]:
        assert self._answer is not None  # noqa: S101 (its headers come first)
        try:
            return self._answer.write(chunk)
        except StreamClosedError as error:
            failed: Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            failed.exception()
            return failed

    def finish(self) -> None:
        """The answer is written; `give_back` ends it all."""

    async def hear_out(self, patience: float) -> None:
        """Takes the rest of a body that was refused for nothing: who is still sending reads the answer later,
        and to close the connection before would take it away. However slowly it comes, as long as it does
        within `patience` seconds; and not for ever."""
        if self._answer is None or not self.left or self._gone:
            return
        self._over = False
        buffer, end = memoryview(bytearray(2**16)), self.left - HEARD_OUT
        with contextlib.suppress(StreamClosedError, OSError, TimeoutError):
            async with asyncio.timeout(patience):
                await self._answer.write(b"")  # until all of it is on its way
            self._socket.shutdown(socket.SHUT_WR)
            while self.left > end:
                async with asyncio.timeout(patience):
                    if not await self.come():
                        return
                await asyncio.to_thread(self.take, buffer)

    async def give_back(self) -> None:
        """Lets Tornado have the connection again for its next request, or ends it. Nobody may be taking."""
        with self._socket:
            if self._answer is None:
                return
            try:
                if self._reusable:
                    self._server.handle_stream(self._answer, self._socket.getpeername())
                    return
                await self._answer.write(b"")  # until all of it is on its way
            except (StreamClosedError, OSError):
                pass  # the sender has gone
            self._answer.close()


def _stays_open(server: HTTPServer, request: HTTPServerRequest) -> bool:
    asked = request.headers.get("Connection", "").lower()
    return request.version == "HTTP/1.1" and asked != "close" and not server.conn_params.no_keep_alive
