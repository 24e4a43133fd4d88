"""`beamhub template check`: what is only advice, and how it is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from beamhub.catalogue import Catalogue
from beamhub.cli import main
from beamhub.templates import advice, check
from click.testing import CliRunner

from tests.unit.test_templates import BLOCK, CUTOFF, notebook, with_parameter, with_source, write


def with_cells(*sources: str, **block: Any) -> dict[str, Any]:
    content = notebook(metadata={"beamhub": BLOCK | {"requires": {}} | block})
    code: dict[str, Any] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    content["cells"] += [{**code, "source": source} for source in sources]
    return content


CELL = {"cell_a": {"title": "a"}}
USED = "print(data, cutoff, mode)"
REPORTED = "from beamhub import report\nreport.metric('spots', 1)"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (with_cells(USED, REPORTED), []),
        (with_cells("%matplotlib inline\n" + USED, REPORTED, "this is (no Python"), []),
        (with_cells("print(data, mode)", REPORTED), ["No cell uses the parameter 'cutoff'."]),
        (with_cells("cutoff = 2", REPORTED, "print(data, mode)"), ["No cell uses the parameter 'cutoff'."]),
        (with_cells("print(cutoff, mode)", REPORTED), ["No cell uses the parameter 'data'."]),
        (with_cells(USED), ["The metric 'spots' is declared, and no cell reports it."]),
        (
            with_cells(USED, REPORTED, "report.metric('rings', 1)"),
            ["The metric 'rings' is reported and not declared: jobs leave it out."],
        ),
        (
            with_cells(
                USED, "for a in 'ab':\n    report.metric(f'cell_{a}', 1)", metrics={"cell_a": {"title": "a"}}
            ),
            [],
        ),
        (with_cells(USED, "for name in x:\n    report.metric(name, 1)"), []),
        (with_cells(USED, "report.metric('anything', 1)", metrics={}), []),
        (
            with_cells(
                USED, REPORTED, requires={"programs": ["surely-not-here"], "python": ["json", "nor.this"]}
            ),
            [
                "This machine lacks surely-not-here: the template can't run here.",
                "This machine lacks nor.this: the template can't run here.",
            ],
        ),
    ],
)
def test_advice_is_given(tmp_path: Path, content: Any, said: list[str]) -> None:
    path = write(tmp_path, "try_it", content)
    assert check(path) == []
    assert advice(path) == said
    assert [one.name for one in Catalogue([tmp_path]).list()] == ["try_it"]  # it is a template all the same


@pytest.mark.parametrize(
    ("inputs", "source", "complaint"),
    [
        ("datasets", "data = ''", "does not set 'datasets'"),
        ("datasets", "data = ''\ndatasets = []", "sets 'data', but the template's inputs are 'datasets'"),
        ("none", "data = ''", "sets 'data', but the template's inputs are 'none'"),
        ("jobs", "job = ''", "does not set 'jobs'"),
        ("file", "", "does not set 'file'"),
        ("scan", "data = ''", "beamhub.inputs"),
    ],
)
def test_inputs_and_the_parameters_cell_say_the_same(
    tmp_path: Path, inputs: str, source: str, complaint: str
) -> None:
    content = with_source(f"cpus = 1\ncutoff = None\nmode = 'fast'\n{source}")
    content["metadata"]["beamhub"] = BLOCK | {"inputs": inputs}
    found = check(write(tmp_path, "try_it", content))
    assert any(complaint in one for one in found), found


@pytest.mark.parametrize(
    ("inputs", "variable"),
    [
        ("datasets", "datasets = []"),
        ("job", "job = ''"),
        ("jobs", "jobs = []"),
        ("file", "file = ''"),
        ("none", ""),
    ],
)
def test_each_kind_of_input_has_its_variable(tmp_path: Path, inputs: str, variable: str) -> None:
    content = with_source(f"cpus = 1\ncutoff = None\nmode = 'fast'\n{variable}")
    content["metadata"]["beamhub"] = BLOCK | {"inputs": inputs}
    assert check(write(tmp_path, "try_it", content)) == []


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"group": 7}, '"group" that is no text'),
        ({"unit": ["Å"]}, '"unit" that is no text'),
        ({"advanced": "yes"}, "something else than true or false"),
        ({"title": 3}, '"title" that is no text'),
    ],
)
def test_what_a_form_cannot_show_is_refused(tmp_path: Path, extra: dict[str, Any], complaint: str) -> None:
    spec = CUTOFF | extra
    found = check(write(tmp_path, "try_it", with_parameter(spec)))
    assert any(complaint in one for one in found), found


@pytest.mark.parametrize(
    ("scaling", "complaint"),
    [
        ({"parallel": 0.8, "cpus": 8, "note": "The last step uses one CPU."}, ""),
        ({"parallel": 1}, ""),
        ({"parallel": 1.5}, "scaling.parallel"),
        ({"cpus": 8}, "scaling.parallel"),
        ({"parallel": 0.5, "cpus": 0}, "scaling.cpus"),
        ({"parallel": 0.5, "speed": 2}, "scaling.speed"),
    ],
)
def test_how_it_scales_is_part_of_the_block(tmp_path: Path, scaling: Any, complaint: str) -> None:
    content = notebook()
    content["metadata"]["beamhub"] = copy.deepcopy(BLOCK) | {"scaling": scaling}
    path = write(tmp_path, "try_it", content)
    found = check(path)
    assert bool(found) == bool(complaint)
    assert all(complaint in one for one in found)
    if not complaint:
        told = Catalogue([tmp_path]).get("try_it").template.scaling
        assert told is not None
        assert told.parallel == scaling["parallel"]


def test_a_notebook_in_another_language_is_no_template(tmp_path: Path) -> None:
    content = notebook()
    content["metadata"]["kernelspec"] = {"name": "ir", "display_name": "R", "language": "R"}
    assert check(write(tmp_path, "try_it", content)) == ["The notebook is written in r: jobs run Python."]


def test_the_command_tells_faults_and_advice(tmp_path: Path) -> None:
    run = CliRunner().invoke
    good = write(tmp_path, "good", with_cells(USED, REPORTED))
    told = run(main, ["template", "check", str(good)])
    assert (told.exit_code, told.output) == (0, f"{good} may be a template.\n")
    better = write(tmp_path, "better", with_cells(USED))
    told = run(main, ["template", "check", str(better)])
    assert told.exit_code == 0
    assert "Advice: The metric 'spots' is declared, and no cell reports it." in told.output
    told = run(main, ["template", "check", "--json", str(better)])
    assert json.loads(told.output) == {
        "faults": [],
        "advice": ["The metric 'spots' is declared, and no cell reports it."],
    }
    bad = write(tmp_path, "bad", notebook(metadata={}))
    told = run(main, ["template", "check", str(bad)])
    assert told.exit_code == 1
    assert "by its path in the experiment" in told.output
