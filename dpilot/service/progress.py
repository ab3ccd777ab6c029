"""Progress bars on stderr, while somebody waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tqdm.auto import tqdm

from dpilot.errors import PilotTimeoutError
from dpilot.runtime.session import Session
from dpilot.service.handle import Handle

__all__ = ["show_progress"]

#: How often the bar is drawn again while nothing happens, in seconds, so that its clock goes on.
_REDRAW_S = 0.5


def show_progress(session: Session, handles: Sequence[Handle], over: Callable[[], bool], timeout: float | None) -> None:
    """Show how many of the handles are settled, until `over` says so or the time has run out."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with tqdm(total=len(handles), unit="unit") as bar:
        while True:
            settled = sum(handle._is_settled() for handle in handles)
            failed = sum(handle.state == "Failed" for handle in handles)
            bar.n = settled
            bar.set_postfix_str(f"{failed} failed" if failed else "")
            bar.refresh()
            if over() or (deadline is not None and time.monotonic() >= deadline):
                return
            try:
                session.wait_until(lambda: over() or sum(h._is_settled() for h in handles) > settled, _REDRAW_S, str)  # noqa: B023
            except PilotTimeoutError:
                continue
