"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beamhub_hub.testing import RunningDemo

StartDemo = Callable[..., RunningDemo]


@pytest.fixture(scope="session")
def start_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDemo]:
    """Start `beamhub demo` with these options, in a new folder or the given one; ready when it returns."""
    demos: list[RunningDemo] = []

    def start(*options: str, state: Path | None = None) -> RunningDemo:
        demo = RunningDemo(state or tmp_path_factory.mktemp("demo") / "state", *options)
        demos.append(demo)
        return demo.ready()

    yield start
    for demo in demos:
        if demo.process.poll() is None:
            demo.end()


@pytest.fixture(scope="session")
def demo(start_demo: StartDemo) -> RunningDemo:
    """A facility with nothing acquired yet; `demo.acquire()` is its detector."""
    return start_demo("--no-acquisition")


class AtOnce:
    """Shows why a test failed when it has failed, and not only after all the others."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line("")
            self._terminal.write_sep("_", f"{report.nodeid} failed in its {report.when}", red=True, bold=True)
            self._terminal.write_line(report.longreprtext.rstrip())
            for title, text in report.sections:
                self._terminal.write_sep("-", title)
                self._terminal.write_line(text.rstrip())


@pytest.hookimpl(trylast=True)  # when there is a terminal
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:  # there is none in a worker of pytest-xdist
        config.pluginmanager.register(AtOnce(terminal))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On CI everything is there: a test that was skipped for want of something has failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("")
        reporter.write_line("CI=true: skipped tests count as failures", red=True, bold=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many ran, and that none was left out."""
    counts = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "skipped")}
    skipped = counts["skipped"] or "none"
    terminalreporter.write_line(f"{counts['passed'] + counts['failed']} tests ran, {skipped} skipped")
