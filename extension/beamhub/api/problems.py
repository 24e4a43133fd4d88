"""Refusals as RFC 9457 has them: what was wrong, and what to do now."""

from __future__ import annotations

from http import HTTPStatus

from pydantic import ValidationError
from tornado.web import HTTPError

from beamhub.errors import BeamhubError, Invalid, Unavailable
from beamhub.schemas import Problem

KNOWN = {status.value for status in HTTPStatus}  # of HTTP; tus has one of its own


class Refusal(BeamhubError):  # noqa: N818 (named like the others)
    """An error of HTTP itself, rather than of the domain."""

    def __init__(self, status: int, detail: str, remedy: str = "", **headers: str) -> None:
        super().__init__(detail, remedy)
        self.status = status  # type: ignore[misc] # here it differs from one to the next
        self.title = HTTPStatus(status).phrase  # type: ignore[misc]
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def invalid(error: ValidationError, where: str) -> Invalid:
    """What pydantic found wrong with this part of a request."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    fields = [".".join(map(str, e["loc"])) or e["msg"] for e in found]
    return Invalid(
        f"What is wrong with the {where}: {', '.join(fields)}.",
        "Correct what `errors` names; openapi.json describes what is expected.",
        errors=[{"field": ".".join(map(str, e["loc"])), "message": e["msg"]} for e in found],
    )


def problem_of(error: BaseException | None) -> tuple[Problem, dict[str, str]]:
    """What may be told of whatever has gone wrong, and the headers that go with it."""
    match error:
        case Refusal():
            return described(error), error.headers
        case Unavailable():
            return described(error), {"Retry-After": str(error.retry_after)}
        case BeamhubError():
            return described(error), {}
        case HTTPError():  # of Tornado, Jupyter Server or the hub's identity provider
            status = error.status_code
            title = HTTPStatus(status).phrase if status in KNOWN else "Error"
            if status in (500, 502):
                return Problem(
                    title="Hub not reachable",
                    status=503,
                    detail="The hub could not be asked who sends this request.",
                    remedy="Try again in a moment; if it stays, tell the facility's operators.",
                ), {"Retry-After": "2"}
            return Problem(title=title, status=status, detail=error.log_message or title), {}
    return Problem(
        title="Internal error",
        status=500,
        detail="The service failed to answer this; its log tells the operators why.",
        remedy="Try again; if it fails again, tell the facility's operators what you did and when.",
    ), {}


def described(error: BeamhubError) -> Problem:
    """An error of the domain, as it is told."""
    return Problem(
        title=error.title, status=error.status, detail=error.detail, remedy=error.remedy, errors=error.errors
    )
