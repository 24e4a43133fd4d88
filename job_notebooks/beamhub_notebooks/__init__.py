"""Notebooks that jobs run, and the science they call.

What is computed once and kept, compiled kernels and matplotlib's list of fonts, lies in one folder,
`NUMBA_CACHE_DIR`, where that is set.
"""

from __future__ import annotations

import os
from pathlib import Path

if cache := os.environ.get("NUMBA_CACHE_DIR"):
    os.environ.setdefault("MPLCONFIGDIR", str(Path(cache, "matplotlib")))
