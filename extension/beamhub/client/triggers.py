"""Trigger rules."""

from __future__ import annotations

from collections.abc import Sequence

from beamhub.client.wire import Wire, parse, quoted
from beamhub.schemas import (
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


class Triggers(Wire):
    def triggers(self, instrument: str) -> list[Trigger]:
        return self._list(Trigger, f"instruments/{quoted(instrument)}/triggers")

    def create_trigger(self, instrument: str, trigger: TriggerCreate) -> Trigger:
        return self._send(Trigger, "POST", f"instruments/{quoted(instrument)}/triggers", trigger)

    def change_trigger(self, trigger: int, change: TriggerChange) -> Trigger:
        return self._send(Trigger, "PATCH", f"triggers/{trigger}", change)

    def experiment_triggers(self, experiment: str) -> list[Trigger]:
        """The rules as they apply in this experiment; `changed` says what is different there."""
        return self._list(Trigger, f"experiments/{quoted(experiment)}/triggers")

    def create_experiment_trigger(self, experiment: str, trigger: TriggerCreate) -> Trigger:
        """A rule for this experiment alone."""
        return self._send(Trigger, "POST", f"experiments/{quoted(experiment)}/triggers", trigger)

    def override_trigger(self, experiment: str, trigger: int, change: TriggerOverride) -> Trigger:
        """Have a rule of the instrument differ in this experiment; null is as on the instrument again."""
        return self._send(Trigger, "PATCH", f"experiments/{quoted(experiment)}/triggers/{trigger}", change)

    def trigger_versions(self, trigger: int) -> list[TriggerVersion]:
        """All that a rule was, newest first."""
        return self._list(TriggerVersion, f"triggers/{trigger}/versions")

    def try_out_experiment_trigger(
        self, experiment: str, rule: TriggerCreate, *, datasets: int = 50
    ) -> list[TriggerTrial]:
        """As `try_out_trigger`, on the experiment's datasets."""
        body = TriggerTryOut(rule=rule, datasets=datasets)
        path = f"experiments/{quoted(experiment)}/triggers/try-out"
        return self._send(Page[TriggerTrial], "POST", path, body).items

    def try_out_trigger(
        self, instrument: str, rule: TriggerCreate, *, datasets: int = 50
    ) -> list[TriggerTrial]:
        """What a rule would have made of what has happened to the last datasets."""
        body = TriggerTryOut(rule=rule, datasets=datasets)
        path = f"instruments/{quoted(instrument)}/triggers/try-out"
        return self._send(Page[TriggerTrial], "POST", path, body).items

    def gatherings(self, trigger: int) -> list[TriggerGathering]:
        """What a rule has gathered or is gathering, newest first."""
        return self._list(TriggerGathering, f"triggers/{trigger}/gatherings")

    def missed_jobs(self, instrument: str) -> list[TriggerTrial]:
        """The jobs that rules did not start because automation was paused."""
        path = f"instruments/{quoted(instrument)}/triggers/missed"
        return parse(Page[TriggerTrial], self._call("GET", path)).items

    def catch_up(self, instrument: str) -> list[TriggerTrial]:
        """Start the jobs that were missed while automation was paused."""
        path = f"instruments/{quoted(instrument)}/triggers/missed"
        return self._send(Page[TriggerTrial], "POST", path).items

    def forget_missed(self, instrument: str) -> None:
        """Leave it at that."""
        self._call("DELETE", f"instruments/{quoted(instrument)}/triggers/missed")

    def replay_trigger(
        self,
        trigger: int,
        datasets: Sequence[int] = (),
        *,
        files: Sequence[str] = (),
        experiments: Sequence[str] = (),
    ) -> list[TriggerTrial]:
        """Follows a rule now on what has happened to these datasets before."""
        body = TriggerReplay(datasets=list(datasets), files=list(files), experiments=list(experiments))
        return self._send(Page[TriggerTrial], "POST", f"triggers/{trigger}/replay", body).items

    def call_triggers(self, instrument: str, call: TriggerCall) -> Event:
        """Tells an instrument's rules of something outside."""
        return self._send(Event, "POST", f"instruments/{quoted(instrument)}/triggers/call", call)

    def delete_trigger(self, trigger: int) -> None:
        self._call("DELETE", f"triggers/{trigger}")
