"""The dashboard's drawings: slots busy over time, and the units by pilot and locality."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from bokeh.models import ColumnDataSource, DatetimeTickFormatter, FactorRange, HoverTool
from bokeh.plotting import figure

from dpilot.monitor.lanes import lanes
from dpilot.monitor.model import Run
from dpilot.monitor.theme import THEMES, locality_colours, site_colours
from dpilot.monitor.watch import Watch

__all__ = ["Gantt", "SlotsOverTime"]

#: Runs and pilots in the Gantt chart, and sites in the drawing of slots.
_MOST_RUNS = 500
_MOST_PILOTS = 24
_MOST_SITES = 8


class SlotsOverTime:
    """Slots busy over time, one site above the other."""

    def __init__(self, watch: Watch, theme: str) -> None:
        self._watch = watch
        self._colours = site_colours(theme)
        self._source = ColumnDataSource({"xs": [], "ys": [], "site": [], "colour": []})
        self.root = _figure(theme, height=260, x_axis_type="datetime")
        self.root.yaxis.axis_label = "slots busy"
        self.root.y_range.start = 0
        self.root.yaxis.ticker.min_interval = 1
        self.root.patches(
            "xs", "ys", source=self._source, color="colour", fill_alpha=0.75, line_width=1, legend_field="site"
        )
        self.root.legend.orientation = "horizontal"
        self.root.add_layout(self.root.legend[0], "above")
        _style_legend(self.root, theme)
        self.update()

    def update(self) -> None:
        """Draw what is known now."""
        model, now, shift = self._watch.model, time.time(), _local_s()
        levels = [(site, *level.points(now)) for site, level in sorted(model.busy_at.items())]
        if len(levels) > _MOST_SITES:
            levels = [*levels[: _MOST_SITES - 1], _together(levels[_MOST_SITES - 1 :])]
        data: dict[str, list[Any]] = {"xs": [], "ys": [], "site": [], "colour": []}
        below: list[float] = []
        for i, (site, times, means) in enumerate(levels):
            below = below or [0.0] * len(means)
            size = min(len(means), len(below))
            above = [a + b for a, b in zip(below[:size], means[:size], strict=True)]
            first = next((i for i, total in enumerate(model.busy.points(now)[1]) if total), 0)
            first = max(0, first - 1)
            xs = [(t + shift) * 1000 for t in times[first:size]]
            data["xs"].append(xs + xs[::-1])
            data["ys"].append(above[first:] + below[first:size][::-1])
            data["site"].append(site)
            data["colour"].append(self._colours[i % len(self._colours)])
            below = above
        self._source.data = data


def _together(levels: list[tuple[str, list[float], list[float]]]) -> tuple[str, list[float], list[float]]:
    """Several sites as one: all are looked at at the same times."""
    sums = [sum(means) for means in zip(*(means for _, _, means in levels), strict=False)]
    return f"{len(levels)} others", levels[0][1], sums


class Gantt:
    """The newest units that have ended, by pilot, coloured by how far their input came."""

    def __init__(self, watch: Watch, theme: str) -> None:
        self._watch = watch
        self._seen = -1
        self._colours = locality_colours(theme)
        self._range = FactorRange()
        names = ("unit", "kind", "state", "locality", "y", "height", "began", "ran", "ended", "seconds", "colour")
        self._source = ColumnDataSource({name: [] for name in names})
        self.root = _figure(theme, height=320, x_axis_type="datetime", y_range=self._range)
        self.root.hbar(
            y="y", height="height", left="began", right="ran", source=self._source, color="colour", fill_alpha=0.35
        )
        bars = self.root.hbar(
            y="y", height="height", left="ran", right="ended", source=self._source, color="colour", line_color=None
        )
        hover = HoverTool(
            renderers=[bars],
            tooltips=[
                ("unit", "@unit"),
                ("kind", "@kind"),
                ("state", "@state"),
                ("input", "@locality"),
                ("ran", "@seconds s"),
            ],
        )
        self.root.add_tools(hover)
        self.root.ygrid.visible = False
        self.update()

    def update(self) -> None:
        """Draw what is known now."""
        model = self._watch.model
        if model.n_runs == self._seen:
            return
        self._seen = model.n_runs
        runs = list(model.newest_runs(model.n_runs - _MOST_RUNS))
        newest: dict[str, None] = dict.fromkeys(run.pilot for run in reversed(runs))
        shown = set(list(newest)[:_MOST_PILOTS])
        names = {pilot: self._name(pilot) for pilot in sorted(shown)}
        at_pilot: defaultdict[str, list[Run]] = defaultdict(list)
        for run in sorted(runs, key=lambda run: run.began):
            if run.pilot in shown:
                at_pilot[run.pilot].append(run)
        data: dict[str, list[Any]] = {name: [] for name in self._source.data}
        for pilot, there in at_pilot.items():
            placed = lanes([(run.began, run.ended, run.slots) for run in there], self._slots(pilot))
            n = 1 + max((lane for held in placed for lane, _ in held), default=0)
            for run, held in zip(there, placed, strict=True):
                for lane, began in held:
                    for name, value in self._bar(run, began, names[pilot], lane, n).items():
                        data[name].append(value)
        factors = sorted(names.values(), reverse=True)
        if factors != list(self._range.factors):
            self._range.factors = factors
        self._source.data = data

    def _bar(self, run: Run, began: float, name: str, lane: int, n: int) -> dict[str, Any]:
        shift, ran = _local_s(), max(run.ran, began)
        return {
            "unit": run.unit,
            "kind": run.kind,
            "state": run.state,
            "locality": run.locality,
            "y": (name, (0.5 + lane) * 0.8 / n - 0.4),
            "height": 0.8 / n * 0.9,
            "began": (began + shift) * 1000,
            "ran": (ran + shift) * 1000,
            "ended": (max(run.ended, ran + 1e-3) + shift) * 1000,
            "seconds": f"{run.ended - ran:.3f}",
            "colour": self._colours[run.locality],
        }

    def _slots(self, pilot: str) -> int:
        record = self._watch.coordinator.records.pilots.get(pilot)
        return 1 if record is None else record.slots

    def _name(self, pilot: str) -> str:
        record = self._watch.coordinator.records.pilots.get(pilot)
        site = None if record is None else record.site.datacenter or record.site.machine
        return f"{site}  {pilot}" if site else pilot


def _local_s() -> float:
    """What bokeh, which shows UTC, must be told for the scheduler's local time."""
    return float(time.localtime().tm_gmtoff)


def _figure(theme: str, **options: Any) -> figure:
    colours = THEMES[theme]
    made = figure(
        sizing_mode="stretch_width",
        tools="xpan,xwheel_zoom,reset",
        toolbar_location="right",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **options,
    )
    made.toolbar.logo = None
    made.toolbar.autohide = True
    for axis in made.axis:
        axis.axis_label_text_color = axis.major_label_text_color = colours["muted"]
        axis.axis_line_color = axis.major_tick_line_color = colours["line"]
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_font_size = "12px"
    for grid in made.grid:
        grid.grid_line_color = colours["grid"]
    made.xaxis.ticker.desired_num_ticks = 5  # that they do not run into each other where there is little room
    made.xaxis.formatter = DatetimeTickFormatter(
        milliseconds="%M:%S.%3N", seconds="%H:%M:%S", minsec="%H:%M:%S", minutes="%H:%M", hourmin="%H:%M"
    )
    return made


def _style_legend(made: figure, theme: str) -> None:
    colours = THEMES[theme]
    for legend in made.legend:
        legend.label_text_color = colours["ink"]
        legend.label_text_font_size = "12px"
        legend.background_fill_color = None
        legend.border_line_color = None
        legend.padding = legend.margin = 2
