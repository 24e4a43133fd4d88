"""Ports of this machine."""

from __future__ import annotations

import random
import socket

# Below those that Linux gives to outgoing connections: none takes the port of a server that starts again.
_PORTS = range(10000, 32768)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, and that no other process is told for as long as this one
    lives."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)  # noqa: S311  # nothing secret
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0beamhub-port-{port}")  # a name in the kernel only, which ends with this process
            with socket.socket() as trial:
                trial.bind(("127.0.0.1", port))
        except OSError:  # somebody's already
            claim.close()
            continue
        claim.detach()  # it stays open until this process ends
        found.append(port)
    return found
