"""Where a job comes from: what differs from the job that it was made from."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from beamhub.schemas import Difference, Job

MAX_LINES = 5000  # of a notebook that are compared
MAX_DIFF = 2000  # lines


def differences(parent: Job, job: Job) -> list[Difference]:
    """What was asked for differently, in the order in which people ask for it."""
    found = [
        Difference(group="template", name="template", before=parent.title, after=job.title),
        Difference(
            group="template",
            name="version",
            before=f"{parent.template}-{parent.template_version}",
            after=f"{job.template}-{job.template_version}",
        ),
    ]
    for name in dict.fromkeys((*parent.parameters, *job.parameters)):
        before, after = parent.parameters.get(name), job.parameters.get(name)
        found.append(Difference(group="parameters", name=name, before=before, after=after))
    found += [
        Difference(group="inputs", name="inputs", before=_inputs(parent), after=_inputs(job)),
        Difference(group="job", name="profile", before=parent.profile.title, after=job.profile.title),
        Difference(group="job", name="sponsor", before=parent.sponsor, after=job.sponsor),
    ]
    return [one for one in found if one.before != one.after]


def compare_notebooks(before: bytes, after: bytes) -> list[str]:
    """The lines of a unified diff of the notebooks' cells, without its header; empty if they are the same."""
    lines = list(difflib.unified_diff(list(_lines(before)), list(_lines(after)), lineterm="", n=2))[2:]
    if len(lines) > MAX_DIFF:
        return [*lines[:MAX_DIFF], f"… and {len(lines) - MAX_DIFF} lines more"]
    return lines


def _lines(notebook: bytes) -> Sequence[str]:
    try:
        cells = json.loads(notebook)["cells"]
        return list(_cells(cells))[:MAX_LINES]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["(this is not a notebook)"]


def _cells(cells: Sequence[dict[str, JsonValue]]) -> Iterator[str]:
    for cell in cells:
        source = cell.get("source", "")
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        yield f"[{str(cell.get('cell_type', ''))[:20]}]"
        yield from (line[:500] for line in text.splitlines())


def _inputs(job: Job) -> str:
    return ", ".join(one.name or f"{one.kind} {one.id}" for one in job.inputs)
