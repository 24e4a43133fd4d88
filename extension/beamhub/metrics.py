"""Metrics: the service in numbers, in Prometheus' text format.

All but `beamhub_on_duty` is read from the store, so that any process of the service tells the same, and
nothing is forgotten when one is started anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from beamhub.schemas import RunnerState
from beamhub.store.numbers import Numbers


def render(numbers: Numbers, runners: Sequence[RunnerState], *, on_duty: bool, now: datetime) -> bytes:
    """As text for Prometheus."""
    return generate_latest(_Once(_families(numbers, runners, on_duty, now)))


class _Once(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(
    numbers: Numbers, runners: Sequence[RunnerState], on_duty: bool, now: datetime
) -> Iterable[Metric]:
    yield InfoMetricFamily("beamhub", "Which beamhub this is.", {"version": version("beamhub")})
    yield GaugeMetricFamily("beamhub_on_duty", "Whether this process runs the jobs.", int(on_duty))
    yield _gauge(
        "beamhub_jobs", "Jobs by state.", "state", {str(state): n for state, n in numbers.jobs.items()}
    )
    waited = (now.astimezone(UTC) - numbers.oldest_queued).total_seconds() if numbers.oldest_queued else 0.0
    yield GaugeMetricFamily(
        "beamhub_queue_oldest_seconds", "How long the oldest queued job has been queued.", max(waited, 0.0)
    )
    for name, words in (
        ("granted", "Granted, without what has expired"),
        ("charged", "Charged for jobs"),
        ("held", "On hold for jobs that wait or run"),
    ):
        yield _gauge(
            f"beamhub_licence_{name}_cpu_seconds",
            f"{words}, by licence.",
            "licence",
            {account.licence: getattr(account, name) for account in numbers.accounts},
        )
    reached = [runner for runner in runners if not runner.reason]
    yield _gauge(
        "beamhub_runner_up",
        "Whether a runner can be reached.",
        "runner",
        {r.name: not r.reason for r in runners},
    )
    yield _gauge(
        "beamhub_runner_cpus", "CPUs that jobs may have.", "runner", {r.name: r.cpus for r in reached}
    )
    yield _gauge(
        "beamhub_runner_free_cpus",
        "CPUs for a job that starts now.",
        "runner",
        {r.name: r.free for r in reached},
    )
    yield CounterMetricFamily("beamhub_events", "Events told.", numbers.events)
    yield _gauge(
        "beamhub_uploads",
        "Uploads by state.",
        "state",
        {str(state): n for state, n in numbers.uploads.items()},
    )
    yield CounterMetricFamily("beamhub_uploaded_bytes", "Bytes of published files.", numbers.uploaded)


def _gauge(name: str, words: str, label: str, values: dict[str, int] | dict[str, bool]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for which, value in values.items():
        family.add_metric([which], value)
    return family
