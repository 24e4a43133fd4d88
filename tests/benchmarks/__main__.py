"""`make bench`: measures what is promised about speed, on this machine, and writes .bench/results.json.

    python -m tests.benchmarks [frames|jobs|processing|pages|api …]

One run of the demo serves three areas: a fresh facility, one acquisition, DIALS. Nothing here fails when a
number is missed: the table says so.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from beamhub.client import Client
from beamhub.schemas import JobState
from beamhub_hub.demo import BEAMHUB
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from tests.acceptance.conftest import QUIET
from tests.benchmarks import slurm

RESULTS = Path(".bench/results.json")
FRAMES, RATE = 60, 5
REQUESTS = 300


@dataclass(frozen=True)
class Result:
    """One number. `better` says on which side of the target it has to be."""

    area: str
    name: str
    value: float
    unit: str
    target: float | None = None
    better: str = "lower"
    peer: str | None = None
    peer_value: float | None = None

    def row(self) -> dict[str, object]:
        ratio = self.value / self.peer_value if self.peer_value else None
        met = None
        if self.target is not None:
            met = self.value <= self.target if self.better == "lower" else self.value >= self.target
        return asdict(self) | {"ratio": ratio, "met": met}


def frames() -> Iterator[Result]:
    """The virtual detector at full speed on one core."""
    for detector, target in (("1M", 10.0), ("4M", None)):
        with tempfile.TemporaryDirectory() as folder:
            command = [*BEAMHUB, "simulate", f"--folder={folder}", f"--detector={detector}", "--json"]
            seconds = []
            for count in (1, 10, 110):  # the first one compiles; the others' difference leaves start-up aside
                began = time.perf_counter()
                subprocess.run(
                    [*command, f"--prefix=n{count}", f"--frames={count}", "--rate=1000"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    preexec_fn=lambda: os.sched_setaffinity(0, {0}),
                )
                seconds.append(time.perf_counter() - began)
            rate = 100 / (seconds[2] - seconds[1])
        yield Result("frames", f"simulate {detector}, one core", rate, "frames/s", target, better="higher")


@contextmanager
def cockpit(demo: RunningDemo, user: str) -> Iterator[Page]:
    """The Cockpit in a browser, signed in."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(QUIET))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{demo.url}/hub/login")
        page.locator("input[name=username]").fill(user)
        page.locator("input[name=password]").fill(demo.credentials.users[user].password)
        page.locator("[type=submit]").click()
        page.locator(".bh-experiment").wait_for(timeout=120_000)
        yield page
        browser.close()


def rows(page: Page, count: int) -> float:
    """The moment at which the live plot has drawn so many frames."""
    page.wait_for_function(
        "count => Number(document.querySelector('.bh-live-plot')?.dataset.rows ?? 0) >= count",
        arg=count,
        timeout=180_000,
        polling=20,
    )
    return time.time()


def latencies(client: Client, experiment: str, count: int) -> list[float]:
    """Seconds of the requests that a Cockpit makes, one after the other, in turns."""
    asked = (
        lambda: client.experiment(experiment),
        lambda: client.jobs(experiment=experiment),
        lambda: client.datasets(experiment),
        lambda: client.instruments(),
        lambda: client.members(experiment),
    )
    taken = []
    for n in range(count):
        began = time.perf_counter()
        asked[n % len(asked)]()
        taken.append(time.perf_counter() - began)
    return taken


def percentile(seconds: Sequence[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100)[percent - 1]


def beamtime() -> Iterator[Result]:
    """A fresh demo, its acquisition and its DIALS job, seen from a browser."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        demo = RunningDemo(Path(folder) / "state", f"--frames={FRAMES}", f"--rate={RATE}").ready()
        yield Result("processing", "demo started → people can sign in", time.time() - began, "s")
        try:
            yield from _acquisition(demo, began)
        finally:
            demo.end()


def _acquisition(demo: RunningDemo, began: float) -> Iterator[Result]:
    ada, experiment = demo.client("ada"), demo.credentials.experiment
    with cockpit(demo, "ada") as page:
        first = rows(page, 1) - began
        yield Result("processing", "demo started → first frame's spot count on the page", first, "s", 60.0)
        drawn = rows(page, FRAMES)
        closed = max(path.stat().st_mtime for path in (demo.state / "detector").glob("*_data_*.h5"))
        yield Result("processing", "last file closed → its spot counts on the page", drawn - closed, "s", 3.0)

        visits = []
        for _ in range(5):
            began = time.perf_counter()
            page.goto(f"{demo.url}/services/cockpit/voila/render/cockpit.ipynb")
            page.locator(".bh-jobs").wait_for(timeout=60_000)
            visits.append(time.perf_counter() - began)
        median = statistics.median(visits)
        yield Result("pages", "Cockpit opened → jobs shown, while DIALS runs, median of 5", median, "s")

    # DIALS and a second acquisition, with its uploads and its fast feedback, while somebody looks
    demo.acquire("--prefix=second", "--frames=60", "--rate=5")
    busy = latencies(ada, experiment, REQUESTS)
    yield Result("api", f"p50 of {REQUESTS} while jobs and an upload run", 1e3 * percentile(busy, 50), "ms")
    yield Result(
        "api", f"p95 of {REQUESTS} while jobs and an upload run", 1e3 * percentile(busy, 95), "ms", 100.0
    )

    dials = next(job for job in ada.jobs(experiment=experiment) if job.template == "dials")
    ended = ada.wait(dials.id)
    if ended.state is not JobState.FINISHED or ended.started is None or ended.ended is None:
        raise SystemExit(f"DIALS {ended.state}: {ended.reason}")
    seconds = (ended.ended - ended.started).total_seconds()
    yield Result(
        "processing",
        f"DIALS on {FRAMES} frames of 1M, {ended.profile.cpus} CPUs, beside the rest",
        seconds,
        "s",
    )
    for job in ada.jobs(experiment=experiment):
        ada.wait(job.id)
    idle = latencies(ada, experiment, REQUESTS)
    yield Result("api", f"p95 of {REQUESTS}, idle", 1e3 * percentile(idle, 95), "ms")


def jobs() -> Iterator[Result]:
    """What the service adds to a job on a cluster."""
    yield from (Result("jobs", *row) for row in slurm.rows())


def main(wanted: Sequence[str]) -> None:
    areas = {"frames": frames, "jobs": jobs, "processing": beamtime, "pages": beamtime, "api": beamtime}
    if unknown := set(wanted) - set(areas):
        raise SystemExit(f"no such area: {', '.join(unknown)}; there are {', '.join(areas)}")
    runs = dict.fromkeys(areas[area] for area in (wanted or areas))
    results = [result for run in runs for result in run() if not wanted or result.area in wanted]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([result.row() for result in results], indent=1))
    table = Table("area", "what", "value", "target", "met")
    for result in results:
        row = result.row()
        target = (
            "" if result.target is None else f"{'≤' if result.better == 'lower' else '≥'} {result.target:g}"
        )
        met = {True: "yes", False: "missed", None: ""}[row["met"]]  # type: ignore[index]
        table.add_row(result.area, result.name, f"{result.value:.3g} {result.unit}", target, met)
    Console(width=120).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
