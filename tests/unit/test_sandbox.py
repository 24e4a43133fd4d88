"""The sandbox: what is inside, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from beamhub import sandbox


def run(
    script: str, cwd: Path, *, environment: Mapping[str, str] | None = None, **doors: object
) -> subprocess.CompletedProcess[str]:
    command = sandbox.command(["/bin/sh", "-c", script], cwd=cwd, **doors)  # type: ignore[arg-type]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False
    )


def test_sandboxes_work_here() -> None:
    assert sandbox.works() == ""


def test_of_two_doors_the_deeper_one_decides(tmp_path: Path) -> None:
    experiment = tmp_path / "data" / "experiment"
    job = experiment / "processed" / "1"
    for folder in (job, experiment / ".incoming", tmp_path / "data" / "other", tmp_path / "state"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("content")
    done = run(
        f"cat {experiment}/processed/1/file; echo new > {job}/new;"
        f"(echo x > {experiment}/x) 2>/dev/null || echo read-only;"
        f"ls -A {experiment} {tmp_path}/data {tmp_path}",
        job,
        read_write=[job],
        read_only=[experiment],
        hide=[tmp_path / "data", tmp_path / "state", experiment / ".incoming"],
    )
    assert done.stderr == ""
    assert "content" in done.stdout
    assert "read-only" in done.stdout
    assert "other" not in done.stdout
    assert (job / "new").read_text() == "new\n"
    assert not (experiment / "x").exists()
    assert run(f"cat {tmp_path}/state/file", job, read_only=[job]).returncode != 0
    assert run(f"ls -A {experiment}/.incoming", job, read_only=[job]).stdout == ""


def test_nothing_else_is_there(tmp_path: Path) -> None:
    done = run(
        "ls /; cat /etc/shadow; grep -h Cap /proc/self/status; ls -d /proc/[0-9]*; id -u",
        tmp_path,
        read_only=[tmp_path],
    )
    entries = set(done.stdout.split())
    assert not entries & {"home", "root", "run", "var", "srv", "mnt", "sys", "boot"} - {
        path.parts[1] for path in (*sandbox.software(), tmp_path)
    }
    assert "root:" not in done.stdout
    capabilities = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("CapEff")]
    assert capabilities == ["0" * 16]
    assert len([entry for entry in entries if entry.startswith("/proc/")]) < 6


def test_the_network_is_another_one(tmp_path: Path) -> None:
    script = "cat /proc/net/dev"
    assert "eth" not in run(script, tmp_path, read_only=[tmp_path]).stdout
    shared = run(script, tmp_path, read_only=[tmp_path], network=True).stdout
    interfaces = {
        line.split(":")[0] for line in Path("/proc/net/dev").read_text().splitlines() if ":" in line
    }
    assert interfaces <= {line.split(":")[0] for line in shared.splitlines()}


def test_python_and_this_software_are_there(tmp_path: Path) -> None:
    command = sandbox.command(
        [sys.executable, "-c", "import beamhub.run, beamhub_notebooks; print('here')"],
        read_only=[tmp_path],
        cwd=tmp_path,
        env={"PATH": "/usr/bin"},
    )
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "here\n"


def test_the_environment_is_the_callers_or_the_given_one(tmp_path: Path) -> None:
    inherited = run("env", tmp_path, read_only=[tmp_path], environment={"SECRET": "1", "PATH": os.defpath})
    assert "SECRET=1" in inherited.stdout
    given = run("env", tmp_path, read_only=[tmp_path], env={"COLOUR": "red"}, environment={"SECRET": "1"})
    assert "COLOUR=red" in given.stdout
    assert "SECRET" not in given.stdout


def test_paths_are_absolute() -> None:
    with pytest.raises(ValueError, match="absolute"):
        sandbox.command(["true"], read_only=[Path("data")])
