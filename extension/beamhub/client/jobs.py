"""Jobs, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from beamhub.client.wire import Unreachable, Wire, quoted, quoted_path
from beamhub.schemas import (
    Attempt,
    Comparison,
    File,
    Job,
    JobResult,
    JobState,
    JobStep,
    Lineage,
    Page,
    SeriesPage,
)

RETRY = 1.0  # seconds between tries to reach a service that is away


class Jobs(Wire):
    def jobs(
        self,
        experiment: str | None = None,
        *,
        dataset: int | None = None,
        state: JobState | None = None,
        name: str | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Newest first; without an experiment those of all that the caller may see. With `name`, those that
        have it in their title or in the name of a dataset, in any case."""
        return self._list(Job, "jobs", limit, experiment=experiment, dataset=dataset, state=state, name=name)

    def job_page(
        self, experiment: str, *, name: str | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Job]:
        """One page of an experiment's jobs; `after` is the `next` of the page before."""
        return self._get(Page[Job], "jobs", experiment=experiment, name=name, after=after, limit=limit)

    def job(self, job: int) -> Job:
        return self._get(Job, f"jobs/{job}")

    def attempts(self, job: int) -> list[Attempt]:
        """The times that a job was queued, one by one."""
        return self._get(Page[Attempt], f"jobs/{job}/attempts").items

    def history(self, job: int) -> list[JobStep]:
        """Every change of a job's state, oldest first."""
        return self._get(Page[JobStep], f"jobs/{job}/history").items

    def lineage(self, job: int) -> Lineage:
        """Which jobs a job was made from, which were made from it, and what differs from its parent."""
        return self._get(Lineage, f"jobs/{job}/lineage")

    def compare(self, *jobs: int) -> Comparison:
        """Jobs side by side."""
        return self._get(Comparison, "comparison", jobs=",".join(map(str, jobs)))

    def wait(self, job: int, *, timeout: float = 3600.0) -> Job:
        """The job once it has ended; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (found := self.job(job)).state.ended:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {found.state} after {timeout:g} s")
            time.sleep(0.25)
        return found

    def job_log(self, job: int, after: int = 0) -> tuple[str, int]:
        """The log's text from byte `after` on, and the byte to go on from."""
        answer = self._call("GET", f"jobs/{job}/log", params={"after": after})
        return answer.text, int(answer.headers["X-Next"])

    def follow_log(self, job: int, after: int = 0, *, patience: float = 300.0) -> Iterator[str]:
        """The log's text from byte `after` on as it is written, until the job has ended. A service that
        can't be reached is asked again for `patience` seconds; nothing is lost or told twice."""
        gone: float | None = None
        while True:
            try:
                answer = self._call("GET", f"jobs/{job}/log", params={"after": after, "wait": 20})
            except Unreachable:
                gone = gone or time.monotonic()
                if time.monotonic() - gone > patience:
                    raise
                time.sleep(RETRY)
                continue
            gone = None
            after = int(answer.headers["X-Next"])
            if answer.text:
                yield answer.text
            elif JobState(answer.headers["X-State"]).ended:
                return

    def series(self, job: int, name: str, after: int = 0) -> SeriesPage:
        """Rows of a series that the job writes, from row `after` on."""
        return self._get(SeriesPage, f"jobs/{job}/series/{quoted(name)}", after=after)

    def notebook(self, job: int, format: Literal["html", "ipynb"] = "ipynb") -> str:  # noqa: A002
        return self._call("GET", f"jobs/{job}/notebook", params={"format": format}).text

    def result(self, job: int) -> JobResult:
        """What came out of an ended job, with software versions, host, and the command that repeats it."""
        return self._get(JobResult, f"jobs/{job}/result")

    def job_files(self, job: int) -> list[File]:
        return self._list(File, f"jobs/{job}/files")

    def job_file(self, job: int, path: str) -> bytes:
        return self._call("GET", f"jobs/{job}/files/{quoted_path(path)}").content

    def download_job_file(self, job: int, path: str, to: Path) -> Path:
        return self._download(f"jobs/{job}/files/{quoted_path(path)}", to)
