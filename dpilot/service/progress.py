"""Progress bars on stderr, while somebody waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tqdm.auto import tqdm

from dpilot.errors import PilotTimeoutError
from dpilot.runtime.session import Session
from dpilot.service.handle import Handle

__all__ = ["show_progress"]

#: How often the bar is drawn again, in seconds.
_REDRAW_S = 0.2


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
