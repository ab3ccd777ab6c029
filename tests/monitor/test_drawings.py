"""What the dashboard draws with very many pilots and sites, and that all of it can be read."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator

import pytest
from bokeh.models import GlyphRenderer
from distributed import Scheduler

from dpilot.monitor import panels, views
from dpilot.monitor.dashboard import PANELS
from dpilot.monitor.figures import SlotsOverTime
from dpilot.monitor.theme import THEMES
from dpilot.monitor.watch import Watch
from dpilot.placement import Site
from dpilot.runtime.records import PilotRecord
from dpilot.runtime.scheduler import PilotPlugin
from dpilot.states import State
from tests.monitor.test_dashboard import contrast

pytestmark = pytest.mark.cluster

N_SITES = 12
#: The text that is painted; tips and buttons are HTML.
PAINTED = {("Legend", "label_text_color")} | {
    (axis, name)
    for axis in ("LinearAxis", "DatetimeAxis", "CategoricalAxis")
    for name in ("axis_label_text_color", "major_label_text_color")
}


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    """Of a scheduler with 100 pilots of 10 slots, of which 3 are seen busy, at 12 sites."""
    options = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    async with Scheduler(**options, dashboard=False) as scheduler:
        plugin = PilotPlugin()
        await plugin.start(scheduler)
        (made,) = plugin.observers._observers
        details = {"slots": 10, "walltime_s": None, "memory_per_worker_nbytes": None, "gpus_per_worker": 0}
        for i in range(100):
            labels = {"datacenter": f"dc-{i % N_SITES}", "machine": f"m-{i}"}
            pilot = PilotRecord(f"pc-{i:012x}", "pcs-0", time.time(), set(), {**details, **labels})
            plugin.records.pilots[pilot.id] = pilot
            plugin.matcher.add_pilot(pilot.id, Site(**labels), 10)
            for state in (State.Pending, State.Running):
                plugin.advance(pilot, state)
            made.model.slots(pilot, 3, 10, time.time() - 1)
        yield made
        plugin.observers.close()


@pytest.mark.parametrize("theme", THEMES)
async def test_text_and_marks_on_canvases_have_contrast(watch: Watch, theme: str) -> None:
    """No browser tells which colours are painted on a canvas: they are looked up in the drawings."""
    panel = THEMES[theme]["panel"]
    texts, marks = 0, 0
    for kind in PANELS:
        for model in kind.make(watch, theme).root.references():
            for name, value in model.properties_with_values().items():
                if (type(model).__name__, name) in PAINTED:
                    texts += 1
                    assert contrast(value, panel) >= 4.5, (kind.name, type(model).__name__, name, value)
            if isinstance(model, GlyphRenderer):
                for colour in set(model.data_source.data.get("colour", ())):
                    marks += 1
                    assert contrast(colour, panel) >= 3, (kind.name, colour)
    assert texts > 5
    assert marks >= 8


async def test_sites_that_have_no_colour_of_their_own_are_drawn_together(watch: Watch) -> None:
    drawn = SlotsOverTime(watch, "light")._source.data
    assert len(drawn["site"]) == 8
    assert drawn["site"][-1] == f"{N_SITES - 7} others"
    together = max(watch.model.busy.points(time.time())[1])
    assert max(drawn["ys"][-1]) == pytest.approx(together, rel=0.1)
    assert together > 0


async def test_very_many_pilots_are_shown_by_datacenter(watch: Watch) -> None:
    shown = panels.pilots_html(views.pilots(watch))
    rows = [re.sub(r"(<[^>]*>)+", "|", row).strip("|").split("|") for row in shown.split("<tr>")[1:]]
    assert rows[0] == ["datacenter", "pilots", "state", "slots busy", "busy", "done"]
    assert len(rows) == 1 + N_SITES
    assert rows[1][:3] == ["dc-0", "9", "Running"]
