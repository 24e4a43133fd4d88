"""The cockpit's pages in a real browser, over a real service, without a hub."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from beamhub.schemas import (
    CommandKind,
    ExperimentChange,
    ExperimentState,
    FileProgress,
    Heartbeat,
    JobsRerun,
    LicenceCreate,
    Role,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
)
from beamhub.testing import TEMPLATE, Beamtime, RunningService, free_port
from beamhub_cockpit.scene import RECENT
from playwright.sync_api import Browser, Page, Position, Request, Route, expect

from tests.chromium import chromium

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
WAIT = 90_000  # ms; a good run needs a fiftieth of it
FAILED = [{"name": "<u>odd.h5", "state": "failed", "reason": HOSTILE, "size": 7}] + [
    {"name": f"run_{n:04}.cbf", "state": "failed", "reason": "can't be read (EIO)", "size": 1000}
    for n in range(400)
]
SKIPPED = {"name": "test.cbf", "state": "skipped", "reason": "skipped by sam: a test shot", "size": 9}
UNKNOWN = "0b0f7b0e-4c39-4a53-9a1c-0f0c8d6f2a11"
# what has the focus, and whether that can be seen
FOCUS = """() => {
  const node = document.activeElement, style = getComputedStyle(node), box = node.getBoundingClientRect();
  const outside = node === document.body || box.width === 0; // the browser's own, and the page's end
  const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return [node.outerHTML.slice(0, 200), outside || seen];
}"""

pytestmark = pytest.mark.timeout(600)


@dataclass
class RunningCockpit:
    """The cockpit's server for one person."""

    url: str
    process: subprocess.Popen[bytes]

    def page(self, name: str) -> str:
        return f"{self.url}/voila/render/{name}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    """One with hostile names wherever somebody may write something."""
    found = service.beamtime(members={"ben": Role.VIEWER})
    sam = service.client("sam")
    sam.change_experiment(found.experiment, ExperimentChange(title=HOSTILE[:200]))
    service.client("operator").create_licence(
        LicenceCreate(
            id=f"lab-{found.instrument}",
            title=HOSTILE[:200],
            kind="lab",
            instruments=[found.instrument],
            cpu_hours=5,
        )
    )
    service.agent(found).heartbeat(
        found.instrument,
        Heartbeat(
            host="<b>host</b>",
            version="1",
            state="uploading",
            rate=2e6,
            current=[FileProgress(name="<i>file.h5", size=4_000_000, sent=1_000_000)],
            errors=[HOSTILE],
            failed=len(FAILED),
            skipped=1,
        ),
    )
    httpx.put(
        f"{service.api}instruments/{found.instrument}/agent/files",
        json={"items": FAILED[:250], "last": False},
        headers={"Authorization": f"Bearer {found.agent_token}"},
    ).raise_for_status()
    httpx.put(
        f"{service.api}instruments/{found.instrument}/agent/files",
        json={"items": [*FAILED[250:], SKIPPED], "part": 2},
        headers={"Authorization": f"Bearer {found.agent_token}"},
    ).raise_for_status()
    return found


@pytest.fixture(scope="module")
def cockpits(
    service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RunningCockpit]]:
    """A cockpit for each of them; only ada's has a kernel waiting."""
    running = {
        user: start(service, user, tmp_path_factory.mktemp(user), warm=warm)
        for user, warm in (("ada", 1), ("eve", 0), ("sam", 0))
    }
    yield running
    for cockpit in running.values():
        cockpit.process.send_signal(signal.SIGTERM)
    for cockpit in running.values():
        cockpit.process.wait(timeout=60)


def start(service: RunningService, user: str, folder: Path, *, warm: int) -> RunningCockpit:
    port = free_port()
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTERHUB_")} | {
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "JUPYTER_NO_CONFIG": "1",
        "JUPYTERHUB_SERVICE_PREFIX": "/services/cockpit/",
        "BEAMHUB_URL": service.url,
        "BEAMHUB_USER": user,
        "BEAMHUB_TOKEN": service.tokens[user],
        "BEAMHUB_COCKPIT_KERNELS": str(warm),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "beamhub_cockpit", f"--Voila.port={port}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
        )
    cockpit = RunningCockpit(f"http://127.0.0.1:{port}/services/cockpit", process)
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(cockpit.page("nothing.ipynb"), timeout=10)
            return cockpit
        except httpx.TransportError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, (folder / "log").read_text(errors="replace")
            time.sleep(0.05)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that loads nothing from elsewhere, and in which nothing goes wrong."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(WAIT)
    found = context.new_page()
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))

    def look(request: Request) -> None:
        if request.url.startswith("http") and "//127.0.0.1:" not in request.url:
            wrong.append(request.url)

    found.on("request", look)
    yield found
    context.close()
    assert wrong == []


def open_cockpit(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, user: str = "ada"
) -> None:
    page.goto(f"{cockpits[user].page('cockpit.ipynb')}?experiment={beamtime.experiment}")
    expect(page.locator(".bh-experiment")).to_have_attribute(
        "data-experiment", beamtime.experiment, timeout=WAIT
    )


def test_names_stay_text(page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime) -> None:
    open_cockpit(page, cockpits, beamtime)
    expect(page.locator(".bh-experiment h1")).to_have_text(HOSTILE[:200])
    expect(page.locator(".bh-licence-title")).to_have_text(HOSTILE[:200])
    expect(page.locator(".bh-instrument")).to_contain_text("<b>host</b>")
    expect(page.locator(".bh-upload-name")).to_have_text("<i>file.h5")
    expect(page.locator(".bh-agent-error")).to_have_text(HOSTILE)
    assert page.locator(".bh-page img[src=x], .bh-page script, .bh-page i").count() == 0
    assert "taken" not in page.title()


def test_a_page_is_opened_again_when_its_kernel_dies_meanwhile(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime
) -> None:
    killed: list[int] = []

    def kill(route: Route) -> None:
        if not killed:
            config = page.evaluate("document.getElementById('jupyter-config-data').textContent")
            kernel = f"kernel-{json.loads(config)['kernelId']}.json"
            [process] = [
                child
                for child in psutil.Process(cockpits["ada"].process.pid).children(recursive=True)
                if any(argument.endswith(kernel) for argument in child.cmdline())
            ]
            process.kill()
            killed.append(process.pid)
        route.continue_()

    page.route("**/voila.js", kill)
    open_cockpit(page, cockpits, beamtime)
    expect(page.locator("#loading")).to_have_count(0)
    assert len(killed) == 1


def test_a_beamtime_shows_by_itself(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    open_cockpit(page, cockpits, beamtime)
    expect(page.locator(".bh-acquisition")).to_contain_text("No data yet")

    dataset = service.dataset(beamtime, name="<u>lyso", frames=4)
    expect(page.locator(".bh-dataset-name")).to_have_text("<u>lyso", timeout=WAIT)
    expect(page.locator(".bh-frames")).to_have_attribute("data-frames", "4", timeout=WAIT)
    expect(page.locator(".bh-dataset-state")).to_have_attribute("data-state", "complete", timeout=WAIT)
    thumbnail = page.locator(".bh-thumbnail img")
    expect(thumbnail).to_be_visible(timeout=WAIT)
    assert thumbnail.evaluate("image => image.decode().then(() => image.naturalWidth)") == 20

    job = service.client("ada").submit(
        beamtime.experiment,
        TEMPLATE,
        dataset.id,
        sponsor=f"lab-{beamtime.instrument}",
        parameters={"word": HOSTILE},
    )
    row = page.locator(f".bh-job[data-job='{job.id}']")
    expect(row).to_have_attribute("data-state", "finished", timeout=WAIT)
    expect(row.locator(".bh-job-starter")).to_have_text("by ada")
    row.locator(".bh-job-row").click()
    expect(row.locator(".bh-metric[data-metric=length] .bh-metric-value")).to_have_text(
        str(len(HOSTILE)), timeout=WAIT
    )
    expect(row.locator(".bh-series")).to_have_attribute("data-rows", "3", timeout=WAIT)
    # the tabs are one stop of the Tab key, and the arrows lead from one to the next
    expect(row.locator("[role=tab][tabindex='0']")).to_have_text("Results")
    row.locator(".bh-tab-results").press("ArrowRight")
    expect(row.locator(".bh-tab-log")).to_be_focused()
    expect(row.locator(".bh-log")).to_contain_text(HOSTILE)
    expect(row.locator("[role=tab][tabindex='0']")).to_have_text("Log")
    expect(row.get_by_role("tabpanel", name="Log")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(row.locator(".bh-parameters")).to_contain_text(HOSTILE)
    page.keyboard.press("End")
    expect(row.locator(".bh-tab-history")).to_be_focused()
    page.keyboard.press("ArrowRight")  # on from the last is the first
    expect(row.locator(".bh-tab-results")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    expect(row.locator(".bh-tab-results")).to_have_attribute("aria-selected", "true", timeout=WAIT)
    stops = [page.evaluate(FOCUS)]
    for _ in range(25):  # from here to the end of the page, and on in the bar
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUS))
    assert [name for name, seen in stops if not seen] == []
    assert len({name for name, _ in stops}) > 10
    row.locator(".bh-tab-files").click()
    expect(row.locator(".bh-file", has_text="said.txt")).to_contain_text("What was said")
    assert "taken" not in page.title()


def test_a_rerun_from_the_form(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    ada = service.client("ada")
    parent = ada.jobs(beamtime.experiment)[0]
    open_cockpit(page, cockpits, beamtime)
    row = page.locator(f".bh-job[data-job='{parent.id}']")
    row.locator(".bh-job-row").click()
    row.locator(".bh-job-rerun").click()
    dialog = page.locator(".bh-rerun")
    word = dialog.locator("[name='p.word']")
    expect(word).to_have_value(HOSTILE, timeout=WAIT)
    word.fill("fail")
    dialog.locator(".bh-form-submit").click()

    child = page.locator(".bh-job", has=page.locator(".bh-job-parent", has_text=f"rerun of #{parent.id}"))
    expect(child).to_have_attribute("data-state", "failed", timeout=WAIT)
    expect(child.locator(".bh-job-reason")).to_contain_text("it was told to fail")
    expect(dialog).to_have_count(0)
    job = ada.jobs(beamtime.experiment)[0]
    assert (job.parent, job.parameters, job.launched_by) == (parent.id, {"word": "fail"}, "ada")


def test_a_notebook_of_ones_own_from_the_form(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    """A job's notebook, changed in one cell and kept in shared/, runs on the same data."""
    ada = service.client("ada")
    parent = next(job for job in reversed(ada.jobs(beamtime.experiment)) if job.state == "finished")
    notebook = json.loads(ada.notebook(parent.id))
    assert "".join(notebook["cells"][-1]["source"])
    notebook["cells"][-1]["source"] = "print('changed by hand:', word)"
    path = service.data_dir / beamtime.experiment / "shared" / "<b>mine.ipynb"
    path.write_text(json.dumps(notebook))

    open_cockpit(page, cockpits, beamtime)
    row = page.locator(f".bh-job[data-job='{parent.id}']")
    row.locator(".bh-job-row").click()
    row.locator(".bh-job-rerun").click()
    dialog = page.locator(".bh-rerun")
    expect(dialog.locator("optgroup")).to_have_attribute("label", "Notebooks in shared/", timeout=WAIT)
    dialog.locator("[name='p.word']").fill("by hand")  # stays when the template is chosen
    dialog.locator(".bh-form-template").select_option("shared/<b>mine.ipynb")
    expect(dialog.locator(".bh-form-template")).to_have_value("shared/<b>mine.ipynb")
    dialog.locator(".bh-form-submit").click()

    child = page.locator(".bh-job[data-template=b_mine]")
    expect(child).to_have_attribute("data-state", "finished", timeout=WAIT)
    job = next(job for job in ada.jobs(beamtime.experiment) if job.notebook == "shared/<b>mine.ipynb")
    assert (job.parent, job.inputs, job.parameters) == (parent.id, parent.inputs, {"word": "by hand"})
    assert "changed by hand: by hand" in ada.job_log(job.id)[0]

    path.write_text(json.dumps(notebook).replace("changed by hand", "changed again"))
    page.reload()
    row = page.locator(f".bh-job[data-job='{job.id}']")
    row.locator(".bh-job-row").click(timeout=WAIT)
    row.locator(".bh-tab-parameters").click()
    expect(row.locator(".bh-parameters")).to_contain_text("shared/<b>mine.ipynb", timeout=WAIT)
    expect(row.locator(".bh-template-changed")).to_have_text("changed since: a rerun takes it as it is now")


def test_what_the_service_refuses_is_said_in_the_form(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime
) -> None:
    open_cockpit(page, cockpits, beamtime)
    page.locator(".bh-invite [name=user]").fill("not a name")
    page.locator(".bh-invite [type=submit]").click()
    expect(page.locator(".bh-invite .bh-error")).to_contain_text("Give the name", timeout=WAIT)
    page.locator(".bh-invite [name=user]").fill("eve")
    page.locator(".bh-invite [type=submit]").click()
    expect(page.locator(".bh-member[data-user=eve]")).to_be_visible(timeout=WAIT)
    expect(page.locator(".bh-invite .bh-error")).to_have_count(0)
    page.locator(".bh-member[data-user=eve] .bh-member-remove").click()
    page.locator(".bh-question-no").click()
    expect(page.locator(".bh-question")).to_have_count(0)
    # whoever goes by keyboard is where they were
    expect(page.locator(".bh-member[data-user=eve] .bh-member-remove")).to_be_focused()
    expect(page.locator(".bh-member[data-user=eve]")).to_be_visible()
    page.locator(".bh-member[data-user=eve] .bh-member-remove").click()
    page.locator(".bh-question-yes").click()
    expect(page.locator(".bh-member[data-user=eve]")).to_have_count(0, timeout=WAIT)
    expect(page.locator(".bh-member-remove, #invite-user").first).to_be_focused()  # what is nearest


def test_staff_pause_and_resume_uploads(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    open_cockpit(page, cockpits, beamtime, "sam")
    page.locator(".bh-uploads-pause").click()
    reason = page.locator(".bh-question [name=reason]")
    expect(reason).to_be_focused()
    page.locator(".bh-question-yes").click()  # not without a reason
    expect(reason).to_be_visible()
    reason.fill("<b>sample change")
    page.locator(".bh-question-yes").click()
    expect(page.locator(".bh-paused-why")).to_have_text("<b>sample change", timeout=WAIT)
    expect(page.locator(".bh-uploads-paused")).to_contain_text("by sam")
    expect(page.locator(".bh-uploads-resume")).to_be_focused()  # what had it is gone
    paused = service.client("sam").instrument(beamtime.instrument).uploads_paused
    assert paused is not None
    assert paused.reason == "<b>sample change"
    page.keyboard.press("Enter")
    expect(page.locator(".bh-uploads-paused")).to_have_count(0, timeout=WAIT)
    expect(page.locator(".bh-uploads-pause")).to_be_focused()
    assert service.client("sam").instrument(beamtime.instrument).uploads_paused is None


def test_hundreds_of_files_that_failed(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    sam = service.client("sam")
    open_cockpit(page, cockpits, beamtime, "sam")
    page.locator(".bh-unsent-open", has_text="401 failed").click()
    many = page.locator(".bh-unsent-group", has_text="EIO")
    expect(many).to_contain_text("400 files", timeout=WAIT)
    expect(many).to_contain_text("and 350 more")
    hostile = page.locator(".bh-unsent-group", has_text="onerror")
    expect(hostile.locator(".bh-unsent-reason")).to_have_text(HOSTILE)
    expect(hostile.locator(".bh-unsent-name")).to_have_text("<u>odd.h5")
    many.locator("summary").click()  # of three groups none is open at first
    many.locator(".bh-unsent-retry").click()
    expect(page.locator(".bh-unsent-order")).to_have_count(3, timeout=WAIT)
    told = sam.agent_commands(beamtime.instrument)
    assert {path for order in told for path in order.paths} == {str(file["name"]) for file in FAILED[1:]}
    assert {order.kind for order in told} == {CommandKind.RETRY}

    hostile.locator("summary").click()
    hostile.locator(".bh-unsent-skip").click()
    page.locator(".bh-question [name=reason]").fill("no sample")
    page.locator(".bh-question-yes").click()
    expect(page.locator(".bh-question")).to_have_count(0, timeout=WAIT)
    last = sam.agent_commands(beamtime.instrument)[-1]
    assert (last.kind, last.paths, last.reason) == (CommandKind.SKIP, ["<u>odd.h5"], "no sample")
    assert "taken" not in page.title()

    left_out = page.locator(".bh-unsent-group[data-state=skipped]")
    expect(left_out.locator(".bh-unsent-reason")).to_have_text("skipped by sam: a test shot")
    left_out.locator("summary").click()
    expect(left_out.locator(".bh-unsent-name")).to_have_text("test.cbf")
    left_out.locator(".bh-unsent-unskip").click()
    expect(page.locator(".bh-unsent")).to_contain_text("and 3 more orders", timeout=WAIT)
    last = sam.agent_commands(beamtime.instrument)[-1]
    assert (last.kind, last.paths) == (CommandKind.UNSKIP, ["test.cbf"])


def test_frames_down_to_single_pixels(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    dataset = service.client("ada").datasets(beamtime.experiment)[0]
    page.goto(f"{cockpits['ada'].page('viewer.ipynb')}?dataset={dataset.id}&frame=2")
    canvas = page.locator(".bh-frame-canvas")
    expect(canvas).to_be_visible(timeout=WAIT)
    expect(page.locator(".bh-frame-number")).to_have_value("2")
    readout = page.locator(".bh-frame-readout")
    box: Any = canvas.bounding_box()
    middle: Position = {"x": box["width"] / 2, "y": box["height"] / 2}
    canvas.hover(position=middle)
    expect(readout).to_contain_text("counts 2", timeout=WAIT)
    page.locator(".bh-frame-next").click()
    canvas.hover(position=middle)
    expect(readout).to_contain_text("counts 3", timeout=WAIT)
    page.keyboard.press("End")
    expect(readout).to_contain_text("counts 4", timeout=WAIT)
    expect(page.locator(".bh-frame-number")).to_have_value("4")
    assert page.url.endswith("frame=4")

    # the frame has 16 x 20 pixels, fitted to the canvas: its first one, in the corner, is masked
    side = 0.98 * min(box["width"] / 20, box["height"] / 16)
    corner: Position = {"x": box["width"] / 2 - 9.5 * side, "y": box["height"] / 2 - 7.5 * side}
    canvas.hover(position=corner)
    expect(readout).to_contain_text("x 0   y 0   masked")
    for kind in ("Heat", "Viridis", "Grey"):
        page.locator(".bh-frame-map").select_option(kind)
    page.locator(".bh-frame-scale").select_option("Logarithmic")
    page.locator(".bh-frame-high").fill("9")
    page.locator(".bh-frame-high").press("Enter")
    expect(page.locator(".bh-frame-auto")).not_to_be_checked()


def test_a_rerun_is_estimated_recognised_and_compared(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    ada, sam = service.client("ada"), service.client("sam")
    dataset, licence = service.dataset(beamtime, name="compared"), f"lab-{beamtime.instrument}"
    first = ada.submit(
        beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence, parameters={"word": HOSTILE}
    )
    ada.wait(first.id, timeout=120)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(cockpits["ada"].page(f"analysis.ipynb?job={first.id}"))
    page.locator(".bh-job-rerun").click(timeout=WAIT)
    dialog = page.locator(".bh-rerun")
    # nothing has been changed yet: the result is there
    expect(dialog.locator(".bh-estimate-same")).to_contain_text(f"job #{first.id}")
    dialog.locator(".bh-form-submit").click()
    expect(dialog.locator(".bh-form-again")).to_be_enabled()
    expect(dialog.locator(".bh-estimate-same")).to_be_visible()
    picture(page, "rerun-same")
    dialog.locator("[name='p.word']").fill("another")
    dialog.locator("[name='p.word']").press("Tab")
    expect(dialog.locator(".bh-estimate-same")).to_have_count(0)
    expect(dialog.locator(".bh-estimate")).to_have_attribute("data-runs", re.compile("[1-9]"))
    expect(dialog.locator(".bh-estimate-time")).to_contain_text("Takes about")
    expect(dialog.locator(".bh-estimate-start")).to_contain_text("Starts at once.")
    picture(page, "rerun-estimate")
    dialog.locator(".bh-form-submit").click()
    expect(dialog).to_have_count(0)
    second = next(job for job in ada.jobs(beamtime.experiment) if job.parent == first.id)
    assert second.parameters["word"] == "another"
    ada.wait(second.id, timeout=120)

    page.goto(cockpits["ada"].page(f"analysis.ipynb?job={second.id}"))
    expect(page.locator(".bh-difference[data-name=word] .bh-after")).to_have_text("another", timeout=WAIT)
    expect(page.locator(".bh-step[data-state=finished]")).to_be_visible()
    expect(page.locator(".bh-attempt")).to_have_count(1)
    picture(page, "job-history")
    beside = page.locator(".bh-job-compare")
    expect(beside).to_have_attribute("href", re.compile(rf"compare\.ipynb\?jobs={first.id}%2C{second.id}$"))
    page.goto(cockpits["ada"].page(f"compare.ipynb?jobs={first.id},{second.id}"))
    table = page.locator(".bh-compare-table")
    expect(table.locator(".bh-compare-job")).to_have_count(2, timeout=WAIT)
    expect(table.locator("tr[data-name=word].bh-differs td").last).to_have_text("another")
    drawn = page.locator(".bh-compare-series img")
    expect(drawn).to_have_count(1)
    assert drawn.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    picture(page, "compare")
    assert page.title() != "taken"
    assert sam.job(second.id).cpu_seconds > 0


def test_a_job_on_each_of_several_datasets(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    """Found by name among many, ticked, and run at once; where there is a result already, none is run."""
    names = [f"each_{number}" for number in range(1, 10)]
    datasets = {name: service.dataset(beamtime, name=name) for name in names}
    open_cockpit(page, cockpits, beamtime)
    listed = page.locator(".bh-dataset")

    def run(*names: str) -> str:
        for name in names:
            page.locator(".bh-finder input").fill(name)
            expect(listed).to_have_count(1, timeout=WAIT)
            page.locator(f".bh-dataset[data-dataset='{datasets[name].id}'] .bh-dataset-tick input").check()
        expect(page.locator(".bh-datasets-card .bh-selected")).to_have_text(f"{len(names)} ticked")
        page.locator(".bh-datasets-run").click()
        form = page.locator(".bh-rerun")
        form.locator(".bh-form-template").select_option(TEMPLATE)
        expect(form.locator("[name='p.word']")).to_be_visible(timeout=WAIT)
        form.locator("[name='p.word']").fill("each")
        form.locator("[name='p.word']").press("Tab")
        picture(page, "run-on-each")
        form.locator(".bh-form-submit").click()
        expect(form).to_have_count(0, timeout=WAIT)
        expect(page.locator(".bh-datasets-run")).to_have_count(0)  # nothing is ticked any more
        said = page.locator(".bh-notice").last.inner_text()
        page.locator(".bh-notice .bh-icon-button").last.click()
        return said

    assert "2 jobs started" in run("each_2", "each_7")
    ada = service.client("ada")
    made = {job.inputs[0].id for job in ada.jobs(beamtime.experiment) if job.parameters.get("word") == "each"}
    assert made == {datasets["each_2"].id, datasets["each_7"].id}
    said = run("each_2", "each_3", "each_7")
    assert "1 job started" in said
    assert "2 datasets have the result already" in said
    made = {job.inputs[0].id for job in ada.jobs(beamtime.experiment) if job.parameters.get("word") == "each"}
    assert made == {datasets[name].id for name in ("each_2", "each_3", "each_7")}


def test_a_job_is_found_that_is_older_than_the_page_knows(
    page: Page, cockpits: dict[str, RunningCockpit], service: RunningService
) -> None:
    here = service.beamtime()
    service.client("operator").create_licence(
        LicenceCreate(id="empty", title="Empty", kind="lab", instruments=[here.instrument])
    )
    ada = service.client("ada")
    needle = ada.submit(
        here.experiment, TEMPLATE, service.dataset(here, name="needle", frames=1).id, sponsor="empty"
    )
    hay = service.dataset(here, name="hay", frames=1)
    more = RECENT + 5
    ids = [ada.submit(here.experiment, TEMPLATE, hay.id, sponsor="empty").id]
    while len(ids) < more:
        told = ada.rerun_all(JobsRerun(jobs=ids[: more - len(ids)], force=True))
        ids += [one.job.id for one in told if one.job is not None]

    open_cockpit(page, cockpits, here)
    row = page.locator(f".bh-job[data-job='{needle.id}']")
    expect(page.locator(".bh-jobs-card .bh-job")).to_have_count(25, timeout=WAIT)
    expect(row).to_have_count(0)
    finder = page.locator("#find-jobs")
    finder.fill("NEEDLE")
    expect(row).to_be_visible(timeout=WAIT)
    expect(page.locator(".bh-jobs-card .bh-job")).to_have_count(1)
    row.locator(".bh-job-row").click()
    expect(row.get_by_role("tabpanel")).to_contain_text("Waits for credit", timeout=WAIT)
    picture(page, "older-job-found")
    finder.fill("no such job")
    expect(page.locator(".bh-jobs-card")).to_contain_text("needle")  # what is open stays
    row.locator(".bh-job-toggle button").click()
    expect(page.locator(".bh-jobs-card")).to_contain_text("None of this name", timeout=WAIT)

    finder.fill("")
    page.locator(".bh-jobs-card .bh-more").click()
    page.locator(".bh-jobs-card .bh-older").click(timeout=WAIT)
    expect(page.locator(".bh-jobs-card .bh-job")).to_have_count(more + 1, timeout=WAIT)
    expect(page.locator(".bh-jobs-card .bh-more")).to_have_count(0)


def test_staff_begin_an_experiment(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    page.goto(cockpits["ada"].page("experiments.ipynb"))
    expect(page.locator(".bh-experiment-row").first).to_be_visible(timeout=WAIT)
    expect(page.locator(".bh-experiment-new")).to_have_count(0)
    page.goto(cockpits["sam"].page("experiments.ipynb"))
    page.locator(".bh-experiment-new").click(timeout=WAIT)
    dialog = page.locator(".bh-new-experiment")
    dialog.locator("[name=instrument]").select_option(beamtime.instrument)
    dialog.locator("[name=title]").fill("Thaumatin, <b>second</b> shift")
    dialog.locator("[name=pi]").fill("not a name")
    dialog.locator(".bh-question-yes").click()
    expect(dialog.locator(".bh-form-refused")).to_contain_text("the PI signs in", timeout=WAIT)
    dialog.locator("[name=pi]").fill("ada")
    picture(page, "new-experiment")
    dialog.locator(".bh-question-yes").click()
    row = page.locator(".bh-experiment-row", has_text="Thaumatin, <b>second</b> shift")
    expect(row).to_be_visible(timeout=WAIT)
    number = row.get_attribute("data-experiment")
    assert number in {one.id for one in service.client("ada").experiments()}


def test_staff_end_close_and_reopen_an_experiment(
    page: Page, cockpits: dict[str, RunningCockpit], service: RunningService
) -> None:
    sam = service.client("sam")
    found = service.beamtime()
    here = found.experiment
    open_cockpit(page, cockpits, found, "sam")
    step, dialog = page.locator(".bh-experiment-step"), page.locator(".bh-stepping")
    step.click()
    expect(dialog).to_contain_text("It is active now")
    expect(dialog).to_contain_text("It is not finalised")
    picture(page, "end-beamtime")
    dialog.locator(".bh-question-no").click()
    expect(step).to_be_focused()
    assert sam.experiment(here).active
    step.click()
    dialog.locator("[name=reason]").fill("<b>beam</b> is gone")
    dialog.locator(".bh-question-yes").click()
    expect(page.locator(".bh-experiment-state")).to_have_text("processing", timeout=WAIT)
    expect(step).to_be_focused()
    assert sam.past_events(here)[-1].data == {"state": "processing", "reason": "<b>beam</b> is gone"}

    # closed on the page with all of them, by somebody who has also the experiment's own page open
    listed = page.context.new_page()
    listed.goto(cockpits["sam"].page("experiments.ipynb"))
    row = listed.locator(f".bh-experiment-row[data-experiment='{here}']")
    row.locator(".bh-experiment-step").click(timeout=WAIT)
    asked = listed.locator(".bh-stepping")
    expect(asked).to_contain_text("change nothing")
    picture(listed, "close-experiment")
    asked.locator(".bh-question-yes").click()
    expect(row).to_contain_text("closed", timeout=WAIT)
    expect(page.locator(".bh-experiment-state")).to_have_text("closed", timeout=WAIT)
    ada = service.client("ada")
    assert "experiment.edit" not in ada.experiment(here).actions

    step.click()
    expect(dialog).to_contain_text("It is processing then")
    sam.change_experiment(here, ExperimentChange(state=ExperimentState.PROCESSING))
    dialog.locator(".bh-question-yes").click()  # too late: it does not close it again
    expect(dialog.locator(".bh-form-refused")).to_contain_text("somebody was faster", timeout=WAIT)
    dialog.locator(".bh-question-no").click()
    expect(page.locator(".bh-experiment-state")).to_have_text("processing", timeout=WAIT)
    listed.close()


def test_a_job_is_cancelled_with_a_click(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    ada = service.client("ada")
    service.client("operator").create_licence(
        LicenceCreate(id="nothing-left", title="Empty", kind="lab", instruments=[beamtime.instrument])
    )
    dataset = service.dataset(beamtime, name="cancelled")
    job = ada.submit(beamtime.experiment, TEMPLATE, dataset.id, sponsor="nothing-left")
    page.goto(cockpits["ada"].page(f"analysis.ipynb?job={job.id}"))
    page.locator(".bh-job-cancel").click(timeout=WAIT)
    page.locator(".bh-question-yes").click()
    expect(page.locator(".bh-analysis-head")).to_have_attribute("data-state", "cancelled", timeout=WAIT)
    expect(page.locator(".bh-step[data-state=cancelled]")).to_contain_text("by ada")
    assert ada.job(job.id).reason == "Cancelled by ada."


def picture(page: Page, name: str) -> None:
    """Kept where BEAMHUB_PICTURES says, for people to look at."""
    if folder := os.environ.get("BEAMHUB_PICTURES"):
        for width, height in ((1440, 900), (1024, 768)):
            page.set_viewport_size({"width": width, "height": height})
            page.screenshot(path=Path(folder) / f"{name}-{width}.png")


def test_a_rule_is_written_tried_out_and_kept(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    sam = service.client("sam")
    dataset = service.dataset(beamtime, name="ruled")
    hostile = TriggerCreate(
        title=HOSTILE[:200],
        event=TriggerEvent.EXTERNAL,
        condition=TriggerCondition(expression="name == '<u>'"),
        template=TEMPLATE,
        parameters={"word": HOSTILE},
        profile="cpu-1",
        sponsor=f"lab-{beamtime.instrument}",
    )
    known = sam.create_trigger(beamtime.instrument, hostile)
    page.goto(f"{cockpits['sam'].page('rules.ipynb')}?instrument={beamtime.instrument}")
    row = page.locator(f".bh-rule[data-rule='{known.id}']")
    expect(row.locator(".bh-rule-title")).to_have_text(HOSTILE[:200], timeout=WAIT)
    row.locator(".bh-rule-history").click()
    expect(page.locator(".bh-version")).to_have_count(1, timeout=WAIT)
    page.keyboard.press("Escape")
    row.locator(".bh-rule-change").click()
    form = page.locator(".bh-rule-dialog")
    expect(form.locator("[name='p.word']")).to_have_value(HOSTILE)
    assert page.locator(".bh-page img[src=x], .bh-page script, .bh-page u").count() == 0
    page.keyboard.press("Escape")

    page.locator(".bh-rule-new").click()
    expect(form.locator("h2")).to_have_text("New rule", timeout=WAIT)
    form.locator("[name=template]").select_option(TEMPLATE)
    form.locator("[name='p.word']").fill("= name")
    form.locator("[name=title]").fill("Say its name")
    form.locator("[name=title]").press("Tab")
    trial = form.locator(f".bh-trial[data-trial='dataset:{dataset.id}']")
    expect(trial).to_contain_text("ruled", timeout=WAIT)
    expect(trial).to_have_attribute("data-starts", "true")
    profile = form.locator("#rule-profile option").last.get_attribute("value")
    form.locator("#rule-profile").select_option(profile)
    trial.locator("input").check()
    form.locator(".bh-rule-save").click()
    expect(form).to_have_count(0, timeout=WAIT)
    kept = next(rule for rule in sam.triggers(beamtime.instrument) if rule.title == "Say its name")
    assert (kept.parameters, kept.profile) == ({"word": {"expression": "name"}}, profile)
    [job] = [job for job in sam.jobs(dataset=dataset.id) if job.launched_by == f"trigger:{kept.id}"]
    assert job.parameters == {"word": "ruled"}
    sam.delete_trigger(kept.id)
    sam.delete_trigger(known.id)


def test_a_service_that_hangs_is_told_of_until_it_answers(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    page.goto(cockpits["ada"].page("cockpit.ipynb"))
    expect(page.locator(".bh-bar")).to_contain_text("ada", timeout=WAIT)
    expect(page.locator(".bh-slot-jobs")).to_be_visible(timeout=WAIT)
    hangs = page.get_by_text("The beamhub service does not answer")
    expect(hangs).to_have_count(0, timeout=WAIT)
    assert service.process
    service.process.send_signal(signal.SIGSTOP)
    try:
        expect(hangs).to_be_visible(timeout=WAIT)
    finally:
        service.process.send_signal(signal.SIGCONT)
    expect(hangs).to_have_count(0, timeout=WAIT)


def test_a_stranger_sees_nothing(
    page: Page, cockpits: dict[str, RunningCockpit], beamtime: Beamtime, service: RunningService
) -> None:
    dataset = service.client("ada").datasets(beamtime.experiment)[0]
    job = service.client("ada").jobs(beamtime.experiment)[0]
    for address in (
        f"cockpit.ipynb?experiment={beamtime.experiment}",
        f"analysis.ipynb?job={job.id}",
        f"compare.ipynb?jobs={job.id},{job.id}",
        f"viewer.ipynb?dataset={dataset.id}",
        "experiments.ipynb",
        "facility.ipynb",
        "rules.ipynb",
        f"rules.ipynb?experiment={beamtime.experiment}",
        f"rules.ipynb?instrument={beamtime.instrument}",
        f"rules.ipynb?job={job.id}",
    ):
        page.goto(cockpits["eve"].page(address))
        expect(page.locator(".bh-nothing")).to_be_visible(timeout=WAIT)
        shown = page.locator("body").inner_text()
        assert not [word for word in (beamtime.experiment, "lyso", "host", "ada", TEMPLATE) if word in shown]


def test_only_what_is_meant_to_be_reached_is(cockpits: dict[str, RunningCockpit]) -> None:
    ada = cockpits["ada"]
    with httpx.Client(base_url=ada.url, timeout=60) as http:
        assert http.get("/").headers["location"].endswith("/services/cockpit/voila/render/cockpit.ipynb")
        for path in (
            "/voila/tree",
            "/voila/files/cockpit.ipynb",
            "/voila/api/contents",
            "/api/contents",
            "/api/kernels",
        ):
            assert http.get(path).status_code == 404, path
        told = http.get(
            f"/voila/query/{UNKNOWN}",
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            },
        )
        assert told.status_code == 403
        policy = http.get("/voila/render/nothing.ipynb").headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'self'" in policy
