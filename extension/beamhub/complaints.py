"""Complaints about templates, in plain sentences: what is wrong, and what is most likely not meant."""

from __future__ import annotations

import ast
import contextlib
import keyword
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError

from beamhub import notebooks
from beamhub.notebooks import Notebook
from beamhub.schemas import Inputs

# What the schema of a parameter may say. Templates may be anybody's: nothing that fetches something ($ref) or
# takes exponential time (pattern).
TYPES = frozenset({"type", "enum", "const", "items", "uniqueItems"})
BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minLength", "maxLength", "minItems", "maxItems"}
)
TEXTS = frozenset({"title", "description", "unit", "default", "examples", "group", "advanced"})


def about_schema(schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with the description of the parameters."""
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        return ['The parameters must be a JSON Schema of type "object" with properties.']
    strange = set(schema) - {"type", "properties", "additionalProperties", "title", "description"}
    complaints = [f"The parameters' schema cannot have {key!r}." for key in sorted(strange)]
    if schema.get("additionalProperties") is not False:
        complaints.append('The parameters\' schema must say "additionalProperties": false.')
    for name, spec in properties.items():
        complaints += [f"The parameter {name!r} {what}." for what in _about_parameter(name, spec)]
    return complaints


def _about_parameter(name: str, spec: object) -> Iterator[str]:
    """As it goes on behind the parameter's name."""
    reserved = name in notebooks.RESERVED or name.startswith("_")
    if not name.isidentifier() or keyword.iskeyword(name) or reserved:
        yield "needs another name: this one is reserved, or not a Python name"
    if not isinstance(spec, dict):
        yield "needs a description of its own"
        return
    yield from (f"needs a {key}" for key in ("title", "description") if not spec.get(key))
    if unknown := _unknown_keywords(spec):  # nor are they looked at: a reference would be followed
        yield from (f"cannot have {key!r}" for key in unknown)
        return
    if texts := _about_texts(spec):
        yield from texts
        return
    if "default" not in spec:
        yield "needs a default"
        return
    try:
        Draft202012Validator.check_schema(spec)
    except SchemaError as error:
        yield f"has an invalid schema: {error.message[:200]}"
        return
    if not Draft202012Validator(spec).is_valid(spec["default"]):
        yield "has a default that its own schema refuses"


def _about_texts(spec: Mapping[str, Any]) -> list[str]:
    """What a form could not show."""
    texts = ("title", "description", "unit", "group")
    complaints = [f'has a "{key}" that is no text' for key in texts if not isinstance(spec.get(key, ""), str)]
    if not isinstance(spec.get("advanced", False), bool):
        complaints.append('says "advanced" with something else than true or false')
    return complaints


def _unknown_keywords(spec: Mapping[str, Any]) -> list[str]:
    items = spec.get("items")
    inner = _unknown_keywords(items) if isinstance(items, dict) else []
    return sorted(set(spec) - TYPES - BOUNDS - TEXTS) + inner


def about_cell(notebook: Notebook, schema: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Where the parameters cell does not fit the description of the parameters, and what the template works
    on."""
    try:
        given = set(notebooks.parameters(notebook))
    except ValueError as error:
        return [str(error)]
    properties = schema.get("properties")
    declared = set(properties) if isinstance(properties, dict) else set()
    variable = notebooks.VARIABLES.get(inputs)
    wanted = {*declared, notebooks.CPUS, *([variable] if variable else [])}
    return [f"The parameters cell does not set {name!r}." for name in sorted(wanted - given)] + [
        f"The parameters cell sets {name!r}, but the template's inputs are {inputs!r}."
        if name in notebooks.INPUTS
        else f"The parameters cell sets {name!r}, which the metadata do not describe."
        for name in sorted(given - wanted)
    ]


def unused(notebook: Notebook, schema: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Advice on parameters that no cell after the parameters cell reads."""
    read = {
        node.id
        for tree in _trees(notebook)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    variable = notebooks.VARIABLES.get(inputs)
    names = [*schema["properties"], *([variable] if variable else [])]
    return [f"No cell uses the parameter {name!r}." for name in names if name not in read]


def unreported(notebook: Notebook, declared: Collection[str]) -> list[str]:
    """Advice on metrics that are declared and never reported, or the reverse; only names that are written out
    can be told, and parts of names such as f"cell_{axis}"."""
    told = {pattern for tree in _trees(notebook) for node in ast.walk(tree) if (pattern := _reported(node))}
    silent = [name for name in declared if not any(re.fullmatch(pattern, name) for pattern in told)]
    strange = [one for one in sorted(told) if not any(re.fullmatch(one, name) for name in declared)]
    advice = [f"The metric {name!r} is declared, and no cell reports it." for name in silent]
    if declared:
        advice += [
            f"The metric {one.replace('.*', '…')!r} is reported and not declared: jobs leave it out."
            for one in strange
        ]
    return advice


def _reported(node: ast.AST) -> str:
    """A pattern for the names of the metrics that this call reports; "" for anything else."""
    if not isinstance(node, ast.Call) or not node.args or not ast.unparse(node.func).endswith("metric"):
        return ""
    match node.args[0]:
        case ast.Constant(value=str(name)):
            return re.escape(name)
        case ast.JoinedStr(values=parts):
            return "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in parts
            )
    return ".*" if ast.unparse(node.func) == "report.metric" else ""  # computed: it may be any


def _trees(notebook: Notebook) -> Iterator[ast.Module]:
    """The code, but the parameters cell; cells with magic commands are read without these lines."""
    for cell in notebook.cells:
        if cell.kind == "code" and "parameters" not in cell.tags:
            lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in cell.source.split("\n"))
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                yield ast.parse("\n".join(lines))
