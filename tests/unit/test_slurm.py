"""What Slurm says, in people's words and in numbers."""

from __future__ import annotations

import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from beamhub.runners import Phase, Ref
from beamhub.runners.slurm import SCRIPT, SlurmRunner, SlurmSettings
from beamhub.runners.slurm_lines import (
    AGAIN,
    OWN_END,
    RUNNING,
    WAITING,
    Line,
    account_line,
    elapsed_seconds,
    node_line,
    queue_line,
)
from beamhub.runners.slurm_words import ENDS
from beamhub.schemas import NodeState
from hypothesis import given
from hypothesis import strategies as st

BEGAN = datetime(2030, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def runner(tmp_path: Path) -> SlurmRunner:
    return SlurmRunner(SlurmSettings(patience=0), tmp_path / "state", tmp_path / "data")


@pytest.fixture
def ref(tmp_path: Path) -> Ref:
    folder = tmp_path / "data" / "mx-2030-00001" / "processed" / "7"
    folder.mkdir(parents=True)
    return {"slurm": 12, "name": "beamhub-x-7", "folder": str(folder), "walltime": 90, "memory": 3 << 29}


def line(state: str, why: str = "None", **known: Any) -> Line:
    values: dict[str, Any] = {"begin": BEGAN, "end": BEGAN + timedelta(seconds=30), "elapsed": 30, "cpus": 4}
    return Line(number=12, name="beamhub-x-7", state=state, why=why, **(values | {"nodes": "n1"} | known))


def leave(ref: Ref, name: str, text: str) -> None:
    """A file in the job's folder."""
    Path(str(ref["folder"]), name).write_text(text)


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("idle", NodeState.FREE),
        ("mixed", NodeState.BUSY),
        ("allocated", NodeState.BUSY),
        ("completing", NodeState.BUSY),
        ("idle~", NodeState.OFF),
        ("allocated#", NodeState.STARTING),
        ("mixed#", NodeState.STARTING),
        ("idle%", NodeState.OFF),
        ("idle*", NodeState.UNAVAILABLE),
        ("down*", NodeState.UNAVAILABLE),
        ("drained", NodeState.UNAVAILABLE),
        ("reserved", NodeState.UNAVAILABLE),
    ],
)
def test_nodes_are_free_busy_off_or_not_to_be_had(told: str, state: NodeState) -> None:
    assert node_line(f"n1|{told}|3/5/0/8 ") == ("n1", (state, 5, 8))


@pytest.mark.parametrize("state", sorted(ENDS))
async def test_an_ended_job_is_accounted_for_and_says_why(runner: SlurmRunner, ref: Ref, state: str) -> None:
    leave(ref, ".started", "")
    status = await runner._status(ref, line(state))
    assert (status.phase, status.started, status.ended) == (Phase.GONE, BEGAN, BEGAN + timedelta(seconds=30))
    assert status.cpu_seconds == 120
    assert status.again == (state in AGAIN)
    assert status.reason.endswith((".", "why."))
    assert "{" not in status.reason


@pytest.mark.parametrize("state", sorted(OWN_END))
async def test_what_slurm_calls_ended_but_has_not_begun_is_started_again(
    runner: SlurmRunner, ref: Ref, state: str
) -> None:
    """As where a node takes it for an earlier job of the same number, or does not see its folder."""
    status = await runner._status(ref, line(state, elapsed=0))
    assert (status.phase, status.again, status.cpu_seconds) == (Phase.GONE, True, 0)
    assert status.reason == "Slurm could not launch it on n1."


async def test_a_job_that_never_ran_costs_nothing(runner: SlurmRunner, ref: Ref) -> None:
    status = await runner._status(ref, line("CANCELLED", nodes="", elapsed=0))
    assert (status.phase, status.started, status.cpu_seconds) == (Phase.GONE, None, 0)


async def test_limits_are_told_as_the_profile_has_them(runner: SlurmRunner, ref: Ref) -> None:
    assert (await runner._status(ref, line("TIMEOUT"))).reason == "It reached its time limit of 90 s."
    sentence = "It used more than 1.5 GiB of memory: choose a profile with more."
    assert (await runner._status(ref, line("OUT_OF_MEMORY"))).reason == sentence
    leave(ref, ".started", "")
    leave(ref, "log.txt", "slurmstepd-n1: error: Exceeded job memory limit\n")
    assert (await runner._status(ref, line("FAILED"))).reason == sentence


async def test_a_result_is_waited_for_until_the_storage_shows_it(tmp_path: Path, ref: Ref) -> None:
    runner = SlurmRunner(SlurmSettings(patience=1000), tmp_path / "state", tmp_path / "data")
    for state in OWN_END:
        assert (await runner._status(ref, line(state))).phase is Phase.RUNNING
    assert (await runner._status(ref, line("TIMEOUT"))).phase is Phase.GONE
    leave(ref, "result.json", "{}")
    for state in OWN_END:
        assert (await runner._status(ref, line(state))).phase is Phase.GONE


async def test_what_slurm_has_forgotten_is_started_again_without_a_sign_of_life(
    tmp_path: Path, ref: Ref
) -> None:
    folders = tmp_path / "state", tmp_path / "data"
    patient, hasty = (SlurmRunner(SlurmSettings(silence=silence), *folders) for silence in (3600, 0))
    status = await patient._without(ref)  # perhaps its controller finds its records again
    assert (status.phase, status.reason) == (
        Phase.UNKNOWN,
        "Slurm does not know this job any more: after 3600 s without a sign of life it is started again.",
    )
    status = await hasty._without(ref)
    assert (status.phase, status.again, status.ended) == (Phase.GONE, True, None)
    for name in (".started", "log.txt"):
        leave(ref, name, "")
    assert (await patient._without(ref)).phase is Phase.UNKNOWN
    status = await hasty._without(ref)
    assert (status.phase, status.again) == (Phase.GONE, True)
    assert status.ended is not None  # and is paid for until then
    patient._cancelled[12] = 0.0
    assert (await patient._without(ref)).phase is Phase.GONE
    leave(ref, "result.json", "{}")
    for runner in (patient, hasty):
        status = await runner._without(ref)
        assert (status.phase, status.again, status.ended) == (Phase.GONE, False, None)


async def test_a_job_that_still_gives_signs_of_life_is_not_started_again(tmp_path: Path, ref: Ref) -> None:
    runner = SlurmRunner(SlurmSettings(silence=1000), tmp_path / "state", tmp_path / "data")
    for name in (".started", ".reserve"):
        leave(ref, name, "")
    runner._forgotten[12] = time.monotonic() - 2000
    assert (await runner._without(ref)).phase is Phase.UNKNOWN
    runner._settings = SlurmSettings(silence=0)
    assert (await runner._without(ref)).phase is Phase.GONE


def test_an_attempt_does_not_begin_in_the_folder_of_another(ref: Ref) -> None:
    folder = str(ref["folder"])
    leave(ref, ".attempt-2", "")
    given_up, on = (
        subprocess.run(["sh", SCRIPT, "echo", folder, number, "--hide=a b"], capture_output=True, text=True)
        for number in ("1", "2")
    )
    assert (given_up.returncode, given_up.stdout) == (1, "")
    assert (on.returncode, on.stdout) == (0, f"-m beamhub.node {folder} --hide=a b\n")
    assert Path(folder, ".started").exists()


async def test_a_state_that_is_not_known_yet_ends_nothing_silently(runner: SlurmRunner, ref: Ref) -> None:
    assert (await runner._status(ref, line("NEW_STATE"))).reason == "Slurm says NEW_STATE."
    for state in RUNNING:
        assert (await runner._status(ref, line(state))).phase is Phase.RUNNING
    for state in WAITING | {"CONFIGURING", "SUSPENDED"}:
        assert (await runner._status(ref, line(state))).phase is Phase.WAITING


async def test_what_a_job_waits_for_is_told_anew_only_when_it_matters(runner: SlurmRunner, ref: Ref) -> None:
    begin = datetime.now(UTC) + timedelta(hours=10)

    async def told(why: str, **known: Any) -> str:
        return (await runner._status(ref, line("PENDING", why, **known))).reason

    first = await told("Resources", begin=begin)
    assert first.startswith("Waits for free CPUs and memory in Slurm; it probably starts at ")
    assert await told("Resources", begin=begin + timedelta(minutes=20)) == first
    assert await told("Resources", begin=begin + timedelta(hours=5)) != first
    assert await told("Resources", begin=None) == "Waits for free CPUs and memory in Slurm."
    assert await told("QOSMaxJobsPerUserLimit", begin=None) == (
        "Waits: others of the same quality of service use all that is permitted."
    )
    assert await told("Something|new", begin=None) == "Waits in Slurm (Something|new)."


@given(st.integers(0, 10**7))
def test_elapsed_times_are_read(seconds: int) -> None:
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    shown = f"{hours:02}:{rest // 60:02}:{rest % 60:02}" if hours or days else f"{rest // 60}:{rest % 60:02}"
    assert elapsed_seconds(f"{days}-{shown}" if days else shown) == seconds


@given(st.text())
def test_no_line_of_a_queue_can_do_harm(text: str) -> None:
    elapsed_seconds(text)
    queue_line(text)
    account_line(text)


def test_lines_are_read_whatever_other_jobs_are_called() -> None:
    read = queue_line("12|RUNNING|None|1900000000|1900003600|1:05|4|1899999990|n1|a|b|")
    assert read is not None
    assert (read.name, read.elapsed, read.cpus, read.nodes) == ("a|b|", 65, 4, "n1")
    assert queue_line("12_[1-9]|PENDING|None|N/A|N/A|0:00|1|1899999990||array") is None
    read = account_line("12|CANCELLED by 1000|1900000000|1900000009|9|2|n1|beamhub-x-7")
    assert read is not None
    assert (read.state, read.elapsed, read.cpus) == ("CANCELLED", 9, 2)
    assert account_line("12|RUNNING|1900000000|Unknown|9|2|n1|beamhub-x-7") is None  # not closed
