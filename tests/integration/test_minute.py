"""What is away for a whole minute, with every time-out as it is shipped: SQLite's file locked by another
process, PostgreSQL's server down, Slurm's controller down. Jobs run, members submit more, the instrument
sends, and somebody follows it all: nothing is lost, nothing is done twice, and all goes on by itself.

The three have a service each, and share the minute.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from beamhub.client import ApiError, Client, Message
from beamhub.schemas import Job, JobState, LedgerKind, Problem, TriggerCreate, TriggerEvent
from beamhub.testing import Beamtime, RunningService, running_service, write_dataset
from beamhub.testing_slurm import running_cluster
from beamhub.testing_stores import running_postgresql
from pydantic import JsonValue

from tests.integration.agents import RunningAgent
from tests.integration.laboratory import template
from tests.integration.test_slurm import PROFILES

MINUTE = 60.0  # seconds
LATE = 2  # jobs that a member submits meanwhile
LAST = "ben"  # becomes a member when all is over, which is the last that is told
WAIT = """
import os, time
with open("runs.txt", "a") as runs:
    runs.write("once\\n")
print("begun", flush=True)
while label and not os.path.exists(os.path.join(os.path.dirname(data), "..", "shared", label)):
    time.sleep(0.05)
"""

pytestmark = pytest.mark.timeout(600)


@dataclass
class Site:
    """A service of its own, and all who use it."""

    service: RunningService
    agent: RunningAgent
    profile: str
    licence: str
    break_: Callable[[], object]
    mend: Callable[[], object]
    jobs: list[Job] = field(default_factory=list)  # whose submission was answered
    refused: list[Problem] = field(default_factory=list)  # what members were told instead
    told: list[Message] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def beamtime(self) -> Beamtime:
        return self.agent.beamtime

    @property
    def ada(self) -> Client:
        return self.service.client("ada")

    @property
    def folder(self) -> Path:
        return self.service.data_dir / self.beamtime.experiment

    def submit(self, label: str = "") -> Job:
        known = [dataset.id for dataset in self.datasets if dataset.name == "lyso"]
        parameters: dict[str, JsonValue] = {"n": len(self.jobs), "label": label}
        job = self.ada.submit(
            *(self.beamtime.experiment, "wait", known),
            sponsor=self.licence,
            parameters=parameters,
            profile=self.profile,
        )
        self.jobs.append(job)
        return job

    def begin(self) -> None:
        """Jobs run, the agent has begun, and somebody follows."""
        template(self.service.folder / "templates", "wait", WAIT)
        rule = TriggerCreate(
            title="Each that is called auto",
            event=TriggerEvent.DATASET_COMPLETE,
            pattern="auto*",
            template="wait",
            profile=self.profile,
            sponsor=self.licence,
        )
        self.service.client("sam").create_trigger(self.beamtime.instrument, rule)
        self._do(self._follow)
        write_dataset(self.agent.data, "lyso")
        self.agent.start()
        self.agent.until(
            lambda: [one.state for one in self.ada.datasets(self.beamtime.experiment)] == ["complete"]
        )
        self.datasets = self.ada.datasets(self.beamtime.experiment)
        for label in ("early", "late"):
            self.submit(label)
        self.agent.until(lambda: all("begun" in self.ada.job_log(job.id)[0] for job in self.jobs))

    def _follow(self) -> None:
        with self.service_client() as client:
            for message in client.events(self.beamtime.experiment, last_id=0):
                if message.id is not None:
                    self.told.append(message)
                if (message.kind, message.subject) == ("member.added", LAST):
                    return

    def service_client(self) -> Client:
        return Client(self.service.url, self.service.tokens["ada"])

    def go_on(self) -> None:
        """Members and the instrument do as if nothing had happened."""
        self._do(self._insist)
        write_dataset(self.agent.data, "auto")
        self.let_go("early")

    def _insist(self) -> None:
        """A member who submits jobs, and does as told where that is refused."""
        wanted = len(self.jobs) + LATE
        while len(self.jobs) < wanted:
            try:
                self.submit()
            except ApiError as error:
                self.refused.append(error.problem)
                time.sleep(1.0)  # a person's patience, rather than the minute that is asked for

    def _do(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def let_go(self, label: str) -> None:
        (self.folder / "shared" / label).touch()

    def end(self) -> None:
        """Until all that was asked for is there, and all of it has been told."""
        follower, member = self._threads
        member.join()
        self.let_go("late")
        self.agent.until(lambda: len(self.ada.jobs(self.beamtime.experiment)) == len(self.jobs) + 1)
        for job in self.ada.jobs(self.beamtime.experiment):
            self.ada.wait(job.id)
        self.agent.until_arrived(*(path.name for path in self.agent.data.iterdir()))
        self.service.client("sam").add_member(self.beamtime.experiment, LAST)
        follower.join()

    def assert_nothing_is_lost(self) -> None:
        assert self.service.process
        assert self.service.process.poll() is None  # it was never started again
        self.agent.assert_all_there_once()
        jobs = self.ada.jobs(self.beamtime.experiment)
        [automatic] = {job.id for job in jobs} - {job.id for job in self.jobs}
        assert self.ada.job(automatic).launched_by not in ("ada", "sam")
        ledger = self.service.client("operator").ledger(self.licence)
        for job in jobs:
            assert (job.state, job.reason) == (JobState.FINISHED, ""), self.service.log
            assert (self.folder / job.folder / "runs.txt").read_text() == "once\n"
            [attempt] = self.ada.attempts(job.id)
            assert attempt.cpu_seconds == job.cpu_seconds
            lines = {
                kind: [line.cpu_seconds for line in ledger if line.job == job.id and line.kind is kind]
                for kind in LedgerKind
            }
            assert lines[LedgerKind.CHARGE] == [job.cpu_seconds]
            assert sum(lines[LedgerKind.HOLD]) == job.cpu_seconds + sum(lines[LedgerKind.RELEASE])
            assert len(lines[LedgerKind.HOLD]) == 1
        paid = self.service.client("operator").licence(self.licence)
        assert (paid.held, paid.charged) == (0, sum(job.cpu_seconds for job in jobs))
        happened = [event.id for event in self.ada.past_events(self.beamtime.experiment)]
        assert [message.id for message in self.told] == happened

    def assert_told_what_to_do(self, detail: str) -> None:
        assert self.refused
        for problem in self.refused:
            assert (problem.status, problem.detail) == (503, detail)
            assert problem.remedy == "Try again in a minute; if it stays so, tell the facility's operators."


@contextlib.contextmanager
def site(
    folder: Path, profile: str, break_: Callable[[], object], mend: Callable[[], object], **settings: object
) -> Iterator[Site]:
    profiles = [one.model_dump() for one in PROFILES]
    with running_service(folder / "service", profiles=profiles, **settings) as service:
        beamtime = service.beamtime()
        agent = RunningAgent(folder / "agent", service, beamtime)
        try:
            yield Site(service, agent, profile, service.licence(beamtime), break_, mend)
        finally:
            if agent.process is not None:
                agent.kill()


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Site]:
    """Whose database's file another process can lock."""
    path = tmp_path / "beamhub.db"
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(
            site(
                *(tmp_path / "sqlite", "local"),
                lambda: other.execute("BEGIN EXCLUSIVE"),
                lambda: other.execute("ROLLBACK"),
                database_url=f"sqlite:///{path}",
            )
        )
        other = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
        yield found


@pytest.fixture
def on_postgresql(tmp_path: Path) -> Iterator[Site]:
    """Whose database's server can be stopped."""
    with running_postgresql() as server:
        url = server.url.format("postgres")
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            # what is committed is to outlive the end, which servers of tests don't promise by themselves
            connection.execute("ALTER DATABASE postgres SET synchronous_commit = on")
        with site(tmp_path / "pg", "local", server.stop, server.start, database_url=url) as found:
            yield found


@pytest.fixture
def on_slurm(tmp_path: Path) -> Iterator[Site]:
    """Whose controller can be killed."""
    with (
        running_cluster(tmp_path / "cluster") as cluster,
        site(
            *(tmp_path / "slurm", "one"),
            cluster.stop_controller,
            cluster.start_controller,
            database_url=f"sqlite:///{tmp_path / 'slurm.db'}",
            slurm={"conf": str(cluster.conf)},
        ) as found,
    ):
        yield found


def test_a_minute_without_database_or_scheduler_loses_nothing(
    on_sqlite: Site, on_postgresql: Site, on_slurm: Site
) -> None:
    sites = on_sqlite, on_postgresql, on_slurm
    for one in sites:
        one.begin()
    for one in sites:
        one.break_()
    over = time.monotonic() + MINUTE
    for one in sites:
        one.go_on()
    count = 0
    while time.monotonic() < over:
        for one in sites:
            (one.agent.data / f"{count:03}.bin").write_bytes(b"%d" % count)
        for one in (on_sqlite, on_slurm):  # all can still be looked at
            assert one.ada.job(one.jobs[1].id).state is JobState.RUNNING
        with pytest.raises(ApiError, match="database does not answer") as refused:
            on_postgresql.ada.experiments()
        assert refused.value.status == 503
        count += 1
        time.sleep(1.0)  # another second of the minute
    assert on_slurm.ada.job(on_slurm.jobs[1].id).reason.startswith("Slurm has not answered since ")
    mended = datetime.now(UTC)
    for one in sites:
        one.mend()
    for one in sites:
        one.end()
        one.assert_nothing_is_lost()
    on_sqlite.assert_told_what_to_do("The service's database is locked.")
    on_postgresql.assert_told_what_to_do("The service's database does not answer.")
    assert not on_slurm.refused
    for one in (on_sqlite, on_postgresql):  # what ended meanwhile cost no more than it used
        early = one.ada.job(one.jobs[0].id)
        assert early.started
        assert early.ended
        assert early.ended < mended
        assert early.cpu_seconds == math.ceil((early.ended - early.started).total_seconds())
