"""A service's widget: it follows what happens, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


SHOW = """
from pathlib import Path
from dpilot import ComputeDataService, PilotComputeService

pcs, cds = PilotComputeService(), ComputeDataService()
cds.add_pilot_compute_service(pcs)
pcs.create_pilot({"service_url": "fork://localhost", "working_directory": str(Path("work").absolute())})
pcs.wait_running()
cds
"""
RUN = """
import time
from dpilot.monitor.live import _shown

cds.submit_compute_unit_batch([{"executable": "/bin/true"}] * 3)
cds.wait(20)
until = time.monotonic() + 20
while "3 Done" not in _shown[cds].widget.value and time.monotonic() < until:
    time.sleep(0.05)
"""


def talk(cells: list[str], directory: Path) -> dict[str, Any]:
    """What a real kernel tells that runs these cells."""
    for needed in ("jupyter_client", "ipykernel"):
        pytest.importorskip(needed)
    done = subprocess.run(
        [sys.executable, "-c", TALK],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=100,
        cwd=directory,
        env={
            **os.environ,
            "DASK_DPILOT__SCHEDULER__DASHBOARD_ADDRESS": "127.0.0.1:0",
            "IPYTHONDIR": str(directory / "ipython"),
        },
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.slow
def test_a_real_kernel_tells_the_notebook_what_happens(tmp_path: Path) -> None:
    told = talk([SHOW, RUN, "cds.cancel(); pcs.cancel()"], tmp_path)
    assert told["errors"] == []
    (shown,) = told["shown"]
    assert "ComputeDataService" in shown["text/html"]  # for those who open the notebook without widgets
    values = told["values"][shown["application/vnd.jupyter.widget-view+json"]["model_id"]]
    assert "3 Done" not in values[0]
    assert any("3 Done" in value for value in values)


@pytest.mark.slow
def test_a_notebook_without_ipywidgets_has_static_cards_and_a_bar_of_text(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['ipywidgets'] = None"
    run = "units = cds.submit_compute_unit_batch([{'executable': '/bin/true'}] * 3); cds.wait(20, progress=True);"
    told = talk([hide, SHOW, run, "cds.cancel(); pcs.cancel()"], tmp_path)
    assert told["errors"] == []
    (shown,) = told["shown"]
    assert sorted(shown) == ["text/html", "text/plain"]
    assert "3/3" in told["stderr"]


#: What users do wrong, and the errors that they then read.
WRONG = """
import dpilot

cds, pcs = dpilot.ComputeDataService(), dpilot.PilotComputeService()
pcs.create_pilot({"service_url": "forc://localhost"})
|cds.submit_data_unit({"file_urls": ["/no/such/file"]})
|def mine(name):
    try:
        return {}[name]
    except KeyError:
        return cds.submit_compute_unit({"executabel": name})
mine("true")
|%xmode Verbose
pcs.create_pilot({"service_url": "forc://localhost"})
|cds.cancel(); pcs.cancel()
"""


@pytest.mark.slow
def test_a_refusal_shows_who_asked_and_no_internals(tmp_path: Path) -> None:
    told = talk(WRONG.split("|"), tmp_path)
    read = [re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines)) for lines in told["errors"]]
    scheme, file, key, verbose = read
    for error, asked, said in (
        (scheme, 'pcs.create_pilot({"service_url": "forc://localhost"})', "DescriptionError: service_url"),
        (file, 'cds.submit_data_unit({"file_urls": ["/no/such/file"]})', "DataError: source file:///no/such/file"),
        (key, 'return cds.submit_compute_unit({"executabel": name})', "did you mean 'executable'?"),
    ):
        assert asked in error
        assert said in error.splitlines()[-1]
        assert "dpilot/" not in error
    assert "Error: [Errno 2]" not in file  # its message is said again in dpilot's own
    assert "KeyError: 'true'" in key  # what the user's own code met first
    assert "pilots/launcher.py" in verbose


#: A front end: it runs cells, and takes what the kernel sends of widgets, whichever cell that belongs to.
TALK = """
import json, sys
from collections import defaultdict
from jupyter_client import KernelManager

told = {"errors": [], "shown": [], "values": defaultdict(list), "stderr": ""}
manager = KernelManager()
manager.kernel_spec.argv[0] = sys.executable
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)

def hear(message):
    content, what = message["content"], message["msg_type"]
    if what == "execute_result":
        told["shown"].append(content["data"])
    elif what == "stream":
        told["stderr"] += content["text"] if content["name"] == "stderr" else ""
    elif what == "error":
        told["errors"].append(content["traceback"])
    elif what in ("comm_open", "comm_msg"):
        value = content["data"].get("state", {}).get("value")
        if value is not None:
            told["values"][content["comm_id"]].append(value)

for cell in json.load(sys.stdin):
    asked = client.execute(cell.strip())
    while True:
        message = client.get_iopub_msg(timeout=60)
        hear(message)
        is_idle = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
        if is_idle and message["parent_header"].get("msg_id") == asked:
            break
client.stop_channels()
manager.shutdown_kernel()
print(json.dumps(told))
"""
