"""The service itself: how it is, who the caller is to it, what there is for jobs."""

from __future__ import annotations

from beamhub.client.wire import Wire
from beamhub.schemas import Health, Me, Profile, RunnerState


class Service(Wire):
    def health(self) -> Health:
        return self._get(Health, "health")

    def metrics(self) -> str:
        """The service in numbers, as Prometheus reads them."""
        return self._call("GET", "metrics").text

    def me(self) -> Me:
        return self._get(Me, "me")

    def runners(self) -> list[RunnerState]:
        """What there is for jobs now, by where they run."""
        return self._list(RunnerState, "runners")

    def profiles(self) -> list[Profile]:
        return self._list(Profile, "profiles")
