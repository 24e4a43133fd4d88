"""beamhub: collaborative analysis for experiments at instruments, native to Jupyter."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    # imported only by a Jupyter Server: the package itself stays light
    from beamhub.app import BeamhubApp

    return [{"module": "beamhub.app", "app": BeamhubApp}]
