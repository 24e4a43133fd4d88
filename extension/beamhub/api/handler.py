"""The Tornado handler of all routes: who asks, what exactly, and how the answer or the refusal is written."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from asyncio import Future
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from jupyter_server.auth import User
from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.base.handlers import JupyterHandler
from pydantic import BaseModel, ValidationError
from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from beamhub.access import METRICS, Principal
from beamhub.api.files import BLOCK, Source, span_of
from beamhub.api.identity import bearer_token, principal_of
from beamhub.api.inflow import Inflow
from beamhub.api.problems import KNOWN, Refusal, problem_of
from beamhub.api.request import json_of, key_of, navigates, query_of, validated
from beamhub.api.routes import Call, Content, Download, EventStream, Reply, Route
from beamhub.api.service import Service
from beamhub.api.wire import Wire, length_of
from beamhub.body import Chunks
from beamhub.errors import BeamhubError, Conflict, Invalid, NotFound, TooLarge

BODY_LIMIT = 2**20  # bytes of a JSON body
STREAM_LIMIT = 2**50  # bytes of a streamed one; the domain knows the true limit
PATIENCE = 30.0  # seconds until a client that takes nothing is given up
SLOWEST = 1024  # bytes per second that a client has to send of a body


@stream_request_body
class Handler(JupyterHandler):
    """One path of the API. Each request body is read here, with a limit, after its sender is known."""

    def initialize(self, service: Service, routes: Mapping[str, Route]) -> None:
        self._service = service
        self._routes = routes
        self._route: Route | None = None
        self._principal: Principal | None = None
        self._preparing = False
        self._taken_in = False  # the body has been, as far as it is wanted
        self._refused: Exception | None = None
        self._body = bytearray()
        self._inflow: Inflow | Wire | None = None
        self._streamed: asyncio.Task[Any] | None = None
        self._brought = 0  # bytes of the body, by way of Tornado
        self._pace: asyncio.TimerHandle | None = None

    # --- before the body ---------------------------------------------------------------------------

    async def prepare(self, **_: Any) -> None:
        """Authenticate, choose the route, and make ready for the body."""
        self._preparing = True
        try:
            override = self.request.headers.get("X-HTTP-Method-Override")
            if self.request.method == "POST" and override in ("PATCH", "DELETE"):  # tus 1.0 asks for it
                self.request.method = override
            method = self.request.method or ""
            self._route = self._routes.get(method) or (self._routes.get("GET") if method == "HEAD" else None)
            if self._route is None or not self._route.public:
                self._principal = await self._authenticate()
            if self._finished:  # redirected to the login
                return
            if self._route is None:
                raise self._no_such_method()
            self._limit_body(STREAM_LIMIT if self._route.streams_body else BODY_LIMIT)
        except Exception as error:
            # told after the body has been taken in: whoever is still sending often never reads the answer
            self._refused = error
        wanted = self._route if self._refused is None and self._route and self._route.streams_body else None
        length = length_of(self.request.headers)
        limit = STREAM_LIMIT if wanted else max(BODY_LIMIT, length)
        self.request.connection.set_max_body_size(limit)  # type: ignore[union-attr]
        if (wanted or self._refused) and (large := Wire.fits(self.request)):
            await self._answer_by_wire(wanted, large)
            return
        if self._refused and length > BODY_LIMIT:
            # too much to wait for: answered at once, which also ends the connection
            self._write_problem(self._refused)
            return
        if wanted:
            self._inflow = Inflow()
            self._streamed = asyncio.create_task(self._run(wanted))
            self._streamed.add_done_callback(self._inflow.abandon)
        self._watch_pace(0)

    async def _answer_by_wire(self, wanted: Route | None, length: int) -> None:
        """All of a request with a large body, past Tornado, which hears of it only when it is over."""
        assert self.serverapp is not None  # noqa: S101 (as in every request)
        wire = Wire(self.serverapp.http_server, self.request, length, wanted=wanted is not None)
        self.request.connection, self._inflow = wire, wire
        try:
            self._watch_pace(0)
            if wanted:
                self._streamed = asyncio.create_task(self._run(wanted))
                await asyncio.wait({self._streamed})
            if wire.left <= BODY_LIMIT:
                await wire.drain()
            if not self._finished:  # else it took too long
                await self._answer()
                await wire.hear_out(self._service.patience)
        finally:
            await wire.give_back()

    def _watch_pace(self, before: int) -> None:
        """Gives up a client that takes for ever to send its body: it would keep others from connecting."""

        def look() -> None:
            waiting = self._inflow is None or self._inflow.waiting
            brought = self._inflow.taken if isinstance(self._inflow, Wire) else self._brought
            if not waiting or brought - before >= SLOWEST * self._service.patience:
                self._watch_pace(brought)
                return
            if self._inflow is not None and self._streamed is not None:
                self._inflow.end()  # what has arrived is kept
                self._streamed.add_done_callback(_unheard)
            self._write_problem(
                Refusal(
                    408,
                    f"Of the request's body only {brought - before} bytes came in "
                    f"{self._service.patience:g} s.",
                    "Send it again; an upload goes on where it stopped.",
                )
            )

        self._pace = asyncio.get_running_loop().call_later(self._service.patience, look)

    def _rest(self) -> None:
        """The body has come, or nobody waits for it any longer."""
        if self._pace is not None:
            self._pace.cancel()

    def _limit_body(self, limit: int) -> None:
        """Raises TooLarge."""
        length = length_of(self.request.headers)
        if length > limit:
            raise TooLarge(
                f"The request's body has {length} bytes; this route takes {limit}.",
                "Send less; large files go through /uploads.",
            )

    async def _authenticate(self) -> Principal:
        """The instrument's agent, or whom the server's identity provider knows."""
        token = bearer_token(self.request.headers.get("Authorization"))
        principal = await self._service.experiments.instrument_by_token(token) if token else None
        if token and self._service.metrics_token and _same(token, self._service.metrics_token):
            principal = METRICS
        if principal is not None:
            self._token_authenticated = True
            self.current_user = self._jupyter_current_user = User(username=principal.name)
            return principal
        await super().prepare()
        if self.current_user is not None:
            if navigates(self.request):
                self.xsrf_token  # noqa: B018 (sets the cookie that the browser's scripts repeat)
            return principal_of(self.current_user)
        if navigates(self.request):
            self.redirect(self.get_login_url())
            return Principal(name="", kind="user")
        raise Refusal(
            401,
            "This request carries no valid credentials.",
            "Send `Authorization: token …` with a token from the hub's page Token; from a signed-in browser, "
            "send X-XSRFToken.",
            WWW_Authenticate="token",
        )

    def check_xsrf_cookie(self) -> None:
        """A token needs no XSRF check, a cookie does. Tornado asks before it is known who sends, and Jupyter
        Server also when it is nobody, who shall be told that."""
        nobody = getattr(self, "_jupyter_current_user", self) is None
        if self._preparing and not nobody and not getattr(self, "_token_authenticated", False):
            super().check_xsrf_cookie()

    def check_host(self) -> bool:
        """Behind the hub's proxy the service can't know what names it has. Every request has to bring
        credentials, which a page of another name can't."""
        return True

    def _no_such_method(self) -> Refusal:
        allowed = ", ".join(sorted({*self._routes, "OPTIONS", *({"HEAD"} if "GET" in self._routes else ())}))
        if not self._routes:
            return Refusal(
                404, f"There is nothing at {self.request.path}.", "See openapi.json for what there is."
            )
        if self.request.method == "OPTIONS":
            return Refusal(204, "", Allow=allowed)
        return Refusal(
            405,
            f"{self.request.path} does not take {self.request.method}.",
            f"It takes {allowed}.",
            Allow=allowed,
        )

    # --- the body ------------------------------------------------------------------------------------

    async def data_received(self, chunk: bytes) -> None:
        if self._finished:
            return
        self._brought += len(chunk)
        if isinstance(self._inflow, Inflow) and self._streamed is not None:
            await self._inflow.put(chunk)
            length = int(self.request.headers.get("Content-Length", STREAM_LIMIT))
            refused = self._streamed.exception() if self._streamed.done() else None
            if refused is not None and length - self._brought > BODY_LIMIT:
                # much more would come for nothing: answered at once, which also ends the connection
                self._write_problem(refused)
        elif self._refused is None:
            self._body += chunk
            if len(self._body) > BODY_LIMIT:
                self._write_problem(
                    TooLarge(f"This route takes bodies of up to {BODY_LIMIT} bytes.", "Send less.")
                )

    def on_finish(self) -> None:
        self._rest()
        super().on_finish()

    def on_connection_close(self) -> None:
        self._rest()
        if self._inflow is not None and self._streamed is not None:
            self._inflow.end()  # what has arrived is kept
            self._streamed.add_done_callback(_unheard)
        super().on_connection_close()

    # --- the answer ------------------------------------------------------------------------------------

    @allow_unauthenticated  # decided in prepare()
    async def _answer(self, **_: str) -> None:
        self._rest()
        self._taken_in = True
        try:
            if self._refused is not None:
                raise self._refused
            if self._route is None:
                raise self._no_such_method()
            if self._inflow is not None and self._streamed is not None:
                self._inflow.end()
                answer = await self._streamed
            elif self._principal and (key := self._key(self._route)):
                await self._once(self._route, self._principal, key)
                return
            else:
                answer = await self._run(self._route)
            await self._write(self._route, answer)
        except StreamClosedError:
            pass  # the client has gone
        except Exception as error:
            self._write_problem(error)

    get = head = post = put = patch = delete = options = _answer

    async def _run(self, route: Route) -> Any:
        """Validate, and call the route's function."""
        arguments: dict[str, Any] = {}
        for name, adapter in route.parameters.items():
            try:
                arguments[name] = adapter.validate_python(self.path_kwargs[name])
            except ValidationError as error:
                raise NotFound(
                    f"There is nothing at {self.request.path}.", "Check the ids in the address."
                ) from error
        if route.query is not None:
            arguments["query"] = validated(route.query, query_of(self.request), "query parameters")
        elif query_of(self.request):
            raise Invalid(f"{self.request.path} takes no query parameters.", "Leave them out.")
        if route.body is not None:
            arguments["body"] = validated(route.body, json_of(self.request, self._body), "request body")
        call = Call(
            service=self._service,
            principal=self._principal or Principal(name="", kind="user"),
            path=self.request.path,
            headers=self.request.headers,
            body=self._inflow or Chunks(_nothing()),
        )
        return await route.run(call, **arguments)

    def _key(self, route: Route) -> str | None:
        """The Idempotency-Key, where an answer is to be kept under it."""
        key = key_of(self.request)
        return None if route.secret or route.keyed else key

    async def _once(self, route: Route, principal: Principal, key: str) -> None:
        """Answer a request with an Idempotency-Key: the first as usual, repetitions with its answer."""
        actor = f"{principal.kind}:{principal.name}"
        digest = hashlib.sha256(json.dumps(self.request.uri).encode() + self._body).hexdigest()
        store = self._service.store
        first = await store.write(lambda tx: tx.idempotency.claim(actor, key, digest))
        if first is None:
            try:
                status, headers, body = _serialise(route, await self._run(route))
            except Exception:
                # it came to nothing, so the key is free again
                await store.write(lambda tx: tx.idempotency.forget(actor, key))
                raise
            kept = json.dumps({"headers": headers, "body": body.decode()})
            try:
                await store.write(lambda tx: tx.idempotency.settle(actor, key, status, kept))
            except Exception as error:
                if store.explained(error) is error:
                    raise
                # it has taken effect, and who has asked is told; only who asks again will not be
                self.log.warning("the answer to %s could not be kept: %s", self.request.path, error)
        elif first.request_digest != digest:
            raise Invalid(
                f"The Idempotency-Key {key!r} has been used for another request.",
                "Use a new key for each request.",
            )
        elif first.status is None or first.body is None:
            raise Conflict(
                f"The first request with the Idempotency-Key {key!r} has not been answered yet.",
                "Try again in a moment. If it stays so, the service stopped while it answered: look whether "
                "the request has taken effect, and use a new key if it has not.",
            )
        else:
            kept = json.loads(first.body)
            status, headers, body = first.status, kept["headers"], kept["body"].encode()
        self._begin(status, headers)
        if body:
            self.write(body)
        self.finish()

    async def _write(self, route: Route, answer: Any) -> None:
        if isinstance(answer, Download):
            await self._write_file(answer)
        elif isinstance(answer, EventStream):
            await self._write_stream(answer)
        elif isinstance(answer, Content):
            self._begin(
                200,
                {
                    **answer.headers,
                    "Content-Type": answer.media_type,
                    "Content-Length": str(len(answer.body)),
                },
            )
            # in blocks: one write of a whole frame would copy it several times over on the loop
            view = memoryview(answer.body)
            for start in range(0, len(view), BLOCK) if self.request.method != "HEAD" else ():
                await self._send(bytes(view[start : start + BLOCK]))
            await self.finish()
        else:
            status, headers, body = _serialise(route, answer)
            self._begin(status, headers)
            if body:
                self.write(body)
            await self.finish()

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.set_status(status, HTTPStatus(status).phrase if status in KNOWN else "Checksum Mismatch")
        if status == 204:
            self.clear_header("Content-Type")
        for name, value in headers.items():
            self.set_header(name, value)

    async def _send(self, block: bytes) -> None:
        """Write, and wait until it is on its way; a client that takes nothing loses the connection."""
        self.write(block)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.flush()
        except TimeoutError as error:
            self.request.connection.stream.close()  # type: ignore[union-attr]
            raise StreamClosedError from error

    async def _write_file(self, download: Download) -> None:
        with download.file:
            source = Source.of(download.file, download.name)
            span = span_of(self.request.headers.get("Range"), source.size)
            if span is None:
                raise Refusal(
                    416,
                    f"{download.name} has {source.size} bytes; the range lies beyond.",
                    "Ask for less.",
                    Content_Range=f"bytes */{source.size}",
                )
            self._begin(206 if span.partial else 200, source.headers(span))
            if self.request.method != "HEAD":
                async for block in source.blocks(span):
                    await self._send(block)
        await self.finish()

    async def _write_stream(self, stream: EventStream) -> None:
        self._begin(
            200,
            {
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",  # nginx would collect it
            },
        )
        try:
            async with aclosing(stream.blocks):
                async for block in stream.blocks:
                    await self._send(block.encode())
        except BeamhubError:
            pass  # what it showed may not be seen any longer: the client learns that when it asks again
        await self.finish()

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        """Ends the answer. If the body has not been taken in, Tornado ends the connection, too: whoever keeps
        connections for more requests, as the hub's proxy does, has to know."""
        if not self._taken_in and not self._headers_written:
            self.set_header("Connection", "close")
        return super().finish(chunk)

    # --- refusals ----------------------------------------------------------------------------------------

    def _write_problem(self, error: BaseException | None) -> None:
        if self._finished:
            return
        if self._headers_written:
            # too late for words: a connection that ends early tells that something is missing
            self.log.error("failed while answering %s", self.request.path, exc_info=error)
            self.request.connection.stream.close()  # type: ignore[union-attr]
            return
        told = self._service.store.explained(error)
        problem, headers = problem_of(told)
        what = f"failed to answer {self.request.method} {self.request.path}"
        if told is not error:
            self.log.warning("%s: %s", what, getattr(error, "orig", error))
        elif problem.status >= 500 and not isinstance(error, BeamhubError):
            self.log.error("%s", what, exc_info=error)
        if problem.status == 204:
            self._begin(204, headers)
            self.finish()
            return
        self._begin(problem.status, {"Content-Type": "application/problem+json", **headers})
        self.finish(problem.model_dump_json())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What Tornado itself refuses."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        self._write_problem(error or Refusal(status_code, ""))

    def compute_etag(self) -> str | None:
        return None

    @property
    def content_security_policy(self) -> str:
        return "default-src 'none'; frame-ancestors 'none'"

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Tus-Resumable", "1.0.0")


def _serialise(route: Route, answer: Any) -> tuple[int, dict[str, str], bytes]:
    status, headers = route.status, {}
    if isinstance(answer, Reply):
        status, headers, answer = answer.status or status, dict(answer.headers), answer.value
    if answer is None:
        return status, headers, b""
    if not isinstance(answer, BaseModel):
        raise TypeError(f"{route.name} answered with {type(answer).__name__}")
    return status, {"Content-Type": "application/json", **headers}, answer.model_dump_json().encode()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())


def _unheard(task: asyncio.Task[Any]) -> None:
    """Nobody is left to be told of what the task raised."""
    if not task.cancelled():
        task.exception()


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""  # makes this a generator
