"""A fresh demo, its acquisition and its DIALS job, seen from a browser: one run serves three areas."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beamhub.schemas import JobState
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Page, sync_playwright

from tests.benchmarks.result import Result, latencies, percentile
from tests.chromium import QUIET

FRAMES, RATE = 60, 5
REQUESTS = 300


def rows() -> Iterator[Result]:
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
    with _cockpit(demo, "ada") as page:
        first = _drawn(page, 1) - began
        yield Result("processing", "demo started → first frame's spot count on the page", first, "s", 60.0)
        drawn = _drawn(page, FRAMES)
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


@contextmanager
def _cockpit(demo: RunningDemo, user: str) -> Iterator[Page]:
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


def _drawn(page: Page, count: int) -> float:
    """The moment at which the live plot has drawn so many frames."""
    page.wait_for_function(
        "count => Number(document.querySelector('.bh-live-plot')?.dataset.rows ?? 0) >= count",
        arg=count,
        timeout=180_000,
        polling=20,
    )
    return time.time()
