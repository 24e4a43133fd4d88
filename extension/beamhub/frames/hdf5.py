"""HDF5 files from outside, read without ever following what they point to.

An HDF5 file can reach other files in three ways: external links, virtual datasets and external raw storage.
Calls that look harmless open the target: with an open-ended virtual dataset, `dset.shape` does. So everything
here goes link by link, looks at what a link *is* before it opens anything, and asks a dataset's creation
properties where its bytes live before it asks for anything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from h5py import h5d, h5g, h5l, h5o

from beamhub.frames.outside import FileProblem, HostileFile, UnreadableFile, confined_name, open_confined

MAX_OBJECTS = 100_000  # links in one file; a DECTRIS master has about a hundred
MAX_HOPS = 16  # soft links after each other
MAX_VALUE_BYTES = 1 << 28  # of a dataset that is read whole: a pixel mask of a 16M detector has 72 MB


@dataclass(frozen=True)
class Elsewhere:
    """An external link: the file it points to (checked to stay in the folder) and the path inside."""

    file: str
    path: str


@contextmanager
def opened(path: Path, root: Path, *, swmr: bool = False) -> Iterator[h5py.File]:
    """The HDF5 file `path`, which must lie inside `root`, every link of it checked but none followed.

    Args:
        swmr: its writer, which lets others read beside it, may still be at it.

    Raises:
        HostileFile, UnreadableFile, FileNotFoundError
    """
    fd = open_confined(path, root)
    try:
        beside = {"swmr": True, "libver": "latest"} if swmr else {}
        with h5py.File(f"/dev/fd/{fd}", "r", locking=False, **beside) as file:
            for _ in neighbours(file, path.name):
                pass
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


def neighbours(file: h5py.File, name: str) -> Iterator[str]:
    """Every file, by its name relative to this one's folder, that a link or a virtual dataset points to.

    Raises:
        HostileFile: one leads out of the folder.
    """
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
                yield confined_name(name, os.fsdecode(group.links.get_val(key)[0]))
            elif kind == h5l.TYPE_HARD:
                item = h5o.open(group, key)
                address = h5o.get_info(item).addr
                if address in seen:
                    continue
                seen.add(address)
                if isinstance(item, h5g.GroupID):
                    todo.append(item)
                elif isinstance(item, h5d.DatasetID):
                    yield from _sources(item, name)
            elif kind != h5l.TYPE_SOFT:  # a soft link stays inside; `find` follows it step by step
                raise HostileFile(name, f"it holds a link of the unknown type {kind}")


def _sources(dataset: h5d.DatasetID, name: str) -> Iterator[str]:
    layout = dataset.get_create_plist()
    if layout.get_external_count():
        raise HostileFile(name, "a dataset keeps its values in another file (external raw storage)")
    if layout.get_layout() == h5d.VIRTUAL:
        for index in range(min(layout.get_virtual_count(), MAX_OBJECTS)):
            source = layout.get_virtual_filename(index)
            if source != ".":
                yield confined_name(name, source)


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
