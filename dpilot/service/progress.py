"""Progress bars, in terminals and notebooks, while somebody waits."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from dpilot.errors import PilotError, PilotTimeoutError
from dpilot.runtime.session import Session
from dpilot.service.handle import Handle
from dpilot.states import State

if TYPE_CHECKING:
    from dpilot.service.data_unit import DataUnit

__all__ = ["Progress", "progress", "show_progress"]

#: How often the bars are drawn again, in seconds.
_REDRAW_S = 0.2


class Progress(NamedTuple):
    """How far the transfers of a data unit are.

    Parameters
    ----------
    nbytes : int
        Moved so far.
    total_nbytes : int
        Of all transfers that are under way or wait.
    bytes_per_s : float
        Of those under way together.
    eta_s : float or None
        When they will be done, at this rate; None while nothing is known of it.
    """

    nbytes: int
    total_nbytes: int
    bytes_per_s: float
    eta_s: float | None

    @classmethod
    def of(cls, moving: Iterable[tuple[str, int, int, float | None]], now: float) -> Progress:
        """From rows of store, bytes so far, bytes in all, and when it began (None: it waits)."""
        rows = list(moving)
        rate = sum(done / (now - began) for _, done, _, began in rows if began is not None and now > began)
        done, total = sum(row[1] for row in rows), sum(row[2] for row in rows)
        if not rows:
            return cls(0, 0, 0.0, 0.0)
        return cls(done, total, rate, max(0, total - done) / rate if rate else None)


def progress(units: Handle | Iterable[Handle], timeout: float | None = None) -> None:
    """Wait for compute units and data units, and show how far they are: bars of units, bytes and transfers.

    The bars are drawn by tqdm: as widgets in a notebook, as text on stderr in a terminal (in a notebook without
    ipywidgets one line, of units), and not at all where stderr is a file.

    Parameters
    ----------
    units : ComputeUnit, DataUnit, or iterable of them
        Of one scheduler.
    timeout : float, optional
        In seconds.

    Raises
    ------
    PilotTimeoutError
        Saying what is pending, and why.
    ConnectionLostError
    """
    handles = [units] if isinstance(units, Handle) else list(units)
    for handle in handles:
        if not isinstance(handle, Handle) or handle.kind not in ("cu", "du"):
            raise PilotError(f"{handle!r} is not a unit; give compute units and data units only")
    if not handles:
        return
    session = handles[0]._session
    if any(handle._session is not session for handle in handles):
        raise PilotError("the units belong to several schedulers; show the progress of one after the other")
    left = list(handles)

    def over() -> bool:
        while left and left[-1]._is_settled():
            left.pop()
        return not left

    data: dict[str, Any] = {handle.id: handle for handle in handles if handle.kind == "du"}
    for handle in handles:
        data |= {unit.id: unit for unit in getattr(handle, "output_data", {}).values()}
    deadline = None if timeout is None else time.monotonic() + timeout
    show_progress(session, handles, data.values(), over, timeout)
    remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
    session.wait_until(over, remaining, lambda: "; ".join(handle._pending() for handle in left[:5]))


def show_progress(
    session: Session,
    handles: Collection[Handle],
    data: Collection[DataUnit],
    over: Callable[[], bool],
    timeout: float | None,
) -> None:
    """Show how many of the handles are settled, until `over` says so or the time has run out."""
    deadline = None if timeout is None else time.monotonic() + timeout
    bars = _Bars(handles, data)
    try:
        ended = False
        while not ended:
            ended = over() or (deadline is not None and time.monotonic() >= deadline)
            bars.draw()
            if not ended:
                try:
                    session.wait_until(over, _REDRAW_S, str)
                except PilotTimeoutError:
                    continue
    finally:
        bars.close()


class _Bars:
    """One bar for units, and once something is moved, one for its bytes and one for the transfers."""

    def __init__(self, handles: Collection[Handle], data: Collection[DataUnit]) -> None:
        from tqdm.auto import tqdm  # it looks whether this is a notebook, and warns in one that lacks ipywidgets
        from tqdm.notebook import tqdm_notebook

        self._tqdm = tqdm
        ipython = sys.modules.get("IPython")
        self._in_notebook = getattr(None if ipython is None else ipython.get_ipython(), "kernel", None) is not None
        # Without widgets, a notebook can draw one line over and over, but not several.
        self._is_one_line = self._in_notebook and not issubclass(tqdm, tqdm_notebook)
        self._handles = handles
        self._data = data
        self._moves: dict[str, dict[str, tuple[int, int, bool]]] = {}  # data unit, store: bytes so far, in all, ended
        self._units = self._bar(len(handles), "units", unit="unit")
        self._bytes: Any = None
        self._transfers: Any = None

    def _bar(self, total: int, what: str, **options: Any) -> Any:
        # Not drawn where stderr is neither a terminal nor a notebook: a log has no use for it.
        disable = False if self._in_notebook else None
        return self._tqdm(total=total, desc=f"{what:9}", disable=disable, **options)

    def draw(self) -> None:
        """Show how far all is now."""
        states = Counter(handle.state for handle in self._handles)
        self._units.n = sum(handle._is_settled() for handle in self._handles)
        shown = (State.Staging, State.Failed, State.Canceled)
        text = ", ".join(f"{states[state]:,} {str(state).lower()}" for state in shown if states[state])
        self._units.set_postfix_str(text, refresh=False)
        self._units.refresh()
        self._look()
        if self._moves and not self._is_one_line:
            if self._bytes is None:
                self._bytes = self._bar(0, "bytes", unit="B", unit_scale=True)
                self._transfers = self._bar(0, "transfers", unit="transfer")
            moves = [move for moves in self._moves.values() for move in moves.values()]
            self._set(self._bytes, sum(done for done, _, _ in moves), sum(total for _, total, _ in moves))
            self._set(self._transfers, sum(ended for _, _, ended in moves), len(moves))

    def _look(self) -> None:
        for unit in list(self._data):
            moving = {store: (done, total, False) for store, done, total, _ in unit._moving}
            before = self._moves.get(unit.id, {})
            if moving or before:
                ended = {store: (total, total, True) for store, (_, total, _) in before.items()}
                self._moves[unit.id] = ended | moving

    @staticmethod
    def _set(bar: Any, n: int, total: int) -> None:
        bar.n, bar.total = n, max(n, total)
        bar.refresh()

    def close(self) -> None:
        """Leave the bars as they are."""
        for bar in (self._transfers, self._bytes, self._units):
            if bar is not None:
                bar.close()
