"""The agent's configuration."""

from __future__ import annotations

import ssl
from importlib.resources import files
from pathlib import Path

import pytest
from beamhub.agent.config import (
    NETWORK_FILE_SYSTEMS,
    UNORDERED,
    Config,
    ConfigError,
    Watch,
    file_system,
    load,
)

GOOD = """
[service]
url = "https://hub.example.org"
token_file = "token"
[instrument]
id = "sim-mx"
[[watch]]
path = "data"
[journal]
path = "journal.sqlite"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "token").write_text("secret-token\n")
    (tmp_path / "token").chmod(0o600)
    return tmp_path


def loaded(folder: Path, text: str) -> Config:
    path = folder / "sync.toml"
    path.write_text(text)
    path.chmod(0o600)
    return load(path)


def test_a_short_one_is_enough(folder: Path) -> None:
    config = loaded(folder, GOOD)

    assert config.service.api == "https://hub.example.org/services/beamhub/api/v1/"
    assert config.service.read_token() == "secret-token"
    assert config.watch[0].path == folder / "data"
    assert config.watch[0].settle == 2.0
    assert config.journal.path == folder / "journal.sqlite"
    assert config.upload.parallel == 4
    context = config.service.tls()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_the_example_is_valid(folder: Path) -> None:
    example = (files("beamhub.agent") / "sync.example.toml").read_text()
    short = loaded(folder, example.replace("/data/eiger", "data"))
    full = "\n".join(
        line.removeprefix("# ") if " = " in line else line
        for line in example.replace("/data/eiger", "data").splitlines()
        if "ca_file" not in line
    )
    for table in ("journal", "done"):
        full = full.replace(f"# [{table}]", f"[{table}]")
    (folder / "done-token").write_text("another-token")
    (folder / "done-token").chmod(0o640)
    complete = loaded(folder, full)

    assert short.watch[0].settle == 2.0
    assert short.service.verify
    assert complete.watch[0].exclude == ["scratch/*", "*.log"]
    assert complete.journal.path == Path("/var/lib/beamhub/sim-mx.sqlite")
    assert not complete.service.verify
    assert complete.upload.limit == 200e6
    assert complete.done
    assert complete.done.address == ("127.0.0.1", 8765)
    assert complete.done.read_token() == "another-token"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[service]", "[service", "is not TOML"),
        ('url = "https://hub.example.org"\n', "", "service.url: Field required"),
        ("https://", "ftp://", "service.url: should look like https://hub.example.org"),
        ("hub.example.org", "user:word@hub.example.org", "service.url: should be the hub's address"),
        ('token_file = "token"', "", "service: give either token_file"),
        ('token_file = "token"', 'token_file = "token"\ntoken = "x"', "service: give either token_file"),
        ('token_file = "token"', 'token_file = "nowhere"', "nowhere can't be read: No such file"),
        ('token_file = "token"', 'token_file = "data"', "may be read by others"),
        ('id = "sim-mx"', 'id = "../x"', "instrument.id: String should match"),
        ('id = "sim-mx"', 'id = "sim-mx"\nname = "x"', "instrument.name: Extra inputs"),
        ('path = "data"', 'path = "token"', "token is not a directory"),
        ('path = "data"', 'path = "nowhere"', "nowhere is not a directory"),
        ('path = "data"', 'path = "data"\nsettle = 0', "watch.1.settle: Input should be greater than 0"),
        ('path = "data"', 'path = "data"\nsettle = nan', "watch.1.settle"),
        ('path = "data"', 'path = "data"\nprefix = "../x"', "watch.1.prefix: should be a folder below"),
        ('path = "data"', 'path = "data"\nprefix = "/x"', "watch.1.prefix: should be a folder below"),
        ('path = "data"', 'path = "data"\n[[watch]]\npath = "data/x"', "overlap: watch the upper one only"),
        ('path = "data"', 'path = "data"\n[upload]\nparallel = 33', "upload.parallel: Input should be less"),
        (
            'path = "data"',
            'path = "data"\nexclude = ["scratch/"]',
            "'scratch/' fits no file: patterns are rel",
        ),
        ('path = "data"', 'path = "data"\ninclude = ["/data/*.h5"]', "'/data/.*' fits no file"),
        ('path = "data"', 'path = "data"\ngrow = ["./*.log"]', "'./.*' fits no file"),
        ("[journal]", '[upload]\nlimit = "fast"\n[journal]', 'upload.limit: should look like "200 MB'),
        ("[journal]", '[upload]\nlimit = "0 MB/s"\n[journal]', "upload.limit: should look like"),
        ("[journal]", "[upload]\nlimit = 5\n[journal]", "upload.limit: should look like"),
        ("[journal]", '[done]\nlisten = "127.0.0.1:8765"\n[journal]', "done: .*needs a token_file"),
        ("[journal]", '[done]\nlisten = "127.0.0.1:http"\n[journal]', "done.listen: .*should look like"),
        ("[journal]", '[done]\nlisten = "127.0.0.1:99999"\n[journal]', "done.listen: .*should look like"),
        ("[journal]", '[done]\nlisten = ":1"\ntoken_file = "nowhere"\n[journal]', "nowhere can't be read"),
        ("journal.sqlite", "data/journal.sqlite", "lies in the watched"),
        ("[service]", '[service]\nca_file = "nowhere"', "certificates in .*nowhere can't be read"),
        ("[service]", '[service]\nca_file = "token"', "certificates in .*token can't be read"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=complaint):
        loaded(folder, GOOD.replace(old, new))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644])
def test_a_token_that_others_may_read_is_refused(folder: Path, mode: int) -> None:
    (folder / "token").chmod(mode)
    with pytest.raises(ConfigError, match=rf"token may be read by others \(mode {mode:o}\): `chmod 600"):
        loaded(folder, GOOD)


def test_an_inline_token_makes_the_configuration_a_secret(folder: Path) -> None:
    path = folder / "sync.toml"
    path.write_text(GOOD.replace('token_file = "token"', 'token = "inline-token"'))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"holds the token, .* may be read by others"):
        load(path)
    path.chmod(0o600)

    config = load(path)

    assert config.service.read_token() == "inline-token"
    assert "inline-token" not in repr(config)


@pytest.mark.parametrize("content", ["", "\n", "two words", "tökén", "a\r\nX-Evil: 1"])
def test_a_token_file_without_a_token(folder: Path, content: str) -> None:
    (folder / "token").write_text(content)
    with pytest.raises(ConfigError, match="holds no token"):
        loaded(folder, GOOD)


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sync.toml can't be read"):
        load(tmp_path / "sync.toml")


def test_the_journal_lies_where_systemd_wants_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.split("[journal]")[0]
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/beamhub")
    assert loaded(folder, text).journal.path == Path("/var/lib/beamhub/sim-mx.sqlite")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    assert loaded(folder, text).journal.path == folder / "state/beamhub/sim-mx.sqlite"


def test_plain_http_is_noticed(folder: Path) -> None:
    assert not loaded(folder, GOOD).service.exposed
    assert loaded(folder, GOOD.replace("https", "http")).service.exposed
    local = loaded(folder, GOOD.replace("https://hub.example.org", "http://127.0.0.1:8000/hub-prefix/"))
    assert not local.service.exposed
    assert local.service.api == "http://127.0.0.1:8000/hub-prefix/services/beamhub/api/v1/"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("lyso_master.h5", True),
        ("run 1/lyso_data_000001.h5", True),
        (".lyso_master.h5", False),
        ("lyso_master.h5.tmp", False),
        ("lyso.H5.PART", False),
        ("notes.txt~", False),
        ("notes.txt", False),
        ("scratch/x.h5", False),
        ("deep/scratch/x.h5", True),
        ("deep/log_1.h5", False),
    ],
)
def test_which_files_are_sent(folder: Path, name: str, wanted: bool) -> None:
    watch = Watch.model_validate(
        {"path": "data", "include": ["*.h5", "*.H5*"], "exclude": ["scratch/*", "log_*"], "prefix": "eiger/"},
        context=folder,
    )

    assert watch.wants(name) is wanted
    assert watch.destination(name) == f"eiger/{name}"


@pytest.mark.parametrize("name", ["a.h5", "x/a.h5", "x/y/a.h5", "x/deep/b.cbf", "x/deep/y/b.cbf"])
def test_two_stars_fit_any_depth(folder: Path, name: str) -> None:
    """As in other programs: whoever writes them does not expect the files at the top to be left out."""
    watch = Watch.model_validate({"path": "data", "include": ["**/*.h5", "x/deep/**/b.*"]}, context=folder)

    assert watch.wants(name)
    assert not watch.wants("x/deepb.cbf")


def test_which_folders_are_looked_into(folder: Path) -> None:
    watch = Watch.model_validate({"path": "data", "exclude": ["scratch", "*.cache"]}, context=folder)

    assert watch.wants_folder("run1")
    assert not watch.wants_folder(".hidden")
    assert not watch.wants_folder("run1/.hidden")
    assert not watch.wants_folder("scratch")
    assert not watch.wants_folder("run1/dials.cache")


def test_network_file_systems_are_polled(folder: Path) -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(folder) != ""
    watch = Watch.model_validate({"path": "data"}, context=folder)
    assert watch.polls is False
    assert watch.ordered
    assert UNORDERED < NETWORK_FILE_SYSTEMS
    assert watch.pause == 600
    assert Watch.model_validate({"path": "data", "polling": True}, context=folder).pause == 5


@pytest.mark.parametrize(
    ("text", "rate"),
    [("200 MB/s", 200e6), ("1.5GB/s", 1.5e9), ("64 KiB/s", 65536), ("10 MiB/s", 10 * 2**20), ("9 B/s", 9)],
)
def test_a_limit(folder: Path, text: str, rate: float) -> None:
    assert loaded(folder, f'{GOOD}[upload]\nlimit = "{text}"').upload.limit == rate
    assert loaded(folder, GOOD).upload.limit is None


def test_where_the_detector_may_say_that_it_is_done(folder: Path) -> None:
    port = loaded(folder, f'{GOOD}[done]\nlisten = ":8765"\ntoken_file = "token"').done
    assert port
    assert port.address == ("127.0.0.1", 8765), "not only this machine"
    assert port.socket is None

    socket = loaded(folder, f'{GOOD}[done]\nlisten = "./done.sock"').done
    assert socket
    assert socket.socket == folder / "done.sock"
    assert socket.read_token() is None

    (folder / "token").chmod(0o644)
    with pytest.raises(ConfigError, match=r"may be read by others \(mode 644\): `chmod 640"):
        port.read_token()
