"""The tus protocol against a model of it, in any order of requests, through either of two processes."""

from __future__ import annotations

import base64
import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from beamhub.testing import Beamtime, Ingest, RunningService
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.integration.tus import BINARY, TUS, metadata

LENGTH = st.integers(0, 12)
NUMBER = st.integers(0, 99)  # of one of the uploads that there are


@dataclass
class Expected:
    """What a client knows of an upload."""

    path: str  # of its URL
    name: str
    size: int | None  # None: it comes later
    concat: str | None = None
    sent: bytes = b""
    state: str = "receiving"  # complete, gone

    @property
    def partial(self) -> bool:
        return self.concat == "partial"

    @property
    def nowhere(self) -> int:
        """What is answered of one that is gone; nothing is remembered of a part."""
        return 404 if self.partial else 410

    def went_on(self) -> None:
        if not self.partial and len(self.sent) == self.size:
            self.state = "complete"


class Protocol(RuleBasedStateMachine):
    service: RunningService
    ingest: Ingest
    beamtime: Beamtime
    client: httpx.Client
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.uploads: list[Expected] = []

    def ask(self, method: str, path: str, first: bool = True, **rest: Any) -> httpx.Response:
        where = self.service.url if first else self.ingest.url
        return self.client.request(method, f"{where}{path}", **rest)

    def one(self, number: int) -> Expected:
        return self.uploads[number % len(self.uploads)]

    def begun(self, answer: httpx.Response, expected: Expected) -> None:
        assert answer.status_code == 201, answer.text
        expected.path = answer.headers["Location"]
        expected.went_on()
        self.uploads.append(expected)
        self.look(expected)

    def look(self, one: Expected) -> None:
        """HEAD tells what the model does, and what is published is what was sent."""
        for first in (True, False):
            head = self.ask("HEAD", one.path, first)
            assert head.headers["Cache-Control"] == "no-store"
            if one.state == "gone":
                assert (head.status_code, "Upload-Offset" in head.headers) == (one.nowhere, False)
                continue
            assert (head.status_code, head.headers["Upload-Offset"]) == (200, str(len(one.sent)))
            length = None if one.size is None else str(one.size)
            assert head.headers.get("Upload-Length") == length
            assert head.headers.get("Upload-Defer-Length") == (None if length else "1")
            assert head.headers.get("Upload-Concat") == one.concat
        if one.state == "complete":
            experiment = self.beamtime.experiment
            assert self.service.client("ada").file(experiment, f"raw/{one.name}") == one.sent

    @rule(size=st.none() | LENGTH, partial=st.booleans(), body=st.none() | LENGTH, first=st.booleans())
    def announce(self, size: int | None, partial: bool, body: int | None, first: bool) -> None:
        name = f"{next(self.numbers)}"
        expected = Expected("", name, size, "partial" if partial else None)
        headers = {"Upload-Defer-Length": "1"} if size is None else {"Upload-Length": str(size)}
        headers |= {"Upload-Concat": "partial"} if partial else metadata(filename=name)
        content = None
        if body is not None and (size is None or body <= size):
            content = expected.sent = hashlib.sha256(name.encode()).digest()[:body]
            headers |= BINARY
        path = f"{httpx.URL(self.service.api).path}uploads"
        self.begun(self.ask("POST", path, first, headers=headers, content=content), expected)

    @precondition(lambda self: self.uploads)
    @rule(
        number=NUMBER,
        content=st.binary(max_size=12),
        shift=st.sampled_from([0, 0, 0, 0, -1, 1]),
        checksum=st.sampled_from([None, None, "right", "wrong"]),
        length=st.none() | LENGTH,
        override=st.booleans(),
        first=st.booleans(),
    )
    def send(
        self,
        number: int,
        content: bytes,
        shift: int,
        checksum: str | None,
        length: int | None,
        override: bool,
        first: bool,
    ) -> None:
        one = self.one(number)
        offset = max(0, len(one.sent) + shift)
        headers = {"Upload-Offset": str(offset), **BINARY}
        if checksum:
            digest = hashlib.sha1(content if checksum == "right" else b"other").digest()
            headers["Upload-Checksum"] = f"sha1 {base64.b64encode(digest).decode()}"
        told = one.size is None and length is not None
        if told:
            headers["Upload-Length"] = str(length)
        if override:
            headers["X-HTTP-Method-Override"] = "PATCH"
        method = "POST" if override else "PATCH"
        answer = self.ask(method, one.path, first, headers=headers, content=content)
        assert answer.status_code == self.after(one, offset, content, checksum, length if told else None)
        if answer.status_code == 204:
            assert answer.headers["Upload-Offset"] == str(len(one.sent))
            assert ("Upload-Expires" in answer.headers) == (one.state == "receiving")
        self.look(one)

    def after(
        self, one: Expected, offset: int, content: bytes, checksum: str | None, length: int | None
    ) -> int:
        """The status of a PATCH, which changes the model."""
        if one.state == "gone":
            return one.nowhere
        if one.concat and not one.partial:
            return 403
        if offset != len(one.sent):
            return 409
        if one.state == "complete":
            return 204
        if length is not None:
            if length < offset:
                return 409
            one.size = length
        if one.size is not None and offset + len(content) > one.size:
            return 413
        if checksum == "wrong":
            return 460
        one.sent += content
        one.went_on()
        return 204

    @precondition(lambda self: self.uploads)
    @rule(number=NUMBER, override=st.booleans(), first=st.booleans())
    def end(self, number: int, override: bool, first: bool) -> None:
        one = self.one(number)
        method, headers = (
            ("POST", {"X-HTTP-Method-Override": "DELETE"}) if override else ("DELETE", dict[str, str]())
        )
        answer = self.ask(method, one.path, first, headers=headers)
        status = {"receiving": 204, "complete": 409, "gone": one.nowhere}[one.state]
        assert answer.status_code == status, answer.text
        if status == 204:
            one.state = "gone"
        self.look(one)

    @precondition(lambda self: self.uploads)
    @rule(
        numbers=st.lists(NUMBER, min_size=1, max_size=4),
        parts_only=st.sampled_from([True, True, True, False]),
        digest=st.sampled_from([None, "right", "wrong"]),
        first=st.booleans(),
    )
    def join(self, numbers: list[int], parts_only: bool, digest: str | None, first: bool) -> None:
        """Mostly parts that could be joined, in any order."""
        ready = [one for one in self.uploads if one.partial and len(one.sent) == one.size]
        ready = [one for one in ready if one.state == "receiving"]
        among = ready if parts_only and ready else self.uploads
        parts = [among[number % len(among)] for number in numbers]
        content, name = b"".join(part.sent for part in parts), f"{next(self.numbers)}"
        concat = f"final;{' '.join(part.path for part in parts)}"
        given = {"filename": name}
        if digest:
            given["sha256"] = hashlib.sha256(content if digest == "right" else b"other").hexdigest()
        headers = {"Upload-Concat": concat, **metadata(**given)}
        path = f"{httpx.URL(self.service.api).path}uploads"
        answer = self.ask("POST", path, first, headers=headers)
        if answer.status_code == 201:
            assert all(part in ready for part in parts)
            assert len(parts) == len({part.path for part in parts})
            assert digest != "wrong"
        elif answer.status_code == 460:
            assert digest == "wrong"
        else:
            refused = [part for part in parts if part not in ready]
            assert refused or len(parts) > len({part.path for part in parts}), answer.text
            assert answer.status_code in (404, 409, 422)
            for part in parts:
                self.look(part)
            return
        for part in parts:
            part.state = "gone"
            self.look(part)
        if answer.status_code == 201:
            self.begun(answer, Expected("", name, len(content), concat, content))

    def teardown(self) -> None:
        for one in self.uploads:
            if one.state == "receiving":
                self.ask("DELETE", one.path)
        incoming = self.service.data_dir / self.beamtime.experiment / ".incoming"
        assert list(incoming.iterdir()) == []


def test_any_order_of_requests(service: RunningService) -> None:
    beamtime, ingest = service.beamtime(), service.ingest()
    headers = {"Authorization": f"Bearer {beamtime.agent_token}", **TUS}
    with httpx.Client(headers=headers, timeout=60) as client, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "service": service,
            "ingest": ingest,
            "beamtime": beamtime,
            "client": client,
        }.items():
            patch.setattr(Protocol, name, value, raising=False)
        run_state_machine_as_test(
            Protocol,
            settings=settings(
                max_examples=20,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
