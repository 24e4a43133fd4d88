"""A clock that is set by a day while data come: what is alive is not given up, and what is not still is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from beamhub.client import Client
from beamhub.leftovers import EXPIRES
from beamhub.schemas import DatasetState, UploadState
from beamhub.testing import Beamtime, RunningService, write_dataset

from tests.integration.agents import PATIENCE

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
# what the service does now and then, at each line that comes
HOUSEKEEPING = """
import asyncio, sys, time
from pathlib import Path
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.frames.inspect import Inspector
from beamhub.store import Store
from beamhub.uploads import Uploads

async def main(data, url):
    store, inspector = Store(url), Inspector()
    datasets = Datasets(store, data, inspector)
    uploads = Uploads(store, Live(), data, datasets.examine)
    while await asyncio.to_thread(sys.stdin.readline):
        await uploads.leftovers.recover()
        await uploads.leftovers.expire(time.monotonic())
        await datasets.expire(time.monotonic())
        print(time.time(), flush=True)
    await uploads.close()
    await inspector.close()
    store.close()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


class House:
    """Housekeeping in a process whose clock can be set."""

    def __init__(self, process: subprocess.Popen[str], clock: Path) -> None:
        self._process = process
        self._clock = clock

    def clean(self, at: str) -> float:
        """The time on its clock, which is set to this (`+1d`) before it looks."""
        self._clock.write_text(at)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def shown(clock: Path) -> dict[str, str]:
    """The environment of a process that has its time from a file."""
    clock.write_text("+0d")
    return {
        "LD_PRELOAD": str(LIBRARY),
        "NO_FAKE_STAT": "1",  # files' times come from the kernel
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_TIMESTAMP_FILE": str(clock),
    }


@contextmanager
def house(service: RunningService, *, set_only: bool = True) -> Iterator[House]:
    """`set_only`: the clock is set and no time passes; otherwise it passes."""
    clock = service.folder / "clock"
    url = service.settings["database_url"]
    environment = shown(clock) | ({"FAKETIME_DONT_FAKE_MONOTONIC": "1"} if set_only else {})
    with subprocess.Popen(
        [sys.executable, "-c", HOUSEKEEPING, str(service.data_dir), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        yield House(process, clock)
        assert process.stdin
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture
def coming(own_service: RunningService, tmp_path: Path) -> tuple[RunningService, Beamtime, list[Path]]:
    """A dataset whose master and first file have come; the second has begun to."""
    beamtime = own_service.beamtime()
    agent = own_service.agent(beamtime)
    master, first, second = write_dataset(tmp_path, "lyso")
    agent.upload(master)
    agent.upload(first)
    return own_service, beamtime, [first, second]


def begin(client: Client, name: str) -> str:
    """The id of an upload of which one of two bytes has come."""
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "2", "Upload-Metadata": f"filename {name}"}
    headers |= {"Content-Type": "application/offset+octet-stream"}
    answer = client._call("POST", "uploads", headers=headers, content=b"1")
    return str(answer.json()["id"])


@pytest.mark.parametrize("shift", ["+1d", "-1d"])
def test_what_is_alive_outlives_a_clock_that_is_set(
    coming: tuple[RunningService, Beamtime, list[Path]], shift: str
) -> None:
    service, beamtime, (_, second) = coming
    agent, ada = service.agent(beamtime), service.client("ada")
    upload = begin(agent, "bm90ZXM=")
    with house(service) as before:
        times = [before.clean("+0d"), before.clean(shift), before.clean("+0d")]
    with house(service) as after:  # also one that is started with it
        times += [after.clean(shift), after.clean("+0d"), after.clean(shift)]
    assert abs(times[1] - times[0]) > 86000 < abs(times[4] - times[3]), "the clock was not set"

    assert agent.upload_status(upload).state is UploadState.RECEIVING
    (dataset,) = ada.datasets(beamtime.experiment)
    assert dataset.state is DatasetState.RECEIVING
    agent.upload(second)
    (dataset,) = ada.datasets(beamtime.experiment)
    assert (dataset.state, dataset.frames_readable) == (DatasetState.COMPLETE, 4)


def test_what_is_not_alive_ends_when_its_time_has_passed(
    coming: tuple[RunningService, Beamtime, list[Path]],
) -> None:
    service, beamtime, _ = coming
    agent, ada = service.agent(beamtime), service.client("ada")
    upload = begin(agent, "bm90ZXM=")
    incoming = service.data_dir / beamtime.experiment / ".incoming"
    with house(service, set_only=False) as passing:
        passing.clean("+0d")
        passing.clean("+4m")
        (dataset,) = ada.datasets(beamtime.experiment)
        assert dataset.state is DatasetState.RECEIVING
        passing.clean("+6m")
        (dataset,) = ada.datasets(beamtime.experiment)
        assert dataset.state is DatasetState.INCOMPLETE
        passing.clean("+23h")
        assert agent.upload_status(upload).state is UploadState.RECEIVING
        assert list(incoming.iterdir()) == [incoming / upload]
        passing.clean("+25h")
    assert agent.upload_status(upload).state is UploadState.FAILED
    assert list(incoming.iterdir()) == []


def test_the_service_keeps_house_by_itself(
    coming: tuple[RunningService, Beamtime, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, beamtime, _ = coming
    begin(service.agent(beamtime), "bm90ZXM=")
    incoming, clock = service.data_dir / beamtime.experiment / ".incoming", service.folder / "clock"
    with monkeypatch.context() as patch:
        for name, value in shown(clock).items():
            patch.setenv(name, value)
        service.restart()

    def states(where: str) -> set[str]:
        # by a connection of its own: those that rest when hours have gone by are ended
        headers = {"Authorization": f"token {service.tokens['ada']}", "Connection": "close"}
        answer = httpx.get(service.api + where, headers=headers, timeout=60)
        return {one["state"] for one in answer.json()["items"]}

    uploads, datasets = (
        f"uploads?experiment={beamtime.experiment}",
        f"experiments/{beamtime.experiment}/datasets",
    )
    hours, deadline = 0, time.monotonic() + PATIENCE
    while "failed" not in states(uploads) or states(datasets) != {"incomplete"}:
        hours += 1
        assert time.monotonic() < deadline, service.log
        clock.write_text(f"+{hours}h")
    assert hours >= EXPIRES.total_seconds() / 3600
    assert list(incoming.iterdir()) == []
