"""A network that alters what it carries, between the real agent and the real service."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from beamhub.schemas import UploadState
from beamhub.testing import RunningService

from tests.integration.test_agent import RunningAgent, write_large

BEYOND = 3 * 2**20  # bytes of one connection: in the middle of a large file


class Damage:
    """Passes bytes on between an agent and the service, and flips the lowest bit of one of them, once."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.flipped = 0
        self._service = port

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._carry, "127.0.0.1")
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, answer = await asyncio.open_connection("127.0.0.1", self._service)
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pass(reader, answer, harm=True), self._pass(there, writer))

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, harm: bool = False
    ) -> None:
        passed = 0
        while block := bytearray(await source.read(2**16)):
            passed += len(block)
            if harm and passed > BEYOND and not self.flipped:
                block[len(block) // 2] ^= 1
                self.flipped += 1
            target.write(block)
            await target.drain()
        target.close()


@contextmanager
def damaged_way(port: int) -> Iterator[Damage]:
    """A `Damage` in a thread of its own."""
    damage, ready = Damage(port), threading.Event()
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with damage.serving():
            ready.set()
            await over.wait()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=lambda: runner.run(serve()))
        thread.start()
        ready.wait()
        yield damage
        loop.call_soon_threadsafe(over.set)
        thread.join()


@pytest.fixture
def agent(service: RunningService, tmp_path: Path) -> Iterator[RunningAgent]:
    agent = RunningAgent(tmp_path / "agent", service, service.beamtime())
    yield agent
    if agent.process is not None:
        agent.kill()


def test_a_byte_that_is_flipped_on_its_way_is_noticed_and_sent_again(agent: RunningAgent) -> None:
    with damaged_way(agent.service.port) as damage:
        agent.url = f"http://127.0.0.1:{damage.port}"
        agent.start()
        write_large(agent.data / "large.cbf", 24)
        (agent.data / "small.txt").write_text("beside it")
        agent.until_arrived("large.cbf", "small.txt")
        agent.stop()
    assert damage.flipped == 1
    agent.assert_all_there_once()
    states = sorted((u.path, u.state) for u in agent.uploads())
    assert states == [
        ("raw/large.cbf", UploadState.COMPLETE),
        ("raw/large.cbf", UploadState.FAILED),
        ("raw/small.txt", UploadState.COMPLETE),
    ]
    (failed,) = (u for u in agent.uploads() if u.state is UploadState.FAILED)
    assert "another content than announced" in failed.error
    assert "large.cbf is sent again from its beginning" in agent.log
