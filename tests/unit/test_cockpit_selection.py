from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from beamhub.client import Client
from beamhub.schemas import Job, JobOutcome, JobState, Problem
from beamhub_cockpit import form, selection, several
from beamhub_cockpit.around import Around
from beamhub_cockpit.details import ask_priority, tools
from beamhub_cockpit.html import Element, find, text
from beamhub_cockpit.jobs import listed, panel
from beamhub_cockpit.links import Links
from beamhub_cockpit.selection import Outcome, Selection
from beamhub_cockpit.several import Several
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cockpit import EXPERIMENT, ONE, TWO, experiment, job, licence, template

LINKS = Links("/", "ben")
SPOTS = {"type": "integer", "default": 3}
MODE = {"enum": ["fast", "good"], "default": "fast"}
DIALS = template("dials", limit={"type": ["number", "null"], "default": None}, spots=SPOTS, mode=MODE)
TEMPLATES = {"dials": DIALS, "xia": template("xia")}


def around(**more: Any) -> Around:
    seen = Around(TEMPLATES, {}, {}, {}, LINKS, EXPERIMENT, True, True, True, me="ben")
    return replace(seen, **more)


def boxes(node: Element | str) -> list[Element]:
    if isinstance(node, str):
        return []
    here = [node] if node.attributes.get("type") == "checkbox" else []
    return here + [one for child in node.children for one in boxes(child)]


def numbers(jobs: list[Job]) -> list[int]:
    return [one.id for one in jobs]


def test_from_the_first_tick_to_the_last_no_row_moves() -> None:
    known = [job(1), job(2, JobState.RUNNING), job(3, JobState.QUEUED)]
    selected = Selection()
    assert numbers(selected.listed(known)) == [2, 3, 1]
    selected.tick([3], known, on=True)
    later = [job(1), job(2), job(3, JobState.RUNNING), job(4, JobState.RUNNING)]
    assert numbers(selected.listed(later)) == [2, 3, 1]
    assert [one.state for one in selected.chosen(later)] == [JobState.RUNNING]
    selected.tick([2], later, on=True)
    selected.tick([3], later, on=False)
    assert numbers(selected.listed(later)) == [2, 3, 1]
    selected.let_in(later)
    assert numbers(selected.listed(later)) == [4, 3, 2, 1]
    selected.keep([])
    assert numbers(selected.listed([*later, job(5)])) == [4, 3, 5, 2, 1]


def test_what_is_selected_stays_in_sight() -> None:
    jobs = [job(number) for number in range(1, 6)]
    selected = Selection()
    assert numbers(listed(jobs, selected, {}, 2)) == [5, 4]
    selected.tick([1], jobs, on=True)
    assert numbers(listed(jobs, selected, {2}, 2)) == [5, 4, 2, 1]


def test_the_head_of_the_list_has_the_tools_while_something_is_selected() -> None:
    jobs = [job(1), job(2, JobState.RUNNING)]
    selected = Selection()
    card = panel(jobs, {}, around(), selected)
    assert not find(card, "bh-selection")
    assert [bool(box.attributes.get("checked")) for box in boxes(card)] == [False, False, False]
    selected.tick([1, 2], jobs, on=True)
    card = panel([*jobs, job(3)], {}, around(), selected)
    assert [bool(box.attributes.get("checked")) for box in boxes(card)] == [True, True, True]
    assert text(find(card, "bh-selected")[0]) == "2 selected"
    assert text(find(card, "bh-let-in")[0]) == "Show 1 new"
    assert find(card, "bh-jobs-compare")[0].attributes["href"] == LINKS.compare(1, 2)
    assert not find(card, "bh-jobs-cancel")[0].attributes.get("disabled")
    selected.tick([2], jobs, on=False)
    card = panel(jobs, {}, around(may_run=False), selected)
    assert "href" not in find(card, "bh-jobs-compare")[0].attributes  # with what?
    tools_of = find(card, "bh-selection")[0].children[1:]
    assert all(isinstance(one, Element) and "key" in one.attributes for one in tools_of)
    assert find(card, "bh-jobs-cancel")[0].attributes["disabled"]  # it has ended
    assert not find(card, "bh-jobs-rerun")
    assert not find(panel(jobs, {}, around(may_cancel=False), selected), "bh-jobs-cancel")


def test_no_more_at_once_than_the_service_takes() -> None:
    jobs = [job(number) for number in range(1, selection.AT_ONCE + 2)]
    shown = selection.tools(jobs, 0, LINKS, may_run=True, may_cancel=True)
    assert find(shown, "bh-jobs-rerun")[0].attributes["disabled"]
    assert find(shown, "bh-jobs-cancel")[0].attributes["title"] == "At most 500 at once"


def test_what_was_refused_is_said_job_by_job() -> None:
    told = [
        JobOutcome(asked=1, job=job(9, JobState.QUEUED)),
        JobOutcome(
            asked=2, problem=Problem(title="No", status=409, detail="Job 2 <b>ended</b>.", remedy="Rest.")
        ),
        JobOutcome(asked=3, job=job(7, repeats=7)),
        JobOutcome(asked=4, job=job(10, JobState.QUEUED, repeats=7)),  # run again on purpose
    ]
    refused = selection.refused(told)
    assert [id_ for id_, _ in refused] == [2, 3]
    dialog = selection.show(Outcome("2 of 4 jobs started", refused), {2: job(2)}, LINKS)
    first, second = find(dialog, "bh-refused")
    assert text(first) == "#2 DIALSJob 2 <b>ended</b>. Rest."
    assert "Job #7 has the result already" in text(second)


@pytest.mark.parametrize(
    "states", [[JobState.RUNNING], [JobState.RUNNING, JobState.FINISHED, JobState.FAILED]]
)
def test_only_what_has_not_ended_is_cancelled(states: list[JobState]) -> None:
    asked = selection.stopping([job(number, state) for number, state in enumerate(states)])
    shown = " ".join(text(one) for one in asked if isinstance(one, Element))
    assert "#0 DIALS" in shown
    assert "#1" not in shown
    assert ("2 others have ended already" in shown) == (len(states) == 3)


# --- again ---


def again(*jobs: Job) -> Several:
    return Several.of(jobs, TEMPLATES)


def values(node: Element | str) -> dict[str, str]:
    """What stands in the fields, as a browser would send it."""
    if isinstance(node, str):
        return {}
    own = {}
    if "name" in node.attributes:
        box = node.attributes.get("type") == "checkbox"
        shown = str(bool(node.attributes.get("checked"))).lower() if box else str(node.attributes["value"])
        own = {str(node.attributes["name"]): shown}
    for child in node.children:
        own |= values(child)
    return own


def shown(wanted: Several) -> Element:
    return several.show(
        wanted, [ONE, TWO], [licence("lab"), licence("old", terms=[{"states": ["closed"]}])], experiment()
    )


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "limit": st.none() | st.floats(0, 9),
                "spots": st.integers(0, 9),
                "mode": st.sampled_from(["fast", "good"]),
            },
        ),
        min_size=2,
        max_size=4,
    )
)
def test_nothing_is_changed_that_is_not_touched(sets: list[dict[str, Any]]) -> None:
    wanted = again(*(job(number, parameters=one) for number, one in enumerate(sets, 1)))
    before = dict(wanted.entered)
    wanted.take(values(shown(wanted)))
    assert wanted.entered == before
    assert (wanted.profile, wanted.sponsor, wanted.force) == ("", "", False)


def test_what_differs_is_said_and_can_be_made_the_same() -> None:
    wanted = again(
        job(1, parameters={"limit": 2.1, "spots": 5, "mode": "good"}), job(2, parameters={"limit": 2.1})
    )
    assert wanted.entered == {"limit": "2.1", "spots": "", "mode": ""}
    dialog = shown(wanted)
    assert form.DIFFERS in text(dialog)
    wanted.take({"p.spots": "many"})
    assert wanted.send(Client("http://127.0.0.1:1", "token")) is None
    assert set(wanted.wrong) == {"spots"}
    assert find(shown(wanted), "bh-field-wrong")


def test_jobs_of_different_templates_keep_their_parameters() -> None:
    wanted = again(job(1), job(2, template="xia", title="xia2"))
    assert wanted.found == []
    assert "different templates" in text(shown(wanted))


def test_a_licence_that_does_not_pay_any_more_is_told_beforehand() -> None:
    dialog = shown(again(job(1, sponsor="old"), job(2)))
    assert "old, which paid for some, does not pay" in text(dialog)
    assert "only while the experiment is closed" in text(find(dialog, "bh-sponsor-refused")[0])
    assert "does not pay for yours" not in text(shown(again(job(1), job(2))))


def test_what_is_set_aside_follows_the_cpus() -> None:
    wanted = again(job(1), job(2, profile=TWO))
    assert "at most 3.00\u202fCPU\u2011h" in text(shown(wanted))
    wanted.take({"profile": "cpu-2"})
    assert "at most 4.00\u202fCPU\u2011h" in text(shown(wanted))


# --- priority ---


@pytest.mark.parametrize(
    ("state", "by", "more", "offered"),
    [
        (JobState.QUEUED, "ben", {}, True),
        (JobState.PENDING, "ben", {}, True),
        (JobState.RUNNING, "ben", {}, False),
        (JobState.FINISHED, "ben", {}, False),
        (JobState.QUEUED, "ada", {}, False),
        (JobState.QUEUED, "trigger:1", {"may_operate": True}, True),
        (JobState.QUEUED, "ben", {"may_cancel": False}, False),
    ],
)
def test_who_may_say_when_a_jobs_turn_is(
    state: JobState, by: str, more: dict[str, Any], offered: bool
) -> None:
    found = tools(job(1, state, launched_by=by), around(**more), whole=True)
    assert any(find(one, "bh-job-rank") for one in found) == offered


def test_a_member_can_only_lower_a_priority() -> None:
    waiting = job(1, JobState.QUEUED, priority=-5)
    for any_, most in ((False, "-5"), (True, "100")):
        body = ask_priority(waiting, lambda _fields: None, any_=any_).body
        [field] = [one for part in body if isinstance(part, Element) for one in find(part, "bh-number")]
        assert (field.attributes["min"], field.attributes["max"]) == ("-100", most)


def test_a_priority_is_shown_while_it_counts() -> None:
    jobs = [job(1, JobState.QUEUED, priority=7), job(2, JobState.QUEUED), job(3, priority=7)]
    said = find(panel(jobs, {}, around(), Selection()), "bh-job-priority")
    assert [text(one) for one in said] == ["priority 7"]
