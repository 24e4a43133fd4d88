"""Occasions for trigger rules, as the store knows them: just now, or in the past."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.errors import NotFound
from beamhub.schemas import Event, Job, Trigger, TriggerEvent, TriggerSubject, TriggerTrial
from beamhub.store import Transaction
from beamhub.triggers import JobRequest, Occasion, gather, judge, sessions

KINDS = frozenset(TriggerEvent)
GENERATIONS = 50  # of jobs that are looked at, from a job to those that led to it
EVENTS = 5000  # that are looked through for past occasions


def occasion(tx: Transaction, event: Event) -> Occasion | None:
    """What this event is to trigger rules; None for what no rule can wait for, or what is gone."""
    match event.kind:
        case TriggerEvent.JOB_FINISHED:
            job = tx.jobs.get(int(event.subject)) if event.subject.isdigit() else None
            if job is None:
                return None
            number = _dataset(tx, job)
            dataset = tx.datasets.get(number) if number is not None else None
            return Occasion(event, dataset, job, followed=frozenset(_followed(tx, job)))
        case TriggerEvent.FILE_COMPLETE:
            path = event.data.get("path")
            return Occasion(event, file=path) if isinstance(path, str) and event.experiment else None
        case TriggerEvent.EXPERIMENT_ACTIVATED:
            return Occasion(event) if event.experiment else None
    if event.kind not in KINDS or not event.subject.isdigit():
        return None
    dataset = tx.datasets.get(int(event.subject))
    return Occasion(event, dataset) if dataset else None


def past(
    tx: Transaction,
    kind: TriggerEvent,
    instrument: str,
    experiment: str | None,
    *,
    last: int = 0,
    wanted: Callable[[TriggerSubject], bool] | None = None,
) -> list[Occasion]:
    """What has happened of this kind on an instrument, or in one of its experiments, oldest first: to the
    last so many datasets (or files, or experiments), or to those that are wanted."""
    found: list[Occasion] = []
    subjects: set[tuple[str, str]] = set()
    for event in tx.events.latest_of(instrument, kind, experiment=experiment, limit=EVENTS):
        one = occasion(tx, event)
        if one is None or (wanted is not None and not wanted(one.subject)):
            continue
        subject = one.subject.kind, one.subject.id
        if wanted is None and subject not in subjects and len(subjects) == last:
            break
        subjects.add(subject)
        found.append(one)
    return found[::-1]


def trials(tx: Transaction, rule: Trigger, occasions: Sequence[Occasion]) -> list[TriggerTrial]:
    """What this rule makes of occasions, oldest first, and what it has made of them already; each once,
    however often it was told."""
    judged = [(one, judge(one, rule)) for one in occasions]
    found = {
        wanted.key if isinstance(wanted, JobRequest) else (one.subject.kind, one.subject.id, wanted): (
            [one],
            wanted,
        )
        for one, wanted in judged
        if rule.group is None or isinstance(wanted, str)
    }
    told = list(found.values())
    if rule.group is not None:
        told += [(session, gather(session, rule)) for session in sessions(occasions, rule)]
    return [trial(tx, rule, *one) for one in told]


def trial(
    tx: Transaction, rule: Trigger, occasions: Sequence[Occasion], wanted: JobRequest | str
) -> TriggerTrial:
    """What it says of these occasions that the rule wants this job, or in a few words why none."""
    started = tx.jobs.triggered(wanted.key) if isinstance(wanted, JobRequest) else None
    reason = wanted if isinstance(wanted, str) else wanted.problem
    return TriggerTrial(
        rule=rule.id,
        experiment=occasions[-1].experiment,
        subjects=[one.subject for one in occasions],
        event=rule.event,
        time=occasions[-1].event.time,
        starts=isinstance(wanted, JobRequest),
        reason=f"job {started} has been started on it" if started else reason,
        parameters=dict(wanted.parameters) if isinstance(wanted, JobRequest) else {},
        job=started,
    )


def visible_rule(tx: Transaction, principal: Principal, rule_id: int) -> Trigger:
    """The rule, if the principal may know of it. Raises NotFound."""
    rule = tx.triggers.get(rule_id)
    instruments = access.visible_instruments(tx, principal)
    experiments = access.visible_experiments(tx, principal)
    if (
        rule is None
        or (instruments is not None and rule.instrument not in instruments)
        or (rule.experiment is not None and experiments is not None and rule.experiment not in experiments)
    ):
        raise NotFound(
            f"There is no trigger rule {rule_id} here.", "Look it up in the instrument's list of rules."
        )
    return rule


def require_rule(tx: Transaction, principal: Principal, rule_id: int) -> Trigger:
    """The rule, if the principal operates its instrument, or for one of an experiment alone, may have such
    rules there. Raises NotFound, Forbidden."""
    rule = visible_rule(tx, principal, rule_id)
    if rule.experiment is None:
        access.require_instrument(tx, principal, rule.instrument, Action.OPERATE)
    else:
        access.require_tuning(tx, principal, rule.experiment)
    return rule


def _dataset(tx: Transaction, job: Job | None) -> int | None:
    """The first dataset that a job works on, itself or by way of the jobs whose results it takes."""
    for _ in range(GENERATIONS):
        first = job.inputs[0] if job and job.inputs else None
        if first is None or first.id is None or first.kind == "dataset":
            return first.id if first else None
        job = tx.jobs.get(first.id)
    return None


def _followed(tx: Transaction, job: Job | None) -> Iterable[int]:
    """The rules that have started this job and those that led to it."""
    for _ in range(GENERATIONS):
        if job is None:
            return
        kind, _, rule = job.launched_by.partition(":")
        if kind == "trigger" and rule.isdigit():
            yield int(rule)
        job = tx.jobs.get(job.parent) if job.parent is not None else None
