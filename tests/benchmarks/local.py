"""How soon a job of the active experiment begins and ends on the service's own machine, beside the same
notebook run by papermill's own command."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beamhub.runners.local import LocalRunner
from beamhub.schemas import Job, JobState

from tests.benchmarks.result import Result
from tests.integration.test_jobs import Lab, condition, template

RUNS = 7
CELL = "import time\nfrom pathlib import Path\n_ = Path('began.txt').write_text(repr(time.time()))"


def rows() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name))
        template(lab.templates, "try_it", CELL)
        first, ours, theirs = asyncio.run(_measure(lab))
        lab.store.close()
    yield Result(
        "jobs", "queued → first cell, an interpreter waits, median", statistics.median(first), "s", 0.3
    )
    peer = statistics.median(theirs)
    name = "submitted → its end known, an interpreter waits, median"
    yield Result("jobs", name, statistics.median(ours), "s", 0.2, peer="papermill", peer_value=peer)


async def _measure(lab: Lab) -> tuple[list[float], list[float], list[float]]:
    """Seconds, run by run: to the first cell, to the end, and of papermill's command."""
    lab.store.write_sync(lambda tx: tx.instruments.change("sim-mx", active_experiment=lab.experiment))
    runner = LocalRunner(2, lab.folder / "state", lab.data_dir, ready=1)

    async def waits() -> bool:
        return runner.pool.ready(lab.data_dir / lab.experiment) == 1

    first, ours, theirs = [], [], []
    async with lab.running(lab.engine(runner)):
        for _ in range(RUNS):
            await condition(waits)
            theirs.append(await asyncio.to_thread(_papermill, lab))
            began = time.perf_counter()
            done = await lab.until(await lab.submit("try_it"))
            ours.append(time.perf_counter() - began)
            if done.state is not JobState.FINISHED:
                raise SystemExit(f"a job {done.state}: {done.reason}")
            first.append(_cell(lab, done) - _queued(lab, done))
    return first, ours, theirs


def _cell(lab: Lab, job: Job) -> float:
    return float((lab.data_dir / lab.experiment / job.folder / "began.txt").read_text())


def _queued(lab: Lab, job: Job) -> float:
    events = lab.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    return next(
        one.time for one in events if (one.kind, one.subject) == ("job.queued", str(job.id))
    ).timestamp()


def _papermill(lab: Lab) -> float:
    command = [
        str(Path(sys.executable).with_name("papermill")),
        str(lab.templates / "try_it.ipynb"),
        "out.ipynb",
    ]
    began = time.perf_counter()
    subprocess.run(
        [*command, "-p", "n", "1", "--no-progress-bar"], check=True, capture_output=True, cwd=lab.folder
    )
    return time.perf_counter() - began
