"""Templates: notebooks that describe their own parameters, and the catalogue of those that can run here.

A template is an `.ipynb` file with a metadata block "beamhub" (title, technique, description, parameters as
JSON Schema, metrics, requirements) and one code cell tagged "parameters" that gives every parameter a
default. Besides the parameters of the schema, the cell has `data`, the path of the master file, and `cpus`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.resources
import importlib.util
import json
import keyword
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jsonschema import Draft202012Validator, SchemaError
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from beamhub import folders
from beamhub.errors import Invalid, NotFound
from beamhub.schemas import Line, MetricSpec, Template, TemplateName

RESERVED = ("data", "cpus")  # the parameters that every template has
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
    inputs: Literal["dataset", "datasets", "job"] = "dataset"
    live: bool = False
    parameters: dict[str, JsonValue]
    metrics: dict[str, MetricSpec] = {}
    requires: dict[Literal["programs", "python"], list[str]] = {}
    profile: str = "cpu-1"


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
    missing = [program for program in block.requires.get("programs", []) if shutil.which(program) is None]
    for module in block.requires.get("python", []):
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            missing.append(module)
    template = Template(
        name=name, version=_version(content), missing=missing, source=source, **block.model_dump()
    )
    return Entry(template, content)


def _version(content: bytes) -> str:
    """Of what the notebook says, not of outputs and counters that an editor may have saved with it."""
    notebook = json.loads(content)
    said = [
        notebook["metadata"]["beamhub"],
        [[cell["cell_type"], _source(cell), _tags(cell)] for cell in notebook["cells"]],
    ]
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _parse(name: str, content: bytes) -> tuple[Block | None, list[str]]:
    """The metadata block and all complaints."""
    complaints: list[str] = []
    try:
        TypeAdapter(TemplateName).validate_python(name)
    except ValidationError:
        complaints.append(
            "The file's name must be lower-case letters, digits and _, beginning with a letter."
        )
    if len(content) > MAX_SIZE:
        return None, [
            *complaints,
            f"The notebook has more than {MAX_SIZE // 1024**2} MiB: clear its outputs.",
        ]
    try:
        notebook = json.loads(content)
        cells = [(cell["cell_type"], _source(cell), _tags(cell)) for cell in notebook["cells"]]
        metadata = notebook["metadata"]
        if notebook["nbformat"] != 4 or not isinstance(metadata, dict):
            raise ValueError("not version 4 of the notebook format")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return None, [*complaints, f"The file is not a notebook that can be read ({str(error)[:200]})."]
    if "beamhub" not in metadata:
        return None, [*complaints, 'The notebook\'s metadata have no block "beamhub".']
    try:
        block = Block.model_validate(metadata["beamhub"])
    except ValidationError as error:
        return None, [
            *complaints,
            *(
                f"Metadata: {'.'.join(('beamhub', *map(str, one['loc'])))}: {one['msg']}."
                for one in error.errors()
            ),
        ]
    complaints += _schema_complaints(block.parameters)
    complaints += _cell_complaints(cells, block.parameters)
    return block, complaints


def _source(cell: Mapping[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def _tags(cell: Mapping[str, Any]) -> list[str]:
    return sorted(map(str, cell.get("metadata", {}).get("tags", [])))


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
        if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED or name.startswith("_"):
            complaints.append(f"{where} needs another name: this one is reserved, or not a Python name.")
        if not isinstance(spec, dict):
            complaints.append(f"{where} needs a description of its own.")
            continue
        complaints += [f"{where} needs a {key}." for key in ("title", "description") if not spec.get(key)]
        if unknown := _unknown_keywords(spec):  # nor are they looked at: a reference would be followed
            complaints += [f"{where} cannot have {key!r}." for key in unknown]
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


def _unknown_keywords(spec: Mapping[str, Any]) -> list[str]:
    items = spec.get("items")
    inner = _unknown_keywords(items) if isinstance(items, dict) else []
    return sorted(set(spec) - TYPES - BOUNDS - TEXTS) + inner


def _cell_complaints(cells: Sequence[tuple[str, str, list[str]]], schema: Mapping[str, Any]) -> list[str]:
    tagged = [source for kind, source, tags in cells if kind == "code" and "parameters" in tags]
    if len(tagged) != 1:
        return [f'One code cell must be tagged "parameters", not {len(tagged)}.']
    try:
        tree = ast.parse(tagged[0])
    except (SyntaxError, ValueError, RecursionError) as error:
        return [f"The parameters cell is not Python: {error}."]
    given: set[str] = set()
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        given.update(target.id for target in targets if isinstance(target, ast.Name))
    properties = schema.get("properties")
    declared = set(properties) if isinstance(properties, dict) else set()
    wanted = {*declared, *RESERVED}
    return [f"The parameters cell does not set {name!r}." for name in sorted(wanted - given)] + [
        f"The parameters cell sets {name!r}, which the metadata do not describe."
        for name in sorted(given - wanted)
    ]
