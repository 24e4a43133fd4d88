"""Templates: notebooks that describe their own parameters.

A template is an `.ipynb` file with a metadata block "beamhub" (title, technique, description, parameters as
JSON Schema, inputs, metrics, requirements) and one code cell tagged "parameters" that gives every parameter a
default. Besides the parameters of the schema, the cell has `cpus` and the variable of what the template works
on, such as `data` (beamhub.notebooks.INPUTS). Any notebook of a member that has a parameters cell can be run
as a job, too: what it says of itself is then inferred from that cell.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from beamhub import notebooks
from beamhub.complaints import about_cell, about_schema, unreported, unused
from beamhub.errors import Invalid
from beamhub.notebooks import Assignment, Notebook
from beamhub.schemas import Inputs, Line, MetricSpec, Scaling, Template, TemplateName
from beamhub.text import one_line

NO_BLOCK = (
    'The notebook\'s metadata have no block "beamhub": it is no template. With a parameters cell it can '
    "still be run as a job, by its path in the experiment."
)
MAX_SIZE = 8 * 1024**2  # bytes of a notebook
Source = Literal["shipped", "facility", "experiment"]


class Block(BaseModel):
    """The metadata block "beamhub" of a template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Line
    technique: Line
    description: str = Field(min_length=1, max_length=4000)
    inputs: Inputs = "dataset"
    live: bool = False
    parameters: dict[str, JsonValue]
    metrics: dict[str, MetricSpec] = {}
    requires: dict[Literal["programs", "python"], list[str]] = {}
    profile: str = "cpu-1"
    scaling: Scaling | None = None


@dataclass(frozen=True)
class Entry:
    """A template and the notebook that it is."""

    template: Template
    content: bytes


def entry(name: str, content: bytes, source: Source) -> Entry | None:
    """The template that a notebook is; None for one that is no template: `check` says why."""
    block, complaints = _parse(name, content)
    if block is None or complaints:
        return None
    return Entry(_template(name, content, block, source), content)


def of_member(path: str, content: bytes) -> Entry:
    """What can be run of a member's own notebook, at this path in an experiment. Raises Invalid."""
    stem = PurePosixPath(path).stem
    try:
        found = _readable(content)
        block, complaints = _described(found) if "beamhub" in found.metadata else (None, [])
        if complaints:
            raise ValueError(" ".join(complaints))
        block = block or _as_its_cells_say(_inferred(stem, found), found)
    except ValueError as error:
        raise Invalid(f"{path} can't be run as a job: {error}", "Mend the notebook.") from error
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    name = name if re.match("[a-z]", name) else f"notebook_{name}"
    return Entry(_template(name[:60], content, block, "experiment", notebook=path), content)


def check(path: Path) -> list[str]:
    """What is wrong with the notebook at `path` as a template, in plain sentences; empty: nothing."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return [f"The file cannot be read: {error.strerror}."]
    return _parse(path.stem, content)[1]


def advice(path: Path) -> list[str]:
    """What is most likely not meant in the template at `path`, or keeps it from running on this machine, in
    plain sentences. For one that has no fault (`check`)."""
    content = path.read_bytes()
    block, _ = _parse(path.stem, content)
    if block is None:
        return []
    notebook = notebooks.parse(content)
    missing = [f"This machine lacks {name}: the template can't run here." for name in _missing(block)]
    return [
        *missing,
        *unused(notebook, block.parameters, block.inputs),
        *unreported(notebook, block.metrics),
    ]


def validate(template: Template, parameters: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The parameters with defaults filled in. Raises Invalid, with one error per parameter that is wrong."""
    schema: dict[str, Any] = template.parameters
    properties: Mapping[str, Mapping[str, JsonValue]] = schema.get("properties", {})
    errors: list[dict[str, JsonValue]] = [
        {"field": name, "message": f"{template.title} has no parameter of this name"}
        for name in parameters
        if name not in properties
    ]
    values = {name: parameters.get(name, spec.get("default")) for name, spec in properties.items()}
    for error in Draft202012Validator(schema).iter_errors(values):
        field = ".".join(map(str, error.absolute_path))
        errors.append({"field": field, "message": error.message[:500]})
    errors += [
        {"field": name, "message": "must be a finite number"}
        for name, value in values.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if errors:
        wrong = ", ".join(sorted({str(error["field"])[:80] for error in errors}))
        raise Invalid(
            f"These parameters do not fit the template {template.name}: {wrong}.",
            "See the template's description of its parameters.",
            errors=errors,
        )
    return values


def _template(
    name: str, content: bytes, block: Block, source: Source, notebook: str | None = None
) -> Template:
    return Template(
        name=name,
        notebook=notebook,
        version=_version(content),
        missing=_missing(block),
        source=source,
        **block.model_dump(),
    )


def _missing(block: Block) -> list[str]:
    """What it needs and this machine lacks."""
    missing = [program for program in block.requires.get("programs", []) if shutil.which(program) is None]
    for module in block.requires.get("python", []):
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            missing.append(module)
    return missing


def _version(content: bytes) -> str:
    """Of what the notebook says, not of outputs and counters that an editor may have saved with it."""
    notebook = notebooks.parse(content)
    said = [
        notebook.metadata.get("beamhub"),
        [[cell.kind, cell.source, list(cell.tags)] for cell in notebook.cells],
    ]
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _parse(name: str, content: bytes) -> tuple[Block | None, list[str]]:
    """The metadata block and all complaints, of a template with this name."""
    complaints: list[str] = []
    try:
        TypeAdapter(TemplateName).validate_python(name)
    except ValidationError:
        complaints.append(
            "The file's name must be lower-case letters, digits and _, beginning with a letter."
        )
    try:
        notebook = _readable(content)
    except ValueError as error:
        return None, [*complaints, str(error)]
    if "beamhub" not in notebook.metadata:
        return None, [*complaints, NO_BLOCK]
    block, more = _described(notebook)
    return block, [*complaints, *more]


def _readable(content: bytes) -> Notebook:
    """Raises ValueError with a sentence that says why it is not."""
    if len(content) > MAX_SIZE:
        raise ValueError(f"The notebook has more than {MAX_SIZE // 1024**2} MiB: clear its outputs.")
    try:
        notebook = notebooks.parse(content)
    except ValueError as error:
        raise ValueError(f"The file is not a notebook that can be read ({error}).") from error
    if notebook.language not in ("", "python"):
        raise ValueError(f"The notebook is written in {notebook.language}: jobs run Python.")
    return notebook


def _described(notebook: Notebook) -> tuple[Block | None, list[str]]:
    """The metadata block of a notebook that has one, and what is wrong with it and the parameters cell."""
    try:
        block = Block.model_validate(notebook.metadata["beamhub"])
    except ValidationError as error:
        return None, [
            f"Metadata: {'.'.join(('beamhub', *map(str, one['loc'])))}: {one['msg']}."
            for one in error.errors()
        ]
    complaints = about_schema(block.parameters) + about_cell(notebook, block.parameters, block.inputs)
    if not complaints:
        try:
            block = _as_its_cells_say(block, notebook)
        except ValueError as error:
            complaints = [str(error)]
    return block, complaints


def _inferred(name: str, notebook: Notebook) -> Block:
    """What a notebook without a block says of itself by its parameters cell and its headings. Raises
    ValueError with a sentence that says what is missing."""
    found = notebooks.parameters(notebook)
    given = [taken for taken, variable in notebooks.VARIABLES.items() if variable in found]
    if len(given) > 1:
        names = " and ".join(notebooks.VARIABLES[taken] for taken in given)
        raise ValueError(f"The parameters cell sets {names}: a notebook works on one kind of input.")
    properties = {
        key: spec
        for key, one in found.items()
        if key not in notebooks.RESERVED and not key.startswith("_") and (spec := _guess(key, one))
    }
    return Block(
        title=one_line(notebook.title, 200) or name,
        technique="own",
        description="A member's own notebook: its parameters are those of its parameters cell.",
        inputs=given[0] if given else "none",
        parameters={"type": "object", "additionalProperties": False, "properties": properties},
    )


def _guess(name: str, one: Assignment) -> dict[str, JsonValue] | None:
    """The description of a parameter by its default, annotation and comment; None for what is computed."""
    try:
        default = one.literal()
    except ValueError:
        return None
    spec: dict[str, JsonValue] = {
        "title": name.replace("_", " ").capitalize(),
        "description": one_line(one.comment, 500) or "Set in the notebook's parameters cell.",
        "default": default,
    }
    match default:
        case bool():
            spec["type"] = "boolean"
        case int():
            spec["type"] = "number" if one.annotation == "float" else "integer"
        case float():
            spec["type"] = "number"
        case str():
            spec["type"] = "string"
        case list():
            spec["type"] = "array"
            if default and all(isinstance(item, int | float) for item in default):
                spec["items"] = {"type": "number"}
    return spec


def _as_its_cells_say(block: Block, notebook: Notebook) -> Block:
    """With what the cells set as defaults: the parameters cell, and where the notebook was a job, the values
    that papermill injected below it. Whoever runs the notebook by hand gets those, too. Raises ValueError
    with a sentence for a value that the description of its parameter refuses."""
    properties: dict[str, Any] = dict(block.parameters["properties"])  # type: ignore[arg-type]
    for cell in (*notebook.tagged("parameters"), *notebook.tagged("injected-parameters")):
        for name, one in notebooks.assignments(cell.source).items():
            if name in properties:
                properties[name] = _with_default(name, properties[name], one)
    return block.model_copy(update={"parameters": {**block.parameters, "properties": properties}})


def _with_default(name: str, spec: Mapping[str, Any], one: Assignment) -> Mapping[str, Any]:
    try:
        value = one.literal()
    except ValueError:  # computed: the description says what it is
        return spec
    for error in Draft202012Validator(spec).iter_errors(value):
        raise ValueError(
            f"A cell sets {name} to a value that its description in the metadata refuses: "
            f"{one_line(error.message, 200)}."
        )
    return {**spec, "default": value}
