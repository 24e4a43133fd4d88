"""In which order files are sent, and when none is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from beamhub.agent.config import Watch
from beamhub.agent.file import Stamp
from beamhub.agent.pause import LONGEST, Pause
from beamhub.agent.queue import SMALL, Queue
from beamhub.agent.service import UnavailableError
from beamhub.schemas import BATCH_FILES

STAMP = Stamp(1, SMALL + 1, 3)


def watch(folder: Path) -> Watch:
    return Watch.model_validate({"path": str(folder)}, context=folder)


async def test_masters_first_else_in_order_of_arrival(tmp_path: Path) -> None:
    queue = Queue()
    for name in ("b_data_000001.h5", "log.txt", "a_data_000001.h5", "b_master.h5", "a.nxs"):
        queue.add(watch(tmp_path), name, STAMP)

    assert len(queue) == 5
    names = [(await queue.get()).name for _ in range(5)]

    assert names == ["b_master.h5", "a.nxs", "b_data_000001.h5", "log.txt", "a_data_000001.h5"]
    assert not queue


async def test_what_is_put_back_keeps_its_place(tmp_path: Path) -> None:
    queue = Queue()
    queue.add(watch(tmp_path), "first", STAMP)
    queue.add(watch(tmp_path), "second", STAMP)
    first = await queue.get()
    queue.put(first)

    assert (await queue.get()) is first


async def test_dropped_and_seen_again(tmp_path: Path) -> None:
    queue = Queue()
    queue.add(watch(tmp_path), "a", STAMP)
    queue.drop(f"{tmp_path}/a")
    assert not queue
    queue.add(watch(tmp_path), "a", Stamp(4, SMALL + 5, 6))

    assert (await queue.get()).stamp == Stamp(4, SMALL + 5, 6)
    assert not queue


async def test_an_empty_queue_waits(tmp_path: Path) -> None:
    queue = Queue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.add(watch(tmp_path), "a", STAMP)

    assert (await waiting).name == "a"


async def test_a_pause_ends_when_the_service_is_back() -> None:
    pause = Pause()
    await pause.wait()
    for _ in range(10):
        pause.begin(UnavailableError("it is away"))
    assert pause.reason == "it is away"
    waiting = asyncio.create_task(pause.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    pause.end()

    await waiting
    assert pause.reason == ""


async def test_many_senders_at_the_same_obstacle_pause_once() -> None:
    loop = asyncio.get_running_loop()
    pause = Pause()
    for _ in range(32):
        pause.begin(UnavailableError("it is away"))
    begun = loop.time()
    await pause.wait()

    assert loop.time() - begun < LONGEST / 4, "each sender made the pause longer"


async def test_a_pause_of_the_staff_ends_when_they_say_so() -> None:
    pause = Pause()
    pause.hold("paused by sam: vacuum")
    waiting = asyncio.create_task(pause.wait())
    pause.end()  # something that was on its way has arrived
    await asyncio.sleep(0)
    assert not waiting.done()
    assert pause.held == "paused by sam: vacuum"
    pause.hold("")

    await waiting


async def test_small_files_go_together(tmp_path: Path) -> None:
    queue = Queue()
    for name in ("a.txt", "b.txt", "x_master.h5", "c.txt"):
        queue.add(watch(tmp_path), name, Stamp(1, 100, 3))
    queue.add(watch(tmp_path), "large", STAMP)
    queue.drop(f"{tmp_path}/b.txt")

    assert [item.name for item in await queue.take(250)] == ["x_master.h5", "a.txt"]
    (last,) = await queue.take(1)  # one in any case
    assert last.name == "c.txt"
    assert [item.name for item in queue] == ["large"]

    last.alone = True
    queue.put(last)
    assert (await queue.get()) is last
    assert (await queue.get()).name == "large"

    for number in range(BATCH_FILES + 1):
        queue.add(watch(tmp_path), str(number), Stamp(1, 0, 3))
    assert len(await queue.take(10**6)) == BATCH_FILES
    assert len(await queue.take(10**6)) == 1


async def test_a_small_file_is_waited_for(tmp_path: Path) -> None:
    queue = Queue()
    queue.add(watch(tmp_path), "large", STAMP)
    waiting = asyncio.create_task(queue.take(10**6))
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.add(watch(tmp_path), "small", Stamp(1, 0, 3))
    assert [item.name for item in await waiting] == ["small"]
