"""Which jobs an event starts."""

from __future__ import annotations

from datetime import UTC, datetime
from fnmatch import fnmatchcase

from beamhub.schemas import Dataset, DatasetKind, DatasetState, Event, Trigger, TriggerEvent
from beamhub.triggers import decide
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
        event=st.sampled_from(TriggerEvent),
        pattern=st.text("abc*?_", min_size=1, max_size=4),
        condition=st.fixed_dictionaries(
            {},
            optional={"kind": st.sampled_from([*DatasetKind, None]), "min_frames": st.integers(1, 20)},
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
    requests = decide(event, dataset, rules)
    asked = [(request.rule, request.key) for request in requests]
    expected = []
    for rule in rules:
        frames = dataset.frames_announced if "started" in rule.event else dataset.frames_readable
        kind = rule.condition.get("kind")
        minimum = rule.condition.get("min_frames", 1)
        assert isinstance(minimum, int)
        if (
            rule.enabled
            and rule.instrument == event.instrument
            and rule.event.value == event.kind
            and fnmatchcase(dataset.name, rule.pattern)
            and kind in (None, dataset.kind)
            and frames >= minimum
        ):
            expected.append((rule.id, f"{rule.id}.{rule.version}/{dataset.id}/{event.kind}"))
    assert asked == expected


@settings(deadline=None)
@given(EVENTS, DATASETS, RULES)
def test_the_same_occasion_has_the_same_key_whenever_it_is_told(
    event: Event, dataset: Dataset, rules: list[Trigger]
) -> None:
    again = event.model_copy(update={"id": event.id + 1, "time": datetime.now(UTC)})
    assert decide(event, dataset, rules) == decide(again, dataset, rules)


@settings(deadline=None)
@given(EVENTS, DATASETS, RULES)
def test_rules_do_not_influence_one_another(event: Event, dataset: Dataset, rules: list[Trigger]) -> None:
    one_by_one = [request for rule in rules for request in decide(event, dataset, [rule])]
    assert decide(event, dataset, rules) == one_by_one
