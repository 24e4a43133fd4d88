"""Numbers, sizes, times and states as people read them."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import Final

from beamhub.schemas import MetricSpec, Profile, Quantity

NARROW: Final = "\u202f"  # narrow no-break space: between thousands, and between a number and its unit
CPU_HOURS: Final = f"{NARROW}CPU\u2011h"  # no line breaks at its hyphen either
NONE: Final = "–"


def number(value: float | int | str | bool | None, spec: str = "") -> str:
    """A number as people write it: digits that matter, thousands set apart, "–" for what is not there.

    `spec` is a format specification (".2f"); one that does not fit the value is ignored, not an error:
    templates are written by users.
    """
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return NONE
    if spec and len(spec) <= 8:
        try:
            return format(value, spec).replace("-", "−")
        except (ValueError, TypeError):
            pass
    if isinstance(value, int):
        return f"{value:,}".replace(",", NARROW).replace("-", "−")
    size = abs(value)
    if size and (size >= 1e6 or size < 1e-3):
        shown = f"{value:.2e}"
    elif value == int(value) and size >= 100:
        shown = f"{value:,.0f}"
    else:
        shown = f"{value:,.{max(0, 3 - math.floor(math.log10(size))) if size >= 1 else 4}f}" if size else "0"
        if "." in shown:
            shown = shown.rstrip("0").rstrip(".")
    return shown.replace(",", NARROW).replace("-", "−")


UNIT_NAMES: Final = {
    "angstrom": "Å",
    "degree": "°",
    "degrees": "°",
    "deg": "°",
    "percent": "%",
    "pixel": "px",
    "pixels": "px",
}


def unit_name(unit: str) -> str:
    """A unit as it is printed: "angstrom" is Å."""
    return UNIT_NAMES.get(unit, unit)


def quantity(q: Quantity | None, spec: str = "") -> str:
    """A value with its unit; lists joined by commas."""
    if q is None or q.value is None:
        return NONE
    values = q.value if isinstance(q.value, list) else [q.value]
    shown = ", ".join(number(v, spec) for v in values)
    return with_unit(shown, q.unit)


def with_unit(shown: str, unit: str) -> str:
    """A printed number and its unit; ° and % stand close."""
    unit = unit_name(unit)
    if not unit or shown == NONE:
        return shown
    return f"{shown}{unit}" if unit in ("°", "%") else f"{shown}{NARROW}{unit}"


def metric(spec: MetricSpec | None, q: Quantity) -> tuple[str, str]:
    """A metric's value and unit as printed, with the format its template declares."""
    values = q.value if isinstance(q.value, list) else [q.value]
    shown = ", ".join(number(v, spec.format if spec else "") for v in values)
    return shown, unit_name(q.unit or (spec.unit if spec else ""))


def mark(spec: MetricSpec | None, q: Quantity) -> str:
    """How good a metric is by its template's bounds: "good", "acceptable", "poor", or "" without bounds."""
    value = q.value
    if spec is None or spec.better is None or isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    sign = 1 if spec.better == "higher" else -1
    if spec.good is not None and sign * value >= sign * spec.good:
        return "good"
    if spec.acceptable is not None:
        return "acceptable" if sign * value >= sign * spec.acceptable else "poor"
    return "" if spec.good is None else "poor"


def size(count: float) -> str:
    """Bytes, in powers of 1000: "8.9 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return (
                f"{count:.0f}{NARROW}{unit}" if unit == "B" or count >= 99.5 else f"{count:.1f}{NARROW}{unit}"
            )
        count /= 1000
    return f"{count:.1f}{NARROW}TB"


def rate(bytes_per_second: float) -> str:
    """Bytes per second."""
    return f"{size(bytes_per_second)}/s"


def duration(span: timedelta | float) -> str:
    """A span of time: "4 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    seconds = round(span.total_seconds() if isinstance(span, timedelta) else span)
    if seconds < 60:
        return f"{max(seconds, 0)}{NARROW}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}{NARROW}min" + (f" {seconds}{NARROW}s" if seconds else "")
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}{NARROW}h" + (f" {minutes}{NARROW}min" if minutes else "")
    days, hours = divmod(hours, 24)
    return f"{days}{NARROW}d" + (f" {hours}{NARROW}h" if hours else "")


def about(seconds: float) -> str:
    """A span of time that nobody knows exactly: "45 s", "58 min", "12 h"."""
    step = 5 if seconds < 120 else 60 if seconds < 36000 else 3600
    return duration(max(1, round(seconds / step)) * step)


def cpu_hours(cpu_seconds: int) -> str:
    """CPU-seconds as CPU-hours, with as many digits as say something."""
    hours = cpu_seconds / 3600
    if hours == 0:
        return f"0{CPU_HOURS}"
    digits = 0 if abs(hours) >= 100 else 1 if abs(hours) >= 10 else 2 if abs(hours) >= 0.1 else 4
    return f"{hours:,.{digits}f}".replace(",", NARROW).replace("-", "−") + CPU_HOURS


def unbroken(sentence: str) -> str:
    """What the service says, with its CPU-hours as `cpu_hours` writes them."""
    return re.sub(r" CPU-h\b", CPU_HOURS, sentence)


def day(moment: datetime | None) -> str:
    """A date: "22 Nov 2026"."""
    return NONE if moment is None else f"{moment.day} {moment:%b %Y}"


def plural(count: int, one: str, many: str = "") -> str:
    """A number of things: "1 frame", "12 frames"."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def profile(asked: Profile) -> str:
    """What a job asks for: "2 CPUs · 8 GiB · up to 1 h"."""
    memory = f"{asked.memory / 2**30:.0f}{NARROW}GiB"
    return f"{plural(asked.cpus, 'CPU')} · {memory} · up to {duration(asked.walltime)}"
