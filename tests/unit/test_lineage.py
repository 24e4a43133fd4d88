"""What differs between a job and the one that it was made from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from beamhub.lineage import MAX_DIFF, compare_notebooks, differences
from beamhub.schemas import Job, JobInput, JobProgress, JobState, Profile

CPU = Profile(name="cpu-1", title="1 CPU", cpus=1, memory=1, walltime=1)


def job(**values: Any) -> Job:
    fields: dict[str, Any] = {
        "id": 1,
        "experiment": "mx-2030-00001",
        "template": "dials",
        "template_version": "a",
        "title": "DIALS",
        "state": JobState.FINISHED,
        "reason": "",
        "parameters": {"d_min": 2.0, "space_group": "P1"},
        "inputs": [JobInput(id=1, name="lyso")],
        "profile": CPU,
        "live": False,
        "sponsor": "lab",
        "launched_by": "ada",
        "parent": None,
        "created": datetime(2030, 1, 1, tzinfo=UTC),
        "started": None,
        "ended": None,
        "cpu_seconds": 0,
        "progress": JobProgress(),
        "metrics": {},
        "artifacts": [],
        "folder": "processed/1",
    }
    return Job.model_validate(fields | values)


def notebook(*cells: str) -> bytes:
    return json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells]}).encode()


def test_only_what_was_asked_otherwise_is_a_difference() -> None:
    assert differences(job(), job(id=2, launched_by="ben", metrics={})) == []
    other = job(
        parameters={"d_min": 1.5, "anomalous": True},
        profile=CPU.model_copy(update={"title": "4 CPUs"}),
        sponsor="own",
        template_version="b",
        inputs=[JobInput(id=1, name="lyso"), JobInput(id=2, name="ins")],
    )
    found = [(one.group, one.name, one.before, one.after) for one in differences(job(), other)]
    assert found == [
        ("template", "version", "dials-a", "dials-b"),
        ("parameters", "d_min", 2.0, 1.5),
        ("parameters", "space_group", "P1", None),
        ("parameters", "anomalous", None, True),
        ("inputs", "inputs", "lyso", "lyso, ins"),
        ("job", "profile", "1 CPU", "4 CPUs"),
        ("job", "sponsor", "lab", "own"),
    ]


def test_notebooks_are_compared_by_what_stands_in_their_cells() -> None:
    before, after = notebook("a = 1", "b = 2\nc = 3"), notebook("a = 1", "new()", "b = 2\nc = 4")
    assert compare_notebooks(before, before) == []
    lines = compare_notebooks(before, after)
    assert [line for line in lines if line[0] in "+-"] == ["+new()", "+[code]", "-c = 3", "+c = 4"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cells": 7}', b'{"cells": [7]}', b"\xff"])
def test_what_is_no_notebook_is_told(content: bytes) -> None:
    assert "+(this is not a notebook)" in compare_notebooks(notebook("a = 1"), content)


def test_a_long_difference_is_cut() -> None:
    long = notebook("\n".join(f"x = {n}" for n in range(10_000)))
    lines = compare_notebooks(notebook("a = 1"), long)
    assert len(lines) == MAX_DIFF + 1
    assert lines[-1].endswith("lines more")
