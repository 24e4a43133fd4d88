"""In which order files are sent, and when none is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from beamhub.agent.config import Watch
from beamhub.agent.file import Stamp
from beamhub.agent.pause import LONGEST, Pause
from beamhub.agent.queue import SMALL, Queue
from beamhub.agent.service import UnavailableError
from beamhub.schemas import BATCH_FILES

STAMP = Stamp(1, SMALL + 1, 3)


def watch(folder: Path) -> Watch:
    return Watch.model_validate({"path": str(folder)}, context=folder)


def at(second: int) -> Stamp:
    return Stamp(1, SMALL + 1, second * 10**9)


async def test_live_data_does_not_wait_behind_a_backlog(tmp_path: Path) -> None:
    queue = Queue()
    for number in range(1000):
        queue.add(watch(tmp_path), f"old/night_{number % 10}_data_{number:06}.h5", at(number))
    queue.add(watch(tmp_path), "old/night_3_000123.cbf", at(500))
    await queue.get()
    for name in ("lyso_7_data_000001.h5", "lyso_7_data_000002.h5", "lyso_7_master.h5"):
        queue.add(watch(tmp_path), name, at(2000))

    names = [(await queue.get()).name for _ in range(4)]

    assert names[:3] == ["lyso_7_master.h5", "lyso_7_data_000001.h5", "lyso_7_data_000002.h5"]
    assert names[3].startswith("old/night_3_"), "the newest of the others"


@pytest.mark.parametrize(
    "names",
    [
        ["scan_1_master.h5", "scan_1_data_000001.h5", "scan_1_data_000002.h5", "scan_1_data_000010.h5"],
        ["a/b.nxs", "a/b_000001.h5", "a/b_000002.h5", "a/b_000003.h5"],
        ["run2_00001.cbf", "run2_00002.cbf", "run2_00003.cbf", "run2_00004.cbf"],
        ["1.tif", "2.tif", "9.tif", "10.tif"],
        ["grid.nxs", "grid.h5", "grid.log", "grid"],
    ],
)
async def test_the_files_of_an_acquisition_go_as_they_were_written(tmp_path: Path, names: list[str]) -> None:
    queue = Queue()
    master, last = names[0], names[-1]
    written = {name: at(number) for number, name in enumerate(names)} | {master: at(1)}
    for name in reversed(names):  # as it may be when all are found at once
        queue.add(watch(tmp_path), name, written[name])
    queue.add(watch(tmp_path), "other_5.cbf", at(100))
    queue.add(watch(tmp_path), last, written[last])
    order = [(await queue.get()).name for _ in range(5)]

    assert order == [*names, "other_5.cbf"]


async def test_what_is_put_back_keeps_its_place(tmp_path: Path) -> None:
    queue = Queue()
    queue.add(watch(tmp_path), "x_1.cbf", at(1))
    queue.add(watch(tmp_path), "x_2.cbf", at(2))
    first = await queue.get()
    queue.add(watch(tmp_path), "y_1.cbf", at(3))
    queue.put(first)

    assert [(await queue.get()).name for _ in range(3)] == ["y_1.cbf", "x_1.cbf", "x_2.cbf"]


async def test_what_is_put_back_for_later_lets_others_go_first(tmp_path: Path) -> None:
    queue = Queue()
    for name in ("x_1.cbf", "x_2.cbf", "x_3.cbf"):
        queue.add(watch(tmp_path), name, at(1))
    first, dropped = await queue.get(), await queue.get()
    queue.put(first, 0.01)
    queue.put(dropped, 0.01)
    assert queue.find(first.path) is first
    assert len(queue) == 3
    queue.drop(dropped.path)

    assert [(await queue.get()).name for _ in range(2)] == ["x_3.cbf", "x_1.cbf"]
    assert not queue


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
    for name in ("x_1.cbf", "x_2.cbf", "x_master.h5", "x_3.cbf"):
        queue.add(watch(tmp_path), name, Stamp(1, 100, 3))
    queue.add(watch(tmp_path), "large", STAMP)
    queue.drop(f"{tmp_path}/x_2.cbf")

    assert [item.name for item in await queue.take(250)] == ["x_master.h5", "x_1.cbf"]
    (last,) = await queue.take(1)  # one in any case
    assert last.name == "x_3.cbf"
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
