"""Which jobs an event starts: a pure function of the event, its dataset and the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import JsonValue

from beamhub.schemas import Dataset, Event, Trigger, TriggerCondition, TriggerEvent


@dataclass(frozen=True)
class JobRequest:
    """A job that a rule wants. `key` names the occasion: there is at most one job with a key, ever."""

    key: str
    rule: int
    dataset: int
    template: str
    parameters: Mapping[str, JsonValue]
    profile: str
    sponsor: str


def decide(event: Event, dataset: Dataset, rules: Sequence[Trigger]) -> list[JobRequest]:
    """The jobs that these rules start on this event, in the order of the rules.

    A rule applies if it is enabled, belongs to the event's instrument, waits for this kind of event, its
    pattern (a glob, case-sensitive) matches the dataset's name, and its condition holds.
    """
    return [
        JobRequest(
            key=f"{rule.id}.{rule.version}/{dataset.id}/{event.kind}",
            rule=rule.id,
            dataset=dataset.id,
            template=rule.template,
            parameters=rule.parameters,
            profile=rule.profile,
            sponsor=rule.sponsor,
        )
        for rule in rules
        if rule.enabled
        and rule.instrument == event.instrument
        and rule.event == event.kind
        and fnmatchcase(dataset.name, rule.pattern)
        and _holds(TriggerCondition.model_validate(rule.condition), rule.event, dataset)
    ]


def _holds(condition: TriggerCondition, event: TriggerEvent, dataset: Dataset) -> bool:
    if condition.kind is not None and condition.kind != dataset.kind:
        return False
    # at the start only the announced number can be known, and of a series not even that
    started = event is TriggerEvent.DATASET_STARTED
    if started and dataset.open_ended:
        return True
    frames = dataset.frames_announced if started else dataset.frames_readable
    return frames >= condition.min_frames
