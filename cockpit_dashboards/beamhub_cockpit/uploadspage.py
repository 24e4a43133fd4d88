"""A page on which the staff control an instrument's uploads: pause them, and see to what has not arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from beamhub.client import Message
from beamhub.schemas import Instrument

from beamhub_cockpit import control
from beamhub_cockpit.control import Unsent
from beamhub_cockpit.html import Element
from beamhub_cockpit.jobpage import JobPage
from beamhub_cockpit.region import Action


class UploadsPage(JobPage):
    """A page with the control of uploads."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unsent: Unsent | None = None  # the list, while it is open

    def begin_anew(self) -> None:
        super().begin_anew()
        self.unsent = None

    def heard(self, message: Message) -> None:
        super().heard(message)
        if self.unsent is not None and message.kind in ("agent.obeyed", "agent.ordered"):
            self.unsent.read = 0.0

    def every(self) -> None:
        super().every()
        if self.unsent is not None:
            self.unsent.refresh(self.client, time.monotonic())

    def dialog(self) -> tuple[Element, ...]:
        scene, unsent = self.scene, self.unsent
        if scene is None or scene.experiment is None or unsent is None:
            return super().dialog()
        agent = scene.instrument.agent if scene.instrument else None
        return control.show(unsent, agent, scene.quarantine), *super().dialog()

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            **super().actions(),
            "uploads.pause": self._pause_uploads,
            "uploads.resume": self._resume_uploads,
            "unsent.open": self._open_unsent,
            "unsent.close": self._close_unsent,
            "unsent.all": self._all_unsent,
            "unsent.group": self._group_unsent,
            "quarantine.ask": self._decide,
        }

    def _pause_uploads(self, _action: Action) -> None:
        seen = self.scene.instrument if self.scene else None
        if seen is not None:

            def pause(fields: Mapping[str, str]) -> None:
                self._instrument(self.client.pause_uploads(seen.id, fields.get("reason", "")))

            self.question = control.pause(pause, seen)

    def _resume_uploads(self, _action: Action) -> None:
        if self.scene is not None and self.scene.instrument is not None:
            self._instrument(self.client.resume_uploads(self.scene.instrument.id))

    def _instrument(self, changed: Instrument) -> None:
        if self.scene is not None:
            self.scene.instrument = changed

    def _open_unsent(self, _action: Action) -> None:
        if self.scene is not None and self.scene.instrument is not None:
            self.unsent = Unsent(self.scene.instrument.id)
            self.unsent.refresh(self.client, time.monotonic())

    def _close_unsent(self, _action: Action) -> None:
        self.unsent = None

    def _all_unsent(self, action: Action) -> None:
        if self.unsent is None:
            return
        if action.args[0] == "retry":
            self.client.retry_uploads(self.unsent.instrument)
        else:
            self.client.unskip_uploads(self.unsent.instrument)
        self._ordered(self.unsent)

    def _group_unsent(self, action: Action) -> None:
        unsent = self.unsent
        what, state, reason, *name = (str(arg) for arg in action.args)
        group = unsent.group(state, reason) if unsent else []
        files = [file for file in group if not name or file.name == name[0]]
        if unsent is None or not files:
            return
        if what == "skip":

            def skip(fields: Mapping[str, str]) -> None:
                control.tell(self.client, unsent.instrument, "skip", files, fields.get("reason", ""))
                self._ordered(unsent)

            self.question = control.skip(skip, files)
        else:
            control.tell(self.client, unsent.instrument, what, files)
            self._ordered(unsent)

    def _ordered(self, unsent: Unsent) -> None:
        unsent.read = 0.0
        unsent.refresh(self.client, time.monotonic())

    def _decide(self, action: Action) -> None:
        what, id_ = (str(arg) for arg in action.args)
        scene = self.scene
        upload = next((u for u in scene.quarantine if u.id == id_), None) if scene else None
        if scene is None or upload is None:
            return

        def decide(fields: Mapping[str, str]) -> None:
            act = self.client.release_upload if what == "release" else self.client.discard_upload
            act(id_, fields.get("reason", ""))
            scene.quarantine = [u for u in scene.quarantine if u.id != id_]

        self.question = control.decide(decide, what, upload)
