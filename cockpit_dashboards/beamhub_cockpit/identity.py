"""Who looks at this page: told by the cockpit's server to the kernel that draws the page.

A warm kernel has imported everything and waits in `viewer()` until somebody opens its page; a cold one
finds the same facts in its environment. The token is the viewer's own OAuth token, so that all this
kernel asks of the service is asked, and allowed or refused, as the viewer.
"""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

USER_HEADER: Final = "X-Beamhub-User"
TOKEN_HEADER: Final = "X-Beamhub-Token"  # noqa: S105 (the name of a header)
SECRET: Final = "BEAMHUB_COCKPIT_SECRET"  # noqa: S105 (the name of a variable)


@dataclass(frozen=True)
class Viewer:
    """Who looks, with what token, at which address."""

    name: str
    token: str = field(repr=False)
    query: dict[str, str]
    hub_url: str  # where the service is reached from here
    base_url: str  # of the hub in the browser: "/" or "/prefix/"


def viewer(environment: MutableMapping[str, str] = os.environ) -> Viewer:
    """Wait until somebody opens this kernel's page; then say who. To be called once, as late as possible.

    The token is taken out of the environment, so that nothing that this kernel starts inherits it.
    """
    request: MutableMapping[str, str] = environment
    if environment.get("VOILA_PREHEAT") == "True":
        request = _wait(environment)
    variable = "HTTP_" + TOKEN_HEADER.upper().replace("-", "_")
    return Viewer(
        name=request.get("HTTP_" + USER_HEADER.upper().replace("-", "_"), ""),
        token=request.pop(variable, ""),
        query=dict(parse_qsl(request.get("QUERY_STRING", ""), max_num_fields=20)),
        hub_url=environment.get("BEAMHUB_URL", "http://127.0.0.1:8000"),
        base_url=environment.get("JUPYTERHUB_BASE_URL", "/"),
    )


def _wait(environment: MutableMapping[str, str]) -> dict[str, str]:
    address = (
        f"ws://127.0.0.1:{environment['VOILA_APP_PORT']}{environment['VOILA_SERVER_URL']}"
        f"voila/query/{environment['VOILA_KERNEL_ID']}"
    )
    try:
        with connect(address, additional_headers={SECRET: environment[SECRET]}, proxy=None) as socket:
            told: dict[str, str] = json.loads(socket.recv())
            return told
    except (ConnectionClosed, OSError):
        # the server that was to use this kernel is gone, and nobody else ever will
        os._exit(0)
