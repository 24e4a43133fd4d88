"""What a notebook tells the outside while it runs: progress, metrics, series, artifacts.

    from beamhub import report

    report.progress(0.3, "integrating")
    report.metric("resolution", 1.82, "Å")
    report.series("spots", units={"frame": "", "resolution": "Å"}, frame=17, resolution=2.3)
    report.artifact("scaled.mtz", "Scaled intensities")

Everything is appended, line by line, to files in the job's folder, where the service picks it up at once; no
network is involved. Outside of a job the same calls write beside the notebook. Numbers may be numpy scalars;
NaN and infinity become null. Wrong use raises ValueError: a template that reports nonsense should fail in its
author's hands.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z")


class Array(Protocol):
    """What numpy's arrays and scalars can do."""

    def tolist(self) -> Any: ...


Value: TypeAlias = float | int | str | bool | Sequence[float] | Array | None


def folder() -> Path:
    """The job's folder; outside of a job, the working directory."""
    return Path(os.environ.get("BEAMHUB_JOB_FOLDER") or Path.cwd())


def cpus() -> int:
    """How many CPUs this job may use; outside of a job, all that the process is allowed to run on."""
    return int(os.environ.get("BEAMHUB_CPUS") or len(os.sched_getaffinity(0)))


def progress(fraction: float | None, step: str = "") -> None:
    """How far the work has come, 0 to 1 (None: unknown), and in a few words what is being done."""
    if fraction is not None:
        fraction = min(max(float(fraction), 0.0), 1.0)
    _tell("progress", fraction=fraction, step=_text(step)[:200])


def metric(name: str, value: Value, unit: str = "") -> None:
    """A result in one number (or text, or list of numbers). Told again, the last value counts."""
    _tell("metric", name=_checked(name), value=_plain(value), unit=_text(unit))


def series(name: str, *, units: Mapping[str, str] | None = None, **row: Value) -> None:
    """Append a row to the table `name`, which the dashboards draw as it grows.

    Args:
        name: of the table.
        units: column -> unit ("" for dimensionless); read at the first row only. By default the columns are
            those of the first row, without units.
        row: column -> value. A row may leave columns out.
    """
    line = json.dumps({_checked(column): _plain(value) for column, value in row.items()}) + "\n"
    path = folder() / "series" / f"{_checked(name)}.jsonl"
    if not path.exists():
        columns = dict(units) if units is not None else dict.fromkeys(row, "")
        header = {"columns": {_checked(column): _text(unit) for column, unit in columns.items()}}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def artifact(path: str | Path, title: str = "", kind: Literal["plot", "data", "log"] = "data") -> None:
    """Name a file that the job made and that people will want: it is listed first and can be downloaded."""
    home = folder().resolve()
    whole = (home / path).resolve()
    if not whole.is_relative_to(home):
        raise ValueError(f"the artifact {path} does not lie in the job's folder {home}")
    if not whole.is_file():
        raise ValueError(f"the artifact {path} is not a file")
    _tell("artifact", path=str(whole.relative_to(home)), title=_text(title), artifact=str(kind))


def software(name: str, version: str) -> None:
    """A program that took part, with its version: it is kept with the result."""
    _tell("software", name=_text(name), version=_text(version))


def _tell(what: str, **content: Any) -> None:
    line = json.dumps({"time": round(time.time(), 3), "what": what, **content}) + "\n"
    # one write per line in append mode: processes of the same job do not mix their lines
    with (folder() / "report.jsonl").open("a", encoding="utf-8") as file:
        file.write(line)


def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise ValueError(f"a name is letters, digits and _, at most 63 of them, not {name!r}")
    return name


def _text(value: object) -> str:
    """Text that can be written as UTF-8: names of files may have come with bytes that are none."""
    return str(value).encode("utf-8", "replace").decode()


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, int | float | bool):
        return value
    raise ValueError(f"cannot report a {type(value).__name__}: give a number, a text or a list of numbers")
