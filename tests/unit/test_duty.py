"""Duty: one process at a time runs the jobs, and another takes over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest
from beamhub import duty
from beamhub.duty import Duty, FileDuty


@pytest.fixture(params=["sqlite", "postgresql"])
def join(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Duty]:
    """Makes one process's part of the same duty."""
    sqlite = request.param == "sqlite"
    url = "sqlite:///somewhere" if sqlite else request.getfixturevalue("postgresql_url")
    return lambda: duty.connect(url, tmp_path / "lock")


class Shift:
    """Somebody who serves, and who can be seen at work."""

    def __init__(self, duty: Duty) -> None:
        self.duty = duty
        self.begun, self.over = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(duty.serve(self.work))

    async def work(self) -> None:
        self.over.clear()
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.begun.clear()
            self.over.set()

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@contextlib.asynccontextmanager
async def shifts(join: Callable[[], Duty], many: int) -> AsyncIterator[list[Shift]]:
    found = [Shift(join()) for _ in range(many)]
    try:
        yield found
    finally:
        for one in found:
            await one.end()


async def working(all_: list[Shift]) -> Shift:
    """Who is at work, as soon as somebody is: nobody else is."""
    begun = [asyncio.create_task(one.begun.wait()) for one in all_]
    await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
    for task in begun:
        task.cancel()
    (one,) = [one for one in all_ if one.begun.is_set()]
    assert [other.duty.on for other in all_] == [other is one for other in all_]
    return one


async def test_one_at_a_time_until_all_have_gone(join: Callable[[], Duty]) -> None:
    async with shifts(join, 3) as left:
        left = list(left)
        while left:
            one = await working(left)
            await one.end()
            assert one.over.is_set()
            left.remove(one)


async def test_who_waits_takes_over_at_its_next_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it has each second."""
    assert duty.LOOK == 1.0
    monkeypatch.setattr(duty, "LOOK", 0.01)
    async with shifts(lambda: FileDuty(tmp_path / "lock"), 1) as [first]:
        await first.begun.wait()
        waiting = FileDuty(tmp_path / "lock")
        looks: list[bool] = []
        looked, take = asyncio.Event(), waiting.take

        async def counted() -> bool:
            looks.append(await take())
            looked.set()
            return looks[-1]

        monkeypatch.setattr(waiting, "take", counted)
        second = Shift(waiting)
        await looked.wait()
        await first.end()
        before = len(looks)
        await second.begun.wait()
        assert looks == [False] * (len(looks) - 1) + [True]
        assert len(looks) <= before + 1
        await second.end()


async def test_who_fails_at_work_says_so_and_makes_room(join: Callable[[], Duty]) -> None:
    async def fail() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await join().serve(fail)
    async with shifts(join, 1) as others:
        await working(others)


async def test_who_loses_the_database_stops_and_comes_back(postgresql_url: str) -> None:
    plain = postgresql_url.replace("+psycopg", "")
    cut = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"

    def cut_off() -> None:
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(cut)

    async with shifts(lambda: duty.connect(postgresql_url, Path()), 2) as both:
        for _ in range(2):
            one = await working(both)
            await asyncio.to_thread(cut_off)
            await one.over.wait()
            await working(both)
