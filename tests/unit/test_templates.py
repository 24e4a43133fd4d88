"""Templates: what makes a notebook one, and which parameters it takes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from beamhub.catalogue import Catalogue, shipped
from beamhub.errors import Invalid, NotFound
from beamhub.schemas import Template
from beamhub.templates import _parse, check, entry, validate
from hypothesis import given, settings
from hypothesis import strategies as st

CUTOFF = {
    "type": ["number", "null"],
    "title": "Cut-off",
    "description": "Where to stop.",
    "unit": "Å",
    "default": None,
    "minimum": 0.5,
    "maximum": 20,
}
MODE = {
    "type": "string",
    "title": "Mode",
    "description": "How to do it.",
    "enum": ["fast", "good"],
    "default": "fast",
}
BLOCK = {
    "title": "Try",
    "technique": "macromolecular crystallography",
    "description": "Tries something.",
    "parameters": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"cutoff": CUTOFF, "mode": MODE},
    },
    "metrics": {"spots": {"title": "Spots"}},
    "requires": {"programs": ["sh", "surely-not-installed"], "python": ["json", "surely_not_installed.x"]},
}


def notebook(**changes: Any) -> dict[str, Any]:
    cells = [
        {
            "cell_type": "code",
            "metadata": {"tags": ["parameters"]},
            "source": "data = ''\ncpus = 1\ncutoff = None\nmode: str = 'fast'",
            "outputs": [],
            "execution_count": None,
        },
        {"cell_type": "markdown", "metadata": {}, "source": ["# Try\n", "this"]},
    ]
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"beamhub": BLOCK}, "cells": cells}
    return copy.deepcopy(content | changes)


def write(folder: Path, name: str, content: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(notebook() if content is None else content))
    return path


@pytest.fixture
def template(tmp_path: Path) -> Template:
    write(tmp_path, "try_it")
    return Catalogue([tmp_path]).get("try_it").template


def test_a_notebook_with_a_block_and_a_parameters_cell_is_a_template(template: Template) -> None:
    assert (template.name, template.title, template.source) == ("try_it", "Try", "facility")
    assert template.missing == ["surely-not-installed", "surely_not_installed.x"]
    assert len(template.version) == 16


def test_the_version_is_of_what_it_says_not_of_outputs(tmp_path: Path) -> None:
    write(tmp_path, "try_it")
    catalogue = Catalogue([tmp_path])
    first = catalogue.get("try_it").template.version

    run = notebook()
    run["cells"][0] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]}
    run["cells"][0] |= {"execution_count": 3}
    run["cells"][1]["source"] = "# Try\nthis"
    write(tmp_path, "try_it", run)
    assert catalogue.get("try_it").template.version == first

    changed = notebook()
    changed["cells"][1]["source"] = "# Try\nthat"
    write(tmp_path, "try_it", changed)
    assert catalogue.get("try_it").template.version != first


def test_the_first_folder_counts_and_broken_notebooks_do_not(tmp_path: Path) -> None:
    better = notebook()
    better["metadata"]["beamhub"]["title"] = "Better"
    write(tmp_path / "facility", "try_it", better)
    write(tmp_path / "others", "try_it")
    write(tmp_path / "others", "second")
    write(tmp_path / "others", "broken", {"cells": 7})
    catalogue = Catalogue([tmp_path / "facility", tmp_path / "others", tmp_path / "missing"])
    assert [(one.name, one.title) for one in catalogue.list()] == [("second", "Try"), ("try_it", "Better")]
    with pytest.raises(NotFound):
        catalogue.get("broken")


def test_members_templates_are_found_in_their_experiment_only(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    own = experiment / "shared" / "templates"
    write(tmp_path / "facility", "try_it")
    spoof = notebook()
    spoof["metadata"]["beamhub"]["title"] = "Spoof"
    write(own, "try_it", spoof)
    write(own, "mine")
    write(tmp_path / "elsewhere", "stolen")
    (own / "stolen.ipynb").symlink_to(tmp_path / "elsewhere" / "stolen.ipynb")
    catalogue = Catalogue([tmp_path / "facility"])
    assert [one.name for one in catalogue.list()] == ["try_it"]
    found = {one.name: (one.title, one.source) for one in catalogue.list(experiment)}
    assert found == {"mine": ("Try", "experiment"), "try_it": ("Try", "facility")}


def test_defaults_are_filled_in(template: Template) -> None:
    assert validate(template, {}) == {"cutoff": None, "mode": "fast"}
    assert validate(template, {"cutoff": 1.5}) == {"cutoff": 1.5, "mode": "fast"}


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"cutoff": 0.1}, "cutoff"),
        ({"cutoff": "1.5"}, "cutoff"),
        ({"cutoff": float("nan")}, "cutoff"),
        ({"cutoff": float("inf")}, "cutoff"),
        ({"mode": "best"}, "mode"),
        ({"mode": None}, "mode"),
        ({"data": "/etc/passwd"}, "data"),
        ({"cpus": 64}, "cpus"),
        ({"import os; os.abort()": 1}, "import os; os.abort()"),
    ],
)
def test_wrong_parameters_are_named(template: Template, parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as error:
        validate(template, parameters)
    assert {one["field"] for one in error.value.errors} == {field}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["cutoff", "mode", "data", "x y", "__class__"]), JSON))
def test_what_passes_is_exactly_the_schema(parameters: dict[str, Any]) -> None:
    template = Template.model_validate(
        BLOCK
        | {
            "name": "t",
            "version": "v",
            "inputs": "dataset",
            "missing": [],
            "profile": "cpu-1",
            "source": "shipped",
        }
    )
    cutoff, mode = parameters.get("cutoff"), parameters.get("mode", "fast")
    number = isinstance(cutoff, int | float) and not isinstance(cutoff, bool)
    fits = (
        set(parameters) <= {"cutoff", "mode"}
        and mode in ("fast", "good")
        and (cutoff is None or (number and 0.5 <= cutoff <= 20))
    )
    if fits:
        assert validate(template, parameters) == {"cutoff": cutoff, "mode": mode}
    else:
        with pytest.raises(Invalid):
            validate(template, parameters)


def with_parameter(spec: dict[str, Any], name: str = "cutoff") -> dict[str, Any]:
    content = notebook()
    content["metadata"]["beamhub"]["parameters"]["properties"] = {name: spec, "mode": MODE}
    return content


def with_source(source: str) -> dict[str, Any]:
    content = notebook()
    content["cells"][0]["source"] = source
    return content


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "not a notebook"),
        (notebook(nbformat=3), "not a notebook"),
        (notebook(metadata={}), "no block"),
        (notebook(metadata={"beamhub": {**BLOCK, "title": ""}}), "title"),
        (notebook(metadata={"beamhub": {**BLOCK, "colour": "red"}}), "colour"),
        (notebook(metadata={"beamhub": {**BLOCK, "parameters": {"type": "array"}}}), "object"),
        (notebook(cells=[]), 'tagged "parameters"'),
        (with_source("1 +"), "not Python"),
        (with_source("data = ''\ncpus = 1\ncutoff = 1"), "does not set 'mode'"),
        (with_source("data = ''\ncutoff = 1\nmode = ''"), "does not set 'cpus'"),
        (with_source("data = ''\ncpus = 1\ncutoff = mode = extra = 1"), "'extra'"),
        (with_parameter({**CUTOFF, "title": ""}), "needs a title"),
        (with_parameter({key: CUTOFF[key] for key in CUTOFF if key != "default"}), "needs a default"),
        (with_parameter({**CUTOFF, "default": 99}), "own schema refuses"),
        (with_parameter({**CUTOFF, "type": "numbr"}), "invalid schema"),
        (with_parameter({**CUTOFF, "$ref": "http://127.0.0.1/"}), "'$ref'"),
        (with_parameter({**MODE, "pattern": "(a+)+$"}), "'pattern'"),
        (with_parameter({**CUTOFF, "items": {"$ref": "http://127.0.0.1/"}}), "'$ref'"),
        (with_parameter(CUTOFF, "data"), "another name"),
        (with_parameter(CUTOFF, "class"), "another name"),
        (with_parameter(CUTOFF, "x; import os"), "another name"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(tmp_path: Path, content: Any, complaint: str) -> None:
    path = write(tmp_path, "try_it", content)
    assert any(complaint in one for one in check(path)), check(path)
    assert Catalogue([tmp_path]).list() == []


def test_names_of_files_are_names_of_templates(tmp_path: Path) -> None:
    assert "file's name" in check(write(tmp_path, "Try It"))[0]
    assert check(write(tmp_path, "try_it")) == []
    assert "cannot be read" in check(tmp_path / "missing.ipynb")[0]


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_template_or_complained_about(content: Any) -> None:
    for whole in (content, notebook(metadata={"beamhub": content}), notebook(cells=content)):
        text = json.dumps(whole).encode()
        assert (entry("x", text, "facility") is None) == bool(_parse("x", text)[1])


def test_the_shipped_templates_are_templates() -> None:
    for path in shipped().glob("*.ipynb"):
        assert check(path) == []
