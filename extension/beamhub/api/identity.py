"""From whoever the Jupyter Server has authenticated to a principal of the service."""

from __future__ import annotations

from jupyter_server.auth import User

from beamhub.access import Principal


def principal_of(user: User) -> Principal:
    """JupyterHub's identity provider attaches the hub's model of the user: administrators of the hub and its
    services operate the facility. A user without that model is just somebody of that name."""
    hub_user = getattr(user, "hub_user", {})
    if hub_user.get("kind") == "service":
        return Principal(name=f"service:{hub_user['name']}", kind="service", operator=True)
    return Principal(name=user.username, kind="user", operator=hub_user.get("admin") is True)


def bearer_token(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer …` header."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
