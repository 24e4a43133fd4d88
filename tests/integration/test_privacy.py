"""Nobody sees an experiment they don't belong to: a stranger tries every route there is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from beamhub.api import ROUTES
from beamhub.api.routes import Route
from beamhub.client import ApiError
from beamhub.schemas import TriggerCreate, TriggerEvent, UploadState
from beamhub.testing import TEMPLATE, RunningService, write_dataset

# what everybody may see who may sign in at all; nothing of it is about an experiment
OPEN = {
    "get_openapi": 200,
    "health": 200,
    "signed_in": 200,
    "me": 200,
    "list_templates": 200,
    "get_template": 200,
    "list_profiles": 200,
    "list_runners": 200,
    "describe_tus": 204,
    # lists of what the caller belongs to: empty for a stranger
    "list_instruments": 200,
    "list_experiments": 200,
    "list_jobs": 200,
    "list_licences": 200,
    "list_events": 200,
    "report_usage": 200,
    # says of each job that there is none
    "rerun_jobs": 200,
    "cancel_jobs": 200,
}
BODIES: Mapping[str, Any] = {
    "create_instrument": {"id": "eves-own", "title": "Eve's own"},
    "change_instrument": {"title": "Eve's"},
    "put_heartbeat": {"host": "eve", "version": "1"},
    "put_agent_files": {"items": []},
    "put_journal_report": {"items": []},
    "pause_uploads": {"reason": "Eve's"},
    "retry_uploads": {},
    "skip_uploads": {"pattern": "*", "reason": "Eve's"},
    "unskip_uploads": {},
    "release_upload": {"reason": "Eve's"},
    "end_dataset": None,
    "move_dataset": {"experiment": "mx-1-2026-00002", "reason": "Eve's"},
    "finalise_experiment": {"force": True, "reason": "Eve's"},
    "discard_upload": {"reason": "Eve's"},
    "create_experiment": {"instrument": "INSTRUMENT", "title": "Eve's", "pi": "eve"},
    "change_experiment": {"title": "Eve's"},
    "add_member": {"user": "eve"},
    "create_trigger": {
        "title": "Eve's",
        "event": "dataset.started",
        "template": TEMPLATE,
        "profile": "cpu-1",
        "sponsor": "SPONSOR",
    },
    "change_trigger": {"enabled": False},
    "override_trigger": {"enabled": False},
    "catch_up": None,
    "create_experiment_trigger": {
        "title": "Eve's",
        "event": "dataset.started",
        "template": TEMPLATE,
        "profile": "cpu-1",
        "sponsor": "SPONSOR",
    },
    "try_out_experiment_trigger": {
        "rule": {
            "title": "Eve's",
            "event": "dataset.complete",
            "template": TEMPLATE,
            "profile": "cpu-1",
            "sponsor": "SPONSOR",
        }
    },
    "try_out_trigger": {
        "rule": {
            "title": "Eve's",
            "event": "dataset.complete",
            "template": TEMPLATE,
            "profile": "cpu-1",
            "sponsor": "SPONSOR",
        }
    },
    "call_triggers": {"name": "eves-own", "dataset": "DATASET"},
    "replay_trigger": {"datasets": ["DATASET"]},
    "submit_job": {"template": TEMPLATE, "inputs": ["DATASET"], "sponsor": "SPONSOR"},
    "submit_jobs_on_each": {"template": TEMPLATE, "datasets": ["DATASET"], "sponsor": "SPONSOR"},
    "correct": {"attempt": 1, "cpu_seconds": 1, "note": "Eve's"},
    "estimate_job": {"template": TEMPLATE, "inputs": ["DATASET"], "sponsor": "SPONSOR"},
    "rerun_job": {},
    "make_rule": {},
    "estimate_rerun": {},
    "change_job": {"priority": -1},
    "rerun_jobs": {"jobs": ["JOB"]},
    "cancel_jobs": {"jobs": ["JOB"], "reason": "Eve's"},
    "cancel_job": {},
    "create_licence": {"id": "eves-own", "title": "Eve's own", "kind": "user", "owner": "eve"},
    "grant": {"cpu_hours": 1},
    "set_terms": {"rules": []},
    "rotate_token": None,
    "show_frames": {"link": "/d", "shape": [1, 1], "dtype": "uint8", "codec": "", "chunks": [[0, 1]]},
    "register_file": {"source": "/etc/hostname", "filename": "x", "size": 1, "digest": "xxh128:" + 32 * "0"},
}


@dataclass(frozen=True)
class Scene:
    """Ada's experiment with one of everything, and what no stranger may read anywhere."""

    ids: Mapping[str, str]
    secrets: tuple[str, ...]

    def path(self, route: Route) -> str:
        return re.sub(r"\{(\w+)(?::path)?\}", lambda match: self._value(route, match[1]), route.path)

    def body(self, route: Route) -> Any:
        text = json.dumps(BODIES[route.name])
        for name in ("instrument", "sponsor"):
            text = text.replace(name.upper(), self.ids[name])
        return json.loads(text.replace('"DATASET"', self.ids["dataset"]).replace('"JOB"', self.ids["job"]))

    def _value(self, route: Route, name: str) -> str:
        if name == "path":
            return "said.txt" if route.name == "get_job_file" else "shared/secret-notes.txt"
        if name == "name":
            return TEMPLATE if route.name == "get_template" else "counts"
        return self.ids[name]


@pytest.fixture(scope="module")
def scene(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    beamtime = service.beamtime()
    ada, sam = service.client("ada"), service.client("sam")
    dataset = service.dataset(beamtime, name="secret-crystal")
    licence = service.licence(beamtime)
    notes = tmp_path_factory.mktemp("scene") / "secret-notes.txt"
    notes.write_text("secret-content")
    upload = ada.upload(notes, beamtime.experiment)
    job = ada.submit(
        beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence, parameters={"word": "secret-word"}
    )
    ada.wait(job.id, timeout=120)
    rule = sam.create_trigger(
        beamtime.instrument,
        TriggerCreate(
            title="secret-rule",
            event=TriggerEvent.DATASET_COMPLETE,
            template=TEMPLATE,
            profile="cpu-1",
            sponsor=licence,
        ),
    )
    ids = {
        "instrument": beamtime.instrument,
        "experiment": beamtime.experiment,
        "user": "ada",
        "command": str(sam.retry_uploads(beamtime.instrument).id),
        "dataset": str(dataset.id),
        "n": "1",
        "job": str(job.id),
        "trigger": str(rule.id),
        "licence": licence,
        "sponsor": licence,
        "upload": upload.id,
    }
    return Scene(ids, ("secret-", beamtime.experiment, licence, f"Beamline {beamtime.instrument}"))


@pytest.fixture(scope="module")
def wire(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.api, timeout=30) as client:
        yield client


def request(wire: httpx.Client, scene: Scene, route: Route, token: str | None, accept: str) -> httpx.Response:
    headers = {"Accept": accept, "Tus-Resumable": "1.0.0", "Upload-Length": "1", "Upload-Offset": "0"}
    if token:
        headers["Authorization"] = token
    if route.name == "create_upload":
        values = {
            "filename": "x",
            "sha256": hashlib.sha256(b"x").hexdigest(),
            "experiment": scene.ids["experiment"],
        }
        headers["Upload-Metadata"] = ",".join(
            f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in values.items()
        )
    content = b"x" if route.streams_body else None
    if route.name == "rewrite_upload":
        headers["Content-Range"] = "bytes 0-0/*"
    if route.name == "deliver_files":
        head = {"experiment": scene.ids["experiment"], "files": [{"filename": "x", "size": 1}]}
        content = json.dumps(head).encode() + b"\nx"
    if route.streams_body:
        headers["Content-Type"] = route.streams_body
    queries = {
        "list_uploads": {"experiment": scene.ids["experiment"]},
        "compare_jobs": {"jobs": f"{scene.ids['job']},{scene.ids['job']}"},
    }
    body = scene.body(route) if route.name in BODIES else None
    return wire.request(
        route.method,
        scene.path(route),
        headers=headers,
        params=queries.get(route.name),
        json=body,
        content=content,
    )


def assert_silent(answer: httpx.Response, scene: Scene) -> None:
    """A refusal may repeat the ids that it was asked about; nothing else of the scene is in any answer."""
    text = answer.text.replace("secret-notes.txt", "")
    if answer.is_error:
        assert answer.request.method == "HEAD" or answer.headers["Content-Type"] == "application/problem+json"
        for id_ in scene.ids.values():
            text = text.replace(id_, "")
    for secret in scene.secrets:
        assert secret not in text


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.mark.parametrize("route", ROUTES, ids=named)
def test_a_stranger_gets_nothing(
    service: RunningService, wire: httpx.Client, scene: Scene, route: Route
) -> None:
    for accept in ("application/json", "text/html"):
        answer = request(wire, scene, route, f"token {service.tokens['eve']}", accept)
        if route.name in OPEN:
            assert answer.status_code == OPEN[route.name]
        else:
            assert answer.status_code in (403, 404)
        assert_silent(answer, scene)


@pytest.mark.parametrize("route", [one for one in ROUTES if not one.public], ids=named)
def test_nobody_gets_nothing(wire: httpx.Client, scene: Scene, route: Route) -> None:
    for token in (None, "token wrong", "Bearer wrong"):
        answer = request(wire, scene, route, token, "application/json")
        assert answer.status_code == 401
        assert_silent(answer, scene)


@pytest.mark.parametrize("route", ROUTES, ids=named)
def test_another_instruments_agent_gets_nothing(
    wire: httpx.Client, scene: Scene, other_agent: str, route: Route
) -> None:
    """What it names is not there; what it may not do at all, or not there, says so."""
    answer = request(wire, scene, route, f"Bearer {other_agent}", "application/json")
    if "{" in route.path and route.name not in {*OPEN, "correct"}:
        assert answer.status_code == 404
    elif route.name not in {*OPEN, "list_uploads"}:
        assert answer.status_code in (403, 404, 409)
    assert_silent(answer, scene)


@pytest.fixture(scope="module")
def other_agent(service: RunningService) -> str:
    return service.beamtime().agent_token


def test_ids_that_exist_and_ids_that_do_not_look_alike(
    service: RunningService, wire: httpx.Client, scene: Scene
) -> None:
    headers = {"Authorization": f"token {service.tokens['eve']}"}
    for path, id_, other in (
        ("experiments/{}", scene.ids["experiment"], "mx-99-2026-00001"),
        ("experiments/{}/files/raw/x", scene.ids["experiment"], "mx-99-2026-00001"),
        ("instruments/{}", scene.ids["instrument"], "mx-99"),
        ("datasets/{}", scene.ids["dataset"], "999999"),
        ("datasets/{}/frames/1", scene.ids["dataset"], "999999"),
        ("jobs/{}", scene.ids["job"], "999999"),
        ("licences/{}", scene.ids["licence"], "lab-mx-99"),
        ("uploads/{}", scene.ids["upload"], "f" * 32),
    ):
        seen = wire.get(path.format(id_), headers=headers)
        unseen = wire.get(path.format(other), headers=headers)
        assert seen.status_code == unseen.status_code == 404
        assert seen.text.replace(id_, "") == unseen.text.replace(other, "")


def test_a_detector_file_cannot_show_another_experiment(service: RunningService, tmp_path: Path) -> None:
    """A master whose links leave its folder is put where nobody gets at it; no dataset comes of it."""
    import h5py

    mine = service.beamtime()
    master, *_ = write_dataset(tmp_path, "evil")
    with h5py.File(master, "a") as file:
        del file["entry/data/data_000001"]
        file["entry/data/data_000001"] = h5py.ExternalLink(
            "../../other/raw/lyso_data_000001.h5", "/entry/data/data"
        )
    upload = service.agent(mine).upload(master)
    assert upload.state is UploadState.QUARANTINED
    assert "out of its folder" in upload.error
    ada, sam = service.client("ada"), service.client("sam")
    assert ada.files(mine.experiment) == []
    folder = service.data_dir / mine.experiment
    assert not [path for path in folder.rglob("*") if path.is_file()]
    kept = service.data_dir / ".quarantine" / mine.experiment / upload.id
    assert kept.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ApiError):
        ada.file(mine.experiment, "raw/evil_master.h5")
    assert [one.id for one in sam.quarantine(mine.instrument)] == [upload.id]
    with pytest.raises(ApiError):
        ada.quarantine(mine.instrument)
    assert service.client("ada").datasets(mine.experiment) == []
