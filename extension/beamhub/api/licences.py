"""Routes of licences and their ledger."""

from __future__ import annotations

from beamhub.api.routes import Call, Paging, route
from beamhub.schemas import (
    BigInt,
    Correction,
    Grant,
    Granted,
    Job,
    LabTerms,
    LedgerLine,
    Licence,
    LicenceCreate,
    Page,
)


@route("GET", "licences")
async def list_licences(call: Call, query: Paging) -> Page[Licence]:
    """The caller's own licences; for staff those of their instruments too, for operators all."""
    return await call.service.licences.list(call.principal, **query.model_dump())


@route("POST", "licences")
async def create_licence(call: Call, body: LicenceCreate) -> Licence:
    """Add a licence (operators)."""
    return await call.service.licences.create(call.principal, body)


@route("GET", "licences/{licence}")
async def get_licence(call: Call, licence: str) -> Licence:
    """A licence, and how much of it is granted, held, charged and left, in CPU-seconds."""
    return await call.service.licences.get(call.principal, licence)


@route("POST", "licences/{licence}/grants")
async def grant(call: Call, licence: str, body: Grant) -> Licence:
    """Add CPU-hours to a licence (operators)."""
    return await call.service.licences.grant(call.principal, licence, body)


@route("GET", "licences/{licence}/grants")
async def list_grants(call: Call, licence: str, query: Paging) -> Page[Granted]:
    """The parts of a licence's allowance and what is left of each, newest first."""
    return await call.service.licences.grants(call.principal, licence, **query.model_dump())


@route("PUT", "licences/{licence}/terms")
async def set_terms(call: Call, licence: str, body: LabTerms) -> Licence:
    """Say for what a lab's licence pays (staff of its instruments)."""
    return await call.service.licences.set_terms(call.principal, licence, body)


@route("POST", "jobs/{job}/corrections")
async def correct(call: Call, job: BigInt, body: Correction) -> Job:
    """Charge what an attempt of a job has used in truth (operators)."""
    return await call.service.licences.correct(call.principal, job, body)


@route("GET", "licences/{licence}/ledger")
async def list_ledger(call: Call, licence: str, query: Paging) -> Page[LedgerLine]:
    """Every line of a licence's account, newest first."""
    return await call.service.licences.ledger(call.principal, licence, **query.model_dump())
