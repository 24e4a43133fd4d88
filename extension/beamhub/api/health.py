"""The routes that tell whoever watches over the service how it is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from importlib.metadata import version

from beamhub import access, metrics
from beamhub.api.routes import Call, Content, route
from beamhub.schemas import Health


@route("GET", "health", public=True)
async def health(call: Call) -> Health:
    """Whether the service answers, whether this process runs the jobs, and as quickly as it can by now."""
    return Health(
        version=version("beamhub"),
        warm=call.service.engine.warm.is_set(),
        on_duty=call.service.duty.on,
    )


@route("GET", "metrics", media=("text/plain",))
async def get_metrics(call: Call) -> Content:
    """The service in numbers, for Prometheus (operators, and whoever has the metrics token)."""
    access.require_metrics(call.principal)
    numbers = await call.service.store.read(lambda tx: tx.counts.numbers())
    runners = await call.service.engine.runners()
    now, on_duty = datetime.now(UTC), call.service.duty.on
    text = await asyncio.to_thread(metrics.render, numbers, runners, on_duty=on_duty, now=now)
    return Content(text, "text/plain; version=0.0.4; charset=utf-8")
