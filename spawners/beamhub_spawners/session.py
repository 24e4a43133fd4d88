"""Configuration of the JupyterLab server of one session."""

from __future__ import annotations

c = get_config()  # type: ignore[name-defined]  # noqa: F821  # Jupyter gives it to every configuration file

c.ServerApp.allow_root = True
c.ServerApp.open_browser = False
c.ServerApp.answer_yes = True
# the service and the dashboards live beside the hub, not in every session
c.ServerApp.jpserver_extensions = {"beamhub": False, "voila.server_extension": False}
c.HubOAuth.cache_max_age = 5  # seconds
# who goes home leaves nothing running: kernels end after two idle hours, the session when nothing has
# happened for four
c.MappingKernelManager.cull_idle_timeout = 2 * 3600
c.MappingKernelManager.cull_connected = True
c.ServerApp.shutdown_no_activity_timeout = 4 * 3600
# nothing is asked of, or told to, anybody outside of the facility (labconfig/ spares people the question)
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
