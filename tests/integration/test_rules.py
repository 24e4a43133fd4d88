"""Trigger rules of the running service: what they wait for, trying them out, and following them later."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from beamhub.client import ApiError, Client
from beamhub.schemas import (
    InstrumentChange,
    Job,
    JobState,
    LicenceCreate,
    Role,
    Trigger,
    TriggerCall,
    TriggerChange,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
    TriggerGroup,
    TriggerOverride,
    TriggerTrial,
)
from beamhub.testing import TEMPLATE, Beamtime, RunningService, write_dataset


@pytest.fixture
def beamtime(service: RunningService) -> Iterator[Beamtime]:
    made = service.beamtime(members={"ben": Role.COLLABORATOR})
    service.licence(made)
    yield made
    sam = service.client("sam")
    for rule in (*sam.triggers(made.instrument), *sam.experiment_triggers(made.experiment)):
        with contextlib.suppress(ApiError):  # it was in both lists
            sam.delete_trigger(rule.id)  # the service is used by other tests


def wanted(beamtime: Beamtime, event: TriggerEvent, word: Any = "hello", **condition: Any) -> TriggerCreate:
    return TriggerCreate(
        title=f"Echo at {event}",
        event=event,
        condition=TriggerCondition(**condition),
        template=TEMPLATE,
        parameters={"word": word},
        profile="cpu-1",
        sponsor=f"lab-{beamtime.instrument}",
    )


def jobs(client: Client, beamtime: Beamtime, count: int) -> list[Job]:
    """The first so many jobs of the beamtime, ended."""
    with contextlib.closing(client.events(beamtime.experiment, last_id=0)) as messages:
        created = [next(m for m in messages if m.kind == "job.created") for _ in range(count)]
    return [client.wait(int(message.subject), timeout=120) for message in created]


def add(service: RunningService, beamtime: Beamtime, rule: TriggerCreate) -> Trigger:
    return service.client("sam").create_trigger(beamtime.instrument, rule)


def about(trial: TriggerTrial) -> int:
    """The dataset of a trial that is about one."""
    [subject] = trial.subjects
    assert subject.kind == "dataset"
    return int(subject.id)


def test_parameters_are_computed_from_the_dataset(service: RunningService, beamtime: Beamtime) -> None:
    text = "name + ' at ' + ('short' if wavelength < 1.1 else 'long')"
    add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE, {"expression": text}))
    service.dataset(beamtime)
    [job] = jobs(service.client("ada"), beamtime, 1)
    assert (job.state, job.parameters) == (JobState.FINISHED, {"word": "lyso at short"})


def test_a_parameter_that_can_not_be_computed_makes_a_job_that_says_so(
    service: RunningService, beamtime: Beamtime
) -> None:
    add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE, {"expression": "name + nothing"}))
    service.dataset(beamtime)
    [job] = jobs(service.client("ada"), beamtime, 1)
    assert job.state is JobState.FAILED
    assert "word = name + nothing can't be computed: nothing is not known" in job.reason


def test_jobs_follow_jobs_but_never_themselves(service: RunningService, beamtime: Beamtime) -> None:
    first = add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE, "one"))
    again = wanted(
        beamtime,
        TriggerEvent.JOB_FINISHED,
        {"expression": "'after ' + job.template"},
        template=TEMPLATE,
        expression="job.length > 2",
    )
    second = add(service, beamtime, again)
    service.dataset(beamtime)
    one, two = jobs(service.client("ada"), beamtime, 2)
    assert (one.launched_by, two.launched_by) == (f"trigger:{first.id}", f"trigger:{second.id}")
    assert (two.parent, two.parameters) == (one.id, {"word": "after echo"})

    # the end of the second has been looked at before what comes after it is followed
    service.dataset(beamtime, name="next")
    jobs(service.client("ada"), beamtime, 4)
    of_rules = [job.launched_by for job in service.client("ada").jobs(experiment=beamtime.experiment)]
    assert sorted(of_rules) == sorted([one.launched_by, two.launched_by] * 2)


def test_what_another_program_tells(service: RunningService, beamtime: Beamtime) -> None:
    rule = wanted(
        beamtime, TriggerEvent.EXTERNAL, {"expression": "event.by"}, name="centred", expression="event.good"
    )
    add(service, beamtime, rule)
    dataset = service.dataset(beamtime)
    call = TriggerCall(name="centred", dataset=dataset.id, values={"good": True, "by": "robot"})
    with pytest.raises(ApiError, match="not do this"):
        service.client("ada").call_triggers(beamtime.instrument, call)
    elsewhere = service.beamtime()
    with pytest.raises(ApiError, match="no dataset"):
        service.client("sam").call_triggers(elsewhere.instrument, call)
    service.client("sam").call_triggers(beamtime.instrument, call)
    [job] = jobs(service.client("ada"), beamtime, 1)
    assert job.parameters == {"word": "robot"}


def test_a_rule_is_tried_out_and_followed_later(service: RunningService, beamtime: Beamtime) -> None:
    sam = service.client("sam")
    few, many = service.dataset(beamtime, name="few"), service.dataset(beamtime, name="many", frames=6)
    rule = wanted(beamtime, TriggerEvent.DATASET_COMPLETE, {"expression": "name"}, expression="frames > 5")

    with pytest.raises(ApiError, match="not do this"):
        service.client("ada").try_out_trigger(beamtime.instrument, rule)
    trials = sam.try_out_trigger(beamtime.instrument, rule)
    assert [(about(t), t.starts, t.reason, t.parameters) for t in trials] == [
        (many.id, True, "", {"word": "many"}),
        (few.id, False, "frames > 5 does not hold", {}),
    ]
    assert [about(t) for t in sam.try_out_trigger(beamtime.instrument, rule, datasets=1)] == [many.id]
    assert sam.triggers(beamtime.instrument) == []
    assert sam.jobs(experiment=beamtime.experiment) == []

    kept = add(service, beamtime, rule)

    def replay(_: int) -> list[TriggerTrial]:
        with Client(service.url, service.tokens["sam"]) as client:
            return client.replay_trigger(kept.id, [few.id, many.id, 999_999])

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(replay, range(10)))
    [job] = sam.jobs(experiment=beamtime.experiment)
    assert {trial.job for answer in answers for trial in answer if about(trial) == many.id} == {job.id}
    assert {trial.job for answer in answers for trial in answer if about(trial) == few.id} == {None}
    assert service.client("ada").wait(job.id, timeout=120).parameters == {"word": "many"}


@pytest.mark.parametrize(
    ("parameters", "condition"),
    [
        ({"word": {"expression": "__import__('os')"}}, {}),
        ({"nothing": {"expression": "1"}}, {}),
        ({}, {"expression": "frames <"}),
    ],
)
def test_a_rule_that_can_not_work_is_refused(
    service: RunningService, beamtime: Beamtime, parameters: dict[str, Any], condition: dict[str, Any]
) -> None:
    rule = wanted(beamtime, TriggerEvent.DATASET_COMPLETE, **condition)
    with pytest.raises(ApiError) as error:
        add(service, beamtime, rule.model_copy(update={"parameters": parameters}))
    assert error.value.status == 422


def test_ten_deliveries_of_an_event_start_one_job(service: RunningService, beamtime: Beamtime) -> None:
    at = wanted(beamtime, TriggerEvent.DATASET_FRAMES, {"expression": "round(frames)"}, at=[50, 100])
    with pytest.raises(ApiError, match="do not fit"):  # a number is no word: told when it is followed
        add(service, beamtime, at.model_copy(update={"parameters": {"word": 3}}))
    text = at.model_copy(update={"parameters": {"word": {"expression": "kind + '!'"}}})
    add(service, beamtime, text)
    service.dataset(beamtime, frames=4)
    done = jobs(service.client("ada"), beamtime, 2)
    assert [job.state for job in done] == [JobState.FINISHED] * 2
    assert json.dumps(done[0].parameters) == '{"word": "rotation!"}'


def test_an_experiment_has_a_rule_as_it_wants_it(service: RunningService, beamtime: Beamtime) -> None:
    ada, sam = service.client("ada"), service.client("sam")
    rule = add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE, "everybody"))
    changed = ada.override_trigger(beamtime.experiment, rule.id, TriggerOverride(parameters={"word": "ours"}))
    assert (changed.version, changed.changed, changed.parameters) == (2, ["parameters"], {"word": "ours"})
    assert ada.experiment_triggers(beamtime.experiment) == [changed]
    assert ada.triggers(beamtime.instrument) == [rule]

    service.dataset(beamtime)
    [job] = jobs(ada, beamtime, 1)
    assert (job.parameters, job.launched_by, job.rule_version) == ({"word": "ours"}, f"trigger:{rule.id}", 2)

    # what the staff change elsewhere in the rule counts here too, until all is as theirs again
    sam.change_trigger(rule.id, TriggerChange(pattern="ly*", parameters={"word": "all"}))
    [here] = ada.experiment_triggers(beamtime.experiment)
    assert (here.version, here.pattern, here.parameters) == (3, "ly*", {"word": "ours"})
    back = ada.override_trigger(beamtime.experiment, rule.id, TriggerOverride(parameters=None))
    assert (back.version, back.changed, back.parameters) == (4, [], {"word": "all"})

    versions = ada.trigger_versions(rule.id)
    assert [(v.version, v.author, v.experiment, v.change) for v in versions] == [
        (4, "ada", beamtime.experiment, "changed"),
        (3, "sam", None, "changed"),
        (2, "ada", beamtime.experiment, "changed"),
        (1, "sam", None, "created"),
    ]
    assert [v.data.get("parameters") for v in versions] == [
        None,
        {"word": "all"},
        {"word": "ours"},
        {"word": "everybody"},
    ]
    with contextlib.closing(ada.events(beamtime.experiment, last_id=0)) as events:
        log = (event for event in events if event.kind.startswith("trigger."))
        told = [(event.kind, event.actor) for event in itertools.islice(log, 2)]
    assert told == [("trigger.overridden", "ada")] * 2


def test_an_experiment_switches_a_rule_off(service: RunningService, beamtime: Beamtime) -> None:
    """Two rules on one event: when the second has started its job, the first has been looked at."""
    ada = service.client("ada")
    off = add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE, "off"))
    on = add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE, "on"))
    ada.override_trigger(beamtime.experiment, off.id, TriggerOverride(enabled=False))
    service.client("sam").override_trigger(beamtime.experiment, on.id, TriggerOverride(priority=-2))
    service.dataset(beamtime)
    [job] = jobs(ada, beamtime, 1)
    assert (job.parameters, job.priority, job.rule_version) == ({"word": "on"}, -2, 2)
    assert len(ada.jobs(experiment=beamtime.experiment)) == 1


def test_who_may_change_what_in_an_experiment(service: RunningService, beamtime: Beamtime) -> None:
    ada, ben, sam = (service.client(name) for name in ("ada", "ben", "sam"))
    rule = add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE))
    here = beamtime.experiment
    for licence, owner in ((f"own-{here}", "ada"), (f"eves-{here}", "eve")):
        service.client("operator").create_licence(
            LicenceCreate(id=licence, title=licence, kind="user", owner=owner, cpu_hours=1)
        )
    with pytest.raises(ApiError, match="not do this"):
        ben.override_trigger(here, rule.id, TriggerOverride(enabled=False))
    for change in (
        TriggerOverride(template="dials"),
        TriggerOverride(profile="cpu-2"),
        TriggerOverride(priority=1),
    ):
        with pytest.raises(ApiError, match="not do this"):
            ada.override_trigger(here, rule.id, change)
    with pytest.raises(ApiError, match="cannot pay"):
        ada.override_trigger(here, rule.id, TriggerOverride(sponsor=f"eves-{here}"))
    with pytest.raises(ApiError, match="do not fit"):
        ada.override_trigger(here, rule.id, TriggerOverride(parameters={"word": 3}))
    assert ada.override_trigger(here, rule.id, TriggerOverride(sponsor=f"own-{here}")).changed == ["sponsor"]
    ours = sam.override_trigger(here, rule.id, TriggerOverride(profile="cpu-2", priority=3))
    assert (ours.changed, ours.priority) == (["priority", "profile", "sponsor"], 3)
    elsewhere = service.beamtime()
    with pytest.raises(ApiError, match="no trigger rule"):
        ada.override_trigger(elsewhere.experiment, rule.id, TriggerOverride(enabled=False))


def test_an_experiment_has_rules_of_its_own(
    service: RunningService, beamtime: Beamtime, tmp_path: Path
) -> None:
    ada, ben, sam = (service.client(name) for name in ("ada", "ben", "sam"))
    other = sam.create_experiment(beamtime.instrument, "Next", pi="eve").id
    request = wanted(beamtime, TriggerEvent.DATASET_COMPLETE, "our own")
    with pytest.raises(ApiError, match="not do this"):
        ben.create_experiment_trigger(beamtime.experiment, request)
    with pytest.raises(ApiError, match="not do this"):  # before others
        ada.create_experiment_trigger(beamtime.experiment, request.model_copy(update={"priority": 1}))
    before = service.dataset(beamtime, name="before")
    [tried] = ada.try_out_experiment_trigger(beamtime.experiment, request)
    assert (about(tried), tried.starts) == (before.id, True)

    own = ada.create_experiment_trigger(beamtime.experiment, request)
    assert own.experiment == beamtime.experiment
    assert ada.triggers(beamtime.instrument) == []
    assert ada.experiment_triggers(beamtime.experiment) == [own]
    eve = service.client("eve")
    assert eve.experiment_triggers(other) == []
    for attempt in (
        lambda: eve.change_trigger(own.id, TriggerChange(enabled=False)),
        lambda: eve.trigger_versions(own.id),
        lambda: eve.override_trigger(other, own.id, TriggerOverride(enabled=False)),
    ):
        with pytest.raises(ApiError, match="no trigger rule"):
            attempt()
    with pytest.raises(ApiError, match="not do this"):
        ada.change_trigger(own.id, TriggerChange(priority=2))

    service.dataset(beamtime, name="after")
    [job] = jobs(ada, beamtime, 1)
    assert (job.parameters, job.launched_by) == ({"word": "our own"}, f"trigger:{own.id}")
    [again] = ada.replay_trigger(own.id, [before.id])
    assert again.job is not None
    sam.activate(beamtime.instrument, other)
    for path in write_dataset(tmp_path, "theirs"):
        service.agent(beamtime).upload(path)
    [theirs] = eve.datasets(other)
    assert sam.replay_trigger(own.id, [theirs.id]) == []
    ada.delete_trigger(own.id)
    assert ada.experiment_triggers(beamtime.experiment) == []


def test_a_killed_service_forgets_nothing_of_what_it_gathers(own_service: RunningService) -> None:
    """It dies twice: while it waits for more, and when the time has come."""
    merge = json.loads((own_service.folder / "templates" / f"{TEMPLATE}.ipynb").read_text())
    merge["metadata"]["beamhub"] |= {"title": "Merge", "inputs": "datasets"}
    merge["cells"][0]["source"] = merge["cells"][0]["source"].replace('data = ""', "datasets = []")
    (own_service.folder / "templates" / "merge.ipynb").write_text(json.dumps(merge))
    beamtime = own_service.beamtime()
    own_service.licence(beamtime)
    ada = own_service.client("ada")
    request = wanted(beamtime, TriggerEvent.DATASET_COMPLETE, "both").model_copy(
        update={
            "template": "merge",
            "group": TriggerGroup(by="wavelength", wait=3600, at_least=2),
        }
    )
    rule = add(own_service, beamtime, request)

    def gathered(count: int) -> bool:
        return [one.count for one in ada.gatherings(rule.id)] == [count]

    first = own_service.dataset(beamtime, name="first")
    until(lambda: gathered(1))
    own_service.kill()
    own_service.start()
    second = own_service.dataset(beamtime, name="second")
    until(lambda: gathered(2))
    [waits] = ada.gatherings(rule.id)
    assert waits.due is not None
    assert timedelta(minutes=50) < waits.due - datetime.now(UTC) <= timedelta(hours=1)
    soon = TriggerGroup(by="wavelength", wait=1, at_least=2)
    own_service.client("sam").change_trigger(rule.id, TriggerChange(group=soon))
    own_service.kill()
    own_service.start()
    [job] = jobs(ada, beamtime, 1)
    assert [one.id for one in job.inputs] == [first.id, second.id]
    assert (job.state, job.parameters) == (JobState.FINISHED, {"word": "both"})
    [gathering] = ada.gatherings(rule.id)
    assert (gathering.job, gathering.count, gathering.value, gathering.due) == (job.id, 2, "1", None)
    assert len(ada.jobs(experiment=beamtime.experiment)) == 1


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_automation_is_paused_and_made_up_for(service: RunningService, beamtime: Beamtime) -> None:
    sam = service.client("sam")
    rule = add(service, beamtime, wanted(beamtime, TriggerEvent.DATASET_COMPLETE))
    sam.change_instrument(beamtime.instrument, InstrumentChange(automation=False))
    dataset = service.dataset(beamtime)
    until(lambda: len(sam.missed_jobs(beamtime.instrument)) == 1)
    with pytest.raises(ApiError, match="not do this"):
        service.client("ada").missed_jobs(beamtime.instrument)
    sam.change_instrument(beamtime.instrument, InstrumentChange(automation=True))
    [started] = sam.catch_up(beamtime.instrument)
    [job] = jobs(sam, beamtime, 1)
    assert (started.job, started.rule, job.inputs[0].id) == (job.id, rule.id, dataset.id)
    assert sam.missed_jobs(beamtime.instrument) == []
    sam.forget_missed(beamtime.instrument)
