"""What Jupyter and IPython show of an object: asked here, drawn in :mod:`dpilot.monitor`."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

__all__ = ["Displayed", "Drawing"]


class Drawing(Protocol):
    """What draws objects. It never raises, and never waits for long."""

    def html(self, shown: Any) -> str | None:
        """As HTML; None where that cannot be had."""

    def text(self, shown: Any) -> str:
        """As lines of text."""

    def live(self, shown: Any) -> dict[str, Any] | None:
        """As a widget that follows what happens: Jupyter's mime bundle; None where that cannot be had."""

    def report(self, shown: Any, with_regret: bool) -> Any:
        """The report of a service's run: a ``dpilot.monitor.report.Report``. This may raise, and take long."""


class Displayed:
    """Base of what is shown as more than one line: handles and decisions.

    The layer that draws, monitor, is above those that have something to show. So it sets `drawing` when dpilot is
    imported; without it there is the plain repr.
    """

    __slots__ = ()

    drawing: ClassVar[Drawing | None] = None

    def _repr_html_(self) -> str | None:
        drawing = Displayed.drawing
        return None if drawing is None else drawing.html(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """IPython calls this. What is in a list or dict is one line, as ever."""
        drawing = Displayed.drawing
        nested = len(printer.stack) > 1
        printer.text(repr(self) if cycle or nested or drawing is None else drawing.text(self))
