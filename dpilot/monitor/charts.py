"""The drawings of a report: SVG without text, which stretches with the page, beside text in HTML. All is escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from dpilot.monitor.lanes import lanes
from dpilot.monitor.model import LOCALITIES, site_name
from dpilot.monitor.tables import duration_text
from dpilot.monitor.tally import Row, locality, span
from dpilot.runtime.account import Account, PilotTold, UnitTold
from dpilot.states import State

__all__ = ["Chart", "Line", "columns", "histogram", "ticks", "time_line"]

#: The width of drawings, in units of their own.
_WIDTH = 1000.0
#: Up to so many units are drawn one by one; of more, how busy the slots were in so many steps of time.
_MOST_UNITS = 2000
_STEPS = 240
#: Rows of a time line.
_MOST_ROWS = 40
#: How far the marks on an axis of time may be from one another.
_TICKS_S = (
    *(n * scale for scale in (1e-3, 1e-2, 1e-1, 1.0) for n in (1, 2, 5)),
    *(10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200),
    *(n * 86400 for n in (1, 2, 5, 10, 20, 50, 100)),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a chart: what stands before it, its drawing, and the drawing's height in pixels."""

    site: str
    name: str
    drawing: Markup
    height: int


@dataclass(frozen=True, slots=True)
class Chart:
    """Rows over one axis.

    Parameters
    ----------
    lines : tuple of Line
    ticks : tuple of (float, str)
        Places on the axis, as a part of its length, and what stands there.
    note : str
        What else there is to say.
    """

    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]
    note: str = ""


def ticks(seconds: float) -> tuple[tuple[float, str], ...]:
    """Round places on an axis of so many seconds."""
    step = next((step for step in _TICKS_S if seconds / step <= 6), seconds / 6)
    n = int(seconds / step + 1e-9) if seconds > 0 else 0
    return tuple((i * step / seconds if i else 0.0, duration_text(i * step)) for i in range(n + 1))


# ---------------------------------------------------------------- units by pilot


def time_line(account: Account) -> Chart:
    """The units by pilot, coloured by how far their input came."""
    began, ended = span(account)
    length_s = max(1e-6, ended - began)
    of: defaultdict[str, list[UnitTold]] = defaultdict(list)
    for unit in account.units:
        if unit.pilot is not None and unit.times.began is not None:
            of[unit.pilot].append(unit)
    grid = _grid(ticks(length_s))
    n = sum(map(len, of.values()))
    if n <= _MOST_UNITS and len(account.pilots) <= _MOST_ROWS:
        lines = [_one_by_one(pilot, of[pilot.id], began, length_s, account.now, grid) for pilot in _ordered(account)]
        return Chart(tuple(lines), ticks(length_s))
    groups = _groups(account)
    lines = [
        _busy(
            site, name, pilots, [unit for pilot in pilots for unit in of[pilot.id]], began, length_s, account.now, grid
        )
        for (site, name), pilots in groups[:_MOST_ROWS]
    ]
    note = f"{n:,} units: drawn is how many of the slots were busy in each {duration_text(length_s / _STEPS)}."
    if len(groups) > _MOST_ROWS:
        note += f" {len(groups) - _MOST_ROWS:,} sites are left out."
    return Chart(tuple(lines), ticks(length_s), note)


def _ordered(account: Account) -> list[PilotTold]:
    there = [pilot for pilot in account.pilots if pilot.began is not None]
    return sorted(there, key=lambda pilot: (site_name(pilot.site), pilot.site.machine or "", pilot.submitted, pilot.id))


def _groups(account: Account) -> list[tuple[tuple[str, str], list[PilotTold]]]:
    """The pilots, or, where they are too many, those of each machine, or of each datacenter, together."""
    keys: tuple[Callable[[PilotTold], tuple[str, str]], ...] = (
        lambda pilot: (site_name(pilot.site), pilot.id),
        lambda pilot: (site_name(pilot.site), pilot.site.machine or "no machine"),
        lambda pilot: (site_name(pilot.site), ""),
    )
    for key in keys:
        groups: dict[tuple[str, str], list[PilotTold]] = {}
        for pilot in _ordered(account):
            groups.setdefault(key(pilot), []).append(pilot)
        if len(groups) <= _MOST_ROWS:
            break
    return sorted(groups.items())


def _one_by_one(pilot: PilotTold, units: list[UnitTold], began: float, length_s: float, now: float, grid: str) -> Line:
    spans = sorted((_span_of(unit, now), unit.id, unit) for unit in units)
    placed = lanes([(begin, end, unit.request.slots) for (begin, end), _, unit in spans], pilot.slots)
    n = max(1, *(1 + lane for held in placed for lane, _ in held)) if placed else 1
    height = min(160, max(18, 12 * n))
    pieces = []
    for ((_, end), _, unit), held in zip(spans, placed, strict=True):
        ran = min(end, unit.times.ran if unit.times.ran is not None else end)
        kind = f"l{LOCALITIES.index(locality(unit))}" + (" failed" if unit.state == State.Failed else "")
        title = f"<title>{escape(_title(unit))}</title>"
        for lane, begin in held:
            y, tall = lane * height / n + 0.5, height / n - 1
            x, start = _x(begin - began, length_s), _x(max(begin, ran) - began, length_s)
            to = max(_x(end - began, length_s), start + 0.8)
            pale = _rect(x, y, start - x, tall, "pale") if start - x > 0.05 else ""
            pieces.append(f'<g class="{kind}">{title}{pale}{_rect(start, y, to - start, tall)}</g>')
    label = f"{pilot.id}: {len(units):,} units on {pilot.slots:,} slots"
    return Line(site_name(pilot.site), pilot.id, _svg(grid + "".join(pieces), height, label), height)


def _title(unit: UnitTold) -> str:
    began, ran, ended = unit.times.began or 0.0, unit.times.ran, unit.times.ended
    told = f"{unit.id} {unit.request.kind}: {unit.state}, input from {locality(unit)}"
    if unit.request.inputs and ran is not None:
        told += f", staged in {duration_text(ran - began)}"
    return told if ran is None or ended is None else f"{told}, ran {duration_text(ended - ran)}"


def _busy(
    site: str,
    name: str,
    pilots: list[PilotTold],
    units: list[UnitTold],
    began: float,
    length_s: float,
    now: float,
    grid: str,
) -> Line:
    """How many slots were busy in each step, by locality."""
    step_s, height = length_s / _STEPS, 44
    n_slots = max(1, sum(pilot.slots for pilot in pilots))
    areas = [[0.0] * _STEPS for _ in LOCALITIES]  # slot-seconds
    for unit in units:
        begin, end = (at - began for at in _span_of(unit, now))
        area = areas[LOCALITIES.index(locality(unit))]
        for i in range(max(0, int(begin / step_s)), min(_STEPS, int(end / step_s) + 1)):
            shared = min(end, (i + 1) * step_s) - max(begin, i * step_s)
            area[i] += max(0.0, shared) * unit.request.slots
    pieces, below = [], [0.0] * _STEPS
    for level, area in enumerate(areas):
        path = []
        for i, slot_s in enumerate(area):
            tall = slot_s / (step_s * n_slots) * (height - 2)
            if tall > 0.05:
                top = height - min(height, below[i] + tall)
                path.append(
                    f"M{i * _WIDTH / _STEPS:.1f} {top:.1f}h{_WIDTH / _STEPS:.2f}v{tall:.1f}h-{_WIDTH / _STEPS:.2f}z"
                )
            below[i] += tall
        if path:
            pieces.append(f'<path class="l{level}" d="{"".join(path)}"/>')
    label = f"{name or site}: {len(units):,} units on {n_slots:,} slots"
    return Line(site, name, _svg(grid + "".join(pieces), height, label), height)


def _span_of(unit: UnitTold, now: float) -> tuple[float, float]:
    began = unit.times.began or 0.0
    return began, max(began, now if unit.times.ended is None else unit.times.ended)


# ---------------------------------------------------------------- counts


def columns(rows: Sequence[Row]) -> Chart:
    """Units that ended in each step of time: done above the axis, and on top of them those that failed."""
    height, most = 120, max((row["done"] + row["failed"] + row["canceled"] for row in rows), default=0) or 1
    wide = _WIDTH / max(1, len(rows))
    pieces = []
    for i, row in enumerate(rows):
        below = float(height)
        title = ", ".join(f"{row[state]:,} {state}" for state in ("done", "failed", "canceled") if row[state])
        cells = []
        for state in ("done", "failed", "canceled"):
            tall = row[state] / most * (height - 6)
            below -= tall
            cells.append(_rect(i * wide + 0.06 * wide, below, 0.88 * wide, tall, state) if tall else "")
        pieces.append(f"<g><title>{escape(title or 'none')}</title>{''.join(cells)}</g>")
    length_s = sum(row["seconds"] for row in rows)
    label = f"units ended over time, at most {most:,} in a step"
    return Chart((Line("", f"{most:,}", _svg("".join(pieces), height, label), height),), ticks(length_s))


def histogram(rows: Sequence[Row], bounds: Sequence[Any]) -> Markup:
    """Run times of one kind of work, a column for each step of `bounds`."""
    height, counts = 26, {row["above_s"]: row["units"] for row in rows}
    most, wide = max(counts.values(), default=1), _WIDTH / len(bounds)
    pieces = []
    for i, above_s in enumerate(bounds):
        n = counts.get(above_s, 0)
        tall = max(1.5, n / most * (height - 2)) if n else 0.6
        title = f"{n:,} ran longer than {duration_text(above_s)}"
        if i + 1 < len(bounds):
            title += f", up to {duration_text(bounds[i + 1])}"
        rect = _rect(i * wide + 4, height - tall, wide - 8, tall, "done" if n else "none")
        pieces.append(f"<g><title>{escape(title)}</title>{rect}</g>")
    return _svg("".join(pieces), height, "run times, from the shortest to the longest")


# ---------------------------------------------------------------- SVG


def _x(seconds: float, length_s: float) -> float:
    return max(0.0, min(1.0, seconds / length_s)) * _WIDTH


def _rect(x: float, y: float, wide: float, tall: float, name: str = "") -> str:
    of = f' class="{name}"' if name else ""
    return f'<rect{of} x="{x:.2f}" y="{y:.2f}" width="{max(0.0, wide):.2f}" height="{max(0.0, tall):.2f}"/>'


def _grid(marks: Sequence[tuple[float, str]]) -> str:
    return '<path class="grid" d="' + "".join(f"M{at * _WIDTH:.1f} 0V999" for at, _ in marks) + '"/>'


def _svg(inside: str, height: int, label: str) -> Markup:
    return Markup(
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH:.0f} {height}" height="{height}" '
        f'preserveAspectRatio="none">{inside}</svg>'
    )
