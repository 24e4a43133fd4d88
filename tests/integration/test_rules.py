"""Trigger rules of the running service: what they wait for, trying them out, and following them later."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from typing import Any

import pytest
from beamhub.client import ApiError, Client
from beamhub.schemas import (
    Job,
    JobState,
    Trigger,
    TriggerCall,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
    TriggerTrial,
)
from beamhub.testing import TEMPLATE, Beamtime, RunningService


@pytest.fixture
def beamtime(service: RunningService) -> Iterator[Beamtime]:
    made = service.beamtime()
    service.licence(made)
    yield made
    for rule in service.client("sam").triggers(made.instrument):  # the service is used by other tests
        service.client("sam").delete_trigger(rule.id)


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
    messages = client.events(beamtime.experiment, last_id=0)
    created = [next(m for m in messages if m.kind == "job.created") for _ in range(count)]
    return [client.wait(int(message.subject), timeout=120) for message in created]


def add(service: RunningService, beamtime: Beamtime, rule: TriggerCreate) -> Trigger:
    return service.client("sam").create_trigger(beamtime.instrument, rule)


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
    assert [(t.dataset, t.starts, t.reason, t.parameters) for t in trials] == [
        (many.id, True, "", {"word": "many"}),
        (few.id, False, "frames > 5 does not hold", {}),
    ]
    assert [t.dataset for t in sam.try_out_trigger(beamtime.instrument, rule, datasets=1)] == [many.id]
    assert sam.triggers(beamtime.instrument) == []
    assert sam.jobs(experiment=beamtime.experiment) == []

    kept = add(service, beamtime, rule)

    def replay(_: int) -> list[TriggerTrial]:
        with Client(service.url, service.tokens["sam"]) as client:
            return client.replay_trigger(kept.id, [few.id, many.id, 999_999])

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(replay, range(10)))
    [job] = sam.jobs(experiment=beamtime.experiment)
    assert {trial.job for answer in answers for trial in answer if trial.dataset == many.id} == {job.id}
    assert {trial.job for answer in answers for trial in answer if trial.dataset == few.id} == {None}
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
