"""The bus: what the processes of one site tell each other, so that nobody has to look for it again and again.

Two things are told: that something has been committed, and what is worth showing now. Nothing depends on its
arrival. Whoever follows the log looks at it now and then anyway, and what is shown now is outdated a moment
later. With PostgreSQL it goes through the database (NOTIFY), so the processes may be on several machines;
with SQLite through one datagram socket per process, in a folder that only the service may enter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import select
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

COMMIT = b"commit"
CHANNEL = "beamhub"  # of PostgreSQL's notices
WAITING = 1000  # messages to be told; what is more is dropped
HEARD = 100  # messages heard before it is the turn of those to be told
AGAIN = 0.05  # seconds until a process that had no room is told again of a commit
RECONNECT = 0.5  # seconds between attempts to reach the database


def connect(database_url: str, folder: Path) -> Bus:
    """The bus of all processes that share this database; with SQLite, also this folder."""
    return DatabaseBus(database_url) if database_url.startswith("postgresql") else SocketBus(folder)


class Bus(ABC):
    """One process's end. A thread of its own sends and receives, so that telling never waits."""

    largest: int  # bytes of a message; larger ones are not told

    def __init__(self) -> None:
        self._name = secrets.token_hex(8)
        self._on_commit: list[Callable[[], None]] = []
        self._on_message: list[Callable[[bytes], None]] = []
        self._messages: queue.Queue[bytes] = queue.Queue(WAITING)
        self._commit = False  # there is one to be told
        self._awake, self._waker = socket.socketpair()
        self._awake.setblocking(False)
        self._waker.setblocking(False)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="beamhub-bus", daemon=True)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Has `callback` called, on the bus's thread, when another process may have committed something."""
        self._on_commit.append(callback)

    def on_message(self, callback: Callable[[bytes], None]) -> None:
        """Has `callback` called, on the bus's thread, with each message of another process. It is to be
        checked like all that comes from outside."""
        self._on_message.append(callback)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Tells what is waiting, and ends."""
        self._closed = True
        self._rouse()
        if self._thread.is_alive():
            self._thread.join()
        self._awake.close()
        self._waker.close()

    def commit(self) -> None:
        """Tells the others that something has been committed. May be called on any thread."""
        self._commit = True
        self._rouse()

    def tell(self, message: bytes) -> None:
        """Tells the others, unless it is too much. May be called on any thread."""
        if len(message) <= self.largest:
            with contextlib.suppress(queue.Full):
                self._messages.put_nowait(message)
                self._rouse()

    def _rouse(self) -> None:
        with contextlib.suppress(OSError):  # it has been roused already, or closed
            self._waker.send(b"x")

    def _rest(self, *readable: Any, timeout: float | None = None) -> None:
        """Until there is something to tell, or one of these can be read, or the time is over."""
        poll = select.poll()
        for one in (self._awake, *readable):
            poll.register(one, select.POLLIN)
        poll.poll(None if timeout is None else 1e3 * timeout)
        with contextlib.suppress(BlockingIOError):
            self._awake.recv(4096)

    def _to_tell(self) -> list[bytes]:
        messages = []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._messages.get_nowait())
        if self._commit:
            self._commit = False
            messages.append(COMMIT)
        return messages

    def _hear(self, message: bytes) -> None:
        if message == COMMIT:
            for committed in self._on_commit:
                committed()
        else:
            for told in self._on_message:
                told(message)

    @abstractmethod
    def _run(self) -> None:
        """Sends and receives until it is closed."""


class SocketBus(Bus):
    """Datagrams between the processes of one machine: each has a socket in `folder`, named at random. The
    socket of a process that has died is removed by the first who finds it so."""

    largest = 60_000

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._address(self._name))

    def close(self) -> None:
        super().close()
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)
        os.close(self._folder)

    def _address(self, name: str) -> str:
        # the path of a socket has at most 107 bytes, that of a folder may have many more
        return f"/proc/self/fd/{self._folder}/{name}"

    def _run(self) -> None:
        late: set[str] = set()  # those who had no room for news of a commit
        while not self._closed:
            self._rest(self._socket, timeout=AGAIN if late else None)
            self._receive()
            messages = self._to_tell()
            others = set(os.listdir(self._folder)) - {self._name} if messages or late else set()  # noqa: PTH208
            late &= others
            late = {name for name in late if not self._send(name, COMMIT)}
            for message in messages:
                full = {name for name in others if not self._send(name, message)}
                if message == COMMIT:
                    late |= full

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(HEARD):
                message = self._socket.recv(self.largest + 1)
                if len(message) <= self.largest:
                    self._hear(message)

    def _send(self, name: str, message: bytes) -> bool:
        """Whether that process has it, or doesn't need it any longer."""
        try:
            self._socket.sendto(message, self._address(name))
        except ConnectionRefusedError:  # its process has died
            with contextlib.suppress(OSError):  # another has removed it, or it is no socket
                os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:  # its process has ended
            pass
        except OSError as error:
            log.debug("process %s can't be told: %s", name, error)
            return False
        return True


class DatabaseBus(Bus):
    """PostgreSQL's notices."""

    largest = 7_900

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url.replace("+psycopg", "", 1)

    def _run(self) -> None:
        import psycopg

        reached = True
        while not self._closed:
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=10) as connection:
                    reached = True
                    self._converse(connection)
            except psycopg.Error as error:
                if reached:
                    log.warning(
                        "other processes can't be told of commits until the database is back: %s", error
                    )
                reached = False
                self._rest(timeout=RECONNECT)

    def _converse(self, connection: Any) -> None:
        connection.add_notify_handler(lambda notice: self._noticed(notice.payload))
        connection.execute(f"LISTEN {CHANNEL}")
        self._commit = True  # that it was told before the connection broke is not sure
        self._hear(COMMIT)  # and nothing was heard since
        while True:
            for message in self._to_tell():
                payload = f"{self._name} {message.decode()}"
                connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
            if self._closed:
                return
            self._rest(connection.pgconn.socket)
            connection.pgconn.consume_input()
            while notice := connection.pgconn.notifies():
                self._noticed(notice.extra.decode())

    def _noticed(self, payload: str) -> None:
        sender, _, message = payload.partition(" ")
        if sender != self._name:
            self._hear(message.encode())
