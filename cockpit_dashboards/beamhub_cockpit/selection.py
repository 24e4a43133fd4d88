"""Jobs that are ticked in the list, which stands still meanwhile, and what can be done with all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from beamhub.schemas import Job, JobOutcome

from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.format import number, plural
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import button, rank, state

AT_ONCE: Final = 500  # jobs that the service takes at once
COMPARED: Final = 10  # jobs that can stand beside one another
FORCE: Final = "rerun it with “Even if there is a result”"


@dataclass
class Selection:
    """What is ticked. From the first tick to the last, no row of the list moves: jobs that are new wait in
    the list's head, and those that end stay where they are."""

    ticked: set[int] = field(default_factory=set)
    order: list[int] = field(default_factory=list)  # of the list, while something is ticked

    def tick(self, ids: Iterable[int], jobs: Iterable[Job], *, on: bool) -> None:
        """Tick these of the jobs, or no longer."""
        before, ids = bool(self.ticked), set(ids)
        self.ticked = self.ticked | ids if on else self.ticked - ids
        if not before:
            self.order = [job.id for job in sorted(jobs, key=rank)]

    def keep(self, ids: Iterable[int]) -> None:
        """Tick no others than these."""
        self.ticked &= set(ids)

    def let_in(self, jobs: Iterable[Job]) -> None:
        """Put the list in order again, with all that is new."""
        self.order = [job.id for job in sorted(jobs, key=rank)]

    def listed(self, jobs: Iterable[Job]) -> list[Job]:
        """The list: what runs or waits, then the newest; or as it stood when the first was ticked."""
        ordered = sorted(jobs, key=rank)
        if not self.ticked:
            return ordered
        known = {job.id: job for job in ordered}
        return [known[id_] for id_ in self.order if id_ in known]

    def chosen(self, jobs: Iterable[Job]) -> list[Job]:
        """What is ticked, in the order of the list."""
        return [job for job in self.listed(jobs) if job.id in self.ticked]


def tools(chosen: Sequence[Job], unseen: int, links: Links, *, may_run: bool, may_cancel: bool) -> Element:
    """What can be done with the jobs that are ticked. Each tool has a key: none turns into another one when
    something is ticked while it is being clicked."""
    count = len(chosen)
    too_many = f"At most {AT_ONCE} at once" if count > AT_ONCE else ""
    return el(
        "div.bh-selection",
        el("span.bh-selected", f"{number(count)} selected", role="status"),
        button(
            f"Show {number(unseen)} new",
            ["jobs.let-in"],
            look="bh-text-button",
            css="bh-let-in",
            title="While jobs are selected, the list stands still",
            key="let-in",
        )
        if unseen
        else None,
        _compare(chosen, links),
        _rerun(too_many) if may_run else None,
        _cancel(chosen, too_many) if may_cancel else None,
        button(
            "×",
            ["jobs.untick"],
            look="bh-icon-button",
            css="bh-untick",
            title="Select none",
            said="Select none",
            key="untick",
        ),
        role="toolbar",
        aria_label="Selected jobs",
        key="selection",
    )


def _compare(chosen: Sequence[Job], links: Links) -> Element:
    possible = 2 <= len(chosen) <= COMPARED
    return el(
        "a.bh-button.bh-small.bh-jobs-compare",
        "Compare",
        href=links.compare(*sorted(job.id for job in chosen)) if possible else None,
        title=None if possible else f"2 to {COMPARED} jobs can stand beside one another",
        aria_disabled=None if possible else "true",
        key="compare",
    )


def _rerun(too_many: str) -> Element:
    css = "bh-small bh-jobs-rerun"
    return button("Rerun …", ["jobs.rerun"], css=css, title=too_many, disabled=bool(too_many), key="rerun")


def _cancel(chosen: Sequence[Job], too_many: str) -> Element:
    ended = all(job.state.ended for job in chosen)
    why = too_many or ("They have all ended" if ended else "")
    css = "bh-small bh-button-danger bh-jobs-cancel"
    return button("Cancel …", ["jobs.cancel"], css=css, title=why, disabled=bool(why), key="cancel")


def box(job: Job, *, ticked: bool) -> Element:
    """The box of one job."""
    return el(
        "label",
        el("span.bh-unseen", f"Select job {job.id}"),
        el("input", type="checkbox", checked=ticked or None, on={"change": ["jobs.tick", job.id]}),
    )


def box_of_all(listed: Sequence[Job], ticked: set[int]) -> Element:
    """The box for all that are listed; what comes later is not meant by it."""
    newest = max((job.id for job in listed), default=0)
    return el(
        "label",
        el("span.bh-unseen", "Select all that are listed"),
        el(
            "input",
            type="checkbox",
            checked=all(job.id in ticked for job in listed) or None,
            on={"change": ["jobs.tick-all", newest]},
        ),
    )


# --- what came of it ---


@dataclass(frozen=True)
class Outcome:
    """What came of a wish for several jobs, where it was not fulfilled for all."""

    title: str
    told: Sequence[tuple[int, str]]  # job, and why nothing was done


def refused(outcomes: Iterable[JobOutcome]) -> list[tuple[int, str]]:
    """For which jobs nothing was done, and why."""
    found = []
    for one in outcomes:
        if one.problem is not None:
            found.append((one.asked, f"{one.problem.detail} {one.problem.remedy}".strip()))
        elif one.job is not None and one.job.repeats == one.job.id:
            found.append((one.asked, f"Job #{one.job.id} has the result already: {FORCE}."))
    return found


def show(outcome: Outcome, jobs: Mapping[int, Job], links: Links) -> Element:
    """The dialog that says it."""
    return dialog(
        "bh-question.bh-outcome",
        outcome.title,
        [
            el("p", "Nothing was done for:"),
            el("ul.bh-several-jobs", [_refused(id_, why, jobs, links) for id_, why in outcome.told]),
        ],
        el("p.bh-hint", "Still selected."),
        close="outcome.close",
        key="outcome",
    )


def _refused(id_: int, why: str, jobs: Mapping[int, Job], links: Links) -> Element:
    job = jobs.get(id_)
    return el(
        "li.bh-refused",
        el("a.bh-link", f"#{id_}" + (f" {job.title}" if job else ""), href=links.job(id_)),
        el("span.bh-sub", why),
        key=id_,
        data_job=str(id_),
    )


def lines(jobs: Sequence[Job]) -> Element:
    """The jobs, for a dialog that asks about them."""
    return el(
        "ul.bh-several-jobs",
        [
            el(
                "li",
                el(
                    "span", f"#{job.id} {job.title}", el("span.bh-sub", ", ".join(i.name for i in job.inputs))
                ),
                state(str(job.state)),
                key=job.id,
            )
            for job in jobs
        ],
    )


def stopping(chosen: Sequence[Job]) -> tuple[Child, ...]:
    """What is to be known before jobs are cancelled."""
    going = [job for job in chosen if not job.state.ended]
    ended = len(chosen) - len(going)
    return (
        lines(going),
        el(
            "p",
            "They stop at once, for everybody in the experiment. What they have written so far stays, and "
            "the CPU-hours that they have used are charged.",
        ),
        el("p.bh-hint", f"{plural(ended, 'other has', 'others have')} ended already.") if ended else None,
    )
