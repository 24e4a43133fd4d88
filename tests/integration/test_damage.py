"""A network that alters what it carries, between the real agent and the real service."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from beamhub.agent.sent import AT_ONCE
from beamhub.agent.service import PART
from beamhub.schemas import UploadState
from beamhub.testing import Ingest, running_service
from beamhub.testing_stores import new_database

from tests.integration.agents import RunningAgent, grown, write_large
from tests.integration.test_agent_growing import say_done
from tests.integration.tus import BINARY, agent_of, announce, open_patch, send

MIB = 2**20


class Damage:
    """Passes bytes on between an agent and the service, and flips the lowest bit of some of them, each once.

    Args:
        places: how many bytes the agent has sent before each of these.
        deaths: and before each of these is called; nothing is passed on meanwhile.
    """

    def __init__(self, port: int, places: Sequence[int], deaths: Mapping[int, Callable[[], None]]) -> None:
        self.port = 0
        self.carried = 0  # bytes from the agent
        self.places = list(places)
        self.deaths = dict(deaths)
        self._service = port

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._carry, "127.0.0.1")
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            there, answer = await asyncio.open_connection("127.0.0.1", self._service)
            with contextlib.closing(answer):
                await asyncio.gather(self._pass(reader, answer, harm=True), self._pass(there, writer))

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, harm: bool = False
    ) -> None:
        while block := bytearray(await source.read(2**16)):
            if harm:
                self.carried += len(block)
            if harm and self.places and self.carried > self.places[0]:
                block[len(block) // 2] ^= 1
                del self.places[0]
            for place in [place for place in self.deaths if harm and self.carried > place]:
                self.deaths.pop(place)()
            target.write(block)
            await target.drain()
        target.close()


@contextmanager
def damaged_way(
    port: int, *places: int, deaths: Mapping[int, Callable[[], None]] | None = None
) -> Iterator[Damage]:
    """A `Damage` in a thread of its own."""
    damage, ready = Damage(port, places, deaths or {}), threading.Event()
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with damage.serving():
            ready.set()
            await over.wait()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=lambda: runner.run(serve()))
        thread.start()
        ready.wait()
        try:
            yield damage
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()


@pytest.mark.parametrize(
    ("places", "again"),
    [
        ([3], PART),
        ([100], PART),
        ([150], 160 * MIB - 2 * PART),
        ([100, 150], 2 * PART),  # the same part, both times that it is sent
        ([100, 200], PART + 160 * MIB - 2 * PART),
    ],
)
def test_a_byte_that_is_flipped_on_its_way_costs_its_part(
    agent: RunningAgent, places: list[int], again: int
) -> None:
    with damaged_way(agent.service.port, *(place * MIB for place in places)) as damage:
        agent.url = f"http://127.0.0.1:{damage.port}"
        agent.start()
        write_large(agent.data / "large.cbf", 160)
        agent.until_arrived("large.cbf")
        agent.stop()
    assert damage.places == []
    agent.assert_all_there_once()
    assert [u.state for u in agent.uploads()] == [UploadState.COMPLETE]
    assert 0 < damage.carried - 160 * MIB - again < MIB, "what else was sent again?"
    assert agent.log.count("A part of raw/large.cbf was damaged on its way") == len(places)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ingest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingest]:
    """A process that takes uploads, and may be killed."""
    folder = tmp_path_factory.mktemp("ingest")
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{folder / 'beamhub.db'}"
        if request.param == "postgresql":
            url = stack.enter_context(new_database(request.getfixturevalue("postgresql_server"), "template1"))
        yield stack.enter_context(running_service(folder / "service", database_url=url)).ingest()


@pytest.mark.parametrize(
    ("place", "death", "again"),
    [
        (100, 110, 110),  # parts end at 64, and at 64 behind what had come before the kill
        (120, 110, 110),
        (140, 130, 64),
    ],
)
def test_a_byte_that_is_flipped_around_a_kill_costs_its_part(
    ingest: Ingest, tmp_path: Path, place: int, death: int, again: int
) -> None:
    """In what the process had received that was killed, or in what the next one receives."""
    agent = RunningAgent(tmp_path / "agent", ingest.service, ingest.service.beamtime())

    def die() -> None:
        """Once it has received nearly all that is on its way to it."""
        folder = ingest.service.data_dir / agent.beamtime.experiment / ".incoming"
        agent.until(lambda: sum(file.stat().st_size for file in folder.iterdir()) > (death - 2) * MIB)
        ingest.kill()
        ingest.start()

    with damaged_way(ingest.port, place * MIB, deaths={death * MIB: die}) as damage:
        agent.url = f"http://127.0.0.1:{damage.port}"
        agent.start()
        write_large(agent.data / "large.cbf", 192)
        agent.until_arrived("large.cbf")
        agent.stop()
    assert (damage.places, damage.deaths) == ([], {})
    agent.assert_all_there_once()
    assert [u.state for u in agent.uploads()] == [UploadState.COMPLETE]
    assert 0 < damage.carried - (192 + again) * MIB < 3 * MIB, "what else was sent again?"
    assert agent.log.count("A part of raw/large.cbf was damaged on its way") == 1


def test_what_a_kill_has_kept_from_being_compared_has_not_arrived(ingest: Ingest) -> None:
    """A file that nothing vouches for but the checksums of its parts."""
    beamtime = ingest.service.beamtime()
    content = os.urandom(3 * MIB)
    checksum = f"sha1 {base64.b64encode(hashlib.sha1(content[1000:]).digest()).decode()}"
    with agent_of(ingest, beamtime.agent_token) as agent:
        url = announce(agent, "a.bin", len(content))
        assert send(agent, url, 0, content[:1000]).status_code == 204
    folder = ingest.service.data_dir / beamtime.experiment / ".incoming"
    temporary = folder / url.rpartition("/")[2]
    token, length = beamtime.agent_token, len(content) - 1000
    with open_patch(ingest, token, url, length, 1000, checksum) as connection:
        connection.sendall(bytes(length // 2))
        while temporary.stat().st_size < length // 2:
            continue
        ingest.kill()
    ingest.start()
    with agent_of(ingest, beamtime.agent_token) as agent:
        assert agent.head(url).headers["Upload-Offset"] == "1000"
        sent = agent.patch(
            url,
            headers={"Upload-Offset": "1000", "Upload-Checksum": checksum, **BINARY},
            content=content[1000:],
        )
        assert sent.status_code == 204
    assert ingest.service.client("ada").file(beamtime.experiment, "raw/a.bin") == content
    assert list(folder.iterdir()) == []


def test_a_byte_that_is_flipped_while_a_file_grows_costs_one_request(agent: RunningAgent) -> None:
    """Once in what is appended, and once in what is sent again because its writer has changed it."""
    agent.settings |= {"grow": '["*.log"]', "settle": "3600"}
    agent.tables = '[done]\nlisten = "./done.sock"\n'
    path, size = agent.data / "motors.log", 12 * MIB
    with damaged_way(agent.service.port, 5 * MIB, size + AT_ONCE + MIB // 2) as damage:
        agent.url = f"http://127.0.0.1:{damage.port}"
        agent.start()
        path.write_bytes(os.urandom(size))
        agent.until(grown(agent, 12))
        with path.open("r+b") as file:
            file.write(os.urandom(MIB))
        say_done(agent, path)
        agent.until_arrived("motors.log")
        agent.stop()
    assert damage.places == []
    agent.assert_all_there_once()
    assert [u.state for u in agent.uploads()] == [UploadState.COMPLETE]
    assert 0 < damage.carried - size - AT_ONCE - 2 * MIB < MIB, "what else was sent again?"
