"""A job's folder is written by anybody's code: reading it is bounded, confined and never fails."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from beamhub import run
from beamhub.errors import BeamhubError, NotFound
from beamhub.jobfolder import MAX_READ, MAX_RESULT, JobFolder, Reader
from beamhub.sandbox import TEMPORARY
from beamhub.schemas import JobResult, JobSpec, SpecInput
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    job = JobFolder(tmp_path / "experiment", 7)
    job.path.mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    return job


def write_result(folder: JobFolder, content: Any) -> None:
    (folder.path / "result.json").write_text(json.dumps(content))


def read_result(folder: JobFolder) -> JobResult:
    result = folder.result()
    assert result is not None
    return result


def test_a_job_that_runs_gives_signs_of_life(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it prints nothing, and although its storage is away meanwhile."""
    monkeypatch.chdir(folder.path)
    monkeypatch.setattr(run, "BEAT", 0.001)
    run._reserve()
    before, over = run.RESERVE.stat().st_ctime_ns, threading.Event()
    living = threading.Thread(target=run._live, args=(over,))
    living.start()
    for _ in range(2):
        while run.RESERVE.stat().st_ctime_ns == before:
            assert living.is_alive()
        run.RESERVE.rename("away")
        before = Path("away").stat().st_ctime_ns
        Path("away").rename(run.RESERVE)
    assert datetime.now(UTC) - folder.last_sign() < timedelta(minutes=10)
    over.set()
    living.join()


def test_artifacts_get_their_true_size_and_digest(folder: JobFolder) -> None:
    (folder.path / "out").mkdir()
    (folder.path / "out" / "scaled.mtz").write_bytes(b"mtz")
    (folder.path / "notebook.ipynb").write_text("{}")
    artifact = {"path": "out/scaled.mtz", "title": "Scaled", "size": 999, "digest": "f" * 64}
    write_result(folder, {"outcome": "finished", "artifacts": [artifact]})
    scaled, notebook = read_result(folder).artifacts
    assert (scaled.path, scaled.size, scaled.digest) == ("out/scaled.mtz", 3, sha256(b"mtz").hexdigest())
    assert (notebook.path, notebook.kind) == ("notebook.ipynb", "notebook")


def test_artifacts_outside_of_the_folder_are_left_out(folder: JobFolder, tmp_path: Path) -> None:
    (folder.path / "link").symlink_to(tmp_path / "secret.txt")
    (folder.path / "up").symlink_to(tmp_path)
    os.mkfifo(folder.path / "pipe")
    paths = ["../../../secret.txt", str(tmp_path / "secret.txt"), "link", "up/secret.txt", "pipe", "", "\0"]
    write_result(folder, {"outcome": "finished", "artifacts": [{"path": path} for path in paths]})
    assert read_result(folder).artifacts == []


@pytest.mark.parametrize("path", ["link", "up/secret.txt", "../../../secret.txt", "pipe", "out", "missing"])
def test_files_are_opened_in_the_folder_only(folder: JobFolder, tmp_path: Path, path: str) -> None:
    (folder.path / "link").symlink_to(tmp_path / "secret.txt")
    (folder.path / "up").symlink_to(tmp_path)
    (folder.path / "out").mkdir()
    os.mkfifo(folder.path / "pipe")
    with pytest.raises(BeamhubError):
        folder.open(path)
    assert [file.path for file in folder.files()] == []


def test_a_link_in_place_of_a_report_is_not_followed(folder: JobFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.jsonl").write_text('{"columns": {"a": ""}}\n{"a": 1}\n')
    (tmp_path / "result.json").write_text('{"outcome": "finished"}')
    for name, target in (
        ("log.txt", "secret.txt"),
        ("report.jsonl", "outside/x.jsonl"),
        ("result.json", "result.json"),
    ):
        (folder.path / name).symlink_to(tmp_path / target)
    (folder.path / "series").symlink_to(outside)
    assert folder.log(0) == ("", 0)
    assert folder.result() is None
    news = folder.news(Reader())
    assert not news.told
    assert news.series == {}
    assert folder.series("x", 0).items == []


def test_what_has_not_grown_is_not_read_again(folder: JobFolder) -> None:
    reader = Reader()
    report, series = folder.path / "report.jsonl", folder.path / "series" / "x.jsonl"
    report.write_text('{"what": "progress", "fraction": 0.5}\n')
    series.parent.mkdir()
    series.write_text('{"columns": {"a": ""}}\n{"a": 1}\n')
    os.utime(series.parent, (1e9, 1e9))  # as if it had been made a while ago
    assert folder.news(reader).told
    assert not folder._grown(reader)
    news = folder.news(reader)
    assert (news.progress.fraction, news.told, news.series) == (0.5, False, {})
    with series.open("a") as file:
        file.write('{"a": 2}\n')
    assert folder.news(reader).series["x"].items == [{"a": 2}]
    assert not folder._grown(reader)
    (folder.path / "series" / "y.jsonl").write_text('{"columns": {"b": ""}}\n{"b": 1}\n')
    assert list(folder.news(reader).series) == ["y"]
    report.unlink()
    (folder.path / "series").chmod(0)  # a job may lock its folders
    assert folder.news(reader, thorough=True).progress.fraction == 0.5
    (folder.path / "series").chmod(0o700)


def test_a_result_that_is_too_large_is_not_read(folder: JobFolder) -> None:
    (folder.path / "result.json").write_bytes(b" " * (MAX_RESULT + 1))
    assert read_result(folder).outcome == "failed"


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{",
        "\\ud800",
        DEEP,
        '{"outcome": "perfect"}',
        '{"outcome": "failed", "reason": 7}',
        '{"outcome": "finished", "cell": "x"}',
        '{"outcome": "finished", "metrics": 7}',
        '{"outcome": "finished", "metrics": {"a": 1}}',
        '{"outcome": "finished", "artifacts": {"a": 1}}',
    ],
)
def test_a_result_that_is_none_fails_the_job(folder: JobFolder, content: str) -> None:
    (folder.path / "result.json").write_text(content)
    assert read_result(folder).outcome == "failed"


def test_reasons_and_metrics_become_plain_text_and_numbers(folder: JobFolder) -> None:
    (folder.path / "result.json").write_text(
        json.dumps(
            {
                "outcome": "failed",
                "reason": "a\x00b\n\u202ec<script>",
                "metrics": {
                    "good": {"value": 1.5, "unit": "Å\x07"},
                    "nan": {"value": float("nan"), "unit": ""},
                    "huge": {"value": 10**400, "unit": ""},
                    "list": {"value": [1, float("inf"), "x", 2], "unit": ""},
                    "../name": {"value": 1, "unit": ""},
                },
            }
        )
    )
    result = read_result(folder)
    assert result.reason == "a b c<script>"
    shown = {name: (metric.value, metric.unit) for name, metric in result.metrics.items()}
    assert shown == {"good": (1.5, "Å"), "nan": (None, ""), "huge": (None, ""), "list": ([1.0, 2.0], "")}
    result.model_dump_json().encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["outcome", "reason", "metrics", "artifacts", "what", "name", "value", "path"]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_json_can_be_read(folder: JobFolder, content: Any) -> None:
    text = json.dumps(content)
    (folder.path / "result.json").write_text(text)
    (folder.path / "report.jsonl").write_text(text + "\n")
    read_result(folder).model_dump_json().encode()
    news = folder.news(Reader())
    json.dumps(news.progress.model_dump(), allow_nan=False).encode()
    for metric in news.metrics.values():
        json.dumps(metric.model_dump(), allow_nan=False).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(folder: JobFolder, content: bytes) -> None:
    (folder.path / "series").mkdir(exist_ok=True)
    for name in ("report.jsonl", "result.json", "log.txt", "series/x.jsonl"):
        (folder.path / name).write_bytes(content)
    folder.news(Reader())
    read_result(folder)
    folder.series("x", 0)
    text, position = folder.log(0)
    rest, end = folder.log(position)
    assert (rest, end) == ("", position)
    assert content.decode("utf-8", "replace").startswith(text)


def test_a_line_without_end_does_not_stop_the_report(folder: JobFolder) -> None:
    report = folder.path / "report.jsonl"
    report.write_bytes(b"x" * (MAX_READ + 10) + b"\n" + b'{"what": "progress", "fraction": 0.5}\n')
    reader = Reader()
    fractions = [folder.news(reader).progress.fraction for _ in range(3)]
    assert fractions[-1] == 0.5


def test_half_a_line_and_half_a_character_wait_for_the_rest(folder: JobFolder) -> None:
    reader = Reader()
    (folder.path / "report.jsonl").write_text('{"what": "progress", "fraction": 0.5')
    assert not folder.news(reader).told
    (folder.path / "report.jsonl").write_text('{"what": "progress", "fraction": 0.5}\n')
    assert folder.news(reader).told

    whole = "5 Å\n".encode()
    (folder.path / "log.txt").write_bytes(whole[:3])
    text, position = folder.log(0)
    (folder.path / "log.txt").write_bytes(whole)
    assert text + folder.log(position)[0] == "5 Å\n"


def test_artifacts_are_told_as_far_as_they_are_there(folder: JobFolder, tmp_path: Path) -> None:
    (folder.path / "a.png").write_bytes(b"1234")
    (folder.path / "link.png").symlink_to(tmp_path / "secret.txt")
    told: list[dict[str, object]] = [
        {"what": "artifact", "path": "a.png", "title": "A\n<b>", "artifact": "plot"},
        {"what": "artifact", "path": "missing.png", "title": "", "artifact": "plot"},
        {"what": "artifact", "path": "link.png", "title": "", "artifact": "plot"},
        {"what": "artifact", "path": "../../raw/x", "title": "", "artifact": "data"},
        {"what": "artifact", "path": ["a.png"], "title": "", "artifact": "data"},
        {"what": "artifact", "path": "a.png", "title": "", "artifact": "virus"},
        {"what": "artifact"},
    ]
    (folder.path / "report.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    news = folder.news(Reader())
    assert [(one.path, one.title, one.kind, one.size) for one in news.artifacts] == [
        ("a.png", "A <b>", "plot", 4)
    ]
    assert news.told


def test_a_sealed_folder_is_read_only(folder: JobFolder, tmp_path: Path) -> None:
    inner = folder.path / "out"
    inner.mkdir()
    (inner / "x.txt").write_text("x")
    (inner / "x.txt").chmod(0o666)
    (folder.path / "link").symlink_to(tmp_path / "secret.txt")
    inner.chmod(0)  # the job has locked it
    before = stat.S_IMODE((tmp_path / "secret.txt").stat().st_mode)
    folder.seal()
    for path in (folder.path, inner, inner / "x.txt"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o222 == 0
        assert mode & 0o400
    assert stat.S_IMODE((tmp_path / "secret.txt").stat().st_mode) == before


def test_a_sealed_folder_still_tells_when_its_job_has_ended(folder: JobFolder) -> None:
    result = folder.path / "result.json"
    result.write_text("{}")
    result.chmod(0o444)  # as a job leaves it
    ended = result.stat().st_ctime_ns
    folder.seal()
    folder.seal()
    assert result.stat().st_ctime_ns == ended


def test_temporary_files_go_with_the_job(folder: JobFolder, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    deep = folder.path / TEMPORARY / "beamhub-1"
    deep.mkdir(parents=True)
    (deep / "kernel.json").write_text("{}")
    (deep / "link").symlink_to(tmp_path / "precious")
    folder.path.chmod(0o500)  # its job has locked it
    folder.seal()
    assert not (folder.path / TEMPORARY).exists()
    assert (tmp_path / "precious").exists()


def test_a_folder_that_is_gone_has_nothing_to_be_sealed(folder: JobFolder) -> None:
    shutil.rmtree(folder.path)
    folder.seal()
    assert not folder.path.exists()


def test_a_fresh_folder_has_nothing_of_an_earlier_start(folder: JobFolder) -> None:
    (folder.path / "notebook.ipynb").write_text("old")
    assert folder.begun()
    spec = JobSpec(
        id=7,
        experiment="e",
        template="t",
        template_version="v",
        parameters={"a": 1},
        inputs=[SpecInput(id=1, name="d", path="/d")],
        cpus=1,
        memory=4 * 1024**3,
        folder=str(folder.path),
    )
    folder.lay(spec, b"{}")
    assert not folder.begun()
    assert sorted(path.name for path in folder.path.iterdir()) == ["job.json", "template.ipynb"]
    assert JobSpec.model_validate_json((folder.path / "job.json").read_bytes()) == spec


def test_before_there_is_a_folder_there_is_nothing_in_it(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, 1)
    assert folder.files() == []
    assert folder.log(0) == ("", 0)
    assert folder.result() is None
    assert folder.series("x", 0).items == []
    with pytest.raises(NotFound):
        folder.open("log.txt")
