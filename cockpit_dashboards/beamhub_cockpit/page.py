"""What all pages have in common: a viewer, a frame with navigation and notices, and being kept current."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from beamhub.client import ApiError, Client, Message, Unreachable
from beamhub.schemas import Me
from IPython.display import display

from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.identity import Viewer, viewer
from beamhub_cockpit.links import Links
from beamhub_cockpit.live import Live
from beamhub_cockpit.parts import button
from beamhub_cockpit.region import Action, Region

UNSEEN: Final = 90.0  # seconds without a sign of the browser after which a page stops listening
QUIET: Final = 12.0  # seconds without a message after which the service is asked whether it is there
ANSWER: Final = 5.0  # seconds for it to say so; it is asked three times
REFRESH: Final = 60.0  # seconds after which everything is asked anew, whatever was heard
AGAIN: Final = 10.0  # seconds after which it is tried again
NOTICE: Final = 12.0  # seconds that a notice of success stays


@dataclass(frozen=True)
class Notice:
    """Something to tell the viewer, once."""

    id: int
    kind: str  # "done" or "problem"
    title: str
    detail: str
    until: float  # monotonic; endless for problems


class Page(ABC):
    """A page for one viewer.

    Subclasses say what it shows (`regions`), knows (`load`, `heard`) and does (`actions`).

    All methods but the constructor and `open` run on the page's worker.
    """

    title: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ()  # of its regions, in order
    follows: ClassVar[bool] = True  # listens to the event stream

    def __init__(self, seen_by: Viewer, loop: asyncio.AbstractEventLoop) -> None:
        self.viewer = seen_by
        self.client = Client(seen_by.hub_url, seen_by.token)
        self._asking = Client(seen_by.hub_url, seen_by.token, timeout=ANSWER)  # whether it is there at all
        self.me: Me | None = None
        self.links = Links(seen_by.base_url, seen_by.name)
        self.root = Region(self._act, pulse=True, service=self.links.api())
        self.parts = {name: Region(self._act) for name in self.names}
        self.live = Live(loop, draw=self._draw, failed=self._failed, tick=self._tick)
        self._notices: list[Notice] = []
        self._told = 0
        self._lost = ""
        self._loaded = 0.0
        self._wish_reload = False

    @classmethod
    def open(cls, **options: Any) -> None:
        """Show this page in the notebook that calls it, to whoever opens it."""
        page = cls(viewer(), asyncio.get_event_loop(), **options)
        page.root.show(*page.frame())
        display(page.root)  # type: ignore[no-untyped-call]  # IPython is not typed here
        page.live.start()
        if page.follows:
            page.live.follow(page.client.events, page._hear)
        page.live.do(page._load)

    # --- what a page is made of ---

    @abstractmethod
    def load(self) -> None:
        """Ask the service for all that this page shows."""

    def heard(self, message: Message) -> None:  # noqa: B027 (not every page listens)
        """Take in a message of the live feed."""

    @abstractmethod
    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        """What each region shows now; a region that is left out stays as it is."""

    def layout(self) -> Element:
        """Where the regions are."""
        return el("main.bh-main", *[self.slot(name) for name in self.names])

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        """What to do for each action of the page."""
        return {}

    def images(self, name: str) -> dict[str, bytes] | None:  # noqa: ARG002 (for subclasses)
        """The images that a region shows; None: as they are."""
        return None

    def heading(self) -> tuple[Child, ...]:
        """What stands in the bar beside the navigation."""
        return ()

    def every(self) -> None:  # noqa: B027 (not every page needs it)
        """Called every couple of seconds while somebody looks."""

    # --- helpers for subclasses ---

    def slot(self, name: str, **attributes: Any) -> Element:
        return el(f"div.bh-slot.bh-slot-{name}", widget=self.parts[name].ref, key=name, **attributes)

    def notify(self, title: str, detail: str = "", *, kind: str = "done") -> None:
        """Tell the viewer something."""
        if any((n.title, n.detail) == (title, detail) for n in self._notices):
            return
        self._told += 1
        until = time.monotonic() + NOTICE if kind == "done" else float("inf")
        self._notices = [*self._notices[-3:], Notice(self._told, kind, title, detail, until)]

    def refresh_soon(self) -> None:
        """Ask the service for everything again."""
        self._wish_reload = True

    # --- frame ---

    def frame(self) -> tuple[Element, ...]:
        """Bar, banner, regions, notices."""
        staff = self.me is not None and (self.me.operator or bool(self.me.staff_of))
        pages = [
            ("Cockpit", self.links.page("cockpit"), "cockpit"),
            ("Experiments", self.links.page("experiments"), "experiments"),
        ]
        if staff:
            pages.append(("Facility", self.links.page("facility"), "facility"))
        here = type(self).__name__.lower()
        return (
            el(
                "header.bh-bar",
                el("a.bh-brand", "beamhub", href=self.links.page("cockpit"), title="To the Cockpit"),
                el(
                    "nav.bh-nav",
                    [
                        el("a.bh-nav-link", text, href=href, aria_current="page" if name == here else None)
                        for text, href, name in pages
                    ],
                    aria_label="Pages",
                ),
                el("div.bh-bar-middle", *self.heading()),
                el(
                    "div.bh-bar-end",
                    el("span.bh-viewer-name", self.me.name if self.me else self.viewer.name),
                    el("a.bh-quiet-link", "Sessions", href=self.links.home, title="Tokens and password, too"),
                    el("a.bh-quiet-link", "Sign out", href=self.links.sign_out),
                ),
                key="bar",
            ),
            *(
                [el("div.bh-banner.bh-banner-lost", self._lost, role="alert", key="banner")]
                if self._lost
                else []
            ),
            el("div.bh-page", self.layout(), key="page"),
            el("div.bh-notices", [self._notice(n) for n in self._notices], aria_live="polite", key="notices"),
        )

    def _notice(self, notice: Notice) -> Element:
        return el(
            f"div.bh-notice.bh-notice-{notice.kind}",
            el("div", el("strong", notice.title), el("p", notice.detail) if notice.detail else None),
            button("×", ["notice.dismiss", notice.id], look="bh-icon-button", said="Dismiss"),
            role="status" if notice.kind == "done" else "alert",
            key=notice.id,
        )

    # --- on the loop ---

    def _act(self, action: Action) -> None:
        self.live.do(lambda: self._do(action))
        self.live.do(
            lambda: self.live.show(lambda: self.root.send({"did": action.action}))
        )  # also if it failed

    def _did(self) -> None:
        self.root.send({"did": True})

    # --- on the worker ---

    def _do(self, action: Action) -> None:
        if action.action == "notice.dismiss":
            self._notices = [n for n in self._notices if n.id != action.args[0]]
            return
        act = self.actions().get(action.action)
        if act is not None:
            act(action)

    def _load(self) -> None:
        self._wish_reload = False
        self._loaded = time.monotonic() - REFRESH + AGAIN  # in case it fails
        self.me = self._asking.me()
        self.load()
        self._loaded = time.monotonic()
        self._lost = ""

    def _hear(self, message: Message) -> None:
        if self.me is not None:
            self.heard(message)

    def _tick(self) -> None:
        now = time.monotonic()
        self._notices = [n for n in self._notices if n.until > now]
        if now - self.root.last_seen > UNSEEN:
            self.live.pause()
            return
        if self.follows and not self.live.following:  # somebody looks again
            self.live.follow(self.client.events, self._hear)
            self._wish_reload = True
        if self._lost or self._wish_reload or now - self._loaded > REFRESH:
            self._load()
        elif self.follows and now - self.live.heard > QUIET:
            self._asking.me()
            self.live.heard = now
        self.every()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, Unreachable) or (
            isinstance(error, ApiError) and error.status in (502, 503, 504)
        ):
            self._lost = (
                "The beamhub service does not answer. Data taking and jobs go on without it; "
                "this page resumes by itself."
            )
        elif isinstance(error, ApiError) and error.status == 401:
            self._lost = "Your sign-in has ended. Reload this page to sign in again."
        elif isinstance(error, ApiError):
            self.notify(error.problem.detail or error.problem.title, error.problem.remedy, kind="problem")
        else:
            traceback.print_exception(error, file=sys.__stderr__)
            self.notify(
                "Something on this page went wrong",
                "Reload it; if that does not help, tell the staff what you did and when "
                f"({type(error).__name__}).",
                kind="problem",
            )

    def _draw(self) -> Callable[[], None]:
        shown = dict(self.regions()) if self.me is not None else {}
        images = {name: self.images(name) for name in shown}
        frame = self.frame()

        def apply() -> None:
            self.root.show(*frame)
            for name, nodes in shown.items():
                self.parts[name].show(*nodes, blobs=images[name])

        return apply
