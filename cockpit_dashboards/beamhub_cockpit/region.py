"""A region of a page in the browser: shows a tree of elements and reports what the reader does there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anywidget
import traitlets
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beamhub_cockpit.html import Element, changes

FRONT: Final = Path(__file__).parent / "front"


class Action(BaseModel):
    """What somebody did: the action's name and arguments as the page gave them, and what was typed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: str = Field(max_length=60)
    args: list[str | int] = Field(default=[], max_length=8)
    value: str | bool | None = None
    fields: dict[str, str] = {}


class Region(anywidget.AnyWidget):
    """Shows a tree of elements; calls `on_action` (on the kernel's loop) for each action in it.

    The tree has a version. The browser asks for the whole tree when it has none, or when it has missed a
    change; otherwise it gets the changes only.

    With `pulse` it is the outermost region of its page: the browser then asks every few seconds whether
    the kernel is there, and `last_seen` (monotonic seconds) tells when it last did.
    """

    _esm = (FRONT / "region.js").read_text()
    blobs = traitlets.Dict().tag(sync=True)
    pulse = traitlets.Bool(False).tag(sync=True)
    service = traitlets.Unicode("").tag(sync=True)  # with pulse: the API's address, as the browser sees it

    def __init__(
        self, on_action: Callable[[Action], None] | None = None, *, pulse: bool = False, service: str = ""
    ) -> None:
        super().__init__(pulse=pulse, service=service)
        self._on_action = on_action
        self._tree: list[Any] = []
        self._version = 0
        self.last_seen = time.monotonic()
        self.on_msg(self._heard)

    def show(self, *nodes: Element, blobs: dict[str, bytes] | None = None) -> None:
        """Show these elements, and the images they name; only what has changed is sent."""
        if blobs is not None and blobs != self.blobs:
            self.blobs = blobs
        tree = [node.json() for node in nodes]
        changed = changes(self._tree, tree)
        if changed:
            self._tree = tree
            self._version += 1
            self.send({"version": self._version, "changes": changed})

    @property
    def ref(self) -> str:
        """How another region names this one in its `widget` attribute."""
        return reference(self)

    def _heard(self, _widget: Any, content: Any, _buffers: Any) -> None:
        try:
            action = Action.model_validate(content)
        except ValidationError:
            return  # not from our own page: nobody else may say anything here
        self.last_seen = time.monotonic()
        if action.action == "ping":
            self.send({"pong": time.time()})
        elif action.action == "want":
            if action.args != [self._version]:
                self.send({"version": self._version, "tree": self._tree})
        elif self._on_action is not None:
            self._on_action(action)


def reference(widget: anywidget.AnyWidget) -> str:
    """How a region's `widget` attribute names a widget."""
    return f"anywidget:{widget.model_id}"
