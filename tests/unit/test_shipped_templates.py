"""The templates that come with beamhub are templates, and keep their promises."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from beamhub import notebooks
from beamhub.catalogue import Catalogue, shipped
from beamhub.errors import Invalid
from beamhub.estimates import hint
from beamhub.templates import advice, check, validate

PYTHON = {
    "number": "float",
    "integer": "int",
    "boolean": "bool",
    "string": "str",
    "array": "list[float]",
    "null": "None",
}
TEMPLATES = sorted(shipped().glob("*.ipynb"))


def source(path: Path) -> str:
    cells: list[dict[str, Any]] = json.loads(path.read_bytes())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_there_are_templates() -> None:
    assert [path.stem for path in TEMPLATES] == ["dials", "fast_feedback", "merge"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_it_is_a_template_without_outputs(path: Path) -> None:
    assert check(path) == []
    for cell in json.loads(path.read_bytes())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_it_reports_the_metrics_it_declares(path: Path) -> None:
    template = Catalogue([shipped()]).get(path.stem).template
    reported = {_name(node) for node in ast.walk(ast.parse(source(path))) if isinstance(node, ast.Call)} - {
        ""
    }

    declared = {re.sub("_(a|b|c|alpha|beta|gamma)$", "_*", name) for name in template.metrics}
    assert {re.sub("{.*}", "*", name) for name in reported} == declared


def _name(call: ast.Call) -> str:
    """Of the metric that a call reports, as it is written; "" for other calls."""
    if ast.unparse(call.func) != "report.metric":
        return ""
    return ast.unparse(call.args[0]).lstrip("f").strip("'\"")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_nobody_needs_to_say_what_was_not_meant(path: Path) -> None:
    """But that a machine lacks a program, which is not the template's fault."""
    assert [one for one in advice(path) if "This machine lacks" not in one] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_its_parameters_are_typed_and_have_their_units(path: Path) -> None:
    """The cell, which members read, says the same as the form: type, default and unit."""
    notebook = notebooks.parse(path.read_bytes())
    said = notebooks.assignments(notebook.tagged("parameters")[0].source)
    properties = Catalogue([shipped()]).get(path.stem).template.parameters["properties"]
    assert isinstance(properties, dict)
    for name, spec in properties.items():
        assert isinstance(spec, dict)
        assert said[name].literal() == spec["default"]
        kinds = spec["type"] if isinstance(spec["type"], list) else [spec["type"]]
        assert said[name].annotation == " | ".join(PYTHON[str(kind)] for kind in kinds), name
        unit = str(spec.get("unit", "")).partition(",")[0]
        assert said[name].comment
        assert unit in said[name].comment


@pytest.mark.parametrize(
    ("name", "cpus", "said"),
    [
        ("merge", 2, "2 CPUs are hardly faster than 1, says the template. The programs of DIALS"),
        ("dials", 2, ""),
        ("dials", 8, ""),
        ("dials", 32, "32 CPUs are hardly faster than 16, says the template. Finding spots and integrating"),
        ("fast_feedback", 4, ""),
        ("fast_feedback", 16, "16 CPUs are hardly faster than 8, says the template. Frames are shared"),
    ],
)
def test_it_says_which_cpus_do_not_help(name: str, cpus: int, said: str) -> None:
    found = hint([], cpus, Catalogue([shipped()]).get(name).template.scaling)
    assert bool(found) == bool(said)
    assert found.startswith(said)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_members_copy_with_a_cell_changed_is_the_same_form(path: Path, tmp_path: Path) -> None:
    """And another version."""
    content = json.loads(path.read_bytes())
    content["cells"][-1]["source"].append("\nprint('mine')")
    mine = tmp_path / "shared" / "My own.ipynb"
    mine.parent.mkdir()
    mine.write_text(json.dumps(content))
    catalogue = Catalogue([shipped()])
    ours = catalogue.get(path.stem).template
    theirs = catalogue.notebook(tmp_path, "shared/My own.ipynb").template
    own = {"name", "notebook", "source", "version"}
    assert theirs.model_dump(exclude=own) == ours.model_dump(exclude=own)
    assert (theirs.notebook, theirs.source) == ("shared/My own.ipynb", "experiment")
    assert theirs.version != ours.version


def _with_cell(line: str, instead: str, folder: Path) -> Path:
    """A copy of a shipped template in which a line of the parameters cell was changed, as in an editor."""
    text = (shipped() / "fast_feedback.ipynb").read_text()
    assert text.count(line) == 1
    path = folder / "shared" / "templates" / "mine.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(text.replace(line, instead))
    return path


def test_a_value_changed_in_the_parameters_cell_is_what_jobs_take(tmp_path: Path) -> None:
    _with_cell("sigma_strong: float = 3.0", "sigma_strong: float = 4.5", tmp_path)
    catalogue = Catalogue([shipped()])
    by_path = catalogue.notebook(tmp_path, "shared/templates/mine.ipynb").template
    for changed in (by_path, catalogue.get("mine", tmp_path).template):
        before = catalogue.get("fast_feedback").template
        assert validate(changed, {}) == validate(before, {}) | {"sigma_strong": 4.5}
        now: Any = changed.parameters["properties"]
        was: Any = before.parameters["properties"]
        assert now["sigma_strong"] == was["sigma_strong"] | {"default": 4.5}


def test_a_value_in_the_parameters_cell_that_cannot_be_is_told(tmp_path: Path) -> None:
    path = _with_cell("sigma_strong: float = 3.0", "sigma_strong: float = 0.5", tmp_path)
    [said] = check(path)
    assert said.startswith("A cell sets sigma_strong to a value that its description in the metadata refuses")
    with pytest.raises(Invalid, match="sigma_strong"):
        Catalogue([shipped()]).notebook(tmp_path, "shared/templates/mine.ipynb")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_lines_fit_a_notebook(path: Path) -> None:
    assert max(map(len, source(path).splitlines())) <= 120
