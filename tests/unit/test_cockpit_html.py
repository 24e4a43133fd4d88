from __future__ import annotations

import json
from typing import Any

import pytest
from beamhub_cockpit.html import ATTRIBUTES, TAGS, Element, changes, el, find, text
from beamhub_cockpit.parts import table
from hypothesis import given
from hypothesis import strategies as st

anything = st.text(max_size=60) | st.sampled_from(
    [
        "<script>alert(1)</script>",
        "'\"><img src=x onerror=alert(1)>",
        "</textarea><svg onload=alert(1)>",
        "&lt;",
    ]
)


def strings(tree: Any) -> list[str]:
    """The children of a tree, as it is sent, that are text; in reading order."""
    if isinstance(tree, str):
        return [tree]
    return [found for child in tree[2:] for found in strings(child)]


def tags(tree: Any) -> list[str]:
    return [] if isinstance(tree, str) else [tree[0], *(tag for child in tree[2:] for tag in tags(child))]


@given(st.lists(anything, max_size=5), anything, anything)
def test_what_anybody_writes_stays_text(children: list[str], title: str, value: str) -> None:
    page = el("div.bh-card", el("p", *children), el("input", title=title, value=value), el("b", title))
    sent = json.loads(json.dumps(page.json()))

    assert strings(sent) == [*children, title]
    assert tags(sent) == ["div", "p", "input", "b"]
    assert sent[3][1] == {"title": title, "value": value}


@given(anything)
def test_no_text_becomes_a_tag_or_an_attribute(name: str) -> None:
    if name.split(".")[0] not in TAGS:
        with pytest.raises(ValueError, match="not among the tags"):
            el(name)
    if name.rstrip("_").replace("_", "-") not in {*ATTRIBUTES, "class"} and name != "tag":
        if name.startswith(("aria", "data")):
            return
        with pytest.raises(ValueError, match="not among the attributes"):
            el("p", **{name: "x"})


@pytest.mark.parametrize(
    "name", ["onclick", "onerror", "style", "srcdoc", "src", "innerHTML", "formaction", "action"]
)
def test_attributes_that_run_or_load_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not among the attributes"):
        el("img", **{name: "x"})


@pytest.mark.parametrize(
    "tag", ["script", "iframe", "object", "svg", "style", "link", "base", "meta", "SCRIPT"]
)
def test_tags_that_run_or_load_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="not among the tags"):
        el(tag)


@given(anything)
def test_links_lead_to_this_site_or_to_http(target: str) -> None:
    if target.startswith(("https://", "http://", "#", "?")) or (
        target[:1] == "/" and target[1:2] not in ("/", "\\")
    ):
        assert el("a", href=target).attributes["href"] == target
    else:
        with pytest.raises(ValueError, match="a link must lead"):
            el("a", href=target)


@pytest.mark.parametrize(
    "target",
    [
        "javascript:alert(1)",
        " javascript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        "/\\evil.example",
        "vbscript:x",
    ],
)
def test_dangerous_links_are_refused(target: str) -> None:
    with pytest.raises(ValueError, match="a link must lead"):
        el("a", href=target)


def test_children_may_be_nested_numbered_or_absent() -> None:
    page = el("p", "a", None, [el("b", 1), ["c", [2]]], False, ())
    assert page.json() == ["p", {}, "a", ["b", {}, "1"], "c", "2"]
    assert text(page) == "a1c2"


def test_names_of_attributes_and_classes() -> None:
    button = el(
        "button.bh-a.bh-b", "x", aria_label="Close", for_="y", class_="bh-c", disabled=None, hidden=False
    )
    assert button.attributes == {"class": "bh-a bh-b bh-c", "aria-label": "Close", "for": "y"}


def test_found_by_class() -> None:
    inner = el("span.bh-state", "running")
    page = el("div", el("p", inner), el("span.bh-statement", "no"))
    assert find(page, "bh-state") == [inner]
    assert isinstance(page, Element)


nodes = st.recursive(
    st.sampled_from(["a", "b", ""]),
    lambda children: st.builds(
        lambda tag, attributes, inner: [tag, attributes, *inner],
        st.sampled_from(["p", "div"]),
        st.sampled_from([{}, {"class": "x"}, {"key": 1}]),
        st.lists(children, max_size=3),
    ),
    max_leaves=12,
)
trees = st.lists(nodes, max_size=3)


def changed(tree: Any, path: list[int], node: Any) -> Any:
    """As front/region.js does it."""
    if not path:
        return node
    first, *rest = path
    copy = list(tree)
    if rest:
        tag, attributes, *children = copy[first]
        copy[first] = [tag, attributes, *changed(children, rest, node)]
    else:
        copy[first] = node
    return copy


@given(trees, trees)
def test_changes_lead_from_one_tree_to_the_other(old: list[Any], new: list[Any]) -> None:
    tree: Any = old
    for path, node in changes(old, new):
        tree = changed(tree, path, node)
    assert tree == new
    assert changes(new, new) == []


def test_a_small_change_is_sent_as_a_small_change() -> None:
    def page(state: str) -> list[Any]:
        rows = [el("tr", el("td", str(n)), el("td", state if n == 7 else "idle")) for n in range(50)]
        return [el("table", el("tbody", rows)).json()]

    assert changes(page("queued"), page("running")) == [[[0, 0, 7, 1, 0], "running"]]


def test_in_a_narrow_window_each_cell_of_a_table_has_its_columns_name() -> None:
    row = el("tr", el("td.a", "lyso"), el("td.b.bh-right", "2"), el("td.c", "button"), key="row")
    shown = table(".bh-rules", ("What", "CPUs"), [row], right=("CPUs",), last="What can be done")
    head, body = (child for child in shown.children if isinstance(child, Element))
    assert strings(head.json()) == ["What", "CPUs", "What can be done"]
    assert strings(body.json()) == ["lyso", "2", "button"]
    named = [find(body, name)[0].attributes.get("data-name") for name in "abc"]
    assert named == [None, "CPUs", None]
    assert find(body, "bh-right")[0] is find(body, "b")[0]
