"""The unit files that come with the wheel, read by systemd itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = "/opt/beamhub/bin/"
AGENT = ROOT / "extension/beamhub/agent/beamhub-sync.service"
HUB = ROOT / "hub_config/beamhub.service"


def line(unit: Path) -> list[str]:
    """What it starts."""
    [found] = [one for one in unit.read_text().splitlines() if one.startswith("ExecStart=")]
    return found.removeprefix("ExecStart=").split()


def here(shipped: Path, folder: Path) -> Path:
    """As shipped, but for the place of the program."""
    assert line(shipped)[0].startswith(SHIPPED)
    path = folder / shipped.name
    path.write_text(shipped.read_text().replace(SHIPPED, f"{Path(sys.executable).parent}/"))
    return path


def verify(unit: Path) -> tuple[int, str]:
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("shipped", [AGENT, HUB], ids=lambda path: path.stem)
def test_systemd_understands_every_line(shipped: Path, tmp_path: Path) -> None:
    unit = here(shipped, tmp_path)
    assert verify(unit) == (0, "")
    unit.write_text(unit.read_text() + "[Service]\nRestart=sometimes\n")
    assert "sometimes" in verify(unit)[1], "it does not look"


def test_the_agent_that_it_starts_is_there(tmp_path: Path) -> None:
    command = line(here(AGENT, tmp_path))
    assert command[1:] == ["sync", "/etc/beamhub/sync.toml"]
    command = [*command[:-1], str(tmp_path / "missing.toml"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "missing.toml can't be read" in result.stderr


def test_the_hub_that_it_starts_takes_the_file_that_is_edited(tmp_path: Path) -> None:
    """Up to the first thing that is wrong there, which is told in a sentence."""
    command = line(here(HUB, tmp_path))
    assert command[1:] == ["--config", "/etc/beamhub/jupyterhub_config.py"]
    config = tmp_path / "jupyterhub_config.py"
    text = (ROOT / "hub_config/jupyterhub_config.py").read_text()
    config.write_text(text.replace("# ingest=2", "inghest=2"))
    result = subprocess.run(
        [*command[:-1], config], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "beamhub can't start: Site(…) in jupyterhub_config.py: inghest is no setting" in result.stderr
    assert "did you mean ingest?" in result.stderr
    assert "Traceback" not in result.stderr
