"""Who may sign in, and what the hub lets them reach. What they may do there is the service's business."""

from __future__ import annotations

from typing import Any

import bcrypt
from jupyterhub.handlers.login import LoginHandler
from nativeauthenticator import NativeAuthenticator
from nativeauthenticator.orm import UserInfo
from traitlets import Dict, Unicode
from traitlets.config import Config

OPERATOR = "operator"  # the hub service whose token manages beamhub as a whole


class Accounts(NativeAuthenticator):  # type: ignore[misc]  # nativeauthenticator has no types
    """User names and passwords in the hub's own database; some of them given from the start."""

    given = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="User names and passwords that work from the start; a changed password replaces the old one.",
        config=True,
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, password in self.given.items():
            account = UserInfo.find(self.db, name)
            if account is None:
                account = UserInfo(username=name, password=b"", is_authorized=True)
                self.db.add(account)
            elif account.is_valid_password(password):
                continue
            account.password = bcrypt.hashpw(password.encode(), bcrypt.gensalt())
        self.db.commit()

    def get_handlers(self, app: Any) -> list[tuple[str, type]]:
        """The pages of NativeAuthenticator; but JupyterHub's own for signing in, as 1.3's fails on
        JupyterHub 6.
        """
        pages = [(path, page) for path, page in super().get_handlers(app) if path != "/login"]
        return [("/login", LoginHandler), *pages]


def accounts(c: Config, given: dict[str, str] | None = None) -> None:
    """Sign-in with accounts of beamhub's own; with `given`, these and nobody else (no sign-up page)."""
    c.JupyterHub.authenticator_class = Accounts
    # an account made on the sign-up page works only once an administrator has allowed it
    c.Authenticator.allow_all = True
    c.NativeAuthenticator.minimum_password_length = 10
    c.NativeAuthenticator.check_common_password = True
    c.NativeAuthenticator.allowed_failed_logins = 5
    c.NativeAuthenticator.seconds_before_next_try = 60
    c.JupyterHub.template_vars = {"own_accounts": True, "sign_up": not given}  # what the pages have links to
    if given:
        c.Accounts.given = given
        c.Authenticator.allowed_users = set(given)  # known to the hub before they sign in for the first time
        c.NativeAuthenticator.enable_signup = False


def roles(c: Config) -> None:
    """Everybody who signs in reaches the service and the Cockpit; the operator token reaches everything."""
    c.JupyterHub.load_roles = [
        {
            "name": "user",
            "description": "everybody who has signed in",
            "scopes": ["self", "access:services!service=beamhub", "access:services!service=cockpit"],
        },
        {
            "name": OPERATOR,
            "description": "manages beamhub as a whole",
            "scopes": [
                "access:services!service=beamhub",
                "admin:users",
                "admin:servers",
                "tokens",
                "list:services",
            ],
            "services": [OPERATOR],
        },
    ]
