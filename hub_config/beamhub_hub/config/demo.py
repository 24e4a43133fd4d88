"""The hub of `beamhub demo`: its site and its people are those that the demo wrote into its state folder."""

from __future__ import annotations

import os
from pathlib import Path

from beamhub_hub import Site, accounts, configure
from beamhub_hub.credentials import Credentials

c = get_config()  # type: ignore[name-defined]  # noqa: F821  # Jupyter gives it to every configuration file

state = Path(os.environ["BEAMHUB_DEMO"])
site = Site.model_validate_json((state / "site.json").read_text())
configure(c, site)
accounts(c, {name: account.password for name, account in Credentials.of(state, site.url).users.items()})
# a session ends with the demo, and the demo ends within seconds
c.JupyterHub.cleanup_servers = True
c.LocalSandboxSpawner.interrupt_timeout = 2
c.LocalSandboxSpawner.term_timeout = 1
