"""`make pictures`: lets a beamtime happen, and takes the pictures of the pages that README and docs/ show."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from beamhub.schemas import Job, JobState
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Locator, Page, Position, expect

from tests.acceptance.people import People
from tests.chromium import chromium
from tests.temporary import end_on_signals, temporary_folder

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PAGES = "/services/cockpit/voila/render"
FIRST, SECOND = "lyso_1", "test_1"
LIVE = 30  # frames that have come when the first picture is taken


def main() -> None:
    end_on_signals()
    with temporary_folder() as folder:
        demo = RunningDemo(folder / "state", "--no-acquisition").ready()
        try:
            with chromium() as browser:
                people = People(browser, demo, folder)
                experiment = demo.credentials.experiment
                demo.client("ada").add_member(experiment, "ben")
                live(demo, people)
                job = results(demo, people)
                rerun(demo, people, job)
                viewer(demo, people, job)
                facility(demo, people)
                rule(demo, people)
        finally:
            demo.end()


def take(page: Page, name: str, *, whole: bool = False) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.screenshot(path=IMAGES / f"{name}.png", full_page=whole)


def opened(people: People, user: str, demo: RunningDemo, address: str) -> Page:
    page = people.page(user)
    page.goto(f"{demo.url}{PAGES}/{address}")
    return page


def when(done: Callable[[], bool]) -> None:
    """Wait until that is so."""
    deadline = time.monotonic() + 600
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("what a picture is to show has not come about in ten minutes")
        time.sleep(0.1)


def live(demo: RunningDemo, people: People) -> None:
    page = opened(people, "ada", demo, "cockpit.ipynb")
    expect(page.locator(".bh-experiment")).to_be_visible()
    detector = demo.acquire(f"--prefix={FIRST}", "--frames=60", "--rate=2")
    expect(page.locator(".bh-live-plot")).to_be_visible()
    when(lambda: int(page.locator(".bh-column-main .bh-frames").get_attribute("data-frames") or 0) >= LIVE)
    expect(page.locator(".bh-thumbnail img")).to_be_visible()
    take(page, "cockpit-live")
    detector.wait()


def results(demo: RunningDemo, people: People) -> Job:
    ada = demo.client("ada")

    def finished() -> list[Job]:
        jobs = ada.jobs(demo.credentials.experiment, state=JobState.FINISHED)
        return [job for job in jobs if job.template == "dials"]

    when(lambda: bool(finished()))
    [job] = finished()
    page = opened(people, "ben", demo, "cockpit.ipynb")
    row = page.locator(f".bh-job[data-job='{job.id}']")
    row.locator(".bh-job-row").click()
    expect(row.locator(".bh-metric").first).to_be_visible()
    expect(row.locator(".bh-figure img").first).to_be_visible()
    when(lambda: all(map(loaded, row.locator(".bh-figure img").all())))
    page.mouse.move(0, 0)
    take(page, "job-results", whole=True)
    return job


def loaded(image: Locator) -> bool:
    return bool(image.evaluate("image => image.complete && image.naturalWidth > 0"))


def rerun(demo: RunningDemo, people: People, job: Job) -> None:
    page = people.page("ben")
    page.locator(f".bh-job[data-job='{job.id}'] .bh-job-rerun").click()
    form = page.locator(".bh-rerun")
    form.locator("[name='p.resolution_limit']").fill("2.8")
    form.locator("[name='p.resolution_limit']").press("Tab")
    expect(form.locator(".bh-form-again")).to_have_count(0)  # it is no longer the same job
    expect(form.locator(".bh-estimate-time")).to_be_visible()
    take(page, "rerun")
    form.locator(".bh-form-submit").click()
    expect(form).to_be_hidden()
    [again] = [one for one in demo.client("ben").jobs(job.experiment) if one.parent == job.id]
    demo.client("ben").wait(again.id)


def viewer(demo: RunningDemo, people: People, job: Job) -> None:
    page = opened(people, "ben", demo, f"viewer.ipynb?dataset={job.inputs[0].id}&frame=6")
    canvas = page.locator(".bh-frame-canvas")
    expect(canvas).to_have_attribute("data-frame", "6")
    box = canvas.bounding_box()
    if box is not None:
        canvas.hover(position=Position(x=box["width"] / 2 + 60, y=box["height"] / 2 + 60))
    expect(page.locator(".bh-frame-readout")).to_contain_text("Å")
    take(page, "viewer")


def facility(demo: RunningDemo, people: People) -> None:
    page = opened(people, "sam", demo, "facility.ipynb")
    expect(page.locator(".bh-job-line")).to_have_count(3)
    take(page, "facility")


def rule(demo: RunningDemo, people: People) -> None:
    """Tried out on two datasets, of which it would start something on one."""
    demo.acquire(f"--prefix={SECOND}", "--frames=4", "--rate=4").wait()
    page = opened(people, "sam", demo, "rules.ipynb?instrument=sim-mx")
    page.locator(".bh-rule-new").click()
    form = page.locator(".bh-rule-dialog")
    starts = form.locator(".bh-trial[data-starts=true]")
    expect(starts.filter(has_text=SECOND)).to_have_count(1)
    form.locator("[name=title]").fill("Feedback on lyso_*")
    form.locator("[name=template]").select_option("fast_feedback")
    form.locator("[name=expression]").fill("wavelength > 0.1")
    form.locator("[name=pattern]").fill("lyso_*")
    form.locator("[name=pattern]").press("Tab")
    expect(starts).to_have_count(1)
    starts.locator("input").check()
    expect(form.locator(".bh-rule-save")).to_have_text("Save, and start 1 job now")
    starts.scroll_into_view_if_needed()
    take(page, "rule-dry-run")


if __name__ == "__main__":
    main()
