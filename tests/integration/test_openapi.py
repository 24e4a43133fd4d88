"""The OpenAPI document is true: requests made from it, right and wrong ones, are answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from beamhub.api import ROUTES
from beamhub.api.routes import Route
from beamhub.schemas import BATCH, Role
from beamhub.testing import RunningService, running_service
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode, checks

EXAMPLES = 8  # of each operation, right and wrong
checks.load_all_checks()
schemathesis.serializer.alias(
    ["application/offset+octet-stream", BATCH],
    "application/octet-stream",
)
CHECKS: Any = checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
    ]
)


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service of its own: what is tried there is anything."""
    with running_service(tmp_path_factory.mktemp("explored")) as service:
        beamtime = service.beamtime(members={"ben": Role.VIEWER})
        service.dataset(beamtime)
        service.licence(beamtime)
        yield service


@pytest.fixture(scope="module")
def document(explored: RunningService) -> dict[str, Any]:
    """As anybody gets it."""
    answer = httpx.get(f"{explored.api}openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    return dict(answer.json())


@pytest.fixture(scope="module")
def schema(document: dict[str, Any]) -> Any:
    loaded = schemathesis.openapi.from_dict(document)
    loaded.config.phases.coverage.enabled = False  # bounded: thousands of requests otherwise
    return loaded


def test_every_route_is_described(document: dict[str, Any]) -> None:
    described = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }
    assert set(described) == {route.name for route in ROUTES}
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "/services/beamhub/api/v1"}]
    for operation in described.values():
        assert operation["summary"]
        assert "default" in operation["responses"]


def test_the_schemas_are_json_schema(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    references = set(_references(document))
    assert references == {f"#/components/schemas/{name}" for name in schemas}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _ways() -> Iterator[Any]:
    """Each route asked rightly, and wrongly where there is a wrong way to ask."""
    for route in ROUTES:
        typed = any(adapter.json_schema()["type"] != "string" for adapter in route.parameters.values())
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or typed or route.query or route.body or route.headers:
                yield pytest.param(route, mode, id=f"{route.method} {route.path} {mode.value}")


@pytest.mark.parametrize(("route", "mode"), list(_ways()))
def test_requests_are_answered_as_described(
    explored: RunningService, schema: Any, route: Route, mode: GenerationMode
) -> None:
    operation = schema["/" + route.path.replace(":path", "")][route.method]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def explore(case: Any) -> None:
        headers = {"Authorization": f"token {explored.tokens['operator']}"}
        answer = case.call(base_url=explored.api.rstrip("/"), headers=headers)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400 and case.method != "HEAD":
            assert answer.headers["content-type"] == ["application/problem+json"]
            assert answer.json()["detail"]

    explore()
