"""The folder of a job. All in it may have been written by anybody's code while the job ran, so what is read
from it is bounded, checked and confined to the folder, and what does not fit is left out.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pydantic import JsonValue, ValidationError

from beamhub import folders, notebooks
from beamhub.errors import Invalid, NotFound
from beamhub.sandbox import TEMPORARY
from beamhub.schemas import Artifact, File, JobFailure, JobProgress, JobResult, JobSpec, Quantity, SeriesPage
from beamhub.text import one_line

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z")  # of metrics, series, columns, as in beamhub.report
MAX_METRICS = 200
MAX_SERIES = 50
MAX_ARTIFACTS = 1000  # as in a result
MAX_FILES = 10000  # that are listed
MAX_LIST = 1000  # numbers in one metric
MAX_RESULT = 2 * 1024**2  # bytes
MAX_READ = 1024**2  # bytes read of a growing file at a time
MAX_LINE = 64 * 1024  # bytes of a report
MAX_NOTEBOOK = 32 * 1024**2  # bytes that are looked through for the cell that failed
MAX_LAST_WORDS = 16 * 1024  # bytes of a log
LAST_LINES = 20  # of a log
MAX_ROWS = 5000  # in one page of a series
MAX_DIGESTED = 32 * 1024**3  # bytes of a job's artifacts; what is beyond is listed without a digest
MAX_DEPTH = 64  # of folders that are sealed
COARSE = 2.0  # seconds; a folder that changed more lately may change without its time telling
ALL = PurePosixPath()
# of life: the first is touched again and again (beamhub.run)
SIGNS = (".reserve", "notebook.ipynb", "log.txt", "report.jsonl", "series")
STARTED = ".started"  # an empty file that a node makes before the job's first process


@dataclass(frozen=True)
class News:
    """What a running job has reported since it was last asked."""

    progress: JobProgress
    metrics: Mapping[str, Quantity]
    artifacts: Sequence[Artifact]  # as far as they are there, without digests
    told: bool  # progress, metrics or artifacts are new
    series: Mapping[str, SeriesPage]  # the new rows


@dataclass
class Reader:
    """How far the reports of a running job have been read. `declared`: the metrics of its template."""

    declared: Mapping[str, str] = field(default_factory=dict)
    position: int = 0
    progress: JobProgress = field(default_factory=JobProgress)
    metrics: dict[str, Quantity] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    listed: int | None = None  # when a series was added last (ns), as far as the reader knows


class JobFolder:
    """The folder of job `job` in the folder of its experiment. All methods read or write files: call them in
    a thread."""

    def __init__(self, experiment: Path, job: int) -> None:
        self.experiment = experiment
        self.path = experiment / folders.PROCESSED / str(job)

    def lay(self, spec: JobSpec, template: bytes) -> None:
        """A fresh folder with all that the job starts from. What a start that came to nothing has left is
        removed."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        (self.path / "job.json").write_text(spec.model_dump_json(), encoding="utf-8")
        (self.path / "template.ipynb").write_bytes(template)

    def begun(self) -> bool:
        """Whether the notebook may have run: papermill writes it before the first cell."""
        return (self.path / "notebook.ipynb").exists()

    def open(self, path: str) -> BinaryIO:
        """The file at `path`, relative to the folder. Raises BadName or NotFound."""
        return self._open(folders.parse(path))

    def files(self, below: PurePosixPath = ALL) -> list[File]:
        """The files, ordered by path; paths are relative to the folder."""
        try:
            found = list(itertools.islice(folders.walk(self.path, below), MAX_FILES))
        except (FileNotFoundError, PermissionError):  # not laid yet; or its job has locked a folder
            return []
        return sorted(found, key=lambda file: file.path)

    def log(self, after: int) -> tuple[str, int]:
        """Text of the log from byte `after` on, and where to go on."""
        with contextlib.suppress(NotFound), self._open(PurePosixPath("log.txt")) as file:
            file.seek(after)
            content = file.read(MAX_READ)
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            text = decoder.decode(content)
            return text, after + len(content) - len(decoder.getstate()[0])  # a character may be half written
        return "", after

    def series(self, name: str, after: int) -> SeriesPage:
        """Rows of a series from row `after` on."""
        if not NAME.match(name):
            raise NotFound(f"There is no series {name[:80]!r}.", "Series have Python names.")
        columns: dict[str, str] = {}
        items: list[dict[str, JsonValue]] = []
        with contextlib.suppress(NotFound), self._open(_series(name)) as file:
            columns = _columns(file.readline(MAX_LINE))
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b"")):
                if len(items) == MAX_ROWS or not line.endswith(b"\n"):
                    break
                if number >= after:
                    items.append(_row(line))
        return SeriesPage(columns=columns, items=items, next=after + len(items))

    def news(self, reader: Reader, *, thorough: bool = False) -> News:
        """What has been reported since the reader was here last. Unless it is `thorough`, files are opened
        only if one of them seems to have grown."""
        if not thorough and not self._grown(reader):
            return News(reader.progress, dict(reader.metrics), [*reader.artifacts.values()], False, {})
        lines, reader.position = self._lines(PurePosixPath("report.jsonl"), reader.position)
        told = False
        for line in lines:
            content = _object(line)
            match content.get("what"):
                case "progress":
                    reader.progress = _progress(content)
                    told = True
                case "metric":
                    told |= _add_metric(
                        reader.metrics,
                        content.get("name"),
                        content.get("value"),
                        content.get("unit"),
                        reader.declared,
                    )
                case "artifact":
                    told |= self._add_artifact(reader.artifacts, content)
        series = {name: page for name in self.series_names() if (page := self._new_rows(name, reader)).items}
        return News(
            reader.progress, dict(reader.metrics), [*reader.artifacts.values()], told=told, series=series
        )

    def result(self, declared: Mapping[str, str] | None = None, *, digest: bool = True) -> JobResult | None:
        """The job's result, with sizes and digests of the artifacts that are there, as far as it can be
        believed and, as to the metrics, as the template has declared; None if there is none."""
        try:
            with self._open(PurePosixPath("result.json")) as file:
                content = file.read(MAX_RESULT + 1)
        except NotFound:
            return None
        if len(content) > MAX_RESULT:
            return JobResult(outcome="failed", reason="The job's result is too large to be read.")
        try:
            raw = json.loads(content)
            result = JobResult.model_validate({**raw, "metrics": {}})
            metrics: dict[str, Quantity] = {}
            for name, value in dict(raw.get("metrics", {})).items():
                _add_metric(metrics, name, value["value"], value["unit"], declared or {})
        except (ValueError, TypeError, KeyError, RecursionError, ValidationError):
            return JobResult(outcome="failed", reason="The job wrote a result that is not one.")
        notebook = Artifact(path="notebook.ipynb", title="Notebook", kind="notebook")
        artifacts: dict[str, Artifact] = {}
        left = MAX_DIGESTED if digest else 0
        for told in (*result.artifacts, notebook):
            if told.path not in artifacts and (one := self._artifact(told, digest=left)) is not None:
                artifacts[one.path] = one
                left -= one.size if one.digest else 0
        return result.model_copy(
            update={
                "reason": one_line(result.reason, 2000),
                "metrics": metrics,
                "artifacts": list(artifacts.values()),
            }
        )

    def failure(self, cell: int | None) -> JobFailure:
        """Where the job has failed, `cell` if it knows, and the end of its log."""
        title = ""
        with contextlib.suppress(NotFound, ValueError, LookupError, TypeError, AttributeError):
            with self._open(PurePosixPath("notebook.ipynb")) as file:
                content = file.read(MAX_NOTEBOOK)
            if cell is None:  # it was killed
                cell = _stopped(json.loads(content))
            if cell is not None:
                title = one_line(notebooks.parse(content).heading(cell), 200)
        log = ""
        with contextlib.suppress(NotFound), self._open(PurePosixPath("log.txt")) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LAST_WORDS))
            log = file.read(MAX_LAST_WORDS).decode("utf-8", "replace")
        lines = [one_line(line, 500) for line in log.splitlines()[-LAST_LINES:]]
        return JobFailure(cell=cell, title=title, log="\n".join(lines))

    def started(self) -> datetime | None:
        """When a node began with the job, where it says so; None if none has."""
        with contextlib.suppress(FileNotFoundError):
            return datetime.fromtimestamp((self.path / STARTED).lstat().st_mtime, UTC)
        return self.ended() if (self.path / "result.json").exists() else None

    def ended(self) -> datetime:
        """When the result was written, by the clock of this machine: a moment that the job cannot have set
        back. Now, if it never was."""
        return self._written("result.json")

    def last_sign(self) -> datetime:
        """When the job has written last what jobs write as they run, as `ended` tells it."""
        return self._written(*SIGNS)

    def _written(self, *names: str) -> datetime:
        """When the last of these was; now, if none ever was."""
        since = 0.0
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.path)  # asks the clock that dates files, which may be a file server's
            now = self.path.lstat().st_ctime
            since = now - max(
                (there.st_ctime for name in names if (there := _status(self.path / name))), default=now
            )
        return datetime.now(UTC) - timedelta(seconds=max(since, 0.0))

    def seal(self) -> None:
        """Makes everything read-only that is there, without the temporary files. For a job whose processes
        have ended."""
        if self.path.exists():  # where nothing confined it, it may have removed all
            _unlock(self.path)
            shutil.rmtree(self.path / TEMPORARY, ignore_errors=True)
            _seal(self.path, MAX_DEPTH)

    def _grown(self, reader: Reader) -> bool:
        """Whether there is more of a report than the reader has read."""
        changed = _status(self.path / "series")
        recent = changed is not None and time.time() - changed.st_mtime < COARSE
        stamp = changed.st_mtime_ns if changed else None
        if recent or stamp != reader.listed:
            reader.listed = stamp
            return True
        known = {PurePosixPath("report.jsonl"): reader.position}
        known |= {_series(name): position for name, position in reader.positions.items()}
        sizes = ((_status(self.path / path), position) for path, position in known.items())
        return any((found.st_size if found else 0) != position for found, position in sizes)

    def _open(self, path: PurePosixPath) -> BinaryIO:
        try:
            return folders.open_file(self.path, path)
        except (FileNotFoundError, PermissionError) as error:  # no folder yet; or one without permissions
            raise NotFound(f"There is no file {str(path)!r} in this job's folder.") from error

    def _lines(self, path: PurePosixPath, position: int) -> tuple[list[bytes], int]:
        """The whole lines from `position` on, and where they end."""
        try:
            with self._open(path) as file:
                file.seek(position)
                content = file.read(MAX_READ)
        except NotFound:
            return [], position
        end = content.rfind(b"\n") + 1
        if end == 0 and len(content) == MAX_READ:  # no report has such a line: leave it out
            end = MAX_READ
        return [line for line in content[:end].split(b"\n") if 0 < len(line) < MAX_LINE], position + end

    def series_names(self) -> list[str]:
        found = (PurePosixPath(file.path) for file in self.files(PurePosixPath("series")))
        names = [path.stem for path in found if path.suffix == ".jsonl" and NAME.match(path.stem)]
        return names[:MAX_SERIES]

    def _new_rows(self, name: str, reader: Reader) -> SeriesPage:
        lines, reader.positions[name] = self._lines(_series(name), reader.positions.get(name, 0))
        if lines and name not in reader.columns:
            reader.columns[name] = _columns(lines.pop(0))
        reader.rows[name] = reader.rows.get(name, 0) + len(lines)
        return SeriesPage(
            columns=reader.columns.get(name, {}), items=[_row(line) for line in lines], next=reader.rows[name]
        )

    def _add_artifact(self, artifacts: dict[str, Artifact], told: Mapping[str, Any]) -> bool:
        """Adds what is told of an artifact if it is one and there is room; says whether it did."""
        content = {"path": told.get("path"), "title": told.get("title"), "kind": told.get("artifact")}
        with contextlib.suppress(ValidationError):
            found = self._artifact(Artifact.model_validate(content))
            if found and (found.path in artifacts or len(artifacts) < MAX_ARTIFACTS):
                artifacts[found.path] = found
                return True
        return False

    def _artifact(self, artifact: Artifact, *, digest: int = 0) -> Artifact | None:
        """With its true size, and its digest if it has at most so many bytes; None for one that is not a file
        in this folder."""
        try:
            with self.open(artifact.path) as file:
                size = os.fstat(file.fileno()).st_size
                sha256 = _digest(file) if digest > 0 and size <= digest else ""
        except (Invalid, NotFound):
            return None
        return artifact.model_copy(
            update={"title": one_line(artifact.title, 200), "size": size, "digest": sha256}
        )


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError):  # not there; or the job has locked its folder, or made a loop of links
        return path.lstat()
    return None


def _series(name: str) -> PurePosixPath:
    return PurePosixPath("series", f"{name}.jsonl")


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while part := file.read(MAX_READ):
        digest.update(part)
    return digest.hexdigest()


def _object(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _progress(content: Mapping[str, Any]) -> JobProgress:
    fraction = content.get("fraction")
    if isinstance(fraction, int | float) and math.isfinite(fraction):
        fraction = min(max(float(fraction), 0.0), 1.0)
    else:
        fraction = None
    return JobProgress(fraction=fraction, step=one_line(str(content.get("step", "")), 200))


def _stopped(notebook: Any) -> int | None:
    """The cell that has begun last."""
    begun = [
        index
        for index, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == "code" and cell["metadata"].get("papermill", {}).get("start_time")
    ]
    return begun[-1] if begun else None


def _add_metric(
    metrics: dict[str, Quantity], name: object, value: object, unit: object, declared: Mapping[str, str]
) -> bool:
    """Adds a metric if it is one, its template knows it and there is room; says whether it did."""
    if not isinstance(name, str) or not NAME.match(name) or notebooks.misfit(declared, name, str(unit or "")):
        return False
    if name not in metrics and len(metrics) >= MAX_METRICS:
        return False
    shown: float | int | str | bool | list[float] | None
    if isinstance(value, list):
        shown = [float(one) for one in map(_scalar, value[:MAX_LIST]) if isinstance(one, int | float)]
    else:
        shown = _scalar(value)
    metrics[name] = Quantity(value=shown, unit=one_line(str(unit or ""), 40))
    return True


def _scalar(value: object) -> float | int | str | bool | None:
    """A value that any database and page can take; None for what is none."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return one_line(value, 500) if isinstance(value, str) else None


def _columns(line: bytes) -> dict[str, str]:
    columns = _object(line).get("columns")
    if not isinstance(columns, dict):
        return {}
    return {name: one_line(str(unit), 40) for name, unit in columns.items() if NAME.match(name)}


def _row(line: bytes) -> dict[str, JsonValue]:
    return {name: _scalar(value) for name, value in _object(line).items() if NAME.match(name)}


def _seal(path: Path, depth: int) -> None:
    _unlock(path)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if depth:
                    _seal(Path(entry.path), depth - 1)
            elif entry.is_file(follow_symlinks=False):
                _protect(Path(entry.path))
    _protect(path)


def _unlock(path: Path) -> None:
    path.chmod(stat.S_IMODE(path.lstat().st_mode) | 0o700)  # the job may have locked it


def _protect(path: Path) -> None:
    mode = stat.S_IMODE(path.lstat().st_mode)
    if mode != (mode & 0o555 | 0o400):  # a result's time of change tells when the job has ended
        path.chmod(mode & 0o555 | 0o400)
