from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from beamhub.client import Client
from beamhub.schemas import (
    Estimate,
    JobFailure,
    JobProgress,
    JobState,
    Me,
    Quantity,
    Spread,
)
from beamhub_cockpit.around import Around
from beamhub_cockpit.details import show as details
from beamhub_cockpit.format import NARROW
from beamhub_cockpit.html import Node, find, text
from beamhub_cockpit.jobs import panel
from beamhub_cockpit.launch import Launch
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import rank
from beamhub_cockpit.reading import Detail, plots
from beamhub_cockpit.rerun import show
from beamhub_cockpit.results import problem
from beamhub_cockpit.scene import Scene, with_progress
from beamhub_cockpit.selection import Selection

from tests.unit.cockpit import EXPERIMENT, ONE, TWO, dataset, job, licence, template

LINKS = Links("/", "ben")
LIMIT = {"type": ["number", "null"], "default": None, "minimum": 0.5, "unit": "Å"}
DIALS = template("dials", limit=LIMIT, spots={"type": "integer", "default": 3})
XIA = template("xia", limit=LIMIT, pipeline={"enum": ["a", "b"], "default": "a"})
XDS = template("xds", more={"missing": ["xds"]})


@pytest.fixture
def scene() -> Scene:
    me = Me(name="ben", kind="user", operator=False, staff_of=[])
    found = Scene(Client("http://127.0.0.1:1", "token"), me)
    found.templates = {t.name: t for t in (DIALS, XIA, XDS)}
    found.profiles = [ONE, TWO]
    found.sponsors = [licence("mine"), licence("lab")]
    return found


def test_a_rerun_begins_as_its_parent(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    assert (launch.template, launch.profile, launch.sponsor) == ("dials", "cpu-1", "lab")
    assert launch.datasets == (7,)
    assert launch.entered == {"limit": "2.1", "spots": "5"}


def test_a_sponsor_that_the_viewer_may_not_use_is_replaced(scene: Scene) -> None:
    assert Launch.again(job(3, sponsor="somebody-elses"), scene).sponsor == "mine"


def test_another_template_keeps_what_both_know(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    launch.choose("xia", {"p.limit": "1.9", "p.spots": "9", "sponsor": "mine"}, scene.templates)
    assert launch.entered == {"limit": "1.9", "pipeline": '"a"'}
    assert (launch.template, launch.profile, launch.sponsor) == ("xia", "cpu-2", "mine")


def test_a_browser_that_has_not_drawn_another_template_yet_chooses_no_profile(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    assert launch.profile == "cpu-1"
    late = {"profile.dials": "cpu-9"}
    launch.choose("xia", late, scene.templates)
    launch.take(late)
    assert launch.profile == "cpu-2"
    launch.take({"profile.xia": "cpu-9"})
    assert launch.profile == "cpu-9"
    launch.choose("dials", {"profile.xia": "cpu-9"}, scene.templates)  # as its parent was
    assert launch.profile == "cpu-1"


def test_what_cannot_be_read_is_not_sent(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    assert launch.send({"p.limit": "0.1", "p.spots": "x"}, scene.client, scene.templates) is None
    assert set(launch.wrong) == {"limit", "spots"}
    dialog = show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors)
    assert [field.attributes["data-parameter"] for field in find(dialog, "bh-field-wrong")] == [
        "p.limit",
        "p.spots",
    ]


def test_the_dialog_says_why_nothing_can_be_started(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    assert not find(
        show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors), "bh-problem-pending"
    )
    launch.choose("xds", {}, scene.templates)
    said = find(show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors), "bh-problem-pending")
    assert "needs xds" in text(said[0])
    launch.choose("dials", {}, scene.templates)
    said = find(show(launch, scene.templates, scene.profiles, LINKS, []), "bh-problem-pending")
    assert "No licence pays" in text(said[0])


OWN = template(
    "mine",
    more={"notebook": "shared/by hand/mine.ipynb", "title": "Mine", "source": "experiment"},
    limit=LIMIT,
)
MERGE = template("merge", "jobs")


def choices(node: Node) -> list[str]:
    """The values of the options in it."""
    if isinstance(node, str):
        return []
    own = [str(node.attributes["value"])] if node.tag == "option" else []
    return own + [value for child in node.children for value in choices(child)]


def test_members_notebooks_stand_beside_the_templates(scene: Scene) -> None:
    scene.templates |= {"merge": MERGE, "shared/by hand/mine.ipynb": OWN}
    launch = Launch.again(job(3), scene)
    dialog = show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors)
    assert choices(find(dialog, "bh-form-template")[0]) == [*scene.templates]
    launch.choose("shared/by hand/mine.ipynb", {"p.limit": "1.9"}, scene.templates)
    assert (launch.template, launch.entered) == ("shared/by hand/mine.ipynb", {"limit": "1.9"})
    own = job(4, template="mine", notebook="shared/by hand/mine.ipynb", parameters={"limit": 1.5})
    again = Launch.again(own, scene)
    assert (again.template, again.entered) == ("shared/by hand/mine.ipynb", {"limit": "1.5"})


def test_a_template_that_takes_jobs_asks_for_their_numbers(scene: Scene) -> None:
    scene.templates["merge"] = MERGE
    launch = Launch.again(job(3), scene)
    launch.choose("merge", {}, scene.templates)
    assert launch.jobs == "3"
    assert launch.send({"jobs": "3, and more"}, scene.client, scene.templates) is None
    assert "numbers of jobs" in launch.wrong["jobs"]
    dialog = show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors)
    assert "Give the numbers" in text(find(dialog, "bh-error")[0])


def test_a_failure_says_where_and_a_job_whether_its_template_has_changed(scene: Scene) -> None:
    failed = job(
        3,
        JobState.FAILED,
        reason="No spots found.",
        failure=JobFailure(cell=7, title="<i>Find</i> spots", log="last words"),
        template_changed=True,
    )
    around = Around(scene.templates, {}, {}, {}, Links("/", "ben"), EXPERIMENT, True, True, True)
    said = problem(failed, None)
    assert said is not None
    assert "in the part “<i>Find</i> spots” of the notebook" in text(find(said, "bh-failed-cell")[0])
    assert text(find(said, "bh-log-end")[0]) == "last words"
    detail = Detail(3, tab="parameters")
    assert "changed since" in text(find(details(failed, detail, around), "bh-template-changed")[0])
    same = failed.model_copy(update={"template_changed": False})
    assert not find(details(same, detail, around), "bh-template-changed")


def test_a_job_that_waits_says_for_what_and_what_can_be_done(scene: Scene) -> None:
    around = Around(scene.templates, {}, {}, {}, Links("/", "ben"), EXPERIMENT, True, True, True)
    poor = "Waits for credit: 1 CPU may use 1 CPU-h, and the licence small has 0 left."
    waits = job(3, JobState.PENDING, reason=poor)
    [box] = find(details(waits, Detail(3), around), "bh-problem-pending")
    assert text(find(box, "bh-reason")[0]) == poor.replace(" CPU-h", f"{NARROW}CPU\u2011h")
    assert "rerun it with another licence" in text(box)
    queued = details(job(3, JobState.QUEUED, reason="3 jobs go first"), Detail(3), around)
    assert not find(queued, "bh-problem")
    assert "3 jobs go first" in text(queued)


ESTIMATE = Estimate(
    cpus=2,
    frames=60,
    runs=6,
    duration=Spread(low=50, likely=65, high=90),
    cpu_hours=Spread(low=0.03, likely=0.036, high=0.05),
    most_cpu_hours=2,
    starts=datetime.now(UTC) - timedelta(seconds=5),
    waits="",
    hint="2 CPUs were not faster than 1 in 6 earlier runs.",
    identical=None,
)


def test_an_estimate_stands_beside_the_start(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    launch.estimate = ESTIMATE
    shown = find(show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors), "bh-estimate")[0]
    assert "Takes about 1" in text(shown)
    assert "6 earlier runs" in text(shown).replace(NARROW, " ")
    assert "Starts at once." in text(shown)
    assert text(find(shown, "bh-estimate-hint")[0]) == ESTIMATE.hint
    launch.estimate = ESTIMATE.model_copy(update={"duration": None, "cpu_hours": None, "runs": 0, "hint": ""})
    shown = find(show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors), "bh-estimate")[0]
    assert "no earlier runs" in text(shown)
    assert not find(shown, "bh-estimate-hint")


def test_an_identical_job_that_has_not_ended_has_no_result_yet(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    launch.identical = 4
    jobs = {4: job(4, JobState.RUNNING)}
    dialog = show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors, jobs=jobs)
    said = text(find(dialog, "bh-estimate-same")[0])
    assert said.startswith("The result is on its way: job #4 is running with the same values")


def test_an_identical_job_is_shown_and_can_be_run_again(scene: Scene) -> None:
    launch = Launch.again(job(3), scene)
    launch.estimate, launch.identical = ESTIMATE, 3
    dialog = show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors)
    said = find(dialog, "bh-estimate-same")[0]
    assert "job #3" in text(said)
    assert (
        "disabled" not in find(dialog, "bh-form-submit")[0].attributes
    )  # other values may stand there already
    assert find(dialog, "bh-form-again")
    launch.identical = None
    assert not find(show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors), "bh-form-again")


def test_jobs_that_run_or_wait_stand_first() -> None:
    jobs = [
        job(n, state)
        for n, state in enumerate([JobState.RUNNING, JobState.PENDING, JobState.FINISHED, JobState.QUEUED])
    ]
    assert [j.id for j in sorted(jobs, key=rank)] == [0, 3, 1, 2]


def test_the_list_says_who_and_from_what(scene: Scene) -> None:
    jobs = [job(1), job(2, launched_by="ben", parent=1), job(3, JobState.FAILED, reason="<b>No</b> spots.")]
    around = Around(
        scene.templates, {}, {}, {j.id: j for j in jobs}, Links("/", "ben"), EXPERIMENT, True, True, True
    )
    card = panel(jobs, {}, around, Selection(), shown=2)
    rows = find(card, "bh-job")
    assert [row.attributes["data-job"] for row in rows] == ["3", "2"]
    assert text(find(rows[1], "bh-job-starter")[0]) == "by ben"
    assert text(find(rows[1], "bh-job-parent")[0]) == "rerun of #1"
    assert text(find(rows[0], "bh-job-reason")[0]) == "<b>No</b> spots."
    assert text(find(card, "bh-more")[0]) == "Show all 3"


@pytest.mark.parametrize(
    "data",
    [
        {"fraction": "much"},
        {"progress": {"fraction": [1]}},
        {"metrics": {"a": {"value": {"b": 1}}}},
        {"artifacts": [{"path": 7}]},
        {"step": 7},
    ],
)
def test_strange_progress_changes_nothing(data: dict[str, Any]) -> None:
    before = job(1, JobState.RUNNING)
    assert with_progress(before, data) == before


def test_progress_and_metrics_as_they_are_told() -> None:
    data = {"fraction": 0.5, "step": "index", "metrics": {"a": {"value": 79.1, "unit": "Å"}}}
    data["artifacts"] = [{"path": "a.png", "title": "A", "kind": "plot", "size": 4}]
    after = with_progress(job(1, JobState.RUNNING), data)
    assert [one.path for one in plots(after)] == ["a.png"]
    assert after.progress == JobProgress(fraction=0.5, step="index")
    assert after.metrics == {"a": Quantity(value=79.1, unit="Å")}


def test_a_job_on_each_of_many_datasets_says_what_all_of_them_take(scene: Scene) -> None:
    launch = Launch.anew([dataset(number) for number in range(1, 13)], scene)
    assert launch.count(DIALS) == 12
    launch.estimate = ESTIMATE
    shown = show(launch, scene.templates, scene.profiles, LINKS, scene.sponsors)
    said = text(shown).replace(NARROW, " ")
    assert "New jobs on 12 datasets" in said
    assert "one on each of lyso_1, lyso_2, lyso_3 and 9 more" in said
    assert "Sets aside at most 24.0 CPU\u2011h" in said  # 12 × 2 CPUs × 1 h
    assert "Each takes about" in said
    assert " together" in said
    assert text(find(shown, "bh-form-submit")[0]) == "Start 12 jobs"
    launch.take({"force": "true"})
    assert launch.force
    merging = template("merging", "datasets")
    assert launch.count(merging) == 1  # one job on all of them
