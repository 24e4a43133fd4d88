"""Templates: notebooks that describe their own parameters, and the catalogue of those that can run here.

A template is an `.ipynb` file with a metadata block "beamhub" (title, technique, description, parameters as
JSON Schema, inputs, metrics, requirements) and one code cell tagged "parameters" that gives every parameter a
default. Besides the parameters of the schema, the cell has `cpus` and the variable of what the template works
on, such as `data` (beamhub.notebooks.INPUTS). Any notebook of a member that has a parameters cell can be run
as a job, too: what it says of itself is then inferred from that cell.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.resources
import importlib.util
import json
import keyword
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jsonschema import Draft202012Validator, SchemaError
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from beamhub import folders, notebooks
from beamhub.errors import Invalid, NotFound
from beamhub.notebooks import Assignment, Notebook
from beamhub.schemas import Inputs, Line, MetricSpec, Scaling, Template, TemplateName
from beamhub.text import one_line

NO_BLOCK = (
    'The notebook\'s metadata have no block "beamhub": it is no template. With a parameters cell it can '
    "still be run as a job, by its path in the experiment."
)
MAX_NOTEBOOKS = 500  # of an experiment that are looked at
MAX_REMEMBERED = 5000
MAX_SIZE = 8 * 1024**2  # bytes of a notebook
OWN = PurePosixPath(folders.SHARED, "templates")  # where members of an experiment keep theirs
# What the schema of a parameter may say. Templates may be anybody's: nothing that fetches something ($ref) or
# takes exponential time (pattern).
TYPES = frozenset({"type", "enum", "const", "items", "uniqueItems"})
BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minLength", "maxLength", "minItems", "maxItems"}
)
TEXTS = frozenset({"title", "description", "unit", "default", "examples", "group", "advanced"})

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


class Catalogue:
    """The templates of some folders, read again when a file changes. Where two folders have a template of the
    same name, the first folder's counts. Reads files: call it in a thread."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = list(directories)
        self._members: dict[tuple[Path, int, int, int], Template | Invalid] = {}
        self._known: dict[Path, tuple[tuple[int, int], Entry | None]] = {}

    def list(self, experiment: Path | None = None) -> list[Template]:
        """By name; with the folder of an experiment, also what its members keep in `shared/templates`."""
        return sorted((entry.template for entry in self._entries(experiment)), key=lambda one: one.name)

    def get(self, name: str, experiment: Path | None = None) -> Entry:
        """Raises NotFound."""
        for entry in self._entries(experiment):
            if entry.template.name == name:
                return entry
        raise NotFound(f"There is no template {name!r} here.", "Choose one from the list of templates.")

    def notebooks(self, experiment: Path) -> Sequence[Template]:
        """The notebooks below `shared/` that can be run as jobs, by their paths, at most 500."""
        found: list[Template] = []
        files = (file for file in folders.walk(experiment, PurePosixPath(folders.SHARED)))
        for path in sorted(file.path for file in files if file.path.endswith(".ipynb"))[:MAX_NOTEBOOKS]:
            with contextlib.suppress(NotFound, Invalid):
                found.append(self._remembered(experiment, path))
        return found

    def version(self, name: str, experiment: Path) -> str | None:
        """The version that a job would run now, of a template or of a member's notebook (by its path); None
        if there is none."""
        with contextlib.suppress(NotFound, Invalid):
            if name.endswith(".ipynb"):
                return self._remembered(experiment, name).version
            for entry in self._installed():
                if entry.template.name == name:
                    return entry.template.version
            return self._remembered(experiment, str(OWN / f"{name}.ipynb")).version
        return None

    def _remembered(self, experiment: Path, path: str) -> Template:
        """A member's notebook as it is; it is read again when it has changed. Raises NotFound, Invalid."""
        with folders.open_file(experiment, folders.parse(path)) as file:
            status = os.fstat(file.fileno())
        key = experiment / path, status.st_ino, status.st_mtime_ns, status.st_size
        if (known := self._members.get(key)) is None:
            try:
                known = self.notebook(experiment, path).template
            except Invalid as error:
                known = error
            if len(self._members) >= MAX_REMEMBERED:
                self._members.clear()
            self._members[key] = known
        if isinstance(known, Invalid):
            raise known
        return known

    def notebook(self, experiment: Path, path: str) -> Entry:
        """A member's own notebook, at this path in the folder of the experiment. Raises NotFound, Invalid."""
        where = folders.parse(path)
        if where.parts[0] not in (folders.SHARED, folders.PROCESSED):
            raise Invalid(f"{path} is no notebook of a member.", "Choose one below shared/ or processed/.")
        with folders.open_file(experiment, where) as file:
            content = file.read(MAX_SIZE + 1)
        try:
            found = _readable(content)
            block, complaints = _described(found) if "beamhub" in found.metadata else (None, [])
            if complaints:
                raise ValueError(" ".join(complaints))
            block = block or _as_its_cells_say(_inferred(where.stem, found), found)
        except ValueError as error:
            raise Invalid(f"{path} can't be run as a job: {error}", "Mend the notebook.") from error
        name = re.sub(r"[^a-z0-9]+", "_", where.stem.lower()).strip("_")
        name = name if re.match("[a-z]", name) else f"notebook_{name}"
        return Entry(_template(name[:60], content, block, "experiment", notebook=path), content)

    def _entries(self, experiment: Path | None) -> Iterator[Entry]:
        seen: set[str] = set()
        for entry in (*self._installed(), *(_own(experiment) if experiment else ())):
            if entry.template.name not in seen:
                seen.add(entry.template.name)
                yield entry

    def _installed(self) -> Iterator[Entry]:
        for directory in self._directories:
            source: Source = "shipped" if directory == shipped() else "facility"
            for path in sorted(directory.glob("*.ipynb")):
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                if path not in self._known or self._known[path][0] != stamp:
                    self._known[path] = (stamp, _entry(path.stem, path.read_bytes(), source))
                if (entry := self._known[path][1]) is not None:
                    yield entry


def shipped() -> Path:
    """The folder of the templates that come with beamhub."""
    return Path(str(importlib.resources.files("beamhub_notebooks"))) / "templates"


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
    return [*missing, *_unused(notebook, block), *_unreported(notebook, block)]


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


def _own(experiment: Path) -> Iterator[Entry]:
    for file in sorted(folders.walk(experiment, OWN), key=lambda file: file.path):
        path = PurePosixPath(file.path)
        if path.suffix == ".ipynb" and path.parent == OWN and file.size <= MAX_SIZE:
            with folders.open_file(experiment, path) as notebook:
                entry = _entry(path.stem, notebook.read(MAX_SIZE + 1), "experiment")
            if entry is not None:
                yield entry


def _entry(name: str, content: bytes, source: Source) -> Entry | None:
    """None for a notebook that is no template; `check` says why."""
    block, complaints = _parse(name, content)
    if block is None or complaints:
        return None
    return Entry(_template(name, content, block, source), content)


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
    complaints = _schema_complaints(block.parameters) + _cell_complaints(notebook, block)
    if not complaints:
        try:
            block = _as_its_cells_say(block, notebook)
        except ValueError as error:
            complaints = [str(error)]
    return block, complaints


def _inferred(name: str, notebook: Notebook) -> Block:
    """What a notebook without a block says of itself by its parameters cell and its headings. Raises
    ValueError with a sentence that says what is missing."""
    found = _assignments(notebook)
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


def _assignments(notebook: Notebook) -> dict[str, Assignment]:
    """What the parameters cell sets. Raises ValueError with a sentence."""
    tagged = notebook.tagged("parameters")
    if len(tagged) != 1:
        raise ValueError(f'One code cell must be tagged "parameters", not {len(tagged)}.')
    try:
        return notebooks.assignments(tagged[0].source)
    except ValueError as error:
        raise ValueError(f"The parameters cell is not Python: {error}.") from error


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


def _schema_complaints(schema: Mapping[str, Any]) -> list[str]:
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        return ['The parameters must be a JSON Schema of type "object" with properties.']
    strange = set(schema) - {"type", "properties", "additionalProperties", "title", "description"}
    complaints = [f"The parameters' schema cannot have {key!r}." for key in sorted(strange)]
    if schema.get("additionalProperties") is not False:
        complaints.append('The parameters\' schema must say "additionalProperties": false.')
    for name, spec in properties.items():
        where = f"The parameter {name!r}"
        reserved = name in notebooks.RESERVED or name.startswith("_")
        if not name.isidentifier() or keyword.iskeyword(name) or reserved:
            complaints.append(f"{where} needs another name: this one is reserved, or not a Python name.")
        if not isinstance(spec, dict):
            complaints.append(f"{where} needs a description of its own.")
            continue
        complaints += [f"{where} needs a {key}." for key in ("title", "description") if not spec.get(key)]
        if unknown := _unknown_keywords(spec):  # nor are they looked at: a reference would be followed
            complaints += [f"{where} cannot have {key!r}." for key in unknown]
            continue
        if texts := _text_complaints(spec):
            complaints += [f"{where} {complaint}." for complaint in texts]
            continue
        if "default" not in spec:
            complaints.append(f"{where} needs a default.")
            continue
        try:
            Draft202012Validator.check_schema(spec)
        except SchemaError as error:
            complaints.append(f"{where} has an invalid schema: {error.message[:200]}.")
            continue
        if not Draft202012Validator(spec).is_valid(spec["default"]):
            complaints.append(f"{where} has a default that its own schema refuses.")
    return complaints


def _text_complaints(spec: Mapping[str, Any]) -> list[str]:
    """What a form could not show."""
    texts = ("title", "description", "unit", "group")
    complaints = [f'has a "{key}" that is no text' for key in texts if not isinstance(spec.get(key, ""), str)]
    if not isinstance(spec.get("advanced", False), bool):
        complaints.append('says "advanced" with something else than true or false')
    return complaints


def _unused(notebook: Notebook, block: Block) -> list[str]:
    """Parameters that no cell after the parameters cell reads."""
    read = {
        node.id
        for tree in _trees(notebook)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    variable = notebooks.VARIABLES.get(block.inputs)
    names = [*block.parameters["properties"], *([variable] if variable else [])]  # type: ignore[misc]
    return [f"No cell uses the parameter {name!r}." for name in names if name not in read]


def _unreported(notebook: Notebook, block: Block) -> list[str]:
    """Metrics that are declared and never reported, or the reverse; only names that are written out can be
    told, and parts of names such as f"cell_{axis}"."""
    told = {pattern for tree in _trees(notebook) for node in ast.walk(tree) if (pattern := _reported(node))}
    declared = block.metrics
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


def _unknown_keywords(spec: Mapping[str, Any]) -> list[str]:
    items = spec.get("items")
    inner = _unknown_keywords(items) if isinstance(items, dict) else []
    return sorted(set(spec) - TYPES - BOUNDS - TEXTS) + inner


def _cell_complaints(notebook: Notebook, block: Block) -> list[str]:
    try:
        given = set(_assignments(notebook))
    except ValueError as error:
        return [str(error)]
    properties = block.parameters.get("properties")
    declared = set(properties) if isinstance(properties, dict) else set()
    variable = notebooks.VARIABLES.get(block.inputs)
    wanted = {*declared, notebooks.CPUS, *([variable] if variable else [])}
    return [f"The parameters cell does not set {name!r}." for name in sorted(wanted - given)] + [
        f"The parameters cell sets {name!r}, but the template's inputs are {block.inputs!r}."
        if name in notebooks.INPUTS
        else f"The parameters cell sets {name!r}, which the metadata do not describe."
        for name in sorted(given - wanted)
    ]
