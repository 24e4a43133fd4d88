"""What the hub starts, watches and stops: the beamhub service, the processes that take its uploads, and the
Cockpit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from beamhub_hub.site import Secrets, Site

# Nothing of a user's or a machine's Jupyter configuration may reach the services: they read ours and no other
ISOLATED = {"JUPYTER_NO_CONFIG": "1", "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"}
# Each has a folder for temporary files of its own, and finds it empty even if its predecessor was killed
FRESH = ["sh", "-c", 'rm -rf "${TMPDIR:?}" && mkdir -m 700 -p "$TMPDIR" && exec "$@"', "sh"]
COCKPIT_MEMORY = 12 << 30  # bytes of address space per process: numba and HDF5 reserve far more than they use


def services(site: Site, secrets: Secrets) -> list[dict[str, Any]]:
    """What goes into `c.JupyterHub.services`."""
    return [
        _service(site, secrets),
        *(_ingest(site, secrets, number) for number in range(1, site.ingest + 1)),
        _cockpit(site, secrets),
        {"name": "operator", "api_token": secrets.operator},
    ]


def routes(site: Site) -> dict[str, str]:
    """What goes into `c.Proxy.extra_routes`: uploads pass the service by."""
    return {"/services/beamhub/api/v1/uploads/": site.ingest_url} if site.ingest else {}


def _service(site: Site, secrets: Secrets) -> dict[str, Any]:
    return {
        "name": "beamhub",
        "url": site.service_url,
        "command": _server("service"),
        "api_token": secrets.service,
        "timeout": 120,
        "oauth_no_confirm": True,
        "display": False,
        **_home(site, "service", _settings(site)),
    }


def _ingest(site: Site, secrets: Secrets, number: int) -> dict[str, Any]:
    environment = {
        **_settings(site),
        "BEAMHUB_INGEST": f"{site.ingest_host}:{site.ingest_port}",
        "BEAMHUB_SERVICE_TOKEN": secrets.service,
        "MALLOC_ARENA_MAX": "2",  # what many threads receive would else take up a pool for each of them
    }
    name = f"beamhub-ingest-{number}"
    return {
        "name": name,
        "command": _server("ingest", _beside_the_first_cpu()),
        "display": False,
        **_home(site, name.removeprefix("beamhub-"), environment),
    }


def _settings(site: Site) -> dict[str, str]:
    """The variables that all processes of the service find what they need in."""
    return {
        "BEAMHUB_DATA_DIR": str(site.data.resolve()),
        "BEAMHUB_STATE_DIR": str(site.state.resolve() / "service"),
        "BEAMHUB_DATABASE_URL": site.database,
        "BEAMHUB_SETTINGS": json.dumps(site.settings),
        # reads metrics and does nothing else
        **{name: os.environ[name] for name in ("BEAMHUB_METRICS_TOKEN",) if name in os.environ},
    }


def _server(config: str, through: Sequence[str] = ()) -> list[str]:
    path = files("beamhub_hub") / "config" / f"{config}.py"
    return [*FRESH, *through, sys.executable, "-m", "jupyter_server", f"--config={path}"]


def _beside_the_first_cpu() -> list[str]:
    """What begins the command of a process that leaves one of the CPUs to all others: who receives as fast
    as it can keeps them waiting for their turn, three times as long as they take, on a machine of two."""
    first, *others = sorted(os.sched_getaffinity(0))
    return ["taskset", "--cpu-list", ",".join(map(str, others or [first]))]


def _cockpit(site: Site, secrets: Secrets) -> dict[str, Any]:
    return {
        "name": "cockpit",
        "url": f"http://127.0.0.1:{site.cockpit_port}",
        # Voila parses binary websocket messages of clients that didn't ask for the binary protocol as if
        # they had, and then allocates what their first bytes say: without a limit one message takes the
        # machine's memory
        "command": [*FRESH, "prlimit", f"--as={COCKPIT_MEMORY}", sys.executable, "-m", "beamhub_cockpit"],
        "api_token": secrets.cockpit,
        "timeout": 120,
        "oauth_no_confirm": True,
        # the token that a browser gets for the Cockpit is good for the service too: the dashboards act
        # there as the viewer, and see what the viewer may see
        "oauth_client_allowed_scopes": ["access:services!service=beamhub", "read:users:name!user"],
        "display": False,
        **_home(site, "cockpit", {"BEAMHUB_URL": site.service_url}),
    }


def _home(site: Site, name: str, environment: dict[str, str]) -> dict[str, Any]:
    """A working folder, home and folder for temporary files of its own for a service."""
    home = site.state.resolve() / "services" / name
    home.mkdir(parents=True, exist_ok=True)
    kept = {key: os.environ[key] for key in ("BEAMHUB_DEMO", "NUMBA_CACHE_DIR") if key in os.environ}
    return {
        "cwd": str(home),
        "environment": {
            **ISOLATED,
            **kept,
            "HOME": str(home),
            "TMPDIR": str(site.state.resolve() / "tmp" / name),
            "JUPYTER_CONFIG_DIR": str(home),
            **environment,
        },
    }
