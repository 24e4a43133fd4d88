"""How JupyterLab sessions start: one per experiment, seeing that experiment and nothing else."""

from __future__ import annotations

from beamhub_spawners.local import LocalSandboxSpawner

__all__ = ["LocalSandboxSpawner"]
