"""Routes of the caller and of instruments."""

from __future__ import annotations

from beamhub.api.routes import Call, Paging, route
from beamhub.schemas import (
    Instrument,
    InstrumentChange,
    InstrumentCreate,
    InstrumentToken,
    Me,
    Page,
)


@route("GET", "me")
async def me(call: Call) -> Me:
    """Who the caller is."""
    return await call.service.experiments.me(call.principal)


@route("GET", "instruments")
async def list_instruments(call: Call, query: Paging) -> Page[Instrument]:
    """The instruments that the caller operates or has experiments on."""
    return await call.service.experiments.instruments(call.principal, **query.model_dump())


@route("POST", "instruments")
async def create_instrument(call: Call, body: InstrumentCreate) -> Instrument:
    """Add an instrument (operators)."""
    return await call.service.experiments.create_instrument(call.principal, body)


@route("GET", "instruments/{instrument}")
async def get_instrument(call: Call, instrument: str) -> Instrument:
    """An instrument, its active experiment and its agent."""
    return await call.service.experiments.instrument(call.principal, instrument)


@route("PATCH", "instruments/{instrument}")
async def change_instrument(call: Call, instrument: str, body: InstrumentChange) -> Instrument:
    """Change an instrument: its title, staff, active experiment, whether its trigger rules work (staff)."""
    return await call.service.experiments.change_instrument(call.principal, instrument, body)


@route("POST", "instruments/{instrument}/token", secret=True)
async def rotate_token(call: Call, instrument: str) -> InstrumentToken:
    """Make a new token for the instrument's agent; it is shown once, and older ones stop working (staff)."""
    return await call.service.experiments.rotate_token(call.principal, instrument)
