"""Configuration of the Jupyter Server that is the beamhub service. All of it comes from its environment."""

from __future__ import annotations

import hashlib
import json
import os
from urllib.parse import urlparse

c = get_config()  # type: ignore[name-defined]  # noqa: F821  # Jupyter gives it to every configuration file
address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])

c.ServerApp.ip = address.hostname
c.ServerApp.port = address.port
c.ServerApp.port_retries = 0
c.ServerApp.base_url = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
c.ServerApp.root_dir = os.getcwd()  # noqa: PTH109  # an empty folder: nothing is served from files
c.ServerApp.open_browser = False
c.ServerApp.allow_root = True
# a browser that has signed in shows the same cookie to all processes of the service
c.ServerApp.cookie_secret = hashlib.sha256(f"cookies {os.environ['JUPYTERHUB_API_TOKEN']}".encode()).digest()
c.ServerApp.answer_yes = True  # the hub stops a service by SIGINT: don't ask back
c.ServerApp.trust_xheaders = True
c.ServerApp.terminals_enabled = False
c.ServerApp.jpserver_extensions = {"beamhub": True}
c.ServerApp.reraise_server_extension_failures = True
c.ServerApp.identity_provider_class = "jupyterhub.singleuser.extension.JupyterHubIdentityProvider"
c.ServerApp.authorizer_class = "beamhub.app.Closed"  # the server's own API is for nobody
# Tornado would look for the XSRF cookie before anybody is authenticated, and refuse every POST that comes
# with a token; Jupyter Server looks for it itself, after authentication, where a cookie was used
c.ServerApp.tornado_settings = {"xsrf_cookies": False}
c.HubOAuth.cache_max_age = 5  # seconds; who loses access loses it soon, and who gains it needn't wait

# the extension finds its folders and database in the environment by itself; the rest is as the site has it
c.BeamhubApp.update(json.loads(os.environ["BEAMHUB_SETTINGS"]))
