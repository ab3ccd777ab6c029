"""What all tests share: their order, Dask's configuration, and the check that no process is left."""

from __future__ import annotations

import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# Before Dask reads its configuration, and in the environment, so that processes started by tests have it
# too: tests need no dashboard, and must not contend for its port.
os.environ["DASK_DPILOT__SCHEDULER__DASHBOARD_ADDRESS"] = "None"

import psutil
import pytest
from hypothesis import settings

from dpilot import ComputeDataService, PilotCompute, PilotComputeService, PilotData, PilotDataService

pytest_plugins = ["tests.services", "tests.netns"]

# What a shell starts in the background ignores interrupts, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("dpilot", deadline=None)
settings.load_profile("dpilot")

#: Later marks run later: what fails quickly should fail first.
ORDER = ("cluster", "s3", "slow")

#: Every process that the tests start, however deep and whoever is its parent by now, has this in its environment.
SESSION = ("DPILOT_TEST_SESSION", uuid.uuid4().hex)
os.environ[SESSION[0]] = SESSION[1]

#: Python's own helpers of multiprocessing: they live as long as the test process, and end with it.
HELPERS = re.compile(r"multiprocessing\.(resource_tracker|forkserver)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests without a cluster first, otherwise in the order of the files."""
    items.sort(key=lambda item: max((n for n, mark in enumerate(ORDER, 1) if item.get_closest_marker(mark)), default=0))


def started_by_tests() -> list[psutil.Process]:
    """The living processes that this test session started, directly or not."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get(SESSION[0]) == SESSION[1]
            helper = ours and process.ppid() == os.getpid() and HELPERS.search(" ".join(process.cmdline()))
            if ours and not helper and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has just ended, or is another user's
    return found


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail the session if a process which a test started outlives the tests, and end that process."""
    yield
    deadline = time.monotonic() + 10
    while (left := started_by_tests()) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.2)
    lines = []
    for process in left:
        with process.oneshot():
            try:
                lines.append(f"  {process.pid} (parent {process.ppid()}): {' '.join(process.cmdline())[:300]}")
                process.kill()
            except psutil.NoSuchProcess:
                continue
    if lines:
        pytest.fail("processes that tests started were left behind (and have now been killed):\n" + "\n".join(lines))


# Services on the embedded scheduler, which all tests of the process share. A module that needs the same pilot
# in every test has fixtures of these names with a wider scope.


@pytest.fixture
def scheduler() -> str | None:
    """The address of the services' scheduler; None: the embedded one."""
    return None


@pytest.fixture
def pcs(scheduler: str | None) -> Iterator[PilotComputeService]:
    """A service for pilots; ends them."""
    with PilotComputeService(scheduler) as service:
        yield service


@pytest.fixture
def pds(scheduler: str | None) -> Iterator[PilotDataService]:
    """A service for stores."""
    with PilotDataService(scheduler) as service:
        yield service


@pytest.fixture
def cds(pcs: PilotComputeService, pds: PilotDataService) -> Iterator[ComputeDataService]:
    """A compute data service with `pcs` and `pds`; cancels what has not ended."""
    with ComputeDataService() as service:
        service.add_pilot_compute_service(pcs)
        service.add_pilot_data_service(pds)
        yield service


@pytest.fixture
def pilot(pcs: PilotComputeService, tmp_path: Path) -> PilotCompute:
    """A pilot of two slots on this machine."""
    return pcs.create_pilot(
        {"service_url": "fork://localhost", "number_of_processes": 2, "working_directory": str(tmp_path / "work")}
    )


@pytest.fixture
def store(pds: PilotDataService, tmp_path: Path) -> PilotData:
    """A store in a directory of this machine."""
    return pds.create_pilot({"service_url": f"file://{tmp_path / 'store'}"})
