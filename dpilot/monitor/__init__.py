"""What shows where the work is, and why: tables, the dashboard's page, figures as JSON and for Prometheus.

Importing this has every scheduler of dpilot in the process watched, and objects drawn in notebooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpilot import config
from dpilot.display import Displayed
from dpilot.runtime import observers

if TYPE_CHECKING:
    from dpilot.runtime.coordinator import Coordinator


def _watch(coordinator: Coordinator) -> observers.Observer | None:
    if not config.get("monitor.enabled"):
        return None
    from dpilot.monitor.watch import Watch  # on a scheduler only: clients need not load it

    return Watch(coordinator)


observers.register(_watch)


class _Drawing:
    """Loads what draws when something is drawn."""

    def html(self, shown: Any) -> str | None:
        from dpilot.monitor import drawing

        return drawing.html(shown)

    def text(self, shown: Any) -> str:
        from dpilot.monitor import drawing

        return drawing.text(shown)

    def live(self, shown: Any) -> dict[str, Any] | None:
        try:
            from dpilot.monitor.live import live

            return live(shown)
        except Exception:  # no ipywidgets, or one that is broken: there is HTML
            return None

    def report(self, shown: Any, with_regret: bool) -> Any:
        from dpilot.monitor.report import Report

        return Report.of(shown._session, shown.id, with_regret=with_regret)


Displayed.drawing = _Drawing()
