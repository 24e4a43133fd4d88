"""What holds for all tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beamhub.runners.local import WARM
from beamhub_hub.testing import RunningDemo
from hypothesis import HealthCheck, settings

from tests import temporary

StartDemo = Callable[..., RunningDemo]

# the same examples each time, and none too slow for a busy machine; who has time at night looks for others
LOOK_FOR_OTHERS = os.environ.get("BEAMHUB_TEST_CHANCE") == "1"
settings.register_profile(
    "beamhub",
    derandomize=not LOOK_FOR_OTHERS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("beamhub")


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all that is temporary, which ends with the tests: processes that were killed could not
    tidy. None of those that knew it may live on. What tests write for themselves stays where pytest looks for
    it, but for what a run that was killed has left there."""
    with temporary.temporary_folder(also=tmp_path_factory.getbasetemp()) as folder:
        yield folder
        end = time.monotonic() + 60
        while left := living(f"TMPDIR={folder}".encode()):
            assert time.monotonic() < end, f"these processes are left: {left}"
            time.sleep(0.05)


def living(variable: bytes) -> list[str]:
    """The command lines of all processes that were started with this variable in their environment, but for
    Python's own helper, which ends with who started it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return [command for command in found if "multiprocessing.resource_tracker" not in command]


@pytest.fixture(scope="session")
def compiled() -> Path:
    """What each new facility would otherwise spend twenty seconds of CPU on; kept for the next run."""
    folder = Path(__file__).parents[1] / ".test" / "warm"
    caches = {"NUMBA_CACHE_DIR": str(folder / "numba"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "warm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two parts of the tests run side by side
        subprocess.run([sys.executable, "-m", WARM], env=os.environ | caches, check=True)
    return folder


@pytest.fixture(scope="session")
def start_demo(tmp_path_factory: pytest.TempPathFactory, compiled: Path) -> Iterator[StartDemo]:
    """Start `beamhub demo` with these options, in a new folder or the given one; ready when it returns."""
    demos = contextlib.ExitStack()

    def start(*options: str, state: Path | None = None) -> RunningDemo:
        folder = state or tmp_path_factory.mktemp("demo") / "state"
        if not folder.exists():
            folder.mkdir(mode=0o700)
            shutil.copytree(compiled, folder / "service" / "warm")
        demo = RunningDemo(folder, *options)
        demos.callback(lambda: demo.process.poll() is None and demo.end())
        return demo.ready()

    with demos:
        yield start


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


class FileByFile:
    """Shows a line for each file when its tests have run: two parts of the tests may share a terminal."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._tests, self._began = 0, time.monotonic()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return ("passed" if report.when == "call" else "", "", "") if report.passed else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        if not self._tests:
            self._began = time.monotonic()
        self._tests += 1
        answer = yield
        if nextitem is None or nextitem.path != item.path:
            seconds, name = time.monotonic() - self._began, item.nodeid.partition("::")[0]
            self._terminal.write(f"{name}: {self._tests} in {seconds:.1f} s\n", flush=True)
            self._tests = 0
        return answer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--file-by-file", action="store_true", help="a line for each file, no dots")


@pytest.hookimpl(trylast=True)  # when there is a terminal
def pytest_configure(config: pytest.Config) -> None:
    temporary.end_on_signals()
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(AtOnce(terminal))
        if config.option.file_by_file:
            config.option.verbose = -1
            config.pluginmanager.register(FileByFile(terminal))


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
