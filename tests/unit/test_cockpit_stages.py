"""What the next step of an experiment means, said before it is taken."""

from __future__ import annotations

from typing import Any

import pytest
from beamhub.schemas import (
    AgentStatus,
    Experiment,
    ExperimentState,
    Finalisation,
    FinalisationState,
    Instrument,
    Upload,
)
from beamhub_cockpit import stages
from beamhub_cockpit.html import el, text
from beamhub_cockpit.stages import CLOSE, END, REOPEN, Standing

from tests.unit.cockpit import EXPERIMENT, NOW, experiment

SAM = ["experiment.edit", "experiment.read", "instrument.operate"]
ADA = ["experiment.edit", "experiment.read"]


def standing(seen: Experiment, **more: Any) -> Standing:
    agent = AgentStatus(
        host="det", version="1", connected=True, last_seen=NOW, queued_files=12, queued_bytes=10**9
    )
    instrument = Instrument.model_validate(
        {
            "id": "mx-1",
            "title": "MX 1",
            "technique": "mx",
            "staff": ["sam"],
            "automation": True,
            "active_experiment": EXPERIMENT if seen.active else None,
            "agent": agent,
            "created": NOW,
        }
    )
    known: dict[str, Any] = {"arriving": [], "running": 0, "waiting": 0, "finalisation": None}
    return Standing(experiment=seen, instrument=instrument, **(known | more))


def arriving(name: str) -> Upload:
    return Upload.model_validate(
        {
            "id": name,
            "experiment": EXPERIMENT,
            "instrument": "mx-1",
            "path": f"raw/{name}",
            "size": 9,
            "offset": 3,
            "state": "receiving",
            "version": 1,
            "digest": None,
            "error": "",
            "created": NOW,
            "created_by": "instrument:mx-1",
            "ended": None,
        }
    )


def finalised(state: FinalisationState) -> Finalisation:
    return Finalisation(
        experiment=EXPERIMENT,
        state=state,
        differences=[],
        forced=False,
        reason="",
        created=NOW,
        created_by="sam",
        ended=NOW,
    )


def said(step: stages.Step, seen: Standing) -> str:
    return text(el("div", stages.meaning(step, seen))).replace("\u202f", " ")


@pytest.mark.parametrize("state", ExperimentState)
def test_whoever_may_gets_the_next_step_and_nobody_else_one(state: ExperimentState) -> None:
    seen = experiment(state=state, actions=ADA)
    shown = stages.tool(seen)
    assert shown is not None
    assert text(shown) == f"{stages.NEXT[state].label} …"
    assert stages.NEXT[state].to is not state
    assert stages.tool(seen.model_copy(update={"actions": ["experiment.read", "job.run"]})) is None


def test_the_end_of_a_beamtime_says_what_becomes_of_files() -> None:
    told = said(END, standing(experiment(actions=SAM), arriving=[arriving(f"<b>{n}.h5") for n in range(7)]))
    assert "no experiment is" in told
    assert "12 files wait at the instrument (1.0 GB)" in told
    assert "finished where it began" in told
    assert "<b>4.h5" in told
    assert "<b>5.h5" not in told
    assert "and 2 more" in told
    after = said(END, standing(experiment(active=False, actions=SAM)))
    assert "wait" not in after


def test_closing_says_who_can_take_it_back_and_what_is_lost() -> None:
    here = experiment(state=ExperimentState.PROCESSING, active=False, actions=SAM)
    told = said(CLOSE, standing(here, running=1, waiting=2, arriving=[arriving("late.h5")]))
    assert "“Reopen …” takes it back" in told
    assert "1 job runs on" in told
    assert "2 jobs wait, and would start only when it is open again" in told
    assert "is refused from then on" in told
    assert "JupyterLab sessions that are open in it end within seconds" in told
    told = said(CLOSE, standing(here.model_copy(update={"actions": ADA})))
    assert "Only the staff of mx-1 can reopen it" in told
    assert "is refused" not in told
    planned = experiment(state=ExperimentState.PLANNED, active=False, actions=SAM)
    assert "finalised" not in said(CLOSE, standing(planned))  # there is nothing yet


def test_reopening_says_which_jobs_have_waited_for_it() -> None:
    here = experiment(state=ExperimentState.CLOSED, active=False, actions=SAM)
    assert "1 job waits for this" in said(REOPEN, standing(here, waiting=1))
    assert "wait" not in said(REOPEN, standing(here))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (None, "nobody has checked"),
        (FinalisationState.BLOCKED, "nobody has checked"),
        (FinalisationState.HASHING, "just being finalised by sam"),
        (FinalisationState.DONE, "everything has arrived"),
        (FinalisationState.OUTDATED, "something has changed since"),
    ],
)
def test_each_step_says_whether_it_is_finalised(state: FinalisationState | None, told: str) -> None:
    seen = standing(experiment(actions=SAM), finalisation=finalised(state) if state else None)
    for step in (END, CLOSE, REOPEN):
        assert told in said(step, seen)
