"""The unit file that comes with the agent, read by systemd itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

UNIT = "beamhub-sync.service"
SHIPPED = "/opt/beamhub/bin/beamhub"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """As shipped, but for the place of the program."""
    text = (files("beamhub.agent") / UNIT).read_text()
    here = Path(sys.executable).with_name("beamhub")
    assert f"ExecStart={SHIPPED} sync /etc/beamhub/sync.toml\n" in text
    path = tmp_path / UNIT
    path.write_text(text.replace(SHIPPED, str(here)))
    return path


def test_systemd_understands_every_line(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    unit.write_text(unit.read_text() + "[Service]\nRestart=sometimes\n")
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert "sometimes" in result.stderr, "it does not look"


def test_what_it_starts_is_there(unit: Path) -> None:
    line = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    command = [*line.removeprefix("ExecStart=").split()[:-1], str(unit.parent / "missing.toml"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "missing.toml can't be read" in result.stderr
