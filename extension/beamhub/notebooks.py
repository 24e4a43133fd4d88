"""Notebooks as text: their cells, and what their parameters cell sets.

A notebook may be anybody's, so nothing of it is executed here: the parameters cell is parsed, and only
literals are read out of it.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from beamhub.schemas import Inputs
from beamhub.text import one_line

Kind = Literal["dataset", "job", "file"]

# How a notebook names what it works on: the variable in its parameters cell, what it is, and whether it is a
# list. Its value is the absolute path of a master file, of a job's folder, or of a file.
INPUTS: Mapping[str, tuple[Kind, bool]] = {
    "data": ("dataset", False),
    "datasets": ("dataset", True),
    "job": ("job", False),
    "jobs": ("job", True),
    "file": ("file", False),
}
VARIABLES: Mapping[Inputs, str] = {
    "dataset": "data",
    "datasets": "datasets",
    "job": "job",
    "jobs": "jobs",
    "file": "file",
}
MAX_CELL = 32 * 1024  # characters of a parameters cell: a syntax tree takes a hundred times as much
KERNEL = "python3"  # of a notebook that does not say
CPUS = "cpus"  # the variable that gets the number of CPUs
RESERVED = frozenset({*INPUTS, CPUS})


@dataclass(frozen=True)
class Cell:
    kind: str  # code, markdown, raw
    source: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Notebook:
    metadata: Mapping[str, Any]
    cells: Sequence[Cell]

    def tagged(self, tag: str) -> list[Cell]:
        """The code cells with this tag."""
        return [cell for cell in self.cells if cell.kind == "code" and tag in cell.tags]

    def heading(self, index: int) -> str:
        """What a cell is about: the nearest heading above it, or else its first line."""
        for cell in reversed(self.cells[:index]):
            if cell.kind == "markdown" and (title := _heading(cell.source)):
                return title
        lines = self.cells[index].source.strip().splitlines() if index < len(self.cells) else []
        return lines[0] if lines else ""

    @property
    def language(self) -> str:
        """Of its kernel, in lower case; "" if it does not say."""
        for key, name in (("kernelspec", "language"), ("language_info", "name")):
            found = self.metadata.get(key)
            if isinstance(found, dict) and isinstance(found.get(name), str):
                return one_line(found[name].lower(), 40)
        return ""

    @property
    def kernel(self) -> str:
        """The name of its kernel."""
        found = self.metadata.get("kernelspec")
        return str(found.get("name") or KERNEL) if isinstance(found, dict) else KERNEL

    @property
    def title(self) -> str:
        """The first heading; "" if there is none."""
        return next(filter(None, (_heading(c.source) for c in self.cells if c.kind == "markdown")), "")


def parse(content: bytes) -> Notebook:
    """Raises ValueError for what is no notebook of format 4."""
    try:
        raw = json.loads(content)
        cells = [Cell(str(cell["cell_type"]), _source(cell), _tags(cell)) for cell in raw["cells"]]
        metadata = raw["metadata"]
        version = raw["nbformat"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}"[:200]) from error
    if version != 4 or not isinstance(metadata, dict):
        raise ValueError("not version 4 of the notebook format")
    return Notebook(metadata, cells)


@dataclass(frozen=True)
class Assignment:
    """What a parameters cell sets a name to."""

    value: ast.expr | None
    annotation: str = ""
    comment: str = ""  # at the end of the line

    def literal(self) -> Any:
        """Raises ValueError for what is computed, or no value of JSON."""
        if self.value is None:
            raise ValueError("no value")
        try:
            value = ast.literal_eval(self.value)
            return json.loads(json.dumps(value, allow_nan=False))  # tuples become lists
        except (TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(str(error)) from error


def assignments(source: str) -> dict[str, Assignment]:
    """The names that the lines of a parameters cell set, in their order. Raises ValueError for what is no
    Python."""
    if len(source) > MAX_CELL:
        raise ValueError(f"it has more than {MAX_CELL} characters")
    try:
        return _assignments(ast.parse(source), _comments(source))
    except (SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(str(error)) from error


def _assignments(tree: ast.Module, comments: Mapping[int, str]) -> dict[str, Assignment]:
    found: dict[str, Assignment] = {}
    for statement in tree.body:
        comment = comments.get(statement.end_lineno or 0, "")
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = Assignment(statement.value, "", comment)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            found[statement.target.id] = Assignment(statement.value, annotation, comment)
    return found


def parameters(notebook: Notebook) -> dict[str, Assignment]:
    """What the notebook's parameters cell sets. Raises ValueError with a sentence."""
    tagged = notebook.tagged("parameters")
    if len(tagged) != 1:
        raise ValueError(f'One code cell must be tagged "parameters", not {len(tagged)}.')
    try:
        return assignments(tagged[0].source)
    except ValueError as error:
        raise ValueError(f"The parameters cell is not Python: {error}.") from error


def declared(content: bytes) -> frozenset[str]:
    """The names that a notebook's parameters cell sets: no others may be given to it. Raises ValueError."""
    tagged = parse(content).tagged("parameters")
    return frozenset(assignments(tagged[0].source)) if tagged else frozenset()


def metrics(content: bytes) -> Mapping[str, str]:
    """The metrics that a template declares, with their units; of a notebook that declares none: nothing, and
    it may report any. Raises ValueError."""
    block = parse(content).metadata.get("beamhub")
    found = block.get("metrics") if isinstance(block, dict) else None
    if not isinstance(found, dict):
        return {}
    return {
        str(name): str(spec.get("unit", "")) if isinstance(spec, dict) else "" for name, spec in found.items()
    }


def misfit(declared: Mapping[str, str], name: str, unit: str) -> str:
    """Why a reported metric is none of those declared; "" if it may be kept."""
    if not declared or declared.get(name) == unit:
        return ""
    if name not in declared:
        return f"The metric {name!r} is left out: the template does not declare it."
    return (
        f"The metric {name!r} is left out: it was reported in {unit or 'no unit'}, and the template declares "
        f"{declared[name] or 'no unit'}."
    )


def _comments(source: str) -> dict[int, str]:
    """By line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _heading(markdown: str) -> str:
    return next((line.strip("# ") for line in markdown.splitlines() if line.startswith("#")), "")


def _source(cell: Mapping[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def _tags(cell: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(map(str, cell.get("metadata", {}).get("tags", []))))
