"""Trigger rules as people live them: sam writes one and sees first what it would have done, ada has one
different in her experiment, a job becomes a rule, and what was missed while automation was paused is made
up for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from beamhub.schemas import (
    InstrumentChange,
    Job,
    JobState,
    SponsorshipRule,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
    TriggerGroup,
)
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Locator, Page, expect

from tests.acceptance.people import LONG, People
from tests.acceptance.test_beamtime import COCKPIT

pytestmark = [pytest.mark.acceptance, pytest.mark.dials, pytest.mark.timeout(600)]

INSTRUMENT = "sim-mx"
RULES = "/services/cockpit/voila/render/rules.ipynb"
FACILITY = "/services/cockpit/voila/render/facility.ipynb"
ANALYSIS = "/services/cockpit/voila/render/analysis.ipynb"
FEEDBACK = "Fast feedback while frames arrive"
NAME = "rule_a"


@pytest.fixture(scope="module")
def experiment(facility: RunningDemo) -> Iterator[str]:
    """A beamtime of ada's of its own with two small datasets, in which nothing but fast feedback starts by
    itself."""
    sam = facility.client("sam")
    before = facility.credentials.experiment
    known = {rule.id for rule in sam.triggers(INSTRUMENT)}
    experiment = sam.create_experiment(INSTRUMENT, "Lysozyme, by rules", "ada").id
    sam.add_member(experiment, "ben")
    sam.activate(INSTRUMENT, experiment)
    for name in (NAME, "other"):
        facility.acquire(f"--prefix={name}", "--frames=4", "--rate=4").wait()
    yield experiment
    sam.set_terms("lab-sim-mx", [])
    for rule in sam.triggers(INSTRUMENT):
        if rule.id not in known:
            sam.delete_trigger(rule.id)
    sam.change_instrument(INSTRUMENT, InstrumentChange(automation=True))
    sam.activate(INSTRUMENT, before)


def rule_row(page: Page, title: str) -> Locator:
    return page.locator(".bh-rule", has=page.locator(".bh-rule-title", has_text=title))


def jobs_of(facility: RunningDemo, experiment: str, rule: int) -> list[Job]:
    found = facility.client("sam").jobs(experiment)
    return [job for job in found if job.launched_by == f"trigger:{rule}"]


def rule_id(row: Locator) -> int:
    return int(row.get_attribute("data-rule") or "")


def test_sam_writes_a_rule_and_sees_first_what_it_would_have_done(
    facility: RunningDemo, people: People, experiment: str
) -> None:
    sam = people.page("sam")
    sam.goto(f"{facility.url}{FACILITY}")
    sam.locator(".bh-instrument-row[data-instrument=sim-mx] .bh-rules-open").click(timeout=LONG)
    expect(rule_row(sam, FEEDBACK)).to_have_attribute("data-state", "on", timeout=LONG)
    people.picture(sam, "rules")

    sam.locator(".bh-rule-new").click()
    form = sam.locator(".bh-rule-dialog")
    starts, others = form.locator(".bh-trial[data-starts=true]"), form.locator(".bh-trial[data-starts=false]")
    for name in (NAME, "other"):  # beside what other beamtimes of this instrument have recorded
        expect(starts.filter(has_text=name)).to_have_count(1, timeout=LONG)
    form.locator("[name=title]").fill("Feedback on rule_*")
    form.locator("[name=template]").select_option("fast_feedback")
    form.locator("[name=expression]").fill("frames > ")
    form.locator("[name=expression]").press("Tab")
    expect(form.locator(".bh-field-wrong")).to_contain_text("can't be used", timeout=LONG)
    form.locator("[name=expression]").fill("wavelength > 0.1")
    form.locator("[name=pattern]").fill("rule_*")
    form.locator("[name=pattern]").press("Tab")
    expect(starts).to_have_count(1, timeout=LONG)
    expect(starts).to_contain_text(NAME)
    expect(starts.locator("a.bh-link").last).to_have_text(re.compile(r"#\d+"))  # fast feedback has run on it
    expect(others.filter(has_text="other")).to_have_count(1)
    people.picture(sam, "rule-dry-run")

    assert [rule for rule in facility.client("sam").triggers(INSTRUMENT) if rule.pattern == "rule_*"] == []
    starts.locator("input").check()
    save = form.locator(".bh-rule-save")
    expect(save).to_have_text("Save, and start 1 job now", timeout=LONG)
    save.scroll_into_view_if_needed()
    people.picture(sam, "rule-start-now")
    save.click()
    expect(form).to_be_hidden(timeout=LONG)
    row = rule_row(sam, "Feedback on rule_*")
    expect(row).to_contain_text("named rule_* · if wavelength > 0.1")
    [job] = jobs_of(facility, experiment, rule_id(row))
    assert facility.client("sam").wait(job.id, timeout=120).state is JobState.FINISHED

    row.locator(".bh-rule-change").click()
    form.locator("[name=priority]").fill("101")
    form.locator(".bh-rule-save").click()
    expect(form.locator(".bh-field-wrong")).to_contain_text("from -100 to 100", timeout=LONG)
    form.locator("[name=priority]").fill("7")
    form.locator(".bh-rule-save").click()
    expect(form).to_be_hidden(timeout=LONG)
    expect(row).to_contain_text("priority 7")
    row.locator(".bh-rule-history").click()
    history = sam.locator(".bh-rule-past")
    expect(history.locator(".bh-version").first).to_contain_text("sam changed it")
    expect(history.locator(".bh-version").first).to_contain_text("priority: 0 → 7")
    people.picture(sam, "rule-history")
    sam.keyboard.press("Escape")
    expect(history).to_be_hidden(timeout=LONG)


def test_the_pi_has_a_rule_different_in_her_experiment(
    facility: RunningDemo, people: People, experiment: str
) -> None:
    ada = people.page("ada")
    ada.goto(f"{facility.url}{COCKPIT}?experiment={experiment}")
    expect(ada.locator(".bh-automation .bh-rules-open")).to_be_visible(timeout=LONG)
    people.picture(ada, "cockpit-automation", whole=True)
    ada.locator(".bh-automation .bh-rules-open").click()
    row = rule_row(ada, FEEDBACK)
    expect(row).to_have_attribute("data-state", "on", timeout=LONG)
    expect(ada.locator(".bh-automation-toggle")).to_have_count(0)
    row.locator(".bh-rule-switch").click()
    expect(row).to_have_attribute("data-state", "off", timeout=LONG)
    expect(row.locator(".bh-rule-differs")).to_have_text("Differs here: on or off")
    row.locator(".bh-rule-switch").click()
    expect(row.locator(".bh-rule-differs")).to_have_count(0, timeout=LONG)

    row.locator(".bh-rule-change").click()
    form = ada.locator(".bh-rule-dialog")
    expect(form.locator("[name=template]")).to_have_count(0)
    expect(form.locator("#rule-profile")).to_have_count(0)
    form.locator("[name=sponsor]").select_option("user-ada")
    number = form.locator(".bh-field input.bh-number").first
    number.fill("a few")
    form.locator(".bh-rule-save").click()
    expect(form.locator(".bh-field-wrong")).to_be_visible(timeout=LONG)
    people.picture(ada, "rule-here")
    number.fill("= frames_announced // 2")
    number.press("Tab")
    expect(form.locator(".bh-field-wrong")).to_have_count(0, timeout=LONG)
    form.locator(".bh-rule-save").click()
    expect(form).to_be_hidden(timeout=LONG)
    expect(row.locator(".bh-rule-differs")).to_have_text("Differs here: parameters, paid by")
    people.picture(ada, "rules-experiment")

    ben = people.page("ben")
    ben.goto(f"{facility.url}{RULES}?experiment={experiment}")
    expect(rule_row(ben, FEEDBACK)).to_contain_text("= frames_announced // 2", timeout=LONG)
    expect(ben.locator(".bh-rule .bh-button, .bh-rule-new")).to_have_count(0)

    row.locator(".bh-rule-reset").click()
    expect(row.locator(".bh-rule-differs")).to_have_count(0, timeout=LONG)
    [rule] = [r for r in facility.client("ada").experiment_triggers(experiment) if r.title == FEEDBACK]
    assert (rule.changed, rule.sponsor, rule.enabled) == ([], "lab-sim-mx", True)

    facility.client("sam").set_terms("lab-sim-mx", [SponsorshipRule(templates=["dials"])])
    ada.locator(".bh-rule-new").click()
    form.locator("[name=template]").select_option("fast_feedback", timeout=LONG)
    refused = form.locator(".bh-sponsor-refused[data-licence=lab-sim-mx]")
    expect(refused).to_have_text(
        "The licence lab-sim-mx pays on sim-mx only for the template dials.", timeout=LONG
    )
    refused.scroll_into_view_if_needed()
    people.picture(ada, "rule-sponsor-refused")
    form.locator("[name=template]").select_option("dials")
    expect(refused).to_have_count(0, timeout=LONG)
    expect(form.locator(".bh-trial")).not_to_have_count(0, timeout=LONG)
    form.locator("[name=title]").fill("Ours")
    form.locator("[name=pattern]").fill("nothing*")
    form.locator("[name=pattern]").press("Enter")
    expect(form).to_be_hidden(timeout=LONG)
    own = rule_row(ada, "Ours")
    expect(own.locator(".bh-rule-differs")).to_have_text("Only in this experiment")
    facility.client("sam").set_terms("lab-sim-mx", [])
    own.locator(".bh-rule-delete").click()
    ada.locator(".bh-question-yes").click()
    expect(own).to_have_count(0, timeout=LONG)


def test_a_job_becomes_a_rule(facility: RunningDemo, people: People, experiment: str) -> None:
    client = facility.client("sam")
    job = next(job for job in client.jobs(experiment) if job.state is JobState.FINISHED)
    ada, sam = people.page("ada"), people.page("sam")
    ada.goto(f"{facility.url}{ANALYSIS}?job={job.id}")
    expect(ada.locator(".bh-analysis-head")).to_be_visible(timeout=LONG)
    expect(ada.locator(".bh-job-rule")).to_have_count(0)
    sam.goto(f"{facility.url}{ANALYSIS}?job={job.id}")
    sam.locator(".bh-job-rule").click(timeout=LONG)
    form = sam.locator(".bh-rule-dialog")
    expect(form.locator("h2")).to_contain_text(f"#{job.id}", timeout=LONG)
    form.locator("[name=title]").fill("As that job")
    form.locator("[name=pattern]").fill("oth*")
    form.locator("[name=pattern]").press("Tab")
    trial = form.locator(".bh-trial[data-starts=true]")
    expect(trial).to_have_count(1, timeout=LONG)
    trial.locator("input").check()
    expect(form.locator(".bh-rule-save")).to_have_text("Save, and start 1 job now", timeout=LONG)
    people.picture(sam, "rule-of-job")
    form.locator(".bh-rule-save").click()
    expect(form).to_be_hidden(timeout=LONG)
    row = rule_row(sam, "As that job")
    [started] = jobs_of(facility, experiment, rule_id(row))
    assert (started.parameters, started.inputs[0].name) == (job.parameters, "other")
    ended = client.wait(started.id, timeout=120)
    assert (ended.state, ended.reason) == (JobState.FINISHED, "")

    row.locator(".bh-rule-delete").click()
    sam.locator(".bh-question-yes").click()
    expect(row).to_have_count(0, timeout=LONG)


def test_a_job_takes_the_place_of_a_rule_and_sam_goes_back(
    facility: RunningDemo, people: People, experiment: str
) -> None:
    client = facility.client("sam")
    before = client.create_trigger(
        INSTRUMENT,
        TriggerCreate(
            title="DIALS on nothing",
            event=TriggerEvent.DATASET_COMPLETE,
            pattern="nothing*",
            template="dials",
            parameters={"resolution_limit": 2.5},
            profile="cpu-2",
            sponsor="lab-sim-mx",
            priority=3,
        ),
    )
    job = next(job for job in client.jobs(experiment) if job.template == "fast_feedback")
    sam = people.page("sam")
    sam.goto(f"{facility.url}{RULES}?job={job.id}")
    form = sam.locator(".bh-rule-dialog")
    form.locator("[name=replaces]").select_option(f"{before.id}", timeout=LONG)
    form.locator("[name=title]").fill("Feedback on nothing")
    form.locator("[name=pattern]").fill("nothing*")
    people.picture(sam, "rule-replaced")
    form.locator(".bh-rule-save").click()
    expect(form).to_be_hidden(timeout=LONG)
    row = sam.locator(f".bh-rule[data-rule='{before.id}']")
    expect(row.locator(".bh-rule-title")).to_have_text("Feedback on nothing", timeout=LONG)
    replaced = next(rule for rule in client.triggers(INSTRUMENT) if rule.id == before.id)
    assert (replaced.template, replaced.parameters) == (job.template, job.parameters)

    row.locator(".bh-rule-history").click()
    history = sam.locator(".bh-rule-past")
    now = history.locator(f".bh-version[data-version='{replaced.version}']")
    expect(now).to_contain_text("DIALS on nothing → Feedback on nothing")
    expect(now.locator(".bh-version-restore")).to_have_count(0)
    people.picture(sam, "rule-go-back")
    history.locator(f".bh-version[data-version='{before.version}'] .bh-version-restore").click()
    expect(form.locator("[name=title]")).to_have_value("DIALS on nothing", timeout=LONG)
    expect(form.locator("[name='p.resolution_limit']")).to_have_value("2.5")
    form.locator(".bh-rule-save").click()
    expect(form).to_be_hidden(timeout=LONG)
    expect(row.locator(".bh-rule-title")).to_have_text(before.title, timeout=LONG)
    back = next(rule for rule in client.triggers(INSTRUMENT) if rule.id == before.id)
    assert back.version == replaced.version + 1
    assert back.model_copy(update={"version": before.version}) == before


def test_what_was_missed_is_made_up_for(facility: RunningDemo, people: People, experiment: str) -> None:
    client = facility.client("sam")
    gathering = client.create_trigger(
        INSTRUMENT,
        TriggerCreate(
            title="Once there are several",
            event=TriggerEvent.JOB_FINISHED,
            condition=TriggerCondition(template="fast_feedback"),
            group=TriggerGroup(by="folder", wait=86_400, at_least=2),
            template="merge",
            profile="cpu-1",
            sponsor="lab-sim-mx",
        ),
    )
    sam = people.page("sam")
    sam.goto(f"{facility.url}{RULES}?instrument={INSTRUMENT}")
    sam.locator(".bh-automation-toggle").click(timeout=LONG)
    expect(sam.locator(".bh-automation-paused")).to_be_visible(timeout=LONG)
    expect(rule_row(sam, FEEDBACK)).to_have_attribute("data-state", "paused")

    facility.acquire("--prefix=late", "--frames=4", "--rate=4").wait()
    missed = sam.locator(".bh-missed-row", has_text="late")
    expect(missed.first).to_be_visible(timeout=LONG)
    people.picture(sam, "rules-missed")
    sam.locator(".bh-automation-toggle").click()
    expect(sam.locator(".bh-automation-paused")).to_have_count(0, timeout=LONG)
    sam.locator(".bh-missed-start").click()
    expect(sam.locator(".bh-missed-card")).to_have_count(0, timeout=LONG)
    late = next(d for d in client.datasets(experiment) if d.name == "late")
    assert client.jobs(dataset=late.id)

    waiting = sam.locator(".bh-gathering", has_text=gathering.title).filter(has_text=experiment)
    expect(waiting).to_be_visible(timeout=LONG)
    expect(waiting).to_contain_text(re.compile(r"gives up in 2[34]\s.*, unless 2 are together by then"))
    people.picture(sam, "rules-gathering")
