"""The route that tells whoever watches over the service how it is."""

from __future__ import annotations

from importlib.metadata import version

from beamhub.api.routes import Call, route
from beamhub.schemas import Health


@route("GET", "health", public=True)
async def health(call: Call) -> Health:
    """Whether the service answers, and whether jobs start as quickly as they can by now."""
    return Health(version=version("beamhub"), warm=call.service.engine.warm.is_set())
