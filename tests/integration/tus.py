"""Uploads by the tus protocol, byte by byte on the wire."""

from __future__ import annotations

import base64
import socket

import httpx
from beamhub.testing import Ingest, RunningService

TUS = {"Tus-Resumable": "1.0.0"}
BINARY = {"Content-Type": "application/offset+octet-stream"}


def agent_of(service: RunningService | Ingest, token: str) -> httpx.Client:
    return httpx.Client(base_url=service.api, headers={"Authorization": f"Bearer {token}", **TUS}, timeout=60)


def metadata(**values: str) -> dict[str, str]:
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    return {"Upload-Metadata": ",".join(pairs)}


def announce(agent: httpx.Client, name: str, size: int, digest: str | None = None) -> str:
    """The URL of a new upload."""
    given = metadata(filename=name, **({"xxh128": digest} if digest else {}))
    answer = agent.post("uploads", headers={"Upload-Length": str(size), **given})
    assert answer.status_code == 201, answer.text
    return str(answer.url.join(answer.headers["Location"]))


def send(agent: httpx.Client, url: str, offset: int, content: bytes) -> httpx.Response:
    return agent.patch(url, headers={"Upload-Offset": str(offset), **BINARY}, content=content)


def open_patch(
    service: RunningService | Ingest, token: str, url: str, length: int, offset: int = 0, checksum: str = ""
) -> socket.socket:
    """A connection on which the head of a PATCH has been sent, and none of its body."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    head = (
        f"PATCH {httpx.URL(url).raw_path.decode()} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {token}\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
        f"{f'Upload-Checksum: {checksum}' if checksum else 'X-Nothing: 0'}\r\n"
        f"Content-Type: application/offset+octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )
    connection.sendall(head.encode())
    return connection
