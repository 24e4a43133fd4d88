"""What the staff see and do about an instrument's uploads: pausing them, and what has not arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from beamhub.client import Client
from beamhub.schemas import (
    AgentCommand,
    AgentFile,
    AgentStatus,
    CommandKind,
    Instrument,
    Upload,
    UploadsPaused,
)

from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.format import number, plural, size
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import ago, button, state
from beamhub_cockpit.question import Question, ask_reason

KNOWN: Final = 1000  # files that the list knows by name; what is done to all reaches the others too
SHOWN: Final = 50  # of one group
AT_ONCE: Final = 100  # files that one command may name
WORDS: Final = {"failed": "failed", "skipped": "left out", "quarantined": "in quarantine"}
WAYS: Final = {
    "failed": [("Retry", "retry"), ("Skip …", "skip")],
    "skipped": [("Send", "unskip")],
}
TOLD: Final = {
    CommandKind.RETRY: "send again",
    CommandKind.SKIP: "leave out",
    CommandKind.UNSKIP: "send after all",
    CommandKind.REPORT: "say what it has sent",
}


@dataclass
class Unsent:
    """The list of the files that an instrument's agent has not sent, while it is open."""

    instrument: str
    files: list[AgentFile] = field(default_factory=list)
    orders: list[AgentCommand] = field(default_factory=list)  # the agent has not taken them yet
    read: float = 0.0  # monotonic; 0: to be read

    def refresh(self, client: Client, now: float) -> None:
        """Ask again, where something may have changed."""
        if now - self.read < (2.0 if self.orders else 10.0):
            return
        self.files = client.agent_files(self.instrument, limit=KNOWN)
        self.orders = client.agent_commands(self.instrument)
        self.read = now

    def groups(self) -> Iterator[tuple[str, str, list[AgentFile]]]:
        """State, reason and files: what failed first, and the many before the few."""

        def kind(file: AgentFile) -> tuple[str, str]:
            return file.state, file.reason

        grouped = [(*key, list(files)) for key, files in groupby(sorted(self.files, key=kind), key=kind)]
        yield from sorted(grouped, key=lambda group: (group[0], -len(group[2])))

    def group(self, state: str, reason: str) -> list[AgentFile]:
        return [file for file in self.files if (file.state, file.reason) == (state, reason)]


# --- in the instrument's card ---


def paused(why: UploadsPaused, *, may_resume: bool) -> Element:
    """That no upload begins, since when and by whom."""
    return el(
        "div.bh-problem.bh-problem-pending.bh-uploads-paused",
        el(
            "div",
            el("p.bh-reason", "Uploads are paused"),
            el("p.bh-paused-why", why.reason),
            el("p.bh-hint", f"by {why.by} · ", ago(why.since), " · new files wait at the instrument"),
        ),
        button("Resume", ["uploads.resume"], css="bh-uploads-resume", twin="uploads") if may_resume else None,
    )


def tools(seen: Instrument, quarantined: int) -> Element:
    """For those who operate the instrument: what has not arrived, and the way to pause."""
    return el(
        "div.bh-upload-control",
        _unsent_line(seen.agent, quarantined),
        None
        if seen.uploads_paused
        else button("Pause uploads …", ["uploads.pause"], css="bh-uploads-pause", twin="uploads"),
    )


def _unsent_line(agent: AgentStatus | None, quarantined: int) -> Child:
    failed, skipped = (agent.failed, agent.skipped) if agent else (0, 0)
    counts = {"failed": failed, "quarantined": quarantined, "skipped": skipped}
    said = [f"{number(count)} {WORDS[kind]}" for kind, count in counts.items() if count]
    if not said:
        return None
    return button(
        " · ".join(said) + " …",
        ["unsent.open"],
        css="bh-unsent-open" + (" bh-button-danger" if failed or quarantined else ""),
        title="Files that did not get through, why, and what to do about them",
    )


def pause(do: Callable[[Mapping[str, str]], None], seen: Instrument) -> Question:
    return Question(
        f"Pause uploads from {seen.title}?",
        "Pause uploads",
        do,
        (
            el(
                "p",
                "No file is begun from now on, until somebody resumes them. What is on its way is finished, "
                "and new files wait at the instrument: nothing is lost.",
            ),
            ask_reason("Why?", "Everybody on this beamtime sees it.", "sample change, network maintenance …"),
        ),
        name="bh-pause",
    )


# --- the list ---


def show(unsent: Unsent, agent: AgentStatus | None, quarantined: Sequence[Upload]) -> Element:
    """The files that did not get through, by their reasons; those in quarantine first."""
    groups = list(unsent.groups())
    failed, skipped = (agent.failed, agent.skipped) if agent else (0, 0)
    beyond = failed + skipped - len(unsent.files)
    body: list[Child] = [
        [_order(order) for order in unsent.orders[:3]],
        el("p.bh-hint", f"and {plural(len(unsent.orders) - 3, 'more order')}")
        if len(unsent.orders) > 3
        else None,
        [_quarantined(upload) for upload in quarantined],
        [_group(*group, opened=len(groups) <= 2) for group in groups],
        el("p.bh-empty", "None: everything has arrived, or waits for its turn.")
        if not groups and not quarantined
        else None,
        el("p.bh-hint", f"{plural(beyond, 'more file is', 'more files are')} not listed.")
        if beyond > 0 and len(unsent.files) >= KNOWN
        else None,
    ]
    retry = button(f"Retry all {number(failed)} failed", ["unsent.all", "retry"], css="bh-retry-all")
    send = button(f"Send all {number(skipped)} left out", ["unsent.all", "unskip"], css="bh-unskip-all")
    return dialog(
        "bh-unsent",
        "Files that did not get through",
        body,
        [None, retry if failed else None, send if skipped else None],
        hint="Nothing is ever deleted at the instrument.",
        close="unsent.close",
        key="unsent",
    )


def _order(order: AgentCommand) -> Element:
    which = plural(len(order.paths), "file") if order.paths else order.pattern or "all"
    return el(
        "p.bh-problem.bh-problem-cancelled.bh-unsent-order",
        f"The agent is asked to {TOLD[order.kind]}: {which} · by {order.created_by} · ",
        ago(order.created),
        key=f"order-{order.id}",
    )


def _group(kind: str, reason: str, files: list[AgentFile], *, opened: bool) -> Element:
    several = f" all {number(len(files))}" if len(files) > 1 else ""
    alone = WAYS[kind]
    return el(
        "details.bh-unsent-group",
        el(
            "summary",
            state(WORDS[kind], "bh-unsent-state"),
            el("strong.bh-unsent-count", plural(len(files), "file")),
            el("span.bh-unsent-reason", reason or "no reason is known"),
        ),
        el(
            "ul.bh-unsent-files",
            [
                el(
                    "li",
                    el("span.bh-unsent-name", file.name),
                    el("span.bh-sub", size(file.size)),
                    [
                        button(
                            label,
                            ["unsent.group", what, kind, reason, file.name],
                            look="bh-text-button",
                            said=f"{label.removesuffix(' …')} {file.name}",
                        )
                        for label, what in alone
                    ]
                    if several
                    else None,
                    key=file.name,
                )
                for file in files[:SHOWN]
            ],
            el("li.bh-hint", f"and {plural(len(files) - SHOWN, 'more')}") if len(files) > SHOWN else None,
        ),
        el(
            "div.bh-unsent-tools",
            [
                button(
                    label.replace(" …", f"{several} …") if "…" in label else label + several,
                    ["unsent.group", what, kind, reason],
                    css=f"bh-unsent-{what}",
                )
                for label, what in alone
            ],
        ),
        open=opened or None,
        key=f"{kind}-{reason}",
        data_state=kind,
    )


def _quarantined(upload: Upload) -> Element:
    return el(
        "details.bh-unsent-group",
        el(
            "summary",
            state(WORDS["quarantined"], "bh-unsent-state"),
            el("strong.bh-unsent-count", upload.path.rsplit("/", 1)[-1]),
            el("span.bh-unsent-reason", upload.error or "no reason is known"),
        ),
        el(
            "p.bh-hint",
            f"{size(upload.size)} · for {upload.experiment} · ",
            ago(upload.ended or upload.created),
            " · It has arrived, and nobody can read it: no member, no job, no session.",
        ),
        el(
            "div.bh-unsent-tools",
            button("Release …", ["quarantine.ask", "release", upload.id], css="bh-unsent-release"),
            button(
                "Delete …", ["quarantine.ask", "discard", upload.id], css="bh-button-danger bh-unsent-discard"
            ),
        ),
        open=True,
        key=f"quarantined-{upload.id}",
        data_state="quarantined",
    )


def decide(do: Callable[[Mapping[str, str]], None], what: str, upload: Upload) -> Question:
    """Asks why a quarantined file is to be released, or deleted."""
    release = what == "release"
    return Question(
        f"{'Release' if release else 'Delete'} {upload.path.rsplit('/', 1)[-1]}?",
        "Release" if release else "Delete",
        do,
        (
            el("p", "It is in quarantine because ", el("strong", upload.error), "."),
            el(
                "p",
                f"Everybody in {upload.experiment} can then read it, and programs that open it may follow "
                "where it leads. No dataset is made of it."
                if release
                else "The copy that has arrived is deleted. The one at the instrument stays.",
            ),
            ask_reason("Why?", "It goes into the audit log."),
        ),
        danger=not release,
        name="bh-quarantine",
    )


def skip(do: Callable[[Mapping[str, str]], None], files: Sequence[AgentFile]) -> Question:
    """Asks why files are to be left out."""
    what = files[0].name if len(files) == 1 else plural(len(files), "file")
    return Question(
        f"Leave out {what}?",
        "Leave out",
        do,
        (
            el("p", "The agent does not send them any more. “Send” takes this back."),
            ask_reason("Why?", placeholder="test shot, wrong sample …"),
        ),
        name="bh-skip",
    )


def tell(client: Client, instrument: str, what: str, files: Sequence[AgentFile], reason: str = "") -> None:
    """Have the agent do something with these files: "retry", "skip" or "unskip"."""
    names = [file.name for file in files]
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        if what == "retry":
            client.retry_uploads(instrument, some)
        elif what == "unskip":
            client.unskip_uploads(instrument, some)
        elif what == "skip":
            client.skip_uploads(instrument, some, reason=reason)
