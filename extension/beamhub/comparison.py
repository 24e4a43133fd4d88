"""Jobs side by side: what they were asked, what came out, and where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from beamhub.schemas import Comparison, ComparisonRow, Job, SeriesPage


def compare(jobs: Sequence[Job], series: Mapping[str, Sequence[SeriesPage | None]]) -> Comparison:
    """The aligned table of these jobs, in their order, and those of their series that more than one has."""
    facts: dict[str, list[JsonValue]] = {
        "template": [job.template for job in jobs],
        "template_version": [job.template_version for job in jobs],
        "inputs": [", ".join(item.name or str(item.id) for item in job.inputs) for job in jobs],
        "profile": [job.profile.name for job in jobs],
        "sponsor": [job.sponsor for job in jobs],
        "launched_by": [job.launched_by for job in jobs],
        "state": [job.state.value for job in jobs],
        "cpu_seconds": [job.cpu_seconds for job in jobs],
        "runtime": [_runtime(job) for job in jobs],
    }
    units = {"cpu_seconds": "s", "runtime": "s"}
    rows = [_row("job", name, values, units.get(name, "")) for name, values in facts.items()]
    for name in _names(job.parameters for job in jobs):
        rows.append(_row("parameters", name, [job.parameters.get(name) for job in jobs], ""))
    for name in _names(job.metrics for job in jobs):
        found = [job.metrics.get(name) for job in jobs]
        unit = next((metric.unit for metric in found if metric), "")
        rows.append(_row("metrics", name, [metric.value if metric else None for metric in found], unit))
    shared = {
        name: list(pages) for name, pages in series.items() if sum(page is not None for page in pages) > 1
    }
    return Comparison(jobs=[job.id for job in jobs], rows=rows, series=shared)


def _row(group: str, name: str, values: Sequence[JsonValue | list[float]], unit: str) -> ComparisonRow:
    differ = any(value != values[0] for value in values)
    return ComparisonRow.model_validate(
        {"group": group, "name": name, "values": values, "unit": unit, "differ": differ}
    )


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    """The names that any has, in the order in which the first that has them does."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _runtime(job: Job) -> float | None:
    return (job.ended - job.started).total_seconds() if job.started and job.ended else None
