"""`beamhub trigger`: trigger rules: which jobs start by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, connected, pair, values

if TYPE_CHECKING:
    from beamhub.client import Client
    from beamhub.schemas import TriggerTrial


@click.group()
def trigger() -> None:
    """Trigger rules: which jobs start by themselves."""


@trigger.command("list")
@click.argument("instrument")
@connected
def trigger_list(client: Client, instrument: str) -> Table:
    """An instrument's trigger rules."""
    columns: Columns = {
        "id": "id",
        "title": "title",
        "when": lambda t: f"{t.event} of {t.pattern}",
        "condition": "condition",
        "template": "template",
        "profile": "profile",
        "sponsor": "sponsor",
        "enabled": "enabled",
    }
    return Table(client.triggers(instrument), columns, "No trigger rules.")


@trigger.command("create")
@click.argument("instrument")
@click.argument("title")
@click.option(
    "--event",
    type=click.Choice(
        [
            "dataset.started",
            "dataset.frames",
            "dataset.complete",
            "dataset.incomplete",
            "job.finished",
            "external",
        ]
    ),
    required=True,
)
@click.option("--pattern", default="*", show_default=True, help="Glob on the dataset's name.")
@click.option("--kind", type=click.Choice(["rotation", "raster", "still"]), default=None)
@click.option("--min-frames", type=click.IntRange(1), default=1, show_default=True)
@click.option("--if", "expression", default="", help="A condition such as 'wavelength < 1.1'.")
@click.option("--every", type=click.IntRange(1), default=None, help="dataset.frames: so many frames.")
@click.option("--at", type=click.IntRange(1, 100), multiple=True, help="dataset.frames: per cent.")
@click.option("--of-template", default=None, help="job.finished: of a job of this template.")
@click.option("--name", default=None, help="external: what is told.")
@click.option("--template", "template_name", required=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter; may be repeated.")
@click.option(
    "--compute", multiple=True, metavar="NAME=EXPRESSION", help="A parameter that is computed each time."
)
@click.option("--profile", required=True)
@click.option("--sponsor", required=True, help="The licence that pays.")
@click.option("--dry-run", is_flag=True, help="Only show what it would have started on the last datasets.")
@connected
def trigger_create(
    client: Client,
    instrument: str,
    title: str,
    event: str,
    pattern: str,
    kind: str | None,
    min_frames: int,
    expression: str,
    every: int | None,
    at: tuple[int, ...],
    of_template: str | None,
    name: str | None,
    template_name: str,
    settings: tuple[str, ...],
    compute: tuple[str, ...],
    profile: str,
    sponsor: str,
    *,
    dry_run: bool,
) -> Any:
    """Add a trigger rule (staff of the instrument)."""
    from beamhub.schemas import DatasetKind, TriggerCondition, TriggerCreate, TriggerEvent

    computed = {key: {"expression": text} for key, text in map(pair, compute)}
    rule = TriggerCreate(
        title=title,
        event=TriggerEvent(event),
        pattern=pattern,
        condition=TriggerCondition(
            kind=DatasetKind(kind) if kind else None,
            min_frames=min_frames,
            expression=expression,
            every=every,
            at=list(at),
            template=of_template,
            name=name,
        ),
        template=template_name,
        parameters={**values(settings), **computed},
        profile=profile,
        sponsor=sponsor,
    )
    if dry_run:
        return _trials(client.try_out_trigger(instrument, rule))
    return client.create_trigger(instrument, rule)


@trigger.command("replay")
@click.argument("rule", type=int)
@click.argument("datasets", type=int, nargs=-1, required=True)
@connected
def trigger_replay(client: Client, rule: int, datasets: tuple[int, ...]) -> Table:
    """Follow RULE now on DATASETS, as far as it has not been followed there."""
    return _trials(client.replay_trigger(rule, datasets))


def _trials(trials: list[TriggerTrial]) -> Table:
    columns: Columns = {
        "dataset": "dataset",
        "name": "dataset_name",
        "when": "time",
        "starts": "starts",
        "job": "job",
        "parameters": "parameters",
        "why not": "reason",
    }
    return Table(trials, columns, "Nothing that the rule waits for has happened.")


@trigger.command("enable")
@click.argument("rule", type=int)
@connected
def trigger_enable(client: Client, rule: int) -> Any:
    """Let RULE start jobs."""
    from beamhub.schemas import TriggerChange

    return client.change_trigger(rule, TriggerChange(enabled=True))


@trigger.command("disable")
@click.argument("rule", type=int)
@connected
def trigger_disable(client: Client, rule: int) -> Any:
    """Stop RULE from starting jobs."""
    from beamhub.schemas import TriggerChange

    return client.change_trigger(rule, TriggerChange(enabled=False))


@trigger.command("delete")
@click.argument("rule", type=int)
@connected
def trigger_delete(client: Client, rule: int) -> str:
    """Remove RULE. Jobs that it started stay."""
    client.delete_trigger(rule)
    return f"Rule {rule} is removed."
