"""Fast feedback as a job runs it: a notebook that follows an acquisition while it is being written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from beamhub.catalogue import shipped
from beamhub.frames.outside import FileProblem
from beamhub.schemas import JobResult, JobSpec, SpecInput
from beamhub.simulation.acquisition import PILATUS, Acquisition, Grid
from beamhub.simulation.detector import VirtualDetector, VirtualPilatus

from tests.growth import Growth

TIMEOUT = 250  # seconds; what takes longer has hung


class RunningJob:
    """A job of its own process, and what it has written so far."""

    def __init__(self, folder: Path, data: Path, **parameters: Any) -> None:
        folder.mkdir()
        self.folder = folder
        shutil.copy(shipped() / "fast_feedback.ipynb", folder / "template.ipynb")
        spec = JobSpec(
            id=1,
            experiment="sim-mx-2026-00001",
            template="fast_feedback",
            template_version="0" * 16,
            parameters=parameters,
            inputs=[SpecInput(id=1, path=str(data))],
            cpus=1,
            memory=4 * 1024**3,
            folder=str(folder),
        )
        (folder / "job.json").write_text(spec.model_dump_json())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "beamhub.run", str(folder)], env=dict(os.environ)
        )

    def rows(self) -> list[dict[str, Any]]:
        """Of the series, without its header."""
        path = self.folder / "series" / "per_frame.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines[1:]]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until something has been written."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()
            assert time.monotonic() < deadline, "the job has hung"
            time.sleep(0.02)

    def result(self) -> JobResult:
        """When it has ended."""
        self.process.wait(TIMEOUT)
        return JobResult.model_validate_json((self.folder / "result.json").read_bytes())

    def progress(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "report.jsonl").read_text().splitlines())
        return [line for line in lines if line["what"] == "progress"]


@pytest.fixture(scope="module")
def rotation(tmp_path_factory: pytest.TempPathFactory) -> VirtualDetector:
    """Nine frames in three files."""
    folder = tmp_path_factory.mktemp("rotation")
    detector = VirtualDetector(folder, "lyso", Acquisition(frames=9), images_per_file=3, rate=1e3)
    detector.run()
    return detector


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningJob]]:
    """Start a job; none is left behind."""
    jobs: list[RunningJob] = []

    def begin(data: Path, **parameters: Any) -> RunningJob:
        jobs.append(RunningJob(tmp_path / f"job{len(jobs)}", data, **parameters))
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()


def publish(source: Path, folder: Path) -> Path:
    """As an upload does: complete, under its final name at once."""
    hidden = folder / f".{source.name}"
    shutil.copy(source, hidden)
    return hidden.rename(folder / source.name)


def test_rows_appear_while_the_files_arrive(
    rotation: VirtualDetector, start: Callable[..., RunningJob], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    job = start(publish(rotation.master, raw))
    job.wait_for(lambda: (job.folder / "report.jsonl").exists())
    assert job.rows() == []

    for number in (1, 2, 3):
        publish(rotation.data_file(number), raw)
        job.wait_for(lambda expected=3 * number: len(job.rows()) == expected)  # type: ignore[misc]
        if number < 3:
            fraction = job.progress()[-1]["fraction"]
            assert fraction == pytest.approx(number / 3, abs=0.12)

    result = job.result()
    assert result.outcome == "finished", result.reason
    rows = job.rows()
    assert [row["frame"] for row in rows] == list(range(1, 10))
    assert all(row["spots"] > 100 and 1.5 < row["resolution"] < 4 and row["ice"] == 0 for row in rows)
    assert all(0.3 < row["background"] < 0.8 for row in rows)
    header = json.loads((job.folder / "series" / "per_frame.jsonl").read_text().splitlines()[0])
    assert header["columns"] == {
        "frame": "",
        "spots": "",
        "resolution": "Å",
        "background": "counts",
        "ice": "",
    }

    best = max(rows, key=lambda row: row["spots"])
    metrics = {name: quantity.value for name, quantity in result.metrics.items()}
    assert metrics["frames"] == 9
    assert (metrics["best_frame"], metrics["spots_max"]) == (best["frame"], best["spots"])
    assert metrics["resolution"] == min(row["resolution"] for row in rows)
    assert metrics["ice_fraction"] == 0
    assert [artifact.path for artifact in result.artifacts] == ["per_frame.png"]
    assert job.progress()[-1]["step"] == "all 9 frames"


def test_a_series_is_followed_frame_by_frame(start: Callable[..., RunningJob], tmp_path: Path) -> None:
    """Nobody says how many frames a PILATUS will take: the job ends when no more come."""
    scan = Acquisition(PILATUS["300K"], 4, distance=0.08, dtype="uint32")
    detector = VirtualPilatus(tmp_path / "kept", "pil", scan, rate=1e3)
    detector.run()
    raw = tmp_path / "raw"
    raw.mkdir()
    publish(detector.frame_file(1), raw)
    job = start(raw / detector.dataset.name)
    for number in (1, 2, 3, 4):
        if number > 1:
            publish(detector.frame_file(number), raw)
        job.wait_for(lambda expected=number: len(job.rows()) >= expected)  # type: ignore[misc]
    os.utime(raw / "pil_00004.cbf", (0, 0))  # it has long been there

    result = job.result()

    assert result.outcome == "finished", result.reason
    rows = job.rows()
    assert [row["frame"] for row in rows] == [1, 2, 3, 4]
    assert all(row["spots"] > 10 and 1.5 < row["resolution"] < 5 for row in rows)
    assert job.progress()[-1]["step"] == "4 frames"
    assert job.progress()[-1]["fraction"] is None


def test_a_file_is_followed_while_it_is_written(start: Callable[..., RunningJob], tmp_path: Path) -> None:
    """A SWMR writer writes it, and all that is known of it are its bytes and the places of its frames."""
    words = f"--folder {tmp_path / 'detector'} --swmr --frames 6 --rate 2 --json".split()
    writer = subprocess.Popen(
        [sys.executable, "-c", "from beamhub.cli import main; main()", "simulate", *words]
    )
    growth = Growth(tmp_path / "detector" / "lyso_master.h5", tmp_path / "home" / "raw" / "lyso_master.h5")
    job, come, deadline = None, 0, time.monotonic() + TIMEOUT
    try:
        while come < 6:
            assert time.monotonic() < deadline
            with contextlib.suppress(FileNotFoundError, FileProblem):  # it is not that far yet
                come = growth.grow()
            time.sleep(0.05)
            if come and job is None:
                job = start(growth.path)
        assert job is not None
        result = job.result()
    finally:
        writer.kill()
        writer.wait()

    assert result.outcome == "finished", result.reason
    assert not growth.path.exists(), "it has ended before the file was complete"
    rows = job.rows()
    assert [row["frame"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["spots"] > 100 and 1.5 < row["resolution"] < 4 and row["ice"] == 0 for row in rows)
    assert job.progress()[-1]["step"] == "all 6 frames"


def test_an_acquisition_that_stops_ends_with_what_there_is(
    rotation: VirtualDetector, start: Callable[..., RunningJob], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    publish(rotation.data_file(1), raw)
    job = start(publish(rotation.master, raw), stall_timeout=1)

    result = job.result()

    assert result.outcome == "finished", result.reason
    assert result.metrics["frames"].value == 3
    assert job.progress()[-1]["step"] == "stopped early after 3 of 9 frames"
    assert job.progress()[-1]["fraction"] == pytest.approx(1 / 3)


def test_without_a_frame_it_fails_plainly(
    rotation: VirtualDetector, start: Callable[..., RunningJob], tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()

    result = start(publish(rotation.master, raw), stall_timeout=1).result()

    assert result.outcome == "failed"
    assert "No frame of lyso has arrived" in result.reason


def test_a_raster_shows_where_the_crystal_is(start: Callable[..., RunningJob], tmp_path: Path) -> None:
    grid = Grid(4, 5)
    detector = VirtualDetector(
        tmp_path / "raw", "grid", Acquisition(frames=20, grid=grid), images_per_file=20, rate=1e3
    )
    detector.run()

    job = start(detector.master)
    result = job.result()

    assert result.outcome == "finished", result.reason
    row, column = (result.metrics[name].value for name in ("best_row", "best_column"))
    assert isinstance(row, int)
    assert isinstance(column, int)
    assert grid.overlap[(row - 1) * 5 + column - 1] > 0.7
    assert [artifact.path for artifact in result.artifacts] == ["per_frame.png", "grid.png"]
    spots = [entry["spots"] for entry in job.rows()]
    assert all(count == 0 or grid.overlap[index] > 0 for index, count in enumerate(spots) if count > 3)
