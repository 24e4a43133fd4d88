"""`beamhub licence`: licences: allowances of CPU-hours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, connected, hours

if TYPE_CHECKING:
    from beamhub.client import Client


@click.group()
def licence() -> None:
    """Licences: allowances of CPU-hours."""


_LICENCE_COLUMNS: Columns = {
    "id": "id",
    "title": "title",
    "kind": "kind",
    "for": lambda x: x.owner or x.instruments,
    "available, CPU-h": lambda x: f"{hours(x.available)}{' (low)' if x.low else ''}",
    "held": lambda x: hours(x.held),
    "charged": lambda x: hours(x.charged),
    "granted": lambda x: hours(x.granted),
    "valid until": "valid_until",
}


@licence.command("list")
@connected
def licence_list(client: Client) -> Table:
    """The licences that you may see."""
    return Table(client.licences(), _LICENCE_COLUMNS, "No licence that you may see.")


@licence.command("sponsors")
@click.argument("experiment")
@click.option("--template", default=None, help="For jobs of this template.")
@connected
def licence_sponsors(client: Client, experiment: str, template: str | None) -> Table:
    """The licences that may pay for your jobs in EXPERIMENT, and why some do not just now."""
    columns = {
        "id": "id",
        "title": "title",
        "available, CPU-h": _LICENCE_COLUMNS["available, CPU-h"],
        "does not pay": "refusal",
    }
    return Table(client.sponsors(experiment, template), columns, "No licence may pay for your jobs here.")


@licence.command("show")
@click.argument("licence")
@connected
def licence_show(client: Client, licence: str) -> Any:
    """One licence."""
    return client.licence(licence)


@licence.command("create")
@click.argument("id")
@click.argument("title")
@click.option("--owner", default=None, help="Makes it this user's own licence.")
@click.option("--instrument", "instruments", multiple=True, help="Makes it a lab licence; may be repeated.")
@click.option("--cpu-hours", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--valid-until", type=click.DateTime(), default=None, help="UTC")
@connected
def licence_create(
    client: Client,
    id: str,  # noqa: A002
    title: str,
    owner: str | None,
    instruments: tuple[str, ...],
    cpu_hours: float,
    valid_until: Any,
) -> Any:
    """Add a licence (operators of the facility)."""
    from beamhub.schemas import LicenceCreate

    body = LicenceCreate(
        id=id,
        title=title,
        kind="user" if owner else "lab",
        owner=owner,
        instruments=list(instruments),
        cpu_hours=cpu_hours,
        valid_until=_utc(valid_until),
    )
    return client.create_licence(body)


@licence.command("grant")
@click.argument("licence")
@click.argument("cpu_hours", type=click.FloatRange(0, min_open=True))
@click.option("--valid-from", type=click.DateTime(), default=None, help="UTC; now if left out")
@click.option("--valid-until", type=click.DateTime(), default=None, help="UTC; what is left then is lost")
@click.option("--note", default="")
@connected
def licence_grant(
    client: Client, licence: str, cpu_hours: float, valid_from: Any, valid_until: Any, note: str
) -> Any:
    """Add CPU_HOURS to a licence (operators; to a lab's, the staff too)."""
    return client.grant(licence, cpu_hours, note, valid_from=_utc(valid_from), valid_until=_utc(valid_until))


@licence.command("grants")
@click.argument("licence")
@connected
def licence_grants(client: Client, licence: str) -> Table:
    """What has been granted to LICENCE, part by part, and what is left of each."""
    columns: Columns = {
        "id": "id",
        "granted, CPU-h": lambda x: hours(x.cpu_seconds),
        "left": lambda x: hours(x.left),
        "valid from": "valid_from",
        "valid until": "valid_until",
        "by": "actor",
        "note": "note",
    }
    return Table(client.grants(licence), columns, "Nothing has been granted.")


@licence.command("terms")
@click.argument("licence")
@connected
def licence_terms(client: Client, licence: str) -> Table:
    """For what a lab's LICENCE pays: for what fits one of the lines."""
    return _terms(client.licence(licence))


@licence.command("allow")
@click.argument("licence")
@click.option("--instrument", "instruments", multiple=True)
@click.option("--experiment", "experiments", multiple=True)
@click.option("--template", "templates", multiple=True)
@click.option("--role", "roles", multiple=True, type=click.Choice(["pi", "collaborator", "viewer", "staff"]))
@click.option(
    "--state", "states", multiple=True, type=click.Choice(["planned", "running", "processing", "closed"])
)
@click.option("--valid-from", type=click.DateTime(), default=None, help="UTC")
@click.option("--valid-until", type=click.DateTime(), default=None, help="UTC")
@click.option("--only", is_flag=True, help="Instead of the rules that there are, rather than as well.")
@connected
def licence_allow(
    client: Client,
    /,
    licence: str,
    only: bool,
    valid_from: Any,
    valid_until: Any,
    **given: tuple[str, ...],
) -> Table:
    """Let a lab's LICENCE pay for what fits all that is given (staff); each may be repeated.

    With --only and nothing else, it pays for everything on its instruments again.
    """
    from beamhub.schemas import SponsorshipRule

    chosen = {name: list(values) for name, values in given.items() if values}
    rule = SponsorshipRule.model_validate(
        {**chosen, "valid_from": _utc(valid_from), "valid_until": _utc(valid_until)}
    )
    before = [] if only else client.licence(licence).terms
    new = [] if rule == SponsorshipRule() else [rule]
    return _terms(client.set_terms(licence, [*before, *new]))


@licence.command("correct")
@click.argument("job", type=int)
@click.argument("attempt", type=int)
@click.argument("cpu_seconds", type=click.IntRange(0))
@click.option("--note", default="")
@connected
def licence_correct(client: Client, job: int, attempt: int, cpu_seconds: int, note: str) -> Any:
    """Charge what an ATTEMPT of a JOB has used in truth (operators of the facility)."""
    return client.correct(job, attempt, cpu_seconds, note)


def _utc(moment: Any) -> Any:
    from datetime import UTC

    return moment.replace(tzinfo=UTC) if moment else None


def _terms(licence: Any) -> Table:
    from beamhub.terms import describe

    columns: Columns = {"pays": describe}
    return Table(licence.terms, columns, f"For everything on {', '.join(licence.instruments)}.")


@licence.command("usage")
@click.option(
    "--by",
    multiple=True,
    default=("month",),
    type=click.Choice(["experiment", "member", "template", "licence", "month"]),
    help="What is told apart; may be repeated.",
)
@click.option("--from", "begin", type=click.DateTime(["%Y-%m-%d"]), default=None, help="The first day.")
@click.option("--to", "end", type=click.DateTime(["%Y-%m-%d"]), default=None, help="The last day.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV for spreadsheets.")
@click.option("--svg", "form", flag_value="svg", help="Print a plot as SVG: bars of CPU-hours.")
@connected
def licence_usage(client: Client, by: tuple[str, ...], begin: Any, end: Any, form: str | None) -> Any:
    """What was charged in the experiments that you may see."""
    from beamhub.schemas import UsageKey

    keys = [UsageKey(key) for key in by]
    days = {"begin": begin.date() if begin else None, "end": end.date() if end else None}
    if form is not None:
        write = client.usage_csv if form == "csv" else client.usage_svg
        return write(*keys, **days).rstrip()
    columns: Columns = {
        **{key.value: key.value for key in keys},
        "jobs": "jobs",
        "CPU-h": lambda row: hours(row.cpu_seconds),
    }
    return Table(client.usage(*keys, **days), columns, "Nothing has been charged.")


@licence.command("ledger")
@click.argument("licence")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@connected
def licence_ledger(client: Client, licence: str, limit: int) -> Table:
    """What was granted, held, charged, released, corrected and what expired, newest first."""
    columns: Columns = {
        "time": "time",
        "kind": "kind",
        "CPU-h": lambda line: f"{line.cpu_seconds / 3600:.4f}",
        "job": "job",
        "attempt": "attempt",
        "by": "actor",
        "note": "note",
    }
    return Table(client.ledger(licence, limit=limit), columns, "Nothing yet.")
