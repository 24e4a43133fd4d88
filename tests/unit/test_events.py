"""The log, its followers, and what is shown without being kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from beamhub import access
from beamhub.access import Principal
from beamhub.events import BATCH, QUEUE, Feed, Live, Scope, emit
from beamhub.schemas import Event, InstrumentCreate, Role
from beamhub.store import Store, Transaction


async def take(events: AsyncIterator[Event], number: int) -> list[Event]:
    async with asyncio.timeout(60):
        return [await anext(events) for _ in range(number)]


def write(
    store: Store, *, experiment: str | None = None, instrument: str | None = None, kind: str = "test"
) -> Event:
    return store.write_sync(
        lambda tx: emit(tx, kind, actor="sam", experiment=experiment, instrument=instrument)
    )


async def test_each_event_comes_once_in_order_none_left_out(store: Store) -> None:
    """Four writers write while two follow; one of them from the middle."""
    feed = Feed(store)
    for _ in range(BATCH + 20):  # more than one look
        write(store)
    first, late = feed.follow(0), feed.follow(BATCH)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(80):
            threads.submit(write, store)
        everything, later = await asyncio.gather(take(first, BATCH + 100), take(late, 100))
    assert [event.id for event in everything] == list(range(1, BATCH + 101))
    assert [event.id for event in later] == list(range(BATCH + 1, BATCH + 101))


async def test_a_rolled_back_event_is_never_seen(store: Store) -> None:
    feed = Feed(store)
    events = feed.follow(0)

    def failing(tx: Transaction) -> None:
        emit(tx, "never", actor="sam")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write_sync(failing)
    write(store, kind="real")
    assert [event.kind for event in await take(events, 1)] == ["real"]


async def test_another_process_is_noticed_without_a_wake(store: Store) -> None:
    feed = Feed(store)
    events = feed.follow(0)
    waiting = asyncio.create_task(take(events, 1))
    other = Store(store._write_engine.url.render_as_string(hide_password=False))
    write(other)  # wakes nobody here
    other.close()
    assert len(await waiting) == 1


async def test_a_follower_who_knows_more_than_there_is_waits_for_what_comes(store: Store) -> None:
    write(store)
    events = Feed(store).follow(10**15)
    waiting = asyncio.create_task(take(events, 1))
    await asyncio.wait_for(store.read(lambda tx: tx.events.head()), 60)
    while not waiting.done():
        event = await store.write(lambda tx: emit(tx, "new", actor="sam"))
        assert event.id > 1
    assert (await waiting)[0].kind == "new"


def beamtimes(store: Store) -> tuple[str, str]:
    """Ids of one experiment of Ada's and one that she does not belong to."""

    def work(tx: Transaction) -> tuple[str, str]:
        tx.instruments.create(InstrumentCreate(id="mx", title="MX", staff=["sam"]))
        mine = tx.experiments.create("mx", "mine", "ada")
        tx.members.add(mine, "ada", Role.PI, "sam")
        return mine, tx.experiments.create("mx", "other", "eve")

    return store.write_sync(work)


async def test_a_follower_sees_only_what_they_may_and_from_when_they_may(store: Store) -> None:
    mine, other = beamtimes(store)
    ada = Principal("ada", "user")
    events = Feed(store).follow(0, lambda tx: access.scope(tx, ada))
    write(store, experiment=other, instrument="mx", kind="secret")
    write(store, experiment=None, instrument="mx", kind="staff only")
    write(store, experiment=None, instrument=None, kind="operators only")
    write(store, experiment=mine, instrument="mx", kind="mine")
    assert [event.kind for event in await take(events, 1)] == ["mine"]

    store.write_sync(lambda tx: tx.members.add(other, "ada", Role.VIEWER, "sam"))
    write(store, experiment=other, kind="now hers too")
    assert [event.kind for event in await take(events, 1)] == ["now hers too"]

    store.write_sync(lambda tx: tx.members.remove(mine, "ada"))
    write(store, experiment=mine, kind="after the removal")
    write(store, experiment=other, kind="still hers")
    assert [event.kind for event in await take(events, 1)] == ["still hers"]


async def test_staff_see_their_instrument_and_operators_see_all(store: Store) -> None:
    _, other = beamtimes(store)
    write(store, instrument="elsewhere", kind="elsewhere")
    write(store, experiment=other, instrument="mx", kind="experiment")
    write(store, instrument="mx", kind="instrument")

    def kinds(principal: Principal) -> list[str]:
        def work(tx: Transaction) -> list[str]:
            scope = access.scope(tx, principal)
            page = tx.events.page(
                after=0, limit=10, experiments=scope.experiments, instruments=scope.instruments
            )
            return [event.kind for event in page.items]

        return store.read_sync(work)

    assert kinds(Principal("sam", "user")) == ["experiment", "instrument"]
    assert kinds(Principal("root", "user", operator=True)) == ["elsewhere", "experiment", "instrument"]
    assert kinds(Principal("eve", "user")) == []
    assert kinds(Principal("instrument:mx", "instrument", instrument="mx")) == []


async def test_a_stranger_follows_in_silence(store: Store) -> None:
    """Not even the number of events leaks; and the stranger's looks do not grow with the log."""
    events = Feed(store).follow(0, lambda _tx: Scope(frozenset()))
    for _ in range(BATCH + 1):
        write(store, experiment="x")
    waiting = asyncio.create_task(take(events, 1))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_pages_of_the_log(store: Store) -> None:
    for _ in range(5):
        write(store)
    page = store.read_sync(lambda tx: tx.events.page(after=0, limit=3))
    assert ([event.id for event in page.items], page.next) == ([1, 2, 3], "3")
    page = store.read_sync(lambda tx: tx.events.page(after=3, limit=3))
    assert ([event.id for event in page.items], page.next) == ([4, 5], None)


async def test_a_feed_outlives_a_follower_and_its_loop(store: Store) -> None:
    feed = Feed(store)

    def follow_and_leave() -> None:
        async def follow() -> None:
            events = feed.follow(0)
            task = asyncio.create_task(take(events, 1))
            await asyncio.wait({task}, timeout=0.05)
            task.cancel()
            await asyncio.wait({task})

        asyncio.run(follow())

    thread = threading.Thread(target=follow_and_leave)
    thread.start()
    await asyncio.to_thread(thread.join)
    write(store)
    assert len(await take(feed.follow(0), 1)) == 1


async def test_live_messages_reach_all_who_listen_from_any_thread() -> None:
    live = Live()
    with live.subscribe() as one, live.subscribe() as two:
        await asyncio.to_thread(
            live.publish, "job.progress", experiment="e", instrument=None, subject="1", data={"fraction": 0.5}
        )
        async with asyncio.timeout(60):
            assert await one.get() == await two.get()
    live.publish("job.progress", experiment="e", instrument=None, subject="1", data={})  # nobody listens


async def test_a_slow_listener_loses_the_oldest_messages_only() -> None:
    live = Live()
    with live.subscribe() as queue:
        for number in range(QUEUE + 10):
            live.publish("k", experiment=None, instrument=None, subject=str(number), data={})
        await asyncio.sleep(0)  # lets the loop hand them over
        assert [queue.get_nowait().subject for _ in range(QUEUE)] == [str(n) for n in range(10, QUEUE + 10)]
        assert queue.empty()
