"""HDF5 files from outside, read without ever following what they point to.

An HDF5 file can reach other files in three ways: external links, virtual datasets and external raw storage.
Calls that look harmless open the target: with an open-ended virtual dataset, `dset.shape` does. So everything
here goes link by link, looks at what a link *is* before it opens anything, and asks a dataset's creation
properties where its bytes live before it asks for anything else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
from h5py import h5d, h5g, h5l, h5o

MAX_OBJECTS = 100_000  # links in one file; a DECTRIS master has about a hundred
MAX_HOPS = 16  # soft links after each other
MAX_VALUE_BYTES = 1 << 28  # of a dataset that is read whole: a pixel mask of a 16M detector has 72 MB


class FileProblem(Exception):  # noqa: N818 (what it is, not how it is raised)
    """Something is wrong with a file from outside. `file` is its name, `reason` a plain sentence."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


class HostileFile(FileProblem):
    """The file points outside its own folder, or is built to exhaust or mislead its reader."""


class UnreadableFile(FileProblem):
    """The file is damaged, incomplete, or not what its name says."""


@dataclass(frozen=True)
class Elsewhere:
    """An external link: the file it points to (checked to stay in the folder) and the path inside."""

    file: str
    path: str


def confined_name(file: str, name: str) -> str:
    """The name of a neighbour of `file`, as a link has it, if it stays inside the folder.

    Raises:
        HostileFile: it is absolute, climbs out with "..", or holds characters no file name should.
    """
    if not name or not name.isprintable() or "\\" in name or len(name) > 1024:
        raise HostileFile(file, f"it links to a file by the unusable name {name[:100]!r}")
    if name.startswith("/"):
        raise HostileFile(file, f"it links to {name[:200]!r}; only files in its own folder may be linked")
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise HostileFile(file, f"it links out of its folder, to {name[:200]!r}")
    if "%" in name:  # HDF5 expands %b in names of virtual sources
        raise HostileFile(file, f"it links by a name pattern, {name[:200]!r}; each file must be named")
    return str(PurePosixPath(*parts))


def open_confined(path: Path, root: Path) -> int:
    """A file descriptor of a regular file inside `root`.

    Raises:
        HostileFile: symbolic links lead out of `root`, or it is not a regular file.
        FileNotFoundError: there is no such file (yet).
    """
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(root)):
        raise HostileFile(path.name, "it leads out of its experiment's folder")
    fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HostileFile(path.name, "it is not a regular file")
    return fd


@contextmanager
def opened(path: Path, root: Path) -> Iterator[h5py.File]:
    """The HDF5 file `path`, which must lie inside `root`, every link of it checked but none followed.

    Raises:
        HostileFile, UnreadableFile, FileNotFoundError
    """
    fd = open_confined(path, root)
    try:
        with h5py.File(f"/dev/fd/{fd}", "r", locking=False) as file:
            _check_all(file, path.name)
            yield file
    except (FileProblem, FileNotFoundError):
        raise
    except MemoryError as error:
        raise UnreadableFile(path.name, "reading it needs more memory than is allowed") from error
    except (
        OSError,
        KeyError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise UnreadableFile(path.name, _plain(error)) from error
    finally:
        os.close(fd)


def _plain(error: Exception) -> str:
    text = str(error)
    if "signature not found" in text:
        return "it is not an HDF5 file"
    if "truncated file" in text:
        return "it is truncated; send it again"
    return f"it is damaged or not as expected ({' '.join(text.split())[:200]})"


def _check_all(file: h5py.File, name: str) -> None:
    """Walk every link of a file; raise HostileFile on the first that leads out of its folder."""
    todo = [h5g.open(file.id, b"/")]
    seen = {h5o.get_info(todo[0]).addr}
    links = 0
    while todo:
        group = todo.pop()
        links += group.get_num_objs()
        if links > MAX_OBJECTS:
            raise HostileFile(name, f"it holds more than {MAX_OBJECTS} links")
        for key in group:
            kind = group.links.get_info(key).type
            if kind == h5l.TYPE_EXTERNAL:
                confined_name(name, os.fsdecode(group.links.get_val(key)[0]))
            elif kind == h5l.TYPE_HARD:
                item = h5o.open(group, key)
                address = h5o.get_info(item).addr
                if address in seen:
                    continue
                seen.add(address)
                if isinstance(item, h5g.GroupID):
                    todo.append(item)
                elif isinstance(item, h5d.DatasetID):
                    _check_dataset(item, name)
            elif kind != h5l.TYPE_SOFT:  # a soft link stays inside; `find` follows it step by step
                raise HostileFile(name, f"it holds a link of the unknown type {kind}")


def _check_dataset(dataset: h5d.DatasetID, name: str) -> None:
    layout = dataset.get_create_plist()
    if layout.get_external_count():
        raise HostileFile(name, "a dataset keeps its values in another file (external raw storage)")
    if layout.get_layout() == h5d.VIRTUAL:
        for index in range(min(layout.get_virtual_count(), MAX_OBJECTS)):
            source = layout.get_virtual_filename(index)
            if source != ".":
                confined_name(name, source)


def find(file: h5py.File, path: str, name: str) -> h5g.GroupID | h5d.DatasetID | Elsewhere | None:
    """What `path` leads to inside `file`: an object, an external link (not followed), or None.

    Soft links are followed, step by step, as long as they stay in the file.

    Raises:
        HostileFile: a loop of soft links.
    """
    root = h5g.open(file.id, b"/")
    here, rest, hops = root, _steps(path), 0
    while rest:
        key = rest.pop(0)
        if not isinstance(here, h5g.GroupID) or not here.links.exists(key):
            return None
        kind = here.links.get_info(key).type
        if kind == h5l.TYPE_HARD:
            here = h5o.open(here, key)
        elif kind == h5l.TYPE_SOFT:
            hops += 1
            if hops > MAX_HOPS:
                raise HostileFile(name, f"its links go round in a circle at {path[:200]!r}")
            target = os.fsdecode(here.links.get_val(key))
            here = root if target.startswith("/") else here
            rest = _steps(target) + rest
        elif kind == h5l.TYPE_EXTERNAL and not rest:
            target_file, target_path = here.links.get_val(key)
            return Elsewhere(confined_name(name, os.fsdecode(target_file)), os.fsdecode(target_path))
        else:
            return None  # the way goes on in another file: none of what is asked for lies there
    return here


def _steps(path: str) -> list[bytes]:
    return [os.fsencode(step) for step in path.split("/") if step not in ("", ".")]


def plain_dataset(file: h5py.File, path: str, name: str) -> h5d.DatasetID | None:
    """The dataset at `path` if its values lie in this very file; None if there is none there."""
    item = find(file, path, name)
    if not isinstance(item, h5d.DatasetID):
        return None
    layout = item.get_create_plist()
    if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count():
        return None
    return item


def value(file: h5py.File, path: str, name: str) -> Any:
    """The value of a small dataset (a number, a text, an array), or None if there is none at `path`.

    Raises:
        HostileFile: it claims to be larger than 256 MiB.
    """
    item = plain_dataset(file, path, name)
    if item is None:
        return None
    size = item.get_space().get_simple_extent_npoints() * max(1, item.get_type().get_size())
    if size > MAX_VALUE_BYTES:
        raise HostileFile(name, f"{path} claims {size} bytes")
    found = h5py.Dataset(item)[()]
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found


def unit(file: h5py.File, path: str, name: str) -> str:
    """The `units` attribute of a dataset, "" if it has none."""
    item = plain_dataset(file, path, name)
    text = h5py.Dataset(item).attrs.get("units", "") if item is not None else ""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
