"""dpilot beside all that Dask does by itself: it restarts, steals, loses workers, runs other people's tasks."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Worker

from dpilot import ComputeDataService, PilotComputeService, PilotDataService, State, UnitCanceledError
from dpilot.errors import StateError
from dpilot.placement import Site
from dpilot.runtime.wire import Wire
from tests import helpers, units
from tests.helpers import LONG_S, Gate, lines, reach, start, workers
from tests.in_process import GATES, POOL, RAN, SERVICE, Cluster, Unit, eventually, fails, hold, ran, started

pytestmark = pytest.mark.cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with started(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def gate() -> Iterator[str]:
    name = uuid.uuid4().hex
    GATES[name] = threading.Event()
    RAN.clear()
    yield name
    GATES.pop(name).set()


@pytest.fixture
def file_gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


async def test_a_process_that_was_a_worker_connects_by_dasks_configuration_again(tmp_path: Path) -> None:
    async with started(tmp_path) as cluster:
        await cluster.pilot("pc-1")
        assert Wire.connection_args is not None  # of a worker, so its security
    assert Wire.connection_args is None


@pytest.mark.parametrize("off_s", [-5.0, 5.0])
async def test_a_unit_begins_once_bound_and_has_ended_when_that_is_told(cluster: Cluster, off_s: float) -> None:
    """However far off Dask believes its worker's clock to be: so it does not end before what it waits for."""
    worker = await cluster.pilot("pc-1")
    worker.periodic_callbacks["heartbeat"].stop()  # it would tell better
    worker.scheduler_delay = off_s
    unit = cluster.submit(ran, "off")
    await unit
    record = cluster.plugin.records.units[unit.id]
    began, ended = record.began, record.life.history[-1].timestamp
    assert began is not None
    assert record.bound <= began <= ended <= time.time()


# -- Client.restart()


def test_restart_cancels_units_and_pilots_go_on_with_new_workers(
    pcs: PilotComputeService, cds: ComputeDataService, file_gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path / "work", 2)
    before = workers(pcs, pilot)
    done = cds.submit(units.same, 1)
    assert done.result(LONG_S) == 1
    log = str(tmp_path / "log")
    program = cds.submit_compute_unit({"executable": "/bin/sh", "arguments": ["-c", f"echo $$ > {log}; sleep 600"]})
    held = cds.submit(units.hold, file_gate.path, name=file_gate.name)
    reach(program, State.Running)
    reach(held, State.Running)
    waiting = cds.submit(units.same, 2)
    helpers.eventually(
        lambda: waiting.id in cds.why_waiting(), "it waits: sent after one that does not end, it is taken back"
    )
    pcs.client.restart(timeout=LONG_S)
    assert [unit.wait(LONG_S) for unit in (done, program, held, waiting)] == ["Done"] + ["Canceled"] * 3
    assert done.result() == 1  # it is small, and with the scheduler
    with pytest.raises(UnitCanceledError):
        waiting.result()
    # The function could not be interrupted, the program is a process of its own: neither is left.
    assert not any(process.is_running() for process in before.values())
    after = workers(pcs, pilot)
    assert after.keys() == before.keys()
    assert pilot.state == "Running"
    again = [cds.submit(units.same, n) for n in range(4)]
    assert [unit.result(LONG_S) for unit in again] == list(range(4))
    assert pilot.get_free_nodes() == 2


def test_restart_keeps_data_units_and_transfers_go_on(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, tmp_path: Path
) -> None:
    start(pcs, tmp_path / "work", 1)
    pds.create_pilot({"service_url": f"file://{tmp_path}/one"})
    (tmp_path / "a.txt").write_text("a text")
    du = cds.submit_data_unit({"file_urls": [str(tmp_path / "a.txt")]})
    assert du.wait(LONG_S) == "Running"
    other = pds.create_pilot({"service_url": f"file://{tmp_path}/two"})
    du.add_pilot_data(other)
    pcs.client.restart(timeout=LONG_S)
    reader = cds.submit(units.read_one, du)
    assert reader.result(LONG_S) == "a text"
    du.wait_replicas(2, LONG_S)
    assert sorted(pd.id for pd in other.list_data_units()) == [du.id]


async def test_restart_with_several_clients_and_plain_tasks(cluster: Cluster, gate: str) -> None:
    """Workers without an agent do not come back, as Dask says: their pilots are waited for, and fail in the end."""
    worker = await cluster.pilot("pc-1")
    unit, waits = cluster.submit(hold, gate, "u"), cluster.submit(ran, "waits")
    await eventually(lambda: RAN == ["u"], "it runs")
    plain = cluster.client.submit(units.same, "plain", workers=[worker.address])
    async with Client(cluster.scheduler.address, asynchronous=True, set_as_default=False) as other:
        await other.restart(wait_for_workers=False)
        for future in (unit.future, waits.future, plain):
            with pytest.raises(CancelledError):
                await future
        assert unit.states[-1] == waits.states[-1] == "Canceled"
        assert len(cluster.plugin.matcher) == 0
    GATES[gate].set()
    await cluster.join("pc-1")
    assert await cluster.submit(units.same, 1) == 1
    assert await cluster.call("free_slots", id="pc-1") == 1


# -- work stealing


async def test_dask_does_not_steal_what_was_placed(cluster: Cluster, gate: str, tmp_path: Path) -> None:
    """Short units queue at their worker beside an idle one: Dask would take them there, though they were sent here."""
    await cluster.pilot("pc-eu", 1, Site("eu"))
    await cluster.pilot("pc-us", 1, Site("us"))
    cluster.plugin.matcher.runtimes.observe("short", 0.001)
    (tmp_path / "file").touch()
    keys: dict[str, Any] = {"kind": "short", "site": Site("eu"), "require": True}
    keys["transfers"] = ((str(tmp_path / "file"), "file"),)  # so it is in no bundle
    first = cluster.submit(hold, gate, "first", **keys)
    await eventually(lambda: RAN == ["first"], "it runs")
    made = cluster.submit_all([(ran, (str(n),)) for n in range(20)], **keys)
    await eventually(lambda: made[-1].future.key in cluster.scheduler.tasks, "they are there")
    await eventually(lambda: all(unit.task.state == "processing" for unit in made), "all are queued")
    stealing = cluster.scheduler.extensions["stealing"]
    for _ in range(5):
        stealing.balance()
        await cluster.settled()
    assert RAN == ["first"]
    GATES[gate].set()
    for unit in (first, *made):
        await unit
    assert {unit.pilot for unit in made} == {"pc-eu"}
    assert {state.address for unit in made for state in unit.task.who_has or ()} == {
        state.address for state in first.task.who_has or ()
    }


# -- plain Dask tasks


async def test_neither_units_nor_plain_tasks_starve_the_other(cluster: Cluster) -> None:
    """Whichever comes second runs while the first ones still do."""
    await cluster.pilot("pc-1", 1)
    await cluster.pilot("pc-2", 1)
    RAN.clear()
    flood = cluster.client.map(_brief, range(300), ["plain"] * 300, pure=False)
    made = cluster.submit_all([(_brief, (n, "unit")) for n in range(30)], kind="brief")
    for unit in made:
        await unit
    assert RAN.count("plain") < 300, "units waited for all the plain tasks"
    await asyncio.gather(*flood)
    RAN.clear()
    made = cluster.submit_all([(_brief, (n, "unit")) for n in range(300)], kind="brief")
    await eventually(lambda: RAN.count("unit") > 10, "units run")
    few = cluster.client.map(_brief, range(30), ["plain"] * 30, pure=False)
    await asyncio.gather(*few)
    assert RAN.count("unit") < 300, "plain tasks waited for all the units"
    for unit in made:
        await unit


def _brief(number: int, name: str) -> None:
    threading.Event().wait(0.005)
    RAN.append(name)


async def test_plain_tasks_hold_units_up_only_where_they_run(cluster: Cluster, gate: str) -> None:
    """A slot on which somebody else's task runs is taken: units go to a pilot that is idle."""
    busy = await cluster.pilot("pc-busy")
    plain = cluster.client.submit(hold, gate, "plain", workers=[busy.address])
    await eventually(lambda: RAN == ["plain"], "it runs")
    await cluster.pilot("pc-idle")
    made = cluster.submit_all([(ran, (str(n),)) for n in range(5)])
    for unit in made:
        await unit
    assert {unit.pilot for unit in made} == {"pc-idle"}
    GATES[gate].set()
    await plain


# -- workers die


async def test_a_worker_dies_just_when_a_unit_is_bound_to_it(cluster: Cluster) -> None:
    cluster.scheduler.allowed_failures = 10  # the first unit may lose them all
    RAN.clear()
    cluster.scheduler.allowed_failures = 10
    for n in range(10):
        worker = await cluster.pilot(f"pc-{n}")
        unit = cluster.submit(ran, str(n))
        await eventually(lambda unit=unit: unit.id in cluster.plugin.records.units, "it is there")
        if n % 2:
            await asyncio.sleep(0.002)
        await cluster.scheduler.remove_worker(worker.address, stimulus_id="test")
    await cluster.pilot("pc-last", 2)
    await eventually(lambda: len(cluster.plugin.matcher) == 0, "all are bound")
    await eventually(lambda: set(RAN) == set(map(str, range(10))), "all have run")
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-last") == 2
    assert {str(record.life.state) for record in cluster.plugin.records.units.values()} == {"Done"}


async def test_a_retry_and_a_lost_worker_in_one_unit(cluster: Cluster, gate: str) -> None:
    first = await cluster.pilot("pc-1")
    unit = cluster.submit(fails, 1, "u", retries=1)
    await eventually(lambda: len(RAN) == 2, "it was tried again")
    assert await unit == "u"
    held = cluster.submit(hold, gate, "held", retries=1)
    await eventually(lambda: "held" in RAN, "it runs")
    await cluster.scheduler.remove_worker(first.address, stimulus_id="test")
    await cluster.pilot("pc-2")
    await eventually(lambda: RAN.count("held") == 2, "it runs again")
    GATES[gate].set()
    assert await held == "held"
    assert held.task.retries == 1  # the loss of a worker is not a failure of the unit


async def test_a_canceled_unit_and_its_worker_dies(cluster: Cluster, gate: str) -> None:
    """What is held for a canceled unit until its thread ends is held no longer than its worker lives."""
    worker = await cluster.pilot("pc-1", 2)
    unit = cluster.submit(hold, gate, "u")
    await eventually(lambda: RAN == ["u"], "it runs")
    await cluster.call("cancel_units", ids=[unit.id])
    await cluster.scheduler.remove_worker(worker.address, stimulus_id="test")
    await cluster.call("cancel_units", ids=[unit.id])  # again, after all is gone
    await cluster.join("pc-1", 2)
    wide = cluster.submit(units.same, 1, slots=2)
    assert await wide == 1
    GATES[gate].set()
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 2


async def test_a_result_that_is_lost_is_made_again_and_stays_done(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    unit = cluster.submit(units.large, 1 << 16)
    assert len(await unit) == 1 << 16
    await cluster.scheduler.remove_worker(worker.address, stimulus_id="test")
    await cluster.pilot("pc-2")
    assert len(await unit) == 1 << 16
    assert unit.states == ["New", "Pending", "Running", "Done"]
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-2") == 1


async def test_small_results_that_are_lost_are_there_for_tasks_that_take_them(cluster: Cluster, tmp_path: Path) -> None:
    """They are in the record, from which no task can take them; and a program must not run again."""
    worker = await cluster.pilot("pc-1")
    small = cluster.submit(_counted, 1)
    assert await small == 2
    program = cluster.run_program("/bin/sh", "-c", f"echo x >> {tmp_path}/log")
    assert await program is None
    await cluster.scheduler.remove_worker(worker.address, stimulus_id="test")
    await cluster.settled()
    takes = cluster.client.submit(lambda *results: results, small.future, program.future)
    await cluster.pilot("pc-2")
    assert await asyncio.wait_for(takes, LONG_S) == (2, None)
    assert RAN.count("counted") == 1
    assert lines(tmp_path / "log") == ["x"]
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-2") == 1


def _counted(number: int) -> int:
    RAN.append("counted")
    return number + 1


async def test_a_failed_unit_that_a_dask_user_tries_again_fails_again(cluster: Cluster) -> None:
    RAN.clear()
    await cluster.pilot("pc-1")
    unit = cluster.submit(fails, 9, "u")
    with pytest.raises(ArithmeticError):
        await unit
    await cluster.client.retry([unit.future])
    with pytest.raises(StateError, match="is Failed, which is final; submit it anew"):
        await unit
    assert RAN == ["u"]


# -- several services


async def test_services_share_a_pilot_in_the_order_of_submission(cluster: Cluster, gate: str) -> None:
    second = "cds-0000000000000002"
    await cluster.call("add_service", id=second, client=cluster.client.id)
    await cluster.call("set_member", service=second, member=SERVICE, present=True)
    await cluster.pilot("pc-1")
    first = cluster.submit(hold, gate, "first")
    await eventually(lambda: RAN == ["first"], "it runs")
    made = []
    for n in range(6):
        made.append(cluster.submit(ran, f"{n}", pool=second if n % 2 else POOL))
        await eventually(lambda: made[-1].id in cluster.plugin.records.units, "it is there")
    await cluster.settled()
    await cluster.call("end_service", id=second)
    GATES[gate].set()
    await first
    for unit in made[::2]:
        await unit
    assert RAN == ["first", "0", "2", "4"]
    assert [unit.states[-1] for unit in made] == ["Done", "Canceled"] * 3


# -- cancel in every state


def test_cancel_before_the_unit_was_sent(pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path) -> None:
    start(pcs, tmp_path)
    for _ in range(20):
        unit = cds.submit(units.same, 1)
        unit.cancel()
        assert unit.state in ("Canceled", "Done")
    assert cds.submit(units.same, 2).result(LONG_S) == 2


def test_cancel_of_what_has_ended_changes_nothing(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    start(pcs, tmp_path)
    done, failed = cds.submit(units.same, 1), cds.submit(units.fail, "no")
    cds.wait(LONG_S)
    for unit in (done, failed, done):
        unit.cancel()
    assert (done.state, done.result(), failed.state) == ("Done", 1, "Failed")
    assert isinstance(failed.exception(), ArithmeticError)


def test_cancel_of_a_unit_that_waits_for_another_ones_output(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pds.create_pilot({"service_url": f"file://{tmp_path}/store"})
    start(pcs, tmp_path / "work", 2)
    mark = str(tmp_path / "mark")
    writer = cds.submit_compute_unit(
        {
            "executable": "/bin/sh",
            "arguments": ["-c", f"echo x > out.txt; echo > {mark}; sleep 600"],
            "output_data": [{"out": ["out.txt"]}],
        }
    )
    out = writer.output_data["out"]
    reader = cds.submit_compute_unit({"executable": "/bin/cat", "arguments": ["out.txt"], "input_data": [out]})
    other = cds.submit_compute_unit({"executable": "/bin/cat", "arguments": ["out.txt"], "input_data": [out]})
    reach(writer, State.Running)
    reader.cancel()
    assert (reader.state, writer.state, other.state) == ("Canceled", "Running", "Pending")
    writer.cancel()
    assert writer.state == "Canceled"
    assert other.wait(LONG_S) == "Failed"
    assert "was canceled" in str(other.exception())
    assert reader.state == "Canceled"
    assert cds.submit(units.same, 1).result(LONG_S) == 1


def test_cancel_of_a_program_between_two_attempts(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    """Whenever the order to stop comes: nothing runs any more once the slot is free."""
    pilot = start(pcs, tmp_path / "work")
    log = tmp_path / "log"
    for _ in range(8):
        unit = cds.submit_compute_unit(
            {"executable": "/bin/sh", "arguments": ["-c", f"echo x >> {log}; exit 1"], "retries": 10_000}
        )
        reach(unit, State.Running, 2)
        unit.cancel()
        assert unit.wait(LONG_S) == "Canceled"
    assert cds.submit(units.same, 1).result(LONG_S) == 1
    n = len(lines(log))
    assert cds.submit(units.same, 2).result(LONG_S) == 2
    assert len(lines(log)) == n
    assert pilot.get_free_nodes() == 1


async def test_anything_at_any_time(cluster: Cluster) -> None:
    """Pilots come and go, units are canceled, fail, are tried again, wait for one another; others use the workers."""
    rng = random.Random(2026)
    matcher, records = cluster.plugin.matcher, cluster.plugin.records
    matcher.runtimes.observe("tiny", 0.001)
    alive: dict[str, Worker] = {}
    made: list[Unit] = []
    let_go: set[str] = set()  # whose futures somebody has canceled, perhaps when they had failed already
    plain: list[Any] = []
    RAN.clear()

    async def come() -> None:
        id = f"pc-{uuid.uuid4().hex[:6]}"
        alive[id] = await cluster.pilot(id, rng.choice((1, 2, 3)), Site(rng.choice(("eu", "us"))))

    async def die() -> None:
        if len(alive) > 1:
            worker = alive.pop(rng.choice(list(alive)))
            await cluster.scheduler.remove_worker(worker.address, stimulus_id="test")

    async def end() -> None:
        if len(alive) > 1:
            id = rng.choice(list(alive))
            del alive[id]
            await cluster.call("cancel_pilot", id=id)

    async def pause() -> None:
        worker = rng.choice(list(alive.values()))
        worker.status = worker.status.paused
        await asyncio.sleep(rng.random() * 0.01)
        worker.status = worker.status.running

    async def work() -> None:
        for _ in range(rng.randrange(1, 12)):
            kind = rng.choice(("tiny", "short", "long"))
            keys: dict[str, Any] = {"kind": kind, "priority": rng.choice((0, 0, 1)), "retries": rng.choice((0, 3))}
            if rng.random() < 0.2:
                keys["slots"] = 2
            if rng.random() < 0.2:
                keys["site"] = Site(rng.choice(("eu", "us")))
            name = f"u{len(made)}"
            if rng.random() < 0.2:
                made.append(cluster.submit(fails, 2, name, **keys))
            else:
                made.append(cluster.submit(_brief, 0, name, **keys))

    async def cancel() -> None:
        some = rng.sample(made, min(len(made), 3))
        if rng.random() < 0.5:
            await cluster.call("cancel_units", ids=[unit.id for unit in some])
        else:
            let_go.update(unit.id for unit in some)
            await cluster.client.cancel([unit.future for unit in some])

    async def others() -> None:
        plain.append(cluster.client.submit(_brief, 0, "plain", pure=False))
        if made:
            plain.append(cluster.client.submit(units.same, rng.choice(made).future, pure=False))

    async def steal() -> None:
        cluster.scheduler.extensions["stealing"].balance()

    await come()
    for _ in range(150):
        step = rng.choice((come, die, end, pause, work, work, work, cancel, others, steal))
        await step()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.02)
    made.append(cluster.submit(_brief, 0, "nowhere", site=Site("nowhere"), require=True))
    await cluster.settled()
    await cluster.call("cancel_units", ids=[made[-1].id])  # all others that were canceled may have ended by then
    for site in ("eu", "us"):
        id = f"pc-last-{site}"
        alive[id] = await cluster.pilot(id, 3, Site(site))
    await cluster.settled()
    await eventually(
        lambda: all(u.id in records.units and records.units[u.id].life.state.is_final for u in made), "all have ended"
    )
    await asyncio.wait_for(asyncio.gather(*plain, return_exceptions=True), LONG_S)
    await cluster.settled()
    assert len(matcher) == 0
    for pilot, worker in alive.items():
        await eventually(lambda p=pilot, n=worker.state.nthreads: matcher.idle_slots(p) == n, f"{pilot} is idle")
    found = {str(records.units[unit.id].life.state) for unit in made}
    assert found == {"Done", "Failed", "Canceled"}
    for unit in made:
        if unit.states[-1] == "Failed":
            with pytest.raises((ArithmeticError, CancelledError) if unit.id in let_go else ArithmeticError):
                await unit
