"""What `beamhub doctor` asks: how the service's database is, its last backup, and the cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

BACKUP = "last-backup.json"  # in the folder beside the database: when it was saved last, and where to
OLD = timedelta(days=7)  # after which a backup is worth a word
PATIENCE = 20.0  # seconds that a command of Slurm or MUNGE may take
SLURM_CONF = Path("/etc/slurm/slurm.conf")
_SOCKET = re.compile(r"^\s*AuthInfo\s*=.*\bsocket=([^,\s]+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Condition:
    """How something is, in words; if it isn't fine, also what to do."""

    fine: bool
    message: str


def database(url: str) -> Condition:
    """Of the service's database: whether it can be reached, has the tables of this beamhub, and is whole."""
    from sqlalchemy.exc import DBAPIError

    from beamhub.errors import BeamhubError
    from beamhub.store import Store

    file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else None
    if file is not None and not file.exists():
        return Condition(True, f"none yet: the first start makes {file}, or say which with --database")
    kind = "PostgreSQL" if file is None else f"SQLite, {file}"
    try:
        store = Store(url)
    except BeamhubError as error:
        return Condition(False, str(error))
    try:
        found, newest = store.revisions()
        damage = store.damage()
    except DBAPIError as error:
        told = str(error.orig).strip().partition("\n")[0]
        remedy = (
            "start it, or correct database_url (BEAMHUB_DATABASE_URL)"
            if file is None
            else "look at its permissions; if it is damaged, restore the last backup (beamhub restore)"
        )
        return Condition(False, f"{kind} can't be read ({told}): {remedy}")
    finally:
        store.close()
    if damage:
        remedy = "stop the service and restore the last backup (beamhub restore)"
        return Condition(False, f"{kind} is damaged ({damage}): {remedy}")
    if found is None:
        return Condition(True, f"{kind}: empty, the first start makes its tables")
    if found > newest:
        remedy = "install the version of beamhub that has used it last"
        return Condition(False, f"{kind} has tables {found}, and this beamhub knows {newest}: {remedy}")
    if found < newest:
        when = f"the next start brings them to {newest}; save a backup before"
        return Condition(True, f"{kind}: reachable and whole, tables {found}: {when}")
    return Condition(True, f"{kind}: reachable and whole, tables {found}")


def note_backup(folder: Path, file: Path, created: datetime) -> None:
    """Remembers in the folder beside the database where it was saved to."""
    text = json.dumps({"file": str(file.absolute()), "created": created.isoformat()})
    (folder / BACKUP).write_text(text, encoding="utf-8")


def backup(*folders: Path) -> Condition:
    """How old the last backup is that is noted in one of these folders."""
    noted = [json.loads(path.read_bytes()) for folder in folders if (path := folder / BACKUP).exists()]
    if not noted:
        return Condition(
            False, "none is known of: beamhub backup FILE saves the database while the service runs"
        )
    last = max(noted, key=lambda note: str(note["created"]))
    age = datetime.now(UTC) - datetime.fromisoformat(last["created"])
    number, unit = (age.days, "day") if age.days else (age.seconds // 3600, "hour")
    when = f"{number} {unit}{'s' * (number != 1)}"
    if not Path(last["file"]).exists():
        return Condition(True, f"saved {when} ago to {last['file']}, which has been moved since")
    if age > OLD:
        return Condition(
            False, f"{last['file']} is {when} old: save another (beamhub backup), every night best"
        )
    return Condition(True, f"{last['file']} is {when} old")


def slurm_conf(settings: Mapping[str, object]) -> Path | None:
    """The configuration of the cluster that jobs go to, if any do. `settings`: how the service reaches it."""
    named = settings.get("conf") or os.environ.get("SLURM_CONF")
    if named:
        return Path(str(named))
    return SLURM_CONF if settings or SLURM_CONF.exists() else None


def munge(conf: Path) -> Condition:
    """Whether this machine's MUNGE answers, without which Slurm talks to nobody."""
    missing = [program for program in ("munge", "unmunge") if shutil.which(program) is None]
    if missing:
        return Condition(False, f"{' and '.join(missing)} isn't installed: apt-get install munge")
    found = _SOCKET.search(conf.read_text(errors="replace")) if conf.exists() else None
    socket = [f"--socket={found[1]}"] if found else []
    told = _run(["munge", "--no-input", *socket])
    if told.returncode == 0:
        told = _run(["unmunge", *socket], told.stdout)
    if told.returncode != 0:
        remedy = "start munged (systemctl start munge), with the cluster's /etc/munge/munge.key"
        return Condition(False, f"does not answer ({_said(told)}): {remedy}")
    return Condition(True, "answers")


def slurm(conf: Path) -> Condition:
    """Whether Slurm's controller answers."""
    if shutil.which("scontrol") is None:
        return Condition(False, "its commands aren't installed: apt-get install slurm-client")
    if not conf.exists():
        return Condition(
            False, f"there is no {conf}: copy the cluster's, or correct `conf` in the site's `slurm`"
        )
    told = _run(["scontrol", "ping"], conf=conf)
    if told.returncode != 0 or " is UP" not in told.stdout:
        remedy = "start slurmctld, or correct SlurmctldHost"
        return Condition(False, f"the controller named in {conf} does not answer ({_said(told)}): {remedy}")
    return Condition(True, f"the controller named in {conf} answers")


def _run(command: list[str], given: str = "", conf: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"SLURM_CONF": str(conf)} if conf else {})}
    try:
        return subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"nothing within {PATIENCE:.0f} s")


def _said(told: subprocess.CompletedProcess[str]) -> str:
    lines = (told.stderr.strip() or told.stdout.strip()).splitlines()
    return lines[-1].strip()[:200] if lines else "without a word"
