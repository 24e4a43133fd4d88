"""Everything that takes part in an upload is killed, again and again, at random moments, while files come
without a pause: at the end every file is there, as it was, once.

BEAMHUB_CHAOS_KILLS=200 kills more often than there is time for every day; BEAMHUB_CHAOS_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from beamhub.client import ApiError, Unreachable
from beamhub.leftovers import EXPIRES
from beamhub.schemas import Upload, UploadState
from beamhub.testing import Ingest, RunningService, running_service

from tests.integration.agents import RunningAgent

KILLS = int(os.environ.get("BEAMHUB_CHAOS_KILLS", "10"))
PAUSE = 2.0  # seconds at most between two kills
LARGE = 30_000_000  # bytes, of every twentieth file
BURST = 30  # small files, now and then: they go together
PATIENCE = 120.0  # seconds without any file that arrives

pytestmark = pytest.mark.timeout(300 + 20 * KILLS)


class Detector:
    """Writes files until it is told to stop."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.count = 0
        self._folder = folder
        self._chance = chance
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Detector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._stop.wait(self._chance.uniform(0, 0.2)):
            self._write_one(LARGE if self.count % 20 == 0 else 20_000)
            if self._chance.random() < 0.05:
                for _ in range(BURST):
                    self._write_one(20_000)

    def _write_one(self, limit: int) -> None:
        part = self._folder / f"{self.count:05}.part"
        part.write_bytes(self._chance.randbytes(self._chance.randrange(limit)))
        part.rename(self._folder / f"{self.count:05}.bin")
        self.count += 1


class Facility:
    """The processes that take part, and how each is started anew, as the hub and systemd would do."""

    def __init__(
        self, service: RunningService, agent: RunningAgent, kill_database: Callable[[], None] | None
    ):
        first = service.ingest()
        second = service.ingest(first.port)
        agent.url = first.url
        agent.start()
        self._starts: dict[str, Callable[[], subprocess.Popen[bytes]]] = {
            "service": lambda: service.spawn("service", service.port, **service.settings),
            first.name: lambda: service.spawn(
                first.name, 0, **service.settings, ingest=f"127.0.0.1:{first.port}"
            ),
            second.name: lambda: service.spawn(
                second.name, 0, **service.settings, ingest=f"127.0.0.1:{first.port}"
            ),
            "agent": lambda: self._start(agent),
        }
        self._owners: dict[str, RunningService | Ingest | RunningAgent] = {
            "service": service,
            first.name: first,
            second.name: second,
            "agent": agent,
        }
        self._kill_database = kill_database

    def _start(self, agent: RunningAgent) -> subprocess.Popen[bytes]:
        agent.start()
        assert agent.process is not None
        return agent.process

    @property
    def victims(self) -> list[str]:
        return [*self._owners, *(["database"] if self._kill_database else [])]

    def kill(self, victim: str) -> None:
        if victim == "database":
            assert self._kill_database is not None
            self._kill_database()
            return
        process = self._owners[victim].process
        assert process is not None
        process.kill()
        process.wait()

    def revive(self) -> None:
        """Starts what does not run, and waits for nothing."""
        for name, owner in self._owners.items():
            if owner.process is None or owner.process.poll() is not None:
                owner.process = self._starts[name]()


@contextmanager
def database(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, str], Callable[[], None] | None]]:
    """The service's settings for it, and how to kill it."""
    if request.param == "sqlite":  # dies with the processes that use it
        yield {}, None
        return
    url = request.getfixturevalue("postgresql_url")
    address = url.replace("+psycopg", "")
    with psycopg.connect(address, autocommit=True) as connection:
        name = connection.info.dbname
        # what is committed is to outlive a kill, which the server of the tests doesn't promise by itself
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = on'.encode())

    def kill() -> None:
        """One of its processes; the server then ends all others, and recovers."""
        try:
            with psycopg.connect(address, autocommit=True) as connection:
                mine = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                os.kill(random.choice(connection.execute(mine).fetchall())[0], signal.SIGKILL)
                connection.execute("SELECT pg_sleep(60)")  # until the connection breaks
        except psycopg.OperationalError:
            pass  # as it was to be, or it recovers already

    yield {"database_url": url}, kill


@pytest.fixture(params=["sqlite", "postgresql"])
def facility(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Facility, RunningAgent]]:
    with database(request) as (settings, kill), running_service(tmp_path / "service", **settings) as service:
        agent = RunningAgent(tmp_path / "agent", service, service.beamtime(), upload={"parallel": "4"})
        try:
            yield Facility(service, agent, kill), agent
        finally:
            if agent.process is not None:
                agent.kill()


def test_kills_at_random_moments_lose_nothing(facility: tuple[Facility, RunningAgent]) -> None:
    processes, agent = facility
    seed = int(os.environ.get("BEAMHUB_CHAOS_SEED", random.SystemRandom().randrange(2**32)))
    sys.stdout.write(f"BEAMHUB_CHAOS_SEED={seed}\n")
    chance = random.Random(seed)
    victims: list[str] = []  # each as often as the others
    while len(victims) < KILLS:
        victims += chance.sample(processes.victims, len(processes.victims))
    with Detector(agent.data, random.Random(seed + 1)) as detector:
        for victim in victims[:KILLS]:
            time.sleep(chance.uniform(0, PAUSE))  # the moment is random: there is nothing to wait for
            processes.kill(victim)
            processes.revive()
    assert detector.count > KILLS

    uploads: list[Upload] = []

    def arrived() -> bool:
        processes.revive()
        try:
            uploads[:] = agent.uploads()
        except (Unreachable, ApiError):
            return False
        return sum(upload.state is UploadState.COMPLETE for upload in uploads) >= detector.count

    until(arrived, agent, lambda: len(uploads))
    expected = {path.name: path.read_bytes() for path in agent.data.iterdir()}
    folder = agent.service.data_dir / agent.beamtime.experiment
    found = {str(path.relative_to(folder / "raw")): path.read_bytes() for path in (folder / "raw").rglob("*")}
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    complete = sorted(upload.path for upload in uploads if upload.state is UploadState.COMPLETE)
    assert complete == sorted(f"raw/{name}" for name in expected)
    assert {upload.version for upload in uploads if upload.state is UploadState.COMPLETE} == {1}

    def tidy() -> bool:
        """Whatever is still temporary belongs to an upload that has not expired."""
        processes.revive()
        temporary = {path.name: path for path in (folder / ".incoming").iterdir()}
        receiving = {upload.id for upload in uploads if upload.state is UploadState.RECEIVING}
        now = time.time()
        young = all(now - path.stat().st_mtime < EXPIRES.total_seconds() for path in temporary.values())
        return temporary.keys() <= receiving and young

    until(tidy, agent)


def until(done: Callable[[], bool], agent: RunningAgent, progress: Callable[[], int] = int) -> None:
    """Waits as long as there is progress."""
    best, deadline = 0, time.monotonic() + PATIENCE
    while not done():
        if progress() > best:
            best, deadline = progress(), time.monotonic() + PATIENCE
        assert time.monotonic() < deadline, f"{agent.log[-5000:]}\n{agent.service.log[-5000:]}"
        time.sleep(0.1)
