"""What may stand between an agent and its service, and behave oddly."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

RESET = b"reset"  # instead of an answer


@dataclass
class Between:
    """Carries bytes both ways, unless `odd` says otherwise.

    `odd` is given each piece that comes from the agent, which begins with a request's head if it is the first
    of one, and says what to answer in the service's place; None: nothing. It may wait.
    """

    port: int = 0
    odd: Callable[[bytes], bytes | None] = lambda piece: None
    heads: list[bytes] = field(default_factory=list)  # the first line of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


METHODS = (b"GET ", b"PUT ", b"POST ", b"PATCH ", b"DELETE ")


@contextmanager
def between(url: str) -> Iterator[Between]:
    address = urlsplit(url)
    seen, open_ = Between(), set[socket.socket]()
    listening = socket.create_server(("127.0.0.1", 0))
    seen.port = listening.getsockname()[1]

    def carry(source: socket.socket, sink: socket.socket, watch: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                if watch and piece.startswith(METHODS):
                    seen.heads.append(piece.split(b"\r\n", 1)[0])
                answer = seen.odd(piece) if watch else None
                if answer == RESET:
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                if answer is not None:
                    source.sendall(answer)
                    break
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                if watch and seen.odd(b"") == RESET and end is source:
                    end.close()  # what is left unsent goes with it
                else:
                    end.shutdown(socket.SHUT_RDWR)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                agent, _ = listening.accept()
                service = socket.create_connection((address.hostname, address.port))
                open_.update((agent, service))
                for pair in ((agent, service, True), (service, agent, False)):
                    threads.append(threading.Thread(target=carry, args=pair))
                    threads[-1].start()

    threads = [threading.Thread(target=listen)]
    threads[0].start()
    try:
        yield seen
    finally:
        for one in (listening, *open_):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for one in (listening, *open_):
            one.close()
