"""Asking for jobs, one or many: what they would take, what has been done already, where they come from."""

from __future__ import annotations

import json
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from beamhub.client import ApiError, Client
from beamhub.schemas import Job, JobsRerun, JobState, Role
from beamhub.testing import TEMPLATE, Beamtime, RunningService


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime(members={"ben": Role.COLLABORATOR})


@pytest.fixture(scope="module")
def licence(service: RunningService, beamtime: Beamtime) -> str:
    return service.licence(beamtime)


@pytest.fixture(scope="module")
def dataset(service: RunningService, beamtime: Beamtime) -> int:
    return service.dataset(beamtime, frames=4).id


@pytest.fixture(scope="module")
def ada(service: RunningService) -> Client:
    return service.client("ada")


@pytest.fixture(scope="module")
def first(ada: Client, beamtime: Beamtime, licence: str, dataset: int) -> Job:
    """Has finished."""
    job = ada.submit(
        beamtime.experiment, TEMPLATE, dataset, sponsor=licence, parameters={"word": "first"}, profile="cpu-1"
    )
    return ada.wait(job.id, timeout=120)


def test_an_identical_job_is_recognised_and_may_be_forced(
    service: RunningService, ada: Client, beamtime: Beamtime, licence: str, dataset: int, first: Job
) -> None:
    ben = service.client("ben")
    assert (first.state, first.repeats) == (JobState.FINISHED, None)
    spent = service.client("sam").licence(licence).charged
    again = ben.rerun(first.id, profile="cpu-2")  # CPUs change nothing of the result
    assert (again.id, again.repeats, again.launched_by) == (first.id, first.id, "ada")
    same = ada.submit(beamtime.experiment, TEMPLATE, dataset, sponsor=licence, parameters={"word": "first"})
    assert same.id == first.id
    with httpx.Client(headers={"Authorization": f"token {service.tokens['ada']}"}) as http:
        answers = [
            http.post(f"{service.api}jobs/{first.id}/rerun", json=body)
            for body in ({}, {"parameters": {"word": "status"}})
        ]
    assert [answer.status_code for answer in answers] == [200, 201]
    assert service.client("sam").licence(licence).charged == spent
    forced = ben.rerun(first.id, force=True)
    assert (forced.repeats, forced.parent, forced.launched_by) == (first.id, first.id, "ben")
    assert forced.id > first.id
    assert ada.wait(forced.id, timeout=120).metrics == first.metrics
    # the newest with a result is the answer then
    assert ada.rerun(first.id).id == forced.id


def test_the_same_on_another_dataset_is_another_job(
    service: RunningService, ada: Client, licence: str, beamtime: Beamtime, first: Job
) -> None:
    other = service.dataset(beamtime, name="other", frames=4)
    job = ada.submit(beamtime.experiment, TEMPLATE, other.id, sponsor=licence, parameters={"word": "first"})
    assert (job.repeats, job.state) == (None, "queued")
    assert job.id != first.id


def test_estimates_come_from_earlier_runs(
    service: RunningService, ada: Client, beamtime: Beamtime, licence: str, dataset: int, first: Job
) -> None:
    found = ada.estimate(
        beamtime.experiment,
        TEMPLATE,
        dataset,
        sponsor=licence,
        parameters={"word": "new"},
        profile="cpu-2",
    )
    assert found.runs >= 1
    assert (found.cpus, found.frames, found.identical) == (2, 4, None)
    assert found.duration
    assert first.started
    assert first.ended
    assert 0 < found.duration.low <= found.duration.likely <= found.duration.high
    assert found.cpu_hours
    assert found.cpu_hours.likely == pytest.approx(2 * found.duration.likely / 3600)
    assert found.most_cpu_hours == pytest.approx(2.0)
    assert found.starts is not None
    assert ada.estimate_rerun(first.id).identical is not None
    poor = service.licence(service.beamtime(), 0)
    with pytest.raises(ApiError) as error:  # as a submission would be
        ada.estimate_rerun(first.id, sponsor=poor)
    assert error.value.status == 422
    with pytest.raises(ApiError) as error:
        service.client("eve").estimate_rerun(first.id)
    assert error.value.status == 404


def test_cpus_that_do_not_help_are_named_before_a_job_is_started(
    service: RunningService, ada: Client, beamtime: Beamtime, licence: str, dataset: int
) -> None:
    scaling = {"parallel": 0, "note": "Its only step uses one."}
    notebook = json.loads((service.folder / "templates" / f"{TEMPLATE}.ipynb").read_text())
    notebook["metadata"]["beamhub"] |= {"title": "Serial", "scaling": scaling}
    (service.folder / "templates" / "serial.ipynb").write_text(json.dumps(notebook))

    def hint(template: str, profile: str) -> str:
        return ada.estimate(beamtime.experiment, template, dataset, sponsor=licence, profile=profile).hint

    assert hint("serial", "cpu-2") == (
        "2 CPUs are hardly faster than 1, says the template. Its only step uses one."
    )
    assert hint("serial", "cpu-1") == ""
    assert hint(TEMPLATE, "cpu-2") == ""  # it says nothing of CPUs


def test_where_a_job_comes_from(ada: Client, first: Job) -> None:
    child = ada.rerun(first.id, parameters={"word": "child"}, profile="cpu-2")
    grandchild = ada.rerun(child.id, parameters={"word": "grandchild"})
    found = ada.lineage(grandchild.id)
    assert [one.id for one in found.ancestors] == [child.id, first.id]
    assert found.children == []
    assert [(one.name, one.before, one.after) for one in found.differences] == [
        ("word", "child", "grandchild")
    ]
    assert found.notebook == []
    found = ada.lineage(child.id)
    assert [one.id for one in found.children] == [grandchild.id]
    assert {one.name for one in found.differences} == {"word", "profile"}
    assert child.id in [one.id for one in ada.lineage(first.id).children]
    assert ada.lineage(first.id).differences == []


def test_many_jobs_at_once_each_for_itself(service: RunningService, ada: Client, first: Job) -> None:
    found = ada.rerun_all(JobsRerun(jobs=[first.id, 999_999, first.id], parameters={"word": "bulk"}))
    assert [one.asked for one in found] == [first.id, 999_999]
    job, problem = found[0].job, found[1].problem
    assert job
    assert (job.parent, job.parameters) == (first.id, {"word": "bulk"})
    assert problem
    assert problem.status == 404
    assert "no job 999999" in problem.detail
    ada.wait(job.id, timeout=120)
    found = ada.cancel_all([first.id, job.id], "by mistake")
    assert [one.problem.status for one in found if one.problem] == [409, 409]
    assert all(one.problem for one in service.client("eve").cancel_all([first.id]))


def test_a_log_is_followed_through_a_restart_until_the_job_ends(own_service: RunningService) -> None:
    service = own_service
    beamtime = service.beamtime()
    licence, dataset = service.licence(beamtime), service.dataset(beamtime)
    ada = service.client("ada")
    go = service.data_dir / beamtime.experiment / "raw" / "go"
    _slow(service, go)
    job = ada.submit(beamtime.experiment, "slow", dataset.id, sponsor=licence)
    lines = _Lines(ada, job.id)
    lines.until("one")
    service.kill()
    service.start()
    go.touch()
    whole = lines.rest()
    assert whole.count("one") == whole.count("two") == 1
    assert ada.job(job.id).state is JobState.FINISHED
    assert "".join(islice(ada.follow_log(job.id), 100)) == whole  # of one that has ended: all, and no waiting
    steps = [step.state for step in ada.history(job.id)]
    assert steps == ["pending", "queued", "running", "finished"]
    [attempt] = ada.attempts(job.id)
    assert (attempt.number, attempt.outcome) == (1, "finished")
    assert attempt.cpu_seconds == ada.job(job.id).cpu_seconds
    assert attempt.host
    lineage = ada.lineage(job.id)
    assert (lineage.ancestors, lineage.children) == ([], [])


class _Lines:
    """Follows a job's log in a thread."""

    def __init__(self, client: Client, job: int) -> None:
        self._text = ""
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._follow, args=(client, job))
        self._thread.start()

    def _follow(self, client: Client, job: int) -> None:
        for text in client.follow_log(job):
            with self._grown:
                self._text += text
                self._grown.notify_all()

    def until(self, word: str) -> None:
        with self._grown:
            assert self._grown.wait_for(lambda: word in self._text, timeout=120)

    def rest(self) -> str:
        self._thread.join(timeout=120)
        assert not self._thread.is_alive()
        return self._text


def _slow(service: RunningService, go: Path) -> None:
    """A template that says two words, the second when a file is there."""
    import nbformat

    v4: Any = nbformat.v4
    notebook = v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "beamhub": {
                "title": "Slow",
                "technique": "testing",
                "description": "Takes its time.",
                "parameters": {"type": "object", "additionalProperties": False, "properties": {}},
            },
        },
        cells=[
            v4.new_code_cell("data = ''\ncpus = 1", metadata={"tags": ["parameters"]}),
            v4.new_code_cell(
                "import time\nfrom pathlib import Path\nprint('one', flush=True)\n"
                f"while not Path({str(go)!r}).exists():\n    time.sleep(0.05)\nprint('two')"
            ),
        ],
    )
    (service.folder / "templates" / "slow.ipynb").write_text(v4.writes(notebook))
