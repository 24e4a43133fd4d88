"""The REST API: HTTP in, HTTP out; no SQL, no rules.

Each module declares the routes of some nouns (see `beamhub.api.routes`); `handlers` makes Tornado's of them.
"""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

from jupyter_server.utils import url_path_join

from beamhub.api import (
    agents,
    batches,
    datasets,
    events,
    experiments,
    health,
    instruments,
    jobs,
    licences,
    signin,
    templates,
    triggers,
    uploads,
)
from beamhub.api.handler import Handler
from beamhub.api.openapi import document
from beamhub.api.routes import ROUTES, Call, Content, Route, route
from beamhub.api.service import Service

__all__ = ["ROUTES", "Service", "handlers"]

PREFIX = "api/v1/"
# importing these modules has declared their routes
_NOUNS = (
    instruments,
    agents,
    experiments,
    uploads,
    batches,
    datasets,
    templates,
    triggers,
    jobs,
    licences,
    events,
    health,
    signin,
)


@route("GET", "openapi.json", media=("application/json",), public=True)
async def get_openapi(call: Call) -> Content:
    """This description of the API."""
    server = call.path.removesuffix("/openapi.json")
    return Content(await asyncio.to_thread(_document, server), "application/json")


@functools.lru_cache(maxsize=1)
def _document(server: str) -> bytes:
    return json.dumps(document(ROUTES, server)).encode()


def handlers(service: Service) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    """Tornado's handlers of all routes, relative to the server's base URL; the last one refuses the rest."""
    by_pattern: dict[str, dict[str, Route]] = {}
    for one in ROUTES:
        by_pattern.setdefault(one.pattern, {})[one.method] = one
    made = [
        (url_path_join("/", PREFIX, pattern), Handler, {"service": service, "routes": routes})
        for pattern, routes in by_pattern.items()
    ]
    return [*made, (url_path_join("/", PREFIX) + ".*", Handler, {"service": service, "routes": {}})]
