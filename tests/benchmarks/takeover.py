"""How soon another service runs the jobs when the one that does is killed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beamhub.client import Client
from beamhub.schemas import JobState
from beamhub.testing import TEMPLATE, Ingest, RunningService, running_service
from beamhub.testing_stores import running_postgresql

DEATHS = 3  # of each kind of database

Row = tuple[str, float, str, float | None]  # what, how much, unit, target


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name, running_postgresql() as server:
        for kind, url in (("SQLite", f"sqlite:///{name}/beamhub.db"), ("PostgreSQL", server.url)):
            seconds = _deaths(Path(name) / kind, url.format("postgres"))
            yield (
                f"the service that runs the jobs killed → another begins one, {kind}, worst",
                seconds,
                "s",
                5.0,
            )


def _deaths(folder: Path, url: str) -> float:
    """The longest time from a kill to the start of a job that was submitted at once."""
    seconds = []
    with running_service(folder, database_url=url) as first:
        second = first.another()
        beamtime = first.beamtime()
        dataset, licence = first.dataset(beamtime).id, first.licence(beamtime)
        with second.client("ada") as there:
            clients: list[Client] = [first.client("ada"), there]
            services: list[RunningService | Ingest] = [first, second]
            for number in range(DEATHS):
                while not clients[0].health().on_duty:
                    time.sleep(0.02)
                services[0].kill()
                began = time.perf_counter()
                ada = clients[1]
                job = ada.submit(
                    *(beamtime.experiment, TEMPLATE, dataset),
                    sponsor=licence,
                    parameters={"word": f"death {number}"},
                )
                while ada.job(job.id).state in (JobState.PENDING, JobState.QUEUED):
                    time.sleep(0.02)
                seconds.append(time.perf_counter() - began)
                ada.wait(job.id)
                services[0].start()
                services.reverse()
                clients.reverse()
    return max(seconds)
