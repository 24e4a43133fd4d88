"""Credits: the ledger adds up, and no interleaving overdraws a licence; and who manages and uses it."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from beamhub import access
from beamhub.access import Action, Principal
from beamhub.credits import grant, hold, hours, shortage
from beamhub.errors import Conflict, Forbidden, Invalid, NotFound
from beamhub.licences import Licences
from beamhub.schemas import (
    ExperimentState,
    Grant,
    InstrumentCreate,
    Job,
    LabTerms,
    LedgerKind,
    LedgerLine,
    Licence,
    LicenceCreate,
    Profile,
    Role,
    SponsorshipRule,
)
from beamhub.sponsors import require_sponsor, require_terms, require_usable, usable
from beamhub.store import Store, Transaction

from tests.records import job

ADA = Principal("ada", "user")
SAM = Principal("sam", "user")
EVE = Principal("eve", "user")
OPERATOR = Principal("root", "user", operator=True)
SECOND = Profile(name="cpu-1", title="1 CPU", cpus=1, memory=1, walltime=1)

numbers = itertools.count(1)


@pytest.fixture
def experiment(store: Store) -> str:
    """One of ada's on sim-mx, whose staff is sam."""

    def work(tx: Transaction) -> str:
        tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
        return tx.experiments.create("sim-mx", "Lysozyme", "ada")

    return store.write_sync(work)


def licence(tx: Transaction, amount: int, **values: object) -> str:
    """A lab licence with so many CPU-seconds."""
    request = LicenceCreate.model_validate(
        {"id": f"lab-{next(numbers)}", "title": "Lab", "kind": "lab", "instruments": ["sim-mx"], **values}
    )
    tx.licences.create(request)
    if amount:
        grant(tx, request.id, amount, actor="root")
    return request.id


def ledger(tx: Transaction, sponsor: str) -> list[LedgerLine]:
    page = tx.licences.ledger(sponsor, after=None, limit=1000)
    assert page.next is None
    return page.items


def assert_adds_up(tx: Transaction, sponsor: str) -> Licence:
    """The licence's columns are the sums of its ledger's lines, and it is not overdrawn."""
    found = tx.licences.get(sponsor)
    assert found
    total = {
        kind: sum(line.cpu_seconds for line in ledger(tx, sponsor) if line.kind is kind)
        for kind in LedgerKind
    }
    assert found.granted == total[LedgerKind.GRANT] - total[LedgerKind.EXPIRE]
    assert found.charged == total[LedgerKind.CHARGE] + total[LedgerKind.CORRECTION]
    assert found.held == total[LedgerKind.HOLD] - total[LedgerKind.CHARGE] - total[LedgerKind.RELEASE]
    assert found.available == found.granted - found.charged - found.held >= 0
    parts = tx.grants.list(sponsor, after=None, limit=1000).items
    assert sum(part.left for part in parts if part.counts) == found.granted - found.charged
    assert all(0 <= part.left <= part.cpu_seconds for part in parts)
    return found


def test_many_threads_hold_exactly_what_there_is(store: Store, experiment: str) -> None:
    def prepare(tx: Transaction) -> tuple[str, list[Job]]:
        sponsor = licence(tx, 100)
        return sponsor, [job(tx, experiment, sponsor) for _ in range(130)]

    sponsor, jobs = store.write_sync(prepare)
    with ThreadPoolExecutor(8) as threads:
        held = list(threads.map(lambda one: store.write_sync(lambda tx: hold(tx, one, actor="ada")), jobs))
    assert held.count(True) == 100
    assert store.read_sync(lambda tx: assert_adds_up(tx, sponsor)).available == 0


HOLD_ALL = """
import sys
from beamhub import credits
from beamhub.store import Store
store = Store(sys.argv[1])
jobs = [store.read_sync(lambda tx: tx.jobs.get(int(id_))) for id_ in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.readline()
print(sum(store.write_sync(lambda tx: credits.hold(tx, job, actor="ada")) for job in jobs))
store.close()
"""


def test_many_processes_hold_exactly_what_there_is(store: Store, experiment: str) -> None:
    def prepare(tx: Transaction) -> tuple[str, list[Job]]:
        sponsor = licence(tx, 100)
        return sponsor, [job(tx, experiment, sponsor) for _ in range(120)]

    sponsor, jobs = store.write_sync(prepare)
    url = store._write_engine.url.render_as_string(hide_password=False)
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD_ALL, url, *(str(one.id) for one in jobs[start::3])],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for start in range(3)
        ]
        for process in processes:  # all are ready before any begins
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        held = [int(process.communicate()[0]) for process in processes]
    assert sum(held) == 100
    assert store.read_sync(lambda tx: assert_adds_up(tx, sponsor)).available == 0


def test_an_expired_licence_holds_nothing(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> None:
        sponsor = licence(tx, 100, valid_until=datetime.now(UTC) - timedelta(seconds=1))
        assert not hold(tx, job(tx, experiment, sponsor), actor="ada")
        found = assert_adds_up(tx, sponsor)
        assert "expired" in shortage(found, SECOND)
        assert sponsor not in [one.id for one in usable(tx, ADA, "sim-mx")]

    store.write_sync(work)


def test_a_shortage_says_how_much_is_missing(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> str:
        found = tx.licences.get(licence(tx, 900))
        assert found
        return shortage(found, Profile(name="p", title="2 CPUs", cpus=2, memory=1, walltime=3600))

    reason = store.write_sync(work)
    assert "2 CPU-h" in reason
    assert "0.25 left" in reason


def test_hours_are_short() -> None:
    assert [hours(seconds) for seconds in (0, 900, 3600, 36000, 5)] == ["0", "0.25", "1", "10", "0"]


async def test_who_sees_and_manages_licences(store: Store, experiment: str) -> None:
    licences = Licences(store)
    lab = LicenceCreate(id="lab-mx", title="Lab", kind="lab", instruments=["sim-mx"], cpu_hours=2)
    own = LicenceCreate(id="ada-own", title="Ada", kind="user", owner="ada")
    assert (await licences.create(OPERATOR, lab)).granted == 7200
    await licences.create(OPERATOR, own)
    with pytest.raises(Forbidden):
        await licences.create(SAM, own)
    with pytest.raises(Forbidden):
        await licences.grant(ADA, "ada-own", Grant(cpu_hours=1))
    with pytest.raises(Conflict):
        await licences.create(OPERATOR, own)
    for wrong in (
        {"kind": "user", "instruments": ["sim-mx"]},
        {"kind": "lab", "owner": "ada"},
        {"kind": "lab"},
        {"kind": "user", "owner": "ada", "valid_until": datetime(2030, 1, 1)},  # noqa: DTZ001
    ):
        with pytest.raises(Invalid):
            await licences.create(
                OPERATOR, LicenceCreate.model_validate({"id": "wrong", "title": "Wrong", **wrong})
            )

    async def seen(principal: Principal) -> list[str]:
        return [one.id for one in (await licences.list(principal)).items]

    assert await seen(OPERATOR) == ["ada-own", "lab-mx"]
    assert await seen(ADA) == ["ada-own"]
    assert await seen(SAM) == ["lab-mx"]
    assert await seen(EVE) == []
    with pytest.raises(NotFound):
        await licences.get(EVE, "lab-mx")
    with pytest.raises(NotFound):
        await licences.ledger(ADA, "lab-mx")

    granted = await licences.grant(OPERATOR, "lab-mx", Grant(cpu_hours=0.5, note="beam lost"))
    assert granted.granted == 9000
    lines = (await licences.ledger(SAM, "lab-mx")).items
    assert [(line.kind, line.cpu_seconds, line.note) for line in lines] == [
        ("grant", 1800, "beam lost"),
        ("grant", 7200, "first grant"),
    ]

    assert [one.id for one in await licences.sponsors(SAM, experiment)] == ["lab-mx"]
    with pytest.raises(NotFound):
        await licences.sponsors(EVE, experiment)


def test_only_own_and_lab_licences_pay(store: Store, experiment: str) -> None:
    def work(tx: Transaction) -> None:
        tx.instruments.create(InstrumentCreate(id="other", title="O"))
        licence(tx, 1, id="lab-mx")
        licence(tx, 1, id="lab-other", instruments=["other"])
        for name in ("ada", "eve"):
            licence(tx, 1, id=f"{name}-own", kind="user", owner=name, instruments=[])
        assert {one.id for one in usable(tx, ADA, "sim-mx")} == {"ada-own", "lab-mx"}
        require_usable(tx, ADA, "sim-mx", "lab-mx")
        for foreign in ("eve-own", "lab-other", "none"):
            with pytest.raises(Invalid) as error:
                require_usable(tx, ADA, "sim-mx", foreign)
            assert "ada-own, lab-mx" in error.value.remedy

    store.write_sync(work)


RUNNING_ONLY = SponsorshipRule(states=[ExperimentState.RUNNING])


async def test_who_says_for_what_a_lab_pays(store: Store, experiment: str) -> None:
    def prepare(tx: Transaction) -> None:
        tx.instruments.create(InstrumentCreate(id="other", title="O"))
        licence(tx, 1, id="lab-mx")
        licence(tx, 1, id="lab-both", instruments=["sim-mx", "other"])
        licence(tx, 1, id="ada-own", kind="user", owner="ada", instruments=[])

    store.write_sync(prepare)
    licences, terms = Licences(store), LabTerms(rules=[RUNNING_ONLY])
    assert (await licences.set_terms(SAM, "lab-mx", terms)).terms == [RUNNING_ONLY]
    assert (await licences.set_terms(OPERATOR, "lab-both", terms)).terms == [RUNNING_ONLY]
    with pytest.raises(NotFound):
        await licences.set_terms(ADA, "lab-mx", terms)
    with pytest.raises((Forbidden, NotFound)):  # sam looks after one of the two only
        await licences.set_terms(SAM, "lab-both", LabTerms(rules=[]))
    with pytest.raises(Invalid, match="user's own licence"):
        await licences.set_terms(OPERATOR, "ada-own", terms)
    for wrong in ({"instruments": ["other"]}, {"experiments": ["sim-mx-1999-00001"]}):
        with pytest.raises(Invalid):
            await licences.set_terms(SAM, "lab-mx", LabTerms(rules=[SponsorshipRule.model_validate(wrong)]))
    told = [e for e in store.read_sync(lambda tx: tx.events.after(0, limit=100)) if e.kind == "licence.terms"]
    assert [(e.actor, e.subject, e.data["rules"]) for e in told] == [
        ("sam", "lab-mx", ["while the experiment is running"]),
        ("root", "lab-both", ["while the experiment is running"]),
    ]


async def test_a_refused_sponsor_says_why_and_what_to_choose_instead(store: Store, experiment: str) -> None:
    def prepare(tx: Transaction) -> None:
        tx.members.add(experiment, "ada", Role.PI, "sam")
        licence(tx, 1, id="lab-mx", terms=[RUNNING_ONLY.model_dump()])
        licence(tx, 1, id="ada-own", kind="user", owner="ada", instruments=[])

    store.write_sync(prepare)
    why = "The licence lab-mx pays on sim-mx only while the experiment is running."
    sponsors = await Licences(store).sponsors(ADA, experiment)
    assert {one.id: one.refusal for one in sponsors} == {"lab-mx": why, "ada-own": ""}

    def ask(tx: Transaction) -> None:
        shown = access.require(tx, ADA, experiment, Action.RUN_JOB)
        require_sponsor(tx, ADA, shown, "dials", "ada-own")
        with pytest.raises(Invalid) as error:
            require_sponsor(tx, ADA, shown, "dials", "lab-mx")
        assert str(error.value) == f"{why} Choose your own licence ada-own."
        with pytest.raises(Invalid, match="only while the experiment is running"):
            require_terms(tx, shown, "dials", "lab-mx")
        tx.experiments.change(experiment, state=ExperimentState.RUNNING)
        shown = access.require(tx, ADA, experiment, Action.RUN_JOB)
        require_sponsor(tx, ADA, shown, "dials", "lab-mx")
        require_terms(tx, shown, "dials", "lab-mx")

    store.write_sync(ask)
