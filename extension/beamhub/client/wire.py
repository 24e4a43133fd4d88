"""The wire: requests and answers over HTTP, and what goes wrong with them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from beamhub.schemas import Page, Problem

M = TypeVar("M", bound=BaseModel)
SERVICE = "/services/beamhub"
BLOCK = 256 * 2**10  # bytes per write
LONGEST_PAGE = 500  # items; what the service gives at most
LONGEST_PAUSE = 10.0  # seconds between attempts to reconnect


class ApiError(Exception):
    """The service refused. `problem` has its reasons."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(" ".join(part for part in (problem.detail or problem.title, problem.remedy) if part))
        self.problem = problem

    @property
    def status(self) -> int:
        return self.problem.status


class Unreachable(Exception):  # noqa: N818 (reads as what happened)
    """No answer from the service."""


class Pauses:
    """The time between attempts to reconnect: twice as long after each."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._next = 0.2  # seconds

    def wait(self) -> None:
        time.sleep(self._next)
        self._next = min(2 * self._next, LONGEST_PAUSE)


class Wire:
    """What all requests have in common."""

    def __init__(self, url: str, token: str, *, instrument: bool = False, timeout: float = 60.0) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise ValueError(
                f"not the address of a hub: {url!r}; it should look like https://hub.example.org"
            )
        root = url.split(SERVICE, 1)[0].rstrip("/")
        self.url = f"{root}{SERVICE}/api/v1/"
        self._http = httpx.Client(
            base_url=self.url,
            headers={
                "Authorization": f"{'Bearer' if instrument else 'token'} {token}",
                "Accept": "application/json",
            },
            timeout=httpx.Timeout(timeout, connect=10.0),
        )

    @classmethod
    def from_environment(cls, *, timeout: float = 60.0) -> Self:
        """A client from BEAMHUB_URL and BEAMHUB_TOKEN; in a JupyterLab session its own hub token serves."""
        url, token = os.environ.get("BEAMHUB_URL"), os.environ.get("BEAMHUB_TOKEN")
        token = token or os.environ.get("JUPYTERHUB_API_TOKEN")
        if not url or not token:
            missing = "BEAMHUB_URL" if not url else "BEAMHUB_TOKEN"
            raise ValueError(
                f"{missing} is not set. Set BEAMHUB_URL to the hub's address (https://hub.example.org) and "
                "BEAMHUB_TOKEN to a token from its page Token."
            )
        return cls(url, token, timeout=timeout)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, model: type[M], path: str, **params: Any) -> M:
        return parse(model, self._call("GET", path, params=given(params)))

    def _list(self, model: type[M], path: str, limit: int | None = None, **params: Any) -> list[M]:
        items: list[M] = []
        params = given(params) | {"limit": LONGEST_PAGE if limit is None else min(limit, LONGEST_PAGE)}
        while True:
            page = parse(Page[model], self._call("GET", path, params=params))  # type: ignore[valid-type]
            items += page.items
            if page.next is None or (limit is not None and len(items) >= limit):
                return items[:limit]
            params["after"] = page.next

    def _send(
        self, model: type[M], method: str, path: str, body: BaseModel | None = None, key: str | None = None
    ) -> M:
        headers = {"Content-Type": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = key or uuid.uuid4().hex
        content = b"{}" if body is None else body.model_dump_json(exclude_unset=True).encode()
        return parse(model, self._call(method, path, headers=headers, content=content))

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        # an answer lost on its way is asked for again where that can do no harm
        headers = options.get("headers", {})
        repeatable = method in ("GET", "HEAD") or "Idempotency-Key" in headers
        for attempt in (1, 2, 3):
            try:
                answer = self._http.request(method, path, **options)
                break
            except httpx.TransportError as error:
                if not repeatable or attempt == 3 or isinstance(error, httpx.ConnectError):
                    raise self._no_answer(error) from error
        if answer.is_error or answer.is_redirect:
            raise refusal(answer)
        return answer

    def _no_answer(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"No answer from {self.url}: {str(error) or type(error).__name__}.")

    @contextmanager
    def _stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", path, **options) as answer:
                if answer.is_error or answer.is_redirect:
                    answer.read()
                    raise refusal(answer)
                yield answer
        except httpx.TransportError as error:
            raise self._no_answer(error) from error

    def _download(self, path: str, to: Path) -> Path:
        part = to.with_name(f".{to.name}.part")
        with self._stream(path) as answer, part.open("wb") as file:
            for block in answer.iter_bytes(BLOCK):
                file.write(block)
        return part.replace(to)


def parse(model: type[M], answer: httpx.Response) -> M:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        raise ApiError(
            Problem(
                title="Not an answer of beamhub",
                status=502,
                detail=f"{answer.url} answered something that is no {model.__name__}.",
                remedy="Check that the address is the hub's, and that client and service are of one version.",
            )
        ) from error


def refusal(answer: httpx.Response) -> ApiError:
    if answer.headers.get("Content-Type", "").startswith("application/problem+json"):
        return ApiError(Problem.model_validate_json(answer.content))
    return ApiError(
        Problem(
            title=answer.reason_phrase or "Error",
            status=answer.status_code,
            detail=f"{answer.url} answered {answer.status_code} {answer.reason_phrase}.",
            remedy="Check that the hub and its service beamhub run, and that the address is the hub's.",
        )
    )


def given(params: dict[str, Any]) -> dict[str, Any]:
    """What is not None."""
    return {name: value for name, value in params.items() if value is not None}


def quoted(text: str) -> str:
    """As one part of a URL's path."""
    return quote(text, safe="")


def quoted_path(text: str) -> str:
    """As several, between slashes."""
    return quote(text, safe="/")
