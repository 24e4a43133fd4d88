"""Pages as trees of elements, never as strings of markup.

A page is built in Python from `el("tag.class", ..., attribute=...)`, travels to the browser as JSON and
becomes DOM nodes there by `createElement` and `createTextNode` (front/region.js). Text therefore stays text
whatever it holds: no name, parameter, log line or file can become markup, because no step of the way parses
markup. Tags and attributes are from a short list; links lead to this site or to http(s) and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

_TAGS = """
    a article aside b button caption code dd details dialog div dl dt em fieldset figcaption figure
    footer form h1 h2 h3 h4 header hr img input label legend li main meter nav ol optgroup option output
    p pre progress section select small span strong sub summary sup table tbody td textarea th thead
    time tr ul
"""
_ORDINARY = """
    alt autocomplete checked colspan disabled download for hidden href id inputmode label max maxlength method
    min name open pattern placeholder readonly rel required role rows scope selected spellcheck step
    tabindex target title type value width height datetime
"""
_OWN = "ago since on blob widget modal tail focus vars key"  # front/region.js says what they do
TAGS: Final = frozenset(_TAGS.split())
ATTRIBUTES: Final = frozenset((_ORDINARY + _OWN).split())
_NAME = re.compile(r"^(aria|data)-[a-z-]+$")
_LINK = re.compile(r"^(https?://|/(?![/\\])|#|\?)")

Node: TypeAlias = "str | Element"
Child: TypeAlias = "Node | int | bool | Iterable[Child] | None"


@dataclass(frozen=True)
class Element:
    """One element: a known tag, known attributes, and children that are elements or text."""

    tag: str
    attributes: Mapping[str, Any]
    children: tuple[Node, ...]

    def json(self) -> list[Any]:
        """`[tag, attributes, child, ...]`, as region.js reads it."""
        children = [c if isinstance(c, str) else c.json() for c in self.children]
        return [self.tag, dict(self.attributes), *children]


def el(tag: str, *children: Child, **attributes: Any) -> Element:
    """An element; `tag` may carry classes as in "div.bh-card.bh-wide".

    Attribute names write `-` as `_` (aria_label) and reserved words with a trailing `_` (for_). An
    attribute that is None or False is left out. Children may be text, whole numbers, elements, nested
    lists of these, or None.

    Raises:
        ValueError: for a tag, an attribute or a link that is not allowed.
    """
    name, *classes = tag.split(".")
    if name not in TAGS:
        raise ValueError(f"<{name}> is not among the tags of a page")
    given: dict[str, Any] = {}
    if classes:
        given["class"] = " ".join(classes)
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        if attribute == "class":
            given["class"] = " ".join(filter(None, [given.get("class", ""), str(value)]))
            continue
        if attribute not in ATTRIBUTES and not _NAME.match(attribute):
            raise ValueError(f"{attribute!r} is not among the attributes of a page")
        if attribute == "href" and not _LINK.match(str(value)):
            raise ValueError(f"a link must lead to this site or to http(s), not to {value!r}")
        given[attribute] = value
    return Element(name, given, tuple(_flat(children)))


def _flat(children: Iterable[Child]) -> Iterable[Node]:
    for child in children:
        if child is None or child is True or child is False:
            continue
        if isinstance(child, str | Element):
            yield child
        elif isinstance(child, int):
            yield str(child)
        else:
            yield from _flat(child)


def changes(old: Any, new: Any, path: tuple[int, ...] = ()) -> list[list[Any]]:
    """What to replace in `old` to get `new`, both as JSON: [[path, node], ...], few and small.

    `old` and `new` are lists of nodes at the top, and nodes below; a path is the place among the children
    of each level. Lists of different lengths, and elements whose attributes differ, are replaced as a
    whole; at the top such a replacement has the empty path and the whole list.
    """
    if old == new:
        return []
    first = 2 if path else 0  # an element begins with its tag and attributes
    alike = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    if not alike or old[:first] != new[:first]:
        return [[list(path), new]]
    pairs = enumerate(zip(old[first:], new[first:], strict=True))
    return [change for i, (a, b) in pairs for change in changes(a, b, (*path, i))]


def text(node: Node) -> str:
    """All text of a node and what it holds, in reading order."""
    return node if isinstance(node, str) else "".join(text(child) for child in node.children)


def find(node: Node, css_class: str) -> list[Element]:
    """All elements within `node` (itself included) that carry a class."""
    if isinstance(node, str):
        return []
    here = [node] if css_class in str(node.attributes.get("class", "")).split() else []
    return here + [hit for child in node.children for hit in find(child, css_class)]
