"""The agent in front of servers that are not, or not quite, the service: it trusts them with nothing."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from beamhub.agent.config import Config
from beamhub.agent.file import Digesting, Stamp
from beamhub.agent.service import (
    Body,
    DamagedError,
    DigestRequiredError,
    FaultError,
    OffsetError,
    RefusedError,
    RestartError,
    Service,
    UnavailableError,
)
from beamhub.agent.sync import Agent
from beamhub.agent.wire import Wire
from beamhub.frames.growing import Growing
from beamhub.schemas import Heartbeat, UploadState
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

UPLOAD = (
    '{"id": "1", "experiment": "sim-mx-2026-00001", "instrument": "sim-mx", "path": "raw/a", "size": 5,'
    ' "offset": 0,'
    ' "digest": null, "version": 1, "state": "receiving", "created": "2026-01-01T00:00:00Z", "ended": null,'
    ' "created_by": "sim-mx"}'
)
DIGEST = "xxh128:" + "0" * 32


def refusal(status: int | str) -> str:
    """As the service itself says no."""
    return f'HTTP/1.1 {status} No\n\n{{"title": "No", "status": {str(status)[:3]}}}'


class Stranger:
    """Gives the same answer to every request, or another one to every GET, and keeps the requests."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.to_get = ""
        self.requests: list[str] = []
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        length = re.search("\r\nContent-Length: ([0-9]+)", self.requests[-1])
        if length and self.answer.startswith("HTTP/1.1 2"):  # who refuses need not hear all
            await reader.readexactly(int(length[1]))
        answer = self.to_get if self.to_get and self.requests[-1].startswith("GET ") else self.answer
        head, _, body = answer.partition("\n\n")
        lines = [*head.splitlines(), f"Content-Length: {len(body.encode())}", "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode() + body.encode())
        await writer.drain()
        writer.close()


@asynccontextmanager
async def stranger(
    answer: str, folder: Path, tls: ssl.SSLContext | None = None, **settings: object
) -> AsyncIterator[tuple[Stranger, Service]]:
    """A server with this answer, and the agent's way to it."""
    answering = Stranger(answer)
    server = await asyncio.start_server(answering.handle, "127.0.0.1", ssl=tls)
    answering.port = server.sockets[0].getsockname()[1]
    scheme = "https" if tls else "http"
    tables = {
        "service": {"url": f"{scheme}://127.0.0.1:{answering.port}", "token": "secret", **settings},
        "instrument": {"id": "sim-mx"},
        "watch": [{"path": "data"}],
        "journal": {"path": "journal.sqlite"},
    }
    service = Service(Config.model_validate(tables, context=folder))
    try:
        yield answering, service
    finally:
        await service.close()
        server.close()
        await server.wait_closed()


def zeros(count: int) -> Body:
    async def write(out: Callable[[bytes | memoryview], bool]) -> None:
        await asyncio.to_thread(out, bytes(count))

    return write


async def nothing(_: Callable[[bytes | memoryview], bool]) -> None:
    """The body of a request without one."""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("HTTP/1.1 200 OK\n\n<html>Welcome</html>", "does not answer like beamhub"),
        ("HTTP/1.1 200 OK\n\n", "does not answer like beamhub"),
        (
            "HTTP/1.1 302 Found\nLocation: http://elsewhere.example.org/\n\n",
            "answers 302 Found and sends to http://elsewhere.example.org/: check url under",
        ),
        ("HTTP/1.1 503 Service Unavailable\n\n", "answers 503 Service Unavailable"),
        (refusal(404), "there is no instrument sim-mx at http://127.0.0.1"),
        ("HTTP/1.1 404 Not Found\n\n<html>404</html>", "127.0.0.1 answers 404 Not Found"),
        (
            "HTTP/1.1 401 Unauthorized\n\n",
            "the token of instrument sim-mx is not accepted: ask for a new one",
        ),
        (
            (
                'HTTP/1.1 500 Oops\n\n{"title": "Oops\\u0000\\u001b[31m", "status": 500,'
                ' "remedy": "Call\\nsomebody."}'
            ),
            r"^Oops \[31m: Call somebody$",
        ),
        ("SSH-2.0-OpenSSH_9.2\n\n", "does not answer"),
    ],
)
async def test_what_is_wrong_is_one_plain_line(tmp_path: Path, answer: str, reason: str) -> None:
    async with stranger(answer, tmp_path) as (_, service):
        with pytest.raises(UnavailableError, match=reason) as raised:
            await service.instrument()
        assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "location",
    [
        "http://evil.example.org/uploads/1",
        "//evil.example.org/uploads/1",
        "/uploads/1",
        "http:////evil.example.org/",
    ],
)
async def test_the_token_goes_to_no_other_host(tmp_path: Path, location: str) -> None:
    answer = f"HTTP/1.1 201 Created\nLocation: {location}\nUpload-Offset: 5\n\n{UPLOAD}"
    async with stranger(answer, tmp_path) as (server, service):
        where, upload = await service.create("a", 5, DIGEST, experiment=None, key="k")
        assert where.startswith("/")
        assert upload.state is UploadState.RECEIVING
        assert await service.append(where, 5, 5, 0, nothing) == 5

        assert len(server.requests) == 2
        assert server.requests[1].startswith(f"PATCH {where} HTTP/1.1\r\n")
        assert f"Host: 127.0.0.1:{server.port}\r\n" in server.requests[1]


@pytest.mark.parametrize("status", [302, 400, 403, 404, 409, 410, 413, 422, 423, 428, 429, 460, 500, 502])
async def test_what_stands_before_the_service_decides_nothing_about_a_file(
    tmp_path: Path, status: int
) -> None:
    """A proxy that has lost the service says as well that there is no such thing, or that it may not be."""
    answer = f"HTTP/1.1 {status} No\nRetry-After: 5\nLocation: /login\n\n<html><h1>{status}</h1></html>"
    async with stranger(answer, tmp_path) as (_, service):
        for request in (
            service.upload("/uploads/1"),
            service.append("/uploads/1", 5, 0, 5, zeros(5)),
            service.rewrite("/uploads/1", 0, b"12345"),
            service.announce("/uploads/1", FRAMES),
            service.create("a", 5, DIGEST, experiment="sim-mx-2026-00001", key="k"),
            service.deliver(b"{}\n"),
            service.register("/data/a", "a", 1, DIGEST, experiment=None, key="1"),
            service.terminate("/uploads/1"),
        ):
            with pytest.raises(UnavailableError, match=f"127.0.0.1 answers {status}") as raised:
                await request
            assert not raised.value.expected
            assert not isinstance(raised.value, FaultError)
            assert raised.value.rest == (5.0 if status == 429 else 0.0)


@pytest.mark.parametrize(
    ("told", "before", "length"),
    [(10, 0, 5), (0, 0, 5), (3, 5, 3), (5, 5, 3), (9, 5, 3)],
    ids=["the end, of a part", "nothing", "less than before", "as before", "more than was sent"],
)
async def test_an_offset_that_what_was_sent_does_not_lead_to(
    tmp_path: Path, told: int, before: int, length: int
) -> None:
    """The end would mean that the file has arrived; no progress, that the same is sent for ever."""
    async with stranger(f"HTTP/1.1 204 No Content\nUpload-Offset: {told}\n\n", tmp_path) as (_, service):
        with pytest.raises(UnavailableError, match="Upload-Offset is"):
            await service.append("/uploads/1", 10, before, length, zeros(length))


@pytest.mark.parametrize("offset", ["6", "-1", "1e3", "", "99999999999999999999", "0x5"])
async def test_an_impossible_offset(tmp_path: Path, offset: str) -> None:
    async with stranger(f"HTTP/1.1 204 No Content\nUpload-Offset: {offset}\n\n", tmp_path) as (_, service):
        with pytest.raises(UnavailableError, match="Upload-Offset is"):
            await service.append("/uploads/1", 5, 5, 0, nothing)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (409, OffsetError),
        (423, OffsetError),
        (404, RestartError),
        (410, RestartError),
        (460, DamagedError),
        (403, RefusedError),
        (413, RefusedError),
        (429, UnavailableError),
        (507, UnavailableError),
    ],
)
async def test_what_to_do_when_bytes_are_not_taken(
    tmp_path: Path, status: int, error: type[Exception]
) -> None:
    async with stranger(refusal(status), tmp_path) as (_, service):
        with pytest.raises(error):
            await service.append("/uploads/1", 5, 5, 0, nothing)


@pytest.mark.parametrize(
    ("status", "experiment", "error"),
    [
        (409, None, UnavailableError),
        (409, "sim-mx-2026-00001", RefusedError),
        (422, None, RefusedError),
        (507, None, UnavailableError),
    ],
)
async def test_what_to_do_when_a_file_is_not_taken(
    tmp_path: Path, status: int, experiment: str | None, error: type[Exception]
) -> None:
    async with stranger(refusal(status), tmp_path) as (_, service):
        with pytest.raises(error):
            await service.create("a", 5, DIGEST, experiment=experiment, key="k")


async def test_a_small_file_goes_along_with_its_announcement(tmp_path: Path) -> None:
    complete = UPLOAD.replace("receiving", "complete")
    answer = f"HTTP/1.1 201 Created\nLocation: /uploads/1\n\n{complete}"
    async with stranger(answer, tmp_path) as (server, service):
        _, upload = await service.create(
            "a", 5, "sha256:" + "0" * 64, experiment=None, key="k", content=b"12345"
        )
        assert upload.state is UploadState.COMPLETE
        assert "Content-Type: application/offset+octet-stream\r\n" in server.requests[0]
        assert "Content-Length: 5\r\n" in server.requests[0]
    async with stranger(refusal(460), tmp_path) as (_, service):
        with pytest.raises(RestartError):
            await service.create("a", 5, "sha256:" + "0" * 64, experiment=None, key="k", content=b"12345")


async def test_many_small_files_are_answered_one_by_one(tmp_path: Path) -> None:
    problem = '{"title": "Not valid", "status": 422}'
    items = f'{{"items": [{{"upload": {UPLOAD}}}, {{"problem": {problem}}}]}}'
    async with stranger(f"HTTP/1.1 200 OK\n\n{items}", tmp_path) as (_, service):
        first, second = await service.deliver(b"{}\n")
    assert first is not None
    assert (first.id, second) == ("1", None)
    for status, error in (
        ("503", UnavailableError),
        ("409", UnavailableError),
        ("429", UnavailableError),
        ("413", RefusedError),
        ("422", RefusedError),
        ("500", FaultError),
    ):
        async with stranger(refusal(status), tmp_path) as (_, service):
            with pytest.raises(error):
                await service.deliver(b"{}\n")


async def test_a_digest_that_comes_at_the_end(tmp_path: Path) -> None:
    begun = UPLOAD.replace('"digest": null', '"digest": null, "digest_follows": "xxh128"')
    async with stranger(f"HTTP/1.1 201 Created\nLocation: /uploads/1\n\n{begun}", tmp_path) as (
        server,
        service,
    ):
        _, upload = await service.create("a", 5, "xxh128", experiment=None, key="k")
        assert upload.digest_follows == "xxh128"
        assert "Upload-Metadata: filename YQ==,digest eHhoMTI4\r\n" in server.requests[0]
    async with stranger(refusal(428), tmp_path) as (_, service):
        with pytest.raises(DigestRequiredError):
            await service.create("a", 5, "xxh128", experiment=None, key="k")
    async with stranger("HTTP/1.1 204 No Content\nUpload-Offset: 5\n\n", tmp_path) as (server, service):
        digesting = Digesting("xxh128")
        assert await service.append("/uploads/1", 5, 5, 0, zeros(16), digesting) == 5
        assert "Upload-Digest-Follows: xxh128\r\n" in server.requests[0]
        assert "Content-Length: 16\r\n" in server.requests[0]


async def test_a_name_in_any_script_travels(tmp_path: Path) -> None:
    answer = f"HTTP/1.1 201 Created\nLocation: /uploads/1\n\n{UPLOAD}"
    async with stranger(answer, tmp_path) as (server, service):
        await service.create("α β/Å,1.h5", 5, DIGEST, experiment=None, key="k")

        assert "Upload-Metadata: filename zrEgzrIvw4UsMS5oNQ==,xxh128 " in server.requests[0]
        assert "Idempotency-Key: k\r\n" in server.requests[0]


async def test_nobody_there(tmp_path: Path) -> None:
    async with stranger("", tmp_path) as (server, service):
        pass
    async with stranger("", tmp_path) as (_, service):
        service._base = service._base.copy_with(port=server.port)
        with pytest.raises(UnavailableError, match="can't be reached"):
            await service.heartbeat(Heartbeat(host="detector", version="1"))


async def test_a_service_that_hangs_is_told_of_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who sends a file may have to wait for long, until it has been verified."""
    monkeypatch.setattr("beamhub.agent.service._QUESTION", httpx.Timeout(0.2))

    callers = list[asyncio.StreamWriter]()
    server = await asyncio.start_server(lambda _, writer: callers.append(writer), "127.0.0.1")
    async with stranger("", tmp_path) as (_, service):
        service._base = service._base.copy_with(port=server.sockets[0].getsockname()[1])
        with pytest.raises(UnavailableError, match="does not answer"):
            await service.heartbeat(Heartbeat(host="detector", version="1"))
        with pytest.raises(UnavailableError, match="does not answer"):
            await service.upload("/uploads/1")
    for caller in callers:
        caller.close()
        await caller.wait_closed()
    server.close()
    await server.wait_closed()


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate of its own, which is left in `folder`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "hub.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "hub.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hub.pem", folder / "hub.key")
    return context


async def test_only_a_certificate_that_is_trusted_gets_the_token(tmp_path: Path) -> None:
    context = certificate(tmp_path)
    answer = "HTTP/1.1 200 OK\n\n{}"
    beat = Heartbeat(host="detector", version="1")

    async with stranger(answer, tmp_path, context) as (server, service):
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            await service.heartbeat(beat)
        assert server.requests == []
    async with stranger(answer, tmp_path, context, ca_file="hub.pem") as (server, service):
        await service.heartbeat(beat)
        assert "Authorization: Bearer secret\r\n" in server.requests[0]
    async with stranger(answer, tmp_path, context, verify=False) as (server, service):
        await service.heartbeat(beat)
        assert len(server.requests) == 1


async def test_bytes_of_files_go_to_a_trusted_certificate_only(tmp_path: Path) -> None:
    context = certificate(tmp_path)
    answer = "HTTP/1.1 204 No Content\nUpload-Offset: 5\n\n"
    async with stranger(answer, tmp_path, context) as (server, service):
        with pytest.raises(UnavailableError, match="certificate verify failed"):
            await service.append("/uploads/1", 5, 0, 5, zeros(5))
        assert server.requests == []
    async with stranger(answer, tmp_path, context, ca_file="hub.pem") as (server, service):
        for _ in range(2):
            assert await service.append("/uploads/1", 5, 0, 5, zeros(5)) == 5
        assert [request.partition(" ")[0] for request in server.requests] == ["PATCH"] * 2


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_bytes_of_files_go_by_the_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """As all else does: it is told by whom, and for which service."""
    async with stranger("HTTP/1.1 502 Bad Gateway\n\n", tmp_path) as (proxy, service):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://ada:pa%20ss@127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        service._base = service._base.copy_with(scheme=scheme, host="hub.example.org", port=None)
        with pytest.raises(UnavailableError, match="502"):
            await service.append("/uploads/1", 5, 0, 5, zeros(5))
        by = "CONNECT hub.example.org:443" if scheme == "https" else "PATCH http://hub.example.org/uploads/1"
        assert proxy.requests[0].startswith(f"{by} HTTP/1.")
        assert "Proxy-Authorization: Basic YWRhOnBhIHNz\r\n" in proxy.requests[0]
        assert ("Bearer secret" in proxy.requests[0]) == (scheme == "http")


async def test_who_is_answered_before_the_end_sends_no_more(tmp_path: Path) -> None:
    written = list[bool]()

    async def endless(write: Callable[[bytes | memoryview], bool]) -> None:
        while not written or written[-1]:
            written.append(await asyncio.to_thread(write, bytes(1000)))

    async with stranger(refusal(413), tmp_path) as (_, service):
        with pytest.raises(RefusedError):
            await service.append("/uploads/1", 10**15, 0, 10**15, endless)
        assert written[-1] is False
        assert service._wires == {}  # the rest of the body is missing: it is of no use for another request


async def test_what_is_given_up_while_it_is_sent_ends_at_once(tmp_path: Path) -> None:
    """Though nobody takes it, and the thread that writes it waits."""
    taken, begun = asyncio.Event(), asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(1)
        begun.set()
        await taken.wait()
        writer.close()

    server = await asyncio.start_server(deaf, "127.0.0.1", limit=2**16)
    wire = Wire(
        httpx.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), ssl.create_default_context()
    )
    await asyncio.to_thread(wire.begin, "PATCH", "/uploads/1", {"Content-Length": str(10**9)})
    writing = asyncio.create_task(asyncio.to_thread(wire.write, bytes(10**8)))
    await begun.wait()
    assert not writing.done()
    wire.end()
    assert await writing is False
    with pytest.raises(httpx.TransportError, match="over"):
        wire.answer()
    taken.set()
    server.close()
    await server.wait_closed()


async def test_an_endless_answer_ends(tmp_path: Path) -> None:
    async with stranger(f"HTTP/1.1 404 No\n\n{'x' * (2 << 20)}", tmp_path) as (_, service):
        with pytest.raises(UnavailableError, match="answers 404"):
            await service.append("/uploads/1", 5, 5, 0, nothing)
        assert service._wires == {}


async def test_a_name_that_is_too_long_to_be_registered_is_refused(tmp_path: Path) -> None:
    name = "n" * 1001
    problem = '{"title": "Bad name", "status": 400, "detail": "The path is not allowed."}'
    async with stranger(f"HTTP/1.1 400 Bad Request\n\n{problem}", tmp_path) as (_, service):
        with pytest.raises(RefusedError, match="not allowed"):
            await service.register(f"/data/{name}", name, 1, DIGEST, experiment=None, key="1")


async def test_what_is_not_sent_is_listed_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at each heartbeat: it may be a hundred thousand files."""
    lists, skipped = 0, Agent.skipped

    def counted(self: Agent) -> Iterator[tuple[str, str, str]]:
        nonlocal lists
        lists += 1
        return skipped(self)

    monkeypatch.setattr(Agent, "skipped", counted)
    (tmp_path / "data").mkdir()
    async with stranger("HTTP/1.1 204 No Content\n\n", tmp_path) as (server, service):
        agent = Agent(service._config)
        journal, failed = agent._journal, agent._common.failed
        for name in "abc":
            journal.queue(f"{tmp_path}/data/{name}", Stamp(1, 2, 3))
        for number, change in enumerate(
            (
                lambda: None,
                lambda: journal.skip(f"{tmp_path}/data/a", "ice"),
                lambda: journal.skip(f"{tmp_path}/data/a", "no ice"),
                lambda: journal.requeue(f"{tmp_path}/data/a"),
                lambda: journal.skip(f"{tmp_path}/data/b", "ice"),
                lambda: journal.forget(f"{tmp_path}/data/b"),
                lambda: failed.update(c="can't be read"),
                lambda: failed.update(c="is gone"),
                failed.clear,
            ),
            1,
        ):
            change()
            for _ in range(3):
                await agent._orders._tell()
            assert (len(server.requests), lists) == (number, number)
        await agent._service.close()
        await agent._paths.close()
        journal.close()


FRAMES = Growing(link="/entry/data/data", shape=(2, 3), dtype="uint16", codec="", chunks=((0, 12),))


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (404, RestartError),
        (409, OffsetError),
        (410, RestartError),
        (413, RefusedError),
        (422, RefusedError),
        (423, OffsetError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_frames_that_are_not_taken(tmp_path: Path, status: int, problem: type[Exception]) -> None:
    async with stranger(refusal(status), tmp_path) as (_, service):
        with pytest.raises(problem):
            await service.announce("/uploads/1", FRAMES)


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_service_that_is_too_old_for_frames(tmp_path: Path, status: int) -> None:
    async with stranger(refusal(status), tmp_path) as (server, service):
        server.to_get = f"HTTP/1.1 200 OK\n\n{UPLOAD}"
        assert await service.announce("/uploads/1", FRAMES) is None
        assert server.requests[0].startswith("PUT /uploads/1/frames ")


async def test_frames_that_are_taken(tmp_path: Path) -> None:
    answer = UPLOAD.replace('"offset": 0', '"offset": 5, "frames": 7')
    async with stranger(f"HTTP/1.1 200 OK\n\n{answer}", tmp_path) as (_, service):
        upload = await service.announce("/uploads/1", FRAMES)
        assert upload
        assert (upload.offset, upload.frames) == (5, 7)
