"""The software that a job runs with, as far as its result may depend on it."""

from __future__ import annotations

import platform
import shutil
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "beamhub",
    "papermill",
    "ipykernel",
    "numpy",
    "numba",
    "h5py",
    "hdf5plugin",
    "matplotlib",
    "gemmi",
)


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Of Python, of the packages that all jobs have, and of these; what is not installed is left out."""
    changed = Path(sysconfig.get_path("purelib")).stat().st_mtime_ns  # by whatever is installed or upgraded
    return dict(_versions(changed, tuple(more)))


@lru_cache(maxsize=100)
def _versions(_changed: int, more: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def builds(programs: Iterable[str]) -> dict[str, str]:
    """What tells one build of a program from another without running it: where it lies, its size and time."""
    found = {}
    for name in programs:
        if (path := shutil.which(name)) is not None:
            real = Path(path).resolve()
            status = real.stat()
            found[name] = f"{real} {status.st_size} {status.st_mtime_ns}"
    return found
