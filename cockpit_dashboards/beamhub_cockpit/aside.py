"""What stands beside the jobs: instrument and agent, people, licences, automation."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from beamhub.schemas import (
    AgentStatus,
    Experiment,
    Instrument,
    Licence,
    Member,
    Role,
    Trigger,
)

from beamhub_cockpit import control
from beamhub_cockpit.format import NARROW, cpu_hours, day, plural, rate, size
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import (
    ROLES,
    ago,
    bar,
    button,
    can,
    card,
    facts,
    person,
    state,
)
from beamhub_cockpit.ruletext import when
from beamhub_cockpit.scene import Transfer


def agent_state(agent: AgentStatus | None) -> Element:
    """Is the agent there?"""
    word = "no agent yet" if agent is None else "connected" if agent.connected else "not connected"
    return state(word, "bh-agent-state")


def instrument(
    seen: Instrument, experiment: Experiment, transfers: list[Transfer], quarantined: int
) -> Element:
    """The instrument, its agent, and what is being uploaded just now; for staff, the way to control it."""
    operate = can(experiment, "instrument.operate")
    agent = seen.agent
    here = seen.active_experiment == experiment.id
    elsewhere = (
        ""
        if here
        else (
            "Files go to another experiment now."
            if seen.active_experiment
            else "No experiment is active: files wait at the instrument."
        )
    )
    lines: list[Child] = []
    if agent is None:
        lines.append(
            el(
                "p.bh-hint",
                "The sync agent has never reported. Start it beside the detector with “beamhub sync”.",
            )
        )
    else:
        lines.append(
            facts(
                [
                    ("Host", agent.host),
                    ("Agent", agent.version),
                    ("Last heartbeat", ago(agent.last_seen)),
                    ("Free disk", size(agent.free_disk) if agent.free_disk is not None else ""),
                ]
            )
        )
        if not agent.connected:
            lines.append(
                el(
                    "p.bh-hint.bh-warn",
                    "No heartbeat: check that the agent runs and that its network is up. "
                    "Nothing is lost meanwhile; it resumes where it stopped.",
                )
            )
        lines.append(_uploads(agent, transfers, experiment.id))
        # that uploads are paused is said above, as long as they are
        errors = [error for error in (*agent.errors, *agent.file_errors) if "paused by " not in error]
        lines += [el("p.bh-error.bh-agent-error", error) for error in errors[:3]]
    return card(
        seen.title,
        el("p.bh-hint.bh-warn", elsewhere) if elsewhere else None,
        el("p.bh-hint.bh-warn", "Automation is paused: data start no jobs.") if not seen.automation else None,
        control.paused(seen.uploads_paused, may_resume=operate) if seen.uploads_paused else None,
        *lines,
        control.tools(seen, quarantined) if operate else None,
        aside=agent_state(agent),
        css="bh-instrument",
    )


def _uploads(agent: AgentStatus, transfers: list[Transfer], here: str) -> Element:
    waiting = f"{plural(agent.queued_files, 'file')} ({size(agent.queued_bytes)}) still to send"
    if not transfers:
        return el(
            "p.bh-uploads-idle.bh-hint", waiting if agent.queued_files else "Nothing is being uploaded."
        )
    busy = any(not t.arrived for t in transfers) or agent.queued_files > 0
    return el(
        "div.bh-uploads",
        el(
            "p.bh-uploads-head",
            el("strong", "Uploading" if busy else "Just uploaded"),
            el("span.bh-upload-rate", rate(agent.rate)) if agent.rate else None,
        ),
        [_transfer(t, here) for t in transfers[:3]],
        el("p.bh-hint", waiting) if agent.queued_files else None,
    )


def _transfer(t: Transfer, here: str) -> Element:
    """A file on its way; one that does not go to the experiment `here` says where it goes."""
    if t.arrived:
        said = size(t.size)
    else:
        said = f"{size(t.sent)}, still written" if t.growing else f"{size(t.sent)} of {size(t.size)}"
    done = None if t.growing and not t.arrived else t.sent / t.size if t.size else 1.0
    return el(
        "div.bh-upload",
        el("span.bh-upload-name", t.name, title=t.name),
        el("span.bh-upload-bytes", said),
        bar(done, t.name, "good" if t.arrived else "live"),
        el(
            "span.bh-upload-where",
            f"{'went' if t.arrived else 'goes'} to ",
            el("strong", t.experiment),
            ", which was active when it began",
        )
        if t.experiment not in (None, here)
        else None,
        key=f"{t.experiment}/{t.name}",
    )


def team(experiment: Experiment, members: list[Member], me: str, problem: str = "") -> Element:
    """PI and collaborators, and for those who may the way to invite."""
    may = can(experiment, "members.manage")
    order = {Role.PI: 0, Role.COLLABORATOR: 1, Role.VIEWER: 2}
    return card(
        "Team",
        el(
            "ul.bh-members",
            [
                el(
                    "li.bh-member",
                    person(m.user, me),
                    el("span.bh-role", ROLES.get(m.role, str(m.role))),
                    button(
                        "×",
                        ["member.remove", m.user],
                        look="bh-icon-button",
                        css="bh-member-remove",
                        title=f"Remove {m.user} from this experiment",
                        said=f"Remove {m.user} from this experiment",
                    )
                    if may and m.user != me and m.role is not Role.PI
                    else None,
                    key=m.user,
                    data_user=m.user,
                )
                for m in sorted(members, key=lambda m: (order.get(m.role, 3), m.user))
            ],
        ),
        el(
            "form.bh-invite",
            el("label.bh-unseen", "User name to invite", for_="invite-user"),
            el(
                "input",
                id="invite-user",
                name="user",
                type="text",
                placeholder="User name",
                autocomplete="off",
                spellcheck="false",
                required=True,
                aria_describedby="invite-error" if problem else None,
            ),
            el("label.bh-unseen", "Role", for_="invite-role"),
            el(
                "select",
                [el("option", ROLES[r], value=r.value) for r in (Role.COLLABORATOR, Role.VIEWER, Role.PI)],
                id="invite-role",
                name="role",
                value="collaborator",
            ),
            button("Invite", None),
            el("p.bh-error", problem, id="invite-error", role="alert") if problem else None,
            on={"submit": ["member.invite"]},
            key=f"invite-{len(members)}",  # a fresh form once somebody has joined
        )
        if may
        else None,
        aside=el("span.bh-count", plural(len(members), "person", "people")),
        css="bh-team",
    )


def licences(found: Iterable[Licence], title: str = "Licences", topping_up: Container[str] = ()) -> Element:
    """What is left of each licence, and for those with these ids the way to add to it."""
    return card(
        title,
        el("ul.bh-licences", [licence(item, may_top_up=item.id in topping_up) for item in found])
        if found
        else el("p.bh-empty", "None."),
        css="bh-licences-card",
    )


def licence(item: Licence, *, may_top_up: bool = False) -> Element:
    """One licence: what is left, as a number and as a bar."""
    left = item.available / item.granted if item.granted else 0.0
    tone = "good" if left > 0.25 else "warn" if left > 0.05 else "bad"
    held = f", {cpu_hours(item.held)} held by running jobs" if item.held else ""
    until = f" · until {day(item.valid_until)}" if item.valid_until else ""
    return el(
        "li.bh-licence",
        el("span.bh-licence-title", item.title, title=item.id),
        el("span.bh-licence-left", f"{cpu_hours(item.available)} left"),
        el("span.bh-licence-low", "running low", title="At most a tenth of it is left: ask for a grant")
        if item.low
        else None,
        bar(left, f"{item.title}: CPU-hours left", tone),
        el(
            "span.bh-licence-line",
            f"of {cpu_hours(item.granted)}; {cpu_hours(item.charged)} used{held}{until}",
        ),
        button("Top up …", ["licence.top-up", item.id], css="bh-licence-top-up") if may_top_up else None,
        key=item.id,
        data_licence=item.id,
    )


def automation(
    seen: Instrument,
    experiment: Experiment,
    rules: Iterable[Trigger],
    templates: dict[str, Any],
    links: Links,
) -> Element:
    """Which data start which jobs here."""
    may_change = can(experiment, "instrument.operate")
    ordered = sorted(rules, key=lambda t: t.id)
    on = seen.automation
    return card(
        "Automation",
        el(
            "ul.bh-triggers",
            [
                el(
                    "li.bh-trigger",
                    el("span.bh-trigger-title", t.title),
                    state("off" if not t.enabled else "on" if on else "paused"),
                    el(
                        "span.bh-trigger-line",
                        f"{when(t)}{NARROW}→{NARROW}",
                        templates[t.template].title if t.template in templates else t.template,
                        f" · {t.profile} · paid by {t.sponsor}",
                    ),
                    key=t.id,
                    data_trigger=str(t.id),
                )
                for t in ordered
            ],
        )
        if ordered
        else el("p.bh-empty", "No rules: data start no jobs by themselves."),
        el(
            "a.bh-link.bh-rules-open",
            "Rules …",
            href=links.rules(experiment=experiment.id),
        ),
        aside=button(
            "Pause" if on else "Resume", ["automation.set", 0 if on else 1], css="bh-automation-toggle"
        )
        if may_change
        else None,
        css="bh-automation",
    )
