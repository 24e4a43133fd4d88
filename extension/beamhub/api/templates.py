"""Routes of templates, of profiles, and of the trigger rules that use both."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import Field

from beamhub.api.routes import Call, Paging, page_of, route
from beamhub.schemas import (
    BigInt,
    Event,
    Page,
    Profile,
    Request,
    Template,
    Trigger,
    TriggerCall,
    TriggerChange,
    TriggerCreate,
    TriggerReplay,
    TriggerTrial,
    TriggerTryOut,
)


class TemplateQuery(Request):
    experiment: str | None = Field(None, description="also the templates that its members keep there")


class TemplatesQuery(TemplateQuery, Paging):
    pass


@route("GET", "templates")
async def list_templates(call: Call, query: TemplatesQuery) -> Page[Template]:
    """The templates that jobs can be made from, by name."""
    folder = await _folder(call, query.experiment)
    found = await asyncio.to_thread(call.service.catalogue.list, folder)
    return page_of(found, query, lambda template: template.name)


@route("GET", "templates/{name}")
async def get_template(call: Call, name: str, query: TemplateQuery) -> Template:
    """A template: its parameters as JSON Schema, its metrics, what it needs."""
    folder = await _folder(call, query.experiment)
    return (await asyncio.to_thread(call.service.catalogue.get, name, folder)).template


async def _folder(call: Call, experiment: str | None) -> Path | None:
    if experiment is None:
        return None
    return Path((await call.service.experiments.get(call.principal, experiment)).folder)


@route("GET", "profiles")
async def list_profiles(call: Call, query: Paging) -> Page[Profile]:
    """What a job may ask for: CPUs, memory in bytes, wall-clock time in seconds."""
    return page_of(call.service.profiles, query, lambda profile: f"{profile.cpus:06d} {profile.name}")


@route("GET", "instruments/{instrument}/triggers")
async def list_triggers(call: Call, instrument: str, query: Paging) -> Page[Trigger]:
    """An instrument's trigger rules."""
    return await call.service.rules.list(call.principal, instrument, **query.model_dump())


@route("POST", "instruments/{instrument}/triggers")
async def create_trigger(call: Call, instrument: str, body: TriggerCreate) -> Trigger:
    """Add a trigger rule to an instrument (staff)."""
    return await call.service.rules.create(call.principal, instrument, body)


@route("POST", "instruments/{instrument}/triggers/try-out", status=200)
async def try_out_trigger(call: Call, instrument: str, body: TriggerTryOut) -> Page[TriggerTrial]:
    """Which jobs this rule would have started on the last datasets, and why none on the others (staff).

    Nothing is started, and the rule is not kept."""
    return await call.service.rules.try_out(call.principal, instrument, body)


@route("POST", "instruments/{instrument}/triggers/call")
async def call_triggers(call: Call, instrument: str, body: TriggerCall) -> Event:
    """Tell the instrument's rules that something outside has happened to a dataset (staff)."""
    return await call.service.rules.call(call.principal, instrument, body)


@route("POST", "triggers/{trigger}/replay")
async def replay_trigger(call: Call, trigger: BigInt, body: TriggerReplay) -> Page[TriggerTrial]:
    """Follow a rule now on what has happened to these datasets before (staff).

    What the rule in this version has started already is not started again."""
    return await call.service.jobs.replay(call.principal, trigger, body.datasets)


@route("PATCH", "triggers/{trigger}")
async def change_trigger(call: Call, trigger: BigInt, body: TriggerChange) -> Trigger:
    """Change a trigger rule, which makes it a new version (staff)."""
    return await call.service.rules.change(call.principal, trigger, body)


@route("DELETE", "triggers/{trigger}")
async def delete_trigger(call: Call, trigger: BigInt) -> None:
    """Remove a trigger rule; jobs that it started stay (staff)."""
    await call.service.rules.delete(call.principal, trigger)
