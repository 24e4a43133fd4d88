"""Jobs side by side: what they were asked, what came out, and their series in one plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, Final

from beamhub.client import ApiError
from beamhub.schemas import Comparison, ComparisonRow, Job, JobState, MetricSpec, SeriesPage, Template

from beamhub_cockpit.analysis import unknown
from beamhub_cockpit.format import cpu_hours, duration, number, unit_name
from beamhub_cockpit.history import value
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.page import Page
from beamhub_cockpit.parts import ago, by_rule, card
from beamhub_cockpit.plot import label

MOST: Final = 10  # jobs beside one another
OFFERED: Final = 200  # jobs to choose from
COLOURS: Final = ("#0b5c7a", "#b35900", "#4a7a2c", "#7a4a9c", "#a61e4d", "#5c6873")
STYLES: Final = ("-", "--", ":", "-.")
MARKERS: Final = ("o", "s", "^", "D", "v")
DPI: Final = 144  # sharp on screens with twice the pixels
NAMES: Final = {
    "template": "Template",
    "template_version": "Version",
    "inputs": "Works on",
    "profile": "Profile",
    "sponsor": "Paid by",
    "launched_by": "Started by",
    "state": "State",
    "cpu_seconds": "Cost",
    "runtime": "Runtime",
}


class Compare(Page):
    """The page `compare.ipynb?jobs=3,5`."""

    names = ("table", "series")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        asked = self.viewer.query.get("jobs", "").split(",")
        self.asked = list(dict.fromkeys(int(one) for one in asked if one.isdigit()))[:MOST]
        self.jobs: list[Job] = []
        self.others: list[Job] = []
        self.templates: dict[str, Template] = {}
        self.found: Comparison | None = None
        self.pictures: dict[str, bytes] = {}

    def load(self) -> None:
        try:
            self.jobs = [self.client.job(one) for one in self.asked]
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            self.jobs = []
        if not self.jobs:
            return
        self.templates = {one.name: one for one in self.client.templates()}
        last = self.client.jobs(self.jobs[0].experiment, limit=OFFERED)
        self.others = [one for one in last if one.id not in self.asked and one.state is JobState.FINISHED]
        if len(self.jobs) > 1:
            self.found = self.client.compare(*self.asked)
            self.pictures = {
                name: picture
                for name, pages in self.found.series.items()
                if (picture := overlaid(pages, self.asked))
            }

    def heard(self, message: Any) -> None:
        if (
            message.subject.isdigit()
            and int(message.subject) in self.asked
            and message.kind.startswith("job.")
        ):
            self.refresh_soon()

    def layout(self) -> Element:
        return el("main.bh-compare", *[self.slot(name) for name in self.names])

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        if not self.jobs:
            return {"table": (unknown(),), "series": ()}
        return {"table": (self._head(), self._table()), "series": tuple(self._series())}

    def images(self, name: str) -> dict[str, bytes] | None:
        return self.pictures if name == "series" else None

    def _head(self) -> Element:
        first = self.jobs[0].experiment
        return el(
            "section.bh-compare-head",
            el("a.bh-link", f"← {first}", href=self.links.cockpit(first)),
            el("h1", "Compare ", el("span.bh-quiet", ", ".join(f"#{one}" for one in self.asked))),
            key="head",
        )

    def _table(self) -> Element:
        heads = [
            el(
                "th.bh-compare-job",
                el("a.bh-link", f"#{job.id} {job.title}", href=self.links.job(job.id)),
                el("span.bh-quiet", _starter(job.launched_by), " · ", ago(job.created)),
                el(
                    "a.bh-link.bh-compare-less",
                    "Leave out",
                    href=self.links.compare(*(one for one in self.asked if one != job.id)),
                )
                if len(self.asked) > 1
                else None,
                scope="col",
                key=job.id,
                data_job=str(job.id),
            )
            for job in self.jobs
        ]
        rows = self.found.rows if self.found else []
        groups = [
            el(
                f"tbody.bh-compared-{group}",
                el("tr", el("th.bh-compare-group", title, colspan=str(len(self.jobs) + 1), scope="colgroup")),
                [self._row(row) for row in rows if row.group == group],
                key=group,
            )
            for group, title in (("metrics", "Results"), ("parameters", "Parameters"), ("job", "Job"))
            if any(row.group == group for row in rows)
        ]
        return card(
            "Side by side",
            el(
                "div.bh-compare-wide",
                el("table.bh-compare-table", el("thead", el("tr", el("td"), heads)), groups),
            ),
            self._alone() if len(self.jobs) == 1 else None,
            self._more(),
            key="table",
        )

    def _row(self, row: ComparisonRow) -> Element:
        name, unit = self._named(row)
        return el(
            "tr" + (".bh-differs" if row.differ else ""),
            el("th", name, el("span.bh-metric-unit", f" {unit}") if unit else None, scope="row"),
            [el("td", self._shown(row, one), key=place) for place, one in enumerate(row.values)],
            key=f"{row.group}-{row.name}",
            data_name=row.name,
        )

    def _named(self, row: ComparisonRow) -> tuple[str, str]:
        if row.group == "job":
            return NAMES.get(row.name, label(row.name)), ""
        if row.group == "metrics":
            spec = declared(row.name, self._used())
            return spec.title if spec else label(row.name), unit_name(row.unit)
        asked = parameter(row.name, self._used())
        return str(asked.get("title") or label(row.name)), unit_name(str(asked.get("unit", "")))

    def _used(self) -> list[Template]:
        """The templates of these jobs that are still there."""
        return [self.templates[job.template] for job in self.jobs if job.template in self.templates]

    def _shown(self, row: ComparisonRow, one: Any) -> str:
        if row.group == "job" and isinstance(one, int | float):
            return cpu_hours(round(one)) if row.name == "cpu_seconds" else duration(one)
        if row.name == "launched_by" and row.group == "job":
            return _starter(str(one))
        if row.group == "metrics" and isinstance(one, int | float) and not isinstance(one, bool):
            spec = declared(row.name, self._used())
            return number(one, spec.format if spec else "")
        return value(one)

    def _alone(self) -> Element:
        """One job can't be compared: where others come from."""
        there = (
            "Choose below what to put beside it." if self.others else "No other job has finished here yet."
        )
        return el("p.bh-empty.bh-compare-alone", f"One job is nothing to compare. {there}")

    def _more(self) -> Element | None:
        if len(self.asked) >= MOST or not self.others:
            return None
        links: list[Child] = [
            el(
                "li",
                el(
                    "a.bh-link",
                    f"#{one.id} {one.title}",
                    href=self.links.compare(*self.asked, one.id),
                ),
                " ",
                el("span.bh-quiet", f"{_starter(one.launched_by)}, {', '.join(i.name for i in one.inputs)}"),
                key=one.id,
            )
            for one in self.others
        ]
        return el(
            "details.bh-compare-more",
            el("summary", "Add a job"),
            el("ul", links),
            open=len(self.jobs) < 2 or None,
        )

    def _series(self) -> list[Element]:
        return [
            card(
                label(name),
                el("figure.bh-figure", el("img", blob=name, alt=f"{label(name)} of {len(self.jobs)} jobs")),
                key=name,
                css="bh-compare-series",
            )
            for name in self.pictures
        ]


def declared(metric: str, templates: Iterable[Template]) -> MetricSpec | None:
    """What the first of the templates that has this metric says of it."""
    return next((one.metrics[metric] for one in templates if metric in one.metrics), None)


def parameter(name: str, templates: Iterable[Template]) -> Mapping[str, Any]:
    """What the first of the templates that has this parameter says of it."""
    for one in templates:
        known: Any = one.parameters.get("properties", {})
        if isinstance(known, dict) and isinstance(known.get(name), dict):
            found: Mapping[str, Any] = known[name]
            return found
    return {}


def _starter(who: str) -> str:
    rule = by_rule(who)
    return f"by {who}" if rule is None else f"automatic (rule {rule})"


def overlaid(pages: Sequence[SeriesPage | None], jobs: Sequence[int]) -> bytes | None:
    """The numeric columns of a series over its first column, all jobs in each panel; None: there are none."""
    from matplotlib.figure import Figure  # half a second, which other pages can do without

    columns = next((page.columns for page in pages if page), {})
    across, *drawn = columns or {"": ""}
    drawn = [name for name in drawn if any(_numbers(page, name) for page in pages if page)]
    if not drawn:
        return None
    wide = 2 if len(drawn) > 1 else 1
    tall = -(-len(drawn) // wide)
    figure = Figure(figsize=(10.5, 0.5 + 2.7 * tall), layout="constrained")
    axes = list(figure.subplots(tall, wide, squeeze=False).flat)
    for ax, name in zip(axes, drawn, strict=False):
        for place, (page, job) in enumerate(zip(pages, jobs, strict=True)):
            if page is None:
                continue
            points = [
                (x, y) for row in page.items if _number(x := row.get(across)) and _number(y := row.get(name))
            ]
            ax.plot(
                *zip(*points, strict=True) if points else ((), ()),
                color=COLOURS[place % len(COLOURS)],
                linestyle=STYLES[place // len(COLOURS) % len(STYLES)],
                marker=MARKERS[place % len(MARKERS)] if len(points) < 40 else "",
                markersize=6,
                fillstyle="none",  # what lies below is seen
                linewidth=1.5,
                label=f"#{job}",
            )
        unit = unit_name(columns[name])
        ax.set_title(label(name) + (f" ({unit})" if unit else ""), loc="left", fontsize=10)
        unit = unit_name(columns[across])
        ax.set_xlabel(label(across) + (f" ({unit})" if unit else ""), fontsize=9)
        if unit == "Å":  # better is to the right
            ax.invert_xaxis()
        ax.grid(visible=True, color="#e3e7eb", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    for ax in axes[len(drawn) :]:
        ax.remove()
    axes[0].legend(frameon=False, fontsize=9)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    return picture.getvalue()


def _numbers(page: SeriesPage, name: str) -> bool:
    return any(_number(row.get(name)) for row in page.items)


def _number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)
