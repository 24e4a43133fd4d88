"""The instrument and the experiment of the demo, set up through the API as a facility would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import httpx
from beamhub.client import ApiError, Client
from beamhub.schemas import (
    DatasetKind,
    Experiment,
    Instrument,
    Job,
    JobState,
    LicenceCreate,
    TriggerChange,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
)

from beamhub_hub.credentials import Credentials
from beamhub_hub.site import Site, write_private

INSTRUMENT = "sim-mx"
STAFF, PI, COLLABORATOR = "sam", "ada", "ben"
T = TypeVar("T")


@dataclass(frozen=True)
class Beamtime:
    """What is active on the instrument, and the agent's token for it."""

    instrument: Instrument
    experiment: Experiment
    agent_token: str


def prepare(client: Client, state: Path, *, dials: bool) -> Beamtime:
    """Make what the demo needs and isn't there yet; `client` acts as the facility's operator.

    Args:
        state: keeps the agent's token between runs.
        dials: whether DIALS is installed; without it, no job is started that would need it.
    """
    instrument = _get_or_make(
        lambda: client.instrument(INSTRUMENT),
        lambda: client.create_instrument(INSTRUMENT, "Simulated MX beamline", staff=[STAFF]),
    )
    lab = LicenceCreate(
        id="lab-sim-mx", title="Beamline allowance", kind="lab", instruments=[INSTRUMENT], cpu_hours=1000
    )
    _licence(client, lab)
    for user in (PI, COLLABORATOR):
        _licence(
            client,
            LicenceCreate(
                id=f"user-{user}", title=f"Allowance of {user}", kind="user", owner=user, cpu_hours=100
            ),
        )
    rules = {rule.title: rule for rule in client.triggers(INSTRUMENT)}
    profiles = {profile.name for profile in client.profiles()}
    for rule in _rules(lab.id, "cpu-2" if "cpu-2" in profiles else "cpu-1", dials=dials):
        known = rules.get(rule.title)
        if known is None:
            client.create_trigger(INSTRUMENT, rule)
        elif known.enabled != rule.enabled:
            client.change_trigger(known.id, TriggerChange(enabled=rule.enabled))
    if instrument.active_experiment is None:
        made = client.create_experiment(INSTRUMENT, "Lysozyme, tetragonal crystals", PI)
        client.add_member(made.id, COLLABORATOR)
        instrument = client.activate(INSTRUMENT, made.id)
    assert instrument.active_experiment is not None  # noqa: S101  # for mypy; it was just set
    experiment = client.experiment(instrument.active_experiment)
    return Beamtime(instrument, experiment, _agent_token(client, state))


def resume(client: Client, experiment: Experiment, since: datetime) -> list[Job]:
    """Run again the jobs that the end of an earlier demo interrupted: begun before `since`, failed after
    it.
    """
    failed = client.jobs(experiment=experiment.id, state=JobState.FAILED)
    return [
        client.rerun(job.id)
        for job in reversed(failed)
        if job.started is not None and job.ended is not None and job.started < since <= job.ended
    ]


def _rules(sponsor: str, profile: str, *, dials: bool) -> list[TriggerCreate]:
    rotation = TriggerCondition(kind=DatasetKind.ROTATION, min_frames=10)
    return [
        TriggerCreate(
            title="Fast feedback while frames arrive",
            event=TriggerEvent.DATASET_STARTED,
            template="fast_feedback",
            profile="cpu-1",
            sponsor=sponsor,
        ),
        TriggerCreate(
            title="DIALS when a rotation is complete",
            event=TriggerEvent.DATASET_COMPLETE,
            condition=rotation,
            template="dials",
            profile=profile,
            sponsor=sponsor,
            enabled=dials,
        ),
    ]


def _licence(client: Client, licence: LicenceCreate) -> None:
    _get_or_make(lambda: client.licence(licence.id), lambda: client.create_licence(licence))


def _get_or_make(get: Callable[[], T], make: Callable[[], T]) -> T:
    try:
        return get()
    except ApiError as error:
        if error.status != 404:
            raise
        return make()


def _agent_token(client: Client, state: Path) -> str:
    """The token of the instrument's agent: shown by the service once, so it is kept."""
    path = state / "agent" / "token"
    if not path.exists():
        write_private(path, client.new_instrument_token(INSTRUMENT).token)
    return path.read_text()


def user_tokens(site: Site, operator: str, credentials: Credentials) -> Credentials:
    """The credentials with a working API token for everybody; raises httpx.HTTPError if the hub refuses
    one.
    """
    with httpx.Client(base_url=f"{site.hub_api}/", timeout=30) as hub:
        users = {}
        for name, account in credentials.users.items():
            token = account.token
            if not token or not hub.get("user", headers=_bearing(token)).is_success:
                note = {"note": "beamhub demo: credentials.json"}
                answer = hub.post(f"users/{name}/tokens", headers=_bearing(operator), json=note)
                token = answer.raise_for_status().json()["token"]
            users[name] = account.model_copy(update={"token": token})
    return credentials.model_copy(update={"users": users})


def _bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"token {token}"}
