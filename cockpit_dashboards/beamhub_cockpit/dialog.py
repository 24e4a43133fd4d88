"""The frame that all dialogs have: title and way out above, what it is about, and below what can be done."""

from __future__ import annotations

from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import button


def dialog(
    name: str,
    title: str,
    body: Child,
    foot: Child,
    *,
    close: str,
    closer: str = "",
    leave: str = "Close",
    key: str,
    hint: Child = None,
    submit: str | None = None,
    change: str | None = None,
    refused: str = "",
    body_key: str | None = None,
    data_state: str | None = None,
) -> Element:
    """A dialog.

    `name` is its class. `close`, `submit` and `change` are the actions for when it is left (by ×, Close or
    Esc), sent, and typed into; with one of the latter two, all in it is one form. The first child of `foot`
    stands before the button that leaves it (whose label is `leave` and class is `closer`), the others after
    it. `refused` says why what was sent was not done.
    """
    is_form = submit is not None or change is not None
    on = {event: [action] for event, action in (("submit", submit), ("change", change)) if action}
    said, *rest = foot if isinstance(foot, list | tuple) else [foot]
    return el(
        f"dialog.bh-dialog.{name}",
        el(
            "form.bh-form" if is_form else "div.bh-form",
            el(
                "header.bh-dialog-head",
                el("div", el("h2", title), el("p.bh-hint", hint) if hint else None),
                button("×", [close], look="bh-icon-button", said="Close"),
            ),
            el(
                "div.bh-dialog-body",
                el("div.bh-problem.bh-problem-failed.bh-form-refused", refused, role="alert")
                if refused
                else None,
                body,
                key=body_key,
            ),
            el("footer.bh-dialog-foot", said or el("p"), button(leave, [close], css=closer), *rest),
            on=on or None,
        ),
        modal=True,
        aria_label=title,
        on={"cancel": [close]},
        key=key,
        data_state=data_state,
    )
