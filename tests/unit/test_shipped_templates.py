"""The templates that come with beamhub are templates, and keep their promises."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from beamhub.templates import Catalogue, check, shipped

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
def test_lines_fit_a_notebook(path: Path) -> None:
    assert max(map(len, source(path).splitlines())) <= 120
