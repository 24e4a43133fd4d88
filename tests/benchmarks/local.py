"""How soon a job of the active experiment begins and ends on the service's own machine, beside the same
notebook run by papermill's own command, and by jupyter-scheduler."""

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

from tests.benchmarks.jupyter_scheduler import Scheduler, scheduler
from tests.benchmarks.result import Result
from tests.integration.laboratory import Lab, condition, template

RUNS = 7
CELL = "import time\nfrom pathlib import Path\n_ = Path('began.txt').write_text(repr(time.time()))"


def rows() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name))
        template(lab.templates, "try_it", CELL)
        with scheduler(lab.templates) as peer:
            measured = asyncio.run(_measure(lab, peer))
        lab.store.close()
    first, ours, papermill, scheduled = map(statistics.median, measured)
    yield Result("jobs", "queued → first cell, an interpreter waits, median", first, "s", 0.3)
    name = "submitted → its end known, an interpreter waits, median"
    yield Result("jobs", name, ours, "s", 0.2, peer="papermill", peer_value=papermill)
    yield Result("jobs", name, ours, "s", 0.2, peer="jupyter-scheduler", peer_value=scheduled)


async def _measure(lab: Lab, peer: Scheduler) -> tuple[list[float], ...]:
    """Seconds, run by run: to the first cell, to the end, of papermill's command, of jupyter-scheduler."""
    lab.store.write_sync(lambda tx: tx.instruments.change("sim-mx", active_experiment=lab.experiment))
    runner = LocalRunner(2, lab.folder / "state", lab.data_dir, ready=1)

    async def waits() -> bool:
        return runner.pool.ready(lab.data_dir / lab.experiment) == 1

    first, ours, papermill, scheduled = [], [], [], []
    await asyncio.to_thread(peer.seconds, "try_it.ipynb")  # the first of a server fills its caches
    async with lab.running(lab.engine(runner)):
        for _ in range(RUNS):
            await condition(waits)
            papermill.append(await asyncio.to_thread(_papermill, lab))
            scheduled.append(await asyncio.to_thread(peer.seconds, "try_it.ipynb"))
            began = time.perf_counter()
            done = await lab.until(await lab.submit("try_it"))
            ours.append(time.perf_counter() - began)
            if done.state is not JobState.FINISHED:
                raise SystemExit(f"a job {done.state}: {done.reason}")
            first.append(_cell(lab, done) - _queued(lab, done))
    return first, ours, papermill, scheduled


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
