from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from beamhub.client import Message, Unreachable
from beamhub_cockpit.live import Live


class Screen:
    """What a page does with a Live: counts, and shows its count."""

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[tuple[int, int]] = []  # count, thread
        self.failed: list[Exception] = []
        self.seen = asyncio.Event()
        self.live = Live(
            asyncio.get_running_loop(), draw=self.draw, failed=self.failed.append, tick=lambda: None
        )

    def add(self) -> None:
        self.count += 1

    def draw(self) -> Callable[[], None]:
        count = self.count

        def apply() -> None:
            self.shown.append((count, threading.get_ident()))
            self.seen.set()

        return apply

    async def shows(self, count: int) -> None:
        async with asyncio.timeout(120):
            while not self.shown or self.shown[-1][0] < count:
                self.seen.clear()
                await self.seen.wait()


async def test_what_many_threads_ask_is_done_once_each_and_shown_on_the_loop() -> None:
    screen = Screen()
    screen.live.start()

    def ask() -> None:
        for _ in range(250):
            screen.live.do(screen.add)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    await screen.shows(1000)
    screen.live.stop()
    assert screen.count == 1000
    assert {thread for _, thread in screen.shown} == {threading.get_ident()}
    assert len(screen.shown) < 100, "drawings are gathered"
    assert screen.failed == []


async def test_an_error_is_told_and_the_next_work_is_done() -> None:
    screen = Screen()
    screen.live.start()
    trouble = ValueError("no")

    def fail() -> None:
        raise trouble

    screen.live.do(fail)
    screen.live.do(screen.add)
    await screen.shows(1)
    screen.live.stop()
    assert screen.failed == [trouble]


async def test_the_worker_may_ask_the_loop_for_something() -> None:
    screen = Screen()
    screen.live.start()
    made: list[int] = []
    screen.live.do(lambda: made.append(screen.live.call(threading.get_ident)))
    screen.live.do(screen.add)
    await screen.shows(1)
    screen.live.stop()
    assert made == [threading.get_ident()]


async def test_messages_are_taken_in_one_after_the_other() -> None:
    screen = Screen()
    screen.live.start()
    heard: list[str] = []
    done = threading.Event()

    def messages() -> Iterator[Message]:
        for n in range(50):
            yield Message(id=n, kind="job.running", subject=str(n))
        done.wait(20)

    def handle(message: Message) -> None:
        heard.append(message.subject)
        screen.add()

    screen.live.follow(messages, handle)
    screen.live.follow(messages, handle)  # listens already
    await screen.shows(50)
    screen.live.stop()
    done.set()
    assert heard == [str(n) for n in range(50)]


async def test_a_service_that_is_away_is_told_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamhub_cockpit.live.TICK", 0.01)
    screen = Screen()
    screen.live.start()
    tries = iter([True, True, False])
    done = threading.Event()

    def messages() -> Iterator[Message]:
        if next(tries):
            raise Unreachable("away")
        yield Message(id=1, kind="job.running")
        done.wait(20)

    screen.live.follow(messages, lambda _message: screen.add())
    await screen.shows(1)
    screen.live.stop()
    done.set()
    assert [str(error) for error in screen.failed] == ["away", "away"]
