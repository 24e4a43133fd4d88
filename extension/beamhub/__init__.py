"""beamhub: collaborative analysis for experiments at instruments, native to Jupyter."""

from __future__ import annotations

__version__ = "0.1.0"
