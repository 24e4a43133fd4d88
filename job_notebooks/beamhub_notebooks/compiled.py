"""Loops compiled to machine code.

    @kernel
    def total(frame): ...

A kernel is compiled at its first call for each combination of argument types, kept in numba's cache
(`NUMBA_CACHE_DIR`, filled beforehand by `python -m beamhub_notebooks.warm`), and runs without the
interpreter's lock, so that threads work on several frames at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile `function`; to its callers and to type checkers it stays what it was."""
    return cast("Function", numba.njit(cache=True, nogil=True)(function))
