"""The command line against a running service, as somebody types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from beamhub.cli import main
from beamhub.client import Client
from beamhub.schemas import Heartbeat
from beamhub.testing import TEMPLATE, Beamtime, RunningService
from click.testing import CliRunner, Result

Shell = Callable[..., Result]


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime()


@pytest.fixture
def shell(service: RunningService) -> Shell:
    """`shell("ada", "job", "list")`"""

    def run(who: str, *arguments: str | float) -> Result:
        environment = {"BEAMHUB_URL": service.url, "BEAMHUB_TOKEN": service.tokens[who]}
        return CliRunner(env=environment).invoke(main, [str(a) for a in arguments], catch_exceptions=False)

    return run


def told(result: Result) -> Any:
    """What a command with --json printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_token_goes_to_a_file_for_its_owner_alone(
    shell: Shell, service: RunningService, tmp_path: Path
) -> None:
    instrument, file = service.beamtime().instrument, tmp_path / "token"
    file.write_text("an older and much longer one, for everybody to read" * 3)
    refused = shell("ada", "instrument", "token", instrument, "--save", file)
    assert (refused.exit_code, file.read_text()[:12]) == (1, "an older and")
    said = shell("sam", "instrument", "token", instrument, "--save", file)
    assert said.exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    token = file.read_text().removesuffix("\n")
    assert token not in said.output
    nowhere = shell("sam", "instrument", "token", instrument, "--save", tmp_path / "nowhere" / "token")
    assert nowhere.exit_code == 1
    agent = Client(service.url, token, instrument=True)  # it goes on working
    assert agent.heartbeat(instrument, Heartbeat(host="d", version="1")).commands == []
    agent.close()


def test_an_operator_and_the_staff_set_a_beamtime_up(shell: Shell, service: RunningService) -> None:
    made = told(shell("operator", "instrument", "create", "id-29", "ID 29", "--staff", "sam", "--json"))
    assert made["staff"] == ["sam"]
    experiment = told(shell("sam", "experiment", "create", "id-29", "Thaumatin", "--pi", "ada", "--json"))
    active = told(shell("sam", "instrument", "activate", "id-29", experiment["id"], "--json"))
    assert active["active_experiment"] == experiment["id"]
    assert told(shell("sam", "instrument", "pause", "id-29", "--json"))["automation"] is False
    assert told(shell("sam", "instrument", "resume", "id-29", "--json"))["automation"] is True
    assert told(shell("sam", "instrument", "token", "id-29", "--json"))["token"].startswith("bhi_")
    assert told(shell("operator", "instrument", "staff", "id-29", "sam", "ben", "--json"))["staff"] == [
        "sam",
        "ben",
    ]
    added = told(shell("ada", "experiment", "add", experiment["id"], "ben", "--role", "viewer", "--json"))
    assert added["role"] == "viewer"
    assert "ben" in shell("ada", "experiment", "members", experiment["id"]).stdout
    assert shell("ada", "experiment", "remove", experiment["id"], "ben").exit_code == 0
    for given, kept in (([1.5], 1_500_000_000), ([], None)):
        limited = told(shell("sam", "experiment", "quota", experiment["id"], *given, "--json"))
        assert limited["quota"] == kept
    state = told(shell("sam", "experiment", "state", experiment["id"], "processing", "--json"))
    assert state["state"] == "processing"
    assert told(shell("sam", "instrument", "activate", "id-29", "--json"))["active_experiment"] is None
    assert "Thaumatin" in shell("ada", "experiment", "list").stdout
    assert "ID 29" in shell("ada", "instrument", "list").stdout


def test_somebody_works_on_a_dataset(
    shell: Shell, service: RunningService, beamtime: Beamtime, tmp_path: Path
) -> None:
    dataset = service.dataset(beamtime)
    granted = shell(
        "operator", "licence", "create", "lab-1", "Lab", "--instrument", beamtime.instrument, "--cpu-hours", 9
    )
    assert granted.exit_code == 0
    assert told(shell("operator", "licence", "grant", "lab-1", 1, "--json"))["granted"] == 36000
    assert "lab-1" in shell("ada", "licence", "sponsors", beamtime.experiment).stdout
    for name, there in ((dataset.name[1:].upper(), True), ("%", False)):
        listed = shell("ada", "experiment", "datasets", beamtime.experiment, "--name", name)
        assert ("4/4" in listed.stdout) == there

    rule = told(
        shell(
            *("sam", "trigger", "create", beamtime.instrument, "Echo", "--event", "dataset.complete"),
            *("--template", TEMPLATE, "--profile", "cpu-1", "--sponsor", "lab-1", "--set", "word=by rule"),
            *("--kind", "rotation", "--json"),
        )
    )
    assert rule["parameters"] == {"word": "by rule"}
    assert told(shell("sam", "trigger", "disable", rule["id"], "--json"))["enabled"] is False
    assert "Echo" in shell("ada", "trigger", "list", beamtime.instrument).stdout
    assert shell("sam", "trigger", "delete", rule["id"]).exit_code == 0

    job = told(
        shell(
            *("ada", "job", "submit", beamtime.experiment, TEMPLATE, dataset.id),
            *("--sponsor", "lab-1", "--set", "word=good [morning]", "--json"),
        )
    )
    followed = shell("ada", "job", "log", job["id"], "--follow")
    assert "good [morning]" in followed.stdout
    assert told(shell("ada", "job", "show", job["id"], "--json"))["state"] == "finished"
    assert "finished" in shell("ada", "job", "show", job["id"]).stdout
    assert "said.txt" in shell("ada", "job", "files", job["id"]).stdout
    to = tmp_path / "said"
    assert shell("ada", "job", "get", job["id"], "said.txt", to).exit_code == 0
    assert to.read_text() == "good [morning]"
    again = told(shell("ada", "job", "rerun", job["id"], "--set", "word=fail", "--json"))
    assert (again["parent"], again["parameters"]) == (job["id"], {"word": "fail"})
    shell("ada", "job", "log", again["id"], "-f")
    listed = shell("ada", "job", "list", "--experiment", beamtime.experiment, "--name", dataset.name)
    assert "told to fail" in listed.stdout
    assert "No jobs." in shell("ada", "job", "list", "--name", "no such dataset").stdout
    assert "charge" in shell("sam", "licence", "ledger", "lab-1").stdout
    for form, begins in (("--csv", "licence,jobs,cpu_seconds"), ("--svg", "<svg ")):
        assert shell("sam", "licence", "usage", "--by", "licence", form).stdout.startswith(begins)


def test_somebody_runs_a_notebook_of_their_own(
    shell: Shell, service: RunningService, beamtime: Beamtime
) -> None:
    service.licence(beamtime)
    sponsor = ("--sponsor", f"lab-{beamtime.instrument}")
    first, second = service.dataset(beamtime), service.dataset(beamtime, name="other")
    jobs = told(shell("ada", "job", "submit", beamtime.experiment, TEMPLATE, "--each", *sponsor, "--json"))
    assert {job["inputs"][0]["id"] for job in jobs} == {first.id, second.id}
    ended = [service.client("ada").wait(job["id"], timeout=120) for job in jobs]
    v4: Any = nbformat.v4
    tagged = v4.new_code_cell("jobs = []\nfactor = 2", metadata={"tags": ["parameters"]})
    printing = v4.new_code_cell("print('times', factor * len(jobs))")
    path = service.data_dir / beamtime.experiment / "shared" / "both.ipynb"
    path.write_text(v4.writes(v4.new_notebook(cells=[tagged, printing])))

    assert "shared/both.ipynb" in shell("ada", "template", "list", "--experiment", beamtime.experiment).stdout
    numbers = [job.id for job in ended]
    own = told(
        shell(
            *("ada", "job", "submit", beamtime.experiment, "shared/both.ipynb", *numbers),
            *("--set", "factor=3", *sponsor, "--json"),
        )
    )
    assert (own["notebook"], [one["id"] for one in own["inputs"]]) == ("shared/both.ipynb", numbers)
    assert service.client("ada").wait(own["id"], timeout=120).state == "finished"
    assert "times 6" in shell("ada", "job", "log", own["id"]).stdout
    assert f"job {numbers[0]}" in shell("ada", "job", "list", "--experiment", beamtime.experiment).stdout
    result = told(shell("ada", "job", "result", own["id"], "--json"))
    assert result["command"].startswith("papermill template.ipynb notebook.ipynb")
    again = told(
        shell(
            *("ada", "job", "rerun", numbers[0], "--template", "shared/both.ipynb"),
            *("--input", numbers[1], "--json"),
        )
    )
    assert (again["parent"], [one["id"] for one in again["inputs"]]) == (numbers[0], [numbers[1]])
    refused = shell("ada", "job", "submit", beamtime.experiment, "shared/none.ipynb", *sponsor)
    assert refused.exit_code != 0
    assert "shared/none.ipynb" in refused.output
    refused = shell("ada", "job", "submit", beamtime.experiment, TEMPLATE, "raw/x", "--each", *sponsor)
    assert "give their numbers" in refused.output


def test_files_go_there_and_back(shell: Shell, beamtime: Beamtime, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("# Notes")
    sent = told(
        shell("ada", "upload", "send", beamtime.experiment, notes, "--name", "day 1/notes.md", "--json")
    )
    assert sent["state"] == "complete"
    assert "day 1/notes.md" in shell("ada", "experiment", "files", beamtime.experiment, "shared").stdout
    assert "notes.md" in shell("ada", "upload", "list", beamtime.experiment).stdout
    small = [tmp_path / f"{number}.log" for number in range(300)]
    for path in small:
        path.write_text(path.name)
    small.append(tmp_path / " spaced.log")
    small[-1].write_text("x")
    *done, refused = told(shell("ada", "upload", "send-small", beamtime.experiment, *small, "--json"))
    assert [one["upload"]["path"] for one in done] == [f"shared/{number}.log" for number in range(300)]
    assert refused["problem"]["status"] == 400
    listed = shell("ada", "upload", "send-small", beamtime.experiment, small[0], small[-1]).stdout
    assert "shared/0.log" in listed
    assert "must not begin" in listed
    to = tmp_path / "back.md"
    assert shell("ada", "experiment", "get", beamtime.experiment, sent["path"], to).exit_code == 0
    assert to.read_text() == "# Notes"


def test_errors_are_plain_sentences(shell: Shell, service: RunningService, beamtime: Beamtime) -> None:
    refusal = shell("eve", "experiment", "show", beamtime.experiment)
    assert refusal.exit_code == 1
    assert refusal.stderr.startswith("Error: There is no experiment")
    assert shell("ada", "job", "cancel", 10**6).exit_code == 1
    assert (
        shell(
            "ada", "job", "submit", beamtime.experiment, TEMPLATE, 1, "--sponsor", "x", "--set", "y"
        ).exit_code
        == 2
    )

    def outside(**environment: str) -> Result:
        return CliRunner(env={"BEAMHUB_URL": None, "BEAMHUB_TOKEN": None, **environment}).invoke(
            main, ["job", "list"]
        )

    assert "BEAMHUB_URL is not set" in outside().stderr
    assert "No answer from" in outside(BEAMHUB_URL="http://127.0.0.1:9", BEAMHUB_TOKEN="x").stderr
    assert "not the address of a hub" in outside(BEAMHUB_URL="nonsense", BEAMHUB_TOKEN="x").stderr
    assert "no valid credentials" in outside(BEAMHUB_URL=service.url, BEAMHUB_TOKEN="x").stderr


def test_help_imports_nothing_heavy() -> None:
    """`beamhub --help` answers at once, whatever parts are installed."""
    code = (
        "import sys; from click.testing import CliRunner; from beamhub.cli import main; "
        "r = CliRunner().invoke(main, ['--help']); assert 'simulate' in r.output; "
        "print([m for m in ('numpy', 'httpx', 'rich', 'pydantic', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_staff_control_what_an_instrument_sends(
    shell: Shell, service: RunningService, tmp_path: Path
) -> None:
    from tests.unit.test_quarantine import EVIL

    mine = service.beamtime()
    agent, instrument = service.agent(mine), mine.instrument
    reason = ("--reason", "vacuum")
    assert "paused" in shell("sam", "upload", "pause", instrument, *reason).stdout
    assert agent.heartbeat(instrument, Heartbeat(host="d", version="1")).paused
    assert shell("sam", "upload", "resume", instrument).exit_code == 0
    orders = [
        told(shell("sam", "upload", *arguments, "--json"))
        for arguments in (
            ("retry", instrument),
            ("skip", instrument, "a.h5", *reason),
            ("unskip", instrument, "--pattern", "*.h5"),
        )
    ]
    assert [order["kind"] for order in orders] == ["retry", "skip", "unskip"]
    assert "All has been sent." in shell("sam", "upload", "unsent", instrument).stdout

    for name in ("a", "b"):
        (tmp_path / f"{name}_data_000001.h5").write_bytes(EVIL)
        agent.upload(tmp_path / f"{name}_data_000001.h5")
    second, first = told(shell("sam", "upload", "quarantine", instrument, "--json"))
    assert first["path"] in shell("sam", "upload", "release", first["id"], *reason).stdout
    assert second["path"] in shell("sam", "upload", "discard", second["id"], *reason).stdout

    dataset = service.dataset(mine)
    right = service.client("sam").create_experiment(instrument, "The right one", pi="ada").id
    assert right in shell("sam", "experiment", "move-dataset", dataset.id, right, *reason).stdout
    forced = told(shell("sam", "experiment", "finalise", mine.experiment, "--force", *reason, "--json"))
    assert forced["state"] == "done"
    assert shell("ada", "upload", "pause", instrument, *reason).exit_code == 1


def test_rules_are_managed(shell: Shell, service: RunningService) -> None:
    beamtime = service.beamtime()
    dataset = service.dataset(beamtime)
    licence = service.licence(beamtime)
    instrument, experiment = beamtime.instrument, beamtime.experiment
    wish = ("--event", "external", "--name", "now", "--template", TEMPLATE, "--profile", "cpu-1")
    pays = ("--sponsor", licence)
    rule = told(shell("sam", "trigger", "create", instrument, "Echo", *wish, *pays, "--json"))
    assert (
        "Nothing that" in shell("sam", "trigger", "create", instrument, "E", *wish, *pays, "--dry-run").stdout
    )
    wrong = shell("sam", "trigger", "create", instrument, "E", *wish, *pays, "--by", "name", "--wait", 60)
    assert "nothing can be gathered for it" in wrong.stderr
    assert "--wait" in shell("sam", "trigger", "create", instrument, "E", *wish, *pays, "--by", "name").stderr

    changed = told(shell("sam", "trigger", "change", rule["id"], "--set", "word=new", "--json"))
    assert (changed["version"], changed["parameters"]) == (2, {"word": "new"})
    here = ("--experiment", experiment)
    assert told(shell("ada", "trigger", "disable", rule["id"], *here, "--json"))["changed"] == ["enabled"]
    ours = told(shell("ada", "trigger", "change", rule["id"], *here, "--set", "word=ours", "--json"))
    assert (ours["version"], ours["changed"]) == (4, ["enabled", "parameters"])
    assert "enabled, parameters" in shell("ada", "trigger", "list", *here).stdout
    assert told(shell("ada", "trigger", "reset", rule["id"], experiment, "--json"))["changed"] == []
    assert experiment in shell("ada", "trigger", "versions", rule["id"]).stdout
    own = shell("ada", "trigger", "create", experiment, "Own", "--for-experiment", *wish, *pays, "--json")
    assert told(own)["experiment"] == experiment
    assert shell("ada", "trigger", "list").exit_code == 2

    job = told(shell("ada", "job", "submit", experiment, TEMPLATE, dataset.id, *pays, "--json"))
    made = told(shell("sam", "job", "make-rule", job["id"], dataset.id, "--pattern", "x*", "--json"))
    assert (made["rule"]["pattern"], made["backfill"][0]["starts"]) == ("x*", False)
    again = told(shell("sam", "job", "make-rule", job["id"], "--replace", rule["id"], "--json"))
    assert (again["rule"]["id"], again["rule"]["event"]) == (rule["id"], "dataset.complete")
    replayed = told(shell("sam", "trigger", "replay", rule["id"], dataset.id, "--json"))
    assert [(one["starts"], one["job"] is not None) for one in replayed] == [(True, True)]

    assert "Nothing" in shell("sam", "trigger", "missed", instrument).stdout
    assert told(shell("sam", "trigger", "missed", instrument, "--start", "--json")) == []
    assert "not listed" in shell("sam", "trigger", "missed", instrument, "--forget").stdout
    assert "Nothing" in shell("sam", "trigger", "gatherings", rule["id"]).stdout
