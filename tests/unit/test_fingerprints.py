"""Fingerprints: the same for what gives the same result, another for anything that it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from beamhub.fingerprints import fingerprint
from beamhub.schemas import JobInput
from beamhub.store import Transaction

from tests.unit.cockpit import template
from tests.unit.uploading import Site

TOOL = "beamhub-test-tool"


async def test_all_that_a_result_depends_on_is_in_it(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("one.txt", b"1"), ("same.txt", b"1"), ("two.txt", b"2")):
        await site.send(name, content)
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def install(content: str) -> None:
        (programs / TOOL).write_text(content)
        (programs / TOOL).chmod(0o755)

    def mark(name: str = "raw/one.txt", parameters: dict[str, Any] | None = None, **more: Any) -> str | None:
        of = template("try_it", "file", more={"requires": {"programs": [TOOL]}, **more})

        def work(tx: Transaction) -> str | None:
            experiment = tx.experiments.get(site.experiment)
            assert experiment
            given = {"a": 1, "b": 2} if parameters is None else parameters
            return fingerprint(tx, experiment, of, given, [JobInput(kind="file", id=None, name=name)])

        return site.store.read_sync(work)

    install("first")
    marks = [
        mark(),
        mark("raw/two.txt"),
        mark("raw/same.txt"),  # a notebook may look at its input's name
        mark(parameters={"a": 1, "b": 3}),
        mark(version="1" * 16),
        mark(name="raw/one.txt", notebook="shared/mine.ipynb"),
    ]
    install("another build")
    marks.append(mark())
    (programs / TOOL).unlink()
    marks.append(mark())
    assert None not in marks
    assert len(set(marks)) == len(marks)

    install("third")
    same = [mark(), mark(parameters={"b": 2, "a": 1}), mark(profile="cpu-9")]  # how many CPUs: no matter
    assert len(set(same)) == 1
    assert mark("raw/never-arrived.txt") is None
