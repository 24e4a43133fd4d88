"""The catalogue: the templates that can be run here, and members' own notebooks."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from beamhub import folders, templates
from beamhub.errors import Invalid, NotFound
from beamhub.schemas import Template
from beamhub.templates import MAX_SIZE, Entry, Source

MAX_NOTEBOOKS = 500  # of an experiment that are looked at
MAX_REMEMBERED = 5000
OWN = PurePosixPath(folders.SHARED, "templates")  # where members of an experiment keep theirs


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
        return templates.of_member(path, content)

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
                    self._known[path] = (stamp, templates.entry(path.stem, path.read_bytes(), source))
                if (entry := self._known[path][1]) is not None:
                    yield entry


def shipped() -> Path:
    """The folder of the templates that come with beamhub."""
    return Path(str(importlib.resources.files("beamhub_notebooks"))) / "templates"


def _own(experiment: Path) -> Iterator[Entry]:
    for file in sorted(folders.walk(experiment, OWN), key=lambda file: file.path):
        path = PurePosixPath(file.path)
        if path.suffix == ".ipynb" and path.parent == OWN and file.size <= MAX_SIZE:
            with folders.open_file(experiment, path) as notebook:
                entry = templates.entry(path.stem, notebook.read(MAX_SIZE + 1), "experiment")
            if entry is not None:
                yield entry
