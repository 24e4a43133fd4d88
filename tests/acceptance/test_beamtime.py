"""A beamtime as its people live it: ada measures, ben joins and reruns, sam looks after it, eve gets nothing.

One facility, one acquisition, one story: the tests run in the order in which they stand, and each takes up
where the one before ended. Detector, agent, hub, service, DIALS and browsers are the real ones.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from urllib.parse import unquote

import httpx
import pytest
from beamhub.client import ApiError
from beamhub.schemas import Dataset, DatasetState, Job, JobState, LicenceCreate, Role
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Locator, Position, expect

from tests.acceptance.people import LONG, Listener, People

pytestmark = [pytest.mark.acceptance, pytest.mark.dials, pytest.mark.timeout(600)]

CELL = (79.1, 79.1, 37.9)  # Å, what the virtual crystal has
NAME = "lyso_live"
FRAMES = 60
EMPTY = "lab-used-up"
COCKPIT = "/services/cockpit/voila/render/cockpit.ipynb"


def the_dataset(facility: RunningDemo) -> Dataset:
    datasets = facility.client("ada").datasets(facility.credentials.experiment)
    return next(d for d in datasets if d.name == NAME)


def the_job(facility: RunningDemo, template: str, launched_by: str = "trigger:") -> Job:
    jobs = facility.client("ada").jobs(experiment=facility.credentials.experiment)
    return next(j for j in jobs if j.template == template and j.launched_by.startswith(launched_by))


@contextmanager
def stopped(process: Popen[bytes]) -> Iterator[None]:
    """It does nothing meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def number(text: str | None) -> float:
    found = re.search(r"-?\d+(\.\d+)?", (text or "").replace("\u2009", "").replace(",", ""))
    assert found, f"no number in {text!r}"
    return float(found[0])


def test_nobody_sees_anything_without_signing_in(facility: RunningDemo, people: People) -> None:
    page = people.stranger()
    for path in (
        "/",
        COCKPIT,
        f"{COCKPIT}?experiment={facility.credentials.experiment}",
        "/services/beamhub/api/v1/experiments",
    ):
        page.goto(facility.url + path)
        expect(page.locator("input[name=username]")).to_be_visible()


def test_ada_watches_the_acquisition(facility: RunningDemo, people: People) -> None:
    facility.client("ada").remove_member(facility.credentials.experiment, "ben")
    ada = people.page("ada")
    ada.goto(f"{facility.url}{COCKPIT}?experiment={facility.credentials.experiment}")
    expect(ada.locator(".bh-pi")).to_have_text("ada")
    expect(ada.locator(".bh-agent-state")).to_have_attribute("data-state", "connected")

    detector = facility.acquire(f"--prefix={NAME}", f"--frames={FRAMES}", "--rate=2", "--width=0.5")
    expect(ada.locator(".bh-dataset-name")).to_contain_text(NAME, timeout=LONG)
    expect(ada.locator(".bh-upload-name").first).to_be_visible(timeout=LONG)
    some = re.compile(r"^[1-9]\d*$")
    expect(ada.locator(".bh-acquisition .bh-frames")).to_have_attribute("data-frames", some, timeout=LONG)
    # spots of the first frames are drawn while the detector still writes, however busy the machine is
    seen = ada.locator(".bh-acquisition .bh-live-plot")
    with stopped(detector):
        expect(seen).to_have_attribute("data-rows", some, timeout=LONG)
        expect(seen.locator("canvas").first).to_be_visible()
        dataset = the_dataset(facility)
        assert dataset.state is DatasetState.RECEIVING
        people.picture(ada, "cockpit-live")


def test_ben_is_invited_while_it_runs(facility: RunningDemo, people: People) -> None:
    ben = people.page("ben")
    ben.goto(facility.url + COCKPIT)
    expect(ben.locator(".bh-nothing")).to_be_visible()
    expect(ben.locator("body")).not_to_contain_text(facility.credentials.experiment)
    with pytest.raises(ApiError) as refused:
        facility.client("ben").experiment(facility.credentials.experiment)
    assert refused.value.status == 404

    ada = people.page("ada")
    form = ada.locator(".bh-invite")
    form.locator("[name=user]").fill("ben")
    form.locator("[type=submit]").click()
    expect(ada.locator(".bh-member[data-user=ben]")).to_be_visible()

    # without a reload
    expect(ben.locator(".bh-experiment")).to_have_attribute(
        "data-experiment", facility.credentials.experiment, timeout=LONG
    )
    expect(ben.locator(".bh-dataset-name")).to_contain_text(NAME)


def test_results_appear_by_themselves(facility: RunningDemo, people: People) -> None:
    ben = people.page("ben")
    fast = ben.locator(".bh-job[data-template=fast_feedback]").first
    expect(fast).to_have_attribute("data-state", "finished", timeout=LONG)
    assert the_dataset(facility).state is DatasetState.COMPLETE
    dials = ben.locator(".bh-job[data-template=dials]").first
    expect(dials).to_have_attribute("data-state", re.compile("queued|running"), timeout=LONG)
    expect(dials).to_have_attribute("data-state", "finished", timeout=5 * LONG)
    people.picture(ben, "cockpit-finished")

    dials.locator(".bh-job-row").click()
    detail = dials.locator(".bh-job-detail")
    for name, truth in zip(("cell_a", "cell_b", "cell_c"), CELL, strict=True):
        shown = number(detail.locator(f".bh-metric[data-metric={name}]").inner_text().split("\n", 1)[-1])
        assert shown == pytest.approx(truth, rel=0.005), name
    expect(detail.locator(".bh-metric[data-metric=space_group]")).to_contain_text(re.compile(r"P\s*4"))
    figure = detail.locator(".bh-figure img").first
    expect(figure).to_be_visible(timeout=LONG)
    assert figure.evaluate("image => image.naturalWidth") > 200
    people.picture(ben, "job-results", whole=True)

    detail.locator(".bh-tab-log").click()
    expect(detail.locator(".bh-log")).to_contain_text("integrate:")
    detail.locator(".bh-tab-files").click()
    expect(detail.locator(".bh-file", has_text="scaled.mtz")).to_be_visible()


def test_metrics_are_the_crystals(facility: RunningDemo) -> None:
    job = the_job(facility, "dials")
    assert job.state is JobState.FINISHED
    metrics = {name: q.value for name, q in job.metrics.items()}
    assert metrics["laue_group"] == "4/mmm"
    for name in (
        "resolution",
        "completeness",
        "multiplicity",
        "cc_half",
        "r_meas",
        "i_over_sigma",
        "mosaicity",
    ):
        assert isinstance(metrics[name], float), name
    assert job.metrics["resolution"].unit == "Å"
    assert "scaled.mtz" in {a.path for a in job.artifacts}
    assert job.cpu_seconds > 0
    mtz = facility.client("ben").job_file(job.id, "scaled.mtz")
    assert mtz[:4] == b"MTZ "


def test_ben_reruns_with_another_limit(facility: RunningDemo, people: People) -> None:
    parent = the_job(facility, "dials")
    ben = people.page("ben")
    row = ben.locator(f".bh-job[data-job='{parent.id}']")
    if row.locator(".bh-job-rerun").count() == 0:
        row.locator(".bh-job-row").click()
    row.locator(".bh-job-rerun").click()
    form = ben.locator(".bh-rerun")
    # as it stands, the result is there already
    expect(form.locator(".bh-estimate-same")).to_contain_text(f"job #{parent.id}", timeout=LONG)
    form.locator("[name='p.resolution_limit']").fill("2.8")
    form.locator("[name='p.resolution_limit']").press("Tab")
    expect(form.locator(".bh-estimate-same")).to_have_count(0, timeout=LONG)
    expect(form.locator(".bh-estimate-time")).to_contain_text("Takes about")
    people.picture(ben, "rerun")
    form.locator(".bh-form-submit").click()

    again = ben.locator(".bh-job[data-template=dials]", has=ben.locator(".bh-job-parent"))
    expect(again.first).to_be_visible(timeout=LONG)
    expect(again.first.locator(".bh-job-starter")).to_contain_text("ben")
    expect(again.first).to_have_attribute("data-state", "finished", timeout=5 * LONG)
    job = the_job(facility, "dials", launched_by="ben")
    assert job.parent == parent.id
    assert job.parameters["resolution_limit"] == 2.8
    resolution = job.metrics["resolution"].value
    assert isinstance(resolution, float)
    assert resolution == pytest.approx(2.8, abs=0.05)

    ada = people.page("ada")  # sees it too, and who it was
    expect(ada.locator(f".bh-job[data-job='{job.id}'] .bh-job-starter")).to_contain_text("ben")


def test_ben_compares_the_two(facility: RunningDemo, people: People) -> None:
    parent, job = the_job(facility, "dials"), the_job(facility, "dials", launched_by="ben")
    ben = people.page("ben", tab="compare")
    ben.goto(f"{facility.url}/services/cockpit/voila/render/compare.ipynb?jobs={parent.id},{job.id}")
    table = ben.locator(".bh-compare-table")
    expect(table.locator(".bh-compare-job")).to_have_count(2, timeout=LONG)
    expect(table.locator("tr.bh-differs[data-name=resolution_limit]")).to_contain_text("2.8")
    expect(ben.locator(".bh-compare-series img").first).to_be_visible(timeout=LONG)
    people.picture(ben, "compare", whole=True)


def test_ben_cancels_another_run(facility: RunningDemo, people: People) -> None:
    """Run again, on purpose, and then not wanted after all."""
    parent = the_job(facility, "dials")
    again = facility.client("ben").rerun(parent.id, force=True)
    assert again.repeats == parent.id
    ben = people.page("ben")
    row = ben.locator(f".bh-job[data-job='{again.id}']")
    row.locator(".bh-job-row").click(timeout=LONG)
    row.locator(".bh-job-cancel").click()
    ben.locator(".bh-question-yes").click()
    expect(row).to_have_attribute("data-state", "cancelled", timeout=LONG)
    expect(row.locator(".bh-job-reason")).to_have_text("Cancelled by ben.")
    assert facility.client("ada").job(again.id).state is JobState.CANCELLED


@pytest.fixture(scope="module")
def waiting(facility: RunningDemo) -> Iterator[list[Job]]:
    """Three jobs of ben's, which wait as long as nobody tops up the licence that is to pay for them."""
    with facility.operator() as operator:
        operator.create_licence(LicenceCreate(id=EMPTY, title="Used up", kind="lab", instruments=["sim-mx"]))
    ben = facility.client("ben")
    parent = the_job(facility, "fast_feedback")
    changed = [{**parent.parameters, "sigma_strong": strength} for strength in (4, 5, 6)]
    yield [ben.rerun(parent.id, sponsor=EMPTY, parameters=one) for one in changed]
    jobs = ben.jobs(facility.credentials.experiment)
    ben.cancel_all([job.id for job in jobs if job.sponsor == EMPTY and not job.state.ended])


def test_ben_selects_several_jobs(facility: RunningDemo, people: People, waiting: list[Job]) -> None:
    """The list stands still while he does; what one job is refused, the others get."""
    client = facility.client("ben")
    gone, other, third = waiting
    finished = the_job(facility, "dials")
    ben = people.page("ben")

    def row(job: Job) -> Locator:
        return ben.locator(f".bh-job[data-job='{job.id}']")

    def place(job: Job) -> float:
        box = row(job).bounding_box()
        assert box is not None
        return box["y"] + float(ben.evaluate("scrollY"))

    expect(row(third)).to_be_visible(timeout=LONG)
    row(gone).scroll_into_view_if_needed()
    before = place(other)
    row(gone).locator(".bh-job-tick input").focus()
    ben.keyboard.press("Space")
    tools = ben.locator(".bh-selection")
    expect(tools.locator(".bh-selected")).to_have_text("1 selected")
    expect(tools.locator(".bh-jobs-compare")).to_have_attribute("aria-disabled", "true")
    for job in (other, finished):
        row(job).locator(".bh-job-tick input").check()
    expect(tools.locator(".bh-selected")).to_have_text("3 selected")
    later = client.rerun(third.id, parameters={**third.parameters, "sigma_strong": 7})
    expect(tools.locator(".bh-let-in")).to_have_text("Show 1 new", timeout=LONG)
    expect(row(later)).to_have_count(0)
    assert place(other) == before
    expect(row(gone).locator(".bh-job-tick input")).to_be_checked()
    assert f"jobs={finished.id},{gone.id},{other.id}" in unquote(
        tools.locator(".bh-jobs-compare").get_attribute("href") or ""
    )
    people.picture(ben, "jobs-selected")

    tools.locator(".bh-jobs-cancel").click()
    dialog = ben.locator(".bh-cancel-several")
    expect(dialog).to_contain_text("1 other has ended already.")
    client.cancel(gone.id)  # from another window, meanwhile
    dialog.locator("[name=reason]").fill("Wrong strength")
    dialog.locator(".bh-question-yes").click()
    outcome = ben.locator(".bh-outcome")
    expect(outcome.locator("h2")).to_have_text("1 of 2 jobs cancelled", timeout=LONG)
    expect(outcome.locator(f".bh-refused[data-job='{gone.id}']")).to_contain_text("is cancelled already")
    people.picture(ben, "jobs-refused")
    ben.keyboard.press("Escape")
    expect(row(other).locator(".bh-job-reason")).to_have_text("Cancelled by ben: Wrong strength.")
    expect(tools.locator(".bh-selected")).to_have_text("1 selected")
    expect(row(gone).locator(".bh-job-tick input")).to_be_checked()

    row(other).locator(".bh-job-tick input").check()
    tools.locator(".bh-jobs-rerun").click()
    form = ben.locator(".bh-several")
    expect(form.locator("[name='p.sigma_strong']")).to_have_attribute("placeholder", "as each was")
    form.locator("[name='p.min_spot_size']").fill("0")
    form.locator(".bh-several-start").click()
    expect(form.locator(".bh-field-wrong")).to_have_attribute("data-parameter", "p.min_spot_size")
    form.locator("[name='p.min_spot_size']").fill("4")
    people.picture(ben, "jobs-rerun")
    form.locator(".bh-several-start").click()
    expect(form).to_be_hidden(timeout=LONG)
    expect(tools).to_have_count(0)
    for strength, parent in ((4, gone), (5, other)):
        [again] = [job for job in client.jobs(facility.credentials.experiment) if job.parent == parent.id]
        assert (again.parameters["sigma_strong"], again.parameters["min_spot_size"]) == (strength, 4)
        expect(row(again)).to_have_attribute("data-state", "pending")


def test_ben_lets_a_job_wait_and_sam_does_not(
    facility: RunningDemo, people: People, waiting: list[Job]
) -> None:
    job = waiting[2]
    ben, sam = people.page("ben"), people.page("sam")
    row = ben.locator(f".bh-job[data-job='{job.id}']")
    row.locator(".bh-job-row").click(timeout=LONG)
    row.locator(".bh-job-rank").click()
    dialog = ben.locator(".bh-priority")
    dialog.locator("[name=priority]").fill("1")  # which is not for him to say
    dialog.locator(".bh-question-yes").click()
    expect(dialog).to_be_visible()
    dialog.locator("[name=priority]").fill("-5")
    people.picture(ben, "priority")
    dialog.locator(".bh-question-yes").click()
    expect(row.locator(".bh-job-priority")).to_have_text("priority −5", timeout=LONG)

    sam.goto(f"{facility.url}/services/cockpit/voila/render/analysis.ipynb?job={job.id}")
    sam.locator(".bh-job-rank").click(timeout=LONG)
    sam.locator(".bh-priority [name=priority]").fill("7")
    sam.keyboard.press("Enter")
    expect(row.locator(".bh-job-priority")).to_have_text("priority 7", timeout=LONG)
    assert facility.client("ada").job(job.id).priority == 7
    row.locator(".bh-job-row").click()


def test_ben_looks_at_frames(facility: RunningDemo, people: People) -> None:
    dataset = the_dataset(facility)
    ben = people.page("ben", tab="viewer")
    ben.goto(f"{facility.url}/services/cockpit/voila/render/viewer.ipynb?dataset={dataset.id}&frame=5")
    canvas = ben.locator(".bh-frame-canvas")
    expect(canvas).to_be_visible(timeout=LONG)
    expect(ben.locator(".bh-frame-number")).to_have_value("5")
    ben.locator(".bh-frame-next").click()
    expect(ben.locator(".bh-frame-number")).to_have_value("6")
    box = canvas.bounding_box()
    assert box is not None
    centre = Position(x=box["width"] / 2 + 60, y=box["height"] / 2 + 60)
    canvas.hover(position=centre)
    expect(ben.locator(".bh-frame-readout")).to_contain_text("Å")
    expect(canvas).to_have_attribute("data-frame", "6")
    expect(ben.locator(".bh-frame-loading")).to_be_hidden()
    people.picture(ben, "viewer")
    for _ in range(14):
        canvas.hover(position=centre)
        ben.mouse.wheel(0, -240)
    people.picture(ben, "viewer-pixels")


def test_sam_sees_licences(facility: RunningDemo, people: People) -> None:
    sam = people.page("sam")
    sam.goto(f"{facility.url}{COCKPIT}?experiment={facility.credentials.experiment}")
    lab = sam.locator(".bh-licence[data-licence=lab-sim-mx]")
    expect(lab.locator(".bh-licence-left")).to_contain_text("CPU\u2011h")
    people.picture(sam, "cockpit-staff")
    sam.goto(f"{facility.url}/services/cockpit/voila/render/facility.ipynb")
    expect(sam.locator(".bh-instrument-row[data-instrument=sim-mx]")).to_be_visible(timeout=LONG)
    people.picture(sam, "facility")

    licence = next(x for x in facility.client("sam").licences() if x.id == "lab-sim-mx")
    lines = facility.client("sam").ledger("lab-sim-mx")
    amount = {
        kind: sum(x.cpu_seconds for x in lines if x.kind == kind)
        for kind in ("grant", "hold", "charge", "release")
    }
    assert amount["grant"] == licence.granted
    assert amount["charge"] == licence.charged > 0
    assert amount["hold"] - amount["charge"] - amount["release"] == licence.held == 0


def test_ben_opens_the_notebook_in_jupyterlab(facility: RunningDemo, people: People) -> None:
    job = the_job(facility, "dials", launched_by="ben")
    row = people.page("ben").locator(f".bh-job[data-job='{job.id}']")
    if not row.locator(".bh-job-detail").is_visible():
        row.locator(".bh-job-row").click()
    with people.page("ben").expect_popup() as opened:
        row.locator(".bh-job-lab").click()
    ben = opened.value
    expect(ben.locator(".jp-Notebook")).to_be_visible(timeout=2 * LONG)
    expect(ben.locator(".jp-Notebook")).to_contain_text("resolution_limit", timeout=LONG)
    expect(ben.locator("body")).not_to_contain_text("official Jupyter news")
    people.picture(ben, "jupyterlab")


def test_ben_runs_a_notebook_of_his_own(facility: RunningDemo, people: People) -> None:
    """He opens a job's notebook, changes a cell, keeps it in shared/, and runs it on the same data."""
    parent = the_job(facility, "fast_feedback")
    notebook = json.loads(facility.client("ben").notebook(parent.id))
    (cell,) = [c for c in notebook["cells"] if "".join(c["source"]).startswith("import math")]
    cell["source"] = [*cell["source"], "\nprint('changed by hand, spot strength', sigma_strong)"]
    folder = Path(facility.client("ben").experiment(facility.credentials.experiment).folder)
    path = folder / "shared" / "by hand" / "Fast and mine.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(notebook))

    ben = people.page("ben")
    row = ben.locator(f".bh-job[data-job='{parent.id}']")
    if row.locator(".bh-job-rerun").count() == 0:
        row.locator(".bh-job-row").click()
    row.locator(".bh-job-rerun").click()
    form = ben.locator(".bh-rerun")
    form.locator("[name='p.sigma_strong']").fill("4")  # stays when the template is chosen
    form.locator(".bh-form-template").select_option("shared/by hand/Fast and mine.ipynb")
    people.picture(ben, "own-notebook")
    form.locator(".bh-form-submit").click()
    again = ben.locator(".bh-job[data-template=fast_and_mine]")
    expect(again).to_have_attribute("data-state", "finished", timeout=2 * LONG)
    job = the_job(facility, "fast_and_mine", launched_by="ben")
    assert (job.parent, job.inputs, job.parameters["sigma_strong"]) == (parent.id, parent.inputs, 4)
    assert "changed by hand, spot strength 4" in facility.client("ben").job_log(job.id)[0]

    row = ben.locator(f".bh-job[data-job='{job.id}']")
    if not row.locator(".bh-job-detail").is_visible():
        row.locator(".bh-job-row").click()
    row.locator(".bh-tab-parameters").click()
    expect(row.locator(".bh-job-detail")).to_contain_text("shared/by hand/Fast and mine.ipynb")
    expect(row.locator(".bh-template-changed")).to_have_count(0)


def test_eve_gets_nothing(facility: RunningDemo, people: People) -> None:
    eve = people.page("eve")
    dataset, job = the_dataset(facility), the_job(facility, "dials")
    secrets = (facility.credentials.experiment, NAME, "79.1", "ada", "ben")
    pages = (
        "cockpit.ipynb",
        f"cockpit.ipynb?experiment={facility.credentials.experiment}",
        f"analysis.ipynb?job={job.id}",
        f"compare.ipynb?jobs={job.id},{job.id}",
        f"viewer.ipynb?dataset={dataset.id}&frame=1",
        "experiments.ipynb",
        "facility.ipynb",
    )
    for page in pages:
        eve.goto(f"{facility.url}/services/cockpit/voila/render/{page}")
        expect(eve.locator(".bh-nothing").first).to_be_visible(timeout=LONG)
        shown = eve.locator("body").inner_text()
        assert not [s for s in secrets if s in shown], f"{page} shows eve {shown}"
        expect(eve.locator("canvas:visible, img:visible")).to_have_count(0)
    eve.goto(f"{facility.url}{COCKPIT}")
    expect(eve.locator(".bh-nothing").first).to_be_visible(timeout=LONG)
    people.picture(eve, "stranger")


def test_eve_gets_nothing_from_the_api(facility: RunningDemo) -> None:
    """Every path of the OpenAPI document, with the ids of ada's experiment."""
    job, dataset = the_job(facility, "dials"), the_dataset(facility)
    api = f"{facility.url}/services/beamhub/api/v1"
    document = (
        httpx.get(
            f"{api}/openapi.json",
            headers={"Authorization": f"token {facility.credentials.users['eve'].token}"},
        )
        .raise_for_status()
        .json()
    )
    upload = facility.client("ada").uploads(facility.credentials.experiment)[0]
    trigger = facility.client("sam").triggers("sim-mx")[0]
    ids = {"user": "ben", "n": "1", "name": "per_frame"}
    of = {
        "experiments": facility.credentials.experiment,
        "jobs": str(job.id),
        "datasets": str(dataset.id),
        "uploads": upload.id,
        "instruments": "sim-mx",
        "triggers": str(trigger.id),
        "licences": "lab-sim-mx",
        "templates": "dials",
    }
    public = {"/openapi.json", "/health", "/me", "/templates", "/templates/{name}", "/signed-in"}
    public |= {"/profiles", "/runners"}  # what the facility has to offer
    asked = 0
    with httpx.Client(
        headers={"Authorization": f"token {facility.credentials.users['eve'].token}"}, timeout=30
    ) as eve:
        for path, methods in document["paths"].items():
            noun = path.split("/")[1]
            url = path
            for key in re.findall(r"{(\w+)}", path):
                value = ids.get(key, of[noun])
                if key == "path":
                    value = "notebook.ipynb" if noun == "jobs" else f"raw/{NAME}_master.h5"
                url = url.replace(f"{{{key}}}", value)
            for method in methods:
                if method not in ("get", "head", "post", "patch", "put", "delete") or path in public:
                    continue
                answer = eve.request(
                    method, api + url, json={} if method in ("post", "patch", "put") else None
                )
                asked += 1
                body = answer.text if "json" in answer.headers.get("content-type", "") else ""
                if answer.status_code == 200:  # a list, of what eve may see
                    assert answer.json().get("items") == [], f"{method} {url}: {body}"
                else:
                    assert answer.status_code in (400, 401, 403, 404, 405, 409, 412, 415, 422), (
                        f"{method} {url}: {answer}"
                    )
                    assert NAME not in body or url in body, f"{method} {url}: {body}"
                    assert dataset.path not in body
    assert asked > 40


def test_eve_hears_nothing(facility: RunningDemo) -> None:
    """While ada hears what happens, the same stream tells eve nothing about it."""
    ada = Listener(facility.client("ada"), until=lambda message: message.kind == "member.removed")
    eve = Listener(facility.client("eve"), until=lambda message: message.kind == "experiment.created")
    facility.client("ada").add_member(facility.credentials.experiment, "somebody", Role.VIEWER)
    facility.client("ada").remove_member(facility.credentials.experiment, "somebody")
    own = facility.client("sam").create_experiment("sim-mx", "Something of eve's own", "eve")
    assert {"member.added", "member.removed"} <= {m.kind for m in ada.all()}
    assert {m.experiment for m in eve.all()} <= {own.id, None}
    assert facility.credentials.experiment not in str(eve.heard)
