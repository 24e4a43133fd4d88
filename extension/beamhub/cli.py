"""The command `beamhub`: everyday work on instruments, experiments, jobs and licences, through the REST API.

Every command of the groups prints a table for people and, with `--json`, the service's own objects for
programs. `demo`, `sync`, `simulate` and `doctor` belong to other parts of beamhub and are imported when they
are called.
"""

from __future__ import annotations

import importlib
import json as jsonlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

if TYPE_CHECKING:
    from beamhub.client import Client
    from beamhub.schemas import TriggerTrial

P = ParamSpec("P")
Columns = dict[str, str | Callable[[Any], Any]]

ELSEWHERE = {
    "demo": ("beamhub_hub.demo", "demo", "Run a whole facility here and watch a beamtime happen."),
    "doctor": (
        "beamhub_hub.doctor",
        "doctor",
        "Check this machine: what works, what is missing.",
    ),
    "simulate": ("beamhub.simulation.command", "simulate", "Be a detector: write a dataset frame by frame."),
    "sync": (
        "beamhub.agent.command",
        "sync",
        "Be an instrument's agent: upload what it writes.",
    ),
}


class LazyGroup(click.Group):
    """A group that imports the commands of other parts of beamhub only when one of them is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, name, _ = ELSEWHERE[cmd_name]
        try:
            command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"`beamhub {cmd_name}` needs the module {error.name}, which is not installed here. "
                "Install beamhub with all its parts: pip install beamhub"
            ) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{name} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            own = super().get_command(ctx, name)
            rows.append((name, own.get_short_help_str(90) if own else ELSEWHERE[name][2]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="beamhub")
def main() -> None:
    """Collaborative analysis for experiments at beamlines and microscopes.

    BEAMHUB_URL (the hub's address) and BEAMHUB_TOKEN (from the hub's page Token) say where, and as whom.
    """


# --- what every command of the groups does -------------------------------------------------------------


def _connected(function: Callable[Concatenate[Client, P], Any]) -> Callable[P, None]:
    """Give the command a client; print what it returns: objects as JSON with --json, else through `_show`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
    @wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        from beamhub.client import ApiError, Client, Unreachable

        as_json = bool(kwargs.pop("as_json"))
        try:
            with Client.from_environment() as client:
                answer = function(client, *args, **kwargs)
        except ApiError as error:
            lines = [
                str(error),
                *(f"  {e.get('field', '')}: {e.get('message', '')}" for e in error.problem.errors),
            ]
            raise click.ClickException("\n".join(lines)) from error
        except (Unreachable, OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        if as_json:
            click.echo(jsonlib.dumps(_plain(answer), indent=2, ensure_ascii=False))
        else:
            _show(answer)

    return command


class _Table:
    """Objects, and the columns that a table of them has: heading -> attribute, or function of the object."""

    def __init__(self, items: Sequence[Any], columns: Columns, empty: str) -> None:
        self.items = items
        self.columns = columns
        self.empty = empty

    def rows(self) -> Iterable[list[str]]:
        for item in self.items:
            values = (get(item) if callable(get) else getattr(item, get) for get in self.columns.values())
            yield [_text(value) for value in values]


def _plain(answer: Any) -> Any:
    if isinstance(answer, _Table):
        return [_plain(item) for item in answer.items]
    if hasattr(answer, "model_dump"):
        return answer.model_dump(mode="json")
    return answer


def _show(answer: Any) -> None:
    # rich is only wanted here: help and --json stay quick
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # a pipe has no width: nothing is to be cut there
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    if isinstance(answer, str):
        click.echo(answer)
    elif isinstance(answer, _Table):
        if not answer.items:
            click.echo(answer.empty)
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in answer.columns:
            table.add_column(heading, overflow="fold")
        for row in answer.rows():
            table.add_row(*(Text(value) for value in row))  # Text: names from outside are never markup
        console.print(table)
    elif answer is not None:
        grid = Table(box=None, show_header=False, pad_edge=False)
        grid.add_column(style="bold")
        grid.add_column(overflow="fold")
        for name, value in _plain(answer).items():
            grid.add_row(name.replace("_", " "), Text(_text(value)))
        console.print(grid)


def _text(value: Any) -> str:
    """One cell: no control characters reach the terminal, whatever a name contains."""
    if value is None or value in ("", [], {}):
        return "–"
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case {"value": inner, "unit": unit} if len(value) == 2:
            return f"{_text(inner)} {unit}".strip()
        case dict():
            return "\n".join(f"{name}: {_text(inner)}" for name, inner in value.items())
        case list():
            separator = "\n" if any(isinstance(inner, dict) for inner in value) else ", "
            return separator.join(_text(inner) for inner in value)
    if hasattr(value, "strftime"):
        return str(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in str(value))


def _size(value: int) -> str:
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _hours(seconds: int) -> str:
    return f"{seconds / 3600:.2f}"


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r} is not of the form name=value.")
    return name, value


def _values(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs; a value that is JSON is that, anything else is text."""
    values: dict[str, Any] = {}
    for name, value in map(_pair, pairs):
        try:
            values[name] = jsonlib.loads(value)
        except ValueError:
            values[name] = value
    return values


# --- instruments ---------------------------------------------------------------------------------------


@main.group()
def instrument() -> None:
    """Beamlines and microscopes: their state, active experiment, agent token."""


@instrument.command("list")
@_connected
def instrument_list(client: Client) -> _Table:
    """The instruments that you may see."""
    columns: Columns = {
        "id": "id",
        "title": "title",
        "active experiment": "active_experiment",
        "automation": lambda i: "on" if i.automation else "paused",
        "agent": lambda i: "connected" if i.agent and i.agent.connected else "not connected",
    }
    return _Table(client.instruments(), columns, "No instrument that you may see.")


@instrument.command("show")
@click.argument("instrument")
@_connected
def instrument_show(client: Client, instrument: str) -> Any:
    """All about one instrument."""
    return client.instrument(instrument)


@instrument.command("create")
@click.argument("id")
@click.argument("title")
@click.option("--technique", default="macromolecular crystallography", show_default=True)
@click.option("--staff", multiple=True, help="A user who operates it; may be repeated.")
@_connected
def instrument_create(client: Client, id: str, title: str, technique: str, staff: tuple[str, ...]) -> Any:  # noqa: A002
    """Add an instrument (operators of the facility)."""
    return client.create_instrument(id, title, technique=technique, staff=list(staff))


@instrument.command("activate")
@click.argument("instrument")
@click.argument("experiment", required=False)
@_connected
def instrument_activate(client: Client, instrument: str, experiment: str | None) -> Any:
    """Make EXPERIMENT the active one; without EXPERIMENT, none is."""
    return client.activate(instrument, experiment)


@instrument.command("pause")
@click.argument("instrument")
@_connected
def instrument_pause(client: Client, instrument: str) -> Any:
    """Stop trigger rules from starting jobs."""
    return _automation(client, instrument, on=False)


@instrument.command("resume")
@click.argument("instrument")
@_connected
def instrument_resume(client: Client, instrument: str) -> Any:
    """Let trigger rules start jobs again."""
    return _automation(client, instrument, on=True)


def _automation(client: Client, instrument: str, *, on: bool) -> Any:
    from beamhub.schemas import InstrumentChange

    return client.change_instrument(instrument, InstrumentChange(automation=on))


@instrument.command("staff")
@click.argument("instrument")
@click.argument("users", nargs=-1)
@_connected
def instrument_staff(client: Client, instrument: str, users: tuple[str, ...]) -> Any:
    """Make USERS the instrument's staff, in place of those it has."""
    from beamhub.schemas import InstrumentChange

    return client.change_instrument(instrument, InstrumentChange(staff=list(users)))


@instrument.command("token")
@click.argument("instrument")
@_connected
def instrument_token(client: Client, instrument: str) -> Any:
    """A new token for the agent. It is shown once; older ones stop working."""
    return client.new_instrument_token(instrument)


# --- experiments ---------------------------------------------------------------------------------------


@main.group()
def experiment() -> None:
    """Beamtimes: their members, state and files."""


@experiment.command("list")
@click.option("--instrument", default=None)
@_connected
def experiment_list(client: Client, instrument: str | None) -> _Table:
    """The experiments that you belong to, newest first."""
    columns: Columns = {
        "id": "id",
        "title": "title",
        "state": lambda e: f"{e.state} (active)" if e.active else e.state,
        "pi": "pi",
        "you are": "role",
        "created": "created",
    }
    return _Table(client.experiments(instrument=instrument), columns, "No experiment that you belong to.")


@experiment.command("show")
@click.argument("experiment")
@_connected
def experiment_show(client: Client, experiment: str) -> Any:
    """All about one experiment."""
    return client.experiment(experiment)


@experiment.command("create")
@click.argument("instrument")
@click.argument("title")
@click.option("--pi", required=True, help="The principal investigator's user name.")
@_connected
def experiment_create(client: Client, instrument: str, title: str, pi: str) -> Any:
    """Add an experiment (staff of the instrument)."""
    return client.create_experiment(instrument, title, pi)


@experiment.command("state")
@click.argument("experiment")
@click.argument("state", type=click.Choice(["planned", "running", "processing", "closed"]))
@_connected
def experiment_state(client: Client, experiment: str, state: str) -> Any:
    """Move an experiment on."""
    from beamhub.schemas import ExperimentChange, ExperimentState

    return client.change_experiment(experiment, ExperimentChange(state=ExperimentState(state)))


@experiment.command("quota")
@click.argument("experiment")
@click.argument("gigabytes", type=click.FloatRange(0), required=False)
@_connected
def experiment_quota(client: Client, experiment: str, gigabytes: float | None) -> Any:
    """Let an experiment take up to GIGABYTES (10^9 bytes) of data; without them, as many as the disk holds
    (staff of the instrument)."""
    from beamhub.schemas import ExperimentChange

    quota = None if gigabytes is None else round(gigabytes * 1e9)
    return client.change_experiment(experiment, ExperimentChange(quota=quota))


@experiment.command("members")
@click.argument("experiment")
@_connected
def experiment_members(client: Client, experiment: str) -> _Table:
    """Who belongs to an experiment."""
    columns: Columns = {
        "user": "user",
        "role": "role",
        "added": "added",
        "by": "added_by",
    }
    return _Table(client.members(experiment), columns, "No members.")


@experiment.command("add")
@click.argument("experiment")
@click.argument("user")
@click.option(
    "--role", type=click.Choice(["pi", "collaborator", "viewer"]), default="collaborator", show_default=True
)
@_connected
def experiment_add(client: Client, experiment: str, user: str, role: str) -> Any:
    """Add USER to an experiment, or change their role."""
    from beamhub.schemas import Role

    roles = {"pi": Role.PI, "collaborator": Role.COLLABORATOR, "viewer": Role.VIEWER}
    return client.add_member(experiment, user, roles[role])  # type: ignore[arg-type]


@experiment.command("remove")
@click.argument("experiment")
@click.argument("user")
@_connected
def experiment_remove(client: Client, experiment: str, user: str) -> str:
    """Remove USER from an experiment."""
    client.remove_member(experiment, user)
    return f"{user} no longer belongs to {experiment}."


@experiment.command("datasets")
@click.argument("experiment")
@_connected
def experiment_datasets(client: Client, experiment: str) -> _Table:
    """An experiment's datasets, newest first."""
    columns: Columns = {
        "id": "id",
        "name": "name",
        "kind": "kind",
        "state": "state",
        "frames": lambda d: f"{d.frames_readable}/{d.frames_announced}",
        "created": "created",
    }
    return _Table(client.datasets(experiment), columns, "No dataset yet.")


@experiment.command("end-dataset")
@click.argument("dataset", type=int)
@_connected
def experiment_end_dataset(client: Client, dataset: int) -> str:
    """Say that no more frames will come of DATASET (its id): jobs that wait for its end start now."""
    ended = client.end_dataset(dataset)
    return f"{ended.name} is {ended.state}, with {ended.frames_readable} frames."


@experiment.command("files")
@click.argument("experiment")
@click.argument("prefix", default="")
@_connected
def experiment_files(client: Client, experiment: str, prefix: str) -> _Table:
    """An experiment's files, those whose path begins with PREFIX."""
    return _files(client.files(experiment, prefix))


def _files(files: Sequence[Any]) -> _Table:
    columns: Columns = {
        "path": "path",
        "size": lambda f: _size(f.size),
        "modified": "modified",
    }
    return _Table(files, columns, "No files.")


@experiment.command("get")
@click.argument("experiment")
@click.argument("path")
@click.argument("to", type=click.Path(path_type=Path), required=False)
@_connected
def experiment_get(client: Client, experiment: str, path: str, to: Path | None) -> str:
    """Download the file PATH to TO (default: its own name, here)."""
    return str(client.download(experiment, path, to or Path(Path(path).name)))


@experiment.command("move-dataset")
@click.argument("dataset", type=int)
@click.argument("experiment")
@click.option("--reason", "-r", required=True, help="Why; it goes on record in both experiments.")
@_connected
def experiment_move_dataset(client: Client, dataset: int, experiment: str, reason: str) -> str:
    """Move DATASET (its id) with its files to EXPERIMENT, of the same instrument (staff)."""
    moved = client.move_dataset(dataset, experiment, reason)
    return f"{moved.name} is now {moved.path} of {moved.experiment}."


@experiment.command("finalise")
@click.argument("experiment")
@click.option("--force", is_flag=True, help="Sign off in spite of differences; needs a reason.")
@click.option("--reason", "-r", default="", help="Why.")
@_connected
def experiment_finalise(client: Client, experiment: str, force: bool, reason: str) -> Any:
    """Check that all raw data have arrived, and sign off the manifest sha256sums (staff)."""
    client.finalise(experiment, force=force, reason=reason)
    return client.finalised(experiment)


# --- templates -----------------------------------------------------------------------------------------


@main.group()
def template() -> None:
    """Template notebooks that jobs are made from."""


@template.command("list")
@_connected
def template_list(client: Client) -> _Table:
    """The templates of this facility."""
    columns: Columns = {
        "name": "name",
        "title": "title",
        "technique": "technique",
        "profile": "profile",
        "missing here": "missing",
    }
    return _Table(client.templates(), columns, "No templates.")


@template.command("show")
@click.argument("name")
@_connected
def template_show(client: Client, name: str) -> Any:
    """One template, with its parameters."""
    return client.template(name)


@template.command("check")
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def template_check(notebook: Path, as_json: bool) -> None:
    """Check a NOTEBOOK on this machine: may it be a template?"""
    from beamhub.templates import check

    complaints = list(check(notebook))
    if as_json:
        click.echo(jsonlib.dumps(complaints, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(complaints) or f"{notebook} may be a template.")
    if complaints:
        sys.exit(1)


# --- trigger rules -------------------------------------------------------------------------------------


@main.group()
def trigger() -> None:
    """Trigger rules: which jobs start by themselves."""


@trigger.command("list")
@click.argument("instrument")
@_connected
def trigger_list(client: Client, instrument: str) -> _Table:
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
    return _Table(client.triggers(instrument), columns, "No trigger rules.")


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
@_connected
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

    computed = {key: {"expression": text} for key, text in map(_pair, compute)}
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
        parameters={**_values(settings), **computed},
        profile=profile,
        sponsor=sponsor,
    )
    if dry_run:
        return _trials(client.try_out_trigger(instrument, rule))
    return client.create_trigger(instrument, rule)


@trigger.command("replay")
@click.argument("rule", type=int)
@click.argument("datasets", type=int, nargs=-1, required=True)
@_connected
def trigger_replay(client: Client, rule: int, datasets: tuple[int, ...]) -> _Table:
    """Follow RULE now on DATASETS, as far as it has not been followed there."""
    return _trials(client.replay_trigger(rule, datasets))


def _trials(trials: list[TriggerTrial]) -> _Table:
    columns: Columns = {
        "dataset": "dataset",
        "name": "dataset_name",
        "when": "time",
        "starts": "starts",
        "job": "job",
        "parameters": "parameters",
        "why not": "reason",
    }
    return _Table(trials, columns, "Nothing that the rule waits for has happened.")


@trigger.command("enable")
@click.argument("rule", type=int)
@_connected
def trigger_enable(client: Client, rule: int) -> Any:
    """Let RULE start jobs."""
    from beamhub.schemas import TriggerChange

    return client.change_trigger(rule, TriggerChange(enabled=True))


@trigger.command("disable")
@click.argument("rule", type=int)
@_connected
def trigger_disable(client: Client, rule: int) -> Any:
    """Stop RULE from starting jobs."""
    from beamhub.schemas import TriggerChange

    return client.change_trigger(rule, TriggerChange(enabled=False))


@trigger.command("delete")
@click.argument("rule", type=int)
@_connected
def trigger_delete(client: Client, rule: int) -> str:
    """Remove RULE. Jobs that it started stay."""
    client.delete_trigger(rule)
    return f"Rule {rule} is removed."


# --- jobs ----------------------------------------------------------------------------------------------


@main.group()
def job() -> None:
    """Jobs: start, watch, rerun, cancel, and what they made."""


@job.command("list")
@click.option("--experiment", default=None)
@click.option("--dataset", type=int, default=None)
@click.option(
    "--state",
    type=click.Choice(["pending", "queued", "running", "finished", "failed", "cancelled"]),
    default=None,
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@_connected
def job_list(
    client: Client, experiment: str | None, dataset: int | None, state: str | None, limit: int
) -> _Table:
    """Jobs that you may see, newest first."""
    from beamhub.schemas import JobState

    found = client.jobs(experiment, dataset=dataset, state=JobState(state) if state else None, limit=limit)
    columns: Columns = {
        "id": "id",
        "experiment": "experiment",
        "title": "title",
        "input": lambda j: [i.name or f"{i.kind} {i.id}" for i in j.inputs],
        "state": lambda j: f"{j.state}: {j.reason}" if j.reason else j.state,
        "done": lambda j: None if j.progress.fraction is None else f"{j.progress.fraction:.0%}",
        "launched by": "launched_by",
        "created": "created",
    }
    return _Table(found, columns, "No jobs.")


@job.command("show")
@click.argument("job", type=int)
@_connected
def job_show(client: Client, job: int) -> Any:
    """All about one job."""
    return client.job(job)


@job.command("submit")
@click.argument("experiment")
@click.argument("template_name", metavar="TEMPLATE")
@click.argument("dataset", type=int)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter; may be repeated.")
@click.option("--profile", default=None, help="Default: the template's.")
@click.option("--sponsor", required=True, help="The licence that pays.")
@_connected
def job_submit(
    client: Client,
    experiment: str,
    template_name: str,
    dataset: int,
    settings: tuple[str, ...],
    profile: str | None,
    sponsor: str,
) -> Any:
    """Run TEMPLATE on DATASET."""
    return client.submit(
        experiment, template_name, dataset, sponsor=sponsor, parameters=_values(settings), profile=profile
    )


@job.command("rerun")
@click.argument("job", type=int)
@click.option("--template", "template_name", default=None)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter to change; may be repeated. The others stay as they were.",
)
@click.option("--profile", default=None)
@click.option("--sponsor", default=None)
@_connected
def job_rerun(
    client: Client,
    job: int,
    template_name: str | None,
    settings: tuple[str, ...],
    profile: str | None,
    sponsor: str | None,
) -> Any:
    """Run a job again: other parameters, template, CPUs or sponsor; what is left out is as it was."""
    parameters: dict[str, Any] | None = None
    if settings:
        before = {} if template_name else client.job(job).parameters
        parameters = {**before, **_values(settings)}
    return client.rerun(job, template=template_name, parameters=parameters, profile=profile, sponsor=sponsor)


@job.command("cancel")
@click.argument("job", type=int)
@click.option("--reason", default="", help="Shown to everybody in the experiment.")
@_connected
def job_cancel(client: Client, job: int, reason: str) -> Any:
    """Stop a job."""
    return client.cancel(job, reason)


@job.command("log")
@click.argument("job", type=int)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@_connected
def job_log(client: Client, job: int, follow: bool) -> str | None:
    """A job's log."""
    if not follow:
        return client.job_log(job)[0]
    after, watch = 0, client.events(client.job(job).experiment)
    while True:
        ended = client.job(job).state.ended  # asked first: whatever it wrote before it ended is read then
        text, after = client.job_log(job, after)
        click.echo(_text(text) if text else "", nl=False)
        if ended:
            return None
        # news of this job are a sign that its log has grown
        next(m for m in watch if m.subject == str(job) and m.kind.startswith("job."))


@job.command("files")
@click.argument("job", type=int)
@_connected
def job_files(client: Client, job: int) -> _Table:
    """The files that a job made."""
    return _files(client.job_files(job))


@job.command("get")
@click.argument("job", type=int)
@click.argument("path")
@click.argument("to", type=click.Path(path_type=Path), required=False)
@_connected
def job_get(client: Client, job: int, path: str, to: Path | None) -> str:
    """Download the job's file PATH to TO (default: its own name, here)."""
    return str(client.download_job_file(job, path, to or Path(Path(path).name)))


# --- licences ------------------------------------------------------------------------------------------


@main.group()
def licence() -> None:
    """Licences: allowances of CPU-hours."""


_LICENCE_COLUMNS: Columns = {
    "id": "id",
    "title": "title",
    "kind": "kind",
    "for": lambda x: x.owner or x.instruments,
    "available, CPU-h": lambda x: _hours(x.available),
    "held": lambda x: _hours(x.held),
    "charged": lambda x: _hours(x.charged),
    "granted": lambda x: _hours(x.granted),
    "valid until": "valid_until",
}


@licence.command("list")
@_connected
def licence_list(client: Client) -> _Table:
    """The licences that you may see."""
    return _Table(client.licences(), _LICENCE_COLUMNS, "No licence that you may see.")


@licence.command("sponsors")
@click.argument("experiment")
@_connected
def licence_sponsors(client: Client, experiment: str) -> _Table:
    """The licences that may pay for your jobs in EXPERIMENT."""
    return _Table(client.sponsors(experiment), _LICENCE_COLUMNS, "No licence may pay for your jobs here.")


@licence.command("show")
@click.argument("licence")
@_connected
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
@_connected
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
    from datetime import UTC

    from beamhub.schemas import LicenceCreate

    body = LicenceCreate(
        id=id,
        title=title,
        kind="user" if owner else "lab",
        owner=owner,
        instruments=list(instruments),
        cpu_hours=cpu_hours,
        valid_until=valid_until.replace(tzinfo=UTC) if valid_until else None,
    )
    return client.create_licence(body)


@licence.command("grant")
@click.argument("licence")
@click.argument("cpu_hours", type=click.FloatRange(0, min_open=True))
@click.option("--note", default="")
@_connected
def licence_grant(client: Client, licence: str, cpu_hours: float, note: str) -> Any:
    """Add CPU_HOURS to a licence (operators of the facility)."""
    return client.grant(licence, cpu_hours, note)


@licence.command("ledger")
@click.argument("licence")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@_connected
def licence_ledger(client: Client, licence: str, limit: int) -> _Table:
    """What was granted, held, charged and released, newest first."""
    columns: Columns = {
        "time": "time",
        "kind": "kind",
        "CPU-h": lambda line: f"{line.cpu_seconds / 3600:.4f}",
        "job": "job",
        "by": "actor",
        "note": "note",
    }
    return _Table(client.ledger(licence, limit=limit), columns, "Nothing yet.")


# --- uploads -------------------------------------------------------------------------------------------


@main.group()
def upload() -> None:
    """Uploads: send files into an experiment, see what is on its way."""


@upload.command("send")
@click.argument("experiment")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", default=None, help="Its name there, which may have folders. Default: its own.")
@_connected
def upload_send(client: Client, experiment: str, file: Path, name: str | None) -> Any:
    """Send FILE into the experiment's folder shared/. Interrupted? Call it again."""
    if not sys.stderr.isatty():
        return client.upload(file, experiment, name=name)
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape(file.name), total=file.stat().st_size)
        return client.upload(
            file,
            experiment,
            name=name,
            progress=lambda sent, _: bar.update(task, completed=sent),
        )


@upload.command("list")
@click.argument("experiment")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@_connected
def upload_list(client: Client, experiment: str, limit: int) -> _Table:
    """An experiment's uploads, newest first."""
    columns: Columns = {
        "id": "id",
        "path": "path",
        "state": lambda u: f"{u.state}: {u.error}" if u.error else u.state,
        "sent": lambda u: _size(u.offset),
        "of": lambda u: _size(u.size),
        "by": "created_by",
        "created": "created",
    }
    return _Table(client.uploads(experiment, limit=limit), columns, "No uploads.")


@upload.command("cancel")
@click.argument("upload")
@_connected
def upload_cancel(client: Client, upload: str) -> str:
    """Stop an upload that is on its way, and forget what has arrived of it."""
    client.cancel_upload(upload)
    return f"Upload {upload} is cancelled."


def _why(function: Callable[P, Any]) -> Callable[P, Any]:
    return click.option("--reason", "-r", required=True, help="Why; everybody concerned reads it.")(function)


@upload.command("pause")
@click.argument("instrument")
@_why
@_connected
def upload_pause(client: Client, instrument: str, reason: str) -> str:
    """Let INSTRUMENT begin no upload; those on their way are finished (staff)."""
    client.pause_uploads(instrument, reason)
    return f"Uploads of {instrument} are paused."


@upload.command("resume")
@click.argument("instrument")
@_connected
def upload_resume(client: Client, instrument: str) -> str:
    """Let INSTRUMENT begin uploads again (staff)."""
    client.resume_uploads(instrument)
    return f"Uploads of {instrument} go on."


@upload.command("retry")
@click.argument("instrument")
@click.argument("names", nargs=-1)
@click.option("--pattern", help="Files whose name fits this glob.")
@_connected
def upload_retry(client: Client, instrument: str, names: tuple[str, ...], pattern: str | None) -> Any:
    """Have the agent send again what has failed: NAMES (below raw/), those of a pattern, or all (staff)."""
    return client.retry_uploads(instrument, names, pattern=pattern)


@upload.command("skip")
@click.argument("instrument")
@click.argument("names", nargs=-1)
@click.option("--pattern", help="Files whose name fits this glob.")
@_why
@_connected
def upload_skip(
    client: Client, instrument: str, names: tuple[str, ...], pattern: str | None, reason: str
) -> Any:
    """Have the agent leave out what has not arrived: NAMES (below raw/), those of a pattern (staff)."""
    return client.skip_uploads(instrument, names, pattern=pattern, reason=reason)


@upload.command("unskip")
@click.argument("instrument")
@click.argument("names", nargs=-1)
@click.option("--pattern", help="Files whose name fits this glob.")
@_connected
def upload_unskip(client: Client, instrument: str, names: tuple[str, ...], pattern: str | None) -> Any:
    """Have the agent send after all what was to be skipped: NAMES, those of a pattern, or all (staff)."""
    return client.unskip_uploads(instrument, names, pattern=pattern)


@upload.command("unsent")
@click.argument("instrument")
@click.option("--state", type=click.Choice(["failed", "skipped"]))
@_connected
def upload_unsent(client: Client, instrument: str, state: Any) -> _Table:
    """What the agent of INSTRUMENT has not sent, and why (staff)."""
    columns: Columns = {"name": "name", "state": "state", "reason": "reason"}
    return _Table(client.agent_files(instrument, state=state), columns, "All has been sent.")


@upload.command("quarantine")
@click.argument("instrument")
@_connected
def upload_quarantine(client: Client, instrument: str) -> _Table:
    """Files of INSTRUMENT that nobody gets because they are built to mislead their readers (staff)."""
    columns: Columns = {
        "upload": "id",
        "experiment": "experiment",
        "path": "path",
        "size": lambda u: _size(u.size),
        "reason": "error",
    }
    return _Table(client.quarantine(instrument), columns, "Nothing is in quarantine.")


@upload.command("release")
@click.argument("upload")
@_why
@_connected
def upload_release(client: Client, upload: str, reason: str) -> str:
    """Publish a quarantined file after all; no dataset is made of it (staff)."""
    return f"It is published as {client.release_upload(upload, reason).path}."


@upload.command("discard")
@click.argument("upload")
@_why
@_connected
def upload_discard(client: Client, upload: str, reason: str) -> str:
    """Delete a quarantined file; its upload stays on record (staff)."""
    return f"{client.discard_upload(upload, reason).path} is deleted."


if __name__ == "__main__":
    main()
