"""What a notebook reports arrives in files, line by line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from beamhub import report
from beamhub.jobfolder import JobFolder, Reader


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    job = JobFolder(tmp_path, 1)
    job.path.mkdir(parents=True)
    monkeypatch.setenv("BEAMHUB_JOB_FOLDER", str(job.path))
    return job


def test_the_service_reads_what_a_notebook_reports(folder: JobFolder) -> None:
    reader = Reader()
    report.progress(0.25, "indexing")
    report.metric("resolution", np.float32(1.5), "Å")
    report.metric("cell", np.array([78.0, 78.0, 37.0]), "Å")
    report.metric("ice", np.nan)
    report.metric("space_group", "P 43 21 2")
    report.metric("file", os.fsdecode(b"\xff.h5"))
    report.series("spots", units={"frame": "", "resolution": "Å"}, frame=1, resolution=2.5)
    report.series("spots", frame=2, resolution=math.inf)
    news = folder.news(reader)
    assert news.progress.fraction == 0.25
    assert news.progress.step == "indexing"
    shown = {name: (metric.value, metric.unit) for name, metric in news.metrics.items()}
    assert shown == {
        "resolution": (1.5, "Å"),
        "cell": ([78.0, 78.0, 37.0], "Å"),
        "ice": (None, ""),
        "space_group": ("P 43 21 2", ""),
        "file": ("?.h5", ""),
    }
    page = news.series["spots"]
    assert page.columns == {"frame": "", "resolution": "Å"}
    assert page.items == [{"frame": 1, "resolution": 2.5}, {"frame": 2, "resolution": None}]
    assert page.next == 2

    again = folder.news(reader)
    assert not again.told
    assert again.series == {}

    report.series("spots", frame=3)
    assert folder.news(reader).series["spots"].items == [{"frame": 3}]
    assert folder.series("spots", 2).items == [{"frame": 3}]
    assert folder.series("spots", 2).next == 3
    assert folder.series("none", 0).items == []


def test_the_fraction_stays_between_0_and_1(folder: JobFolder) -> None:
    report.progress(7.0)
    assert folder.news(Reader()).progress.fraction == 1.0
    report.progress(None, "waiting for frames")
    assert folder.news(Reader()).progress.fraction is None


def test_artifacts_lie_in_the_folder(folder: JobFolder, tmp_path: Path) -> None:
    (folder.path / "plot.png").write_bytes(b"png")
    report.artifact("plot.png", "A plot", "plot")
    line = json.loads((folder.path / "report.jsonl").read_text())
    assert (line["path"], line["title"], line["artifact"]) == ("plot.png", "A plot", "plot")
    (tmp_path / "secret").write_text("x")
    (folder.path / "link").symlink_to(tmp_path / "secret")
    for outside in ("../../secret", str(tmp_path / "secret"), "link", "missing.txt"):
        with pytest.raises(ValueError, match="artifact"):
            report.artifact(outside)


@pytest.mark.parametrize("name", ["", "a b", "../x", "1st", "x" * 64, "ö"])
def test_names_are_plain(folder: JobFolder, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        report.metric(name, 1)
    with pytest.raises(ValueError, match="name"):
        report.series(name, frame=1)


def test_what_cannot_be_shown_is_refused(folder: JobFolder) -> None:
    with pytest.raises(ValueError, match="dict"):
        report.metric("x", {"a": 1})  # type: ignore[arg-type]


def test_outside_of_a_job_it_writes_beside_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BEAMHUB_JOB_FOLDER", raising=False)
    monkeypatch.delenv("BEAMHUB_CPUS", raising=False)
    monkeypatch.chdir(tmp_path)
    report.progress(1)
    assert (tmp_path / "report.jsonl").exists()
    assert report.cpus() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("BEAMHUB_CPUS", "3")
    assert report.cpus() == 3
