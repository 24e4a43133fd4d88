"""The detector says that it has finished a file: real sockets, and callers that mean no good."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from beamhub.agent.config import ConfigError, Done
from beamhub.agent.done import MAX_BODY, MAX_CONNECTIONS, Listener, tell
from beamhub.testing import free_port


class Agent:
    """Takes every file below /data."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.heard: list[str] = []

    async def finished(self, path: str) -> str:
        if not path.startswith("/data/"):
            return "is not below a watched directory"
        self.heard.append(path)
        return ""


@asynccontextmanager
async def listening(folder: Path, listen: str = "") -> AsyncIterator[Agent]:
    (folder / "token").write_text("open sesame".replace(" ", "-"))
    (folder / "token").chmod(0o600)
    settings = {"listen": listen or f"127.0.0.1:{free_port()}"}
    if "/" not in settings["listen"]:
        settings["token_file"] = "token"
    agent = Agent(Done.model_validate(settings, context=folder))
    async with Listener(agent.done, agent.finished):
        yield agent


async def exchange(agent: Agent, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*agent.done.address)
    writer.write(request)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def post(body: bytes, *headers: str, target: str = "/done", method: str = "POST") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: agent", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


TOKEN = "Authorization: Bearer open-sesame"
FILES = b'{"files": ["/data/a.h5"]}'


@pytest.mark.parametrize("listen", ["", "./run/done.sock"])
async def test_the_hook_is_heard(tmp_path: Path, listen: str) -> None:
    async with listening(tmp_path, listen) as agent:
        paths = [Path("/data/a.h5"), Path("/data/Å π.h5"), Path("/etc/shadow"), Path("/data/latin-\udce9")]
        heard = await asyncio.to_thread(tell, agent.done, paths)

        assert agent.heard == heard.ready == ["/data/a.h5", "/data/Å π.h5"]
        assert heard.refused == {
            "/etc/shadow": "is not below a watched directory",
            "/data/latin-\udce9": "has a name that is not UTF-8",
        }
        heard = await asyncio.to_thread(tell, agent.done, [Path("/data/latin-\udce9")])
        assert list(heard.refused) == ["/data/latin-\udce9"]


async def test_a_socket_is_for_the_agents_group_and_goes_with_it(tmp_path: Path) -> None:
    async with listening(tmp_path, "./done.sock") as agent:
        assert agent.done.socket
        assert stat.S_IMODE(agent.done.socket.stat().st_mode) == 0o660
    assert not agent.done.socket.exists()

    with pytest.raises(ConfigError, match=r"no agent listens at .*done.sock .* finds the files by itself"):
        await asyncio.to_thread(tell, agent.done, [Path("/data/a.h5")])


async def test_a_socket_that_a_kill_has_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    left = asyncio.get_running_loop()
    server = await left.create_unix_server(asyncio.Protocol, tmp_path / "done.sock")
    server.close()
    await server.wait_closed()
    assert (tmp_path / "done.sock").is_socket()

    async with listening(tmp_path, "./done.sock") as agent:
        assert (await asyncio.to_thread(tell, agent.done, [Path("/data/a.h5")])).ready == ["/data/a.h5"]


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    async with listening(tmp_path) as agent:
        with pytest.raises(ConfigError, match=r"listen under \[done\]: .* can't be used"):
            async with Listener(agent.done, agent.finished):
                pass


async def test_any_http_client_will_do(tmp_path: Path) -> None:
    async with listening(tmp_path) as agent, httpx.AsyncClient(trust_env=False) as client:
        url = f"http://{agent.done.listen}/done"
        answer = await client.post(
            url, json={"files": ["/data/a.h5"]}, headers={"Authorization": "Bearer open-sesame"}
        )
        assert answer.status_code == 200
        assert answer.json() == {"ready": ["/data/a.h5"], "refused": {}}

    async with listening(tmp_path) as agent:
        head, body = post(FILES, TOKEN, "Expect: 100-continue").split(b"\r\n\r\n")
        reader, writer = await asyncio.open_connection(*agent.done.address)
        writer.write(head + b"\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(FILES), 401),
        (post(FILES, "Authorization: Bearer wrong"), 401),
        (post(FILES, "Authorization: Bearer ö"), 401),
        (post(FILES, "Authorization: Basic open-sesame"), 401),
        (post(b"", target="/", method="GET"), 401),
        (post(b"", TOKEN, target="/", method="GET"), 404),
        (post(FILES, TOKEN, target="/done/../etc"), 404),
        (post(FILES, TOKEN, method="GET"), 405),
        (post(b"", TOKEN), 400),
        (post(b"{}", TOKEN), 400),
        (post(b'{"files": []}', TOKEN), 400),
        (post(b'{"files": "/data/a.h5"}', TOKEN), 400),
        (post(b'{"files": ["/data/\\ud800"]}', TOKEN), 400),
        (post(b'{"files": ["/data/a.h5"], "delete": true}', TOKEN), 400),
        (post(b"[" * 100_000, TOKEN), 400),
        (post(b'{"files": ["/etc/shadow"]}', TOKEN), 422),
        (post(b" " * (MAX_BODY + 1), TOKEN), 413),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
        (b"POST /done HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
        (b"\0" * 100_000, 400),
        (b"", 0),
        (post(FILES, TOKEN)[:-1], 400),
    ],
)
async def test_what_is_not_a_proper_message_is_refused(tmp_path: Path, request_: bytes, status: int) -> None:
    async with listening(tmp_path) as agent:
        answer = await exchange(agent, request_)

        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) if status else answer == b""
        assert not agent.heard
        assert (await asyncio.to_thread(tell, agent.done, [Path("/data/a.h5")])).ready, "it no longer listens"


async def test_idle_callers_do_not_keep_others_out(tmp_path: Path) -> None:
    async with listening(tmp_path) as agent:
        idle = [await asyncio.open_connection(*agent.done.address) for _ in range(MAX_CONNECTIONS)]
        reader, writer = await asyncio.open_connection(*agent.done.address)
        assert await reader.read() == b"", "one more was taken"
        for _, other in [*idle, (reader, writer)]:
            other.close()
            await other.wait_closed()

        while not (heard := await knock(agent)):
            pass
        assert heard == ["/data/a.h5"]


async def knock(agent: Agent) -> list[str]:
    try:
        return (await asyncio.to_thread(tell, agent.done, [Path("/data/a.h5")])).ready
    except ConfigError:  # those who have gone are still being seen off
        return []


async def test_a_wrong_token_and_a_stranger_are_told_apart(tmp_path: Path) -> None:
    async with listening(tmp_path) as agent:
        (tmp_path / "token").write_text("another")
        with pytest.raises(ConfigError, match=r"answers: The token is missing or wrong"):
            await asyncio.to_thread(tell, agent.done, [Path("/data/a.h5")])

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nHi")
        writer.close()

    server = await asyncio.start_server(stranger, *agent.done.address)
    with pytest.raises(ConfigError, match="is no beamhub agent"):
        await asyncio.to_thread(tell, agent.done, [Path("/data/a.h5")])
    server.close()
    await server.wait_closed()
