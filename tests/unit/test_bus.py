"""Processes of one site that tell each other what has happened; some of them die, some are hostile."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from beamhub import bus, events
from beamhub.bus import Bus
from beamhub.events import Feed, Live, emit
from beamhub.schemas import Event
from beamhub.store import Store

PATIENCE = 60.0  # seconds


@pytest.fixture
def join(store: Store, tmp_path: Path) -> Iterator[Callable[[], Bus]]:
    """A process more on the bus of the store."""
    url = store._write_engine.url.render_as_string(hide_password=False)
    joined: list[Bus] = []

    def join() -> Bus:
        joined.append(bus.connect(url, tmp_path / "bus"))
        return joined[-1]

    yield join
    for one in joined:
        one.close()


class Ear:
    """What one process has heard."""

    def __init__(self, one: Bus) -> None:
        self.messages: list[bytes] = []
        self._changed = threading.Condition()
        self._commits = 0
        one.on_commit(self._commit)
        one.on_message(self._message)
        one.start()

    def _commit(self) -> None:
        with self._changed:
            self._commits += 1
            self._changed.notify_all()

    def _message(self, message: bytes) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def hear(self, message: bytes) -> None:
        """Waits for it."""
        with self._changed:
            assert self._changed.wait_for(lambda: message in self.messages, PATIENCE)

    def hear_commit(self) -> None:
        """Waits for one that has not been heard yet."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._commits > 0, PATIENCE)
            self._commits = 0


def reach(teller: Bus, *ears: Ear) -> None:
    """Until all are on the bus: those that come late miss what was told before."""
    for ear in ears:
        while b"hello" not in ear.messages:
            teller.tell(b"hello")
            with ear._changed:
                ear._changed.wait_for(lambda ear=ear: b"hello" in ear.messages, 0.1)  # type: ignore[misc]
        ear.hear_commit() if ear._commits else None


async def take(following: AsyncIterator[Event]) -> Event:
    async with asyncio.timeout(PATIENCE):
        return await anext(following)


async def test_followers_in_another_process_wake_at_once(
    store: Store, join: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL", 1e6)
    here, there = join(), join()
    url = store._write_engine.url.render_as_string(hide_password=False)
    writing, reading = Store(url, here), Store(url, there)
    for one in (here, there):
        one.start()
    feed = Feed(reading)
    following = feed.follow(0)
    try:
        for number in range(20):
            next_one = asyncio.ensure_future(take(following))
            await asyncio.sleep(0)
            await writing.write(lambda tx, n=number: emit(tx, f"event {n}", actor="sam"))  # type: ignore[misc]
            assert (await next_one).kind == f"event {number}"
    finally:
        await asyncio.to_thread(writing.close)
        await asyncio.to_thread(reading.close)


async def test_what_is_shown_live_is_shown_in_every_process_once(join: Callable[[], Bus]) -> None:
    buses = [join() for _ in range(3)]
    lives = [Live(one) for one in buses]
    ears = [Ear(one) for one in buses]
    await asyncio.to_thread(reach, buses[0], *ears[1:])
    await asyncio.to_thread(reach, buses[1], ears[0])

    def publish(number: int) -> None:
        lives[0].publish(
            "test", experiment="x", instrument=None, subject="s", data={"n": number, "Å": [None]}
        )

    with lives[0].subscribe() as mine, lives[1].subscribe() as second, lives[2].subscribe() as third:
        for number in range(10):
            publish(number)
        for heard in (mine, second, third):
            for number in range(10):
                message = await asyncio.wait_for(heard.get(), PATIENCE)
                assert (message.kind, message.experiment, message.subject) == ("test", "x", "s")
                assert message.data == {"n": number, "Å": [None]}
            assert heard.empty()


def test_what_is_too_large_is_not_told(join: Callable[[], Bus]) -> None:
    teller, listener = join(), join()
    ear = Ear(listener)
    teller.start()
    reach(teller, ear)
    teller.tell(b"x" * (teller.largest + 1))
    largest = b"y" * teller.largest
    teller.tell(largest)
    ear.hear(largest)
    assert not any(message.startswith(b"x") for message in ear.messages)


# --- sockets ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ("long" * 50) / "bus"  # longer than the path of a socket may be


def test_nobody_else_may_enter_the_folder(folder: Path) -> None:
    folder.mkdir(mode=0o777, parents=True)
    bus.SocketBus(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []


DYING = """
import sys, threading
from pathlib import Path
from beamhub.bus import SocketBus
one = SocketBus(Path(sys.argv[1]))
one.start()
print("here", flush=True)
threading.Event().wait()
"""


def test_who_was_killed_is_forgotten(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", DYING, folder], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"here\n"
        assert len(list(folder.iterdir())) == 1
        process.send_signal(signal.SIGKILL)
    teller, listener = bus.SocketBus(folder), bus.SocketBus(folder)
    ear = Ear(listener)
    teller.start()
    teller.tell(b"still here")
    ear.hear(b"still here")
    teller.close()
    assert len(list(folder.iterdir())) == 1
    listener.close()


def test_who_has_no_room_is_told_of_a_commit_later(folder: Path) -> None:
    teller, slow = bus.SocketBus(folder), bus.SocketBus(folder)
    other = bus.SocketBus(folder)
    ear = Ear(other)
    teller.start()
    for _ in range(1000):  # more than fits, as `slow` does not listen yet
        teller.tell(b"x" * 1000)
    teller.commit()
    ear.hear_commit()
    late = Ear(slow)
    late.hear_commit()
    for one in (teller, slow, other):
        one.close()


def test_hostile_datagrams_are_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    teller, listener = bus.SocketBus(folder), bus.SocketBus(folder)
    live = Live(listener)
    (folder / "file").write_text("no socket")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("/dev/null")
    descriptor = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for text in (
            b"",
            b"\0",
            b"{",
            b"[]",
            b"null",
            b'{"kind": 1}',
            b"\xff" * 100,
            b"x" * 100_000,
            b"9" * 5000,
        ):
            stranger.sendto(text, f"/proc/self/fd/{descriptor}/{listener._name}")
    os.close(descriptor)
    ear = Ear(listener)
    teller.start()
    telling = Live(teller)
    telling.publish("test", experiment=None, instrument=None, subject="", data={})
    reach(teller, ear)
    assert "no message" in caplog.text
    assert live
    for one in (teller, listener):
        one.close()


# --- PostgreSQL ---


def test_a_database_that_was_away_is_found_again(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    teller, listener = bus.DatabaseBus(postgresql_url), bus.DatabaseBus(postgresql_url)
    ear = Ear(listener)
    teller.start()
    reach(teller, ear)
    with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid != pg_backend_pid() AND datname = current_database()"
        )
    ear.hear_commit()  # there may have been one meanwhile
    ear.messages.clear()
    reach(teller, ear)
    for one in (teller, listener):
        one.close()
    assert "until the database is back" in caplog.text
