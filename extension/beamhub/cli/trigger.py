"""`beamhub trigger`: trigger rules: which jobs start by themselves."""

from __future__ import annotations

from collections.abc import Sequence
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
@click.argument("instrument", required=False)
@click.option("--experiment", default=None, help="The rules as they apply in this experiment.")
@connected
def trigger_list(client: Client, instrument: str | None, experiment: str | None) -> Table:
    """An instrument's trigger rules, or those that apply in an experiment."""
    if (instrument is None) == (experiment is None):
        raise click.UsageError("Give an instrument, or --experiment.")
    columns: Columns = {
        "id": "id",
        "title": "title",
        "when": lambda t: f"{t.event} of {t.pattern}",
        "condition": lambda t: t.condition.model_dump(mode="json", exclude_defaults=True),
        "template": "template",
        "profile": "profile",
        "sponsor": "sponsor",
        "priority": "priority",
        "enabled": "enabled",
        "version": "version",
    }
    if experiment is None:
        return Table(client.triggers(instrument or ""), columns, "No trigger rules.")
    columns["different here"] = lambda t: "its own" if t.experiment else t.changed
    return Table(client.experiment_triggers(experiment), columns, "No trigger rules.")


@trigger.command("create")
@click.argument("instrument", metavar="INSTRUMENT|EXPERIMENT")
@click.argument("title")
@click.option("--for-experiment", is_flag=True, help="The first argument is an experiment: for it alone.")
@click.option(
    "--event",
    type=click.Choice(
        [
            "dataset.started",
            "dataset.frames",
            "dataset.complete",
            "dataset.incomplete",
            "file.complete",
            "job.finished",
            "experiment.activated",
            "external",
        ]
    ),
    required=True,
)
@click.option("--pattern", default="*", show_default=True, help="Glob on the name; with a /, on the path.")
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
@click.option("--priority", type=click.IntRange(-100, 100), default=0, show_default=True)
@click.option("--wait", type=click.IntRange(1), default=None, help="Gather until nothing came for so long.")
@click.option("--by", default="", help="Gather what has the same: an expression such as sample_name.")
@click.option("--at-least", type=click.IntRange(1), default=1, show_default=True, help="Gathered, or no job.")
@click.option("--at-most", type=click.IntRange(1), default=200, show_default=True, help="Gathered.")
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
    priority: int,
    wait: int | None,
    by: str,
    at_least: int,
    at_most: int,
    *,
    for_experiment: bool,
    dry_run: bool,
) -> Any:
    """Add a trigger rule to an instrument (its staff), or to one experiment alone (also its PI)."""
    from beamhub.schemas import DatasetKind, TriggerCondition, TriggerCreate, TriggerEvent, TriggerGroup

    if by and wait is None:
        raise click.UsageError("--by needs --wait: how many seconds nothing more has to come.")
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
        parameters=_parameters(settings, compute),
        profile=profile,
        sponsor=sponsor,
        priority=priority,
        group=TriggerGroup(by=by, wait=wait, at_least=at_least, at_most=at_most) if wait else None,
    )
    if dry_run:
        try_out = client.try_out_experiment_trigger if for_experiment else client.try_out_trigger
        return _trials(try_out(instrument, rule))
    create = client.create_experiment_trigger if for_experiment else client.create_trigger
    return create(instrument, rule)


@trigger.command("change")
@click.argument("rule", type=int)
@click.option("--experiment", default=None, help="Only there: a PI may change parameters and sponsor.")
@click.option("--title", default=None)
@click.option("--pattern", default=None)
@click.option("--template", default=None)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="All its parameters anew.")
@click.option("--compute", multiple=True, metavar="NAME=EXPRESSION", help="As --set, computed each time.")
@click.option("--profile", default=None)
@click.option("--sponsor", default=None)
@click.option("--priority", type=click.IntRange(-100, 100), default=None)
@connected
def trigger_change(
    client: Client,
    /,
    rule: int,
    experiment: str | None,
    settings: tuple[str, ...],
    compute: tuple[str, ...],
    **given: Any,
) -> Any:
    """Change RULE, which makes it a new version."""
    changes = {name: value for name, value in given.items() if value is not None}
    if settings or compute:
        changes["parameters"] = _parameters(settings, compute)
    return _change(client, rule, experiment, **changes)


def _change(client: Client, rule: int, experiment: str | None, **changes: Any) -> Any:
    """Of a rule itself, or only of what it is in one experiment."""
    from beamhub.schemas import TriggerChange, TriggerOverride

    if experiment is None:
        return client.change_trigger(rule, TriggerChange.model_validate(changes))
    return client.override_trigger(experiment, rule, TriggerOverride.model_validate(changes))


def _parameters(settings: Sequence[str], compute: Sequence[str]) -> dict[str, Any]:
    """Values as they are, and expressions that are computed each time."""
    return {**values(settings), **{name: {"expression": text} for name, text in map(pair, compute)}}


@trigger.command("reset")
@click.argument("rule", type=int)
@click.argument("experiment")
@connected
def trigger_reset(client: Client, rule: int, experiment: str) -> Any:
    """Have RULE in EXPERIMENT again as it is on the instrument."""
    from beamhub.schemas import TriggerOverride

    nothing = TriggerOverride.model_validate(dict.fromkeys(TriggerOverride.model_fields))
    return client.override_trigger(experiment, rule, nothing)


@trigger.command("versions")
@click.argument("rule", type=int)
@connected
def trigger_versions(client: Client, rule: int) -> Table:
    """All that RULE was, newest first."""
    columns: Columns = {
        "version": "version",
        "when": "time",
        "who": "author",
        "what": "change",
        "only in": "experiment",
        "then": "data",
    }
    return Table(client.trigger_versions(rule), columns, "No versions.")


@trigger.command("replay")
@click.argument("rule", type=int)
@click.argument("datasets", type=int, nargs=-1)
@click.option(
    "--file", "files", multiple=True, metavar="PATH", help="A file, for a rule that waits for files."
)
@click.option("--activated", "experiments", multiple=True, metavar="EXPERIMENT")
@connected
def trigger_replay(
    client: Client, rule: int, datasets: tuple[int, ...], files: tuple[str, ...], experiments: tuple[str, ...]
) -> Table:
    """Follow RULE now on DATASETS, files or experiments, as far as it has not been followed there."""
    return _trials(client.replay_trigger(rule, datasets, files=files, experiments=experiments))


@trigger.command("missed")
@click.argument("instrument")
@click.option("--start", is_flag=True, help="Start these jobs now.")
@click.option("--forget", is_flag=True, help="Leave it at that.")
@connected
def trigger_missed(client: Client, instrument: str, *, start: bool, forget: bool) -> Any:
    """The jobs that were not started because automation was paused."""
    if start and forget:
        raise click.UsageError("Either --start or --forget.")
    if forget:
        client.forget_missed(instrument)
        return "What was missed is not listed any longer."
    return _trials(client.catch_up(instrument) if start else client.missed_jobs(instrument))


@trigger.command("gatherings")
@click.argument("rule", type=int)
@connected
def trigger_gatherings(client: Client, rule: int) -> Table:
    """What RULE has gathered for jobs on several datasets, newest first."""
    columns: Columns = {
        "id": "id",
        "experiment": "experiment",
        "in common": "value",
        "count": "count",
        "since": "started",
        "until": lambda one: one.ended or one.due or "it waits for more",
        "job": "job",
        "why none": "reason",
    }
    return Table(client.gatherings(rule), columns, "Nothing.")


def _trials(trials: list[TriggerTrial]) -> Table:
    columns: Columns = {
        "rule": "rule",
        "of": lambda trial: ", ".join(f"{one.kind} {one.name or one.id}" for one in trial.subjects),
        "when": "time",
        "starts": "starts",
        "job": "job",
        "parameters": "parameters",
        "why not": "reason",
    }
    return Table(trials, columns, "Nothing that the rule waits for has happened.")


@trigger.command("enable")
@click.argument("rule", type=int)
@click.option("--experiment", default=None, help="Only there.")
@connected
def trigger_enable(client: Client, rule: int, experiment: str | None) -> Any:
    """Let RULE start jobs."""
    return _change(client, rule, experiment, enabled=True)


@trigger.command("disable")
@click.argument("rule", type=int)
@click.option("--experiment", default=None, help="Only there.")
@connected
def trigger_disable(client: Client, rule: int, experiment: str | None) -> Any:
    """Stop RULE from starting jobs."""
    return _change(client, rule, experiment, enabled=False)


@trigger.command("delete")
@click.argument("rule", type=int)
@connected
def trigger_delete(client: Client, rule: int) -> str:
    """Remove RULE. Jobs that it started stay."""
    client.delete_trigger(rule)
    return f"Rule {rule} is removed."
