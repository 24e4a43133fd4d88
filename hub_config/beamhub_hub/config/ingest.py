"""Configuration of a process that takes uploads: that of the service, whose name it uses towards the hub.

The hub starts it as a service without an address; what it tells such a one of itself is replaced here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

c = get_config()  # type: ignore[name-defined]  # noqa: F821  # Jupyter gives it to every configuration file

os.environ.update(
    {
        "JUPYTERHUB_SERVICE_NAME": "beamhub",
        "JUPYTERHUB_SERVICE_PREFIX": f"{os.environ['JUPYTERHUB_BASE_URL']}services/beamhub/",
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:0",  # besides the shared one a server needs its own port
        "JUPYTERHUB_CLIENT_ID": "service-beamhub",
        "JUPYTERHUB_OAUTH_ACCESS_SCOPES": json.dumps(["access:services!service=beamhub"]),
        "JUPYTERHUB_API_TOKEN": os.environ["BEAMHUB_SERVICE_TOKEN"],
    }
)
load_subconfig("service.py", path=str(Path(__file__).parent))  # type: ignore[name-defined]  # noqa: F821  # likewise
c.BeamhubApp.ingest = os.environ["BEAMHUB_INGEST"]
