"""What many jobs cost: pages of a long list, and an engine that has nothing to do but 500 jobs that wait."""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from beamhub.schemas import JobCreate, JobState, LicenceCreate
from beamhub.store import Transaction
from beamhub.store.tables import experiments, jobs
from sqlalchemy import insert

from tests.benchmarks.result import percentile
from tests.integration.laboratory import ADA, OPERATOR, PROFILES, Lab, template

Row = tuple[str, float, str, float | None]  # what, how much, unit, target

MANY = 200_000
SHARES = 40  # experiments that the jobs are of
PAGES = 300
PENDING = 500
IDLE = 20.0  # seconds


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name))
        yield from asyncio.run(_idle(lab))
        _fill(lab)
        gc.collect()
        gc.freeze()  # as the service does when it has started
        yield from asyncio.run(_pages(lab))
        lab.store.close()


async def _idle(lab: Lab) -> list[Row]:
    """CPU time of this process while an engine looks after jobs that wait for credit."""
    template(lab.templates, "try_it", "1")
    await lab.licences.create(OPERATOR, LicenceCreate(id="empty", title="Empty", kind="user", owner="ada"))
    request = JobCreate(template="try_it", inputs=[lab.dataset], profile="cpu-1", sponsor="empty")
    await asyncio.gather(*(lab.jobs.submit(ADA, lab.experiment, request) for _ in range(PENDING)))
    async with lab.running():
        await asyncio.sleep(IDLE / 4)  # it has seen them all
        before = time.process_time()
        await asyncio.sleep(IDLE)
        used = time.process_time() - before
    return [(f"an idle service with {PENDING} pending jobs: of one core", 100 * used / IDLE, "%", 2.0)]


def _fill(lab: Lab) -> None:
    def work(tx: Transaction) -> None:
        ids = [lab.experiment, *(f"sim-mx-2020-{n:05}" for n in range(1, SHARES))]
        now = datetime.now(UTC)
        tx.jobs._connection.execute(
            insert(experiments),
            [
                {
                    "id": id_,
                    "instrument": "sim-mx",
                    "title": id_,
                    "state": "processing",
                    "pi": "ada",
                    "created": now,
                }
                for id_ in ids[1:]
            ],
        )
        chance = random.Random(1)
        many: dict[str, Any] = {f"metric_{n}": {"value": n / 7, "unit": "Å"} for n in range(20)}
        states = [JobState.FINISHED] * 18 + [JobState.FAILED, JobState.CANCELLED]
        for start in range(0, MANY, 5000):
            tx.jobs._connection.execute(
                insert(jobs),
                [
                    {
                        "experiment": chance.choice(ids),
                        "template": "try_it",
                        "template_version": "0" * 16,
                        "title": "Try it",
                        "state": chance.choice(states),
                        "reason": "",
                        "parameters": {"n": n, "label": ""},
                        "inputs": [{"kind": "dataset", "id": lab.dataset, "name": "lyso"}],
                        "dataset": lab.dataset if n % 100 == 0 else None,
                        "profile": PROFILES[0].model_dump(),
                        "live": False,
                        "sponsor": "lab",
                        "launched_by": "trigger:1",
                        "priority": 0,
                        "created": now,
                        "started": now,
                        "ended": now + timedelta(seconds=60),
                        "cpu_seconds": 60,
                        "held": 0,
                        "progress": {"fraction": 1.0, "step": ""},
                        "metrics": many,
                        "artifacts": [],
                    }
                    for n in range(start, start + 5000)
                ],
            )

    lab.store.write_sync(work)


async def _pages(lab: Lab) -> list[Row]:
    """Pages of 100 jobs from everywhere in the lists that people ask for."""
    chance = random.Random(2)
    few, two = lab.experiment, frozenset({lab.experiment, "sim-mx-2020-00001"})
    lists: list[Callable[[Transaction, str | None], Any]] = [
        lambda tx, after: tx.jobs.list(only=None, after=after, limit=100),
        lambda tx, after: tx.jobs.list(only=frozenset({few}), after=after, limit=100),
        lambda tx, after: tx.jobs.list(only=None, experiment=few, after=after, limit=100),
        lambda tx, after: tx.jobs.list(only=None, state=JobState.FAILED, after=after, limit=100),
        lambda tx, after: tx.jobs.list(
            only=None, experiment=few, state=JobState.FAILED, after=after, limit=100
        ),
        lambda tx, after: tx.jobs.list(only=two, after=after, limit=100),
        lambda tx, after: tx.jobs.list(only=two, state=JobState.FAILED, after=after, limit=100),
        lambda tx, after: tx.jobs.list(only=two, dataset=lab.dataset, after=after, limit=100),
    ]
    taken = []
    for n in range(PAGES):
        place = None if n < len(lists) else _cursor(chance.randrange(MANY // 50, MANY))
        began = time.perf_counter()
        await lab.store.read(lambda tx, n=n, place=place: lists[n % len(lists)](tx, place))  # type: ignore[misc]
        taken.append(time.perf_counter() - began)
    return [(f"any page of {MANY:,} jobs, p95", 1000 * percentile(taken, 95), "ms", 20.0)]


def _cursor(job: int) -> str:
    from beamhub.store.pages import _encode

    return _encode([job])
