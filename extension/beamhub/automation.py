"""Automation: the jobs that trigger rules start on events as they come, and on what has happened before when
somebody asks for it.

Whatever is told, and however often, by however many processes: one version of a rule starts one job on an
occasion. Each job is made under the occasion's key, and a key is given once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Self

from beamhub import access
from beamhub.access import SYSTEM, Action, Principal
from beamhub.boot import boot_id
from beamhub.errors import Invalid
from beamhub.events import emit
from beamhub.jobs import Jobs, require_job
from beamhub.occasions import KINDS, occasion, past, require_rule, trial, trials, visible_rule
from beamhub.rules import Rules
from beamhub.schemas import (
    Event,
    Experiment,
    ExperimentState,
    JobRule,
    JobRuleMade,
    Page,
    Trigger,
    TriggerChange,
    TriggerCreate,
    TriggerGathering,
    TriggerReplay,
    TriggerTrial,
)
from beamhub.store import Store, Transaction
from beamhub.store.gatherings import Open
from beamhub.triggers import JobRequest, Occasion, decide, gather, judge, sessions

Applying = Callable[[str, str | None], Sequence[Trigger]]
_Known = dict[tuple[str, str | None], Sequence[Trigger]]

MISSED = 1000  # events that are shown of what was missed


@dataclass(frozen=True)
class Moment:
    """Seconds since this machine was started: setting its clock changes nothing about them, and all its
    processes agree."""

    boot: str
    seconds: float

    @classmethod
    def now(cls) -> Self:
        return cls(boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME))


class Automation:
    """Follows the rules. `now` tells how long gatherings have waited."""

    def __init__(self, store: Store, jobs: Jobs, now: Callable[[], Moment] = Moment.now) -> None:
        self._store = store
        self._jobs = jobs
        self._now = now
        self._rulebook = Rulebook()

    # --- as it happens ---

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
        that has failed, so that somebody sees why. What happens while automation is paused is noted."""
        instrument = cache(tx.instruments.get)
        told = []
        for one, wanted in self._wanted(tx, events):
            found = instrument(one.event.instrument or "")
            if found is not None and found.automation:
                told.append((one.event, wanted))
            elif wanted:
                tx.missed.add(one.event.instrument or "", one.event.id)
        self._start(tx, told)

    def _wanted(
        self, tx: Transaction, events: Sequence[Event]
    ) -> Iterator[tuple[Occasion, list[tuple[Trigger, JobRequest]]]]:
        """What the rules want on each of these events."""
        rules = self._rulebook.open(tx)
        for event in events:
            one = occasion(tx, event)
            if one is None or event.instrument is None:
                continue
            if one.experiment != event.experiment:  # moved since: its new experiment's people decide
                continue
            applying = rules(event.instrument, event.experiment)
            by_id = {rule.id: rule for rule in applying}
            yield one, [(by_id[wanted.rule], wanted) for wanted in decide(one, applying)]

    def _start(
        self, tx: Transaction, told: Sequence[tuple[Event, Sequence[tuple[Trigger, JobRequest]]]]
    ) -> None:
        experiment = cache(tx.experiments.get)
        requests: dict[str, tuple[JobRequest, Experiment]] = {}
        for event, wanted in told:
            here = experiment(event.experiment or "")
            if here is None or here.state is ExperimentState.CLOSED:
                continue
            for rule, request in wanted:
                if rule.group is None:
                    requests.setdefault(request.key, (request, here))
                else:
                    self._gather(tx, event, rule, request)
        known = tx.jobs.triggered_among(requests.keys())
        self._jobs.follow(tx, *(one for key, one in requests.items() if key not in known))

    def _gather(self, tx: Transaction, event: Event, rule: Trigger, request: JobRequest) -> None:
        now = self._now()
        added = tx.gatherings.add(
            rule.id,
            event.experiment or "",
            request.group or "",
            key=request.key,
            event=event.id,
            boot=now.boot,
            now=now.seconds,
        )
        if added is not None and rule.group is not None and added[1] >= rule.group.at_most:
            self._end(tx, added[0])

    async def end_gatherings(self) -> None:
        """Starts the jobs for which nothing more has come for as long as their rules wait."""

        def work(tx: Transaction) -> None:
            for one in due:
                now = self._now()
                again = tx.gatherings.get_open(one.id)
                if again is None or not self._due(tx, again):
                    continue
                if again.boot != now.boot:  # how long it waited before the machine was started is not known
                    tx.gatherings.wait_again(one.id, boot=now.boot, now=now.seconds)
                else:
                    self._end(tx, again)

        due = await self._store.read(lambda tx: [one for one in tx.gatherings.open() if self._due(tx, one)])
        if due:
            await self._store.write(work)

    def _due(self, tx: Transaction, one: Open) -> bool:
        now = self._now()
        rule = tx.triggers.get(one.rule, one.experiment)
        if rule is None or not rule.enabled or rule.group is None:
            return True
        instrument = tx.instruments.get(rule.instrument)
        if instrument is None or not instrument.automation:
            return False
        return one.boot != now.boot or now.seconds - one.newest >= rule.group.wait

    def _end(self, tx: Transaction, one: Open) -> None:
        """Starts the job of what has been gathered, by the rule as it is now."""
        rule = tx.triggers.get(one.rule, one.experiment)
        experiment = tx.experiments.get(one.experiment)
        occasions = [found for event in tx.gatherings.occasions(one.id) if (found := occasion(tx, event))]
        here = [found for found in occasions if found.experiment == one.experiment]
        if rule is None or not rule.enabled or rule.group is None:
            wanted: JobRequest | str = "the rule does not gather any more"
        elif experiment is None or experiment.state is ExperimentState.CLOSED:
            wanted = f"{one.experiment} is closed"
        else:
            wanted = gather(here, rule)
        if isinstance(wanted, str) or experiment is None:
            tx.gatherings.end(one.id, job=None, reason=str(wanted))
            emit(
                tx,
                "trigger.gave_up",
                actor=SYSTEM.name,
                instrument=experiment.instrument if experiment else None,
                experiment=one.experiment,
                subject=str(one.rule),
                data={"gathering": one.id, "reason": str(wanted)},
            )
            return
        job = tx.jobs.triggered(wanted.key) or self._jobs.follow(tx, (wanted, experiment))[0].id
        tx.gatherings.end(one.id, job=job, reason="")

    async def gatherings(
        self, principal: Principal, rule_id: int, *, after: str | None = None, limit: int = 100
    ) -> Page[TriggerGathering]:
        """What a rule has gathered, newest first, in the experiments that the principal may see."""

        def work(tx: Transaction) -> Page[TriggerGathering]:
            visible_rule(tx, principal, rule_id)
            only = access.visible_experiments(tx, principal)
            found = tx.gatherings.list(rule_id, only=only, after=after, limit=limit)
            return found.model_copy(update={"items": [self._with_due(tx, one) for one in found.items]})

        return await self._store.read(work)

    def _with_due(self, tx: Transaction, one: TriggerGathering) -> TriggerGathering:
        """With the time at which its job starts, where it is known."""
        waits = tx.gatherings.get_open(one.id) if one.ended is None else None
        rule = tx.triggers.get(one.rule, one.experiment)
        instrument = tx.instruments.get(rule.instrument) if rule else None
        if waits is None or rule is None or rule.group is None or instrument is None:
            return one
        if not instrument.automation:
            return one
        now = self._now()
        waited = max(0.0, now.seconds - waits.newest) if waits.boot == now.boot else 0.0
        left = timedelta(seconds=max(0.0, rule.group.wait - waited))
        return one.model_copy(update={"due": datetime.now(UTC) + left})

    # --- what has happened before ---

    async def replay(self, principal: Principal, rule_id: int, request: TriggerReplay) -> Page[TriggerTrial]:
        """Follows a rule, as it applies in their experiments, on what has happened to these before, as far as
        it has not been followed there already."""

        def look(tx: Transaction) -> Sequence[Occasion]:
            rule = require_rule(tx, principal, rule_id)
            return past(tx, rule.event, rule.instrument, rule.experiment, wanted=request.admits)

        def work(tx: Transaction) -> Page[TriggerTrial]:
            return Page(items=self.follow_again(tx, require_rule(tx, principal, rule_id), occasions))

        occasions = await self._store.read(look)  # others have to write meanwhile
        return await self._store.write(work)

    def follow_again(
        self, tx: Transaction, rule: Trigger, occasions: Sequence[Occasion]
    ) -> list[TriggerTrial]:
        """Starts what a rule wants on past occasions, oldest first; tells the newest first."""
        outcomes: list[TriggerTrial] = []
        for name in dict.fromkeys(one.experiment for one in occasions):
            experiment = tx.experiments.get(name)
            here = tx.triggers.get(rule.id, name)
            if experiment is not None and here is not None:
                told = [one for one in occasions if one.experiment == name]
                outcomes += self._again(tx, here, experiment, told)
        return sorted(outcomes, key=lambda outcome: outcome.time, reverse=True)

    def _again(
        self, tx: Transaction, rule: Trigger, experiment: Experiment, occasions: Sequence[Occasion]
    ) -> list[TriggerTrial]:
        if rule.group is None:
            wanted = [([one], judge(one, rule)) for one in occasions]
        else:
            wanted = [(session, gather(session, rule)) for session in sessions(occasions, rule)]
        outcomes = []
        for together, request in wanted:
            outcome = trial(tx, rule, together, request)
            if isinstance(request, JobRequest) and outcome.job is None:
                if experiment.state is ExperimentState.CLOSED:
                    outcome = outcome.model_copy(
                        update={"starts": False, "reason": f"{experiment.id} is closed"}
                    )
                else:
                    [job] = self._jobs.follow(tx, (request, experiment))
                    outcome = outcome.model_copy(update={"job": job.id})
            outcomes.append(outcome)
        return outcomes

    async def make_rule(
        self, principal: Principal, rules: Rules, job_id: int, request: JobRule
    ) -> JobRuleMade:
        """Makes a job the rule of its instrument, and follows that on the datasets that are chosen."""

        def look(tx: Transaction) -> Sequence[Occasion]:
            job = require_job(tx, principal, job_id, Action.OPERATE)
            chosen = TriggerReplay(datasets=request.backfill)
            if request.replaces is None:
                instrument = access.require(tx, principal, job.experiment, Action.OPERATE).instrument
                return past(tx, request.event, instrument, None, wanted=chosen.admits)
            rule = require_rule(tx, principal, request.replaces)
            return past(tx, request.event, rule.instrument, rule.experiment, wanted=chosen.admits)

        def work(tx: Transaction) -> JobRuleMade:
            job = require_job(tx, principal, job_id, Action.OPERATE)
            if job.notebook is not None:
                raise Invalid(
                    f"Job {job.id} was made from a member's own notebook, {job.notebook}.",
                    "Put the notebook into the facility's folder of templates, and run it from there.",
                )
            wanted = TriggerCreate(
                title=request.title or job.title,
                event=request.event,
                pattern=request.pattern,
                condition=request.condition,
                template=job.template,
                parameters=job.parameters,
                profile=job.profile.name,
                sponsor=request.sponsor or job.sponsor,
            )
            if request.replaces is None:
                instrument = access.require(tx, principal, job.experiment, Action.OPERATE).instrument
                rule = rules.add(tx, principal, instrument, None, wanted)
            else:
                change = TriggerChange.model_validate(
                    {**wanted.model_dump(exclude_unset=True), "group": None}
                )
                rule = rules.edit(tx, principal, request.replaces, change)
            return JobRuleMade(rule=rule, backfill=self.follow_again(tx, rule, occasions))

        occasions = await self._store.read(look) if request.backfill else []  # as in a replay
        return await self._store.write(work)

    async def missed(self, principal: Principal, instrument: str) -> Page[TriggerTrial]:
        """The jobs that were not started because automation was paused, newest first."""

        def work(tx: Transaction) -> Page[TriggerTrial]:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            return Page(items=self._missed(tx, tx.missed.of(instrument, limit=MISSED)))

        return await self._store.read(work)

    async def catch_up(self, principal: Principal, instrument: str) -> Page[TriggerTrial]:
        """Starts the jobs that were missed, as if it all happened now: what rules gather waits for more."""

        def work(tx: Transaction) -> Page[TriggerTrial]:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            events = tx.missed.of(instrument, limit=MISSED)
            self._start(tx, [(one.event, wanted) for one, wanted in self._wanted(tx, events)])
            started = self._missed(tx, events)
            tx.missed.forget([event.id for event in events])
            emit(tx, "trigger.caught_up", actor=principal.name, instrument=instrument, subject=instrument)
            return Page(items=started)

        return await self._store.write(work)

    async def forget_missed(self, principal: Principal, instrument: str) -> None:
        """Leaves it at that: what was missed is not listed any longer."""

        def work(tx: Transaction) -> None:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            while events := tx.missed.of(instrument, limit=MISSED):
                tx.missed.forget([event.id for event in events])
            emit(tx, "trigger.forgotten", actor=principal.name, instrument=instrument, subject=instrument)

        await self._store.write(work)

    def _missed(self, tx: Transaction, events: Sequence[Event]) -> list[TriggerTrial]:
        by_rule: dict[tuple[int, int], tuple[Trigger, list[Occasion]]] = {}
        for one, wanted in self._wanted(tx, events):
            for rule, _ in wanted:
                by_rule.setdefault((rule.id, rule.version), (rule, []))[1].append(one)
        outcomes = [outcome for known in by_rule.values() for outcome in trials(tx, *known)]
        return sorted(outcomes, key=lambda outcome: outcome.time, reverse=True)


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
