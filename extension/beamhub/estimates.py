"""What a job will probably take, from earlier runs of its template: pure functions of numbers.

Runtimes differ by factors, not by seconds: everything is done with logarithms, and with medians, so that a
few odd runs (a cold cache, a crystal without spots) do not matter.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from beamhub.schemas import Scaling, Spread

ENOUGH = 3  # runs with as many CPUs: then others do not count
STEEPEST = 1.5  # exponent of the growth with frames
APART = math.log(1.2)  # sizes that differ by less tell nothing about growth
FASTER = 1.05  # by less than this factor is not faster
LATEST = 60  # runs that are looked at: pairs of them are compared


@dataclass(frozen=True)
class Run:
    """A run that has finished."""

    cpus: int
    frames: int
    seconds: float


def predict(runs: Sequence[Run], cpus: int, frames: int, scaling: Scaling | None = None) -> Spread | None:
    """Seconds that a run with so many CPUs on so many frames takes; None if there are no earlier runs.

    Args:
        runs: newest first.
        scaling: what the template tells about CPUs; counts where no runs with different CPUs do.
    """
    runs = [run for run in runs if run.seconds > 0][:LATEST]
    if not runs:
        return None
    sizes = _to_size(runs, frames)
    same = [size for run, size in zip(runs, sizes, strict=True) if run.cpus == cpus]
    if len(same) >= ENOUGH:
        return _spread(same)
    points = [(math.log(run.cpus), size) for run, size in zip(runs, sizes, strict=True)]
    if (slope := _slope(points, APART)) is not None:
        slope = min(max(slope, -1.0), 0.0)
        return _spread([size + slope * (math.log(cpus) - log_cpus) for log_cpus, size in points])
    return _spread(
        [
            size + math.log(_share(scaling, cpus) / _share(scaling, run.cpus))
            for run, size in zip(runs, sizes, strict=True)
        ]
    )


def hint(runs: Sequence[Run], cpus: int, scaling: Scaling | None = None) -> str:
    """Whether fewer CPUs do as well: "4 CPUs were not faster than 2 in 6 earlier runs."; "" if not.

    Args:
        scaling: what the template tells about CPUs; counts where runs with so many and with fewer do not.
    """
    runs = [run for run in runs if run.seconds > 0][:LATEST]
    groups: dict[int, list[float]] = defaultdict(list)
    for run, size in zip(runs, _to_size(runs, runs[0].frames) if runs else (), strict=True):
        groups[run.cpus].append(size)
    times = {count: median(found) for count, found in groups.items() if len(found) >= ENOUGH}
    many = max((count for count in times if count <= cpus), default=0)
    fewer = sorted(count for count in times if count < many)
    if few := next((count for count in fewer if times[count] <= times[many] + math.log(FASTER)), None):
        return f"{many} CPUs were not faster than {few} in {len(groups[many])} earlier runs."
    return "" if many == cpus and fewer else _told(scaling, cpus)


def wait(
    free: int, running: Sequence[tuple[int, float]], ahead: Sequence[tuple[int, float]], cpus: int
) -> float:
    """Seconds until so many CPUs are free for the last in a queue where nobody overtakes; infinite if that
    never happens.

    Args:
        running: CPUs, and the seconds that are left, of each job that runs.
        ahead: CPUs and seconds of the jobs before, in their turn.
    """
    ends = [(max(left, 0.0), count) for count, left in running]
    heapq.heapify(ends)
    now = 0.0
    for count, seconds in [*ahead, (cpus, 0.0)]:
        while free < count:
            if not ends:
                return math.inf
            ended, freed = heapq.heappop(ends)
            now = max(now, ended)
            free += freed
        free -= count
        heapq.heappush(ends, (now + seconds, count))
    return now


def scaled(spread: Spread, factor: float) -> Spread:
    return Spread(low=spread.low * factor, likely=spread.likely * factor, high=spread.high * factor)


def _to_size(runs: Sequence[Run], frames: int) -> list[float]:
    """Logarithms of the seconds that the runs would have taken on so many frames."""
    growths = _pairs_by_cpus(runs)
    growth = min(max(median(growths), 0.0), STEEPEST) if growths else 1.0
    target = math.log(max(frames, 1))
    return [math.log(run.seconds) + growth * (target - math.log(max(run.frames, 1))) for run in runs]


def _pairs_by_cpus(runs: Sequence[Run]) -> list[float]:
    groups: Mapping[int, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        groups[run.cpus].append((math.log(max(run.frames, 1)), math.log(run.seconds)))
    return [slope for points in groups.values() for slope in _slopes(points, APART)]


def _slope(points: Sequence[tuple[float, float]], apart: float) -> float | None:
    """As Theil and Sen have it: the median of all pairs'."""
    slopes = _slopes(points, apart)
    return median(slopes) if slopes else None


def _slopes(points: Sequence[tuple[float, float]], apart: float) -> list[float]:
    pairs = itertools.combinations(points, 2)
    return [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs if abs(x2 - x1) >= apart]


def _told(scaling: Scaling | None, cpus: int) -> str:
    """What the template says of so many CPUs; "" where they help."""
    if scaling is None:
        return ""
    doubled = itertools.takewhile(lambda count: count < cpus, (2**power for power in itertools.count()))
    fewer = sorted({*doubled, *([scaling.cpus] if scaling.cpus and scaling.cpus < cpus else [])})
    limit = FASTER * _share(scaling, cpus)
    few = next((count for count in fewer if _share(scaling, count) <= limit), None)
    if few is None:
        return ""
    return f"{cpus} CPUs are hardly faster than {few}, says the template. {scaling.note}".strip()


def _share(scaling: Scaling | None, cpus: int) -> float:
    """The runtime with so many CPUs, as a share of that with one."""
    if scaling is None:
        return 1.0
    return 1.0 - scaling.parallel + scaling.parallel / min(cpus, scaling.cpus or cpus)


def _spread(logarithms: Sequence[float]) -> Spread:
    """Four of five runs were between low and high; few runs tell less, so that these lie farther apart."""
    ordered = sorted(logarithms)
    margin = math.log(1 + 1 / len(ordered))
    return Spread(
        low=math.exp(_quantile(ordered, 0.1) - margin),
        likely=math.exp(median(ordered)),
        high=math.exp(_quantile(ordered, 0.9) + margin),
    )


def _quantile(ordered: Sequence[float], part: float) -> float:
    place = part * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
