"""JupyterHub as beamhub uses it."""

from __future__ import annotations

import os
import pwd
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError
from traitlets.config import Config

from beamhub_hub import auth, proxy
from beamhub_hub.services import routes, services
from beamhub_hub.site import CannotStart, Secrets, Site

HOME_PAGE = "/services/cockpit/voila/render/cockpit.ipynb"


def configure(c: Config, site: Site) -> None:
    """Set up hub, proxy, services and sessions for `site`. What the operator sets after this call wins.

    Makes the state and the data folder, the secrets, and fetches the proxy where it isn't installed yet.
    Raises CannotStart where that fails.
    """
    _make(site.state, 0o700)
    _make(site.data, 0o777)
    state = site.state.resolve()
    try:
        secrets, proxy_command = Secrets.of(state), proxy.install()
    except ValidationError as error:
        raise CannotStart(
            f"{state}/secrets.json is damaged: take it from a backup, or move it away; all sign in anew then."
        ) from error
    except proxy.ProxyMissing as missing:
        raise CannotStart(f"{missing}.") from missing

    c.JupyterHub.bind_url = site.url
    c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{site.hub_port}"
    c.JupyterHub.db_url = f"sqlite:///{state}/jupyterhub.sqlite"
    c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
    c.JupyterHub.default_url = HOME_PAGE
    c.JupyterHub.template_paths = [
        str(files("beamhub_hub") / "pages"),
        str(files("nativeauthenticator") / "templates"),
    ]
    c.ConfigurableHTTPProxy.command = proxy_command
    c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{site.proxy_port}"
    c.ConfigurableHTTPProxy.auth_token = secrets.proxy
    c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")

    auth.roles(c)
    c.JupyterHub.services = services(site, secrets)
    c.Proxy.extra_routes = routes(site)

    # one JupyterLab session per experiment: a named server; the Cockpit has a link to each
    c.JupyterHub.allow_named_servers = True
    c.JupyterHub.spawner_class = "beamhub_spawners.LocalSandboxSpawner"
    c.LocalSandboxSpawner.service_url = site.url
    c.LocalSandboxSpawner.homes = str(state / "homes")


def _make(folder: Path, mode: int) -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    own = f"make it for the user {user} (install -d -o {user} {folder}), or choose another"
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"the folder {folder} can't be made ({error.strerror}): {own}.") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise CannotStart(f"the folder {folder} can't be written to by the user {user}: {own}.")
