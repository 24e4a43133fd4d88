"""Which jobs an event starts: pure functions of an occasion and the rules."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import PurePosixPath

from pydantic import JsonValue

from beamhub.expressions import LONGEST, Expression, ExpressionError, Value, expression_of
from beamhub.schemas import Dataset, Event, Job, Trigger, TriggerCondition, TriggerEvent, TriggerSubject


@dataclass(frozen=True)
class Occasion:
    """Something that has happened, with all that a rule may look at: to a dataset, a file or an experiment.

    `job` is the one that has finished, where that is what happened, and `dataset` then the one that it worked
    on, if any; `followed` are the rules by which it and its forebears were started. `together` is how many
    have been gathered, this one being the last.
    """

    event: Event
    dataset: Dataset | None = None
    job: Job | None = None
    file: str | None = None  # path in the experiment's folder
    followed: frozenset[int] = frozenset()
    together: int = 1

    @property
    def experiment(self) -> str:
        """Whose people decide about it: a dataset may have been moved since."""
        return self.dataset.experiment if self.dataset else self.event.experiment or ""

    @property
    def subject(self) -> TriggerSubject:
        """What it has happened to."""
        if self.dataset is not None:
            return TriggerSubject(kind="dataset", id=str(self.dataset.id), name=self.dataset.name)
        if self.job is not None:
            return TriggerSubject(kind="job", id=str(self.job.id), name=self.job.title)
        if self.file is not None:
            return TriggerSubject(kind="file", id=self.event.subject, name=self.file)
        return TriggerSubject(kind="experiment", id=self.experiment, name=self.experiment)

    @cached_property
    def values(self) -> Mapping[str, Value]:
        """What expressions may ask for."""
        return _values(self)


@dataclass(frozen=True)
class JobRequest:
    """A job that a rule wants. `key` names the occasion: there is at most one job with a key, ever.

    The job works on the datasets, the jobs or the file, whichever its template takes. With a `group` it is
    not wanted at once: what has the same group is gathered for one job.
    """

    key: str
    rule: int
    version: int
    template: str
    parameters: Mapping[str, JsonValue]
    profile: str
    sponsor: str
    datasets: tuple[int, ...] = ()
    jobs: tuple[int, ...] = ()
    files: tuple[str, ...] = ()
    priority: int = 0
    parent: int | None = None
    problem: str = ""  # why a parameter could not be computed: then the job can't be run
    group: str | None = None


def decide(occasion: Occasion, rules: Sequence[Trigger]) -> list[JobRequest]:
    """The jobs that these rules start on this occasion, in the order of the rules."""
    judged = [judge(occasion, rule) for rule in rules if rule.enabled and rule.event == occasion.event.kind]
    return [request for request in judged if isinstance(request, JobRequest)]


def judge(occasion: Occasion, rule: Trigger) -> JobRequest | str:
    """The job that this rule starts on this occasion, or in a few words why it starts none.

    A rule applies if it belongs to the event's instrument, waits for this kind of event, its pattern matches,
    and its condition holds. The pattern is a case-sensitive glob on the name, or where it has a slash, on the
    path in the experiment's folder.
    """
    event, subject = occasion.event, occasion.subject
    if rule.instrument != event.instrument or rule.event != event.kind:
        return f"it waits for {rule.event} on {rule.instrument}"
    if rule.experiment not in (None, occasion.experiment):
        return f"it is for {rule.experiment}"
    if not _fits(rule.pattern, occasion):
        return f"{subject.name} does not match {rule.pattern}"
    if rule.id in occasion.followed:
        return "it has started this job or one that led to it"
    values = occasion.values
    if reason := _obstacle(rule.condition, occasion, values):
        return reason
    which = _which(rule.event, rule.condition, occasion)
    if not which:
        return "too few frames have arrived"
    group = None
    if rule.group is not None:
        try:
            group = _text(Expression.parse(rule.group.by).value(values)) if rule.group.by else ""
        except ExpressionError as error:
            return f"{rule.group.by} can't be told: {error}"
    parameters, problem = _parameters(rule.parameters, values)
    return JobRequest(
        key=f"{rule.id}.{rule.version}/{which}",
        rule=rule.id,
        version=rule.version,
        template=rule.template,
        parameters=parameters,
        profile=rule.profile,
        sponsor=rule.sponsor,
        datasets=(occasion.dataset.id,) if occasion.dataset else (),
        jobs=(occasion.job.id,) if occasion.job else (),
        files=(occasion.file,) if occasion.file is not None else (),
        priority=rule.priority,
        parent=occasion.job.id if occasion.job else None,
        problem=problem,
        group=group,
    )


def gather(occasions: Sequence[Occasion], rule: Trigger) -> JobRequest | str:
    """The one job that a rule which gathers starts on these occasions, oldest first, or why it starts none.
    Its parameters are computed from the last one."""
    assert rule.group is not None  # noqa: S101 (asked of such rules only)
    taken = [(one, wanted) for one in occasions if isinstance(wanted := judge(one, rule), JobRequest)]
    datasets = tuple(dict.fromkeys(id_ for _, wanted in taken for id_ in wanted.datasets))
    jobs = tuple(dict.fromkeys(id_ for _, wanted in taken for id_ in wanted.jobs))
    count = max(len(datasets), len(jobs))
    if count < rule.group.at_least or not taken:
        return f"only {count} of at least {rule.group.at_least} have come"
    last = judge(replace(taken[-1][0], together=count), rule)
    if isinstance(last, str):  # its condition asks how many there are
        return last
    inputs = hashlib.sha256(repr((sorted(datasets), sorted(jobs))).encode()).hexdigest()[:32]
    key = f"{rule.id}.{rule.version}/{rule.event}/{inputs}"
    return replace(last, key=key, datasets=datasets, jobs=jobs)


def sessions(occasions: Sequence[Occasion], rule: Trigger) -> list[list[Occasion]]:
    """Past occasions of a rule that gathers, oldest first, as they would have been gathered: what is of one
    experiment and has the same group, and was not apart for longer than the rule waits."""
    assert rule.group is not None  # noqa: S101 (asked of such rules only)
    wait = timedelta(seconds=rule.group.wait)
    found: list[list[Occasion]] = []
    open_: dict[tuple[str, str | None], list[Occasion]] = {}
    seen: set[str] = set()
    for one in occasions:
        wanted = judge(one, rule)
        if isinstance(wanted, str) or wanted.key in seen:
            continue
        seen.add(wanted.key)
        group = one.experiment, wanted.group
        session = open_.get(group)
        if (
            session is None
            or one.event.time - session[-1].event.time > wait
            or len(session) >= rule.group.at_most
        ):
            session = open_[group] = []
            found.append(session)
        session.append(one)
    return found


def _fits(pattern: str, occasion: Occasion) -> bool:
    path = occasion.file or (occasion.dataset.path if occasion.dataset else "")
    if "/" in pattern:
        return fnmatchcase(path, pattern)
    name = PurePosixPath(occasion.file).name if occasion.file else occasion.subject.name
    return fnmatchcase(name, pattern)


def _text(value: Value) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)[:LONGEST]


def _obstacle(condition: TriggerCondition, occasion: Occasion, values: Mapping[str, Value]) -> str:
    """Why the condition does not hold; "" where it does."""
    dataset, job = occasion.dataset, occasion.job
    if condition.kind is not None and (dataset is None or condition.kind != dataset.kind):
        return f"it is for {condition.kind} datasets, and this is {dataset.kind if dataset else 'none'}"
    if dataset is not None:
        frames = _frames(occasion, dataset)
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


def _frames(occasion: Occasion, dataset: Dataset) -> int:
    """How many frames there were at the occasion, for whoever reads published files; at the start only the
    announced number can be known."""
    if occasion.event.kind == TriggerEvent.DATASET_STARTED:
        return dataset.frames_announced
    told = occasion.event.data
    then = told.get("frames_published", told.get("frames_readable"))
    return then if isinstance(then, int) else dataset.frames_readable


def _which(event: TriggerEvent, condition: TriggerCondition, occasion: Occasion) -> str:
    """What tells this occasion from all others, whenever and however often it is told; "" if it is none
    yet."""
    subject = occasion.subject
    number = subject.id if subject.kind == "dataset" else f"{subject.kind}:{subject.id}"
    step = event.value
    match event:
        case TriggerEvent.DATASET_FRAMES if occasion.dataset is not None:
            step = _step(condition, occasion, occasion.dataset)
            if not step:
                return ""
        case TriggerEvent.JOB_FINISHED:
            step = f"{event}/{occasion.event.subject}"
        case TriggerEvent.EXTERNAL | TriggerEvent.EXPERIMENT_ACTIVATED:
            step = f"{event}/{occasion.event.id}"
    return f"{number}/{step}"


def _step(condition: TriggerCondition, occasion: Occasion, dataset: Dataset) -> str:
    """Which of the steps on the way to its last frame a dataset has reached; "" before the first."""
    frames = _frames(occasion, dataset)
    if condition.at:
        if dataset.open_ended:  # percent of what, nobody knows
            return ""
        percent = 100 * frames / max(1, dataset.frames_announced)
        reached = [step for step in condition.at if percent >= step]
        return f"{TriggerEvent.DATASET_FRAMES}/{max(reached)}%" if reached else ""
    count = frames // (condition.every or 1)
    return f"{TriggerEvent.DATASET_FRAMES}/{count}" if count else ""


def _values(occasion: Occasion) -> dict[str, Value]:
    """What expressions may ask for: the dataset, its metadata, the job's metrics, what came from outside."""
    dataset, job, data = occasion.dataset, occasion.job, occasion.event.data
    values: dict[str, Value] = {}
    if dataset is not None:
        values |= {name: item.value for name, item in dataset.metadata.items()}
        values |= {
            "name": dataset.name,
            "path": dataset.path,
            "folder": str(PurePosixPath(dataset.path).parent),
            "kind": dataset.kind.value,
            "frames": _frames(occasion, dataset),
            "frames_announced": dataset.frames_announced,
            "frames_readable": dataset.frames_readable,
            "rows": dataset.shape[0],
            "columns": dataset.shape[1],
        }
    if occasion.file is not None:
        path, size = PurePosixPath(occasion.file), data.get("size")
        values |= {"name": path.name, "path": str(path), "folder": str(path.parent), "suffix": path.suffix}
        values |= {"size": size} if isinstance(size, int) else {}
    values |= {"experiment": occasion.experiment, "count": occasion.together}
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
