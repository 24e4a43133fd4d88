"""Ports of this machine."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for trial in sockets:
            trial.bind(("127.0.0.1", 0))
        return [int(trial.getsockname()[1]) for trial in sockets]
    finally:
        for trial in sockets:
            trial.close()
