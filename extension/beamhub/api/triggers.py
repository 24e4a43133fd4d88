"""Routes of trigger rules: those of an instrument, and what is different in an experiment."""

from __future__ import annotations

from beamhub.api.routes import Call, Paging, page_of, route
from beamhub.schemas import (
    BigInt,
    Event,
    Page,
    Trigger,
    TriggerCall,
    TriggerChange,
    TriggerCreate,
    TriggerGathering,
    TriggerOverride,
    TriggerReplay,
    TriggerTrial,
    TriggerTryOut,
    TriggerVersion,
)


@route("GET", "instruments/{instrument}/triggers")
async def list_triggers(call: Call, instrument: str, query: Paging) -> Page[Trigger]:
    """An instrument's trigger rules."""
    return await call.service.rules.list(call.principal, instrument, **query.model_dump())


@route("POST", "instruments/{instrument}/triggers")
async def create_trigger(call: Call, instrument: str, body: TriggerCreate) -> Trigger:
    """Add a trigger rule to an instrument (staff)."""
    return await call.service.rules.create(call.principal, instrument, body)


@route("POST", "instruments/{instrument}/triggers/try-out", status=200)
async def try_out_trigger(call: Call, instrument: str, body: TriggerTryOut) -> Page[TriggerTrial]:
    """Which jobs this rule would have started on the last datasets, and why none on the others (staff).

    Nothing is started, and the rule is not kept."""
    return await call.service.rules.try_out(call.principal, instrument, body)


@route("POST", "instruments/{instrument}/triggers/call")
async def call_triggers(call: Call, instrument: str, body: TriggerCall) -> Event:
    """Tell the instrument's rules that something outside has happened to a dataset (staff)."""
    return await call.service.rules.call(call.principal, instrument, body)


@route("GET", "experiments/{experiment}/triggers")
async def list_experiment_triggers(call: Call, experiment: str, query: Paging) -> Page[Trigger]:
    """The trigger rules as they apply in an experiment: its instrument's, with what is different here
    (`changed` names it), and its own."""
    found = await call.service.rules.applying(call.principal, experiment)
    return page_of(found, query, lambda rule: f"{rule.id:020d}")


@route("POST", "experiments/{experiment}/triggers")
async def create_experiment_trigger(call: Call, experiment: str, body: TriggerCreate) -> Trigger:
    """Add a trigger rule that is for this experiment alone (its PI, staff)."""
    return await call.service.rules.create_for(call.principal, experiment, body)


@route("POST", "experiments/{experiment}/triggers/try-out", status=200)
async def try_out_experiment_trigger(call: Call, experiment: str, body: TriggerTryOut) -> Page[TriggerTrial]:
    """Which jobs this rule would have started on the last datasets of the experiment, and why none on the
    others (its PI, staff). Nothing is started, and the rule is not kept."""
    return await call.service.rules.try_out_for(call.principal, experiment, body)


@route("PATCH", "experiments/{experiment}/triggers/{trigger}")
async def override_trigger(call: Call, experiment: str, trigger: BigInt, body: TriggerOverride) -> Trigger:
    """Have a rule of the instrument differ in this experiment: a PI may switch it off and on and change its
    parameters and sponsor, staff also its template, profile and priority. null takes a change back."""
    return await call.service.rules.override(call.principal, experiment, trigger, body)


@route("POST", "triggers/{trigger}/replay")
async def replay_trigger(call: Call, trigger: BigInt, body: TriggerReplay) -> Page[TriggerTrial]:
    """Follow a rule now on what has happened to these datasets, files or experiments before (staff; for one
    of an experiment alone, its PI). What a version of the rule has started is not started again."""
    return await call.service.automation.replay(call.principal, trigger, body)


@route("GET", "triggers/{trigger}/gatherings")
async def list_gatherings(call: Call, trigger: BigInt, query: Paging) -> Page[TriggerGathering]:
    """What a rule has gathered or is gathering for jobs on several datasets, newest first."""
    return await call.service.automation.gatherings(call.principal, trigger, **query.model_dump())


@route("GET", "instruments/{instrument}/triggers/missed")
async def list_missed(call: Call, instrument: str) -> Page[TriggerTrial]:
    """The jobs that rules did not start because automation was paused (staff)."""
    return await call.service.automation.missed(call.principal, instrument)


@route("POST", "instruments/{instrument}/triggers/missed", status=200)
async def catch_up(call: Call, instrument: str) -> Page[TriggerTrial]:
    """Start the jobs that were missed while automation was paused (staff). What rules gather waits for more
    first, as ever."""
    return await call.service.automation.catch_up(call.principal, instrument)


@route("DELETE", "instruments/{instrument}/triggers/missed")
async def forget_missed(call: Call, instrument: str) -> None:
    """Leave it at that: what was missed is not listed any longer (staff)."""
    await call.service.automation.forget_missed(call.principal, instrument)


@route("GET", "triggers/{trigger}/versions")
async def list_trigger_versions(call: Call, trigger: BigInt, query: Paging) -> Page[TriggerVersion]:
    """All that a rule was, newest first: who changed it when, and what it said then. A job names the version
    that has started it."""
    return await call.service.rules.versions(call.principal, trigger, **query.model_dump())


@route("PATCH", "triggers/{trigger}")
async def change_trigger(call: Call, trigger: BigInt, body: TriggerChange) -> Trigger:
    """Change a trigger rule, which makes a new version (staff; for one of an experiment alone, its PI)."""
    return await call.service.rules.change(call.principal, trigger, body)


@route("DELETE", "triggers/{trigger}")
async def delete_trigger(call: Call, trigger: BigInt) -> None:
    """Remove a trigger rule; jobs that it started stay (staff; for one of an experiment alone, its PI)."""
    await call.service.rules.delete(call.principal, trigger)
