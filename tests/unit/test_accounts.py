"""Accounts: whatever is granted, held, charged and corrected, whatever expires, and whatever fails between:
every licence is the sum of its ledger, and has at least 0 left.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from beamhub.access import Principal
from beamhub.credits import correct, grant, hold, keep_up, settle
from beamhub.errors import Conflict, NotFound
from beamhub.licences import Licences
from beamhub.schemas import (
    Attempt,
    ExperimentState,
    InstrumentCreate,
    LedgerKind,
    LedgerLine,
    LicenceCreate,
    Role,
    UsageKey,
)
from beamhub.store import Store, Transaction
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.records import job

HOUR = timedelta(hours=1)


def found(tx: Transaction) -> str:
    tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
    experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
    tx.experiments.change(experiment, state=ExperimentState.RUNNING)
    return experiment


@pytest.fixture
def experiment(store: Store) -> str:
    return store.write_sync(found)


def licence(tx: Transaction, id_: str, amount: int = 0) -> None:
    tx.licences.create(LicenceCreate(id=id_, title="Lab", kind="lab", instruments=["sim-mx"]))
    if amount:
        grant(tx, id_, amount, actor="root")


def end(tx: Transaction, job_id: int, used: int) -> int:
    """As beamhub.jobs ends an attempt."""
    charged = settle(tx, job_id, used, actor="ada")
    tx.attempts.note(job_id, ended=datetime.now(UTC), outcome="finished", cpu_seconds=charged)
    return charged


def lines(tx: Transaction, sponsor: str) -> list[LedgerLine]:
    return tx.licences.ledger(sponsor, after=None, limit=1000).items


def total(tx: Transaction, sponsor: str, kind: LedgerKind) -> int:
    return sum(line.cpu_seconds for line in lines(tx, sponsor) if line.kind is kind)


def test_what_is_left_of_a_grant_is_booked_away_at_its_end(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> None:
        licence(tx, "lab", 100)
        now = datetime.now(UTC)
        grant(tx, "lab", 50, actor="root", valid_until=now + HOUR)
        grant(tx, "lab", 30, actor="root", valid_from=now + 10 * HOUR)  # not part of it yet
        one, other = job(tx, experiment, "lab", 20), job(tx, experiment, "lab", 100)
        assert hold(tx, one, actor="ada")
        assert not hold(tx, job(tx, experiment, "lab", 131), actor="ada")
        end(tx, one.id, 20)  # taken from what ends first
        assert [part.left for part in tx.grants.list("lab", after=None, limit=9).items] == [30, 30, 100]
        assert hold(tx, other, actor="ada")  # 100 of 130: only 30 may go
        later = now + 2 * HOUR
        keep_up(tx, now=later)
        assert total(tx, "lab", LedgerKind.EXPIRE) == 30
        keep_up(tx, now=later)
        assert total(tx, "lab", LedgerKind.EXPIRE) == 30
        end(tx, other.id, 90)
        found = tx.licences.get("lab")
        assert found
        assert (found.granted, found.charged, found.held, found.available) == (120, 110, 0, 10)

    store.write_sync(work)


def test_a_late_correction_is_a_line_of_its_own(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> None:
        licence(tx, "lab", 100)
        one = job(tx, experiment, "lab", 60)
        assert hold(tx, one, actor="ada")
        with pytest.raises(Conflict, match="not over yet"):
            correct(tx, one.id, 1, 10, actor="root")
        end(tx, one.id, 50)
        with pytest.raises(NotFound, match="no attempt 2"):
            correct(tx, one.id, 2, 10, actor="root")
        assert correct(tx, one.id, 1, 42, actor="root") == -8
        assert correct(tx, one.id, 1, 42, actor="root") == 0
        assert correct(tx, one.id, 1, 55, actor="root", note="sacct") == 13
        assert correct(tx, one.id, 1, 1000, actor="root") == 5  # no more than was on hold for it
        booked = [line for line in reversed(lines(tx, "lab")) if line.kind is LedgerKind.CORRECTION]
        assert [(line.cpu_seconds, line.job, line.attempt) for line in booked] == [
            (-8, one.id, 1),
            (13, one.id, 1),
            (5, one.id, 1),
        ]
        assert [line.note for line in booked][:2] == ["it used 42 CPU-seconds", "sacct"]
        changed, (attempt,) = tx.jobs.get(one.id), tx.attempts.of_job(one.id)
        assert changed
        assert changed.cpu_seconds == attempt.cpu_seconds == 60

    store.write_sync(work)


def test_a_correction_takes_nothing_that_others_hold(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> None:
        licence(tx, "lab", 100)
        one, other = job(tx, experiment, "lab", 60), job(tx, experiment, "lab", 85)
        assert hold(tx, one, actor="ada")
        end(tx, one.id, 10)
        assert hold(tx, other, actor="ada")
        assert correct(tx, one.id, 1, 60, actor="root") == 5
        end(tx, other.id, 0)
        assert correct(tx, one.id, 1, 60, actor="root") == 45  # what is missing, when there is some

    store.write_sync(work)


def test_little_credit_is_told_once(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> None:
        licence(tx, "lab", 100)

        def told() -> int:
            return sum(event.kind == "licence.low" for event in tx.events.after(0, limit=1000))

        def use(amount: int) -> bool:
            one = job(tx, experiment, "lab", amount)
            assert hold(tx, one, actor="ada")
            end(tx, one.id, amount)
            found = tx.licences.get("lab")
            assert found
            return found.low

        assert not use(89)
        assert told() == 0
        assert use(1)
        assert use(5)
        assert told() == 1
        grant(tx, "lab", 100, actor="root")
        assert not use(1)
        assert use(100)
        assert told() == 2
        events = [event for event in tx.events.after(0, limit=1000) if event.kind == "licence.low"]
        assert {(event.instrument, event.subject) for event in events} == {("sim-mx", "lab")}

    store.write_sync(work)


def test_reports_of_usage_add_up_by_what_is_asked_for(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> None:
        tx.members.add(experiment, "ada", Role.PI, "sam")
        other = tx.experiments.create("sim-mx", "Thaumatin", "eve")
        tx.members.add(other, "eve", Role.PI, "sam")
        licence(tx, "lab", 1000)
        licence(tx, "second", 1000)
        for where, sponsor, used in ((experiment, "lab", 10), (experiment, "second", 20), (other, "lab", 40)):
            one = job(tx, where, sponsor, 60)
            assert hold(tx, one, actor="ada")
            end(tx, one.id, used)
            correct(tx, one.id, 1, used + 1, actor="root")

    store.write_sync(work)
    licences, month = Licences(store), f"{datetime.now(UTC):%Y-%m}"

    async def ask(name: str, *by: UsageKey, **limits: datetime) -> list[tuple[object, ...]]:
        principal = Principal(name, "user", operator=name == "root")
        begin, end = limits.get("begin"), limits.get("end")
        page = await licences.usage(principal, by, begin, end, limit=1)
        rows = list(page.items)
        while page.next is not None:
            page = await licences.usage(principal, by, begin, end, after=page.next, limit=1)
            rows += page.items
        whole = await licences.report(principal, by, begin, end, lambda _, found: repr(list(found)))
        assert whole == repr(rows)
        return [(*(getattr(row, key) for key in by), row.jobs, row.cpu_seconds) for row in rows]

    async def check() -> None:
        both = [(experiment, 2, 32), (experiment.replace("00001", "00002"), 1, 41)]
        for sees_all in ("root", "sam"):
            assert await ask(sees_all, UsageKey.EXPERIMENT) == both
        assert await ask("ada", UsageKey.EXPERIMENT) == both[:1]  # her own only
        assert await ask("eve", UsageKey.LICENCE, UsageKey.MONTH) == [("lab", month, 1, 41)]
        assert await ask("ben", UsageKey.EXPERIMENT) == []
        assert await ask("root", UsageKey.MONTH) == [(month, 3, 73)]
        assert await ask("root", UsageKey.MEMBER, UsageKey.TEMPLATE) == [("ada", "t", 3, 73)]
        now = datetime.now(UTC)
        assert await ask("root", UsageKey.MONTH, end=now - HOUR) == []
        assert await ask("root", UsageKey.MONTH, begin=now - HOUR, end=now + HOUR) == [(month, 3, 73)]

    asyncio.run(check())


AMOUNTS = st.integers(1, 100)


class Interrupted(Exception):  # noqa: N818 (reads as what happened)
    """The service dies before it commits."""


class Accounts(RuleBasedStateMachine):
    """A licence and its jobs, in any interleaving; each step may be interrupted before it is committed."""

    store: Store
    experiment: str
    number = 0

    def __init__(self) -> None:
        super().__init__()
        Accounts.number += 1
        self.sponsor = f"lab-{self.number}"
        self.now = datetime.now(UTC)
        self.jobs: list[int] = []
        self.store.write_sync(lambda tx: licence(tx, self.sponsor))

    def step(self, work: object, dies: bool) -> None:
        def die(tx: Transaction) -> None:
            work(tx)  # type: ignore[operator]
            raise Interrupted

        if dies:
            before = self.state()
            with pytest.raises(Interrupted):
                self.store.write_sync(die)
            assert self.state() == before
        else:
            self.store.write_sync(work)  # type: ignore[arg-type]

    def state(self) -> object:
        return self.store.read_sync(
            lambda tx: (
                tx.licences.get(self.sponsor),
                lines(tx, self.sponsor),
                tx.grants.list(self.sponsor, after=None, limit=1000),
                [(tx.jobs.task(job), tx.attempts.of_job(job)) for job in self.jobs],
            )
        )

    @rule(amount=AMOUNTS, begins=st.integers(-1, 3), lasts=st.none() | st.integers(1, 5), dies=st.booleans())
    def grant(self, amount: int, begins: int, lasts: int | None, dies: bool) -> None:
        begin = self.now + begins * HOUR
        self.step(
            lambda tx: grant(
                tx,
                self.sponsor,
                amount,
                actor="root",
                valid_from=begin,
                valid_until=None if lasts is None else begin + lasts * HOUR,
            ),
            dies,
        )

    @rule(hours=st.integers(1, 3), dies=st.booleans())
    def time_passes(self, hours: int, dies: bool) -> None:
        self.now += hours * HOUR
        self.step(lambda tx: keep_up(tx, self.sponsor, self.now), dies)

    @rule(amount=AMOUNTS)
    def submit(self, amount: int) -> None:
        made = self.store.write_sync(lambda tx: job(tx, self.experiment, self.sponsor, amount))
        self.jobs.append(made.id)

    @rule(which=st.integers(0, 5), dies=st.booleans())
    def hold(self, which: int, dies: bool) -> None:
        def work(tx: Transaction) -> None:
            task, licence = tx.jobs.task(self.jobs[which]), tx.licences.get(self.sponsor)
            assert task
            assert licence
            if task.held == 0:
                held = hold(tx, task.job, actor="ada")
                if held:
                    assert task.job.profile.walltime <= licence.available + _begun(tx, self.sponsor)

        if which < len(self.jobs):
            self.step(work, dies)

    @rule(which=st.integers(0, 5), used=st.integers(-5, 120), dies=st.booleans())
    def charge_and_release(self, which: int, used: int, dies: bool) -> None:
        if which < len(self.jobs):
            self.step(lambda tx: end(tx, self.jobs[which], used), dies)

    @rule(which=st.integers(0, 5), used=st.integers(0, 150), dies=st.booleans())
    def correct(self, which: int, used: int, dies: bool) -> None:
        def work(tx: Transaction) -> None:
            over = [one for one in tx.attempts.of_job(self.jobs[which]) if one.ended]
            if over:
                number = over[used % len(over)].number
                correct(tx, self.jobs[which], number, used, actor="root")

        if which < len(self.jobs):
            self.step(work, dies)

    @invariant()
    def the_licence_is_the_sum_of_its_ledger(self) -> None:
        self.store.read_sync(self.check)

    def check(self, tx: Transaction) -> None:
        found = tx.licences.get(self.sponsor)
        assert found
        sums = {kind: total(tx, self.sponsor, kind) for kind in LedgerKind}
        assert found.granted == sums[LedgerKind.GRANT] - sums[LedgerKind.EXPIRE]
        assert found.charged == sums[LedgerKind.CHARGE] + sums[LedgerKind.CORRECTION]
        assert found.held == sums[LedgerKind.HOLD] - sums[LedgerKind.CHARGE] - sums[LedgerKind.RELEASE]
        assert found.available == found.granted - found.charged - found.held
        assert min(found.granted, found.charged, found.held, found.available) >= 0
        parts = tx.grants.list(self.sponsor, after=None, limit=1000).items
        assert sum(part.left for part in parts if part.counts) == found.granted - found.charged
        assert all(0 <= part.left <= part.cpu_seconds for part in parts)
        tasks = [task for id_ in self.jobs if (task := tx.jobs.task(id_))]
        attempts: list[Attempt] = [one for id_ in self.jobs for one in tx.attempts.of_job(id_)]
        assert found.held == sum(task.held for task in tasks)
        assert found.charged == sum(task.job.cpu_seconds for task in tasks)
        assert found.charged == sum(one.cpu_seconds for one in attempts)


def _begun(tx: Transaction, sponsor: str) -> int:
    """What hold itself has booked meanwhile cannot be more than all that there is."""
    return sum(part.cpu_seconds for part in tx.grants.list(sponsor, after=None, limit=1000).items)


def test_no_interleaving_and_no_crash_breaks_an_account(store: Store, experiment: str) -> None:
    machine = type("Machine", (Accounts,), {"store": store, "experiment": experiment})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )
