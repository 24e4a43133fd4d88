"""What the staff tell an agent reaches it, whatever is lost on the way, and all of it is on record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from beamhub.access import Principal
from beamhub.errors import Conflict, Forbidden, NotFound
from beamhub.events import Live
from beamhub.orders import MOST, Orders, order
from beamhub.schemas import (
    AgentFile,
    AgentFiles,
    AgentOrders,
    CommandKind,
    Event,
    FilesChoice,
    Heartbeat,
    InstrumentCreate,
    JournalLine,
    JournalReport,
    SkipRequest,
)
from beamhub.store import Store
from pydantic import ValidationError

SAM, EVE = Principal("sam", "user"), Principal("eve", "user")
AGENT = Principal("instrument:mx", "instrument", instrument="mx")
OTHER = Principal("instrument:other", "instrument", instrument="other")
ALL = FilesChoice()


@dataclass
class Lab:
    store: Store
    live: Live
    orders: Orders

    async def beat(self, acknowledged: int = 0) -> AgentOrders:
        return await self.orders.heartbeat(
            AGENT, "mx", Heartbeat(host="det", version="1", acknowledged=acknowledged)
        )

    def events(self) -> list[Event]:
        return list(self.store.read_sync(lambda tx: tx.events.after(0, limit=1000)))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events()]


@pytest.fixture
async def lab(store: Store) -> Lab:
    for id_ in ("mx", "other"):
        request = InstrumentCreate(id=id_, title=id_, staff=["sam"])
        store.write_sync(lambda tx, request=request: tx.instruments.create(request))  # type: ignore[misc]
    live = Live()
    return Lab(store, live, Orders(store, live))


async def test_a_heartbeat_is_kept_and_shown_live(lab: Lab) -> None:
    beat = Heartbeat(host="det", version="1", state="uploading", queued_files=3)
    with lab.live.subscribe() as queue:
        assert await lab.orders.heartbeat(AGENT, "mx", beat) == AgentOrders()
        message = await asyncio.wait_for(queue.get(), 30)
    assert (message.kind, message.subject, message.data["queued_files"]) == ("agent.heartbeat", "mx", 3)
    found = await lab.store.read(lambda tx: tx.instruments.get("mx"))
    assert found
    assert found.agent
    assert found.agent.connected
    assert found.agent.host == "det"
    for somebody in (SAM, EVE, OTHER):
        with pytest.raises((NotFound, Forbidden)):
            await lab.orders.heartbeat(somebody, "mx", beat)


async def test_a_pause_is_told_with_every_heartbeat_until_it_ends(lab: Lab) -> None:
    paused = await lab.orders.pause(SAM, "mx", "detector service")
    assert paused.uploads_paused
    assert (paused.uploads_paused.by, paused.uploads_paused.reason) == ("sam", "detector service")
    for _ in range(2):
        orders = await lab.beat()
        assert orders.paused
        assert "sam" in orders.paused_reason
        assert "detector service" in orders.paused_reason
    for _ in range(2):  # the second time nothing happens
        assert (await lab.orders.resume(SAM, "mx")).uploads_paused is None
    assert not (await lab.beat()).paused
    assert lab.kinds() == ["uploads.paused", "uploads.resumed"]
    event = lab.events()[0]
    assert (event.actor, event.instrument, event.data) == ("sam", "mx", {"reason": "detector service"})


async def test_a_command_is_given_until_it_is_acknowledged(lab: Lab) -> None:
    skip = await lab.orders.command(
        SAM, "mx", CommandKind.SKIP, SkipRequest(paths=["a.h5"], reason="ice on the crystal")
    )
    retry = await lab.orders.command(SAM, "mx", CommandKind.RETRY, ALL)
    assert (await lab.beat()).commands == [skip, retry]
    assert (await lab.beat()).commands == [skip, retry]
    assert (await lab.beat(skip.id)).commands == [retry]
    assert (await lab.orders.commands(SAM, "mx")).items == [retry]
    assert (await lab.beat(retry.id)).commands == []
    assert (await lab.beat()).commands == []  # also when the agent has lost its memory
    assert lab.kinds() == ["agent.ordered", "agent.ordered", "agent.obeyed", "agent.obeyed"]
    ordered, _, obeyed, _ = lab.events()
    assert ordered.data == {"order": "skip", "paths": ["a.h5"], "reason": "ice on the crystal"}
    assert (ordered.actor, ordered.subject) == ("sam", str(skip.id))
    assert (obeyed.actor, obeyed.subject) == (AGENT.name, str(skip.id))


async def test_an_acknowledgement_is_only_of_the_own_commands(lab: Lab) -> None:
    command = await lab.orders.command(SAM, "mx", CommandKind.RETRY, ALL)
    await lab.orders.heartbeat(OTHER, "other", Heartbeat(host="d", version="1", acknowledged=command.id))
    assert (await lab.beat()).commands == [command]


async def test_too_much_that_waits_is_refused(lab: Lab) -> None:
    def fill(count: int) -> None:
        lab.store.write_sync(lambda tx: [order(tx, SAM, "mx", CommandKind.RETRY, ALL) for _ in range(count)])

    fill(3)
    rows = range(MOST - 3)
    lab.store.write_sync(lambda tx: [tx.commands.create("mx", CommandKind.RETRY, "sam", ALL) for _ in rows])
    with pytest.raises(Conflict):
        fill(1)
    assert len((await lab.beat()).commands) < MOST


async def test_only_the_staff_give_orders_and_see_what_failed(lab: Lab) -> None:
    for somebody in (EVE, AGENT, OTHER):
        for attempt in (
            lab.orders.pause(somebody, "mx", "x"),
            lab.orders.resume(somebody, "mx"),
            lab.orders.command(somebody, "mx", CommandKind.RETRY, ALL),
            lab.orders.commands(somebody, "mx"),
            lab.orders.files(somebody, "mx"),
        ):
            with pytest.raises((NotFound, Forbidden)):
                await attempt
    for somebody in (EVE, SAM, OTHER):
        with pytest.raises((NotFound, Forbidden)):
            await lab.orders.tell_files(somebody, "mx", AgentFiles(items=[]))
    assert lab.events() == []


async def test_the_list_of_what_is_not_sent_is_as_told_last(lab: Lab) -> None:
    def files(*names: str) -> list[AgentFile]:
        return [AgentFile(name=name, state="failed" if "f" in name else "skipped", size=1) for name in names]

    async def names(**query: str) -> list[str]:
        found: list[str] = []
        after = None
        while True:
            page = await lab.orders.files(SAM, "mx", after=after, limit=2, **query)  # type: ignore[arg-type]
            found += [file.name for file in page.items]
            if (after := page.next) is None:
                return found

    await lab.orders.tell_files(AGENT, "mx", AgentFiles(part=1, last=False, items=files("f1", "s2")))
    await lab.orders.tell_files(AGENT, "mx", AgentFiles(part=2, last=False, items=files("f3")))
    await lab.orders.tell_files(AGENT, "mx", AgentFiles(part=3, items=files("s4")))
    await lab.orders.tell_files(AGENT, "mx", AgentFiles(part=3, items=files("s4")))  # told twice
    assert await names() == ["f1", "s2", "f3", "s4"]
    assert await names(state="failed") == ["f1", "f3"]
    await lab.orders.tell_files(AGENT, "mx", AgentFiles(part=1, items=files("s9")))
    assert await names() == ["s9"]
    await lab.orders.tell_files(AGENT, "mx", AgentFiles(items=[]))
    assert await names() == []


async def test_a_report_is_there_when_all_its_parts_are(lab: Lab) -> None:
    command = await lab.orders.command(SAM, "mx", CommandKind.REPORT, ALL)
    lines = [JournalLine(name=f"{n}", size=n, digest="0" * 64, state="arrived") for n in range(5)]

    async def tell(part: int, *, last: bool) -> None:
        items = lines[2 * part - 2 : 2 * part]
        await lab.orders.report(AGENT, "mx", command.id, JournalReport(part=part, last=last, items=items))

    await tell(3, last=True)
    await tell(1, last=False)
    await tell(1, last=False)
    assert "agent.reported" not in lab.kinds()
    await tell(2, last=False)
    assert lab.kinds()[-1] == "agent.reported"
    assert await lab.store.read(lambda tx: list(tx.commands.lines(command.id))) == lines
    retry = await lab.orders.command(SAM, "mx", CommandKind.RETRY, ALL)
    for somebody, id_, number in ((AGENT, "mx", 99), (AGENT, "mx", retry.id), (OTHER, "other", command.id)):
        with pytest.raises(NotFound):
            await lab.orders.report(somebody, id_, number, JournalReport(items=[]))


def test_what_is_skipped_has_to_be_named() -> None:
    for wrong in ({"reason": "x"}, {"pattern": "*"}, {"pattern": "*", "reason": " "}, {"paths": ["a\nb"]}):
        with pytest.raises(ValidationError):
            SkipRequest.model_validate(wrong)
