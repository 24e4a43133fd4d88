"""For those who have nothing to see here: what to ask whom; nothing about anybody else's experiments."""

from __future__ import annotations

from beamhub_cockpit.html import Element, el


def stranger(name: str) -> Element:
    """For somebody without an experiment."""
    return el(
        "section.bh-nothing",
        el("h1", "You do not belong to an experiment yet"),
        el(
            "p",
            "Experiments show up here as soon as you are a member of one, without reloading the page.",
        ),
        el(
            "ul",
            el(
                "li",
                el("strong", "Somebody else's beamtime? "),
                "Ask its principal investigator to invite you under the name ",
                el("strong.bh-person", name),
                ".",
            ),
            el(
                "li",
                el("strong", "Your own beamtime? "),
                "Ask the staff of the instrument to create the experiment with you as PI.",
            ),
            el(
                "li",
                el("strong", "Were you a member before? "),
                "The PI or the staff may have removed you; they can invite you again.",
            ),
        ),
    )


def elsewhere() -> Element:
    """For somebody who asks for an experiment that is not there, or not theirs."""
    return el(
        "section.bh-nothing",
        el("h1", "There is nothing to see here"),
        el(
            "p",
            "This address leads to no experiment that you belong to. "
            "Choose one of yours above, or ask its PI to invite you.",
        ),
    )
