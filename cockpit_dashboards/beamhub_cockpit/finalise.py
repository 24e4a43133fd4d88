"""The dialog in which the staff finalise an experiment: everything has arrived, and a manifest says so."""

from __future__ import annotations

from beamhub.schemas import Experiment, Finalisation, FinalisationState

from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.format import number, plural
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import ago, bar, button, file_link
from beamhub_cockpit.question import ask_reason

GOING = (FinalisationState.CHECKING, FinalisationState.HASHING)
MANIFEST = "sha256sums"


def manifest(experiment: Experiment, seen: Finalisation | None, links: Links) -> Element | None:
    """For everybody: the way to the manifest, once there is one."""
    if seen is None or seen.state not in (FinalisationState.DONE, FinalisationState.OUTDATED):
        return None
    outdated = seen.state is FinalisationState.OUTDATED
    return el(
        "span.bh-signed-off",
        "Finalised by ",
        el("strong", seen.created_by),
        " ",
        ago(seen.ended),
        ", but changed since" if outdated else "",
        " · ",
        file_link(MANIFEST, _link(experiment, links), "bh-manifest"),
        class_="bh-warn" if outdated else None,
    )


def show(experiment: Experiment, seen: Finalisation | None, refused: str, links: Links) -> Element:
    """What is compared, how it goes, and what came out."""
    state = seen.state if seen else None
    body: list[Child] = []
    blocked = state is FinalisationState.BLOCKED
    if seen is None or state is FinalisationState.OUTDATED:
        if seen is not None:
            body.append(el("p.bh-warn", "It was finalised, and something has changed since."))
        body += _intention(experiment)
    elif state is FinalisationState.CHECKING:
        body += [
            el("p", "The agent is asked what it has sent, and that is compared with what lies here."),
            bar(None, "Comparing"),
        ]
    elif state is FinalisationState.HASHING:
        body += [
            el(
                "p",
                "Everything is compared. The manifest is being made: files without a known sha256 are read.",
            ),
            bar(seen.progress, "Files in the manifest", "live"),
        ]
    elif state is FinalisationState.BLOCKED:
        body += [
            el(
                "p",
                el("strong", f"{plural(len(seen.differences), 'thing does', 'things do')} not fit. "),
                "Nothing has been finalised. Mend it and compare again, or finalise in spite of it: "
                "the manifest then says so.",
            ),
            _differences(seen),
            ask_reason("Why in spite of it?", "It stands in the manifest's description."),
        ]
    else:
        body += [
            el(
                "p",
                "The manifest is written: "
                if seen.forced
                else "All has arrived, and the manifest is written: ",
                file_link(MANIFEST, _link(experiment, links), "bh-manifest"),
                ". ",
                el("code", f"sha256sum -c {MANIFEST}"),
                " in a copy of the experiment's folder tells whether the copy is complete.",
            ),
            el("p.bh-hint", f"Finalised by {seen.created_by} ", ago(seen.ended)),
        ]
        if seen.forced:
            body += [el("p.bh-warn", f"In spite of what follows, because: {seen.reason}"), _differences(seen)]
    may_begin = state in (None, FinalisationState.OUTDATED, FinalisationState.BLOCKED)
    force = button("Finalise in spite of it", None, css="bh-button-danger bh-finalise-force")
    begin = button(
        "Compare again" if blocked else "Compare and finalise",
        ["finalise.begin"],
        css="bh-button-main bh-finalise-begin",
    )
    return dialog(
        "bh-question.bh-finalise",
        "Finalise this experiment",
        body,
        [None, force if blocked else None, begin if may_begin else None],
        hint=experiment.id,
        close="finalise.close",
        submit="finalise.force",
        refused=refused,
        key="finalise",
        body_key=str(state),
        data_state=str(state) if state else "none",
    )


def _intention(experiment: Experiment) -> list[Child]:
    return [
        el("p", "Three things are compared, file by file, by name, size and digest:"),
        el(
            "ul.bh-listed",
            el("li", "what the instrument's agent has in its journal,"),
            el("li", "what has been received and verified,"),
            el("li", "what lies in the experiment's folder."),
        ),
        el(
            "p",
            f"If all fits, {MANIFEST} is written with the digest of every raw file, and nothing from the "
            "instrument is taken into this experiment any more. Jobs and shared files go on.",
        ),
        el("p.bh-warn", "It is active now. Finalising it ends its beamtime.") if experiment.active else None,
    ]


def _differences(seen: Finalisation) -> Element:
    return el(
        "ul.bh-differences",
        [el("li", difference) for difference in seen.differences],
        aria_label=f"{number(len(seen.differences))} differences",
    )


def _link(experiment: Experiment, links: Links) -> str:
    return links.api("experiments", experiment.id, "files", MANIFEST)
