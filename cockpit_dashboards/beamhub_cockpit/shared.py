"""The files that members share: what is in the experiment's shared/, and the way to put more into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anywidget
import traitlets
from beamhub.schemas import File

from beamhub_cockpit.format import plural, size
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import ago, card, file_link
from beamhub_cockpit.region import FRONT, reference
from beamhub_cockpit.scene import FILES, SHARED

SHOWN: Final = 100


class Uploads(anywidget.AnyWidget):
    """Takes files from the person's machine and sends them from the browser, in the browser's identity.

    `takes` says whether this person may put files into `experiment`; what is on its way goes on in any case.
    """

    _esm = (FRONT / "tus.js").read_text() + "\n" + (FRONT / "shared.js").read_text()
    service = traitlets.Unicode().tag(sync=True)  # the API's address, as the browser sees it
    user = traitlets.Unicode().tag(sync=True)
    experiment = traitlets.Unicode("").tag(sync=True)
    takes = traitlets.Bool(False).tag(sync=True)

    def welcome(self, experiment: str, takes: bool) -> None:
        """Take files for this experiment from now on, or none. On the kernel's loop."""
        with self.hold_sync():
            self.experiment, self.takes = experiment, takes

    @property
    def ref(self) -> str:
        return reference(self)


def panel(experiment: str, files: Sequence[File], uploads: Uploads, links: Links) -> Element:
    """The card; newest files first."""
    newest = sorted(files, key=lambda file: file.modified, reverse=True)
    more = len(newest) > SHOWN or len(files) >= FILES
    return card(
        "Shared files",
        el("div.bh-shared-widget", widget=uploads.ref, key="uploads"),
        el(
            "ul.bh-shared",
            [
                el(
                    "li.bh-shared-file",
                    file_link(
                        file.path.removeprefix(f"{SHARED}/"),
                        links.api("experiments", experiment, "files", file.path),
                        "bh-shared-name",
                    ),
                    el("span.bh-sub", f"{size(file.size)} · ", ago(file.modified)),
                    key=file.path,
                    data_path=file.path,
                )
                for file in newest[:SHOWN]
            ],
        )
        if newest
        else el("p.bh-empty", "Nothing yet. Everybody in the experiment sees what is put here."),
        el("p.bh-hint", "Not all are listed: JupyterLab shows the whole folder.") if more else None,
        aside=el(
            "span.bh-count",
            f"{FILES} files or more" if len(files) >= FILES else plural(len(files), "file"),
        )
        if files
        else None,
        css="bh-shared-card",
    )
