"""Credit as people live it: a sponsor that does not pay says why, a job that waits starts after a top-up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from beamhub.schemas import ExperimentChange, ExperimentState, JobState, LicenceCreate, SponsorshipRule
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import expect

from tests.acceptance.people import LONG, People
from tests.acceptance.test_beamtime import COCKPIT

pytestmark = [pytest.mark.acceptance, pytest.mark.dials, pytest.mark.timeout(600)]

NAME = "credit"
FACILITY = "/services/cockpit/voila/render/facility.ipynb"
SMALL = "lab-small"


@pytest.fixture
def experiment(facility: RunningDemo) -> Iterator[str]:
    """A beamtime of ada's of its own, which is active meanwhile."""
    sam = facility.client("sam")
    before = facility.credentials.experiment
    experiment = sam.create_experiment("sim-mx", "Credit", "ada").id
    sam.activate("sim-mx", experiment)
    yield experiment
    sam.set_terms("lab-sim-mx", [])
    sam.activate("sim-mx", before)


def test_a_refused_sponsor_and_a_job_that_waits_for_credit(
    facility: RunningDemo, people: People, experiment: str
) -> None:
    ada, sam = facility.client("ada"), facility.client("sam")
    facility.acquire(f"--prefix={NAME}", "--frames=4", "--rate=4").wait()
    page = people.page("ada")
    page.goto(f"{facility.url}{COCKPIT}?experiment={experiment}")
    row = page.locator(".bh-job[data-template=fast_feedback]", has_text=NAME).first
    expect(row).to_have_attribute("data-state", "finished", timeout=2 * LONG)

    # the lab pays during the beamtime, which is over
    with facility.operator() as operator:
        operator.create_licence(
            LicenceCreate(id=SMALL, title="Small allowance", kind="lab", instruments=["sim-mx"])
        )
    sam.set_terms("lab-sim-mx", [SponsorshipRule(states=[ExperimentState.RUNNING])])
    sam.change_experiment(experiment, ExperimentChange(state=ExperimentState.PROCESSING))
    page.reload()
    expect(row).to_be_visible(timeout=LONG)
    row.locator(".bh-job-row").click()
    row.locator(".bh-job-rerun").click()
    form = page.locator(".bh-rerun")
    refused = form.locator(".bh-sponsor-refused[data-licence=lab-sim-mx]")
    expect(refused).to_have_text(
        "The licence lab-sim-mx pays on sim-mx only while the experiment is running."
    )
    expect(form.locator(".bh-form-sponsor option[value=lab-sim-mx]")).to_be_disabled()
    people.picture(page, "sponsor-refused")

    # another licence that pays, but has nothing left
    form.locator(".bh-form-sponsor").select_option(SMALL)
    form.locator(".bh-form-submit").click()
    expect(form).to_be_hidden(timeout=LONG)
    job = max(ada.jobs(experiment), key=lambda job: job.id)
    assert (job.state, job.sponsor) == (JobState.PENDING, SMALL)
    waiting = page.locator(f".bh-job[data-job='{job.id}']")
    expect(waiting).to_contain_text("Waits for credit", timeout=LONG)

    staff = people.page("sam")
    staff.goto(f"{facility.url}{FACILITY}")
    staff.locator(f".bh-licence[data-licence={SMALL}] .bh-licence-top-up").click(timeout=LONG)
    dialog = staff.locator(".bh-top-up")
    dialog.locator("[name=hours]").fill("20")
    dialog.locator("[name=reason]").fill("one more run")
    people.picture(staff, "top-up")
    dialog.locator(".bh-question-yes").click()
    expect(dialog).to_be_hidden(timeout=LONG)

    expect(waiting).to_have_attribute("data-state", "finished", timeout=3 * LONG)
    lines = [line for line in sam.ledger(SMALL) if line.job == job.id]
    assert [line.kind for line in reversed(lines)][:2] == ["hold", "charge"]
    staff.locator(".bh-usage-by").select_option("licence")
    expect(staff.locator(f".bh-usage-row[data-usage={SMALL}]")).to_be_visible(timeout=LONG)
    people.picture(staff, "facility-usage")
