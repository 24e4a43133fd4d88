"""The REST API over HTTP, resource by resource, as its callers use it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from beamhub.client import ApiError, Client
from beamhub.frames.reader import open_dataset
from beamhub.schemas import (
    ExperimentChange,
    ExperimentState,
    FileProgress,
    Heartbeat,
    InstrumentChange,
    JobState,
    LicenceCreate,
    Role,
    SponsorshipRule,
    TriggerChange,
    TriggerCreate,
    TriggerEvent,
    UploadState,
    UsageKey,
)
from beamhub.simulation.acquisition import PILATUS, Acquisition
from beamhub.simulation.detector import VirtualPilatus
from beamhub.testing import TEMPLATE, Beamtime, RunningService

from tests.integration.asking import ada, beamtime, http, refused

__all__ = ["ada", "beamtime", "http"]


# --- instruments ---------------------------------------------------------------------------------------


def test_instruments(service: RunningService, beamtime: Beamtime) -> None:
    operator, sam, ada = (service.client(name) for name in ("operator", "sam", "ada"))
    instrument = operator.create_instrument("em-1", "Microscope", technique="cryo-EM", staff=["sam"])
    assert instrument.staff == ["sam"]
    with pytest.raises(ApiError) as error:
        operator.create_instrument("em-1", "Another")
    refused(error, 409)
    assert sam.change_instrument("em-1", InstrumentChange(automation=False)).automation is False
    assert sam.activate(beamtime.instrument, beamtime.experiment).active_experiment == beamtime.experiment
    assert beamtime.instrument in [i.id for i in ada.instruments()]
    with pytest.raises(ApiError) as error:
        ada.instrument("em-1")
    refused(error, 404)
    with pytest.raises(ApiError) as error:
        ada.change_instrument(beamtime.instrument, InstrumentChange(title="Mine"))
    refused(error, 403)


def test_an_agent_tells_how_it_is(service: RunningService) -> None:
    beamtime = service.beamtime()
    beat = Heartbeat(
        host="mx-control",
        version="0.1.0",
        state="uploading",
        current=[FileProgress(name="a.h5", size=9, sent=3)],
    )
    service.agent(beamtime).heartbeat(beamtime.instrument, beat)
    agent = service.client("sam").instrument(beamtime.instrument).agent
    assert agent is not None
    assert (agent.connected, agent.host, agent.current[0].sent) == (True, "mx-control", 3)
    with pytest.raises(ApiError) as error:
        service.client("ada").heartbeat(beamtime.instrument, beat)
    refused(error, 403)


def test_a_new_token_ends_the_old_one(service: RunningService) -> None:
    beamtime = service.beamtime()
    new = service.client("sam").new_instrument_token(beamtime.instrument)
    with pytest.raises(ApiError) as error:
        service.agent(beamtime).me()
    refused(error, 401)
    with Client(service.url, new.token, instrument=True) as agent:
        assert agent.me().kind == "instrument"


# --- experiments ---------------------------------------------------------------------------------------


def test_experiments_and_members(service: RunningService) -> None:
    beamtime = service.beamtime()
    ada, ben, sam = (service.client(name) for name in ("ada", "ben", "sam"))
    experiment = ada.experiment(beamtime.experiment)
    assert (experiment.pi, experiment.state, experiment.active) == ("ada", ExperimentState.RUNNING, True)
    assert experiment.role is Role.PI
    assert "members.manage" in experiment.actions
    assert ada.add_member(beamtime.experiment, "ben", Role.VIEWER).role is Role.VIEWER
    assert [m.user for m in ben.members(beamtime.experiment)] == ["ada", "ben"]
    with pytest.raises(ApiError) as error:
        ben.change_experiment(beamtime.experiment, ExperimentChange(title="Mine"))
    refused(error, 403)
    ada.remove_member(beamtime.experiment, "ben")
    with pytest.raises(ApiError) as error:
        ben.experiment(beamtime.experiment)
    refused(error, 404)
    closed = sam.change_experiment(beamtime.experiment, ExperimentChange(state=ExperimentState.CLOSED))
    assert (closed.state, closed.active) == (ExperimentState.CLOSED, False)
    with pytest.raises(ApiError) as error:
        ada.add_member(beamtime.experiment, "ben")
    refused(error, 403)


def test_files_of_an_experiment(service: RunningService, tmp_path: Path) -> None:
    beamtime = service.beamtime()
    ada = service.client("ada")
    file = tmp_path / "notes.html"
    file.write_bytes(b"<script>alert(1)</script>" * 30_000)
    upload = ada.upload(file, beamtime.experiment, name="plans/Größe ½.html")
    assert (upload.state, upload.path) == (UploadState.COMPLETE, "shared/plans/Größe ½.html")
    (listed,) = ada.files(beamtime.experiment, "shared")
    assert (listed.path, listed.digest, listed.size) == (upload.path, upload.digest, upload.size)
    assert ada.file(beamtime.experiment, upload.path) == file.read_bytes()
    to = ada.download(beamtime.experiment, upload.path, tmp_path / "copy")
    assert to.read_bytes() == file.read_bytes()
    for path in (
        "shared/../../../etc/passwd",
        "shared/plans",
        "/etc/passwd",
        ".incoming/x",
        "shared/nothing",
    ):
        with pytest.raises(ApiError) as error:
            ada.file(beamtime.experiment, path)
        assert error.value.status in (400, 404)


def test_a_file_is_digested_while_it_is_sent(service: RunningService, tmp_path: Path) -> None:
    beamtime, ada = service.beamtime(), service.client("ada")
    file = tmp_path / "run.log"
    file.write_bytes(b"0123456789" * 2_000_000)
    promised = []

    def look(sent: int, size: int) -> None:
        (upload,) = ada.uploads(beamtime.experiment)
        promised.append((sent, size, upload.digest_follows, upload.digest is not None))

    first = ada.upload(file, beamtime.experiment, progress=look)
    assert first.digest == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    part, size = 8 * 2**20, 20_000_000
    assert promised == [(sent, size, "sha256", sent == size) for sent in (0, part, 2 * part, size)]
    assert ada.upload(file, beamtime.experiment).id == first.id, "it was sent again"


@pytest.mark.parametrize("size", [0, 1, 10_000_000])
@pytest.mark.parametrize("change", ["rewritten", "shorter", "longer"])
def test_of_a_file_that_changes_while_it_is_sent_nothing_is_kept(
    service: RunningService, tmp_path: Path, size: int, change: str
) -> None:
    beamtime, ada = service.beamtime(), service.client("ada")
    file = tmp_path / "run.log"
    file.write_bytes(b"1" * size)

    def changes(sent: int, _: int) -> None:
        with file.open("r+b") as writer:
            if change == "shorter":
                writer.truncate(size // 2)
            else:
                writer.write(b"2")
                writer.seek(0, os.SEEK_END)
                writer.write(b"2" * (change == "longer"))
        os.utime(file, ns=(sent, sent))  # also where the clock is coarse

    with pytest.raises(ApiError, match="changed while it was sent"):
        ada.upload(file, beamtime.experiment, progress=changes)
    assert [upload.state for upload in ada.uploads(beamtime.experiment)] == [UploadState.FAILED]
    assert ada.files(beamtime.experiment, "shared") == []


def test_files_are_saved_not_shown(
    service: RunningService, beamtime: Beamtime, http: httpx.Client, tmp_path: Path
) -> None:
    page, picture = tmp_path / 'a "b".svg', tmp_path / "plot.png"
    page.write_text("<svg onload='alert(1)'/>")
    picture.write_bytes(b"\x89PNG\r\n")
    for file in (page, picture):
        service.client("ada").upload(file, beamtime.experiment)
    headers = http.get(f"experiments/{beamtime.experiment}/files/shared/a%20%22b%22.svg").headers
    assert headers["Content-Disposition"].startswith('attachment; filename="a _b_.svg"; filename*=UTF-8')
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    headers = http.get(f"experiments/{beamtime.experiment}/files/shared/plot.png").headers
    assert headers["Content-Disposition"].startswith("inline")
    assert (headers["Content-Type"], headers["Cache-Control"]) == ("image/png", "private, no-cache")


def test_a_part_of_a_file(
    service: RunningService, beamtime: Beamtime, http: httpx.Client, tmp_path: Path
) -> None:
    file = tmp_path / "digits"
    file.write_bytes(b"0123456789")
    service.client("ada").upload(file, beamtime.experiment)
    path = f"experiments/{beamtime.experiment}/files/shared/digits"
    answer = http.get(path, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["Content-Range"] == "bytes 2-4/10"
    assert http.get(path, headers={"Range": "bytes=-3"}).content == b"789"
    assert http.get(path, headers={"Range": "bytes=20-"}).status_code == 416
    answer = http.head(path)
    assert (answer.headers["Content-Length"], answer.content) == ("10", b"")


# --- datasets ------------------------------------------------------------------------------------------


def test_datasets_and_frames(service: RunningService) -> None:
    beamtime = service.beamtime()
    dataset = service.dataset(beamtime)
    ada = service.client("ada")
    assert (dataset.state, dataset.frames_readable, dataset.shape) == ("complete", 4, (16, 20))
    assert dataset.metadata["detector_distance"].unit == "m"
    assert ada.dataset(dataset.id) == dataset
    frame = ada.frame(dataset.id, 3)
    assert (frame.shape, frame.dtype) == ((16, 20), np.dtype(np.uint16))
    assert frame[0, 0] == 2**16 - 1
    assert (frame.ravel()[1:] == 3).all()
    assert ada.frame(dataset.id, 3, bin=4).shape == (4, 5)
    assert ada.frame(dataset.id, 3, region=(5, 0, 15, 8)).shape == (8, 10)
    assert ada.frame_png(dataset.id, 1).startswith(b"\x89PNG")
    for n, query in ((5, {}), (1, {"region": (0, 0, 30, 8)}), (1, {"bin": 0})):
        with pytest.raises(ApiError) as error:
            ada.frame(dataset.id, n, **query)
        assert error.value.status in (404, 422)


def test_a_series_of_cbf_files(service: RunningService, tmp_path: Path) -> None:
    """Sent by the agent, looked at by its members while it grows, ended by the staff, followed by a job."""
    mine = service.beamtime()
    ada, sam, agent = service.client("ada"), service.client("sam"), service.agent(mine)
    sponsor = service.licence(mine)
    sam.create_trigger(
        mine.instrument,
        at_the_end("At the end", sponsor),
    )
    scan = Acquisition(PILATUS["300K"], 3, distance=0.1, dtype="uint32")
    detector = VirtualPilatus(tmp_path, "pil", scan, rate=1000)
    detector.run()
    here = open_dataset(detector.dataset)
    for number in (1, 2, 3):
        agent.upload(detector.frame_file(number))
        (dataset,) = ada.datasets(mine.experiment)
        assert (dataset.frames_readable, dataset.state) == (number, "receiving")
        assert np.array_equal(ada.frame(dataset.id, number), here.frame(number - 1))
    assert (dataset.name, dataset.format, dataset.open_ended) == ("pil", "cbf", True)
    assert ada.frame(dataset.id, 2, bin=4).shape == (155, 122)
    assert ada.frame_png(dataset.id, 3).startswith(b"\x89PNG")
    with pytest.raises(ApiError) as error:
        ada.end_dataset(dataset.id)
    refused(error, 403)
    assert sam.end_dataset(dataset.id).state == "complete"
    with contextlib.closing(ada.events(mine.experiment, last_id=0)) as events:
        job = next(event for event in events if event.kind == "job.created").subject
    assert ada.wait(int(job), timeout=120).inputs[0].id == dataset.id


# --- templates, triggers, jobs, licences ---------------------------------------------------------------


def test_templates_and_profiles(ada: Client) -> None:
    assert TEMPLATE in [template.name for template in ada.templates()]
    template = ada.template(TEMPLATE)
    assert template.source == "facility"
    properties: Any = template.parameters["properties"]
    assert properties["word"]["default"] == "hello"
    assert [profile.cpus for profile in ada.profiles()] == [1, 2]
    with pytest.raises(ApiError) as error:
        ada.template("nothing")
    refused(error, 404)


def test_jobs_are_compared(service: RunningService) -> None:
    beamtime = service.beamtime()
    licence, dataset = service.licence(beamtime), service.dataset(beamtime)
    ada = service.client("ada")
    first = ada.submit(
        beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence, parameters={"word": "short"}
    )
    second = ada.rerun(first.id, parameters={"word": "much longer"})
    for job in (first, second):
        assert ada.wait(job.id, timeout=120).state is JobState.FINISHED
    found = ada.compare(second.id, first.id, second.id)
    assert found.jobs == [second.id, first.id]
    rows = {(row.group, row.name): (row.values, row.differ) for row in found.rows}
    assert rows["parameters", "word"] == (["much longer", "short"], True)
    assert rows["metrics", "length"] == ([11, 5], True)
    assert rows["job", "template"] == ([TEMPLATE, TEMPLATE], False)
    assert rows["job", "inputs"] == (["lyso", "lyso"], False)
    assert [[row["value"] for row in page.items] for page in found.series["counts"] if page] == [
        [0, 1, 4]
    ] * 2
    with pytest.raises(ApiError) as error:
        service.client("eve").compare(first.id, second.id)
    refused(error, 404)
    with pytest.raises(ApiError) as error:
        ada.compare(first.id)
    refused(error, 422)


def at_the_end(title: str, sponsor: str) -> TriggerCreate:
    """A rule that runs the template on each dataset that is complete."""
    return TriggerCreate(
        title=title,
        event=TriggerEvent.DATASET_COMPLETE,
        template=TEMPLATE,
        profile="cpu-1",
        sponsor=sponsor,
    )


def test_trigger_rules_start_jobs(service: RunningService) -> None:
    beamtime = service.beamtime()
    licence = service.licence(beamtime)
    sam, ada = service.client("sam"), service.client("ada")
    rule = sam.create_trigger(
        beamtime.instrument,
        at_the_end("Echo every dataset", licence),
    )
    changed = sam.change_trigger(rule.id, TriggerChange(parameters={"word": "automatic"}))
    assert changed.version > rule.version
    assert [t.id for t in ada.triggers(beamtime.instrument)] == [rule.id]
    with pytest.raises(ApiError) as error:
        ada.delete_trigger(rule.id)
    refused(error, 403)
    service.dataset(beamtime)
    with contextlib.closing(ada.events(beamtime.experiment, last_id=0)) as events:
        created = next(m for m in events if m.kind == "job.created")
    job = ada.wait(int(created.subject), timeout=120)
    assert (job.state, job.launched_by, job.reason) == (JobState.FINISHED, f"trigger:{rule.id}", "")
    assert job.parameters == {"word": "automatic"}
    sam.delete_trigger(rule.id)
    assert ada.triggers(beamtime.instrument) == []


def test_jobs_from_start_to_result(service: RunningService) -> None:
    beamtime = service.beamtime(members={"ben": Role.COLLABORATOR})
    licence, dataset = service.licence(beamtime), service.dataset(beamtime)
    ada, ben = service.client("ada"), service.client("ben")
    assert licence in [one.id for one in ada.sponsors(beamtime.experiment)]

    word = "<script>alert(1)</script><b>bold</b>"
    job = ada.submit(
        beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence, parameters={"word": word}, key="once"
    )
    same = ada.submit(
        beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence, parameters={"word": word}, key="once"
    )
    assert same.id == job.id
    job = ben.wait(job.id, timeout=120)
    assert (job.state, job.reason, job.launched_by) == (JobState.FINISHED, "", "ada")
    assert job.metrics["length"].value == len(word)
    assert job.inputs[0].name == "lyso"
    assert job.cpu_seconds > 0

    log, position = ben.job_log(job.id)
    assert word in log
    assert ben.job_log(job.id, position) == ("", position)
    rows = ben.series(job.id, "counts")
    assert [row["value"] for row in rows.items] == [0, 1, 4]
    assert rows.columns["value"] == "counts"
    assert ben.series(job.id, "counts", rows.next).items == []
    assert {"said.txt", "notebook.ipynb", "log.txt"} <= {file.path for file in ben.job_files(job.id)}
    assert ben.job_file(job.id, "said.txt").decode() == word
    assert json.loads(ben.notebook(job.id))["nbformat"] == 4
    page = ben.notebook(job.id, "html")
    assert "<b>bold</b>" in page
    assert "<script>alert(1)" not in page

    again = ben.rerun(job.id, parameters={"word": "fail"})
    assert (again.parent, again.launched_by, again.sponsor) == (job.id, "ben", licence)
    failed = ada.wait(again.id, timeout=120)
    assert failed.state is JobState.FAILED
    assert "it was told to fail" in failed.reason
    assert [j.id for j in ada.jobs(beamtime.experiment, dataset=dataset.id)] == [again.id, job.id]
    assert [j.id for j in ada.jobs(beamtime.experiment, state=JobState.FAILED)] == [again.id]

    ledger = service.client("sam").ledger(licence)
    assert [line.kind for line in ledger if line.job == job.id] == ["release", "charge", "hold"]
    with pytest.raises(ApiError) as error:
        ada.cancel(job.id)
    refused(error, 409)
    with pytest.raises(ApiError) as error:
        ada.submit(beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence, parameters={"wort": 1})
    refused(error, 422)


def test_the_page_of_a_notebook_runs_nothing(service: RunningService, http: httpx.Client) -> None:
    beamtime = service.beamtime()
    licence, dataset = service.licence(beamtime, 0), service.dataset(beamtime)
    job = service.client("ada").submit(beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence)
    assert job.state is JobState.PENDING
    assert "credit" in job.reason
    headers = http.get(f"jobs/{job.id}/notebook?format=html").headers
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "script-src" not in headers["Content-Security-Policy"]
    headers = http.get(f"jobs/{job.id}/notebook").headers
    assert headers["Content-Disposition"].startswith("attachment")
    assert service.client("ada").cancel(job.id, "not needed").state is JobState.CANCELLED


def test_licences(service: RunningService) -> None:
    operator, ben = service.client("operator"), service.client("ben")
    operator.create_licence(LicenceCreate(id="ben-own", title="Ben", kind="user", owner="ben", cpu_hours=1))
    assert operator.grant("ben-own", 0.5, "for the revision").granted == 5400
    assert [licence.id for licence in ben.licences()] == ["ben-own"]
    assert ben.licence("ben-own").available == 5400
    assert ben.ledger("ben-own", limit=1)[0].note == "for the revision"
    with pytest.raises(ApiError) as error:
        ben.grant("ben-own", 100)
    refused(error, 403)
    with pytest.raises(ApiError) as error:
        service.client("ada").licence("ben-own")
    refused(error, 404)


def test_licences_from_terms_to_reports(service: RunningService) -> None:
    beamtime = service.beamtime()
    ada, sam, operator = (service.client(name) for name in ("ada", "sam", "operator"))
    dataset, lab = service.dataset(beamtime), service.licence(beamtime)
    job = ada.wait(ada.submit(beamtime.experiment, TEMPLATE, dataset.id, sponsor=lab).id)
    sam.set_terms(lab, [SponsorshipRule(states=[ExperimentState.RUNNING], roles=[Role.PI])])
    assert ada.sponsors(beamtime.experiment, TEMPLATE)[0].refusal == ""
    sam.change_experiment(beamtime.experiment, ExperimentChange(state=ExperimentState.PROCESSING))
    why = f"The licence {lab} pays on {beamtime.instrument} only while the experiment is running."
    assert ada.sponsors(beamtime.experiment)[0].refusal == why
    with pytest.raises(ApiError, match=why):
        ada.rerun(job.id)
    with pytest.raises(ApiError) as refused:
        ada.set_terms(lab, [])
    assert refused.value.status == 404

    corrected = operator.correct(job.id, 1, job.cpu_seconds + 7, "the cluster's accounts")
    assert corrected.cpu_seconds == job.cpu_seconds + 7
    with pytest.raises(ApiError):
        sam.correct(job.id, 1, 0)
    assert operator.ledger(lab)[0].kind == "correction"
    operator.grant(lab, 1, valid_until=datetime(2999, 1, 1, tzinfo=UTC))
    assert [grant.valid_until is None for grant in sam.grants(lab)] == [False, True]

    (row,) = [row for row in ada.usage(UsageKey.EXPERIMENT) if row.experiment == beamtime.experiment]
    assert (row.jobs, row.cpu_seconds) == (1, corrected.cpu_seconds)
    text = ada.usage_csv(UsageKey.EXPERIMENT, UsageKey.MONTH, begin=datetime.now(UTC).date())
    assert text.splitlines()[0] == "experiment,month,jobs,cpu_seconds,cpu_hours"
    assert f",1,{corrected.cpu_seconds}," in text
    assert f">{beamtime.experiment}</text>" in ada.usage_svg(UsageKey.EXPERIMENT)
    assert ada.usage(begin=datetime(2999, 1, 1, tzinfo=UTC).date()) == []


# --- the log -------------------------------------------------------------------------------------------


def test_the_log_and_the_audit_trail(service: RunningService) -> None:
    beamtime = service.beamtime()
    kinds = [event.kind for event in service.client("ada").past_events(beamtime.experiment)]
    assert kinds == ["experiment.created", "member.added", "experiment.changed", "experiment.activated"]
    headers = {"Authorization": f"token {service.tokens['sam']}"}
    answer = httpx.get(f"{service.api}audit?experiment={beamtime.experiment}&limit=2", headers=headers)
    assert [event["actor"] for event in answer.json()["items"]] == ["sam", "sam"]
    assert answer.json()["next"] == str(answer.json()["items"][-1]["id"])
    headers = {"Authorization": f"token {service.tokens['ada']}"}
    assert httpx.get(f"{service.api}audit", headers=headers).status_code == 403
