"""Rules followed in the store, on SQLite and PostgreSQL: jobs are made and never run here."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import nbformat
import pytest
from beamhub.access import Principal
from beamhub.automation import Automation, Moment
from beamhub.catalogue import Catalogue
from beamhub.errors import Forbidden, Invalid, NotFound
from beamhub.events import emit
from beamhub.jobs import Jobs
from beamhub.plans import profiles
from beamhub.rules import Rules
from beamhub.schemas import (
    DatasetKind,
    DatasetState,
    Event,
    ExperimentState,
    InstrumentCreate,
    Job,
    JobCreate,
    JobRule,
    LicenceCreate,
    Quantity,
    Role,
    Trigger,
    TriggerChange,
    TriggerCreate,
    TriggerGroup,
    TriggerReplay,
    Upload,
    UploadState,
)
from beamhub.store import Store, Transaction
from sqlalchemy.event import listen

START = Moment("this boot", 1000.0)
ADA, SAM = Principal("ada", "user"), Principal("sam", "user")
VARIABLES = {"one": "data", "merge": "datasets", "compare": "jobs", "convert": "file", "greet": ""}
INPUTS = {"one": "dataset", "merge": "datasets", "compare": "jobs", "convert": "file", "greet": "none"}


def template(folder: Path, name: str) -> None:
    """A template named after what it does with what it works on."""
    v4: Any = nbformat.v4
    several = VARIABLES[name] in ("datasets", "jobs")
    cell = f"cpus = 1\n{VARIABLES[name]} = {'[]' if several else repr('')}" if VARIABLES[name] else "cpus = 1"
    notebook = v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "beamhub": {
                "title": name.capitalize(),
                "technique": "testing",
                "description": "For a test.",
                "inputs": INPUTS[name],
                "parameters": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "n": {"type": "integer", "title": "N", "description": "A number.", "default": 0}
                    },
                },
            },
        },
        cells=[v4.new_code_cell(f"{cell}\nn = 0", metadata={"tags": ["parameters"]})],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(v4.writes(notebook))


@dataclass
class Site:
    """An instrument with an experiment, of which nothing but the store is running."""

    store: Store
    folder: Path
    now: Moment = START
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        for name in VARIABLES:
            template(self.folder / "templates", name)
        catalogue = Catalogue([self.folder / "templates"])
        self.jobs = Jobs(self.store, catalogue, profiles(2), self.folder / "data")
        self.rules = Rules(self.store, catalogue, profiles(2))
        self.automation = Automation(self.store, self.jobs, lambda: self.now)

    def found(self) -> str:
        """Makes them, and returns the experiment's id."""

        def work(tx: Transaction) -> str:
            tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
            experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
            tx.experiments.change(experiment, state=ExperimentState.RUNNING)
            tx.members.add(experiment, "ada", Role.PI, "sam")
            tx.licences.create(LicenceCreate(id="lab", title="Lab", kind="lab", instruments=["sim-mx"]))
            tx.licences.grant("lab", 10**9)
            return experiment

        self.experiment = self.store.write_sync(work)
        (self.folder / "data" / self.experiment).mkdir(parents=True)
        return self.experiment

    async def rule(self, name: str, event: str = "dataset.complete", **more: Any) -> Trigger:
        values = {"title": name, "event": event, "template": name, "profile": "cpu-1", "sponsor": "lab"}
        return await self.rules.create(SAM, "sim-mx", TriggerCreate.model_validate({**values, **more}))

    def dataset(self, sample: str = "lyso") -> tuple[int, Event]:
        """A complete dataset of this sample, and the event that tells of it."""

        def work(tx: Transaction) -> tuple[int, Event]:
            number = next(self.numbers)
            dataset = tx.datasets.create(
                experiment=self.experiment,
                name=f"{sample}-{number}",
                path=f"raw/{sample}/{number}_master.h5",
                format="nxmx",
                open_ended=False,
                kind=DatasetKind.ROTATION,
                frames_announced=10,
                shape=(10, 10),
                metadata={"sample_name": Quantity(value=sample)},
                files=[],
            )
            tx.datasets.change(dataset.id, frames_readable=10, state=DatasetState.COMPLETE)
            return dataset.id, self.told(tx, "dataset.complete", str(dataset.id))

        return self.store.write_sync(work)

    def told(self, tx: Transaction, kind: str, subject: str, **data: Any) -> Event:
        return emit(
            tx,
            kind,
            actor="sim-mx",
            instrument="sim-mx",
            experiment=self.experiment,
            subject=subject,
            data=data,
        )

    def follow(self, *events: Event) -> None:
        """As the engine does with what it has read of the log."""
        awaited = self.store.read_sync(lambda tx: self.automation.awaited(tx, events))
        self.store.write_sync(lambda tx: self.automation.follow(tx, awaited))

    async def later(self, seconds: float) -> None:
        self.now = Moment(self.now.boot, self.now.seconds + seconds)
        await self.automation.end_gatherings()

    def made(self) -> Sequence[Job]:
        """All jobs, oldest first."""
        page = self.store.read_sync(lambda tx: tx.jobs.list(only=None, after=None, limit=100))
        return sorted(page.items, key=lambda job: job.id)

    def inputs(self) -> list[list[int | None]]:
        return [[one.id for one in job.inputs] for job in self.made()]


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Site:
    made = Site(store, tmp_path)
    made.found()
    return made


def group(by: str = "sample_name", wait: int = 600, **more: Any) -> TriggerGroup:
    return TriggerGroup(by=by, wait=wait, **more)


async def test_what_the_last_minutes_gave_of_a_sample_is_one_job(site: Site) -> None:
    rule = await site.rule("merge", group=group(at_least=2), parameters={"n": {"expression": "count"}})
    (a, first), (b, second), (_, alone) = site.dataset(), site.dataset(), site.dataset("thaumatin")
    site.follow(first, alone)
    await site.later(599)
    site.follow(second, first)  # told twice
    await site.later(599)
    assert site.made() == []
    [here, other] = (await site.automation.gatherings(ADA, rule.id)).items
    assert [(one.value, one.count, one.reason) for one in (here, other)] == [
        ("thaumatin", 1, "only 1 of at least 2 have come"),
        ("lyso", 2, ""),
    ]
    await site.later(1)
    [job] = site.made()
    assert ([one.id for one in job.inputs], job.parameters) == ([a, b], {"n": 2})
    assert (job.launched_by, job.rule_version) == (f"trigger:{rule.id}", 1)
    site.follow(first, second)  # told once more when all is over
    await site.later(10_000)
    assert len(site.made()) == 1
    last = (await site.automation.gatherings(ADA, rule.id)).items[1]
    assert (last.job, last.ended is not None) == (job.id, True)


async def test_many_jobs_at_once_are_paid_for_as_far_as_it_goes(site: Site) -> None:
    """Credit for two of four; one rule of three can't be followed."""

    def found(tx: Transaction) -> None:
        tx.licences.create(LicenceCreate(id="poor", title="Poor", kind="lab", instruments=["sim-mx"]))
        tx.licences.grant("poor", 2 * 3600)

    site.store.write_sync(found)
    await site.rule("one", sponsor="poor")
    wrong = await site.rule("one", parameters={"n": {"expression": "name"}})
    await site.rule("one")
    events = [site.dataset()[1] for _ in range(4)]
    site.follow(*events, *events)
    made = site.made()
    states = [(job.sponsor, job.rule_version, job.state.value) for job in made]
    assert sorted(states) == [
        *[("lab", 1, "failed")] * 4,
        *[("lab", 1, "queued")] * 4,
        *[("poor", 1, "pending")] * 2,
        *[("poor", 1, "queued")] * 2,
    ]
    reasons = {job.reason for job in made if job.launched_by == f"trigger:{wrong.id}"}
    assert [reason.partition(": ")[0] for reason in reasons] == [
        "The rule that started this job cannot be followed"
    ]

    def look(tx: Transaction) -> tuple[list[int], list[int], list[str]]:
        licences = [tx.licences.get(id_) for id_ in ("lab", "poor")]
        held = [one.held for one in licences if one]
        lines = [tx.licences.ledger(id_, after=None, limit=100).items for id_ in ("lab", "poor")]
        holds = [sum(line.cpu_seconds for line in known if line.kind == "hold") for known in lines]
        told = [one.kind for one in tx.events.after(0, limit=500) if one.kind.startswith("job.")]
        return held, holds, told

    held, holds, told = site.store.read_sync(look)
    assert held == holds == [4 * 3600, 2 * 3600]
    assert [told.count(f"job.{kind}") for kind in ("created", "queued", "pending", "failed")] == [12, 6, 2, 4]
    attempts = site.store.read_sync(lambda tx: [tx.attempts.count(job.id) for job in made])
    assert attempts == [int(job.state.value == "queued") for job in made]


async def test_enough_is_enough(site: Site) -> None:
    await site.rule("merge", group=group("", at_most=2))
    told = [site.dataset() for _ in range(5)]
    site.follow(*(event for _, event in told))
    numbers = [number for number, _ in told]
    assert site.inputs() == [numbers[:2], numbers[2:4]]
    await site.later(600)
    assert site.inputs()[2:] == [numbers[4:]]


async def test_results_of_jobs_are_gathered(site: Site) -> None:
    await site.rule("one")
    await site.rule("compare", "job.finished", condition={"template": "one"}, group=group())
    told = [site.dataset() for _ in range(3)]
    site.follow(*(event for _, event in told))
    processed = site.made()

    def finish(tx: Transaction) -> list[Event]:
        for job in processed:
            tx.jobs.change(job.id, job.state, state="finished")
        return [site.told(tx, "job.finished", str(job.id)) for job in processed]

    site.follow(*site.store.write_sync(finish))
    await site.later(600)
    job = site.made()[-1]
    assert [(one.kind, one.id) for one in job.inputs] == [("job", one.id) for one in processed]
    assert job.parent == processed[-1].id


async def test_a_clock_that_jumps_and_a_machine_that_is_started_again(site: Site) -> None:
    """Uptime counts, which no clock changes; of the time before a machine's start nothing is known."""
    await site.rule("merge", group=group())
    number, event = site.dataset()
    site.follow(event)
    site.now = Moment("another boot", 5.0)
    await site.automation.end_gatherings()
    await site.later(599)
    assert site.made() == []
    await site.later(1)
    assert site.inputs() == [[number]]


async def test_the_rule_counts_as_it_is_when_all_is_gathered(site: Site) -> None:
    rule, off = await site.rule("merge", group=group()), await site.rule("merge", group=group())
    number, event = site.dataset()
    site.follow(event)
    await site.rules.change(SAM, rule.id, TriggerChange(parameters={"n": 5}))
    await site.rules.change(SAM, off.id, TriggerChange(enabled=False))
    await site.later(600)
    [job] = site.made()
    assert (job.parameters, job.rule_version, site.inputs()) == ({"n": 5}, 2, [[number]])
    [given_up] = (await site.automation.gatherings(SAM, off.id)).items
    assert given_up.reason == "the rule does not gather any more"
    kinds = [one.kind for one in site.store.read_sync(lambda tx: tx.events.after(0, limit=100))]
    assert kinds.count("trigger.gave_up") == 1


async def test_gathering_is_tried_out_and_followed_later(site: Site) -> None:
    told = [site.dataset(), site.dataset(), site.dataset("thaumatin")]
    numbers = [number for number, _ in told]
    rule = await site.rule("merge", group=group(at_least=2))
    both = TriggerReplay(datasets=numbers)
    outcomes = (await site.automation.replay(SAM, rule.id, both)).items
    [one] = [outcome for outcome in outcomes if outcome.starts]
    assert [int(subject.id) for subject in one.subjects] == numbers[:2]
    assert [outcome.reason for outcome in outcomes if not outcome.starts] == [
        "only 1 of at least 2 have come"
    ]
    again = (await site.automation.replay(SAM, rule.id, both)).items
    assert {outcome.job for outcome in again} == {one.job, None}
    assert site.inputs() == [numbers[:2]]
    # what comes late by the log is the same job
    site.follow(*(event for _, event in told))
    await site.later(600)
    assert len(site.made()) == 1


async def test_a_long_past_keeps_nobody_from_writing(site: Site) -> None:
    rule = await site.rule("one")
    datasets = [site.dataset()[0] for _ in range(20)]
    statements: list[str] = []
    listen(site.store._write_engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    (outcome,) = (await site.automation.replay(SAM, rule.id, TriggerReplay(datasets=datasets[:1]))).items
    assert outcome.job is not None
    assert sum("FROM datasets" in one for one in statements) < 10
    made = await site.automation.make_rule(SAM, site.rules, outcome.job, JobRule(backfill=datasets[:1]))
    assert len(made.backfill) == 1
    assert sum("FROM datasets" in one for one in statements) < 20


async def test_a_file_and_an_activation_start_jobs(site: Site) -> None:
    await site.rule("convert", "file.complete", pattern="*.csv", priority=4)
    greeting = await site.rule("greet", "experiment.activated")

    def happen(tx: Transaction) -> list[Event]:
        tx.uploads.create(
            Upload(
                id="5f0c",
                experiment=site.experiment,
                instrument="sim-mx",
                path="raw/log.csv",
                size=1,
                offset=1,
                digest=None,
                version=1,
                state=UploadState.COMPLETE,
                created=datetime.now(UTC),
                ended=datetime.now(UTC),
                created_by="sim-mx",
            )
        )
        return [
            site.told(tx, "file.complete", "5f0c", path="raw/log.csv", size=1),
            site.told(tx, "file.complete", "5f0d", path="raw/log.txt", size=1),
            site.told(tx, "experiment.activated", site.experiment),
        ]

    events = site.store.write_sync(happen)
    site.follow(*events)
    site.follow(*events)
    convert, greet = site.made()
    assert [(one.kind, one.name) for one in convert.inputs] == [("file", "raw/log.csv")]
    assert (convert.priority, convert.reason, greet.inputs, greet.reason) == (4, "", [], "")
    [again] = (
        await site.automation.replay(SAM, greeting.id, TriggerReplay(experiments=[site.experiment]))
    ).items
    assert (again.job, again.subjects[0].kind) == (greet.id, "experiment")


@pytest.mark.parametrize(
    ("name", "event", "more"),
    [
        ("convert", "dataset.complete", {}),
        ("one", "file.complete", {}),
        ("one", "experiment.activated", {}),
        ("compare", "dataset.complete", {}),
        ("one", "dataset.complete", {"group": {"wait": 5}}),
        ("merge", "dataset.complete", {"group": {"wait": 5, "by": "open('x')"}}),
        ("greet", "experiment.activated", {"group": {"wait": 5}}),
    ],
)
async def test_a_rule_brings_what_its_template_takes(
    site: Site, name: str, event: str, more: dict[str, Any]
) -> None:
    with pytest.raises(Invalid):
        await site.rule(name, event, **more)


async def test_what_happens_during_a_pause_is_listed_and_made_up_for(site: Site) -> None:
    rule = await site.rule("one")
    await site.rule("one", pattern="other*")
    number, event = site.dataset()
    _, unwanted = site.dataset("thaumatin")
    await site.rules.change(SAM, rule.id, TriggerChange(pattern="lyso*"))

    def pause(tx: Transaction, *, automation: bool) -> None:
        tx.instruments.change("sim-mx", automation=automation)

    site.store.write_sync(lambda tx: pause(tx, automation=False))
    site.follow(event, event, unwanted)
    site.follow(event)
    assert site.made() == []
    for who, error in ((ADA, Forbidden), (Principal("eve", "user"), NotFound)):
        with pytest.raises(error):
            await site.automation.missed(who, "sim-mx")
        with pytest.raises(error):
            await site.automation.catch_up(who, "sim-mx")
        with pytest.raises(error):
            await site.automation.forget_missed(who, "sim-mx")
    [missed] = (await site.automation.missed(SAM, "sim-mx")).items
    assert (missed.rule, missed.subjects[0].id, missed.starts) == (rule.id, str(number), True)
    site.store.write_sync(lambda tx: pause(tx, automation=True))
    [started] = (await site.automation.catch_up(SAM, "sim-mx")).items
    assert site.inputs() == [[number]]
    assert started.job == site.made()[0].id
    assert (await site.automation.catch_up(SAM, "sim-mx")).items == []
    assert len(site.made()) == 1

    site.store.write_sync(lambda tx: pause(tx, automation=False))
    site.follow(site.dataset()[1])
    await site.automation.forget_missed(SAM, "sim-mx")
    assert (await site.automation.missed(SAM, "sim-mx")).items == []


async def test_a_job_becomes_the_rule(site: Site) -> None:
    before = [site.dataset()[0] for _ in range(3)]
    wish = JobCreate(template="one", parameters={"n": 8}, inputs=before[:1], profile="cpu-2", sponsor="lab")
    job = await site.jobs.submit(ADA, site.experiment, wish)
    with pytest.raises(Forbidden):
        await site.automation.make_rule(ADA, site.rules, job.id, JobRule())
    with pytest.raises(NotFound):
        await site.automation.make_rule(Principal("eve", "user"), site.rules, job.id, JobRule())
    chosen = JobRule(pattern="lyso*", backfill=before[1:])
    made = await site.automation.make_rule(SAM, site.rules, job.id, chosen)
    rule = made.rule
    assert (rule.template, rule.parameters, rule.profile, rule.sponsor) == ("one", {"n": 8}, "cpu-2", "lab")
    assert (rule.title, rule.event, rule.pattern) == ("One", "dataset.complete", "lyso*")
    assert sorted(outcome.job or 0 for outcome in made.backfill) == [one.id for one in site.made()[1:]]
    assert site.inputs() == [[number] for number in before]
    assert {(one.parameters["n"], one.profile.name) for one in site.made()} == {(8, "cpu-2")}
    number, event = site.dataset()
    site.follow(event)
    assert site.inputs()[3:] == [[number]]

    replacing = JobRule(replaces=rule.id, title="Better", backfill=[number])
    again = await site.automation.make_rule(SAM, site.rules, job.id, replacing)
    assert (again.rule.id, again.rule.version, again.rule.title) == (rule.id, 2, "Better")
    assert len(again.backfill) == 1
    assert len((await site.rules.list(SAM, "sim-mx")).items) == 1


async def test_nothing_that_was_gathered_is_started_during_a_pause(site: Site) -> None:
    await site.rule("merge", group=group())
    number, event = site.dataset()
    site.follow(event)
    site.store.write_sync(lambda tx: tx.instruments.change("sim-mx", automation=False))
    await site.later(10_000)
    assert site.made() == []
    site.store.write_sync(lambda tx: tx.instruments.change("sim-mx", automation=True))
    await site.automation.end_gatherings()
    assert site.inputs() == [[number]]


def in_another_process(url: str, folder: str, experiment: str, start: Barrier) -> None:
    """Delivers all events ten times at once, and ends what has been gathered."""
    store = Store(url)
    site = Site(store, Path(folder), now=Moment("this boot", 10_000.0))
    site.experiment = experiment
    events = store.read_sync(lambda tx: tx.events.after(0, limit=100))
    start.wait(timeout=60)
    with ThreadPoolExecutor(10) as threads:
        list(threads.map(lambda _: site.follow(*events), range(10)))
        start.wait(timeout=60)
        site.now = Moment("this boot", 10_060.0)
        list(threads.map(lambda _: asyncio.run(site.automation.end_gatherings()), range(10)))
    store.close()


async def test_ten_deliveries_in_each_of_two_processes_start_one_job(site: Site) -> None:
    await site.rule("one")
    await site.rule("merge", group=group(wait=60))
    numbers = [site.dataset()[0] for _ in range(3)]
    url = site.store._write_engine.url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    arguments = (url, str(site.folder), site.experiment, start)
    others = [context.Process(target=in_another_process, args=arguments) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        await asyncio.to_thread(other.join, 120)
    assert [other.exitcode for other in others] == [0, 0]
    assert sorted(job.template for job in site.made()) == ["merge", "one", "one", "one"]
    assert numbers in site.inputs()
