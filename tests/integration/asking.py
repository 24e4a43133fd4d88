"""A beamtime, and how it is asked about."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from beamhub.client import ApiError, Client
from beamhub.schemas import Role
from beamhub.testing import Beamtime, RunningService


@pytest.fixture(scope="module")
def beamtime(service: RunningService) -> Beamtime:
    return service.beamtime(members={"ben": Role.COLLABORATOR})


@pytest.fixture
def ada(service: RunningService) -> Client:
    return service.client("ada")


@pytest.fixture
def http(service: RunningService) -> Iterator[httpx.Client]:
    """Requests as they are on the wire, as ada."""
    headers = {"Authorization": f"token {service.tokens['ada']}"}
    with httpx.Client(base_url=service.api, headers=headers, timeout=30) as client:
        yield client


def refused(error: pytest.ExceptionInfo[ApiError], status: int) -> str:
    """The words of a refusal, which always has some."""
    assert error.value.status == status
    assert error.value.problem.detail
    return error.value.problem.detail
