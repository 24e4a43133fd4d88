"""What every command of the groups does: ask the service, print its answer for people or for programs."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

if TYPE_CHECKING:
    from beamhub.client import Client

P = ParamSpec("P")
Columns = dict[str, str | Callable[[Any], Any]]


def connected(function: Callable[Concatenate[Client, P], Any]) -> Callable[P, None]:
    """Gives the command a client, and prints what it returns: objects as JSON with --json, else a table."""

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


class Table:
    """Objects, and the columns that a table of them has: heading -> attribute, or function of the object."""

    def __init__(self, items: Sequence[Any], columns: Columns, empty: str) -> None:
        self.items = items
        self.columns = columns
        self.empty = empty

    def rows(self) -> Iterable[list[str]]:
        for item in self.items:
            found = (get(item) if callable(get) else getattr(item, get) for get in self.columns.values())
            yield [cell(value) for value in found]


def _plain(answer: Any) -> Any:
    if isinstance(answer, Table):
        return [_plain(item) for item in answer.items]
    if hasattr(answer, "model_dump"):
        return answer.model_dump(mode="json")
    return answer


def _show(answer: Any) -> None:
    # rich is only wanted here: help and --json stay quick
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    # a pipe has no width: nothing is to be cut there
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    if isinstance(answer, str):
        click.echo(answer)
    elif isinstance(answer, Table):
        if not answer.items:
            click.echo(answer.empty)
            return
        table = Grid(box=None, header_style="bold", pad_edge=False)
        for heading in answer.columns:
            table.add_column(heading, overflow="fold")
        for row in answer.rows():
            table.add_row(*(Text(value) for value in row))  # Text: names from outside are never markup
        console.print(table)
    elif answer is not None:
        grid = Grid(box=None, show_header=False, pad_edge=False)
        grid.add_column(style="bold")
        grid.add_column(overflow="fold")
        for name, value in _plain(answer).items():
            grid.add_row(name.replace("_", " "), Text(cell(value)))
        console.print(grid)


def cell(value: Any) -> str:
    """One cell: no control characters reach the terminal, whatever a name contains."""
    if value is None or value in ("", [], {}):
        return "–"
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case {"value": inner, "unit": unit} if len(value) == 2:
            return f"{cell(inner)} {unit}".strip()
        case dict():
            return "\n".join(f"{name}: {cell(inner)}" for name, inner in value.items())
        case list():
            separator = "\n" if any(isinstance(inner, dict) for inner in value) else ", "
            return separator.join(cell(inner) for inner in value)
    if hasattr(value, "strftime"):
        return str(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in str(value))


def size(value: int) -> str:
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def hours(seconds: int) -> str:
    return f"{seconds / 3600:.2f}"


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{text!r} is not of the form name=value.")
    return name, value


def values(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs; a value that is JSON is that, anything else is text."""
    found: dict[str, Any] = {}
    for name, value in map(pair, pairs):
        try:
            found[name] = jsonlib.loads(value)
        except ValueError:
            found[name] = value
    return found


def why(function: Callable[P, Any]) -> Callable[P, Any]:
    return click.option("--reason", "-r", required=True, help="Why; everybody concerned reads it.")(function)


def files_table(files: Sequence[Any]) -> Table:
    columns: Columns = {
        "path": "path",
        "size": lambda f: size(f.size),
        "modified": "modified",
    }
    return Table(files, columns, "No files.")
