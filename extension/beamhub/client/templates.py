"""Templates, and members' own notebooks."""

from __future__ import annotations

from beamhub.client.wire import Wire, quoted
from beamhub.schemas import Template


class Templates(Wire):
    def templates(self, experiment: str | None = None) -> list[Template]:
        """By name; with an experiment, also those that its members keep in shared/templates."""
        return self._list(Template, "templates", experiment=experiment)

    def template(self, name: str, experiment: str | None = None) -> Template:
        return self._get(Template, f"templates/{quoted(name)}", experiment=experiment)

    def notebooks(self, experiment: str) -> list[Template]:
        """Members' own notebooks below shared/ that can be run as jobs, by their paths."""
        return self._list(Template, f"experiments/{quoted(experiment)}/notebooks")
