"""A service's widget: it follows what happens, and leaves nothing behind."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import IPython
import pytest

from dpilot import ComputeDataService, PilotCompute, State
from dpilot.monitor.live import Live
from tests.helpers import Gate, eventually, reach
from tests.units import hold

pytestmark = pytest.mark.cluster


def divide(by: int) -> float:
    return 1 / by


def test_the_widget_follows_what_happens(cds: ComputeDataService, pilot: PilotCompute, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    gate = Gate(tmp_path / "gate")
    unit = cds.submit(hold, gate.path, name=gate.name)
    live = Live(cds)
    assert "ComputeDataService" in live.widget.value
    reach(unit, State.Running)
    eventually(lambda: "1 Running" in live.widget.value, "the widget shows that it runs")
    eventually(lambda: "1 of 2 busy" in live.widget.value, "the widget shows the slot")
    gate.open()
    eventually(lambda: "1 Done" in live.widget.value, "the widget shows the end")
    bad = cds.submit_compute_unit({"executable": "/bin/false"})
    eventually(lambda: bad.id in live.widget.value, "the widget shows what failed")
    assert "ended with exit status 1" in live.widget.value
    wrong = cds.submit(divide, 0)
    eventually(lambda: wrong.id in live.widget.value, "the widget shows what failed")
    assert "ZeroDivisionError: division by zero" in live.widget.value
    assert "traceback" in live.widget.value
    new = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in new if not name.startswith(("dpilot-callbacks", "Dask-"))]
    cds.cancel()
    eventually(lambda: ">Canceled<" in live.widget.value, "the widget shows the service's end")


def test_the_widget_goes_with_its_service(pilot: PilotCompute) -> None:
    service = ComputeDataService()
    assert service.id
    session, live = service._session, Live(service)
    widget = live.widget
    gone = weakref.ref(live)
    assert live in session._listeners
    service.cancel()
    eventually(lambda: ">Canceled<" in widget.value, "the last drawing")
    widget.close()
    del live, service
    deadline = time.monotonic() + 5
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert gone() is None
    assert not session._listeners


def test_jupyter_gets_the_widget_and_others_html(cds: ComputeDataService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cds.id
    assert cds._repr_mimebundle_() is None  # no kernel here
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    bundle = cds._repr_mimebundle_()
    assert bundle is not None
    assert list(bundle) == ["application/vnd.jupyter.widget-view+json"]
    assert cds._repr_mimebundle_() == bundle  # one widget, however often it is shown
    assert cds._repr_html_() is not None
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with ComputeDataService() as other:
        assert other.id
        assert other._repr_mimebundle_() is None
