"""beamhub on JupyterHub: everything an operator's `jupyterhub_config.py` calls.

from beamhub_hub import Site, accounts, configure

c = get_config()
configure(c, Site(state="/var/lib/beamhub", data="/data/beamhub"))
accounts(c)
"""

from __future__ import annotations

from beamhub_hub.auth import accounts
from beamhub_hub.hub import configure
from beamhub_hub.site import Site

__all__ = ["Site", "accounts", "configure"]
