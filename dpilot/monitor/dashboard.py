"""dpilot's pages in Dask's dashboard: all panels at ``/dpilot``, and each of them on a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bokeh.document import Document
from bokeh.models import Div, UIElement
from jinja2 import Environment, FileSystemLoader

from dpilot.monitor import panels, views
from dpilot.monitor.figures import Gantt, SlotsOverTime
from dpilot.monitor.model import LOCALITIES
from dpilot.monitor.theme import LOCALITY_COLOURS, PANEL_CSS, THEMES
from dpilot.monitor.watch import Watch

__all__ = ["PANELS", "pages"]

#: A page that is open looks so often whether anything has changed, and draws so often if nothing has.
_EVERY_MS = 500
_AT_LEAST_EVERY = 10

_templates = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=False)


class _Panel(Protocol):
    @property
    def root(self) -> UIElement: ...

    def update(self) -> None: ...


class _Html:
    """A panel of HTML."""

    def __init__(self, work_out: Callable[[Watch], str], watch: Watch, theme: str) -> None:
        self._work_out = partial(work_out, watch)
        self.root = Div(sizing_mode="stretch_width", margin=0, stylesheets=[PANEL_CSS])
        self.update()

    def update(self) -> None:
        """Show what is known now."""
        text = self._work_out()
        if text != self.root.text:
            self.root.text = text


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a panel is: its name and title, one sentence, its width in twelfths of the page, and what makes it."""

    name: str
    title: str
    caption: str
    span: int
    make: Callable[[Watch, str], _Panel]


def _html(work_out: Callable[[Watch], str]) -> Callable[[Watch, str], _Panel]:
    return partial(_Html, work_out)


#: The legend of the Gantt chart: text that says the same as the colours.
_LOCALITIES = " ".join(
    f'<span class="key"><i style="background: var(--{colour})"></i>{name}</span>'
    for name, colour in zip(LOCALITIES, LOCALITY_COLOURS, strict=True)
)

PANELS = (
    _Kind("summary", "", "", 12, _html(lambda watch: panels.summary_html(views.summary(watch)))),
    _Kind(
        "pilots",
        "Pilots",
        "By datacenter and machine.",
        6,
        _html(lambda watch: panels.pilots_html(views.pilots(watch))),
    ),
    _Kind("slots", "Slots busy", "Over time, by datacenter.", 6, SlotsOverTime),
    _Kind(
        "gantt",
        "Units by pilot",
        "The newest that have ended, paler while input was staged. Input from: " + _LOCALITIES,
        12,
        Gantt,
    ),
    _Kind(
        "matrix",
        "Placement",
        "Runs and the bytes they read, by where the data lay and where the run was. Framed: the same site.",
        5,
        _html(lambda watch: panels.matrix_html(views.matrix(watch))),
    ),
    _Kind(
        "transfers",
        "Transfers",
        "By link; of the last one on each, what was predicted and what it took, and the running mean of their ratio.",
        7,
        _html(lambda watch: panels.transfers_html(views.transfers(watch))),
    ),
    _Kind(
        "waiting",
        "Waiting units",
        "And why they wait.",
        5,
        _html(lambda watch: panels.waiting_html(views.waiting(watch))),
    ),
    _Kind(
        "data",
        "Stores and data units",
        "Replicas are listed by site; those with a plus are on their way.",
        7,
        _html(lambda watch: panels.data_html(views.data(watch), views.stores(watch))),
    ),
)


def pages(watch: Watch) -> dict[str, Callable[[Document], None]]:
    """Path -> what fills a document; for :func:`dpilot.runtime.web.add_pages`."""
    made: dict[str, Callable[[Document], None]] = {"/dpilot": partial(_fill, watch, PANELS, "dpilot")}
    for kind in PANELS:
        made[f"/individual-dpilot-{kind.name}"] = partial(_fill, watch, (kind,), f"dpilot: {kind.title or kind.name}")
    return made


def _fill(watch: Watch, kinds: tuple[_Kind, ...], title: str, document: Document) -> None:
    theme = _theme(document)
    shown = []
    for kind in kinds:
        panel = kind.make(watch, theme)
        panel.root.name = kind.name
        document.add_root(panel.root)
        shown.append(panel)
    document.title = title
    document.template = _templates.get_template("dashboard.html")
    document.template_variables.update(theme=theme, colours=THEMES[theme], panels=kinds, title=title)
    seen: list[Any] = [None, 0]

    def update() -> None:
        queue = watch.coordinator.catalogue.transfers
        now = watch.model.version, len(queue.moving), sum(link.rate for link in watch.model.links.values())
        seen[1] += 1
        if now != seen[0] or seen[1] >= _AT_LEAST_EVERY:
            seen[:] = [now, 0]
            for panel in shown:
                panel.update()

    document.add_periodic_callback(update, _EVERY_MS)


def _theme(document: Document) -> str:
    context = document.session_context
    arguments = context.request.arguments if context is not None and context.request is not None else {}
    asked = arguments.get("theme", [b""])[0].decode("ascii", "replace")
    return asked if asked in THEMES else "light"
