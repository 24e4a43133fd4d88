"""The OpenAPI 3.1 document, made from the routes and the models that validate."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from beamhub.api.routes import Route
from beamhub.schemas import Problem

REF = "#/components/schemas/{model}"
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "any text of your own; a repetition with this key gets the first answer, and does nothing",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
SECURITY = {
    "hub": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`token <a JupyterHub token>`, from the hub's page Token",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "service-beamhub",
        "description": "of a browser that is signed in at the hub; writing needs X-XSRFToken too",
    },
    "instrument": {"type": "http", "scheme": "bearer", "description": "the token of an instrument's agent"},
}


def document(routes: Sequence[Route], server: str) -> dict[str, Any]:
    """The API at the URL path `server` as an OpenAPI document."""
    models = _models(routes)
    names, definitions = models_json_schema(
        [(model, mode) for model, mode in models], ref_template=REF, title="beamhub"
    )
    schemas = definitions["$defs"]
    paths: dict[str, Any] = {}
    for route in routes:
        path = "/" + re.sub(r"\{(\w+):path\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, names, schemas)
    for query in {route.query for route in routes if route.query}:
        schemas.pop(_name(names[(query, "validation")]), None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "beamhub",
            "version": importlib.metadata.version("beamhub"),
            "description": "Collaborative analysis for experiments at beamlines and microscopes.",
            "license": {"name": "BSD-3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": server.rstrip("/")}],
        "security": [{name: []} for name in SECURITY],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": SECURITY},
    }


def _models(routes: Sequence[Route]) -> list[tuple[type[BaseModel], Any]]:
    found: dict[tuple[type[BaseModel], str], None] = {(Problem, "serialization"): None}
    for route in routes:
        for model, mode in (
            (route.query, "validation"),
            (route.body, "validation"),
            (route.answer, "serialization"),
        ):
            if model is not None:
                found[model, mode] = None
    return list(found)


def _operation(route: Route, names: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    first, _, rest = route.summary.partition("\n\n")
    first = " ".join(first.split())
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.path.split("/")[0]],
        "summary": first.split(":")[0] if len(first) > 120 else first,
        "parameters": _parameters(route, names, schemas),
        "responses": {
            **{str(status): _success(route, names) for status in (route.status, *route.also)},
            "default": {
                "description": "Refused: what happened, to what, and what to do now (RFC 9457).",
                "content": {
                    "application/problem+json": {"schema": names[(Problem, "serialization")]},
                },
            },
        },
    }
    description = "\n\n".join(filter(None, (first if len(first) > 120 else "", " ".join(rest.split()))))
    if description:
        operation["description"] = description
    if route.body is not None:
        operation["requestBody"] = {
            "required": _has_required(route.body),
            "content": {"application/json": {"schema": names[(route.body, "validation")]}},
        }
    elif route.streams_body:
        operation["requestBody"] = {
            "required": route.method == "PATCH",
            "content": {route.streams_body: {}},
        }
    if route.public:
        operation["security"] = []
    return operation


def _parameters(route: Route, names: Any, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": adapter.json_schema(ref_template=REF),
        }
        for name, adapter in route.parameters.items()
    ]
    if route.query is not None:
        schema = schemas[_name(names[(route.query, "validation")])]
        for name, field in schema["properties"].items():
            described = {k: v for k, v in field.items() if k not in ("title", "description")}
            parameter: dict[str, Any] = {"name": name, "in": "query", "schema": _given(described)}
            if "description" in field:
                parameter["description"] = field["description"]
            if name in schema.get("required", ()):
                parameter["required"] = True
            parameters.append(parameter)
    for name, field in route.headers.items():
        required = name not in ("Upload-Checksum", "Upload-Concat")
        parameters.append({"name": name, "in": "header", "required": required, "schema": field})
    if route.method == "POST" and not route.secret:
        parameters.append(KEY)
    return parameters


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is given or left out; there is no null."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) != 1:
        return schema
    rest = {k: v for k, v in schema.items() if k != "anyOf" and not (k == "default" and v is None)}
    return {**options[0], **rest}


def _success(route: Route, names: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done."}
    content: dict[str, Any] = {}
    for media in route.media:
        content[media] = {"schema": {"type": "string"}} if media.startswith("text/") else {}
    if route.answer is not None:
        content["application/json"] = {"schema": names[(route.answer, "serialization")]}
    if content:
        answer["content"] = content
    return answer


def _has_required(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]
