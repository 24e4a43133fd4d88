"""Instruments, experiments, members and files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from beamhub.access import Principal
from beamhub.errors import Conflict, Forbidden, Invalid, NotFound
from beamhub.events import Live
from beamhub.experiments import TRANSITIONS, Experiments
from beamhub.orders import Orders
from beamhub.schemas import (
    Event,
    Experiment,
    ExperimentChange,
    ExperimentCreate,
    ExperimentState,
    FileProgress,
    Heartbeat,
    InstrumentChange,
    InstrumentCreate,
    MemberCreate,
    Role,
)
from beamhub.store import Store

OPERATOR = Principal("root", "user", operator=True)
SAM, ADA, BEN, EVE = (Principal(name, "user") for name in ("sam", "ada", "ben", "eve"))


@dataclass
class Lab:
    store: Store
    live: Live
    folder: Path
    experiments: Experiments

    async def beamtime(self, pi: str = "ada") -> Experiment:
        request = ExperimentCreate(instrument="mx", title="Lysozyme", pi=pi)
        return await self.experiments.create(SAM, request)

    async def activate(self, experiment: str | None) -> None:
        await self.experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=experiment))

    def events(self) -> list[Event]:
        return list(self.store.read_sync(lambda tx: tx.events.after(0, limit=1000)))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events()]


@pytest.fixture
async def lab(tmp_path: Path, database_url: str) -> AsyncIterator[Lab]:
    store = Store(database_url)
    store.migrate()
    live = Live()
    data = tmp_path / "data"
    data.mkdir()
    lab = Lab(store, live, data, Experiments(store, data))
    await lab.experiments.create_instrument(OPERATOR, InstrumentCreate(id="mx", title="MX", staff=["sam"]))
    yield lab
    store.close()


async def test_only_operators_make_instruments_and_only_once(lab: Lab) -> None:
    request = InstrumentCreate(id="mx", title="MX")
    with pytest.raises(Conflict):
        await lab.experiments.create_instrument(OPERATOR, request)
    for somebody in (SAM, ADA, EVE):
        with pytest.raises(Forbidden):
            await lab.experiments.create_instrument(somebody, InstrumentCreate(id="new", title="New"))


async def test_staff_change_their_instrument_but_not_its_staff(lab: Lab) -> None:
    changed = await lab.experiments.change_instrument(
        SAM, "mx", InstrumentChange(title="MX 2", automation=False)
    )
    assert (changed.title, changed.automation) == ("MX 2", False)
    with pytest.raises(Forbidden):
        await lab.experiments.change_instrument(SAM, "mx", InstrumentChange(staff=["sam", "eve"]))
    await lab.experiments.change_instrument(OPERATOR, "mx", InstrumentChange(staff=["olga"]))
    with pytest.raises(NotFound):
        await lab.experiments.change_instrument(SAM, "mx", InstrumentChange(title="mine again"))
    with pytest.raises(Invalid):
        await lab.experiments.change_instrument(OPERATOR, "mx", InstrumentChange(title=None))


async def test_a_change_that_changes_nothing_is_no_event(lab: Lab) -> None:
    before = lab.kinds()
    await lab.experiments.change_instrument(SAM, "mx", InstrumentChange(title="MX"))
    assert lab.kinds() == before


async def test_a_token_is_the_agents_until_the_next_one(lab: Lab) -> None:
    first = (await lab.experiments.rotate_token(SAM, "mx")).token
    agent = await lab.experiments.instrument_by_token(first)
    assert agent == Principal("instrument:mx", "instrument", instrument="mx")
    second = (await lab.experiments.rotate_token(SAM, "mx")).token
    assert await lab.experiments.instrument_by_token(first) is None
    assert await lab.experiments.instrument_by_token(second) == agent
    assert await lab.experiments.instrument_by_token("") is None
    assert second not in repr(lab.events())
    assert second.encode() not in b"".join(
        file.read_bytes() for file in lab.folder.parent.glob("beamhub.db*")
    )
    for somebody in (EVE, agent):
        with pytest.raises((NotFound, Forbidden)):
            await lab.experiments.rotate_token(somebody, "mx")


async def test_members_of_other_experiments_do_not_learn_who_measures(lab: Lab) -> None:
    agent = Principal("instrument:mx", "instrument", instrument="mx")
    own, other = await lab.beamtime(), await lab.beamtime("ben")
    file = FileProgress(name="raw/secret_compound.h5", size=2, sent=1)
    await Orders(lab.store, lab.live).heartbeat(
        agent, "mx", Heartbeat(host="d", version="1", current=[file], errors=["secret"])
    )
    await lab.activate(other.id)
    seen = (await lab.experiments.instruments(ADA)).items[0]
    assert seen.active_experiment is None
    assert "secret" not in seen.model_dump_json()
    for somebody in (SAM, BEN, OPERATOR, agent):
        assert (await lab.experiments.instrument(somebody, "mx")).active_experiment == other.id

    # of what was begun before the switch, the new experiment's members learn nothing either
    files = [FileProgress(name=f"{id_}.h5", size=2, sent=1, experiment=id_) for id_ in (own.id, other.id)]
    beat = Heartbeat(host="d", version="1", current=files, file_errors=[f"{own.id}.cbf is gone"])
    with lab.live.subscribe() as queue:
        await Orders(lab.store, lab.live).heartbeat(agent, "mx", beat)
        messages = [await asyncio.wait_for(queue.get(), 30) for _ in range(2)]
    told = {message.experiment: repr(message.data) for message in messages}
    assert told.keys() == {other.id, None}
    assert own.id not in told[other.id]
    assert own.id in told[None]
    ben = await lab.experiments.instrument(BEN, "mx")
    assert ben.agent
    assert [file.experiment for file in ben.agent.current] == [other.id]
    assert own.id not in ben.model_dump_json()
    assert own.id in (await lab.experiments.instrument(SAM, "mx")).model_dump_json()
    await lab.activate(own.id)
    assert (await lab.experiments.instrument(ADA, "mx")).active_experiment == own.id
    with pytest.raises(NotFound):
        await lab.experiments.instrument(EVE, "mx")
    assert (await lab.experiments.instruments(EVE)).items == []


async def test_a_new_experiment_has_folders_a_pi_and_a_number(lab: Lab) -> None:
    experiment = await lab.beamtime()
    year = experiment.created.year
    assert experiment.id == f"mx-{year}-00001"
    assert experiment.state is ExperimentState.PLANNED
    assert experiment.folder == str(lab.folder / experiment.id)
    made = {path.name for path in lab.folder.glob(f"{experiment.id}/*")}
    assert made == {"raw", "processed", "shared", ".incoming"}
    assert (await lab.experiments.get(ADA, experiment.id)).role is Role.PI
    assert [m.user for m in (await lab.experiments.members(ADA, experiment.id)).items] == ["ada"]
    assert lab.kinds() == ["instrument.created", "experiment.created", "member.added"]
    for somebody in (ADA, EVE):
        with pytest.raises((Forbidden, NotFound)):
            await lab.experiments.create(somebody, ExperimentCreate(instrument="mx", title="t", pi="ada"))


async def test_experiments_made_at_once_get_different_numbers(lab: Lab) -> None:
    made = await asyncio.gather(*(lab.beamtime() for _ in range(20)))
    assert len({experiment.id for experiment in made}) == 20


async def test_activation_starts_an_experiment_and_ends_the_one_before(lab: Lab) -> None:
    first, second = await lab.beamtime(), await lab.beamtime("ben")
    await lab.activate(first.id)
    running = await lab.experiments.get(ADA, first.id)
    assert (running.state, running.active) == (ExperimentState.RUNNING, True)
    assert running.started
    await lab.activate(second.id)
    stopped = await lab.experiments.get(ADA, first.id)
    assert (stopped.state, stopped.active) == (ExperimentState.RUNNING, False)
    await lab.activate(None)
    assert (await lab.experiments.instrument(SAM, "mx")).active_experiment is None
    started, changed, stopped_ = "experiment.activated", "experiment.changed", "experiment.deactivated"
    assert lab.kinds()[-6:] == [changed, started, stopped_, changed, started, stopped_]
    with pytest.raises(NotFound):
        await lab.activate("mx-1999-00001")


async def test_an_experiment_of_another_instrument_can_not_be_activated(lab: Lab) -> None:
    await lab.experiments.create_instrument(OPERATOR, InstrumentCreate(id="other", title="O", staff=["sam"]))
    request = ExperimentCreate(instrument="other", title="t", pi="ada")
    elsewhere = await lab.experiments.create(SAM, request)
    with pytest.raises(Conflict):
        await lab.activate(elsewhere.id)


async def test_every_transition_of_state(lab: Lab) -> None:
    for start in ExperimentState:
        for end in ExperimentState:
            experiment = await lab.beamtime()
            lab.store.write_sync(lambda tx: tx.experiments.change(experiment.id, state=start))  # noqa: B023
            change = lab.experiments.change(SAM, experiment.id, ExperimentChange(state=end))
            if start is end or end in TRANSITIONS[start]:
                assert (await change).state is end
            else:
                with pytest.raises(Conflict):
                    await change


async def test_an_experiment_that_stops_running_is_no_longer_active(lab: Lab) -> None:
    experiment = await lab.beamtime()
    await lab.activate(experiment.id)
    changed = await lab.experiments.change(
        ADA, experiment.id, ExperimentChange(state=ExperimentState.PROCESSING)
    )
    assert not changed.active
    assert changed.ended
    assert (await lab.experiments.instrument(SAM, "mx")).active_experiment is None
    assert lab.kinds()[-2:] == ["experiment.deactivated", "experiment.changed"]
    await lab.activate(experiment.id)  # more beamtime after all
    again = await lab.experiments.get(ADA, experiment.id)
    assert (again.state, again.ended, again.started) == (ExperimentState.RUNNING, None, changed.started)


async def test_a_closed_experiment_is_reopened_by_staff_only(lab: Lab) -> None:
    experiment = await lab.beamtime()
    await lab.experiments.change(ADA, experiment.id, ExperimentChange(state=ExperimentState.CLOSED))
    reopen = ExperimentChange(state=ExperimentState.PROCESSING)
    with pytest.raises(Forbidden):
        await lab.experiments.change(ADA, experiment.id, reopen)
    with pytest.raises(Conflict):
        await lab.activate(experiment.id)
    reopen = ExperimentChange(state=ExperimentState.PROCESSING, reason="another look at the data")
    assert (await lab.experiments.change(SAM, experiment.id, reopen)).state is ExperimentState.PROCESSING
    data = lab.events()[-1].data
    assert data == {"state": ExperimentState.PROCESSING, "reason": "another look at the data"}
    before = lab.kinds()
    await lab.experiments.change(SAM, experiment.id, reopen)  # a reason alone is no change
    assert lab.kinds() == before


async def test_members_come_change_and_go(lab: Lab) -> None:
    id_ = (await lab.beamtime()).id
    with pytest.raises(NotFound):
        await lab.experiments.get(BEN, id_)
    assert (await lab.experiments.add_member(ADA, id_, MemberCreate(user="ben"))).role is Role.COLLABORATOR
    assert (await lab.experiments.get(BEN, id_)).role is Role.COLLABORATOR
    before = len(lab.events())
    await lab.experiments.add_member(ADA, id_, MemberCreate(user="ben"))
    assert len(lab.events()) == before
    with pytest.raises(Forbidden):
        await lab.experiments.add_member(BEN, id_, MemberCreate(user="eve"))
    await lab.experiments.add_member(ADA, id_, MemberCreate(user="ben", role=Role.VIEWER))
    assert (await lab.experiments.get(BEN, id_)).role is Role.VIEWER
    with pytest.raises(Forbidden):
        await lab.experiments.remove_member(BEN, id_, "ada")
    with pytest.raises(Conflict):
        await lab.experiments.remove_member(SAM, id_, "ada")
    with pytest.raises(Conflict):
        await lab.experiments.add_member(SAM, id_, MemberCreate(user="ada", role=Role.VIEWER))
    await lab.experiments.remove_member(BEN, id_, "ben")
    with pytest.raises(NotFound):
        await lab.experiments.get(BEN, id_)
    await lab.experiments.remove_member(ADA, id_, "ben")  # again: nothing to do
    assert lab.kinds()[-3:] == ["member.added", "member.added", "member.removed"]


async def test_a_list_holds_what_one_may_see(lab: Lab) -> None:
    first = await lab.beamtime()
    second = await lab.beamtime("ben")
    for somebody, ids in ((ADA, [first.id]), (BEN, [second.id]), (EVE, []), (SAM, [second.id, first.id])):
        assert [e.id for e in (await lab.experiments.list(somebody)).items] == ids
    assert [e.id for e in (await lab.experiments.list(OPERATOR, limit=1)).items] == [second.id]


async def test_files_are_listed_in_pages_and_opened(lab: Lab) -> None:
    experiment = await lab.beamtime()
    folder = Path(experiment.folder)
    (folder / ".incoming" / "part").write_text("unfinished")
    (folder / "raw" / "a.h5").write_text("aa")
    (folder / "shared" / "n.ipynb").write_text("{}")
    (folder / "shared" / "link").symlink_to("/etc/passwd")
    page = await lab.experiments.files(ADA, experiment.id, limit=1)
    assert ([file.path for file in page.items], page.next) == (["raw/a.h5"], "raw/a.h5")
    page = await lab.experiments.files(ADA, experiment.id, after=page.next)
    assert ([file.path for file in page.items], page.next) == (["shared/n.ipynb"], None)
    assert [f.path for f in (await lab.experiments.files(ADA, experiment.id, "raw")).items] == ["raw/a.h5"]
    with await lab.experiments.open_file(ADA, experiment.id, "raw/a.h5") as file:
        assert hashlib.sha256(file.read()).hexdigest() == hashlib.sha256(b"aa").hexdigest()
    for path in ("shared/link", "raw", "raw/none"):
        with pytest.raises(NotFound):
            await lab.experiments.open_file(ADA, experiment.id, path)
    for path in ("../other", ".incoming/part", "/etc/passwd"):
        with pytest.raises(Invalid):
            await lab.experiments.open_file(ADA, experiment.id, path)
    for ask in (
        lab.experiments.files(EVE, experiment.id),
        lab.experiments.open_file(EVE, experiment.id, "raw/a.h5"),
    ):
        with pytest.raises(NotFound):
            await ask


async def test_me(lab: Lab) -> None:
    assert (await lab.experiments.me(SAM)).staff_of == ["mx"]
    assert (await lab.experiments.me(EVE)).staff_of == []
    assert (await lab.experiments.me(OPERATOR)).operator
