"""The plugin on a real scheduler, with workers in this process: what is parked, bound, taken back and refused."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Worker

from dpilot.errors import InputError, PilotError, StateError, UnitError, UnknownObjectError
from dpilot.placement import Site
from dpilot.runtime import adapter
from tests import units
from tests.in_process import GATES, POOL, RAN, Cluster, eventually, fails, hold, ran, started


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


pytestmark = pytest.mark.cluster


# -- parked and bound


async def test_units_wait_for_a_pilot_and_other_peoples_tasks_do_not(cluster: Cluster) -> None:
    async with Worker(cluster.scheduler.address, nthreads=1, dashboard=False):
        unit = cluster.submit(units.same, 1)
        assert await cluster.client.submit(units.same, "plain") == "plain"
        assert (unit.task.state, unit.states) == ("no-worker", ["New", "Pending"])
        assert (await unit.explain()).reason == "waits for a pilot: there is none"
        assert await cluster.call("why_waiting", ids=[unit.id]) == {unit.id: "waits for a pilot: there is none"}
        worker = await cluster.pilot("pc-1")
        assert await unit == 1
        assert {state.address for state in unit.task.who_has or ()} == {worker.address}
    assert unit.states == ["New", "Pending", "Running", "Done"]
    assert [state for id, state, *_ in cluster.events if id == unit.id] == ["Pending", "Running", "Done"]
    assert (await unit.explain()).reason == "to pc-1: the only pilot that can run it"


async def test_what_is_parked_is_not_looked_at_when_a_worker_joins_and_what_others_want_is(cluster: Cluster) -> None:
    made = cluster.submit_all([(units.same, (n,)) for n in range(3)])
    plain = cluster.client.submit(units.same, "plain", resources={"rare": 1})
    await eventually(lambda: len(cluster.scheduler.unrunnable) == 4, "all wait")
    assert [task.key for task in cluster.scheduler.unrunnable] == [plain.key]
    assert not cluster.scheduler.is_idle
    async with Worker(cluster.scheduler.address, nthreads=1, resources={"rare": 1}, dashboard=False):
        assert await plain == "plain"
        assert [unit.task.state for unit in made] == ["no-worker"] * 3
        await cluster.pilot("pc-1")
        assert [await unit for unit in made] == [0, 1, 2]
        assert not len(cluster.scheduler.unrunnable)


async def test_no_more_units_are_at_a_pilot_than_it_has_slots(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1", 2)
    made = cluster.submit_all([(hold, (gate, str(n))) for n in range(5)])
    await eventually(lambda: len(RAN) == 2, "two run")
    await cluster.settled()
    assert sorted(unit.task.state for unit in made) == ["no-worker"] * 3 + ["processing"] * 2
    assert await cluster.call("free_slots", id="pc-1") == 0
    GATES[gate].set()
    assert [await unit for unit in made] == list("01234")
    assert RAN[:2] in (["0", "1"], ["1", "0"])
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 2


async def test_a_unit_of_several_slots_has_them_for_itself(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1", 3)
    wide = cluster.submit(hold, gate, "wide", slots=3)
    await eventually(lambda: RAN == ["wide"], "it runs")
    narrow = cluster.submit(ran, "narrow")
    await cluster.settled()
    assert (RAN, narrow.task.state) == (["wide"], "no-worker")
    GATES[gate].set()
    assert await wide == "wide"
    await narrow


async def test_units_go_by_priority_then_by_submission(cluster: Cluster) -> None:
    RAN.clear()
    made = [cluster.submit(ran, name, priority=priority) for name, priority in [("a", 0), ("b", 0), ("urgent", 1)]]
    await eventually(lambda: len(cluster.plugin.matcher) == 3, "all wait")
    await cluster.pilot("pc-1")
    for unit in made:
        await unit
    assert RAN == ["urgent", "a", "b"]


async def test_units_that_are_queued_at_a_worker_go_by_priority_too(
    cluster: Cluster, gate: str, tmp_path: Path
) -> None:
    worker = await cluster.pilot("pc-1")
    cluster.plugin.matcher.runtimes.observe("short", 0.001)
    (tmp_path / "file").touch()
    keys: dict[str, Any] = {"kind": "short", "transfers": ((str(tmp_path / "file"), "file"),)}  # so it is in no bundle
    made = [cluster.submit(hold, gate, "first", **keys)]
    await eventually(lambda: RAN == ["first"], "it runs")
    for n, (name, priority) in enumerate([("last", -1), ("a", 0), ("urgent", 1)], 1):
        made.append(cluster.submit(ran, name, priority=priority, **keys))
        await eventually(lambda n=n: len(worker.state.ready) == n, "it is queued at the worker")
    GATES[gate].set()
    for unit in made:
        await unit
    assert RAN == ["first", "urgent", "a", "last"]


async def test_labels_choose_the_pilot(cluster: Cluster) -> None:
    await cluster.pilot("pc-eu", 1, Site("eu"))
    await cluster.pilot("pc-us", 1, Site("us"))
    wish = cluster.submit(units.same, 1, site=Site("us"))
    must = cluster.submit(units.same, 1, site=Site("lab"), require=True)
    assert await wish == 1
    assert wish.pilot == "pc-us"
    decision = await must.explain()
    assert decision.reason.startswith("waits: no pilot can run it (pc-eu: required")
    assert [row.reason for row in decision.rows] == [f"required, but datacenter {dc} is not lab" for dc in ("eu", "us")]
    await cluster.pilot("pc-lab", 1, Site("lab"))
    assert await must == 1


# -- workers come and go


async def test_units_of_a_lost_worker_run_elsewhere(cluster: Cluster, gate: str) -> None:
    first = await cluster.pilot("pc-1")
    unit = cluster.submit(hold, gate, "u")
    await eventually(lambda: RAN == ["u"], "it runs")
    await cluster.scheduler.remove_worker(first.address, stimulus_id="test")
    await cluster.settled()
    assert (unit.task.state, unit.task.worker_restrictions) == ("no-worker", None)
    await cluster.pilot("pc-2")
    await eventually(lambda: RAN == ["u", "u"], "it runs again")
    GATES[gate].set()
    assert await unit == "u"
    assert unit.pilot == "pc-2"


async def test_a_unit_that_waits_for_its_data_is_taken_back_and_one_that_runs_is_not(
    cluster: Cluster, gate: str
) -> None:
    await cluster.pilot("pc-1")
    unit = cluster.submit(hold, gate, "u")
    records = cluster.plugin.records.units
    while unit.id not in records or records[unit.id].worker is None:
        await asyncio.sleep(0)
    cluster.plugin._recall([unit.id, "cu-gone"])
    assert (unit.task.state, unit.task.worker_restrictions, unit.states[-1]) == ("no-worker", None, "Pending")
    await cluster.pilot("pc-2")
    await eventually(lambda: unit.states[-1:] == ["Running"], "it runs")
    cluster.plugin._recall([unit.id])
    assert unit.task.state == "processing"
    GATES[gate].set()
    assert await unit == "u"
    await eventually(lambda: [cluster.plugin.matcher.idle_slots(f"pc-{n}") for n in (1, 2)] == [1, 1], "slots are free")


async def test_a_unit_sent_after_one_that_does_not_end_is_given_back_and_runs_elsewhere(
    cluster: Cluster, gate: str
) -> None:
    await cluster.pilot("pc-1")
    matcher = cluster.plugin.matcher
    cluster.plugin._set_gap("pc-1", 0.03)
    first = cluster.submit(hold, gate, "first")
    await eventually(lambda: RAN == ["first"], "it runs")
    second = cluster.submit(units.same, 2)
    await cluster.settled()
    await eventually(lambda: second.pilot == "pc-1", "it is sent after the first, whose kind nobody knows")
    await cluster.pilot("pc-2")
    assert await second == 2
    assert second.pilot == "pc-2"
    assert first.states[-1] == "Running"
    GATES[gate].set()
    assert await first == "first"
    await eventually(lambda: [matcher.idle_slots(f"pc-{n}") for n in (1, 2)] == [1, 1], "slots are free")
    assert RAN == ["first"]


@pytest.mark.parametrize("clock_s", [-3600.0, 0.0, 3600.0])
async def test_what_a_worker_says_is_late_by_how_much_longer_it_took_than_usual_whatever_its_clock_shows(
    cluster: Cluster, clock_s: float
) -> None:
    late_s = cluster.plugin._late_s
    heard = [late_s("tcp://w:1", clock_s + way_s) for way_s in (0.2, 0.02, 0.02, 0.32, 0.02, 0.01)]
    assert heard == pytest.approx([0.0, 0.0, 0.0, 0.285, 0.0, 0.0], abs=0.01)
    assert late_s(None, 1.0) == 0.0


async def test_a_unit_that_has_begun_is_not_given_back(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    unit = cluster.submit(hold, gate, "u")
    await eventually(lambda: RAN == ["u"], "it runs")
    cluster.plugin._ask_back([unit.id, "cu-gone"])
    await cluster.settled()
    assert unit.task.state == "processing"
    GATES[gate].set()
    assert await unit == "u"
    assert RAN == ["u"]


async def test_a_mistake_in_the_decision_loses_nobody(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes when some units are bound already, which nobody was told yet."""
    spill = cluster.plugin.matcher._spill
    mistakes = [ZeroDivisionError("a mistake"), ZeroDivisionError("the same")]

    def fail(*_: Any) -> float | None:
        if mistakes:
            raise mistakes.pop()
        monkeypatch.undo()
        return spill.spill(*_)

    await cluster.pilot("pc-1", slots=2)
    monkeypatch.setattr(spill, "spill", fail)
    made = cluster.submit_all([(units.same, (n,)) for n in range(5)])
    assert await asyncio.gather(*made) == list(range(5))
    assert caplog.text.count("units could not be placed") == 2
    assert cluster.plugin.matcher.idle_slots("pc-1") == 2


async def test_a_worker_that_comes_after_its_pilots_end_is_turned_away(cluster: Cluster) -> None:
    await cluster.declare("pc-1")
    unit = cluster.submit(units.same, 1)
    await eventually(lambda: len(cluster.plugin.matcher) == 1, "it waits")
    await cluster.call("cancel_pilot", id="pc-1")
    late = await cluster.join("pc-1")
    await eventually(lambda: late.address not in cluster.scheduler.workers, "it is removed")
    assert unit.task.state == "no-worker"
    await cluster.pilot("pc-2")
    assert await unit == 1


async def test_a_paused_worker_takes_nothing(cluster: Cluster) -> None:
    worker = await cluster.pilot("pc-1")
    worker.status = worker.status.paused
    await eventually(lambda: not adapter.is_running(cluster.scheduler, worker.address), "the scheduler knows")
    await cluster.settled()
    unit = cluster.submit(units.same, 1)
    await eventually(lambda: unit.future.key in cluster.scheduler.tasks, "it is there")
    await cluster.settled()
    assert unit.task.state == "no-worker"
    assert cluster.plugin.records.units[unit.id].attempt == 0
    worker.status = worker.status.running
    assert await unit == 1


async def test_a_canceled_pilots_units_go_elsewhere(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    unit = cluster.submit(hold, gate, "u")
    await eventually(lambda: RAN == ["u"], "it runs")
    await cluster.pilot("pc-2")
    stopped = asyncio.ensure_future(cluster.call("cancel_pilot", id="pc-1"))
    await eventually(lambda: unit.pilot == "pc-2", "it is at the other one")
    GATES[gate].set()
    await stopped
    assert await unit == "u"
    assert unit.states[-1] == "Done"


# -- units that fail, or are canceled


async def test_a_unit_that_cannot_be_admitted_fails_and_runs_nowhere(cluster: Cluster) -> None:
    """Dask only logs what a plugin raises there, and would run the task anywhere."""
    RAN.clear()
    await cluster.pilot("pc-1")
    lost, good = (cluster.submit(ran, name, inputs=inputs) for name, inputs in [("lost", ("du-no",)), ("good", ())])
    await good
    with pytest.raises(UnknownObjectError, match="du-no is not known"):
        await lost
    direct = cluster.submit(ran, "direct", pilot="pc-no")
    with pytest.raises(UnknownObjectError, match="pc-no is not known"):
        await direct
    assert RAN == ["good"]
    assert lost.states == direct.states == ["New", "Pending", "Failed"]


async def test_a_unit_for_a_pilot_that_has_ended_fails(cluster: Cluster) -> None:
    await cluster.declare("pc-1")
    await cluster.call("pilot_ended", id="pc-1", code=0, log="")
    with pytest.raises(StateError, match="pc-1, which is Done"):
        await cluster.submit(units.same, 1, pilot="pc-1")


async def test_units_of_a_pilot_that_fails_fail_with_it(cluster: Cluster) -> None:
    await cluster.declare("pc-1")
    unit = cluster.submit(units.same, 1, pilot="pc-1")
    await eventually(lambda: len(cluster.plugin.matcher) == 1, "it waits")
    await cluster.call("pilot_ended", id="pc-1", code=3, log="no licence")
    with pytest.raises(UnitError, match=r"pc-1 ended with status 3(.|\n)*no licence"):
        await unit
    assert len(cluster.plugin.matcher) == 0


async def test_a_remote_error_comes_back_and_frees_the_slot(cluster: Cluster) -> None:
    await cluster.pilot("pc-1")
    with pytest.raises(ArithmeticError, match="of this"):
        await cluster.submit(units.fail, "of this")
    assert await cluster.submit(units.same, 1) == 1
    await cluster.settled()
    assert await cluster.call("free_slots", id="pc-1") == 1


async def test_a_unit_with_retries_is_bound_anew(cluster: Cluster) -> None:
    RAN.clear()
    await cluster.pilot("pc-1")
    unit = cluster.submit(fails, 2, "third time", retries=2)
    assert await unit == "third time"
    assert RAN == ["third time"] * 3
    assert unit.states[-1] == "Done"
    assert cluster.plugin.records.units[unit.id].attempt == 3


async def test_a_waiting_unit_is_canceled(cluster: Cluster) -> None:
    unit = cluster.submit(units.same, 1)
    await eventually(lambda: len(cluster.plugin.matcher) == 1, "it waits")
    await cluster.call("cancel_units", ids=[unit.id])
    with pytest.raises(CancelledError):
        await unit
    assert unit.states == ["New", "Pending", "Canceled"]
    assert len(cluster.plugin.matcher) == 0
    await cluster.pilot("pc-1")
    assert await cluster.submit(units.same, 2) == 2


async def test_slots_of_a_canceled_function_are_free_when_it_has_returned(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    unit = cluster.submit(hold, gate, "u")
    await eventually(lambda: RAN == ["u"], "it runs")
    await cluster.call("cancel_units", ids=[unit.id])
    following = cluster.submit(ran, "following")
    await cluster.settled()
    assert unit.states[-1] == "Canceled"
    assert (RAN, await cluster.call("free_slots", id="pc-1")) == (["u"], 0)
    GATES[gate].set()
    await following
    assert RAN == ["u", "following"]


async def test_a_canceled_future_cancels_the_unit(cluster: Cluster) -> None:
    unit = cluster.submit(units.same, 1)
    await eventually(lambda: len(cluster.plugin.matcher) == 1, "it waits")
    await cluster.client.cancel([unit.future])
    await eventually(lambda: unit.states[-1] == "Canceled", "it is canceled")
    assert len(cluster.plugin.matcher) == 0


# -- results and clients


async def test_a_unit_takes_the_result_of_another(cluster: Cluster) -> None:
    await cluster.pilot("pc-1")
    unit = cluster.submit(units.same, 41)
    assert await cluster.client.submit(_following, unit.future) == 42


def _following(number: int) -> int:
    return number + 1


async def test_units_outlive_the_client_that_submitted_them(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    async with Client(cluster.scheduler.address, asynchronous=True, set_as_default=False) as other:
        theirs = Cluster(cluster.scheduler, other, cluster.directory, cluster.stack).submit(hold, gate, "u")
        await eventually(lambda: RAN == ["u"], "it runs")
        record = cluster.plugin.records.units[theirs.id]
        assert record.watchers == {other.id}
    await eventually(lambda: not record.watchers, "the client is gone")
    GATES[gate].set()
    await eventually(lambda: record.life.state.is_final, "it ends")
    assert str(record.life.state) == "Done"


async def test_calls_that_go_wrong_are_answered_with_an_error(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnknownObjectError, match="pc-no is not known to this scheduler"):
        await cluster.call("free_slots", id="pc-no")
    assert not [r for r in caplog.records if r.name.startswith("dpilot")]
    with pytest.raises(PilotError, match="the scheduler failed at free_slots: TypeError"):
        await cluster.call("free_slots", no_such=1)
    with pytest.raises(PilotError, match="the scheduler failed at no_such_call: AttributeError"):
        await cluster.call("no_such_call")
    assert [r.message for r in caplog.records if r.name.startswith("dpilot")] == [
        "the call free_slots failed",
        "the call no_such_call failed",
    ]


async def test_a_unit_whose_input_is_lost_fails_while_it_waits(cluster: Cluster) -> None:
    description = {"datacenter": None, "machine": None, "replicas": 1}
    request = {"id": "du-1", "description": description, "is_output": True}
    await cluster.call("add_data", owner=POOL, client=cluster.client.id, requests=[request])
    await cluster.pilot("pc-1")
    unit = cluster.submit(units.same, 1, inputs=("du-1",))
    await eventually(lambda: unit.id in cluster.plugin.records.units, "it is there")
    assert (await unit.explain()).reason == "waits for its input: du-1 is Pending and has no replica yet"
    await cluster.call("cancel_data", id="du-1")
    with pytest.raises(InputError, match="du-1 was canceled"):
        await unit


async def test_many_units_through_few_slots_leave_nothing_behind(cluster: Cluster) -> None:
    await cluster.pilot("pc-1", 2)
    await cluster.pilot("pc-2", 1)
    made = cluster.submit_all([(units.same, (n,)) for n in range(300)], kind="tiny")
    assert [await unit for unit in made] == list(range(300))
    await cluster.settled()
    matcher = cluster.plugin.matcher
    assert len(matcher) == 0
    assert [matcher.idle_slots(pilot) for pilot in ("pc-1", "pc-2")] == [2, 1]
    assert {str(record.life.state) for record in cluster.plugin.records.units.values()} == {"Done"}


async def test_services_and_pilots_that_have_ended_leave_no_pool_behind(cluster: Cluster, gate: str) -> None:
    await cluster.pilot("pc-1")
    await cluster.declare("pc-2")
    held = cluster.submit(hold, gate, "held")
    direct = [cluster.submit(units.same, number, pilot=f"pc-{number}") for number in (1, 2)]
    pools = cluster.plugin.matcher.pools
    await eventually(lambda: RAN == ["held"] and len(cluster.plugin.matcher) == 2, "it runs, and two wait")
    assert len(pools) == 1
    places = cluster.plugin.matcher.pilot_of(held.id).places
    assert len(places) == 4, "of its service, without a datacenter, its machine, and its own"
    GATES[gate].set()
    assert await held == "held"
    assert await direct[0] == 1
    await cluster.call("cancel_pilot", id="pc-2")
    with pytest.raises(CancelledError):
        await direct[1]
    await cluster.call("end_service", id=POOL)
    assert not pools
    assert len(places) == 1
    await cluster.call("cancel_pilot", id="pc-1")
    assert places == []


async def test_a_slot_is_free_after_a_cancel_though_plain_tasks_queued_when_the_last_pilot_left(
    cluster: Cluster, gate: str
) -> None:
    first = await cluster.pilot("pc-1")
    plain = cluster.client.map(hold, [gate] * 30, [f"plain {n}" for n in range(30)], pure=False)
    await eventually(lambda: len(cluster.scheduler.queued) > 0, "Dask queues some")
    GATES[gate].set()
    await first.close()
    await cluster.client.cancel(plain)
    await eventually(lambda: not cluster.scheduler.queued, "they are gone")
    GATES[gate].clear()
    await cluster.pilot("pc-2")
    held = cluster.submit(hold, gate, "held")
    await eventually(lambda: "held" in RAN, "it runs")
    await cluster.call("cancel_units", ids=[held.id])
    GATES[gate].set()
    assert await cluster.submit(units.same, 1) == 1
