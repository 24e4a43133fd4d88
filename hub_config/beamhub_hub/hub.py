"""JupyterHub as beamhub uses it."""

from __future__ import annotations

from importlib.resources import files

from traitlets.config import Config

from beamhub_hub import auth, proxy
from beamhub_hub.services import routes, services
from beamhub_hub.site import Secrets, Site

HOME_PAGE = "/services/cockpit/voila/render/cockpit.ipynb"


def configure(c: Config, site: Site) -> None:
    """Set up hub, proxy, services and sessions for `site`. What the operator sets after this call wins.

    Makes the state and the data folder, the secrets, and fetches the proxy where it isn't installed yet;
    raises beamhub_hub.proxy.ProxyMissing where that fails.
    """
    site.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    site.data.mkdir(parents=True, exist_ok=True)
    state = site.state.resolve()
    secrets = Secrets.of(state)

    c.JupyterHub.bind_url = site.url
    c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{site.hub_port}"
    c.JupyterHub.db_url = f"sqlite:///{state}/jupyterhub.sqlite"
    c.JupyterHub.cookie_secret_file = str(state / "cookie_secret")
    c.JupyterHub.default_url = HOME_PAGE
    c.JupyterHub.template_paths = [
        str(files("beamhub_hub") / "pages"),
        str(files("nativeauthenticator") / "templates"),
    ]
    c.ConfigurableHTTPProxy.command = proxy.install()
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
