"""Which jobs an event starts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from beamhub.schemas import (
    Dataset,
    DatasetKind,
    DatasetState,
    Event,
    Quantity,
    Trigger,
    TriggerCondition,
    TriggerEvent,
    TriggerGroup,
)
from beamhub.triggers import JobRequest, Occasion, decide, gather, judge, sessions
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NAMES = st.text("abc/_0", min_size=1, max_size=6)
INSTRUMENTS = st.sampled_from(["sim-mx", "other"])
RULES = st.lists(
    st.builds(
        Trigger,
        id=st.integers(1, 5),
        instrument=INSTRUMENTS,
        version=st.integers(1, 3),
        title=st.just("rule"),
        event=st.sampled_from([TriggerEvent.DATASET_STARTED, TriggerEvent.DATASET_COMPLETE]),
        pattern=st.text("abc*?_", min_size=1, max_size=4),
        condition=st.builds(
            TriggerCondition,
            kind=st.sampled_from([*DatasetKind, None]),
            min_frames=st.integers(1, 20),
        ),
        template=st.sampled_from(["dials", "fast_feedback"]),
        parameters=st.just({"cutoff": 1.5}),
        profile=st.just("cpu-1"),
        sponsor=st.just("lab"),
        enabled=st.booleans(),
    ),
    max_size=6,
)
DATASETS = st.builds(
    Dataset,
    id=st.integers(1, 9),
    experiment=st.just("sim-mx-2030-00001"),
    name=NAMES,
    path=st.just("raw/x_master.h5"),
    kind=st.sampled_from(DatasetKind),
    state=st.sampled_from(DatasetState),
    open_ended=st.booleans(),
    frames_announced=st.integers(0, 30),
    frames_readable=st.integers(0, 30),
    shape=st.just((10, 10)),
    metadata=st.just({}),
    created=st.just(NOW),
    ended=st.none(),
)
EVENTS = st.builds(
    Event,
    id=st.integers(1, 99),
    time=st.just(NOW),
    kind=st.sampled_from(["dataset.started", "dataset.complete", "dataset.frames", "job.finished"]),
    instrument=INSTRUMENTS,
    experiment=st.just("sim-mx-2030-00001"),
    subject=st.just("1"),
    actor=st.just("sim-mx"),
    data=st.just({}),
)


@settings(deadline=None)
@given(EVENTS, DATASETS, RULES)
def test_a_rule_applies_exactly_when_all_of_it_fits(
    event: Event, dataset: Dataset, rules: list[Trigger]
) -> None:
    requests = decide(Occasion(event, dataset), rules)
    asked = [(request.rule, request.key) for request in requests]
    expected = []
    for rule in rules:
        frames = dataset.frames_announced if "started" in rule.event else dataset.frames_readable
        kind = rule.condition.kind
        minimum = rule.condition.min_frames
        if (
            rule.enabled
            and rule.instrument == event.instrument
            and rule.event.value == event.kind
            and fnmatchcase(dataset.name, rule.pattern)
            and kind in (None, dataset.kind)
            and (frames >= minimum or (dataset.open_ended and "started" in rule.event))
        ):
            expected.append((rule.id, f"{rule.id}.{rule.version}/{dataset.id}/{event.kind}"))
    assert asked == expected


@settings(deadline=None)
@given(EVENTS, DATASETS, RULES)
def test_the_same_occasion_has_the_same_key_whenever_it_is_told(
    event: Event, dataset: Dataset, rules: list[Trigger]
) -> None:
    again = event.model_copy(update={"id": event.id + 1, "time": datetime.now(UTC)})
    assert decide(Occasion(event, dataset), rules) == decide(Occasion(again, dataset), rules)


@settings(deadline=None)
@given(EVENTS, DATASETS, RULES)
def test_rules_do_not_influence_one_another(event: Event, dataset: Dataset, rules: list[Trigger]) -> None:
    one_by_one = [request for rule in rules for request in decide(Occasion(event, dataset), [rule])]
    assert decide(Occasion(event, dataset), rules) == one_by_one


def rule(event: TriggerEvent, parameters: dict[str, Any] | None = None, **condition: Any) -> Trigger:
    return Trigger(
        id=7,
        instrument="sim-mx",
        version=2,
        title="rule",
        event=event,
        pattern="*",
        condition=TriggerCondition(**condition),
        template="dials",
        parameters=parameters or {},
        profile="cpu-1",
        sponsor="lab",
        enabled=True,
    )


LYSO = Dataset(
    id=3,
    experiment="sim-mx-2030-00001",
    name="lyso",
    path="raw/lyso_master.h5",
    kind=DatasetKind.ROTATION,
    state=DatasetState.RECEIVING,
    frames_announced=200,
    frames_readable=0,
    shape=(10, 20),
    metadata={"wavelength": Quantity(value=0.98, unit="angstrom")},
    created=NOW,
    ended=None,
)


def occasion(kind: TriggerEvent, **data: Any) -> Occasion:
    event = Event(
        id=11,
        time=NOW,
        kind=kind,
        instrument="sim-mx",
        experiment="sim-mx-2030-00001",
        subject="3",
        actor="sim-mx",
        data=data,
    )
    return Occasion(event, LYSO)


def key(found: JobRequest | str) -> str:
    return found.key.rpartition("/")[2] if isinstance(found, JobRequest) else f"no: {found}"


def frames(count: int) -> Occasion:
    return occasion(TriggerEvent.DATASET_FRAMES, frames_readable=count)


def test_every_so_many_frames_is_one_occasion_each() -> None:
    every = rule(TriggerEvent.DATASET_FRAMES, every=50)
    found = [key(judge(frames(n), every)) for n in (10, 49, 50, 99, 100, 200)]
    assert found == [*["no: too few frames have arrived"] * 2, "1", "1", "2", "4"]


def test_parts_of_what_was_announced() -> None:
    parts = rule(TriggerEvent.DATASET_FRAMES, at=[25, 50, 100])
    found = [key(judge(frames(n), parts)) for n in (49, 50, 99, 100, 199, 200)]
    assert found == ["no: too few frames have arrived", "25%", "25%", "50%", "50%", "100%"]


def test_a_series_has_no_parts_but_any_number_of_frames() -> None:
    """At its start nobody knows how many will come, and at no time what part of them has."""
    series = LYSO.model_copy(update={"open_ended": True, "frames_announced": 1})
    started = occasion(TriggerEvent.DATASET_STARTED)
    many = rule(TriggerEvent.DATASET_STARTED, min_frames=100)
    assert isinstance(judge(replace(started, dataset=series), many), JobRequest)
    parts = rule(TriggerEvent.DATASET_FRAMES, at=[25, 50, 100])
    assert key(judge(replace(frames(200), dataset=series), parts)).startswith("no")
    every = rule(TriggerEvent.DATASET_FRAMES, every=50)
    assert key(judge(replace(frames(100), dataset=series), every)) == "2"


@pytest.mark.parametrize(
    ("expression", "why_not"),
    [
        ("wavelength < 1.1 and frames_announced > 100", ""),
        ("wavelength > 1.1", "wavelength > 1.1 does not hold"),
        ("detector_distance > 1", "can't be told: detector_distance is not known"),
        ("name > 1", "can't be told"),
    ],
)
def test_a_condition_on_metadata(expression: str, why_not: str) -> None:
    on = TriggerEvent.DATASET_STARTED
    found = judge(occasion(on), rule(on, expression=expression))
    assert why_not in found if isinstance(found, str) else not why_not


def test_parameters_are_computed() -> None:
    on = TriggerEvent.DATASET_STARTED
    wanted: dict[str, Any] = {"last_frame": {"expression": "frames_announced // 2"}, "anomalous": True}
    found = judge(occasion(on), rule(on, wanted))
    assert isinstance(found, JobRequest)
    assert (found.parameters, found.problem) == ({"last_frame": 100, "anomalous": True}, "")

    wanted["last_frame"] = {"expression": "frames / nothing"}
    found = judge(occasion(on), rule(on, wanted))
    assert isinstance(found, JobRequest)
    assert found.problem == "last_frame = frames / nothing can't be computed: nothing is not known"


def test_what_comes_from_outside_has_a_name_and_values() -> None:
    centred = rule(TriggerEvent.EXTERNAL, name="sample-centred", expression="event.quality > 0.5")
    at_least_one = {"frames_readable": 1}

    def told(name: str, quality: float) -> str:
        values = {"quality": quality, "odd": [1]}
        return key(judge(occasion(TriggerEvent.EXTERNAL, name=name, values=values, **at_least_one), centred))

    assert told("sample-centred", 0.9) == "11"
    assert told("sample-centred", 0.1) == "no: event.quality > 0.5 does not hold"
    assert told("other", 0.9) == "no: it waits for sample-centred"


def test_no_rule_follows_itself() -> None:
    on = TriggerEvent.DATASET_STARTED
    assert isinstance(judge(occasion(on), rule(on)), JobRequest)
    assert isinstance(judge(replace(occasion(on), followed=frozenset({7})), rule(on)), str)


def told(kind: TriggerEvent, subject: str, seconds: float = 0, **data: Any) -> Event:
    return Event(
        id=11 + int(10 * seconds),
        time=NOW + timedelta(seconds=seconds),
        kind=kind,
        instrument="sim-mx",
        experiment="sim-mx-2030-00001",
        subject=subject,
        actor="sim-mx",
        data=data,
    )


def test_a_file_is_known_by_its_name_and_its_path() -> None:
    on = TriggerEvent.FILE_COMPLETE
    event = told(on, "5f0c", path="raw/scan-1/log.csv", size=120)
    file = Occasion(event, file="raw/scan-1/log.csv")
    for pattern, fits in (("*.csv", True), ("raw/*/log.csv", True), ("scan*", False), ("raw/*.h5", False)):
        wanted = judge(file, rule(on).model_copy(update={"pattern": pattern}))
        assert isinstance(wanted, JobRequest) is fits
    found = judge(file, rule(on, expression="size > 100 and suffix == '.csv' and folder == 'raw/scan-1'"))
    assert isinstance(found, JobRequest)
    assert (found.key, found.files, found.datasets) == (
        "7.2/file:5f0c/file.complete",
        ("raw/scan-1/log.csv",),
        (),
    )
    assert isinstance(judge(file, rule(on, kind="rotation")), str)


def test_a_pattern_with_a_slash_is_for_the_path_of_a_dataset_too() -> None:
    on = TriggerEvent.DATASET_STARTED
    assert isinstance(judge(occasion(on), rule(on).model_copy(update={"pattern": "raw/ly*"})), JobRequest)
    assert isinstance(judge(occasion(on), rule(on).model_copy(update={"pattern": "raw/x*"})), str)


def test_an_experiment_that_becomes_active_is_an_occasion_each_time() -> None:
    on = TriggerEvent.EXPERIMENT_ACTIVATED
    found = [judge(Occasion(told(on, "sim-mx-2030-00001", n)), rule(on)) for n in (0, 0, 5)]
    keys = [one.key for one in found if isinstance(one, JobRequest)]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0] == "7.2/experiment:sim-mx-2030-00001/experiment.activated/11"


def gathering(by: str = "name", **group: Any) -> Trigger:
    wanted = TriggerGroup(by=by, **{"wait": 600, **group})
    return rule(TriggerEvent.DATASET_COMPLETE, {"n": {"expression": "count"}}).model_copy(
        update={"group": wanted}
    )


def complete(number: int, name: str, seconds: float, experiment: str = "sim-mx-2030-00001") -> Occasion:
    dataset = LYSO.model_copy(
        update={"id": number, "name": name, "frames_readable": 200, "experiment": experiment}
    )
    event = told(TriggerEvent.DATASET_COMPLETE, str(number), seconds)
    return Occasion(event.model_copy(update={"experiment": experiment}), dataset)


def test_what_is_gathered_is_one_job_on_all_of_it() -> None:
    merge = gathering(at_least=2)
    first, second, again = complete(3, "a", 0), complete(4, "a", 60), complete(3, "a", 90)
    alone = judge(first, merge)
    assert isinstance(alone, JobRequest)
    assert (alone.group, alone.datasets) == ("a", (3,))
    assert gather([first, again], merge) == "only 1 of at least 2 have come"
    assert gather([], merge) == "only 0 of at least 2 have come"
    both = gather([first, second, again], merge)
    assert isinstance(both, JobRequest)
    assert (both.datasets, both.parameters) == ((3, 4), {"n": 2})
    # the same ones in another order, or told once more, are the same job
    other = gather([second, again], merge)
    assert isinstance(other, JobRequest)
    assert other.key == both.key
    more = gather([first, second, complete(5, "a", 99)], merge)
    assert isinstance(more, JobRequest)
    assert more.key != both.key


@pytest.mark.parametrize(("by", "value"), [("", ""), ("wavelength", "0.98"), ("frames // 100", "2")])
def test_what_is_gathered_has_something_in_common(by: str, value: str) -> None:
    wanted = judge(complete(3, "a", 0), gathering(by))
    assert isinstance(wanted, JobRequest)
    assert wanted.group == value
    assert judge(complete(3, "a", 0), gathering("sample_name")) == (
        "sample_name can't be told: sample_name is not known"
    )


def test_the_past_is_gathered_as_it_would_have_been() -> None:
    told = [
        complete(1, "a", 0),
        complete(2, "b", 100),
        complete(3, "a", 500),
        complete(3, "a", 510),  # told twice
        complete(4, "a", 1111),  # after more than 600 s
        complete(5, "a", 1112, "sim-mx-2030-00002"),
        complete(6, "b", 650),
        complete(7, "b", 651),
    ]
    found = sessions(sorted(told, key=lambda one: one.event.time), gathering(at_most=2))
    numbers = [[one.dataset.id for one in session if one.dataset] for session in found]
    assert numbers == [[1, 3], [2, 6], [7], [4], [5]]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from("ab"), st.integers(0, 3000)), max_size=12),
    st.integers(1, 900),
    st.integers(1, 4),
)
def test_whatever_is_gathered_is_gathered_once_and_never_too_much(
    told: list[tuple[int, str, int]], wait: int, at_most: int
) -> None:
    merge = gathering(wait=wait, at_most=at_most)
    occasions = [complete(*one) for one in sorted(told, key=lambda one: one[2])]
    found = sessions(occasions, merge)
    numbers = [one.dataset.id for session in found for one in session if one.dataset]
    assert sorted(numbers) == sorted({number for number, _, _ in told})
    for session in found:
        assert 1 <= len(session) <= at_most
        assert len({one.dataset.name for one in session if one.dataset}) == 1
        times = [one.event.time for one in session]
        assert all((b - a).total_seconds() <= wait for a, b in itertools.pairwise(times))
