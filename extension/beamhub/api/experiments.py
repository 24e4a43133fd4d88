"""Routes of experiments, their members and files."""

from __future__ import annotations

from pathlib import PurePosixPath

from pydantic import Field

from beamhub.api.routes import Call, Download, Paging, page_of, route
from beamhub.schemas import (
    Experiment,
    ExperimentChange,
    ExperimentCreate,
    ExperimentState,
    File,
    Finalisation,
    FinaliseRequest,
    Member,
    MemberCreate,
    Page,
    Sponsor,
    TemplateName,
)


class ExperimentQuery(Paging):
    instrument: str | None = None
    state: ExperimentState | None = None


class FileQuery(Paging):
    prefix: str = Field("", description="only files below this folder")


class SponsorQuery(Paging):
    template: TemplateName | None = None


@route("GET", "experiments")
async def list_experiments(call: Call, query: ExperimentQuery) -> Page[Experiment]:
    """The experiments that the caller may see, newest first."""
    return await call.service.experiments.list(call.principal, **query.model_dump())


@route("POST", "experiments")
async def create_experiment(call: Call, body: ExperimentCreate) -> Experiment:
    """Add an experiment to an instrument (its staff)."""
    return await call.service.experiments.create(call.principal, body)


@route("GET", "experiments/{experiment}")
async def get_experiment(call: Call, experiment: str) -> Experiment:
    """An experiment, the caller's role in it, and what the caller may do there."""
    return await call.service.experiments.get(call.principal, experiment)


@route("PATCH", "experiments/{experiment}")
async def change_experiment(call: Call, experiment: str, body: ExperimentChange) -> Experiment:
    """Change an experiment's title, or move it to another state."""
    return await call.service.experiments.change(call.principal, experiment, body)


@route("GET", "experiments/{experiment}/members")
async def list_members(call: Call, experiment: str, query: Paging) -> Page[Member]:
    """Who belongs to an experiment."""
    return await call.service.experiments.members(call.principal, experiment, **query.model_dump())


@route("POST", "experiments/{experiment}/members")
async def add_member(call: Call, experiment: str, body: MemberCreate) -> Member:
    """Add somebody to an experiment, or give a member another role."""
    return await call.service.experiments.add_member(call.principal, experiment, body)


@route("DELETE", "experiments/{experiment}/members/{user}")
async def remove_member(call: Call, experiment: str, user: str) -> None:
    """Take somebody out of an experiment; everybody may leave."""
    await call.service.experiments.remove_member(call.principal, experiment, user)


@route("GET", "experiments/{experiment}/files")
async def list_files(call: Call, experiment: str, query: FileQuery) -> Page[File]:
    """An experiment's files, by path."""
    return await call.service.experiments.files(call.principal, experiment, **query.model_dump())


@route("GET", "experiments/{experiment}/files/{path:path}", media=("application/octet-stream",))
async def get_file(call: Call, experiment: str, path: str) -> Download:
    """A file of an experiment, or with a Range header a part of it."""
    file = await call.service.experiments.open_file(call.principal, experiment, path)
    return Download(file, PurePosixPath(path).name)


@route("GET", "experiments/{experiment}/sponsors")
async def list_sponsors(call: Call, experiment: str, query: SponsorQuery) -> Page[Sponsor]:
    """The licences that may pay for jobs which the caller starts in this experiment, and which of them do
    not just now, and why."""
    found = await call.service.licences.sponsors(call.principal, experiment, query.template)
    return page_of(found, query, lambda licence: licence.id)


@route("POST", "experiments/{experiment}/finalise")
async def finalise_experiment(call: Call, experiment: str, body: FinaliseRequest) -> Finalisation:
    """Check that all raw data have arrived, and sign off a manifest, `sha256sums` (staff).

    This goes on in the background: see `finalisation`. Differences block it unless it is forced.
    """
    return await call.service.finalisations.begin(call.principal, experiment, body)


@route("GET", "experiments/{experiment}/finalisation")
async def get_finalisation(call: Call, experiment: str) -> Finalisation:
    """Whether an experiment has been signed off, and what speaks against it."""
    return await call.service.finalisations.get(call.principal, experiment)
