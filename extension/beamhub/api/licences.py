"""Routes of licences and their ledger."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from pydantic import Field

from beamhub import usage_plot
from beamhub.api.routes import Call, Content, Paging, route
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
    UsageKey,
    UsageRow,
)


class UsageQuery(Paging):
    by: str = Field(
        "month",
        pattern=r"^(experiment|member|template|licence|month)(,(experiment|member|template|licence|month)){0,4}$",
        description="what is told apart, such as `month,licence`",
    )
    begin: date | None = Field(None, alias="from", description="the first day, UTC")
    end: date | None = Field(None, alias="to", description="the last day, UTC")
    format: Literal["json", "csv", "svg"] = "json"


@route("GET", "usage", media=("text/csv", "image/svg+xml"))
async def report_usage(call: Call, query: UsageQuery) -> Page[UsageRow] | Content:
    """What was charged, in the experiments that the caller may see. As CSV it is the whole report; as SVG it
    is drawn: the newest months, or what has used most."""
    by = list(dict.fromkeys(UsageKey(key) for key in query.by.split(",")))
    begin = _midnight(query.begin) if query.begin else None
    end = _midnight(query.end) + timedelta(days=1) if query.end else None
    licences = call.service.licences
    if query.format == "csv":
        text = await licences.report(call.principal, by, begin, end, _csv)
        headers = {"Content-Disposition": 'attachment; filename="beamhub-usage.csv"'}
        return Content(text.encode(), "text/csv; charset=utf-8", headers)
    if query.format == "svg":
        text = await licences.report(call.principal, by, begin, end, usage_plot.draw)
        headers = {"Content-Security-Policy": "default-src 'none'; sandbox"}
        return Content(text.encode(), "image/svg+xml", headers)
    return await licences.usage(call.principal, by, begin, end, after=query.after, limit=query.limit)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _csv(by: Sequence[UsageKey], rows: Iterable[UsageRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*by, "jobs", "cpu_seconds", "cpu_hours"])
    for row in rows:
        keys = [getattr(row, key) for key in by]
        writer.writerow([*keys, row.jobs, row.cpu_seconds, f"{row.cpu_seconds / 3600:.4f}"])
    return text.getvalue()


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
    """Add CPU-hours to a licence (operators; to a lab's, its staff too)."""
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
