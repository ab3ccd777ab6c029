"""One decision, taken by ``dpilot.placement`` itself: what each pilot would cost, and why one is chosen."""

from __future__ import annotations

from dpilot.placement import InputView, Links, PilotView, Policy, Request, Site
from dpilot.placement.decision import told
from draw.svg import Picture, legend

__all__ = ["draw"]

_PARTS = (("waiting for a slot", "queue_s", "series-1"), ("bringing inputs", "stage_s", "series-0"))
_LABEL = ("a label that is missed", "label_s", "series-3")
_LEFT, _LONGEST = 170, 560

#: A unit that reads 300 MB which lie in "eu", and would like to run there.
_DATA = InputView("the flights", 300_000_000, 1, (Site("eu", "eu-1"),))
_REQUEST = Request("cds", site=Site("eu"), inputs=(_DATA.id,))
_PILOTS = (
    PilotView("beside the data", Site("eu", "eu-1"), slots=4, free=0, backlog_s=16.0),
    PilotView("same datacenter", Site("eu", "eu-2"), slots=4, free=1),
    PilotView("another datacenter", Site("us", "us-1"), slots=4, free=4),
)


def draw() -> Picture:
    """A bar for each pilot, the cheapest first."""
    rows = Policy(Links()).rank(_REQUEST, _PILOTS, {_DATA.id: _DATA})
    reason, marked = told(rows[0].pilot, rows)
    scale = _LONGEST / max(row.cost_s for row in rows)
    picture = Picture(880, 62 + 46 * len(rows) + 34, f"What three pilots cost for one unit; {reason}")
    legend(picture, 20, 26, [(text, fill) for text, _, fill in (*_PARTS, _LABEL)])
    for number, row in enumerate(marked):
        y, x = 48 + 46 * number, float(_LEFT)
        picture.text(_LEFT - 12, y + 20, row.pilot, anchor="end", bold=row.verdict == "chosen")
        for _, part, fill in (*_PARTS, _LABEL):
            seconds = getattr(row, part)
            if seconds:
                picture.bar(x, y + 4, seconds * scale, 24, fill)
                x += seconds * scale
        chosen = ", chosen" if row.verdict == "chosen" else ""
        picture.text(x + 10, y + 21, f"{row.cost_s:.2f} s{chosen}", bold=bool(chosen))
    picture.text(20, 48 + 46 * len(rows) + 22, f"dpilot says: {reason}.", ink="muted", size=12)
    return picture
