"""The people of a beamtime: each with a browser of their own, and an ear for events."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from beamhub.client import Client, Message
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Browser, BrowserContext, Page, expect

# milliseconds a page may take for what happens in the facility; a good run needs a tenth of it
LONG = 120_000
# JupyterLab's windows, Voila's pages among them, tell each other apart by names; where a second one comes,
# the first ones' scripts reject a promise of their own and go on
WINDOW_NAMES = 'Window name candidate "null" already exists'
SIZES = {"1440x900": (1440, 900), "1024x768": (1024, 768)}


class People:
    """Everybody's browser: one signed-in context for each, kept over the story."""

    def __init__(self, browser: Browser, demo: RunningDemo, pictures: Path) -> None:
        self._browser = browser
        self._demo = demo
        self._pictures = pictures
        self._contexts: dict[str, BrowserContext] = {}
        self._pages: dict[tuple[str, str], Page] = {}
        self.complaints: list[str] = []  # what pages wrote to the console as errors, and exceptions in them

    def page(self, user: str, tab: str = "") -> Page:
        """A page of the user's browser: the same one each time, per tab."""
        if user not in self._contexts:
            self._contexts[user] = self._sign_in(user)
        if (user, tab) not in self._pages:
            page = self._contexts[user].new_page()
            page.on("pageerror", lambda error: self._complain(f"{user}: {page.url}: {error}"))
            self._pages[user, tab] = page
        return self._pages[user, tab]

    def _complain(self, complaint: str) -> None:
        if WINDOW_NAMES not in complaint:
            self.complaints.append(complaint)

    def stranger(self) -> Page:
        """A browser that nobody has signed in with."""
        return self._browser.new_context(viewport={"width": 1440, "height": 900}).new_page()

    def _sign_in(self, user: str) -> BrowserContext:
        context = self._browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        context.set_default_timeout(LONG)
        page = context.new_page()
        page.goto(f"{self._demo.url}/hub/login")
        page.locator("input[name=username]").fill(user)
        page.locator("input[name=password]").fill(self._demo.credentials.users[user].password)
        page.locator("[type=submit]").click()
        expect(page).to_have_url(f"{self._demo.url}/services/cockpit/voila/render/cockpit.ipynb")
        page.close()
        return context

    def picture(self, page: Page, name: str, *, whole: bool = False) -> None:
        """Keeps what the page looks like, in both sizes that pages are made for."""
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )
            page.screenshot(path=self._pictures / f"{name}-{size}.png", full_page=whole)
            overflow = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert overflow <= 0, f"{name} at {size} is {overflow} px too wide"
        page.set_viewport_size({"width": 1440, "height": 900})


class Listener:
    """Collects the messages of somebody's event stream on a thread, from now until one is as `until` says."""

    def __init__(self, client: Client, until: Callable[[Message], bool]) -> None:
        self._client = client
        self._until = until
        self._since = max((event.id for event in client.past_events()), default=0)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.heard: list[Message] = []
        self._thread.start()

    def _listen(self) -> None:
        for message in self._client.events(last_id=self._since):
            self.heard.append(message)
            if self._until(message):
                return

    def all(self) -> list[Message]:
        """All that was heard; waits for the last one."""
        self._thread.join(60)
        assert not self._thread.is_alive(), f"still waits; heard {self.heard}"
        return self.heard
