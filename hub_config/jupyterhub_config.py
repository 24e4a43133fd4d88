"""The hub of a facility: what an operator edits. `beamhub.service` beside it starts it."""

from __future__ import annotations

from pathlib import Path

from beamhub_hub import Site, accounts, configure

c = get_config()  # type: ignore[name-defined]  # noqa: F821  # Jupyter gives it to every configuration file

site = Site(
    state=Path("/var/lib/beamhub"),  # databases, secrets, sessions' homes
    data=Path("/data/beamhub"),  # one folder per experiment
    host="127.0.0.1",  # put a TLS-terminating web server in front
    port=8000,
    # database_url="postgresql+psycopg://beamhub@/beamhub",
    # cpus=16,
    # profiles=..., slurm=...  # jobs on a cluster: see "Slurm" in docs/operator.md
    # in_place={"sim-mx": ["/storage/sim-mx"]},  # files there are published without sending them
    # ingest=2,  # processes that take uploads beside the service
    # templates=["/opt/facility/templates"],  # notebooks for everybody
    # require_sandbox=True,  # refuse jobs where bubblewrap doesn't work
    # all others: see "Settings" in docs/operator.md
)
configure(c, site)

# Who may sign in: accounts of beamhub's own. A facility with a directory uses OpenID Connect instead:
#   c.JupyterHub.authenticator_class = "oauthenticator.generic.GenericOAuthenticator"
accounts(c)
c.Authenticator.admin_users = {"operator"}
