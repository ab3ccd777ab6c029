"""Tiny units go to their workers in bundles, and each is a unit like any other all the same."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, Worker, get_client, get_worker, secede
from distributed.diagnostics.task_stream import TaskStreamPlugin

from dpilot.errors import UnitError
from dpilot.placement import Site
from dpilot.runtime.records import UnitRecord
from tests import units
from tests.in_process import GATES, RAN, Cluster, Unit, eventually, fails, hold, ran, started

pytestmark = pytest.mark.cluster

_AT_ONCE: list[int] = []
_lock = threading.Lock()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Dask checks its own state at each step."""
    with dask.config.set({"distributed.scheduler.validate": True, "distributed.worker.validate": True}):
        async with started(tmp_path) as cluster:
            cluster.plugin.matcher.runtimes.observe("tiny", 0.001)
            yield cluster


@pytest.fixture
def gate() -> Iterator[str]:
    name = uuid.uuid4().hex
    GATES[name] = threading.Event()
    RAN.clear()
    yield name
    GATES.pop(name).set()


def record(unit: Unit) -> UnitRecord:
    return unit.cluster.plugin.records.units[unit.id]


def by_dask(worker: Worker, unit: Unit) -> bool:
    """Whether a worker's own Dask was told to run a unit."""
    return any(entry[:2] == (unit.task.key, "compute-task") for entry in worker.state.log)


def crowded(number: int) -> int:
    """How many run at once."""
    with _lock:
        _AT_ONCE.append(1)
        count = len(_AT_ONCE)
    time.sleep(0.002)
    with _lock:
        _AT_ONCE.pop()
    return count


def leaves(gate: str, name: str) -> str:
    """Leave the thread to others, and wait."""
    secede()
    return hold(gate, name)


def asks(number: int) -> int:
    """Have Dask compute something meanwhile, as any task may."""
    return int(get_client().submit(units.same, number).result())


def where(number: int) -> str:
    return str(get_worker().address)


def stops() -> None:
    raise RuntimeError("no good") from KeyError("the cause")


def exits(code: int) -> None:
    sys.exit(code)


# -- what they are


async def test_tiny_units_go_in_bundles_past_the_workers_own_dask(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    before = time.time()
    made = cluster.submit_all([(units.same, (n,)) for n in range(200)], kind="tiny")
    assert [await unit for unit in made] == list(range(200))
    assert all(record(unit).bundled for unit in made)
    assert not any(by_dask(worker, unit) for unit in made)
    for unit in made:
        assert unit.states == ["New", "Pending", "Running", "Done"]
        times = record(unit).times()
        assert None not in (times.began, times.ended)
        assert before <= times.submitted <= times.began <= times.ended <= time.time()
        assert (unit.task.state, [w.address for w in unit.task.who_has]) == ("memory", [worker.address])
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 1
    assert (await made[0].explain()).pilot == "pc-1"
    assert cluster.plugin.matcher.runtimes.known_s("tiny") < 0.01


async def test_what_is_not_known_to_be_short_or_stages_something_goes_alone(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    unknown = cluster.submit(units.same, 1, kind="unknown")
    assert await unknown == 1
    again = cluster.submit(units.same, 2, kind="unknown")
    assert await again == 2
    assert (record(unknown).bundled, record(again).bundled) == (False, True)
    cluster.plugin.matcher.runtimes.observe("long", 1.0)
    assert await (long := cluster.submit(units.same, 3, kind="long")) == 3
    assert not record(long).bundled
    assert [by_dask(worker, unit) for unit in (unknown, again, long)] == [True, False, True]


async def test_programs_go_in_bundles_too(cluster: Cluster) -> None:
    await cluster.pilot("pc-1")
    cluster.plugin.matcher.runtimes.observe("sh", 0.001)
    good = cluster.run_program("/bin/sh", "-c", "echo $DPILOT_UNIT", kind="sh")
    bad = cluster.run_program("/bin/sh", "-c", "echo gone wrong >&2; exit 3", kind="sh")
    assert await good is None
    with pytest.raises(Exception, match="exit status 3; the end of err:\ngone wrong"):
        await bad
    assert record(good).bundled
    assert (cluster.directory / "pc-1" / good.id / "out").read_text() == f"{good.id}\n"
    assert (good.states[-1], bad.states[-1]) == ("Done", "Failed")


async def test_they_know_their_worker_as_any_task_does(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    assert await cluster.submit(where, 1, kind="tiny") == worker.address


async def test_the_dashboard_shows_them(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    stream = TaskStreamPlugin(cluster.scheduler)
    cluster.scheduler.add_plugin(stream)
    made = cluster.submit_all([(units.same, (n,)) for n in range(10)], kind="tiny")
    for unit in made:
        await unit
    shown = {entry["key"]: entry for entry in stream.buffer}
    for unit in made:
        entry = shown[unit.task.key]
        assert entry["worker"] == worker.address
        assert [span["action"] for span in entry["startstops"]] == ["compute"]


# -- results


async def test_results_are_dasks(cluster: Cluster) -> None:
    worker, other = await cluster.pilot("pc-1", site=Site("eu")), await cluster.pilot("pc-2", site=Site("us"))
    large = cluster.submit(np.arange, 100_000, kind="tiny", site=Site("eu"), require=True)
    lock = cluster.submit(threading.Lock, kind="tiny", site=Site("eu"), require=True)
    value = await large
    await eventually(lambda: lock.states[-1:] == ["Done"], "it ends")
    assert value.nbytes == large.task.nbytes - 128 or value.nbytes <= large.task.nbytes
    assert (record(large).bundled, record(large).result) == (True, None)
    assert type(worker.data[lock.task.key]).__name__ == "lock"
    plain = cluster.client.submit(np.sum, large.future, workers=[other.address])
    assert await plain == value.sum()
    with pytest.raises(TypeError, match="pickle"):
        await lock
    key = large.task.key
    cluster.plugin.scheduler.client_releases_keys([key], "dpilot-keeper")
    del large, plain
    await eventually(lambda: key not in worker.data, "Dask lets go of it")


async def test_a_result_that_is_lost_is_computed_anew_by_dask(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    unit = cluster.submit(np.arange, 10_000, kind="tiny")
    await unit
    await worker.close()
    second = await cluster.pilot("pc-2")
    assert len(await unit) == 10_000
    assert unit.states[-1] == "Done"
    assert by_dask(second, unit)


# -- errors, retries, cancel


async def test_one_that_fails_harms_no_other(cluster: Cluster) -> None:
    await cluster.pilot("pc-1")
    made = cluster.submit_all([(stops, ()) if n == 5 else (units.same, (n,)) for n in range(10)], kind="tiny")
    with pytest.raises(RuntimeError, match="no good") as caught:
        await made.pop(5)
    assert [entry.name for entry in caught.traceback][-1] == "stops"
    assert [await unit for unit in made] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 1


@pytest.mark.parametrize("kind", ["tiny", "unknown"])
async def test_a_function_that_would_end_its_worker_fails(cluster: Cluster, kind: str) -> None:
    await cluster.pilot("pc-1")
    with pytest.raises(UnitError, match=r"raised SystemExit\(3\): return from the function, or raise an error"):
        await cluster.submit(exits, 3, kind=kind)
    assert await cluster.submit(units.same, 1, kind=kind) == 1


async def test_a_retry_goes_alone(cluster: Cluster) -> None:
    RAN.clear()
    worker = await cluster.pilot("pc-1")
    unit = cluster.submit(fails, 1, "twice", kind="tiny", retries=1)
    assert await unit == "twice"
    assert RAN == ["twice", "twice"]
    assert by_dask(worker, unit)
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 1


async def test_one_that_waits_in_a_bundle_is_canceled(cluster: Cluster, gate: str) -> None:
    worker = await cluster.pilot("pc-1")
    made = cluster.submit_all([(hold, (gate, "first")), *((ran, (str(n),)) for n in range(5))], kind="tiny")
    await eventually(lambda: RAN == ["first"], "it runs")
    await cluster.call("cancel_units", ids=[made[2].id])
    held = cluster.plugin.matcher.units_at
    await eventually(lambda: f"{made[2].id}#1" not in held("pc-1", worker.address), "its worker says that it is out")
    GATES[gate].set()
    assert await made[0] == "first"
    for unit in (*made[1:2], *made[3:]):
        await unit
    assert RAN == ["first", "0", "2", "3", "4"]
    assert made[2].states[-1] == "Canceled"
    with pytest.raises(CancelledError):
        await made[2]
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 1


async def test_one_that_runs_is_canceled_and_holds_its_slot_until_it_has_returned(cluster: Cluster, gate: str) -> None:
    worker = await cluster.pilot("pc-1")
    unit = cluster.submit(hold, gate, "held", kind="tiny")
    await eventually(lambda: RAN == ["held"], "it runs")
    await cluster.call("cancel_units", ids=[unit.id])
    assert unit.states[-1] == "Canceled"
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 0
    GATES[gate].set()
    await eventually(lambda: cluster.plugin.matcher.idle_slots("pc-1") == 1, "its slot is free")
    assert not worker.data
    assert unit.states[-1] == "Canceled"


async def test_a_program_in_a_bundle_is_canceled(cluster: Cluster) -> None:
    await cluster.pilot("pc-1")
    cluster.plugin.matcher.runtimes.observe("sh", 0.001)
    unit = cluster.run_program("/bin/sh", "-c", "echo begun; exec sleep 600", kind="sh")
    out = cluster.directory / "pc-1" / unit.id / "out"
    await eventually(lambda: out.exists() and out.read_text(), "it runs")
    await cluster.call("cancel_units", ids=[unit.id])
    await eventually(lambda: cluster.plugin.matcher.idle_slots("pc-1") == 1, "it was ended")
    assert unit.states[-1] == "Canceled"


async def test_a_walltime_holds_in_a_bundle(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    unit = cluster.submit(hold, gate, "long", kind="tiny", own_walltime_s=0.1)
    with pytest.raises(Exception, match=r"ran longer than its walltime of 0\.1 s"):
        await unit
    assert await cluster.call("free_slots", id="pc-1") == 0
    GATES[gate].set()
    await eventually(lambda: cluster.plugin.matcher.idle_slots("pc-1") == 1, "its slot is free")
    assert unit.states[-1] == "Failed"


# -- one that takes long


async def test_what_waits_behind_a_long_one_goes_to_where_a_slot_is_free(cluster: Cluster, gate: str) -> None:
    first = await cluster.pilot("pc-1")
    made = cluster.submit_all([(hold, (gate, "long")), *((where, (n,)) for n in range(20))], kind="tiny")
    await eventually(lambda: RAN == ["long"], "it runs")
    second = await cluster.pilot("pc-2")
    assert {await unit for unit in made[1:]} == {second.address}
    assert all(record(unit).bundled for unit in made)
    assert made[0].states == ["New", "Pending", "Running"]
    assert record(made[0]).worker == first.address
    GATES[gate].set()
    assert await made[0] == "long"


async def test_what_waits_behind_long_ones_everywhere_waits_for_the_first_slot(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    second = uuid.uuid4().hex
    GATES[second] = threading.Event()
    try:
        long = [cluster.submit(hold, gate, "one", kind="tiny")]
        await eventually(lambda: RAN == ["one"], "it runs")
        made = cluster.submit_all([(where, (n,)) for n in range(20)], kind="tiny")
        await eventually(lambda: made[-1].future.key in cluster.scheduler.tasks, "they are there")
        await eventually(lambda: len(cluster.plugin.matcher) == 20, "all were given back")
        await asyncio.sleep(0.2)
        assert len(cluster.plugin.matcher) == 20  # and are not sent again before the worker has a slot
        waits = await made[0].explain()
        assert waits.reason.startswith("waits")
        GATES[gate].set()
        for unit in (*long, *made):
            await unit
    finally:
        GATES.pop(second).set()


async def test_threads_of_a_worker_share_a_bundle(cluster: Cluster, gate: str) -> None:
    worker = await cluster.pilot("pc-1", 2)
    made = cluster.submit_all([(hold, (gate, "long")), *((where, (n,)) for n in range(20))], kind="tiny")
    assert {await unit for unit in made[1:]} == {worker.address}
    assert made[0].states[-1] in ("Pending", "Running")
    await eventually(lambda: made[0].states[-1:] == ["Running"], "that is told")
    GATES[gate].set()
    assert await made[0] == "long"


async def test_no_more_run_at_once_than_there_are_slots(cluster: Cluster) -> None:
    await cluster.pilot("pc-1", 3)
    made = cluster.submit_all([(crowded, (n,)) for n in range(200)], kind="tiny")
    counts = [await unit for unit in made]
    assert max(counts) <= 3
    assert max(counts) > 1


async def test_one_that_leaves_its_thread_leaves_the_bundle_to_the_next(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    made = cluster.submit_all([(leaves, (gate, "left")), *((crowded, (n,)) for n in range(30))], kind="tiny")
    await eventually(lambda: RAN == ["left"], "it runs")
    GATES[gate].set()
    assert await made[0] == "left"
    assert {await unit for unit in made[1:]} == {1}  # never two at once


async def test_one_that_waits_for_other_tasks_of_its_worker(cluster: Cluster) -> None:
    await cluster.pilot("pc-1", 2)
    assert await cluster.submit(asks, 7, kind="tiny") == 7


# -- workers


async def test_a_worker_dies_and_its_units_run_elsewhere_each_once_more_at_most(cluster: Cluster, gate: str) -> None:
    first = await cluster.pilot("pc-1")
    names = [str(n) for n in range(20)]
    calls: list[tuple[Any, tuple[Any, ...]]] = [(ran, (name,)) for name in names[:10]]
    done = cluster.submit_all(calls, kind="tiny")
    for unit in done:
        await unit
    rest = cluster.submit_all([(hold, (gate, "x")), *((ran, (name,)) for name in names[10:])], kind="tiny")
    await eventually(lambda: "x" in RAN, "the first one runs")
    await cluster.scheduler.remove_worker(first.address, stimulus_id="test")
    await cluster.settled()
    assert {unit.task.state for unit in rest} == {"no-worker"}
    assert all(unit.task.suspicious <= 1 for unit in rest)
    second = await cluster.pilot("pc-2")
    GATES[gate].set()
    for unit in rest:
        await unit
    assert {unit.states[-1] for unit in (*done, *rest)} == {"Done"}
    assert [*names[:10], "x", "x", *names[10:]] == RAN
    assert {unit.pilot for unit in rest} == {"pc-2"}
    assert second.address in cluster.scheduler.workers


async def test_a_paused_worker_gives_back_what_has_not_begun(cluster: Cluster, gate: str) -> None:
    first = await cluster.pilot("pc-1")
    made = cluster.submit_all([(hold, (gate, "first")), *((where, (n,)) for n in range(20))], kind="tiny")
    await eventually(lambda: RAN == ["first"], "it runs")
    first.status = type(first.status).paused
    GATES[gate].set()
    assert await made[0] == "first"
    await cluster.settled()
    second = await cluster.pilot("pc-2")
    assert {await unit for unit in made[1:]} == {second.address}


async def test_a_worker_that_retires_loses_nothing(cluster: Cluster) -> None:
    first = await cluster.pilot("pc-1")
    await cluster.pilot("pc-2")
    made = cluster.submit_all([(crowded, (n,)) for n in range(200)], kind="tiny")
    await eventually(
        lambda: made[0].future.key in cluster.scheduler.tasks and made[5].states[-1:] == ["Done"], "some end"
    )
    await cluster.client.retire_workers([first.address])
    for unit in made:
        await unit
    assert first.address not in cluster.scheduler.workers


async def test_dask_does_not_steal_them(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1", 1, Site("eu"))
    await cluster.pilot("pc-2", 1, Site("us"))
    made = cluster.submit_all(
        [(hold, (gate, "first")), *((ran, (str(n),)) for n in range(20))], kind="tiny", site=Site("eu"), require=True
    )
    await eventually(lambda: RAN == ["first"], "it runs")
    for _ in range(5):
        cluster.scheduler.extensions["stealing"].balance()
        await asyncio.sleep(0.01)
    GATES[gate].set()
    for unit in made:
        await unit
    assert {unit.pilot for unit in made} == {"pc-1"}


# -- beside others


async def test_neither_bundles_nor_plain_tasks_starve_the_other(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    made = cluster.submit_all([(units.same, (n,)) for n in range(1000)], kind="tiny")
    plain = cluster.client.map(units.same, range(1000), key="plain", pure=False, workers=[worker.address])
    await plain[5]
    assert any(unit.states[-1] != "Done" for unit in made)
    await made[200]
    await cluster.client.gather(plain)
    for unit in made:
        await unit


async def test_a_plain_task_gets_its_turn_between_bundles(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    made = cluster.submit_all([(crowded, (n,)) for n in range(500)], kind="tiny")
    await made[10]
    assert await cluster.client.submit(units.same, 1, workers=[worker.address]) == 1
    assert made[-1].states[-1] != "Done"
    for unit in made:
        await unit


async def test_services_share_a_worker_in_the_order_of_submission(cluster: Cluster, gate: str) -> None:
    other = "cds-0000000000000002"
    await cluster.call("add_service", id=other, client=cluster.client.id)
    await cluster.call("set_member", service=other, member="pcs-0000000000000001", present=True)
    await cluster.pilot("pc-1")
    first = cluster.submit(hold, gate, "first")
    await eventually(lambda: RAN == ["first"], "it runs")
    made = [
        cluster.submit(ran, str(n), kind="tiny", pool=pool)
        for n, pool in enumerate([other, "cds-0000000000000001", other, "cds-0000000000000001"])
    ]
    await eventually(lambda: len(cluster.plugin.matcher) == 4, "all wait")
    GATES[gate].set()
    for unit in (first, *made):
        await unit
    assert RAN == ["first", "0", "1", "2", "3"]


async def test_they_go_on_when_their_client_has_gone(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    async with Client(cluster.scheduler.address, asynchronous=True, set_as_default=False) as other:
        theirs = Cluster(cluster.scheduler, other, cluster.directory, cluster.stack)
        made = theirs.submit_all([(hold, (gate, "first")), *((ran, (str(n),)) for n in range(20))], kind="tiny")
        await eventually(lambda: RAN == ["first"], "it runs")
    GATES[gate].set()
    await eventually(lambda: {unit.states[-1] for unit in made} == {"Done"}, "all end")
    assert ["first", *(str(n) for n in range(20))] == RAN


async def test_restart_cancels_them(cluster: Cluster, gate: str) -> None:
    worker = await cluster.pilot("pc-1")
    made = cluster.submit_all([(hold, (gate, "first")), *((ran, (str(n),)) for n in range(20))], kind="tiny")
    await eventually(lambda: RAN == ["first"], "it runs")
    await cluster.client.restart(wait_for_workers=False)
    assert {unit.states[-1] for unit in made} == {"Canceled"}
    assert len(cluster.plugin.matcher) == 0
    await eventually(lambda: worker.status is not worker.status.running, "it ends")
    GATES[gate].set()
    await cluster.join("pc-1")
    assert await cluster.submit(units.same, 1, kind="tiny") == 1
    assert RAN == ["first"]
    assert await cluster.call("free_slots", id="pc-1") == 1
