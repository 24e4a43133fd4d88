"""Routes: the API as a table.

A route is declared once, by a decorated function: its method and path, and in its annotations the models of
path, query, body and answer. Validation, the Tornado handlers and the OpenAPI document are made from that.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter
from tornado.httputil import HTTPHeaders

from beamhub.access import Principal
from beamhub.api.service import Service
from beamhub.body import Body
from beamhub.schemas import Page, Request

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


class Paging(Request):
    """Which page of a list."""

    after: str | None = Field(None, max_length=2000, description="`next` of the page before")
    # making JSON of a longer page would hold up everybody else for more than 50 ms
    limit: int = Field(100, ge=1, le=500, description="how many items at most")


def page_of(items: Iterable[M], query: Paging, key: Callable[[M], str]) -> Page[M]:
    """The page that is asked for, of a list that is at hand as a whole; `key` is unique and orders it."""
    left = sorted((item for item in items if query.after is None or key(item) > query.after), key=key)
    page = left[: query.limit]
    return Page(items=page, next=key(page[-1]) if len(left) > len(page) else None)


@dataclass(frozen=True)
class Call:
    """One request on its way through a route."""

    service: Service
    principal: Principal
    path: str
    headers: HTTPHeaders
    body: Body  # of a route that streams it


@dataclass(frozen=True)
class Reply(Generic[T]):
    """An answer that needs more than its body."""

    value: T
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """Bytes of some media type."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Download:
    """An open file, closed once it has been sent. A browser shows pictures, and saves anything else."""

    file: BinaryIO
    name: str


@dataclass(frozen=True)
class EventStream:
    """Server-sent events, as blocks of the text/event-stream format; ends when the iterator does."""

    blocks: AsyncGenerator[str]


@dataclass(frozen=True)
class Route:
    method: Method
    path: str
    run: Callable[..., Awaitable[Any]]
    status: int
    also: tuple[int, ...]  # other statuses of an answer like that
    media: tuple[str, ...]  # of answers that no model describes
    streams_body: str | None  # media type of a body that is handed on as it arrives
    public: bool  # asks for no credentials
    secret: bool  # its answer is shown once: never kept, not even for a repetition
    keyed: bool  # its function heeds the Idempotency-Key itself
    headers: Mapping[str, dict[str, Any]]  # that the function reads: name -> JSON Schema
    parameters: Mapping[str, TypeAdapter[Any]]  # of the path
    query: type[BaseModel] | None
    body: type[BaseModel] | None
    answer: Any  # the model, or None where there is no JSON

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def summary(self) -> str:
        return inspect.getdoc(self.run) or ""

    @property
    def pattern(self) -> str:
        """As Tornado has it; `{path:path}` takes slashes too."""
        pattern = re.sub(r"\{(\w+):path\}", r"(?P<\1>.+)", self.path)
        return re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)


ROUTES: list[Route] = []


def _is_model(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, BaseModel)


def route(
    method: Method,
    path: str,
    *,
    status: int | None = None,
    also: tuple[int, ...] = (),
    media: tuple[str, ...] = (),
    streams_body: str | None = None,
    public: bool = False,
    secret: bool = False,
    keyed: bool = False,
    headers: Mapping[str, dict[str, Any]] | None = None,
) -> Callable[[F], F]:
    """Declare a route. The function has the parameters `call`, those of the path, and `query` and `body`.

    `headers` are for the API's description: name -> JSON Schema. Without `status`, 201 for POST, 204 where
    nothing is returned, otherwise 200.
    """

    def declare(function: F) -> F:
        hints = typing.get_type_hints(function, include_extras=True)
        answer = hints.pop("return")
        hints.pop("call")
        query, body = hints.pop("query", None), hints.pop("body", None)
        if typing.get_origin(answer) is Reply:
            (answer,) = typing.get_args(answer)
        if answer is type(None):
            answer = None
        usual = 204 if answer is None else 201 if method == "POST" else 200
        if media:  # and perhaps JSON as well
            answer = next((one for one in typing.get_args(answer) if _is_model(one)), None)
            usual = 200
        ROUTES.append(
            Route(
                method=method,
                path=path,
                run=function,
                status=status or usual,
                also=also,
                media=media,
                streams_body=streams_body,
                public=public,
                secret=secret,
                keyed=keyed,
                headers=headers or {},
                parameters={name: TypeAdapter(hint) for name, hint in hints.items()},
                query=query,
                body=body,
                answer=answer,
            )
        )
        return function

    return declare
