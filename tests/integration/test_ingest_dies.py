"""The process that takes uploads dies behind the hub's proxy, which answers 503 until it is there again: each
client takes that for a break, waits and goes on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from beamhub.client import Client
from beamhub.ports import free_ports
from beamhub.schemas import Upload, UploadState
from beamhub.testing import Beamtime, Ingest, RunningService
from beamhub_hub import proxy
from beamhub_hub.proxy import NODE
from tusclient.client import TusClient

from tests.integration.test_tus_clients import MANIFEST
from tests.integration.test_tus_clients import tus_js as tus_js

SIZE = 20_000_000
CHUNK = 500_000


class Proxied:
    """An ingest process, only to be reached by way of the hub's proxy."""

    def __init__(self, ingest: Ingest, folder: Path) -> None:
        self.ingest = ingest
        self._log = folder / "proxy.log"
        port, control = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self.uploads = ingest.api.replace(ingest.url, self.url) + "uploads"
        options = ["--ip=127.0.0.1", f"--port={port}", "--api-ip=127.0.0.1", f"--api-port={control}"]
        command = [*proxy.install(), *options, f"--default-target={ingest.url}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._until(lambda: "Proxying" in self._log.read_text())
        self._rising = threading.Thread(target=self._rise)

    @property
    def died(self) -> bool:
        return self._rising.ident is not None

    def die(self) -> None:
        """Is there again once the proxy has told somebody that it is not."""
        self.ingest.kill()
        self._rising.start()

    def _rise(self) -> None:
        self._until(lambda: " 503 " in self._log.read_text())
        self.ingest.start()

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            assert self._process.poll() is None
            time.sleep(0.01)

    def end(self) -> None:
        if self.died:
            self._rising.join()
        self._process.kill()
        self._process.wait()


@pytest.fixture
def proxied(service: RunningService, tmp_path: Path) -> Iterator[Proxied]:
    made = Proxied(service.ingest(), tmp_path)
    yield made
    made.end()


@pytest.fixture
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image.cbf"
    path.write_bytes(os.urandom(SIZE))
    return path


def assert_arrived(service: RunningService, beamtime: Beamtime, file: Path) -> list[Upload]:
    """It is published, once; the uploads that have been begun."""
    begun = service.client("ada").uploads(beamtime.experiment)
    (upload,) = (upload for upload in begun if upload.state is UploadState.COMPLETE)
    assert upload.path == "raw/image.cbf"
    found = service.client("ada").file(beamtime.experiment, upload.path)
    assert hashlib.sha256(found).digest() == hashlib.sha256(file.read_bytes()).digest()
    return begun


@pytest.mark.parametrize("program", ["upload.cjs", "uppy.cjs"])
def test_tus_js(
    service: RunningService, proxied: Proxied, beamtime: Beamtime, file: Path, tus_js: Path, program: str
) -> None:
    given: dict[str, Any] = {
        "file": str(file),
        "storage": str(file.with_suffix(".urls")),
        "endpoint": proxied.uploads,
        "headers": {"Authorization": f"Bearer {beamtime.agent_token}"},
        "chunkSize": CHUNK // 10,
        "retryDelays": [100] * 10 + [1000] * 60,
    }
    if program == "upload.cjs":
        given["metadata"] = {"filename": file.name}
    with subprocess.Popen(
        [NODE, MANIFEST / program, json.dumps(given)],
        env={**os.environ, "NODE_PATH": str(tus_js)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        while not any(u.offset for u in service.client("ada").uploads(beamtime.experiment)):
            assert client.poll() is None, client.communicate()
        proxied.die()
        told, problem = client.communicate(timeout=120)
    assert client.returncode == 0, problem
    assert json.loads(told)["url"]
    # what tus-js-client can't ask for it begins again, where another process would have answered it
    assert len(assert_arrived(service, beamtime, file)) <= 2


def test_tuspy(service: RunningService, proxied: Proxied, beamtime: Beamtime, file: Path) -> None:
    client = TusClient(proxied.uploads, headers={"Authorization": f"Bearer {beamtime.agent_token}"})
    with file.open("rb") as stream:
        uploader = client.uploader(
            file_stream=stream,
            chunk_size=CHUNK,
            metadata={"filename": file.name},
            retries=100,
            retry_delay=1,
        )
        uploader.upload_chunk()  # type: ignore[no-untyped-call]
        proxied.die()
        uploader.upload()
    assert len(assert_arrived(service, beamtime, file)) == 1


@pytest.mark.parametrize("sent", [0, 2 * 8 * 2**20])
def test_the_client(
    service: RunningService, proxied: Proxied, beamtime: Beamtime, file: Path, sent: int
) -> None:
    """While it begins to send, and with the last bytes."""

    def dies(offset: int, _: int) -> None:
        if offset == sent and not proxied.died:
            proxied.die()

    with Client(proxied.url, beamtime.agent_token, instrument=True) as client:
        upload = client.upload(file, progress=dies)
    assert assert_arrived(service, beamtime, file) == [upload]
