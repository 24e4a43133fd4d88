from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from beamhub.schemas import (
    ExperimentState,
    Job,
    Role,
    Trigger,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
    TriggerGroup,
    TriggerSubject,
    TriggerTrial,
    TriggerVersion,
)
from beamhub_cockpit import ruleform, ruletext
from beamhub_cockpit.draft import CHOSEN, Draft
from beamhub_cockpit.form import PREFIX
from beamhub_cockpit.html import Element, find, text
from beamhub_cockpit.links import Links
from beamhub_cockpit.ruleform import Around
from beamhub_cockpit.ruletext import Difference
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from tests.unit.cockpit import EXPERIMENT, NOW, ONE, experiment, job, licence, template

DIALS = template(
    "dials",
    more={"profile": "cpu-1"},
    last={"type": ["integer", "null"], "default": None, "minimum": 1, "title": "Last frame"},
    word={"type": "string", "default": "hello"},
    fast={"type": "boolean", "default": False},
)
TEMPLATES = {
    t.name: t for t in (DIALS, template("merge", "datasets", {"profile": "cpu-1"}), template("watch", "file"))
}


def written(**more: Any) -> TriggerCreate:
    given = {
        "title": "DIALS",
        "event": TriggerEvent.DATASET_COMPLETE,
        "template": "dials",
        "profile": "cpu-1",
        "sponsor": "lab",
    }
    return TriggerCreate.model_validate(given | more)


def rule(number: int = 3, **more: Any) -> Trigger:
    return Trigger(id=number, instrument="mx-1", version=1, **written(**more).model_dump())


def draft(of: TriggerCreate | Trigger, **more: Any) -> Draft:
    return Draft.of(of, TEMPLATES.get(of.template), instrument="mx-1", **more)


def around(*jobs: Job, **more: Any) -> Around:
    seen = Around(TEMPLATES, [ONE], [licence("lab")], [], jobs, Links("/", "sam"))
    return replace(seen, **more)


def trial(number: int, *, starts: bool = True, reason: str = "", **more: Any) -> TriggerTrial:
    return TriggerTrial(
        experiment=EXPERIMENT,
        subjects=[TriggerSubject(kind="dataset", id=str(number), name=f"<b>lyso_{number}")],
        event=TriggerEvent.DATASET_COMPLETE,
        time=NOW,
        starts=starts,
        reason=reason,
        **more,
    )


RULES = st.builds(
    written,
    title=st.sampled_from(["DIALS", "<i>ours"]),
    pattern=st.sampled_from(["*", "lyso*", "raw/scan*/*"]),
    event=st.sampled_from([TriggerEvent.DATASET_COMPLETE, TriggerEvent.DATASET_INCOMPLETE]),
    condition=st.builds(
        TriggerCondition,
        kind=st.sampled_from([None, "rotation", "raster"]),
        min_frames=st.integers(1, 10_000),
        expression=st.sampled_from(["", "wavelength < 1.1"]),
    ),
    parameters=st.fixed_dictionaries(
        {},
        optional={
            "last": st.sampled_from([None, 5, {"expression": "frames // 2"}]),
            "word": st.sampled_from(["hello", "", "=", "= all", {"expression": "name"}]),
            "fast": st.sampled_from([True, False, {"expression": "frames > 100"}]),
        },
    ),
    priority=st.integers(-100, 100),
)


@given(RULES)
def test_what_is_not_touched_stays_as_it_is(wanted: TriggerCreate) -> None:
    begun = draft(rule(**wanted.model_dump()))
    read = begun.read(TEMPLATES)
    assert read is not None, (begun.wrong, begun.wrong_parameters)
    literal = wanted.parameters.get("word")
    if isinstance(literal, str) and literal.startswith("="):  # a text that looks computed is kept as one
        assert read.parameters["word"] == {"expression": f'"{literal}"'}
        read = read.model_copy(update={"parameters": read.parameters | {"word": literal}})
    assert read == wanted


@pytest.mark.parametrize(
    ("event", "condition"),
    [
        (TriggerEvent.DATASET_FRAMES, {"every": 20}),
        (TriggerEvent.DATASET_FRAMES, {"at": [25, 50]}),
        (TriggerEvent.JOB_FINISHED, {"template": "dials"}),
        (TriggerEvent.EXTERNAL, {"name": "centred"}),
    ],
)
def test_each_event_asks_for_what_it_needs(event: TriggerEvent, condition: dict[str, Any]) -> None:
    wanted = written(event=event, condition=TriggerCondition(**condition))
    begun = draft(rule(**wanted.model_dump()))
    assert begun.read(TEMPLATES) == wanted
    shown = {str(e.attributes.get("name")) for e in _inputs(ruleform.show(begun, around()))}
    named = {"template": "of_template"}
    assert {named.get(name, name) for name in condition} <= shown


def _inputs(node: Element | str) -> list[Element]:
    if isinstance(node, str):
        return []
    here = [node] if node.tag in ("input", "select") else []
    return here + [one for child in node.children for one in _inputs(child)]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"expression": "wavelength <"}, "expression"),
        ({"min_frames": "many"}, "min_frames"),
        ({"min_frames": "0"}, "min_frames"),
        ({"priority": "101"}, "priority"),
        ({"event": "dataset.frames", "at": "0 50"}, "at"),
        ({"event": "dataset.frames", "at": ""}, "at"),
        ({"event": "dataset.frames", "steps": "every", "every": ""}, "every"),
        ({"event": "file.complete"}, "template"),
        ({"event": "external", "name": "Two words"}, "name"),
        ({"pattern": "x" * 201}, "pattern"),
        ({"template": "merge", "gathers": "true", "wait": "soon"}, "wait"),
        ({"template": "merge", "gathers": "true", "wait": "0"}, "wait"),
        ({"template": "merge", "gathers": "true", "at_least": "9", "at_most": "3"}, "at_least"),
        ({"template": "merge", "gathers": "true", "by": "import os"}, "by"),
    ],
)
def test_what_can_not_be_is_said_beside_its_field(fields: dict[str, str], wrong: str) -> None:
    begun = draft(written())
    begun.take(fields, TEMPLATES)
    assert begun.read(TEMPLATES) is None
    assert set(begun.wrong) == {wrong}
    [field] = find(ruleform.show(begun, around()), "bh-field-wrong")
    assert find(field, "bh-error")


def test_a_computed_parameter_is_checked_where_it_is_typed() -> None:
    begun = draft(written())
    begun.take({PREFIX + "last": "= frames //", PREFIX + "word": "=name + '!'"}, TEMPLATES)
    assert begun.read(TEMPLATES) is None
    assert set(begun.wrong_parameters) == {"last"}
    begun.take({PREFIX + "last": "= frames // 2"}, TEMPLATES)
    read = begun.read(TEMPLATES)
    assert read is not None
    assert read.parameters == {"last": {"expression": "frames // 2"}, "word": {"expression": "name + '!'"}}


def test_a_rule_that_gathers() -> None:
    begun = draft(written())
    begun.take({"template": "merge"}, TEMPLATES)
    begun.take({"gathers": "true", "by": "sample_name", "wait": "0.5", "at_least": "3"}, TEMPLATES)
    read = begun.read(TEMPLATES)
    assert read is not None
    assert read.group == TriggerGroup(by="sample_name", wait=30, at_least=3, at_most=200)
    begun.take({"template": "dials"}, TEMPLATES)  # which takes one dataset
    read = begun.read(TEMPLATES)
    assert read is not None
    assert read.group is None


def test_a_browser_that_has_not_drawn_another_template_yet_chooses_no_profile() -> None:
    begun = draft(written(profile="cpu-9"))
    late = {"template": "merge", "profile.dials": "cpu-9"}
    for _ in range(2):
        begun.take(late, TEMPLATES)
        assert begun.texts["profile"] == "cpu-1"
    begun.take({"template": "merge", "profile.merge": "cpu-9"}, TEMPLATES)
    assert begun.texts["profile"] == "cpu-9"


def test_a_new_rule_needs_nothing_but_saving() -> None:
    begun = Draft.new(TEMPLATES, [licence("lab")], instrument="mx-1")
    read = begun.read(TEMPLATES)
    assert read is not None
    assert (read.title, read.template, read.sponsor, read.pattern) == ("Dials", "dials", "lab", "*")


def test_a_new_rule_is_paid_by_who_pays_and_has_something_left() -> None:
    spent = {"charged": 36_000, "available": 0}
    elsewhere = {"terms": [{"instruments": ["mx-2"]}]}
    over = {"valid_until": datetime(2000, 1, 1, tzinfo=UTC)}
    known = [licence("empty", **spent), licence("there", **elsewhere), licence("old", **over), licence("lab")]
    for count, chosen in ((4, "lab"), (3, "empty"), (1, "empty")):
        begun = Draft.new(TEMPLATES, known[:count], instrument="mx-1")
        assert begun.texts["sponsor"] == chosen
    assert Draft.new(TEMPLATES, known[1:3], instrument="mx-1").texts["sponsor"] == "there"


@pytest.mark.parametrize(
    ("terms", "here", "said"),
    [
        ([], True, None),
        ([{"states": ["running"]}], True, "only while the experiment is running"),
        # elsewhere it may be running
        ([{"states": ["running"]}], False, None),
        ([{"experiments": ["mx-1-2026-00002"]}], False, None),
        ([{"templates": ["xia"]}], False, "only for the template xia"),
        ([{"roles": ["pi"]}], True, None),  # it starts by itself
        ([{"instruments": ["mx-2"]}], False, "does not pay on mx-1"),
    ],
)
def test_a_licence_that_does_not_pay_says_why(
    terms: list[dict[str, Any]], here: bool, said: str | None
) -> None:
    processing = experiment(state=ExperimentState.PROCESSING, role=Role.COLLABORATOR)
    seen = around(sponsors=[licence("lab", terms=terms)], experiment=processing if here else None)
    shown = ruleform.show(draft(written()), seen)
    refused = [text(one) for one in find(shown, "bh-sponsor-refused")]
    assert len(refused) == (said is not None)
    assert said is None or said in refused[0]
    assert ("does not pay here" in text(shown)) == (said is not None)


def test_a_pi_gives_no_priority() -> None:
    begun = draft(written(), experiment=EXPERIMENT, may_operate=False)
    begun.take({"priority": "1"}, TEMPLATES)
    assert begun.read(TEMPLATES) is None
    assert set(begun.wrong) == {"priority"}


def test_a_pi_sees_only_what_she_may_have_different() -> None:
    base = rule()
    begun = draft(base, experiment=EXPERIMENT, rule=base, base=base, may_operate=False, may_start=False)
    begun.trials = [trial(1)]
    names = {str(e.attributes.get("name")) for e in _inputs(ruleform.show(begun, around()))}
    assert names == {"sponsor", "p.last", "p.word", "p.fast"}


def test_the_dry_run_says_what_would_start_and_what_was_done() -> None:
    begun = draft(written())
    begun.trials = [trial(7, parameters={"last": 3}), trial(8, starts=False, reason="it wants 5 frames")]
    shown = ruleform.show(begun, around(job(12)))
    first, second = find(shown, "bh-trial")
    assert "starts" in text(first)
    assert "Last frame 3" in text(first)
    assert "#12 finished" in text(first)
    assert "<b>lyso_7" in text(first)
    assert "it wants 5 frames" in text(second)
    assert len(_inputs(first)) == 1
    assert not _inputs(second)
    assert "it would have started 1 job" in text(find(shown, "bh-trial-sum")[0])
    begun.take({f"{CHOSEN}dataset:7": "true"}, TEMPLATES)
    assert text(find(ruleform.show(begun, around()), "bh-rule-save")[0]) == "Save, and start 1 job now"
    begun.take({f"{CHOSEN}dataset:7": "false"}, TEMPLATES)
    assert text(find(ruleform.show(begun, around()), "bh-rule-save")[0]) == "Save"


def version(number: int, data: dict[str, Any], **more: Any) -> TriggerVersion:
    known = {"change": "changed", "experiment": None, "author": "sam"} | more
    return TriggerVersion(rule=3, version=number, time=NOW + timedelta(seconds=number), data=data, **known)


def test_what_a_rule_was_is_said_in_words() -> None:
    first = written(parameters={"last": 5}).model_dump(mode="json")
    second = first | {
        "enabled": False,
        "pattern": "lyso*",
        "condition": {"expression": "wavelength < 1.1"},
        "parameters": {"last": {"expression": "frames // 2"}, "word": "x"},
        "group": {"by": "folder", "wait": 600},
    }
    here = {"experiment": EXPERIMENT, "author": "ada"}
    versions = [
        version(4, {}, **here),
        version(3, {"enabled": True, "parameters": {"last": 1}}, **here),
        version(2, second),
        version(1, first, change="created"),
    ]
    told = ruletext.history(versions, TEMPLATES)
    assert [one for one, _ in told] == versions
    assert told[0][1] == [
        Difference("on or off", "on", "as on the instrument"),
        Difference("parameters", "last 1", "as on the instrument"),
    ]
    assert told[1][1][0] == Difference("on or off", "as on the instrument", "on")
    assert told[2][1] == [
        Difference("on or off", "on", "off"),
        Difference("names", "*", "lyso*"),
        Difference("only if", "always", "if wavelength < 1.1"),
        Difference(
            "together",
            "each starts a job",
            "one job for all with the same folder, 10\u202fmin after the last",
        ),
        Difference("Last frame", "5", "= frames // 2"),
        Difference("word", "as the template has it", "x"),
    ]
    assert told[3][1] == []


def test_parameters_of_another_template_have_its_names() -> None:
    before: dict[str, JsonValue] = {"template": "dials", "parameters": {"last": 5}}
    after: dict[str, JsonValue] = {"template": "merge", "parameters": {}}
    there = Difference("Last frame", "5", "not asked for")
    assert there in ruletext.differences(before, after, TEMPLATES)
    assert replace(there, before=there.after, after="5") in ruletext.differences(after, before, TEMPLATES)


def test_what_another_version_wrote_is_shown_as_it_is() -> None:
    told = ruletext.differences({"event": "dataset.complete"}, {"event": "<u>moon"}, {})
    assert told == [Difference("starts when", "a dataset is complete", "<u>moon")]
    assert ruletext.as_written({"event": "<u>moon"}) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "When a dataset is complete"),
        ({"pattern": "lyso*"}, "When a dataset is complete · named lyso*"),
        (
            {"event": "dataset.frames", "condition": {"at": [25, 50], "kind": "rotation"}},
            "When a dataset grows: at 25, 50\u202f% of its frames · only rotation",
        ),
        (
            {"event": "job.finished", "condition": {"template": "dials"}, "group": {"by": "", "wait": 60}},
            "When a job has finished: dials · one job for all of an experiment, 1\u202fmin after the last",
        ),
    ],
)
def test_a_rule_in_one_line(more: dict[str, Any], said: str) -> None:
    assert ruletext.when(written(**more)) == said
