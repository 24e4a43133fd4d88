"""Where one beamhub lives: its folders, its addresses, its secrets."""

from __future__ import annotations

import os
import secrets
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from beamhub.schemas import Profile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

Port = Annotated[int, Field(ge=1, le=65535)]
Folder = Annotated[Path, AfterValidator(Path.absolute)]
# what of a site the service is told as it stands: traits of beamhub.app.BeamhubApp, by the same names
SETTINGS = frozenset(
    {
        *("cpus", "profiles", "slurm", "in_place", "templates", "require_sandbox", "ready", "stall"),
        *("patience", "uploads_at_once"),
    }
)


class Secrets(BaseModel):
    """Tokens between the parts of one beamhub, made on first use and kept in a file that only its owner
    reads.
    """

    model_config = ConfigDict(frozen=True)
    service: str  # the beamhub service's own, towards the hub
    cockpit: str  # the Cockpit's own, towards the hub
    operator: str  # who holds it may do everything in the service, and manage users and sessions in the hub
    proxy: str  # between the hub and its proxy

    @classmethod
    def of(cls, state: Path) -> Secrets:
        """The secrets kept in `state/secrets.json`; made where there are none.

        Raises ValueError if the file is there but isn't readable as secrets, rather than replacing it:
        everything that was signed with the old ones would stop working.
        """
        path = state / "secrets.json"
        if not path.exists():
            made = cls(**{name: secrets.token_hex(32) for name in cls.model_fields})
            write_private(path, made.model_dump_json(indent=2))
        return cls.model_validate_json(path.read_text())


class CannotStart(SystemExit):
    """Something that an operator has set, or has to make, is wrong.

    It ends the program with one sentence: what an operator's file raises otherwise, JupyterHub tells with
    everything that has led to it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(f"beamhub can't start: {sentence}")


class Site(BaseModel):
    """One beamhub on one machine. Raises CannotStart for settings that can't be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            faults = "; ".join(_fault(one["loc"], one["type"], one["msg"]) for one in error.errors())
            raise CannotStart(
                f"Site(…) in jupyterhub_config.py: {faults}. docs/operator.md has all settings."
            ) from None

    state: Path = Field(
        description="databases, secrets, logs and homes of sessions; nobody but beamhub reads it"
    )
    data: Path = Field(description="one folder per experiment")
    host: str = "127.0.0.1"
    port: Port = Field(8000, description="what people open; the others are for the parts among themselves")
    hub_port: Port = 8081
    proxy_port: Port = 8001
    service_port: Port = 8082
    cockpit_port: Port = 8083
    ingest: int = Field(0, ge=0, le=16, description="processes that take uploads; 0: the service does")
    ingest_host: str = Field("127.0.0.1", description="where they listen, all on one port; agents may use it")
    ingest_port: Port = 8084
    in_place: dict[str, list[Folder]] = Field(
        {}, description="folders of an instrument whose files are published where they lie: {instrument: […]}"
    )
    database_url: str = Field("", description="postgresql+psycopg://…; empty: SQLite in the state folder")
    cpus: int | None = Field(None, ge=1, description="that jobs may use at a time; None: all of the machine")
    profiles: tuple[Profile, ...] = Field(
        (), description="what jobs may ask for, and where they then run; empty: by the machine's CPUs"
    )
    slurm: dict[str, JsonValue] = Field(
        {}, description="how a Slurm cluster is reached: beamhub.runners.slurm.SlurmSettings"
    )
    templates: tuple[Folder, ...] = Field((), description="the facility's own folders of template notebooks")
    require_sandbox: bool = Field(
        False, description="refuse jobs where bubblewrap doesn't work, rather than run them without a sandbox"
    )
    ready: int | None = Field(
        None, ge=0, description="interpreters that wait for jobs of each active experiment; None: two"
    )
    stall: float | None = Field(
        None, gt=0, description="seconds without a file until a dataset counts as stopped; None: 300"
    )
    patience: float | None = Field(
        None, gt=0, description="seconds until a client is given up that sends next to nothing; None: 60"
    )
    uploads_at_once: int | None = Field(
        None, ge=1, description="requests of one sender that may bring bytes at a time; None: 64"
    )

    @property
    def url(self) -> str:
        """What people open."""
        return f"http://{self.host}:{self.port}"

    @property
    def hub_api(self) -> str:
        return f"http://127.0.0.1:{self.hub_port}/hub/api"

    @property
    def service_url(self) -> str:
        """The beamhub service, without the proxy in between: for programs on this machine."""
        return f"http://127.0.0.1:{self.service_port}"

    @property
    def ingest_url(self) -> str:
        """The processes that take uploads, without the proxy in between."""
        return f"http://{self.ingest_host}:{self.ingest_port}"

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the service is told of it."""
        return self.model_dump(mode="json", include=set(SETTINGS), exclude_none=True)

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.state.resolve()}/beamhub.sqlite"


def _fault(place: tuple[int | str, ...], kind: str, message: str) -> str:
    """One complaint of pydantic's, in words."""
    name = ".".join(map(str, place))
    if kind == "extra_forbidden":
        near = get_close_matches(str(place[-1]), Site.model_fields, 1) if len(place) == 1 else []
        return f"{name} is no setting{f', did you mean {near[0]}?' if near else ''}"
    if kind == "missing":
        return f"{name} is missing"
    return f"{name}: {message[:1].lower()}{message[1:]}"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read (mode 600), atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
