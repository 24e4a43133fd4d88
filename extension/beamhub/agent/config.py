"""The agent's configuration: one TOML file, checked completely before anything starts."""

from __future__ import annotations

import os
import re
import ssl
import stat
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from beamhub.schemas import DigestAlgorithm, Slug

TEMPORARY = ("*.tmp", "*.temp", "*.part", "*.partial", "*.filepart", "*.swp", "*~")
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4"}
    | {"panfs", "smb3", "wekafs"}
)
# where what another machine writes may be seen in another order than it was written in
UNORDERED = frozenset({"9p", "afs", "cifs", "fuse.sshfs", "nfs", "nfs4", "smb3"})
SERVICE = "/services/beamhub"
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class ConfigError(Exception):
    """The configuration can't be used; the message says where and why."""


def _resolved(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the folder of the TOML file, which `load` gives as the context."""
    return Path(info.context or ".", path.expanduser()).resolve()


def _service_root(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("should look like https://hub.example.org")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("should be the hub's address and nothing else")
    return url.split(SERVICE, 1)[0].rstrip("/")


def _folder_below(prefix: str) -> str:
    parts = [part for part in prefix.split("/") if part]
    if prefix.startswith("/") or any(part.startswith(".") for part in parts):
        raise ValueError("should be a folder below the experiment's raw/, such as microscope-2")
    return "/".join(parts)


def _relative(pattern: str) -> str:
    if not pattern or pattern.startswith(("/", "./", "../")) or pattern.endswith("/"):
        raise ValueError(f"{pattern!r} fits no file: patterns are relative to `path`, such as scratch/*")
    return pattern


def _rate(text: Any) -> Any:
    """Bytes per second, from what people write."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kKMG]?i?B)/s\s*", text) if isinstance(text, str) else None
    rate = float(match[1]) * UNITS.get(match[2], 0) if match else 0
    if rate < 1:
        raise ValueError('should look like "200 MB/s"')
    return rate


def _endpoint(text: str, info: ValidationInfo) -> str:
    """The path of a socket, or host:port; without a host it is this machine alone."""
    if "/" in text:
        return str(_resolved(Path(text), info))
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ValueError('should look like "127.0.0.1:8765", or be the path of a socket')
    return f"{host or '127.0.0.1'}:{port}"


Pattern = Annotated[str, AfterValidator(_relative)]
Location = Annotated[Path, AfterValidator(_resolved)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Service(_Table):
    """Where the data goes, and how the agent shows that it may send it."""

    url: Annotated[str, AfterValidator(_service_root)]
    token: SecretStr | None = None
    token_file: Location | None = None
    ca_file: Location | None = None
    verify: bool = True

    @model_validator(mode="after")
    def _one_token(self) -> Service:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("give either token_file (better) or token")
        return self

    @property
    def api(self) -> str:
        """The address of the service's API, with a slash at its end."""
        return f"{self.url}{SERVICE}/api/v1/"

    @property
    def exposed(self) -> bool:
        """Would token and data travel unencrypted over a network?"""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")

    def read_token(self) -> str:
        """The instrument's token.

        Raises:
            ConfigError: its file can't be read, or others may read it, or it holds no token.
        """
        if self.token is not None:
            text, where = self.token.get_secret_value(), "token under [service]"
        else:
            assert self.token_file is not None  # noqa: S101 (one of the two is there: _one_token)
            private(self.token_file, "the token file")
            text, where = _read(self.token_file, "the token file"), str(self.token_file)
        return _token(text, where, ": make one with `beamhub instrument token <instrument>`")

    def tls(self) -> ssl.SSLContext:
        """Trusts what the system trusts, or the certificates in `ca_file` only."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError(f"the certificates in {self.ca_file} can't be read: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Instrument(_Table):
    """Which instrument's token it is."""

    id: Slug


class Watch(_Table):
    """One directory, with all below it, and which of its files are to be sent."""

    path: Location
    include: list[Pattern] = Field(["*"], min_length=1)
    exclude: list[Pattern] = []
    settle: float = Field(2.0, gt=0, le=3600, description="seconds without a change make a file ready")
    wait_for_files: float = Field(
        60.0, ge=0, le=86_400, description="seconds that a settled HDF5 master waits for what it points to"
    )
    wait_for_writer: float = Field(
        3600.0, ge=0, le=86_400, description="seconds that a settled HDF5 file waits for being closed"
    )
    prefix: Annotated[str, AfterValidator(_folder_below)] = ""  # folder below the experiment's raw/
    grow: list[Pattern] = Field([], description="patterns of files that are sent while they grow")
    in_place: bool = False  # the service sees the directory too, under the same path: nothing is sent
    polling: bool | None = None  # None: on network file systems, which tell nothing of other machines' writes
    rescan: float | None = Field(None, ge=0.1, description="seconds between looks at the whole directory")

    @property
    def polls(self) -> bool:
        return self.polling if self.polling is not None else file_system(self.path) in NETWORK_FILE_SYSTEMS

    @property
    def ordered(self) -> bool:
        """Is what another machine writes there seen in the order it was written in?"""
        return file_system(self.path) not in UNORDERED

    @property
    def pause(self) -> float:
        """Seconds between two looks at the whole directory."""
        return self.rescan or (5.0 if self.polls else 600.0)

    def wants_folder(self, name: str) -> bool:
        """Should the folder `name` (relative, with slashes) be looked into?"""
        return not name.rsplit("/", 1)[-1].startswith(".") and not _matches(name, self.exclude)

    def wants(self, name: str) -> bool:
        """Should the file `name` (relative, with slashes), whose folder is wanted, be sent?"""
        last = name.rsplit("/", 1)[-1]
        return (
            not last.startswith(".")
            and not _matches(last.lower(), TEMPORARY)
            and _matches(name, self.include)
            and not _matches(name, self.exclude)
        )

    def grows(self, name: str) -> bool:
        """Is the file `name` to be sent while it grows, whatever it is?"""
        return _matches(name, self.grow)

    def destination(self, name: str) -> str:
        """What the file `name` is called in the experiment, below raw/."""
        return f"{self.prefix}/{name}" if self.prefix else name


class Sending(_Table):
    """How files are sent."""

    parallel: int = Field(4, ge=1, le=32, description="files in flight, of each directory")
    limit: Annotated[float | None, BeforeValidator(_rate)] = Field(None, description="bytes per second")
    digest: DigestAlgorithm = "xxh128"  # that vouches for each whole file


class Done(_Table):
    """Where a detector's software says that it has finished a file."""

    listen: Annotated[str, AfterValidator(_endpoint)]
    token_file: Location | None = None

    @model_validator(mode="after")
    def _guarded(self) -> Done:
        """Everybody on the machine can reach a port, while a socket is a file with its own permissions."""
        if self.socket is None and self.token_file is None:
            raise ValueError("listening on a port needs a token_file; on a socket (a path), none")
        return self

    @property
    def socket(self) -> Path | None:
        return Path(self.listen) if "/" in self.listen else None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def read_token(self) -> str | None:
        """What callers have to show; None where the socket's permissions decide.

        Raises:
            ConfigError: its file can't be read, or everybody may read it, or it holds no token.
        """
        if self.token_file is None:
            return None
        private(self.token_file, "the token file", group=True)  # the detector's user has to read it, too
        return _token(_read(self.token_file, "the token file"), str(self.token_file))


class JournalFile(_Table):
    """Where the agent keeps its journal; best on a local disk."""

    path: Location


class Config(_Table):
    """All that `beamhub sync` needs to know."""

    service: Service
    instrument: Instrument
    watch: list[Watch] = Field(min_length=1)
    upload: Sending = Sending()
    done: Done | None = None
    journal: JournalFile

    @model_validator(mode="before")
    @classmethod
    def _usual_journal(cls, tables: Any) -> Any:
        """Where systemd says, else where the user's programs keep their state."""
        if (
            isinstance(tables, dict)
            and "journal" not in tables
            and isinstance(tables.get("instrument"), dict)
        ):
            home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
            folder = Path(os.environ.get("STATE_DIRECTORY") or Path(home) / "beamhub")
            tables = {**tables, "journal": {"path": str(folder / f"{tables['instrument'].get('id')}.sqlite")}}
        return tables

    @model_validator(mode="after")
    def _apart(self) -> Config:
        """No file is watched twice, and the agent does not watch itself write."""
        for number, watch in enumerate(self.watch):
            for other in self.watch[:number]:
                if watch.path.is_relative_to(other.path) or other.path.is_relative_to(watch.path):
                    raise ValueError(f"{other.path} and {watch.path} overlap: watch the upper one only")
            if self.journal.path.is_relative_to(watch.path):
                raise ValueError(
                    f"the journal {self.journal.path} lies in the watched {watch.path}: "
                    "put it elsewhere with `path` under [journal]"
                )
        return self


def parse(path: Path) -> Config:
    """Reads a configuration, without a look at the directories and the token that it names.

    Raises:
        ConfigError: one sentence for each thing that is wrong.
    """
    path = path.resolve()
    try:
        tables = tomllib.loads(_read(path, "the configuration"))
        config = Config.model_validate(tables, context=path.parent)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_complaint(e)}" for e in error.errors())) from error
    return config


def load(path: Path) -> Config:
    """Reads a configuration, and checks that the agent can work with it.

    Raises:
        ConfigError: what is wrong.
    """
    config = parse(path)
    if config.service.token is not None:
        private(path, "the configuration, which holds the token,")
    for watch in config.watch:
        if not watch.path.is_dir():
            raise ConfigError(f"{watch.path} is not a directory: it can't be watched")
        if not os.access(watch.path, os.R_OK | os.X_OK):
            raise ConfigError(f"{watch.path} may not be read by this user: it can't be watched")
    config.service.read_token()
    config.service.tls()
    if config.done:
        config.done.read_token()
    return config


def private(path: Path, what: str, *, group: bool = False) -> None:
    """A file with a secret may be read by its owner alone, or by a group as well."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{what} {path} can't be read: {error.strerror}") from error
    if mode & (0o027 if group else 0o077):
        raise ConfigError(
            f"{what} {path} may be read by others (mode {mode:o}): `chmod {640 if group else 600} {path}`"
        )


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as Linux names it; "" where that isn't known."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best = ("", "")
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split(" ")[4].encode("latin-1", "replace").decode("unicode_escape")  # \040 is a space
        if path.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, rest.split(" ", 1)[0])
    return best[1]


def _matches(name: str, patterns: list[str] | tuple[str, ...]) -> bool:
    """A pattern fits the whole relative name, or its last part; `*` fits slashes too, `**/` also nothing."""
    last = name.rsplit("/", 1)[-1]
    return any(
        fnmatchcase(name, meant) or fnmatchcase(last, meant)
        for pattern in patterns
        for meant in {pattern, pattern.replace("**/", "")}
    )


def _token(text: str, where: str, remedy: str = "") -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{where} holds no token{remedy}")
    return token


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} can't be read: {error}") from error


def _complaint(error: Any) -> str:
    place = ".".join(str(part + 1) if isinstance(part, int) else part for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
