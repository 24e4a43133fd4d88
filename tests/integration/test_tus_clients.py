"""Uploads by public tus clients, that know nothing of beamhub: they upload, break off and resume."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.frames.inspect import Inspector
from beamhub.leftovers import EXPIRES
from beamhub.schemas import Role, Upload, UploadState
from beamhub.store import Store
from beamhub.testing import Beamtime, RunningService
from beamhub.uploads import Uploads
from beamhub_hub.proxy import NODE, NPM
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

MANIFEST = Path(__file__).parents[1] / "tus-js"


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime(members={"ben": Role.COLLABORATOR})


@pytest.fixture(scope="session")
def tus_js() -> Path:
    """The folder of tus-js-client and Uppy, installed as pinned on first use."""
    lock = (MANIFEST / "package-lock.json").read_bytes()
    folder = Path(sys.prefix) / "share" / f"beamhub-tests-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            (folder / name).write_bytes((MANIFEST / name).read_bytes())
        command: list[str | Path] = [
            NODE,
            NPM,
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ]
        path = f"{NODE.parent}:{os.environ.get('PATH', '')}"
        subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=True)
        (folder / "done").touch()
    return folder / "node_modules"


def run_tus_js(tus_js: Path, file: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    program = options.pop("program", "upload.cjs")
    given = {"file": str(file), "storage": str(file.with_suffix(".urls")), **options}
    return subprocess.run(
        [NODE, MANIFEST / program, json.dumps(given)],
        env={**os.environ, "NODE_PATH": str(tus_js)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def only_upload(service: RunningService, beamtime: Beamtime, path: str) -> Upload:
    """The one upload under this path, complete and with nothing beside it."""
    found = [upload for upload in service.client("ada").uploads(beamtime.experiment) if upload.path == path]
    (upload,) = found
    assert upload.state is UploadState.COMPLETE
    return upload


def make_file(tmp_path: Path, size: int = 3_000_000) -> tuple[Path, bytes]:
    content = os.urandom(size)
    file = tmp_path / "image.cbf"
    file.write_bytes(content)
    return file, content


def test_tuspy_uploads_breaks_off_and_resumes(
    service: RunningService, beamtime: Beamtime, tmp_path: Path
) -> None:
    file, content = make_file(tmp_path)
    metadata = {"filename": "tuspy/image.cbf", "sha256": hashlib.sha256(content).hexdigest()}

    def client() -> TusClient:
        return TusClient(f"{service.api}uploads", headers={"Authorization": f"Bearer {beamtime.agent_token}"})

    with file.open("rb") as stream:
        first = client().uploader(
            file_stream=stream, chunk_size=1_000_000, upload_checksum=True, metadata=metadata
        )
        first.upload(stop_at=2_000_000)
    with file.open("rb") as stream:  # as another process would, that knows its URL
        second = client().uploader(file_stream=stream, url=first.url, chunk_size=400_000, metadata=metadata)
        assert second.offset == 2_000_000
        second.upload()
    upload = only_upload(service, beamtime, "raw/tuspy/image.cbf")
    assert (upload.digest, upload.digest_by) == (f"sha256:{metadata['sha256']}", "sender")
    assert service.client("ada").file(beamtime.experiment, upload.path) == content


def test_tus_js_client_uploads_breaks_off_and_resumes(
    service: RunningService, beamtime: Beamtime, tus_js: Path, tmp_path: Path
) -> None:
    """A member's upload without any digest, as Uppy's are."""
    file, content = make_file(tmp_path)
    options = {
        "endpoint": f"{service.api}uploads",
        "headers": {"Authorization": f"token {service.tokens['ben']}"},
        "metadata": {"filename": "js/image.cbf", "experiment": beamtime.experiment},
        "chunkSize": 500_000,
    }
    broken = run_tus_js(tus_js, file, **options, breakAfter=1_200_000)
    assert broken.returncode == 3, broken.stderr
    (begun,) = service.client("ada").uploads(beamtime.experiment, state=UploadState.RECEIVING)
    assert begun.path == "shared/js/image.cbf"
    resumed = run_tus_js(tus_js, file, **options)
    assert resumed.returncode == 0, resumed.stderr
    told = json.loads(resumed.stdout)
    assert told["url"].endswith(begun.id)
    assert told["resumedAt"] >= 1_000_000
    upload = only_upload(service, beamtime, "shared/js/image.cbf")
    assert (upload.id, upload.digest_by) == (begun.id, "service")
    assert upload.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert service.client("ben").file(beamtime.experiment, upload.path) == content


def test_uppy_uploads_breaks_off_and_resumes(
    service: RunningService, beamtime: Beamtime, tus_js: Path, tmp_path: Path
) -> None:
    """With all that it tells of a file by itself: its type, and its name under several words."""
    file, content = make_file(tmp_path)
    options: dict[str, Any] = {
        "program": "uppy.cjs",
        "endpoint": f"{service.api}uploads",
        "headers": {"Authorization": f"token {service.tokens['ben']}"},
        "meta": {"experiment": beamtime.experiment},
        "chunkSize": 500_000,
    }
    broken = run_tus_js(tus_js, file, **options, breakAfter=1_200_000)
    assert broken.returncode == 3, broken.stderr
    (begun,) = service.client("ada").uploads(beamtime.experiment, state=UploadState.RECEIVING)
    assert (begun.path, begun.size) == ("shared/image.cbf", len(content))
    resumed = run_tus_js(tus_js, file, **options)
    assert resumed.returncode == 0, resumed.stderr
    told = json.loads(resumed.stdout)
    assert told["url"].endswith(begun.id)
    assert told["resumedAt"] >= 1_000_000
    assert only_upload(service, beamtime, "shared/image.cbf").id == begun.id
    assert service.client("ben").file(beamtime.experiment, "shared/image.cbf") == content


def expire(service: RunningService, beamtime: Beamtime) -> None:
    """A day goes by in which nobody goes on with the only upload."""
    (begun,) = service.client("ada").uploads(beamtime.experiment, state=UploadState.RECEIVING)
    temporary = service.data_dir / beamtime.experiment / ".incoming" / begun.id
    assert temporary.stat().st_size >= 1_000_000

    async def look(*times: float) -> None:
        """As one more process beside the service would."""
        store, inspector = Store(service.settings["database_url"]), Inspector()
        datasets = Datasets(store, service.data_dir, inspector)
        uploads = Uploads(store, Live(), service.data_dir, datasets.examine)
        for now in times:
            await uploads.leftovers.expire(now)
        await uploads.close()
        await inspector.close()
        store.close()

    asyncio.run(look(0.0, EXPIRES.total_seconds() + 1))
    assert "not continued" in service.client("ada").upload_status(begun.id).error
    assert not temporary.exists()


def test_tuspy_hears_that_its_upload_has_expired(own_service: RunningService, tmp_path: Path) -> None:
    service, beamtime = own_service, own_service.beamtime()
    file, content = make_file(tmp_path)
    client = TusClient(f"{service.api}uploads", headers={"Authorization": f"Bearer {beamtime.agent_token}"})
    options: dict[str, Any] = {"chunk_size": 500_000, "metadata": {"filename": "late.cbf"}}
    with file.open("rb") as stream:
        uploader = client.uploader(file_stream=stream, **options)
        uploader.upload(stop_at=1_000_000)
        expire(service, beamtime)
        with pytest.raises(TusCommunicationError, match="410"):
            client.uploader(file_stream=stream, **options, url=uploader.url)
        client.uploader(file_stream=stream, **options).upload()
    assert service.client("ada").file(beamtime.experiment, "raw/late.cbf") == content


def test_tus_js_client_begins_again_what_has_expired(
    own_service: RunningService, tus_js: Path, tmp_path: Path
) -> None:
    service, beamtime = own_service, own_service.beamtime()
    file, content = make_file(tmp_path)
    options: dict[str, Any] = {
        "endpoint": f"{service.api}uploads",
        "headers": {"Authorization": f"Bearer {beamtime.agent_token}"},
        "metadata": {"filename": "late.cbf"},
        "chunkSize": 500_000,
    }
    assert run_tus_js(tus_js, file, **options, breakAfter=1_200_000).returncode == 3
    expire(service, beamtime)
    again = run_tus_js(tus_js, file, **options)
    assert again.returncode == 0, again.stderr
    assert service.client("ada").file(beamtime.experiment, "raw/late.cbf") == content


def test_tus_js_client_begins_again_where_its_upload_is_gone(
    service: RunningService, beamtime: Beamtime, tus_js: Path, tmp_path: Path
) -> None:
    file, content = make_file(tmp_path)
    options = {
        "endpoint": f"{service.api}uploads",
        "headers": {"Authorization": f"token {service.tokens['ben']}"},
        "metadata": {"filename": "again/image.cbf", "experiment": beamtime.experiment},
        "chunkSize": 500_000,
    }
    assert run_tus_js(tus_js, file, **options, breakAfter=1_200_000).returncode == 3
    for upload in service.client("ben").uploads(beamtime.experiment, state=UploadState.RECEIVING):
        service.client("ben").cancel_upload(upload.id)
    resumed = run_tus_js(tus_js, file, **options)
    assert resumed.returncode == 0, resumed.stderr
    assert service.client("ben").file(beamtime.experiment, "shared/again/image.cbf") == content


def test_tus_js_client_uploads_a_stream_of_unknown_length(
    service: RunningService, beamtime: Beamtime, tus_js: Path, tmp_path: Path
) -> None:
    file, content = make_file(tmp_path, 2_900_001)  # it waits for ever behind a last chunk that is full
    sent = run_tus_js(
        tus_js,
        file,
        endpoint=f"{service.api}uploads",
        headers={"Authorization": f"token {service.tokens['ben']}"},
        metadata={"filename": "stream/image.cbf", "experiment": beamtime.experiment},
        chunkSize=500_000,
        uploadLengthDeferred=True,
    )
    assert sent.returncode == 0, sent.stderr
    upload = only_upload(service, beamtime, "shared/stream/image.cbf")
    assert (upload.size, upload.deferred) == (len(content), False)
    assert service.client("ben").file(beamtime.experiment, upload.path) == content


@pytest.mark.parametrize("parallel", [1, 4])
def test_tus_js_client_uploads_with_the_announcement_and_in_parallel(
    service: RunningService, beamtime: Beamtime, tus_js: Path, tmp_path: Path, parallel: int
) -> None:
    """creation-with-upload, and the parts that concatenation puts together."""
    file, content = make_file(tmp_path)
    name = f"parallel-{parallel}/image.cbf"
    sent = run_tus_js(
        tus_js,
        file,
        endpoint=f"{service.api}uploads",
        headers={"Authorization": f"Bearer {beamtime.agent_token}"},
        metadata={"filename": name, "sha256": hashlib.sha256(content).hexdigest()},
        uploadDataDuringCreation=True,
        parallelUploads=parallel,
    )
    assert sent.returncode == 0, sent.stderr
    upload = only_upload(service, beamtime, f"raw/{name}")
    assert service.client("ada").file(beamtime.experiment, upload.path) == content
    incoming = service.data_dir / beamtime.experiment / ".incoming"
    assert upload.concat is None if parallel == 1 else upload.concat.startswith("final;")  # type: ignore[union-attr]
    known = {upload.id for upload in service.client("ada").uploads(beamtime.experiment)}
    assert {file.name for file in incoming.iterdir()} <= known  # no part is left
