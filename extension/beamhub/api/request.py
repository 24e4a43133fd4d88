"""What a request says, beside whose it is: its query, its JSON, its key. Each refuses what makes no sense."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from tornado.httputil import HTTPServerRequest

from beamhub.api.problems import Refusal, invalid
from beamhub.errors import Invalid

KEY = re.compile(r"[\x21-\x7e]{1,255}")


def query_of(request: HTTPServerRequest) -> dict[str, str]:
    """Its query parameters, by name. Raises Invalid."""
    given: dict[str, str] = {}
    for name, values in request.query_arguments.items():
        if name == "_xsrf":
            continue
        if len(values) > 1:
            raise Invalid(f"The query parameter {name!r} is given {len(values)} times.", "Give it once.")
        try:
            given[name] = values[0].decode()
        except UnicodeDecodeError as error:
            raise Invalid(f"The query parameter {name!r} is not UTF-8.", "Encode it.") from error
    return given


def json_of(request: HTTPServerRequest, body: bytes | bytearray) -> Any:
    """What its body says; an empty object where there is none. Raises Refusal."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not body and not kind:
        return {}
    if kind != "application/json":
        raise Refusal(
            415,
            f"The body is {kind or 'of no stated type'}, not JSON.",
            "Send Content-Type: application/json.",
        )
    try:
        return json.loads(body, parse_constant=_no_constant, parse_float=_finite) if body else {}
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not JSON: {error}.", "Send a JSON object.") from error


def key_of(request: HTTPServerRequest) -> str | None:
    """The Idempotency-Key of a POST. Raises Invalid."""
    key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
    if key is not None and not KEY.fullmatch(key):
        raise Invalid("The Idempotency-Key has to be 1 to 255 visible ASCII characters.", "Send another.")
    return key


def navigates(request: HTTPServerRequest) -> bool:
    """Is this a person's browser opening a page, rather than a program calling?"""
    headers = request.headers
    return (
        request.method == "GET"
        and "Authorization" not in headers
        and "text/html" in headers.get("Accept", "")
        and headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
    )


def validated(model: type[BaseModel], value: Any, where: str) -> BaseModel:
    """This part of a request as its model. Raises Invalid."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error, where) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return number
