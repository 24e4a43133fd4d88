"""Connections for the bytes of files, to which threads write what they have just read.

By way of an event loop it took more of a processor to carry bytes than to read, to digest and to send them.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import httpx

CONNECT, WRITE, READ = 10.0, 30.0, 300.0  # seconds that the service may take for the next step
LAST_WORDS = 1.0  # seconds for the answer of a service that does not read any more
LONGEST = 1 << 20  # bytes of an answer
# seconds without a word from the other computer, seconds between questions whether it is there, and how many
# go unanswered before it isn't: a network that has gone says nothing, and READ is long
_ALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}


class Wire:
    """A connection with one request on it at a time. All its methods block, but `end`; they raise
    httpx.TransportError when the service can't be reached or does not answer, after which it is over."""

    def __init__(self, url: httpx.URL, tls: ssl.SSLContext) -> None:
        self._url = url
        self._http, self._proxy = _connection(url, tls)
        self._lock = threading.Lock()
        self._busy = False
        self.over = False
        self._answered = False

    def begin(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        """Sends the head of a request. `target` is a path."""
        with self._at_work(httpx.ConnectError):
            if self._http.sock and _readable(self._http.sock):
                self._http.close()  # it has rested: there is nothing to be read but its end
            if not self._http.sock:
                self._http.timeout = CONNECT
                self._http.connect()
                self._http.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, seconds in _ALIVE.items():
                    self._http.sock.setsockopt(socket.IPPROTO_TCP, option, seconds)
        with self._at_work(httpx.WriteError):
            self._http.sock.settimeout(WRITE)
            self._answered = False
            if self._proxy is not None:
                target = str(self._url.copy_with(raw_path=target.encode()))
            self._http.putrequest(method, target, skip_accept_encoding=True)
            for name, value in {**headers, **(self._proxy or {})}.items():
                self._http.putheader(name, value)
            self._http.endheaders()

    def write(self, data: bytes | memoryview) -> bool:
        """Sends bytes of the body; False once the service has answered: it wants no more."""
        with self._at_work(httpx.WriteError):
            # over TLS there may be something to be read that is no answer
            plain = not isinstance(self._http.sock, ssl.SSLSocket)
            self._answered = self._answered or (plain and _readable(self._http.sock))
            rest = memoryview(b"" if self._answered else data)
            try:
                while rest:  # on a slow line each step may take its time, rather than all together
                    rest = rest[self._http.sock.send(rest) :]
            except (BrokenPipeError, ConnectionResetError):
                self._http.sock.settimeout(LAST_WORDS)  # one that refuses may have said so before
                self._answered = True
        return not self._answered

    def answer(self) -> httpx.Response:
        """Of the service, to all that was written."""
        with self._at_work(httpx.ReadError):
            if not self._answered:
                self._http.sock.settimeout(READ)
            with self._http.getresponse() as told:
                content = told.read(LONGEST)
                if self._answered and told.status < HTTPStatus.MULTIPLE_CHOICES:
                    raise HTTPException("it answers before all has been sent")
                if self._answered or told.read(1):  # what is to come would be taken for something else
                    self.over = True
        return httpx.Response(
            told.status,
            headers=told.getheaders(),
            content=content,
            request=httpx.Request("PATCH", self._url),
        )

    def end(self) -> None:
        """Who is at work in another thread has to stop."""
        with self._lock:
            self.over = True
            if not self._busy:
                self._http.close()
            elif self._http.sock:
                with contextlib.suppress(OSError):  # it is not connected any more
                    self._http.sock.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _at_work(self, problem: type[httpx.TransportError]) -> Iterator[None]:
        with self._lock:
            if self.over:
                raise problem("the connection is over")
            self._busy = True
        try:
            yield
        except (OSError, HTTPException) as error:
            self.over = True
            raise problem(str(error) or type(error).__name__) from error
        finally:
            with self._lock:
                self._busy = False
                if self.over:
                    self._http.close()


def _connection(url: httpx.URL, tls: ssl.SSLContext) -> tuple[HTTPConnection, dict[str, str] | None]:
    """To the service, or to the proxy that the environment names, as httpx finds it; and what a proxy that is
    asked for whole URLs has to be told."""
    proxies = {} if proxy_bypass(url.host) else getproxies()
    told = proxies.get(url.scheme) or proxies.get("all")
    by = httpx.URL(told if "://" in told else f"http://{told}") if told else url
    secure = url.scheme == "https"
    connection = (
        HTTPSConnection(by.host, by.port, context=tls) if secure else HTTPConnection(by.host, by.port)
    )
    if not told:
        return connection, None
    pair = base64.b64encode(unquote(by.userinfo.decode()).encode()).decode()
    identity = {"Proxy-Authorization": f"Basic {pair}"} if by.userinfo else {}
    if not secure:
        return connection, identity
    connection.set_tunnel(url.host, url.port, identity)
    return connection, None


def _readable(of: socket.socket) -> bool:
    poll = select.poll()
    poll.register(of, select.POLLIN)
    return bool(poll.poll(0))
