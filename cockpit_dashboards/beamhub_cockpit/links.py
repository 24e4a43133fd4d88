"""Where things are, as links in the browser."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode

from beamhub.schemas import Job


@dataclass(frozen=True)
class Links:
    """Links for one viewer; `base` is the hub's prefix ("/")."""

    base: str
    user: str

    def page(self, notebook: str, **query: str | int | None) -> str:
        """A page of the cockpit."""
        given = {k: v for k, v in query.items() if v is not None}
        return f"{self.base}services/cockpit/voila/render/{notebook}.ipynb" + (
            f"?{urlencode(given)}" if given else ""
        )

    def cockpit(self, experiment: str | None = None) -> str:
        return self.page("cockpit", experiment=experiment)

    def job(self, job: int) -> str:
        return self.page("analysis", job=job)

    def compare(self, *jobs: int) -> str:
        return self.page("compare", jobs=",".join(map(str, jobs)))

    def rules(
        self, *, instrument: str | None = None, experiment: str | None = None, job: int | None = None
    ) -> str:
        """The trigger rules of an instrument or as they apply in an experiment; of a job, to make it one."""
        return self.page("rules", instrument=instrument, experiment=experiment, job=job)

    def frame(self, dataset: int, frame: int | None = None) -> str:
        return self.page("viewer", dataset=dataset, frame=frame)

    def frames(self, job: Job) -> str:
        """The viewer on the dataset of a job, to be ended with a frame's number; "" where it has none."""
        dataset = next((i.id for i in job.inputs if i.kind == "dataset"), None)
        return "" if dataset is None else self.frame(dataset) + "&frame="

    def api(self, *parts: str | int, **query: str) -> str:
        """A resource of the API, for downloads."""
        path = "/".join(quote(str(part), safe="/") for part in parts)
        return f"{self.base}services/beamhub/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")

    def job_file(self, job: int, path: str) -> str:
        return self.api("jobs", job, "files", path)

    def session(self, experiment: str, path: str = "") -> str:
        """The experiment's JupyterLab session at a path in the experiment; the hub starts it if needed."""
        whose = f"{quote(self.user, safe='')}/{quote(experiment, safe='')}"
        there = f"{self.base}user/{whose}/lab" + (f"/tree/{quote(path)}" if path else "")
        return f"{self.base}hub/spawn/{whose}?{urlencode({'next': there})}"

    @property
    def home(self) -> str:
        return f"{self.base}hub/home"

    @property
    def sign_out(self) -> str:
        return f"{self.base}hub/logout"
