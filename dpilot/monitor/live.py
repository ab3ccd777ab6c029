"""A compute data service's card as a widget that follows what happens, where there is a notebook with ipywidgets."""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from typing import Any

from dpilot.monitor.drawing import card_html
from dpilot.monitor.portraits import card_of, service_card
from dpilot.service.compute_data import ComputeDataService

__all__ = ["Live", "live"]

#: Between two drawings: so many seconds, and so many times as long as the last one took.
_PAUSE_S = 0.5
_PAUSE_FACTOR = 20

_shown: weakref.WeakKeyDictionary[ComputeDataService, Live] = weakref.WeakKeyDictionary()


class Live:
    """A widget that shows a service, as long as both are there.

    Events wake it, in the client's own event loop: there is no thread and no timer while nothing happens.

    Parameters
    ----------
    service : ComputeDataService
        One that is connected.

    Raises
    ------
    ImportError
        If ipywidgets is not installed.
    """

    def __init__(self, service: ComputeDataService) -> None:
        from ipywidgets import HTML

        self._service = weakref.ref(service)
        self._is_due = False
        self._pause_s = _PAUSE_S
        self.widget = HTML(card_html(card_of(service)))
        service._session.listen(self)

    def wake(self) -> None:
        """Something has happened (called in the client's event loop)."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(self._pause_s, self._begin)

    def _begin(self) -> None:
        self._drawing = asyncio.ensure_future(self._draw())

    async def _draw(self) -> None:
        self._is_due = False
        service = self._service()
        if service is None:
            return
        began = time.perf_counter()
        about = await service._session.peek_async("about", id=service.id)
        units = service._units
        failed = [id for id, *_ in about["failed"] if id in units] if about is not None else []
        errors = {id: await units[id]._learn_error() for id in failed}
        self.widget.value = card_html(service_card(service, about, errors))
        self._pause_s = max(_PAUSE_S, _PAUSE_FACTOR * (time.perf_counter() - began))


def live(service: ComputeDataService) -> dict[str, Any] | None:
    """What Jupyter is to show of a service besides HTML and text: its widget, if that can be had."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None or "_life" not in service.__dict__ or service._session.is_lost:
        return None
    made = _shown.get(service)
    if made is None:
        made = _shown[service] = Live(service)
    bundle: dict[str, Any] | None = made.widget._repr_mimebundle_()
    return None if bundle is None else {kind: data for kind, data in bundle.items() if "widget" in kind}
