"""The route that tells whoever watches over the service how it is."""

from __future__ import annotations

from importlib.metadata import version

from beamhub.api.routes import Call, route
from beamhub.schemas import Health


@route("GET", "health", public=True)
async def health(call: Call) -> Health:
    """Whether the service answers, whether this process runs the jobs, and as quickly as it can by now."""
    return Health(
        version=version("beamhub"),
        warm=call.service.engine.warm.is_set(),
        on_duty=call.service.duty.on,
    )
