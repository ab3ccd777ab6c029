"""Objects outlive the handles on them: other processes find them by their URLs, while the scheduler lives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from dpilot import (
    ComputeDataService,
    ComputeUnit,
    ConnectionLostError,
    DataUnit,
    DescriptionError,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
    PilotTimeoutError,
    State,
    UnknownObjectError,
)
from dpilot.runtime.session import Session
from tests import units
from tests.helpers import LONG_S, Gate, create, eventually, marked, reach, script, start

pytestmark = pytest.mark.cluster

NewScheduler = Callable[[], "DaskScheduler"]


class DaskScheduler:
    """A scheduler that somebody else has started."""

    def __init__(self, directory: Path) -> None:
        file = directory / f"{uuid.uuid4().hex}.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file)]
        self.log = directory / "scheduler.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_scheduler", *options], stdout=log, stderr=log
            )
        self.address = str(json.loads(eventually(lambda: file.exists() and file.read_text(), "a scheduler"))["address"])

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(LONG_S)


@pytest.fixture
def new_scheduler(tmp_path: Path) -> Iterator[NewScheduler]:
    made: list[DaskScheduler] = []

    def make() -> DaskScheduler:
        made.append(DaskScheduler(tmp_path))
        return made[-1]

    yield make
    for scheduler in made:
        with Session._lock:
            session = Session._sessions.get(scheduler.address)
        if session is not None:
            session.close()
        scheduler.kill()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


# -- by URL, from another process


READER = """
    import json, sys
    from dpilot import (
        ComputeDataService, ComputeUnit, DataUnit, PilotCompute, PilotComputeService, PilotData, PilotDataService,
    )

    urls = json.loads(sys.argv[1])
    pcs = PilotComputeService(pcs_url=urls["pcs"])
    pilot = PilotCompute(pilot_url=urls["pilot"])
    pds = PilotDataService(pds_url=urls["pds"])
    pd = PilotData(pd_url=urls["pd"])
    du = DataUnit(du_url=urls["du"])
    cds = ComputeDataService(cds_url=urls["cds"])
    done, large, failed = (ComputeUnit(cu_url=urls[name]) for name in ("done", "large", "failed"))
    running = ComputeUnit(urls["running"])
    found = {
        "states": {x.id: x.get_state() for x in (pcs, pilot, pds, pd, du, cds, done, large, failed, running)},
        "urls": [x.get_url() for x in (pcs, pilot, pds, pd, du, cds, done, large, failed, running)],
        "pilots": [p.id for p in pcs.list_pilots()],
        "stores": [p.id for p in pds.list_pilots()],
        "store": pds.get_pilot(pd.id).url_for_du(du),
        "in store": [d.id for d in pd.list_data_units()],
        "cds": [
            sorted(x.id for x in some)
            for some in (
                cds.list_pilot_compute(), cds.list_pilot_data(), cds.list_compute_units(), cds.list_data_units()
            )
        ],
        "du": {name: file["nbytes"] for name, file in du.list().items()},
        "exported": (du.export(sys.argv[2]) / "a.txt").read_text(),
        "result": done.result(),
        "large": len(large.result()),
        "exception": repr(failed.exception()),
        "no exception": done.exception(),
        "history": done.history,
        "name": done.name,
        "slots": [pilot.get_details()["slots"], pilot.get_free_nodes()],
        "directory": done.get_local_working_directory(),
        "direct": [u.id for u in pilot.list_compute_units()],
    }
    print(json.dumps(found))
    sys.stdin.readline()  # the gate is open now
    print(running.wait(20), running.result()[1] > running.result()[0])
    print(cds.submit(sum, [1, 2, 3]).result(20), pilot.submit_compute_unit({"executable": "/bin/true"}).wait(20))
    sys.stdin.readline()
"""


def test_every_object_is_found_by_its_url(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path / "work", 2)
    pd = pds.create_pilot({"service_url": f"file://{tmp_path}/store"})
    (tmp_path / "a.txt").write_text("some text\n")
    du = cds.submit_data_unit({"file_urls": [str(tmp_path / "a.txt")], "affinity_datacenter_label": "eu"})
    done = cds.submit(units.same, {"a": 1}, name="first")
    large = cds.submit(units.large, 1 << 16)
    failed = cds.submit(units.fail, "no")
    cds.wait(LONG_S)
    running = pilot.submit_compute_unit({"executable": units.hold, "args": (gate.path,), "name": gate.name})
    reach(running, State.Running)
    mine: dict[str, Any] = {"pcs": pcs, "pilot": pilot, "pds": pds, "pd": pd, "du": du, "cds": cds}
    mine |= {"done": done, "large": large, "failed": failed, "running": running}
    urls = {name: handle.get_url() for name, handle in mine.items()}
    with script(READER, json.dumps(urls), str(tmp_path / "export")) as process:
        found = json.loads(process.hear())
        assert found["states"] == {handle.id: str(handle.state) for handle in mine.values()}
        assert found["urls"] == list(urls.values())
        assert found["pilots"] == [pilot.id]
        assert found["stores"] == [pd.id]
        assert found["store"] == pd.url_for_du(du)
        assert found["in store"] == [du.id]
        assert found["cds"] == [[pilot.id], [pd.id], sorted([done.id, large.id, failed.id]), [du.id]]
        assert found["du"] == {"a.txt": 10}
        assert found["exported"] == "some text\n"
        assert found["result"] == {"a": 1}
        assert found["large"] == 1 << 16
        assert found["exception"] == "ArithmeticError('no')"
        assert found["no exception"] is None
        assert found["history"] == [[str(state), timestamp] for state, timestamp in done.history]
        assert found["name"] == "first"
        assert found["slots"] == [2, 1]
        assert found["directory"] == str(tmp_path / "work" / done.id)
        assert found["direct"] == [running.id]
        gate.open()
        process.say()
        assert process.hear() == "Done True"
        assert process.hear() == "6 Done"
        # What the other process submitted belongs to the service, and is known to who asks.
        assert len(ComputeDataService(cds_url=cds.url).list_compute_units()) == 4
        assert len(pilot.list_compute_units()) == 2
        process.say()
        assert process.end() == ("", "")
    # Its end ends nothing of ours.
    assert pilot.state == "Running"
    assert cds.submit(units.same, 1).result(LONG_S) == 1


def test_what_another_process_cancels_is_canceled_here(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    process = pcs.client.run(os.getpid)
    unit, other = (cds.submit(units.hold, gate.path, name=gate.name) for _ in range(2))
    reach(unit, State.Running)
    code = """
        import sys
        from dpilot import ComputeUnit, PilotCompute
        unit, pilot = ComputeUnit(sys.argv[1]), PilotCompute(sys.argv[2])
        unit.cancel()
        print(unit.state)
        pilot.cancel()
        print(pilot.state)
    """
    with script(code, unit.url, pilot.url) as canceler:
        assert canceler.end() == ("Canceled\nCanceled\n", "")
    assert unit.wait(LONG_S) == "Canceled"
    assert pilot.wait(LONG_S) == "Canceled"
    assert other.state == "Pending"
    for pid in process.values():  # the process that started it has ended it
        eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the worker has ended")


def test_a_second_handle_in_the_same_process_follows_the_object(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    unit = cds.submit(units.hold, gate.path, name=gate.name)
    reach(unit, State.Running)
    second = ComputeUnit(unit.url)
    assert second.state == "Running"
    assert second.history == unit.history
    seen: list[State] = []
    second.set_callback(lambda _unit, _member, state: seen.append(state))
    gate.open()
    assert second.wait(LONG_S) == unit.wait(LONG_S) == "Done"
    assert second.result() == unit.result()
    eventually(lambda: seen == ["Done"], "one call")
    assert PilotCompute(pilot_url=pilot.url).get_free_nodes() == 1


@pytest.mark.parametrize(
    ("reconnect", "own"),
    [
        (lambda url: PilotComputeService(pcs_url=url), "pcs"),
        (lambda url: PilotCompute(pilot_url=url), "pc"),
        (lambda url: ComputeUnit(cu_url=url), "cu"),
        (lambda url: PilotDataService(pds_url=url), "pds"),
        (lambda url: PilotData(pd_url=url), "pd"),
        (lambda url: DataUnit(du_url=url), "du"),
        (lambda url: ComputeDataService(cds_url=url), "cds"),
    ],
)
def test_malformed_and_unknown_urls(pcs: PilotComputeService, reconnect: Callable[[str], Any], own: str) -> None:
    place = pcs.url.rpartition("/")[0]
    other = "du" if own != "du" else "cu"
    for url in ("", "cu-0123456789ab", place, f"{place}/{own}-xyz", f"http://127.0.0.1:1/{own}-0123456789ab"):
        with pytest.raises(DescriptionError, match="is not the URL of an object"):
            reconnect(url)
    with pytest.raises(DescriptionError, match="names a"):
        reconnect(f"{place}/{other}-0123456789ab")
    with pytest.raises(UnknownObjectError, match=rf"{own}-0123456789ab is not known to this scheduler"):
        reconnect(f"{place}/{own}-0123456789ab")
    assert pcs.client.submit is not None
    assert pcs.get_state() == "Running"


# -- schedulers


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("service", [PilotComputeService, PilotDataService, ComputeDataService])
def test_coordination_urls_of_bigjob_are_refused(service: Callable[..., Any]) -> None:
    for url in ("redis://localhost:6379", "advert://localhost"):
        with pytest.raises(DescriptionError, match=rf"{url}.*does not need; write tcp://HOST:PORT"):
            service(coordination_url=url)


def test_no_scheduler_at_the_address() -> None:
    port = unused_port()
    began = time.monotonic()
    with dask.config.set({"dpilot.scheduler.connect-timeout": "300ms"}):
        for make in (
            lambda: PilotComputeService(coordination_url=f"tcp://127.0.0.1:{port}"),
            lambda: ComputeUnit(cu_url=f"dpilot://127.0.0.1:{port}/cu-0123456789ab"),
        ):
            with pytest.raises(ConnectionLostError, match=rf"no scheduler answers at tcp://127\.0\.0\.1:{port}"):
                make()
    assert time.monotonic() - began < 5


SUBMITTER = """
    import os, sys
    from dpilot import ComputeDataService, PilotComputeService
    from tests import units
    from tests.helpers import State, create, reach

    address, directory, end = sys.argv[1:]
    pcs = PilotComputeService(coordination_url=address)
    cds = ComputeDataService()
    cds.add_pilot_compute_service(pcs)
    pilot = create(pcs, directory)
    done = cds.submit(units.same, 7)
    done.wait(20)
    held = cds.submit(units.hold, f"{directory}/gate", name="hold")
    takes = cds.submit(units.same, held)
    direct = pilot.submit_compute_unit({"executable": "/bin/true"})
    reach(held, State.Running)
    cds.why_waiting()
    print(cds.url, done.url, held.url, takes.url, direct.url, pilot.url)
    sys.stdin.readline()
    if end == "crash":
        os._exit(1)
"""


@pytest.mark.parametrize("end", ["normal", "crash"])
def test_units_survive_their_client_at_an_external_scheduler(
    new_scheduler: NewScheduler, gate: Gate, tmp_path: Path, end: str
) -> None:
    scheduler = new_scheduler()
    mark = ("DPILOT_TEST_CLIENT", uuid.uuid4().hex)
    with script(SUBMITTER, scheduler.address, str(tmp_path), end, **dict([mark])) as process:
        cds_url, *unit_urls, pilot_url = process.hear().split()
        process.say()
        process.end(1 if end == "crash" else 0)
    eventually(lambda: marked(*mark) == [], "nothing is left of the client")
    cds = ComputeDataService(cds_url=cds_url)
    done, held, takes, direct = (ComputeUnit(url) for url in unit_urls)
    assert PilotCompute(pilot_url).wait(LONG_S) == ("Failed" if end == "crash" else "Canceled")
    assert done.result() == 7  # small enough to be with the scheduler
    assert direct.wait(LONG_S) == ("Failed" if end == "crash" else "Canceled")
    assert held.state == takes.state == "Pending"
    with pytest.raises(PilotTimeoutError):
        cds.wait(0.05)
    # Another client brings another pilot.
    pcs = PilotComputeService(coordination_url=scheduler.address)
    assert pcs.coordination_url == scheduler.address
    cds.add_pilot_compute_service(pcs)
    gate.open()
    pilot = create(pcs, tmp_path / "work")
    assert cds.wait(LONG_S) == "Running"
    assert held.state == takes.state == "Done"
    assert takes.result() == held.result()
    assert held.get_details()["pilot"] == pilot.id
    assert held.get_details()["attempt"] == 2
    # Dask's own clients of the same scheduler see the results, too.
    with Client(scheduler.address, set_as_default=False) as client:
        assert client.submit(units.same, 5).result(LONG_S) == 5
    cds.cancel()
    pcs.cancel()
    assert scheduler.process.poll() is None  # it is not ours to end


def test_a_scheduler_that_is_killed_is_noticed_at_once(new_scheduler: NewScheduler, gate: Gate, tmp_path: Path) -> None:
    scheduler = new_scheduler()
    pcs = PilotComputeService(scheduler.address)
    pds = PilotDataService(scheduler.address)
    cds = ComputeDataService()
    cds.add_pilot_compute_service(pcs)
    pilot = start(pcs, tmp_path)
    done, running = cds.submit(units.same, 1), cds.submit(units.hold, gate.path, name=gate.name)
    assert done.result(LONG_S) == 1
    reach(running, State.Running)
    waiting = cds.submit(units.same, 2)
    errors: list[BaseException | None] = []

    def wait(method: Callable[..., Any]) -> None:
        try:
            method()
        except BaseException as error:
            errors.append(error)

    waits = [running.wait, running.result, waiting.exception, pilot.wait, pcs.wait, cds.wait]
    threads = [threading.Thread(target=wait, args=(method,)) for method in waits]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    scheduler.kill()
    for thread in threads:
        thread.join(LONG_S)
    assert time.monotonic() - began < 5
    assert [type(error) for error in errors] == [ConnectionLostError] * len(waits)
    assert all(f"the scheduler at {scheduler.address}" in str(error) for error in errors)
    assert [handle.state for handle in (running, waiting, pilot, pcs, pds, cds)] == ["Unknown"] * 6
    assert done.state == "Done"
    assert done.result() == 1  # it is here
    for call in (
        running.explain,
        running.cancel,
        pilot.get_free_nodes,
        lambda: cds.submit(units.same, 1),
        lambda: running.wait(1),
    ):
        began = time.monotonic()
        with pytest.raises(ConnectionLostError, match=scheduler.address):
            call()
        assert time.monotonic() - began < 5
    # What is told to end ends here, in good order; other schedulers are not concerned.
    for handle in (cds, pds, pcs):
        handle.cancel()
    assert pilot._process is not None
    assert pilot._process.poll() is not None
    with PilotComputeService() as other:
        assert other.state == "Running"


async def test_await_ends_when_the_scheduler_is_killed(new_scheduler: NewScheduler, tmp_path: Path) -> None:
    scheduler = new_scheduler()
    cds = ComputeDataService(coordination_url=scheduler.address)
    unit = cds.submit(units.same, 1)
    cds.why_waiting()
    threading.Timer(0.1, scheduler.kill).start()
    with pytest.raises(ConnectionLostError):
        await unit
    with pytest.raises(ConnectionLostError):
        await unit


def test_a_new_scheduler_at_the_same_address_is_another_one(tmp_path: Path, new_scheduler: NewScheduler) -> None:
    first, second = new_scheduler(), new_scheduler()
    one, two = PilotComputeService(first.address), PilotComputeService(second.address)
    assert one.client is not two.client
    assert PilotComputeService(first.address).client is one.client
    cds = ComputeDataService(coordination_url=first.address)
    with pytest.raises(Exception, match="give both the same coordination_url"):
        cds.add_pilot_compute_service(two)
    start(two, tmp_path)
    first.kill()
    eventually(lambda: one.state == "Unknown", "the first is lost")
    assert two.state == "Running"
