"""The beamhub service as the agent sees it: a tus 1.0 server that also takes heartbeats."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import httpx
import xxhash
from pydantic import BaseModel, ValidationError

from beamhub.frames.growing import Growing
from beamhub.schemas import (
    BATCH,
    AgentFiles,
    AgentOrders,
    Deliveries,
    Heartbeat,
    Instrument,
    JournalReport,
    Problem,
    Registration,
    Upload,
    UploadState,
)
from beamhub.text import one_line

from .config import Config, ConfigError
from .disk import Disk
from .file import Digesting
from .wire import CONNECT, READ, WRITE, Wire

M = TypeVar("M", bound=BaseModel)
C = TypeVar("C")

# Given what writes bytes, and blocks (see Wire.write), it has the body of a request written, in threads.
Body = Callable[[Callable[[bytes | memoryview], bool]], Awaitable[None]]

PART = 64 * 2**20  # bytes in one PATCH; what one that breaks off has delivered is kept all the same
LONGEST_REASON = 300
THREADS = 64  # that begin requests, or wait for answers

SOON = 30.0  # seconds for the answer to a question
LONGEST_REST = 300.0  # seconds for which a service may ask not to be asked again

# Who announces or registers a file is answered when all of it has been verified and flushed to the disk.
_TIMEOUT = httpx.Timeout(WRITE, read=READ, connect=CONNECT, pool=None)
_QUESTION = httpx.Timeout(WRITE, read=SOON, connect=CONNECT, pool=None)
_NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout)
_TUS = {"Tus-Resumable": "1.0.0"}
_BYTES = "application/offset+octet-stream"


class UnavailableError(Exception):
    """Nothing can be sent just now, whatever the file: wait and try again.

    Args:
        expected: it belongs to the course of things and may end at any moment: nobody needs to be alarmed.
        rest: for so many seconds, at least, nothing should be tried.
    """

    def __init__(self, reason: str, *, expected: bool = False, rest: float = 0.0) -> None:
        super().__init__(reason)
        self.expected = expected
        self.rest = rest


class FaultError(UnavailableError):
    """The service says that it fails at this request: at others, perhaps, it does not."""


class RefusedError(Exception):
    """The service does not take this file, and will not while it is as it is."""


class RestartError(Exception):
    """What has been sent is lost or not what was announced: begin this file again."""


class DigestRequiredError(Exception):
    """The service may have the file already, and has to know its digest before it begins."""


class OffsetError(Exception):
    """The service has another number of bytes than we thought: ask it."""


class DamagedError(OffsetError):
    """What came was not what was sent, and is forgotten."""


class Service:
    """One instrument's view of the service. All its methods raise UnavailableError."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._instrument = config.instrument.id
        self._token = config.service.read_token()
        self._base = httpx.URL(config.service.api)
        self._tls = config.service.tls()
        # one connection each: a client with many looks through all of them at each request
        self._resting: dict[httpx.AsyncClient, str] = {}  # and where its last request went
        self._wires: dict[Wire, str] = {}  # as these
        self._threads = Disk(THREADS)

    async def close(self) -> None:
        for client in self._resting:
            await client.aclose()
        for wire in self._wires:
            wire.end()
        await self._threads.close()

    async def instrument(self) -> Instrument:
        """The instrument, and whether an experiment is active on it."""
        response = await self._send("GET", f"instruments/{self._instrument}")
        self._raise_unless_success(response)
        return self._read(Instrument, response)

    async def heartbeat(self, heartbeat: Heartbeat) -> AgentOrders:
        """Tells how the agent is; the answer says what it is to do."""
        return self._read(AgentOrders, await self._put("heartbeat", heartbeat))

    async def tell_files(self, files: AgentFiles) -> None:
        """Tells a part of the list of files that are not sent."""
        await self._put("agent/files", files)

    async def report(self, command: int, report: JournalReport) -> None:
        """Gives a part of the answer to a `report` command."""
        await self._put(f"agent/reports/{command}", report)

    async def _put(self, where: str, body: BaseModel) -> httpx.Response:
        response = await self._send(
            "PUT",
            f"instruments/{self._instrument}/{where}",
            headers={"Content-Type": "application/json"},
            content=body.model_dump_json().encode(),
        )
        self._raise_unless_success(response)
        return response

    async def create(
        self,
        name: str,
        size: int | None,
        digest: str,
        *,
        experiment: str | None,
        key: str,
        content: bytes = b"",
    ) -> tuple[str, Upload]:
        """Announces a file.

        Args:
            name: of the file, below the experiment's raw/.
            size: None: it grows, and the last `append` brings it.
            digest: of the whole file (see beamhub.digests), or only the name of its algorithm; then the last
                `append` brings it.
            experiment: that it has to go to; None: the one that is active now.
            key: repeated with the same one, the announcement begins no second upload.
            content: of the whole file, so that this one request delivers it.

        Returns:
            the path of the upload's URL, and the upload; it is complete if the service has the file already.

        Raises:
            RestartError: the content is not what was announced.
            DigestRequiredError, RefusedError
        """
        algorithm, _, value = digest.partition(":")
        announced = {"filename": name} | ({algorithm: value} if value else {"digest": algorithm})
        announced |= {"experiment": experiment} if experiment else {}
        length = {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
        headers = {**length, **_metadata(announced), "Idempotency-Key": key}
        if content:
            headers |= {"Content-Type": _BYTES}
        response = await self._send("POST", "uploads", {**_TUS, **headers}, content or None)
        if response.status_code in (410, 460):
            raise RestartError(_reason(response))
        if response.status_code == 428:
            raise DigestRequiredError(_reason(response))
        self._raise_unless_begun(response, experiment)
        # only its path: behind a proxy the service may not know its own outer address, and the token
        # must not go to any other host
        location = response.url.join(response.headers.get("Location", "")).raw_path.decode()
        return location, self._read(Upload, response)

    async def deliver(self, body: bytes) -> list[Upload | None]:
        """Sends many small files at once (see `parcel`).

        Returns:
            each one's upload; None for one that the service has refused: sent by itself, it will tell why.

        Raises:
            RefusedError: the service takes none of them in this way.
        """
        response = await self._send("POST", "uploads/batch", {"Content-Type": BATCH}, body)
        self._raise_unless_begun(response, None)
        return [item.upload for item in self._read(Deliveries, response).items]

    async def register(
        self, source: str, name: str, size: int, digest: str, *, experiment: str | None, key: str
    ) -> None:
        """Has a file published that the service sees at `source`, too; returns once that is done.

        The rest is as for `create`.

        Raises:
            RestartError: what the service has read is not what was announced.
            RefusedError
        """
        registration = Registration(
            source=source, filename=name, size=size, digest=digest, experiment=experiment
        )
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        content = registration.model_dump_json().encode()
        response = await self._send("POST", "uploads/in-place", headers, content)
        if response.status_code in (410, 460):
            raise RestartError(_reason(response))
        if response.status_code == 404:
            raise RefusedError(_reason(response))
        self._raise_unless_begun(response, experiment)
        upload = self._read(Upload, response)
        if upload.state is UploadState.FAILED:  # an earlier attempt with this key
            raise RestartError(upload.error)

    def _raise_unless_begun(self, response: httpx.Response, experiment: str | None) -> None:
        """What the answer to an announcement means."""
        paused = response.status_code == 503 and "Retry-After" in response.headers and _problem(response)
        if paused or (response.status_code == 409 and not experiment):
            raise UnavailableError(_reason(response), expected=True)
        if response.status_code in (400, 403, 409, 413, 422):
            raise RefusedError(_reason(response))
        self._raise_unless_success(response)

    async def upload(self, location: str) -> Upload:
        """How far an upload is. (HEAD would tell no more than the offset, also of one that has failed.)

        Raises:
            RestartError, RefusedError
        """
        response = await self._send("GET", location)
        match response.status_code:
            case 404 | 410:
                raise RestartError("the service no longer knows of its upload")
            case 403:
                raise RefusedError(_reason(response))
        self._raise_unless_success(response)
        return self._read(Upload, response)

    async def append(
        self,
        location: str,
        size: int,
        offset: int,
        length: int,
        body: Body,
        follows: Digesting | None = None,
        *,
        checksum: bytes | None = None,
        told: bool = True,
    ) -> int:
        """Sends `length` bytes from `offset` on; the answer is how many bytes the service has now.

        When these are all, the service has verified and published the file. `follows`: the body has a digest
        like this one behind these bytes, of all up to there. `checksum`: xxh128 of these bytes, where it is
        known before. `told`: the service knows its `size`.

        Raises:
            DamagedError, OffsetError, RestartError, RefusedError
        """
        response = await self._carry(
            location,
            {
                **_TUS,
                "Content-Type": _BYTES,
                "Upload-Offset": str(offset),
                "Content-Length": str(length + (follows.size if follows else 0)),
                **({"Upload-Digest-Follows": follows.algorithm} if follows else {}),
                **(_checksum(checksum) if checksum else {}),
                **({} if told else {"Upload-Length": str(size)}),
            },
            body,
        )
        self._raise_unless_taken(response)
        return _offset(response, size, offset, length)

    async def rewrite(self, location: str, position: int, content: bytes) -> None:
        """Replaces bytes of a file that was sent while it grew.

        Raises:
            DamagedError, OffsetError, RestartError, RefusedError
        """
        span = f"bytes {position}-{position + len(content) - 1}/*"
        checksum = _checksum(xxhash.xxh3_128_digest(content))
        headers = {**_TUS, "Content-Type": _BYTES, "Content-Range": span, **checksum}
        self._raise_unless_taken(await self._send("PUT", location, headers, content))

    async def announce(self, location: str, growing: Growing) -> Upload | None:
        """Tells of frames that can be read in what has been sent of a file; the upload, which knows of how
        many now. None: the service is older, and shows none before the file is published.

        Raises:
            OffsetError: it has not been told of all frames before these, or has not got all of them.
            RestartError, RefusedError
        """
        body = growing.model_dump_json().encode()
        response = await self._send("PUT", f"{location}/frames", {"Content-Type": "application/json"}, body)
        if response.status_code == 404:
            await self.upload(location)  # or that is what it does not know
        if response.status_code in (404, 405, 501):
            return None
        self._raise_unless_taken(response)
        return self._read(Upload, response)

    def _raise_unless_taken(self, response: httpx.Response) -> None:
        """What the answer to bytes means, or to what they are."""
        match response.status_code:
            case 409 | 423:
                raise OffsetError(_reason(response))
            case 460:
                raise DamagedError(_reason(response))
            case 404 | 410:
                raise RestartError(_reason(response))
            case 400 | 403 | 413 | 415 | 422:
                raise RefusedError(_reason(response))
        self._raise_unless_success(response)

    async def terminate(self, location: str) -> None:
        """Gives up an upload: the service may forget what it has of it. One that is over stays as it is."""
        response = await self._send("DELETE", location, headers=_TUS)
        if response.status_code not in (403, 404, 409, 410):
            self._raise_unless_success(response)

    # -------------------------------------------------------------------------------------------------------

    async def _send(
        self,
        method: str,
        where: str,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """Any answer of the service itself but 401. `where` is relative to the API, or an absolute path."""
        url = (
            self._base.copy_with(raw_path=where.encode()) if where.startswith("/") else self._base.join(where)
        )
        client = self._connection(where)
        try:
            response = await client.request(
                method,
                url,
                headers={**self._identity(), **(headers or {})},
                content=content,
                timeout=_TIMEOUT if method == "POST" else _QUESTION,
            )
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        finally:
            self._resting[client] = where
        return self._accepted(response)

    async def _carry(self, location: str, headers: Mapping[str, str], body: Body) -> httpx.Response:
        """As `_send`, of a PATCH whose body threads write."""
        wire = self._wire(location)
        try:
            await self._threads.ask(wire.begin, "PATCH", location, {**self._identity(), **headers})
            await body(wire.write)
            response = await self._threads.ask(wire.answer)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        except BaseException:
            wire.end()
            raise
        if not wire.over:
            self._wires[wire] = location
        return self._accepted(response)

    def _identity(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}

    def _unavailable(self, error: httpx.HTTPError) -> UnavailableError:
        what = "can't be reached" if isinstance(error, _NO_CONNECTION) else "does not answer"
        reason = one_line(str(error), LONGEST_REASON) or type(error).__name__
        return UnavailableError(f"{self._config.service.url} {what} ({reason})")

    def _accepted(self, response: httpx.Response) -> httpx.Response:
        if response.status_code == 401:
            self._reread_token()
            raise UnavailableError(
                f"the token of instrument {self._instrument} is not accepted: "
                f"ask for a new one with `beamhub instrument token {self._instrument}`"
            )
        if response.is_client_error and _problem(response) is None:  # what stands before it: a proxy, the hub
            raise UnavailableError(_reason(response), rest=_rest(response))
        return response

    def _connection(self, where: str) -> httpx.AsyncClient:
        """All of an upload by one, where that can be: then one process of the service sees all of it come."""
        return _taken(self._resting, where) or httpx.AsyncClient(verify=self._tls, timeout=_TIMEOUT)

    def _wire(self, location: str) -> Wire:
        return _taken(self._wires, location) or Wire(self._base, self._tls)

    def _reread_token(self) -> None:
        """A new token may have been put into the file while the agent runs."""
        try:
            self._token = self._config.service.read_token()
        except ConfigError as error:
            raise UnavailableError(str(error)) from error

    def _raise_unless_success(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        if response.status_code == 404:
            raise UnavailableError(f"there is no instrument {self._instrument} at {self._config.service.api}")
        if response.status_code == 500 and _problem(response):
            raise FaultError(_reason(response))
        raise UnavailableError(_reason(response), rest=_rest(response))

    def _read(self, model: type[M], response: httpx.Response) -> M:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise UnavailableError(
                f"{self._config.service.api} does not answer like beamhub: check url under [service]"
            ) from error


def _taken(resting: dict[C, str], where: str) -> C | None:
    """The connection whose last request went there, or any other; it does not rest any more."""
    known = next((connection for connection, last in resting.items() if last == where), None)
    known = known or next(reversed(resting), None)
    if known is not None:
        del resting[known]
    return known


def _metadata(values: Mapping[str, str]) -> dict[str, str]:
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    return {"Upload-Metadata": ",".join(pairs)}


def _checksum(xxh128: bytes) -> dict[str, str]:
    return {"Upload-Checksum": f"xxh128 {base64.b64encode(xxh128).decode()}"}


def _offset(response: httpx.Response, size: int, before: int, length: int) -> int:
    """The Upload-Offset of the answer to `length` bytes behind `before`: it is not trusted to be a number in
    the file, nor one that these bytes can lead to."""
    text = response.headers.get("Upload-Offset")
    if text is not None and re.fullmatch("[0-9]{1,19}", text):
        offset = int(text)
        if offset <= min(size, before + length) and (offset > before or not length):
            return offset
    raise UnavailableError(
        f"{response.url.host} does not answer like beamhub: Upload-Offset is {text!r} after {length} bytes "
        f"from {before}"
    )


def _problem(response: httpx.Response) -> Problem | None:
    """What the service says is wrong. Only its own words decide what becomes of a file: a proxy that has lost
    the service says just as well that there is no such upload."""
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _reason(response: httpx.Response) -> str:
    """What is wrong, in one line."""
    if (problem := _problem(response)) is None:
        answer = f"{response.url.host} answers {response.status_code} {response.reason_phrase}"
        if response.is_redirect:
            answer += f" and sends to {response.headers.get('Location')}: check url under [service]"
        return one_line(answer, LONGEST_REASON)
    parts = [part.rstrip(". ") for part in (problem.detail or problem.title, problem.remedy) if part]
    return one_line(": ".join(parts), LONGEST_REASON)


def _rest(response: httpx.Response) -> float:
    """For how many seconds whoever limits how often it is asked wants to be left alone."""
    told = response.headers.get("Retry-After", "")
    known = response.status_code == 429 and re.fullmatch("[0-9]{1,9}", told)
    return min(float(told), LONGEST_REST) if known else 0.0
