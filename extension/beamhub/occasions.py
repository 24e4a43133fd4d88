"""Occasions for trigger rules, as the store knows them: just now, or in the past."""

from __future__ import annotations

from collections.abc import Iterable

from beamhub import access
from beamhub.access import Action, Principal
from beamhub.errors import NotFound
from beamhub.schemas import Event, Job, Trigger, TriggerEvent, TriggerTrial
from beamhub.store import Transaction
from beamhub.triggers import JobRequest, Occasion, judge

GENERATIONS = 50  # of jobs that are looked at, from a job to those that led to it
EVENTS = 5000  # that are looked through for past occasions


def occasion(tx: Transaction, event: Event) -> Occasion | None:
    """What this event is to trigger rules; None for what no rule can wait for, or what is gone."""
    if event.kind not in set(TriggerEvent) or not event.subject.isdigit():
        return None
    job = tx.jobs.get(int(event.subject)) if event.kind == TriggerEvent.JOB_FINISHED else None
    if event.kind == TriggerEvent.JOB_FINISHED and job is None:
        return None
    number = _dataset(tx, job) if job else int(event.subject)
    dataset = tx.datasets.get(number) if number is not None else None
    if dataset is None:
        return None
    return Occasion(event, dataset, job, frozenset(_followed(tx, job)))


def past(
    tx: Transaction,
    instrument: str,
    kind: TriggerEvent,
    *,
    datasets: int | frozenset[int],
    experiment: str | None = None,
) -> list[Occasion]:
    """The occasions of this kind on the last so many datasets of the instrument, or of one experiment, or on
    these datasets; the newest first."""
    found: dict[int, list[Occasion]] = {}
    for event in tx.events.latest_of(instrument, kind, experiment=experiment, limit=EVENTS):
        one = occasion(tx, event)
        if one is None or (isinstance(datasets, frozenset) and one.dataset.id not in datasets):
            continue
        if isinstance(datasets, int) and one.dataset.id not in found and len(found) == datasets:
            break
        found.setdefault(one.dataset.id, []).append(one)
    return [one for occasions in found.values() for one in occasions]


def trial(tx: Transaction, rule: Trigger, one: Occasion) -> TriggerTrial:
    """What this rule makes of an occasion, and what it has made of it already."""
    judged = judge(one, rule)
    started = tx.jobs.triggered(judged.key) if isinstance(judged, JobRequest) else None
    reason = judged if isinstance(judged, str) else judged.problem
    return TriggerTrial(
        experiment=one.dataset.experiment,
        dataset=one.dataset.id,
        dataset_name=one.dataset.name,
        event=rule.event,
        time=one.event.time,
        starts=isinstance(judged, JobRequest),
        reason=f"job {started} has been started on it" if started else reason,
        parameters=dict(judged.parameters) if isinstance(judged, JobRequest) else {},
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
