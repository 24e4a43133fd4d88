"""A report of usage as a picture: an SVG that is written out by hand, for the service draws it itself.

All names in it are text from outside.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from unicodedata import east_asian_width

from beamhub.schemas import UsageKey, UsageRow
from beamhub.text import one_line

BARS = 24  # of months, two years
PARTS = 7  # that have a colour of their own
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
OTHERS = "all others"
LEFT, PLOT, RIGHT = 250, 560, 110  # pixels: of names, bars, sums
ROW, BAR, TOP = 30, 20, 76
LETTERS = 29  # that a name has room for
TICKS = 5

Bars = dict[str, dict[str, int]]  # name of a bar -> name of a part -> CPU-seconds


def draw(by: Sequence[UsageKey], rows: Iterable[UsageRow]) -> str:
    """CPU-hours as bars: one for each month, or where months are not told apart, for each value of the first
    key; what else is told apart are the parts of a bar. The newest months, or what has used most; others are
    added up."""
    first = UsageKey.MONTH if UsageKey.MONTH in by else by[0]
    others = [key for key in by if key is not first]
    bars: Bars = defaultdict(lambda: defaultdict(int))
    for row in rows:
        part = " · ".join(str(getattr(row, key)) for key in others)
        bars[str(getattr(row, first))][part] += row.cpu_seconds
    shown = _months(bars) if first is UsageKey.MONTH else _largest(bars)
    parts = _parts(shown) if others else [""]
    title = f"CPU-hours by {' and '.join([first, *others])}"
    return _picture(title, shown, parts)


def _months(bars: Bars) -> Bars:
    """The newest, in their order, also those in between in which nothing was used."""
    if not bars:
        return {}
    newest = max(map(_number, bars))
    oldest = max(min(map(_number, bars)), newest - BARS + 1)
    return {_month(n): bars.get(_month(n), {}) for n in range(oldest, newest + 1)}


def _number(month: str) -> int:
    """Of "YYYY-MM": months since the year 0."""
    year, _, number = month.partition("-")
    return int(year) * 12 + int(number) - 1


def _month(number: int) -> str:
    return f"{number // 12:04d}-{number % 12 + 1:02d}"


def _largest(bars: Bars) -> Bars:
    ordered = sorted(bars.items(), key=lambda bar: (-sum(bar[1].values()), bar[0]))
    if len(ordered) <= BARS:
        return dict(ordered)
    rest: dict[str, int] = defaultdict(int)
    for _, parts in ordered[BARS - 1 :]:
        for name, seconds in parts.items():
            rest[name] += seconds
    return {**dict(ordered[: BARS - 1]), f"{len(ordered) - BARS + 1} others": rest}


def _parts(bars: Bars) -> list[str]:
    """Those that are told apart, the largest first; the last one may be all others."""
    sums: dict[str, int] = defaultdict(int)
    for parts in bars.values():
        for name, seconds in parts.items():
            sums[name] += seconds
    ordered = sorted(sums, key=lambda name: (-sums[name], name))
    return ordered if len(ordered) <= PARTS else [*ordered[:PARTS], OTHERS]


def _picture(title: str, bars: Bars, parts: Sequence[str]) -> str:
    most = max((sum(filter(_spent, bar.values())) for bar in bars.values()), default=0) / 3600
    step = _step(most)
    ticks = max(1, math.ceil(most / step - 1e-9))
    scale = PLOT / (ticks * step * 3600)
    legend = [part for part in parts if part]
    end = TOP + ROW * max(len(bars), 1)
    width, height = LEFT + PLOT + RIGHT, end + 44 + 22 * len(legend)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    font = 'font-family="Helvetica, Arial, sans-serif" font-size="13"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}>',
        f"<title>{_text(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="28" font-size="17" font-weight="bold">{_text(title)}</text>',
    ]
    for n in range(ticks + 1):
        x = LEFT + PLOT * n / ticks
        lines += [
            f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{end}" stroke="#d5dde2"/>',
            f'<text x="{x:.1f}" y="{TOP - 16}" text-anchor="middle" fill="#4a5a66">{_plain(n * step)}</text>',
        ]
    if not bars:
        lines.append(f'<text x="{LEFT}" y="{TOP + 20}" fill="#4a5a66">Nothing has been charged.</text>')
    for n, (name, bar) in enumerate(bars.items()):
        lines += _bar(TOP + n * ROW, name, bar, parts, scale)
    lines.append(f'<line x1="{LEFT}" y1="{TOP - 8}" x2="{LEFT}" y2="{end}" stroke="#33424f"/>')
    for n, part in enumerate(legend):
        y = end + 28 + 22 * n
        lines += [
            f'<rect x="{LEFT}" y="{y}" width="14" height="14" fill="{COLOURS[n]}"/>',
            f'<text x="{LEFT + 22}" y="{y + 12}">{_text(_short(part, 2 * LETTERS))}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _bar(y: int, name: str, bar: Mapping[str, int], parts: Sequence[str], scale: float) -> list[str]:
    lines = [f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{_text(_short(name, LETTERS))}</text>']
    known = {part: bar.get(part, 0) for part in parts}
    if OTHERS in known:
        known[OTHERS] = sum(seconds for part, seconds in bar.items() if part not in known)
    x = float(LEFT)
    for n, (part, seconds) in enumerate(known.items()):
        if _spent(seconds):
            words = _text(f"{' '.join(filter(None, (name, part)))}: {_plain(seconds / 3600)} CPU-h")
            length = seconds * scale
            where = f'x="{x:.2f}" y="{y}" width="{length:.2f}" height="{BAR}"'
            lines.append(f'<rect class="part" {where} fill="{COLOURS[n]}" aria-label="{words}"/>')
            x += length
    total = _plain(sum(bar.values()) / 3600)
    lines.append(f'<text x="{x + 8:.2f}" y="{y + 15}" fill="#33424f">{total}</text>')
    return lines


def _spent(seconds: int) -> bool:
    """What was given back for an earlier month has no length."""
    return seconds > 0


def _step(most: float) -> float:
    """Between two ticks: 1, 2 or 5 of some power of ten."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most / TICKS))
    return next(power * n for n in (1, 2, 5, 10) if power * n * TICKS >= most * (1 - 1e-9))


def _plain(hours: float) -> str:
    """At most three digits that count."""
    return f"{hours:,.0f}" if abs(hours) >= 100 else f"{hours:.3g}"


def _short(name: str, letters: int) -> str:
    """As much of a name as there is room for; some letters are twice as wide as others."""
    name, room = one_line(name, 200), letters
    for n, letter in enumerate(name):
        room -= 2 if east_asian_width(letter) in "WF" else 1
        if room < 0:
            return name[: n - 1] + "…"
    return name


def _text(text: str) -> str:
    return escape(one_line(text, 200))
