"""Progress bars on stderr, while somebody waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tqdm.auto import tqdm

from dpilot.errors import PilotTimeoutError
from dpilot.runtime.session import Session
from dpilot.service.handle import Handle

__all__ = ["Progress", "show_progress"]

#: How often the bar is drawn again, in seconds.
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


def show_progress(session: Session, handles: Sequence[Handle], over: Callable[[], bool], timeout: float | None) -> None:
    """Show how many of the handles are settled, until `over` says so or the time has run out."""
    deadline = None if timeout is None else time.monotonic() + timeout
    # Not drawn where stderr is no terminal: a log has no use for it.
    with tqdm(total=len(handles), unit="unit", desc="waiting", disable=None) as bar:
        ended = False
        while not ended:
            ended = over() or (deadline is not None and time.monotonic() >= deadline)
            bar.n = sum(handle._is_settled() for handle in handles)
            failed = sum(handle.state == "Failed" for handle in handles)
            bar.set_postfix_str(f"{failed} failed" if failed else "")
            if ended:
                return
            try:
                session.wait_until(over, _REDRAW_S, str)
            except PilotTimeoutError:
                bar.refresh()
