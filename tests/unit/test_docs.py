"""The documentation held against what it speaks of."""

from __future__ import annotations

import math
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
import pytest
from beamhub.api import ROUTES
from beamhub.app import BeamhubApp
from beamhub.cli import main
from beamhub_hub import Site

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def text(name: str) -> str:
    return (ROOT / name).read_text()


def anchors(page: Path) -> set[str]:
    """The headings of a page, as they are linked to."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            other = page.parent / path if path else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target


def test_every_page_can_be_found_from_the_first() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text("README.md"), page.name


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    reasons = text("docs/dependencies.md").lower()
    names = {re.split(r"[\[<>=~ ]", one)[0].lower() for one in wanted}
    assert {name for name in names if name not in reasons and name.replace("-", " ") not in reasons} == set()


def commands(command: click.Command, path: str) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below
        yield from commands(below, f"{path} {name}")


def test_every_command_is_listed() -> None:
    listed = re.findall(r"^\| `(beamhub [a-z -]+[a-z])", text("docs/commands.md"), re.MULTILINE)
    assert sorted(listed) == sorted(commands(main, "beamhub"))


def shown(page: Path) -> Iterator[str]:
    """The calls of `beamhub` in a page's blocks of code."""
    for block in FENCED.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"\s*(?:runuser \S+ \S+ -- )?(?:\S+/)?beamhub (.*)", line):
                yield found.group(1)


def fault(line: str) -> str:
    """What is wrong with a call; "" if nothing is."""
    words = shlex.split(line, comments=True)
    command: click.Command | None = main
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    if command is None:
        return "no such command"
    options = {name: one for one in command.params if isinstance(one, click.Option) for name in one.opts}
    given = 0
    while words:
        word = words.pop(0)
        if word not in options and word.startswith("--"):
            return f"no such option: {word}"
        if word in options and not (options[word].is_flag or options[word].count):
            words.pop(0)
        given += word not in options
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    most = math.inf if any(one.nargs == -1 for one in arguments) else len(arguments)
    fits = len([one for one in arguments if one.required]) <= given <= most
    return "" if fits or "…" in line else f"{given} arguments"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_can_be_given(page: Path) -> None:
    assert {line: wrong for line in shown(page) if (wrong := fault(line))} == {}


def test_every_setting_is_described() -> None:
    page = text("docs/operator.md")
    settings = {*Site.model_fields, *BeamhubApp.class_own_traits(config=True)}
    assert {name for name in settings if f"`{name}`" not in page} == set()


def test_requests_that_are_shown_exist() -> None:
    routes = {(route.method, re.sub(r"\{[^}]*\}", "*", route.path)) for route in ROUTES}
    for method, path in re.findall(r"`(GET|POST|PUT|PATCH|DELETE) ([a-z][^`?\s]*)", text("docs/api.md")):
        wanted = re.sub(r"\{[^}]*\}|<[^>]*>", "*", path)
        assert (method, wanted) in routes, f"{method} {path}"


def test_tests_that_are_named_exist() -> None:
    rows = text("docs/developer.md").split("## What has been tried with jobs")[1].split("## ")[0]
    for path, names in re.findall(r"`(\S*test_\w+\.py)`((?: \w+(?=[,; |]),?)*)", rows):
        tests = text(path if "/" in path else f"tests/integration/{path}")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"def test_\w*{name}", tests), f"{path} {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_an_installation_copies_comes_with_the_wheel(page: Path) -> None:
    wheel = tomllib.loads(text("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    shipped = {target: ROOT / source for source, target in wheel["shared-data"].items()}
    for name in re.findall(r"/opt/beamhub/(share/beamhub/[\w.-]+)", page.read_text()):
        assert shipped[name].is_file(), name


def test_the_lock_file_has_what_the_settings_can_ask_for() -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    locked = {line.split("==")[0] for line in text("requirements.lock").splitlines() if "==" in line}
    for name in ("postgresql", "oidc"):
        assert {re.split(r"[\[<>=~ ]", one)[0] for one in extras[name]} <= locked
