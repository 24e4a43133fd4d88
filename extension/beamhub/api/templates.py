"""Routes of templates and profiles, and of where jobs run."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import Field

from beamhub.api.routes import Call, Paging, page_of, route
from beamhub.schemas import Page, Profile, Request, RunnerState, Template


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


@route("GET", "experiments/{experiment}/notebooks")
async def list_notebooks(call: Call, experiment: str, query: Paging) -> Page[Template]:
    """The members' own notebooks below shared/ that can be run as jobs: those with a parameters cell."""
    folder = Path((await call.service.experiments.get(call.principal, experiment)).folder)
    found = await asyncio.to_thread(call.service.catalogue.notebooks, folder)
    return page_of(found, query, lambda template: template.notebook or "")


async def _folder(call: Call, experiment: str | None) -> Path | None:
    if experiment is None:
        return None
    return Path((await call.service.experiments.get(call.principal, experiment)).folder)


@route("GET", "runners")
async def list_runners(call: Call, query: Paging) -> Page[RunnerState]:
    """Where jobs run: how many CPUs there are, how many of them are free, and which nodes are switched
    off."""
    return page_of(await call.service.engine.runners(), query, lambda runner: runner.name)


@route("GET", "profiles")
async def list_profiles(call: Call, query: Paging) -> Page[Profile]:
    """What a job may ask for: CPUs, memory in bytes, wall-clock time in seconds."""
    return page_of(call.service.profiles, query, lambda profile: f"{profile.cpus:06d} {profile.name}")
