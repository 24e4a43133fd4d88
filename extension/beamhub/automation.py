"""Automation: the jobs that trigger rules start on events as they come, and on what has happened before when
somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from beamhub.access import Principal
from beamhub.jobs import Jobs
from beamhub.occasions import occasion, past, require_rule, trial
from beamhub.schemas import Event, ExperimentState, Page, Trigger, TriggerEvent, TriggerTrial
from beamhub.store import Store, Transaction
from beamhub.triggers import JobRequest, Occasion, decide, judge

Applying = Callable[[str, str | None], Sequence[Trigger]]
_Known = dict[tuple[str, str | None], Sequence[Trigger]]

KINDS = frozenset(TriggerEvent)


class Automation:
    """Follows the rules. Whatever is told how often by however many processes, a rule's version starts one
    job on an occasion: each job is made under the occasion's key, and a key is given once."""

    def __init__(self, store: Store, jobs: Jobs) -> None:
        self._store = store
        self._jobs = jobs
        self._rulebook = Rulebook()

    def awaited(self, tx: Transaction, events: Sequence[Event]) -> list[Event]:
        """Those of these events that a rule waits for."""
        rules = self._rulebook.open(tx)
        return [
            event
            for event in events
            if event.kind in KINDS
            and event.instrument is not None
            and any(
                rule.enabled and rule.event == event.kind
                for rule in rules(event.instrument, event.experiment)
            )
        ]

    def follow(self, tx: Transaction, events: Sequence[Event]) -> None:
        """Starts the jobs that the rules want on these events. A rule that cannot be followed makes a job
        that has failed, so that somebody sees why."""
        rules = self._rulebook.open(tx)
        for event in events:
            self._follow(tx, event, rules)

    def _follow(self, tx: Transaction, event: Event, rules: Applying) -> None:
        found = occasion(tx, event)
        instrument = tx.instruments.get(event.instrument or "")
        experiment = tx.experiments.get(event.experiment or "")
        if found is None or instrument is None or experiment is None:
            return
        if found.dataset.experiment != experiment.id:  # moved since: its new experiment's people decide
            return
        if not instrument.automation or experiment.state is ExperimentState.CLOSED:
            return
        for request in decide(found, rules(instrument.id, experiment.id)):
            if not tx.jobs.triggered(request.key):
                self._jobs.follow(tx, request, experiment, found.dataset)

    async def replay(self, principal: Principal, rule_id: int, wanted: Sequence[int]) -> Page[TriggerTrial]:
        """Follows a rule, as it applies in their experiments, on what has happened to these datasets before,
        as far as it has not been followed there already."""

        def work(tx: Transaction) -> Page[TriggerTrial]:
            rule = require_rule(tx, principal, rule_id)
            occasions = past(
                tx, rule.instrument, rule.event, datasets=frozenset(wanted), experiment=rule.experiment
            )
            return Page(items=[self._again(tx, rule, one) for one in reversed(occasions)])

        return await self._store.write(work)

    def _again(self, tx: Transaction, rule: Trigger, past: Occasion) -> TriggerTrial:
        experiment = tx.experiments.get(past.dataset.experiment)
        rule = tx.triggers.get(rule.id, past.dataset.experiment) or rule
        outcome = trial(tx, rule, past)
        request = judge(past, rule)
        if experiment is None or outcome.job is not None or not isinstance(request, JobRequest):
            return outcome
        if experiment.state is ExperimentState.CLOSED:
            return outcome.model_copy(update={"starts": False, "reason": f"{experiment.id} is closed"})
        job = self._jobs.follow(tx, request, experiment, past.dataset)
        return outcome.model_copy(update={"job": job.id})


class Rulebook:
    """The rules as they apply in each experiment; read again when one has been changed."""

    def __init__(self) -> None:
        # replaced as one: several threads may have it open, each in its own snapshot
        self._read: tuple[tuple[int, datetime] | None, _Known] = (None, {})

    def open(self, tx: Transaction) -> Applying:
        """What tells the rules of an instrument and an experiment, as the transaction sees them."""
        stamp, known = self._read
        if (newest := tx.triggers.stamp()) != stamp:
            known = {}
            self._read = newest, known

        def applying(instrument: str, experiment: str | None) -> Sequence[Trigger]:
            key = instrument, experiment
            if key not in known:
                known[key] = tx.triggers.applying(instrument, experiment)
            return known[key]

        return applying
