"""Which jobs an event starts: pure functions of an occasion and the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from pydantic import JsonValue

from beamhub.expressions import Expression, ExpressionError, Value
from beamhub.schemas import Dataset, Event, Job, Trigger, TriggerCondition, TriggerEvent


@dataclass(frozen=True)
class Occasion:
    """Something that has happened to a dataset, with all that a rule may look at.

    `job` is the one that has finished, where that is what happened; `followed` are the rules by which it and
    its forebears were started.
    """

    event: Event
    dataset: Dataset
    job: Job | None = None
    followed: frozenset[int] = frozenset()

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """What expressions may ask for."""
        return _values(self)


@dataclass(frozen=True)
class JobRequest:
    """A job that a rule wants. `key` names the occasion: there is at most one job with a key, ever."""

    key: str
    rule: int
    version: int
    dataset: int
    template: str
    parameters: Mapping[str, JsonValue]
    profile: str
    sponsor: str
    priority: int = 0
    parent: int | None = None
    problem: str = ""  # why a parameter could not be computed: then the job can't be run


def decide(occasion: Occasion, rules: Sequence[Trigger]) -> list[JobRequest]:
    """The jobs that these rules start on this occasion, in the order of the rules."""
    judged = [judge(occasion, rule) for rule in rules if rule.enabled]
    return [request for request in judged if isinstance(request, JobRequest)]


def judge(occasion: Occasion, rule: Trigger) -> JobRequest | str:
    """The job that this rule starts on this occasion, or in a few words why it starts none.

    A rule applies if it belongs to the event's instrument, waits for this kind of event, its pattern (a glob,
    case-sensitive) matches the dataset's name, and its condition holds.
    """
    event, dataset = occasion.event, occasion.dataset
    if rule.instrument != event.instrument or rule.event != event.kind:
        return f"it waits for {rule.event} on {rule.instrument}"
    if rule.experiment not in (None, dataset.experiment):
        return f"it is for {rule.experiment}"
    if not fnmatchcase(dataset.name, rule.pattern):
        return f"{dataset.name} does not match {rule.pattern}"
    if rule.id in occasion.followed:
        return "it has started this job or one that led to it"
    values = occasion.values
    if reason := _obstacle(rule.condition, occasion, values):
        return reason
    number = _which(rule.event, rule.condition, occasion)
    if not number:
        return "too few frames have arrived"
    parameters, problem = _parameters(rule.parameters, values)
    return JobRequest(
        key=f"{rule.id}.{rule.version}/{dataset.id}/{number}",
        rule=rule.id,
        version=rule.version,
        dataset=dataset.id,
        template=rule.template,
        parameters=parameters,
        profile=rule.profile,
        sponsor=rule.sponsor,
        priority=rule.priority,
        parent=occasion.job.id if occasion.job else None,
        problem=problem,
    )


def _obstacle(condition: TriggerCondition, occasion: Occasion, values: Mapping[str, Value]) -> str:
    """Why the condition does not hold; "" where it does."""
    dataset, job = occasion.dataset, occasion.job
    if condition.kind is not None and condition.kind != dataset.kind:
        return f"it is for {condition.kind} datasets, and this is {dataset.kind}"
    frames = _frames(occasion)
    unknown = dataset.open_ended and occasion.event.kind == TriggerEvent.DATASET_STARTED
    if frames < condition.min_frames and not unknown:
        return f"it wants {condition.min_frames} frames, and there are {frames}"
    if condition.template is not None and (job is None or job.template != condition.template):
        return f"it waits for jobs of {condition.template}"
    if condition.name is not None and occasion.event.data.get("name") != condition.name:
        return f"it waits for {condition.name}"
    if condition.expression:
        try:
            if not Expression.parse(condition.expression).value(values):
                return f"{condition.expression} does not hold"
        except ExpressionError as error:
            return f"{condition.expression} can't be told: {error}"
    return ""


def _frames(occasion: Occasion) -> int:
    """How many frames there were at the occasion; at the start only the announced number can be known."""
    if occasion.event.kind == TriggerEvent.DATASET_STARTED:
        return occasion.dataset.frames_announced
    then = occasion.event.data.get("frames_readable")
    return then if isinstance(then, int) else occasion.dataset.frames_readable


def _which(event: TriggerEvent, condition: TriggerCondition, occasion: Occasion) -> str:
    """What tells this occasion from others of the dataset, whenever and however often it is told; "" if it is
    none yet."""
    frames = _frames(occasion)
    match event:
        case TriggerEvent.DATASET_FRAMES if condition.at:
            if occasion.dataset.open_ended:  # percent of what, nobody knows
                return ""
            percent = 100 * frames / max(1, occasion.dataset.frames_announced)
            reached = [step for step in condition.at if percent >= step]
            return f"{event}/{max(reached)}%" if reached else ""
        case TriggerEvent.DATASET_FRAMES:
            count = frames // (condition.every or 1)
            return f"{event}/{count}" if count else ""
        case TriggerEvent.JOB_FINISHED | TriggerEvent.EXTERNAL:
            return f"{event}/{occasion.event.subject if occasion.job else occasion.event.id}"
    return event.value


def _values(occasion: Occasion) -> dict[str, Value]:
    """What expressions may ask for: the dataset, its metadata, the job's metrics, what came from outside."""
    dataset, job, data = occasion.dataset, occasion.job, occasion.event.data
    values: dict[str, Value] = {name: item.value for name, item in dataset.metadata.items()}
    values |= {
        "name": dataset.name,
        "path": dataset.path,
        "kind": dataset.kind.value,
        "frames": _frames(occasion),
        "frames_announced": dataset.frames_announced,
        "frames_readable": dataset.frames_readable,
        "rows": dataset.shape[0],
        "columns": dataset.shape[1],
    }
    if job is not None:
        values |= {f"job.{name}": metric.value for name, metric in job.metrics.items()}
        values |= {"job.template": job.template, "job.id": job.id}
    if occasion.event.kind == TriggerEvent.EXTERNAL and isinstance(given := data.get("values"), dict):
        values |= {
            f"event.{name}": value
            for name, value in given.items()
            if value is None or isinstance(value, bool | int | float | str)
        }
    return values


def _parameters(
    written: Mapping[str, JsonValue], values: Mapping[str, Value]
) -> tuple[dict[str, JsonValue], str]:
    """The parameters with their expressions computed, and what was wrong with one."""
    computed, problems = dict(written), []
    for name, value in written.items():
        if (text := expression_of(value)) is not None:
            try:
                computed[name] = Expression.parse(text).value(values)
            except ExpressionError as error:
                problems.append(f"{name} = {text} can't be computed: {error}")
    return computed, "; ".join(problems)


def expression_of(value: JsonValue) -> str | None:
    """The text of a parameter that is computed on each occasion: `{"expression": "frames // 2"}`."""
    if isinstance(value, dict) and value.keys() == {"expression"} and isinstance(value["expression"], str):
        return value["expression"]
    return None
