"""The dialog that asks once before something far-reaching is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from beamhub.client import ApiError
from pydantic import ValidationError

from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import button


class UnusableError(Exception):
    """What was typed can't be sent as it is; the sentence says why."""


@dataclass(frozen=True)
class Question:
    """What is asked, and what is done with the answer. Nothing is done when it is closed.

    `do` gets the fields of the form by name. An ApiError, an UnusableError or a ValidationError (of a reason)
    that it raises is shown in the dialog, which then stays open.
    """

    title: str
    label: str  # of the button that does it
    do: Callable[[Mapping[str, str]], None]
    body: tuple[Child, ...] = ()
    danger: bool = False
    name: str = ""  # a class of its own, as a hook
    leave: str = "Close"  # the label of the button that does nothing
    refused: str = ""


def ask_reason(
    label: str, hint: str = "", placeholder: str = "", *, focus: bool = True, required: bool = True
) -> Element:
    """The field "reason"."""
    return el(
        "div.bh-field",
        el("label", label, for_="question-reason"),
        el(
            "input",
            id="question-reason",
            name="reason",
            type="text",
            required=required or None,
            maxlength="500",
            autocomplete="off",
            placeholder=placeholder or None,
            focus=focus or None,
        ),
        el("p.bh-hint", hint) if hint else None,
    )


def answer(question: Question | None, fields: Mapping[str, str]) -> Question | None:
    """Does what was asked; what is left to ask: the same again where it was refused."""
    if question is None:
        return None
    try:
        question.do(fields)
    except (ApiError, UnusableError) as error:
        return replace(question, refused=str(error))
    except ValidationError:
        return replace(question, refused="Write it on one line, of at most 500 characters.")
    return None


def show(question: Question) -> Element:
    """The dialog."""
    tone = "bh-button-danger" if question.danger else "bh-button-main"
    return dialog(
        "bh-question" + (f".{question.name}" if question.name else ""),
        question.title,
        question.body,
        [None, button(question.label, None, css=f"{tone} bh-question-yes")],
        close="question.no",
        closer="bh-question-no",
        leave=question.leave,
        submit="question.yes",
        refused=question.refused,
        key=f"question-{question.title}",
    )
