"""Several services on one database: one runs the jobs, and when it is killed another takes over."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from beamhub.client import ApiError, Client
from beamhub.schemas import JobState
from beamhub.testing import TEMPLATE, Ingest, RunningService, running_service
from beamhub.testing_stores import running_postgresql

WORK = """
import time
from pathlib import Path
with open("begun.txt", "a") as begun:
    begun.write("begun\\n")
while not Path("../../shared/go").exists():
    time.sleep(0.05)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[RunningService, Ingest]]:
    """Two, of which the first is on duty."""
    settings: dict[str, Any] = {}
    if request.param == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgresql_url")
    with running_service(tmp_path / "service", **settings) as first:
        yield first, first.another()


def template_that_waits(service: RunningService) -> None:
    folder = service.folder / "templates"
    notebook = json.loads((folder / f"{TEMPLATE}.ipynb").read_text())
    notebook["cells"][-1]["source"] = WORK
    (folder / "waits.ipynb").write_text(json.dumps(notebook))


def until_on_duty(client: Client) -> None:
    while not client.health().on_duty:
        time.sleep(0.02)  # the next look


def test_another_takes_over_and_no_job_is_lost_or_run_twice(
    services: tuple[RunningService, Ingest],
) -> None:
    first, second = services
    template_that_waits(first)
    beamtime = first.beamtime()
    dataset = first.dataset(beamtime)
    lab = first.licence(beamtime)
    ada = first.client("ada")
    until_on_duty(ada)
    with second.client("ada") as there:
        assert not there.health().on_duty
        jobs = [
            ada.submit(
                beamtime.experiment, "waits", dataset.id, sponsor=lab, parameters={"word": f"job {n}"}
            ).id
            for n in range(3)
        ]
        last = ada.past_events(beamtime.experiment)[-1].id
        folders = [first.data_dir / beamtime.experiment / ada.job(job).folder for job in jobs]
        running = {message.subject for message in _first(there, beamtime.experiment, 2, "job.running")}
        while sum((folder / "begun.txt").exists() for folder in folders) < 2:
            time.sleep(0.02)

        first.kill()
        until_on_duty(there)
        assert {str(job.id) for job in there.jobs(beamtime.experiment) if job.state is JobState.RUNNING} == (
            running
        )
        first.start()  # and waits for its turn
        assert not ada.health().on_duty

        (first.data_dir / beamtime.experiment / "shared" / "go").touch()
        # the events reach whoever listens at the other process
        ended = _first(ada, beamtime.experiment, 3, "job.finished", last)
        assert sorted(int(message.subject) for message in ended) == jobs
        assert [(folder / "begun.txt").read_text() for folder in folders] == ["begun\n"] * 3
        licence = first.client("operator").licence(lab)
        assert licence.held == 0
        assert licence.charged == sum(there.job(job).cpu_seconds for job in jobs)

        assert second.process
        second.kill()
        until_on_duty(ada)


def test_who_takes_over_waits_for_a_database_that_goes_away_just_then(tmp_path: Path) -> None:
    with running_postgresql() as server:
        url = server.url.format("postgres")
        with running_service(tmp_path / "service", database_url=url) as first:
            second = first.another()
            until_on_duty(first.client("ada"))
            assert second.process
            address = url.replace("+psycopg", "")
            waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'moves'::regclass AND NOT granted"
            with (
                contextlib.closing(psycopg.connect(address)) as held,
                contextlib.closing(psycopg.connect(address, autocommit=True)) as looks,
            ):
                held.execute("LOCK TABLE moves IN ACCESS EXCLUSIVE MODE")
                first.kill()
                while looks.execute(waiting).fetchone() == (0,):
                    time.sleep(0.02)  # until the second looks for what the first has left
                server.stop()
            server.start()
            with second.client("ada") as there:
                while not _on_duty(there):
                    assert second.process.poll() is None, second.log
                    time.sleep(0.02)  # the next look


def _on_duty(client: Client) -> bool:
    try:
        return client.health().on_duty
    except ApiError:  # the database is not back yet
        return False


def _first(client: Client, experiment: str, many: int, kind: str, last: int = 1) -> list[Any]:
    """The first messages of a kind after the event `last`."""
    found = []
    for message in client.events(experiment, last):
        if message.kind == kind:
            found.append(message)
        if len(found) == many:
            break
    return found
