"""The small parts of the API that need no server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from beamhub.api import notebook
from beamhub.api.files import Span, _filename, span_of
from beamhub.api.identity import bearer_token, principal_of
from beamhub.api.routes import Paging, page_of
from beamhub.errors import Conflict, TooLarge
from beamhub.page import LIMIT, NoNotebook
from beamhub.page import page as page_of_notebook
from beamhub.schemas import Profile
from hypothesis import given
from hypothesis import strategies as st
from jupyter_server.auth import User


def user(**hub_user: Any) -> User:
    found = User(username="ada")
    if hub_user:
        found.hub_user = hub_user  # type: ignore[attr-defined]
    return found


def test_the_hub_says_who_operates() -> None:
    assert principal_of(user()).operator is False
    assert principal_of(user(kind="user", name="ada", admin=False)).operator is False
    assert principal_of(user(kind="user", name="ada", admin=None)).operator is False
    assert principal_of(user(kind="user", name="ada", admin=True)).operator is True
    service = principal_of(user(kind="service", name="operator", admin=False))
    assert (service.operator, service.kind, service.name) == (True, "service", "service:operator")


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("token abc", None),
        ("Bearer", None),
        ("", None),
        (None, None),
    ],
)
def test_bearer_tokens(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token


@pytest.mark.parametrize(
    ("header", "size", "span"),
    [
        (None, 10, Span(0, 10, partial=False)),
        ("bytes=0-", 10, Span(0, 10, partial=True)),
        ("bytes=2-4", 10, Span(2, 3, partial=True)),
        ("bytes=2-400", 10, Span(2, 8, partial=True)),
        ("bytes=-3", 10, Span(7, 3, partial=True)),
        ("bytes=-30", 10, Span(0, 10, partial=True)),
        ("bytes=10-", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=4-2", 10, Span(0, 10, partial=False)),
        ("bytes=0-1,3-4", 10, Span(0, 10, partial=False)),
        ("bytes=-", 10, Span(0, 10, partial=False)),
    ],
)
def test_ranges(header: str | None, size: int, span: Span | None) -> None:
    assert span_of(header, size) == span


@given(st.text(max_size=40), st.integers(0, 1000))
def test_a_range_lies_in_the_file(header: str, size: int) -> None:
    span = span_of(f"bytes={header}", size)
    if span is not None:
        assert 0 <= span.start <= span.start + span.length <= size


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_file_name_cannot_leave_its_header(name: str) -> None:
    header = _filename(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2


@given(st.sets(st.integers(1, 64)), st.integers(1, 7))
def test_pages_of_a_list_that_is_at_hand(numbers: set[int], limit: int) -> None:
    profiles = [Profile(name=f"cpu-{n:02}", title="", cpus=n, memory=1, walltime=1) for n in numbers]
    seen: list[int] = []
    after = None
    while True:
        page = page_of(profiles, Paging(after=after, limit=limit), lambda profile: profile.name)
        assert len(page.items) <= limit
        seen += [profile.cpus for profile in page.items]
        after = page.next
        if after is None:
            break
    assert seen == sorted(numbers)


def page(*cells: dict[str, Any]) -> str:
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells)}
    return page_of_notebook(json.dumps(content).encode(), "Job 1").decode()


def code(**data: str) -> dict[str, Any]:
    output = {
        "output_type": "display_data",
        "metadata": {},
        "data": {k.replace("_", "/"): v for k, v in data.items()},
    }
    return {
        "cell_type": "code",
        "id": f"code-{len(str(data))}",
        "metadata": {},
        "execution_count": 1,
        "source": "</script><script>alert(1)</script>",
        "outputs": [output],
    }


def test_the_page_of_a_notebook_has_no_code_of_its_authors() -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script><b>kept</b>"
    markdown = {"cell_type": "markdown", "id": "b", "metadata": {}, "source": f"*text* {evil}"}
    html = page(code(text_html=evil), code(application_javascript="alert(1)"), markdown)
    assert "<b>kept</b>" in html
    assert "onerror" not in html.replace("&quot;", "").replace("onerror=alert(1)&gt;", "")
    assert "<script>alert" not in html
    for host in ("cdnjs", "unpkg", "jsdelivr"):
        assert host not in html


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cells": 1}', b"\xff"])
def test_what_is_no_notebook_has_no_page(content: bytes) -> None:
    with pytest.raises(NoNotebook):
        page_of_notebook(content, "Job 1")


async def test_pages_are_made_in_a_process_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "job.ipynb"
    file.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}))
    with file.open("rb") as good:
        assert b"<html" in await notebook.page(good, "job 1")
    file.write_bytes(b"{")
    with file.open("rb") as bad, pytest.raises(Conflict, match="job 1"):
        await notebook.page(bad, "job 1")
    with file.open("r+b") as huge:
        huge.truncate(LIMIT + 1)
        with pytest.raises(TooLarge):
            await notebook.page(huge, "job 1")
