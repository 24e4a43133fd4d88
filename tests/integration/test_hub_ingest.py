"""Several processes that take uploads, as services of a real hub, behind its proxy and beside it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from beamhub.client import Client
from beamhub.testing import Beamtime, RunningService
from beamhub_hub.processes import MARK
from beamhub_hub.site import Site
from beamhub_hub.testing import RunningDemo

from tests.conftest import StartDemo
from tests.integration.agents import RunningAgent, write_large

pytestmark = pytest.mark.timeout(600)


class Beside:
    """The service itself, for a test to look at what has come: past the proxy, which answers 503 to who has
    just asked what dies."""

    def __init__(self, demo: RunningDemo, site: Site, stack: contextlib.ExitStack) -> None:
        self._users, self._stack = demo.credentials.users, stack
        self._clients: dict[str, Client] = {}
        self.url, self.data_dir = site.service_url, site.data

    def client(self, name: str) -> Client:
        if name not in self._clients:
            client = Client(self.url, self._users[name].token)
            self._clients[name] = self._stack.enter_context(client)
        return self._clients[name]


def ingest_processes(demo: RunningDemo) -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            marked = f"{MARK}={demo.state}".encode() in (process / "environ").read_bytes().split(b"\0")
            # the server itself, rather than the shell that begins it
            if marked and (process / "cmdline").read_bytes().split(b"\0")[-2].endswith(b"config/ingest.py"):
                found.add(int(process.name))
    return found


def taker(demo: RunningDemo, upload: str) -> int | None:
    """The ingest process that takes this upload just now."""
    for process in ingest_processes(demo):
        with contextlib.suppress(OSError):
            for file in Path(f"/proc/{process}/fd").iterdir():
                if os.readlink(file).endswith(f".incoming/{upload}"):  # noqa: PTH115
                    return process
    return None


@pytest.fixture
def demo(start_demo: StartDemo) -> Iterator[RunningDemo]:
    demo = start_demo("--no-acquisition", "--ingest=2")
    yield demo
    demo.end()


def test_they_leave_a_cpu_to_the_others(demo: RunningDemo) -> None:
    """Or what everybody else asks of the service waits for its turn while a detector's data come."""
    cpus = os.sched_getaffinity(0)
    found = ingest_processes(demo)
    assert len(found) == 2
    for process in found:
        for thread in Path(f"/proc/{process}/task").iterdir():
            assert os.sched_getaffinity(int(thread.name)) == (cpus - {min(cpus)} or cpus)


@pytest.fixture
def new_agent(demo: RunningDemo, tmp_path: Path) -> Iterator[Callable[[str, str], RunningAgent]]:
    """Makes the agent of a new instrument, that sends to this address."""
    agents: list[RunningAgent] = []
    stack = contextlib.ExitStack()
    site = Site.model_validate_json((demo.state / "site.json").read_text())
    # it has all of a service that an agent's tests look at
    service = cast("RunningService", Beside(demo, site, stack))

    def make(instrument: str, url: str) -> RunningAgent:
        sam = demo.client("sam")
        with demo.operator() as operator:
            operator.create_instrument(instrument, instrument, staff=["sam"])
        experiment = sam.create_experiment(instrument, "Lysozyme", pi="ada").id
        sam.activate(instrument, experiment)
        token = sam.new_instrument_token(instrument).token
        agent = RunningAgent(tmp_path / instrument, service, Beamtime(instrument, experiment, token))
        agent.url = url
        agent.upload["limit"] = '"8 MB/s"'
        agents.append(agent)
        return agent

    yield make
    for agent in agents:
        if agent.process is not None:
            agent.kill()
    stack.close()


def test_one_of_two_dies_while_two_agents_send(
    demo: RunningDemo, new_agent: Callable[[str, str], RunningAgent]
) -> None:
    site = Site.model_validate_json((demo.state / "site.json").read_text())
    before = ingest_processes(demo)
    assert (site.ingest, len(before)) == (2, 2)
    agents = [new_agent("mx-1", demo.url), new_agent("mx-2", site.ingest_url)]
    for agent in agents:
        write_large(agent.data / "large.cbf", 96)
        agent.start()
    halfway = [agent.until_halfway() for agent in agents]
    for agent in agents:
        for number in range(40):
            (agent.data / f"{number}.log").write_bytes(os.urandom(1000 + number))
    taking: list[int] = []

    def found() -> bool:
        taking[:] = [pid for upload in halfway if (pid := taker(demo, upload.id))]
        return bool(taking)

    agents[0].until(found)
    os.kill(taking[0], signal.SIGKILL)
    for agent in agents:
        agent.until_arrived("large.cbf", *(f"{number}.log" for number in range(40)))
        agent.assert_all_there_once()
    for agent, upload in zip(agents, halfway, strict=True):
        (large,) = (u for u in agent.uploads() if u.path == "raw/large.cbf")
        assert large.id == upload.id, "it was sent again from its beginning"
    agents[0].until(lambda: len(now := ingest_processes(demo)) == 2 and taking[0] not in now)
    assert len(before & ingest_processes(demo)) == 1
