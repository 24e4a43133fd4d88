"""Who may sign in to a demo, and with what: `credentials.json`, for people and for scripts."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from beamhub_hub.site import write_private

PEOPLE = {
    "sam": "staff of the instrument",
    "ada": "principal investigator",
    "ben": "collaborator",
    "eve": "a stranger to the experiment",
}


class Account(BaseModel):
    """One person's ways in. The token is made once the hub runs."""

    model_config = ConfigDict(frozen=True)
    password: str
    token: str = ""


class Credentials(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True)
    url: str
    users: dict[str, Account]
    instrument: str = ""
    experiment: str = ""

    @classmethod
    def of(cls, state: Path, url: str) -> Credentials:
        """Those kept in the state folder, or new ones with random passwords, for the hub at `url`."""
        path = cls.path(state)
        if path.exists():
            return cls.model_validate_json(path.read_text()).model_copy(update={"url": url})
        return cls(url=url, users={name: Account(password=_password()) for name in PEOPLE})

    @staticmethod
    def path(state: Path) -> Path:
        return state / "credentials.json"

    def save(self, state: Path) -> None:
        write_private(self.path(state), self.model_dump_json(indent=2) + "\n")


def _password() -> str:
    """Easily read aloud and typed; 59 bits."""
    return "-".join(
        "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(4)) for _ in range(3)
    )
