"""Metrics of a running service, and who may read them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from beamhub.client import ApiError
from beamhub.schemas import JobState
from beamhub.testing import TEMPLATE, running_service
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.laboratory import COUNT, template

TOKEN = "only-for-metrics"


def test_operators_and_prometheus_read_them_and_nobody_else(tmp_path: Path) -> None:
    with running_service(tmp_path / "service", metrics_token=TOKEN) as service:
        beamtime = service.beamtime()
        dataset, lab = service.dataset(beamtime), service.licence(beamtime)
        ada = service.client("ada")
        job = ada.wait(ada.submit(beamtime.experiment, TEMPLATE, dataset.id, sponsor=lab).id)
        assert job.state is JobState.FINISHED

        def ask(path: str) -> httpx.Response:
            return httpx.get(f"{service.api}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)

        answer = ask("metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert found["beamhub_jobs", "finished"] == 1
        assert found["beamhub_licence_charged_cpu_seconds", lab] == job.cpu_seconds
        assert found["beamhub_uploads", "complete"] == 3
        assert found["beamhub_uploaded_bytes_total",] > 0
        assert found["beamhub_runner_cpus", "local"] == service.cpus
        assert found["beamhub_runner_free_cpus", "local"] == service.cpus
        assert found["beamhub_runner_up", "local"] == 1
        assert found["beamhub_queue_oldest_seconds",] == 0  # nothing waits
        assert found["beamhub_licence_held_cpu_seconds", lab] == 0
        granted = found["beamhub_licence_granted_cpu_seconds", lab]
        assert granted == service.client("sam").licence(lab).granted > 0
        told = found["beamhub_events_total",]
        assert told >= len(ada.past_events(beamtime.experiment)) > 0
        assert "beamhub_events_total" in service.client("operator").metrics()

        template(service.folder / "templates", "count", COUNT)
        jobs = [
            ada.submit(beamtime.experiment, "count", dataset.id, sponsor=lab, parameters={"n": n})
            for n in range(service.cpus + 1)
        ]
        while not all(ada.job(one.id).state is JobState.RUNNING for one in jobs[: service.cpus]):
            time.sleep(0.02)
        since = ada.attempts(jobs[-1].id)[0].queued
        at_least = (datetime.now(UTC) - since).total_seconds()
        [waits] = [
            sample.value
            for family in text_string_to_metric_families(ask("metrics").text)
            for sample in family.samples
            if sample.name == "beamhub_queue_oldest_seconds"
        ]
        assert 0 < at_least <= waits <= (datetime.now(UTC) - since).total_seconds()
        (service.data_dir / beamtime.experiment / "raw" / "go").touch()

        assert ask("experiments").json()["items"] == []
        assert ask(f"jobs/{job.id}").status_code == 404
        assert ask("licences").json()["items"] == []
        for name in ("ada", "sam"):
            with pytest.raises(ApiError) as refused:
                service.client(name).metrics()
            assert refused.value.status == 403
