"""The dashboard's colours, light and dark. Text has a contrast of at least 4.5 to what is behind it, marks of 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dpilot.monitor.model import LOCALITIES

__all__ = ["LOCALITY_COLOURS", "PANEL_CSS", "THEMES", "locality_colours", "site_colours"]

THEMES: Final[Mapping[str, Mapping[str, str]]] = {
    "light": {
        "page": "#f6f8fa",
        "panel": "#ffffff",
        "ink": "#1b1f24",
        "muted": "#57606a",
        "line": "#d0d7de",
        "grid": "#e7ebef",
        "link": "#0550ae",
        "track": "#e7ebef",
        "busy": "#2c6fbb",
        "good": "#12724f",
        "warn": "#9a5b00",
        "bad": "#b3261e",
        "tint": "44, 111, 187",
        "machine": "#1b8a62",
        "datacenter": "#b37400",
        "elsewhere": "#c2356b",
        "none": "#76808b",
    },
    "dark": {
        "page": "#0d1117",
        "panel": "#161b22",
        "ink": "#e6edf3",
        "muted": "#a3adb8",
        "line": "#30363d",
        "grid": "#262c34",
        "link": "#79b8ff",
        "track": "#30363d",
        "busy": "#539bf5",
        "good": "#57c79b",
        "warn": "#e3b341",
        "bad": "#ff8a80",
        "tint": "83, 155, 245",
        "machine": "#3fb68b",
        "datacenter": "#e3b341",
        "elsewhere": "#f778a1",
        "none": "#8b949e",
    },
}

#: The names of the localities' colours.
LOCALITY_COLOURS: Final = ("machine", "datacenter", "elsewhere", "none")

#: Of sites, one after the other: told apart also by those who see no red or no green.
_SITES = {
    "light": ("#2c6fbb", "#c05f00", "#1b8a62", "#9f4fa8", "#8a6d00", "#0a8bb0", "#b8405e", "#6a737d"),
    "dark": ("#539bf5", "#f0883e", "#3fb68b", "#d2a8ff", "#e3c341", "#56d4dd", "#f778a1", "#8b949e"),
}


def locality_colours(theme: str) -> dict[str, str]:
    """What each locality is drawn in."""
    return dict(zip(LOCALITIES, (THEMES[theme][name] for name in LOCALITY_COLOURS), strict=True))


def site_colours(theme: str) -> tuple[str, ...]:
    """What sites are drawn in, one after the other."""
    return _SITES[theme]


#: Of the panels made of HTML. They are in a shadow tree each: only the variables come in from the page.
PANEL_CSS = """
:host { display: block; width: 100%; color: var(--ink); font: 13px/1.45 system-ui, "DejaVu Sans", sans-serif; }
.bk-clearfix { width: 100%; display: block !important; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: .75rem; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .8rem .6rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.4; font-weight: 600; font-variant-numeric: tabular-nums;
          white-space: nowrap; }
.tile span { display: block; }
.tile small, .muted { color: var(--muted); font-size: .8rem; }
.scroll { max-height: 340px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .8rem; position: sticky; top: 0;
     background: var(--panel); z-index: 1; }
th, td { padding: .22rem .6rem .22rem 0; border-bottom: 1px solid var(--grid); vertical-align: baseline; }
th.n, td.n { text-align: right; white-space: nowrap; }
td.id { white-space: nowrap; }
tr.group td { font-weight: 600; padding-top: .5rem; }
code { white-space: nowrap; font: 12px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
.bar { display: inline-block; width: 100%; min-width: 60px; height: .7em; border-radius: 3px; background: var(--track);
       overflow: hidden; vertical-align: baseline; }
.bar i { display: block; height: 100%; background: var(--busy); }
.matrix td, .matrix th { text-align: center; padding: .45rem .5rem; border: 1px solid var(--line); position: static; }
.matrix th { color: var(--ink); background: none; }
.matrix td small { display: block; color: inherit; opacity: .9; }
.matrix .home { outline: 2px solid var(--machine); outline-offset: -2px; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.nothing { color: var(--muted); padding: .6rem 0; }
"""
