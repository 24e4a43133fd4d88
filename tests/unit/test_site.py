"""A site's folders, addresses and secrets, and the hub's configuration made from them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from beamhub.app import BeamhubApp
from beamhub.schemas import Profile
from beamhub_hub import Site, accounts, configure
from beamhub_hub.credentials import PEOPLE, Credentials
from beamhub_hub.services import FRESH, services
from beamhub_hub.site import SETTINGS, CannotStart, Secrets, write_private
from pydantic import ValidationError
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

OPERATORS_FILE = Path(__file__).parents[2] / "hub_config" / "jupyterhub_config.py"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(state=tmp_path / "state", data=tmp_path / "data")


def test_secrets_stay_and_are_private(tmp_path: Path) -> None:
    made = Secrets.of(tmp_path)
    assert Secrets.of(tmp_path) == made
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert len({made.service, made.cockpit, made.operator, made.proxy}) == 4


def test_a_service_finds_its_folder_for_temporary_files_empty(site: Site) -> None:
    for service in services(site, Secrets.of(site.state)):
        if "command" in service:
            folder = Path(service["environment"]["TMPDIR"])
            assert folder.is_relative_to(site.state)
            (folder / "voila_killed").mkdir(parents=True)
            start = [*service["command"][: len(FRESH)], "ls", "-A", str(folder)]
            done = subprocess.run(start, env={**os.environ, **service["environment"]}, capture_output=True)
            assert (done.returncode, done.stdout) == (0, b"")
            assert folder.stat().st_mode & 0o777 == 0o700


def test_the_service_is_set_up_as_the_site_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(
        state=tmp_path / "state",
        data=tmp_path / "data",
        cpus=3,
        profiles=(Profile(name="cpu-3", title="3 CPUs", cpus=3, memory=1 << 30, walltime=60),),
        slurm={"timeout": 5.0},
        in_place={"sim-mx": [Path("/storage")]},
        templates=(tmp_path / "templates",),
        require_sandbox=True,
        ready=0,
        stall=60.0,
        patience=5.0,
        uploads_at_once=8,
    )
    environment = {
        **services(site, Secrets.of(site.state))[0]["environment"],
        "JUPYTERHUB_SERVICE_URL": site.service_url,
        "JUPYTERHUB_SERVICE_PREFIX": "/services/beamhub/",
        "JUPYTERHUB_API_TOKEN": "token",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    path = files("beamhub_hub") / "config"
    app = BeamhubApp(config=PyFileConfigLoader("service.py", path=str(path)).load_config())
    assert set(site.settings) == SETTINGS
    assert {name: getattr(app, name) for name in SETTINGS} == site.settings


def test_broken_secrets_arent_replaced(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{}")
    with pytest.raises(ValidationError):
        Secrets.of(tmp_path)
    assert (tmp_path / "secrets.json").read_text() == "{}"


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_credentials_stay(tmp_path: Path) -> None:
    made = Credentials.of(tmp_path, "http://127.0.0.1:8000")
    made.save(tmp_path)
    assert set(made.users) == set(PEOPLE)
    assert len({account.password for account in made.users.values()}) == len(PEOPLE)
    moved = Credentials.of(tmp_path, "http://127.0.0.1:9000")
    assert moved.users == made.users
    assert moved.url == "http://127.0.0.1:9000"


def test_the_database_is_in_the_state_folder_unless_said_otherwise(site: Site) -> None:
    assert site.database == f"sqlite:///{site.state}/beamhub.sqlite"
    other = site.model_copy(update={"database_url": "postgresql+psycopg:///beamhub"})
    assert other.database == "postgresql+psycopg:///beamhub"


def test_only_the_operator_service_and_people_reach_the_service(site: Site) -> None:
    c = Config()
    configure(c, site)
    reaching = [
        role for role in c.JupyterHub.load_roles if "access:services!service=beamhub" in role["scopes"]
    ]
    assert [role["name"] for role in reaching] == ["user", "operator"]
    assert reaching[1]["services"] == ["operator"]


def test_passwords_and_tokens_are_on_no_command_line(site: Site) -> None:
    c = Config()
    configure(c, site.model_copy(update={"database_url": "postgresql+psycopg://beamhub:hush@db/beamhub"}))
    secrets = Secrets.of(site.state)
    line = " ".join(word for service in c.JupyterHub.services for word in service.get("command", []))
    for secret in ("hush", secrets.service, secrets.cockpit, secrets.operator, secrets.proxy):
        assert secret not in line


def test_given_accounts_close_the_sign_up(site: Site) -> None:
    c = Config()
    configure(c, site)
    accounts(c, {"ada": "a password"})
    assert c.NativeAuthenticator.enable_signup is False
    assert c.Authenticator.allowed_users == {"ada"}


def test_the_operators_file_works(tmp_path: Path) -> None:
    text = OPERATORS_FILE.read_text()
    for folder in ("/var/lib/beamhub", "/data/beamhub"):
        assert folder in text
        text = text.replace(folder, str(tmp_path / folder.lstrip("/")))
    (tmp_path / "jupyterhub_config.py").write_text(text)
    c = PyFileConfigLoader("jupyterhub_config.py", path=str(tmp_path)).load_config()
    assert [service["name"] for service in c.JupyterHub.services] == ["beamhub", "cockpit", "operator"]
    assert (tmp_path / "var/lib/beamhub").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stat": "/s", "data": "/d"}, "state is missing; stat is no setting, did you mean state?"),
        ({"state": "/s", "data": "/d", "wholly_else": 1}, "wholly_else is no setting."),
        ({"state": "/s", "data": "/d", "port": 70000}, "port: input should be less than or equal to 65535"),
        ({"state": "/s", "data": "/d", "profiles": [{"name": "a"}]}, "profiles.0.title is missing"),
    ],
)
def test_what_is_wrong_with_the_settings_is_a_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotStart) as told:
        Site(**settings)
    assert str(told.value).startswith(f"beamhub can't start: Site(…) in jupyterhub_config.py: {said}")


def test_folders_and_secrets_that_cannot_be_used_are_a_sentence(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match=r"file/state can't be made \(Not a directory\): make it for the"):
        configure(Config(), site.model_copy(update={"state": tmp_path / "file" / "state"}))
    write_private(site.state / "secrets.json", "{}")
    with pytest.raises(CannotStart, match=r"secrets.json is damaged: take it from a backup"):
        configure(Config(), site)


def test_a_folder_of_somebody_else_is_a_sentence(tmp_path: Path) -> None:
    """Root may write everywhere, so this is somebody else."""
    tmp_path.chmod(0o755)
    script = (
        "import os; from traitlets.config import Config; from beamhub_hub import Site, configure; "
        "os.geteuid() or os.setuid(65534); configure(Config(), Site(state='/root/state', data='/root/data'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "/root/state can't be made (Permission denied): make it for the user" in done.stderr


def test_a_service_without_its_database_says_so_in_a_sentence(site: Site, tmp_path: Path) -> None:
    url = f"postgresql+psycopg://beamhub:hush@/beamhub?host={tmp_path}"
    service = services(site.model_copy(update={"database_url": url}), Secrets.of(site.state))[0]
    environment = {
        "JUPYTERHUB_SERVICE_URL": site.service_url,
        "JUPYTERHUB_SERVICE_PREFIX": "/services/beamhub/",
        "JUPYTERHUB_API_TOKEN": "token",
    }
    done = subprocess.run(
        service["command"],
        env={**os.environ, **environment, **service["environment"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "beamhub can't start: PostgreSQL can't be read (" in done.stderr
    assert "start it, or correct database_url" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hush" not in done.stderr
