"""Several pilots on one scheduler: who runs what, how many at a time, and what happens when pilots come and go."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpilot import (
    ComputeDataService,
    ComputeUnit,
    ExecutableError,
    PilotCompute,
    PilotComputeService,
    PilotTimeoutError,
    PlacementError,
    State,
    StateError,
    UnitError,
)
from tests import units
from tests.helpers import LONG_S, Gate, create, eventually, lines, reach, start, states, workers

pytestmark = pytest.mark.cluster


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def cds(pcs: PilotComputeService) -> Iterator[ComputeDataService]:
    with ComputeDataService() as service:
        service.add_pilot_compute_service(pcs)
        yield service


def pilot_of(unit: ComputeUnit) -> str:
    return str(unit.get_details()["pilot"])


def most_at_once(spans: list[tuple[float, float, int]]) -> int:
    """The greatest number of slots in use at one moment, of (begin, end, slots)."""
    changes = sorted([(end, -slots) for _, end, slots in spans] + [(begin, slots) for begin, _, slots in spans])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


# -- pilots come and go


def test_units_run_on_all_pilots_at_once(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilots = [start(pcs, tmp_path) for _ in range(2)]
    held = [cds.submit(units.hold, gate.path, name=gate.name) for _ in range(2)]
    for unit in held:
        reach(unit, State.Running)
    gate.open()
    assert {pilot_of(unit) for unit in held} == {pilot.id for pilot in pilots}
    begins, ends = zip(*(unit.result(LONG_S) for unit in held), strict=True)
    assert max(begins) < min(ends)


def test_a_pilot_that_is_added_takes_waiting_units(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    first = start(pcs, tmp_path)
    running, waiting = (cds.submit(units.hold, gate.path, name=gate.name) for _ in range(2))
    reach(running, State.Running)
    assert first.id in cds.why_waiting()[waiting.id]
    assert waiting.explain().pilot is None
    second = create(pcs, tmp_path)
    reach(waiting, State.Running)
    assert pilot_of(waiting) == second.id
    assert waiting.explain().pilot == second.id
    assert cds.why_waiting() == {}


def test_units_of_a_canceled_pilot_go_on_elsewhere(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilots = {pilot.id: pilot for pilot in (start(pcs, tmp_path), start(pcs, tmp_path))}
    moved, stays = (cds.submit(units.hold, gate.path, name=gate.name) for _ in range(2))
    for unit in (moved, stays):
        reach(unit, State.Running)
    pilots[pilot_of(moved)].cancel()
    assert pilots[pilot_of(stays)].state == "Running"
    gate.open()
    assert moved.wait(LONG_S) == stays.wait(LONG_S) == "Done"
    assert pilot_of(moved) == pilot_of(stays)
    assert states(moved) == ["New", "Pending", "Running", "Pending", "Running", "Done"]
    assert moved.get_details()["attempt"] == 2


def test_a_program_of_a_canceled_pilot_goes_on_elsewhere_in_a_fresh_sandbox(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    # Both pilots have one working directory, and the first attempt is slow to end.
    first = start(pcs, tmp_path / "work")
    unit = cds.submit_compute_unit(
        {
            "executable": "/bin/sh",
            "arguments": ["-c", f"trap '' TERM; ls; test -e {tmp_path}/again || {{ echo > left; sleep 1000; }}"],
        }
    )
    reach(unit, State.Running)
    eventually((tmp_path / "work" / unit.id / "left").exists, "the program has begun")
    (tmp_path / "again").touch()
    start(pcs, tmp_path / "work")
    first.cancel()
    assert unit.wait(LONG_S) == "Done"
    assert (Path(unit.get_local_working_directory()) / "stdout.txt").read_text().split() == ["stderr.txt", "stdout.txt"]


def test_a_unit_that_no_pilot_can_run_any_more_says_why_it_waits(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    eu = start(pcs, tmp_path, affinity_datacenter_label="eu")
    us = start(pcs, tmp_path, affinity_datacenter_label="us")
    unit = cds.submit(units.hold, gate.path, name=gate.name, affinity_datacenter_label="eu", affinity="require")
    reach(unit, State.Running)
    eu.cancel()
    reach(unit, State.Pending, 2)
    decision = unit.explain()
    assert decision.pilot is None
    assert [(row.pilot, row.verdict) for row in decision.rows] == [(us.id, "rejected")]
    assert "datacenter us is not eu" in str(decision)
    with pytest.raises(PilotTimeoutError, match=rf"{unit.id}.*no pilot can run it"):
        unit.wait(0.01)
    gate.open()
    start(pcs, tmp_path, affinity_datacenter_label="eu")
    assert unit.wait(LONG_S) == "Done"


def test_a_unit_waits_for_a_pilot_that_comes_later(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    unit = cds.submit(units.same, 1)
    assert unit.explain().pilot is None
    assert cds.why_waiting()[unit.id].startswith("waits")
    with pytest.raises(PilotTimeoutError, match=unit.id):
        cds.wait(0.01)
    start(pcs, tmp_path)
    assert unit.result(LONG_S) == 1


def test_a_pilot_may_take_units_before_it_has_started(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = create(pcs, tmp_path)
    direct = pilot.submit_compute_unit({"executable": units.same, "args": (1,)})
    unit = cds.submit(units.same, 2)
    assert (direct.result(LONG_S), unit.result(LONG_S)) == (1, 2)


def test_a_pilot_canceled_while_it_starts_leaves_no_worker(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = create(pcs, tmp_path)
    unit = cds.submit(units.same, 1)
    pilot.cancel()
    assert pilot.state == "Canceled"
    assert unit.state == "Pending"
    create(pcs, tmp_path)
    assert unit.result(LONG_S) == 1
    assert pilot_of(unit) != pilot.id


def test_large_results_survive_the_cancel_of_their_pilot(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilots = {pilot.id: pilot for pilot in (start(pcs, tmp_path), start(pcs, tmp_path))}
    done = [cds.submit(units.large, 1 << 16) for _ in range(6)]
    cds.wait(LONG_S)
    gone = pilots[pilot_of(done[0])]
    gone.cancel()
    for unit in done:
        assert unit.result(LONG_S) == units.large(1 << 16)
        assert unit.get_details()["attempt"] == 1
    total = cds.submit(lambda parts: sum(map(len, parts)), done)  # they can also be arguments still
    assert total.result(LONG_S) == 6 << 16


def test_pilots_come_and_go_at_random_and_every_unit_ends_once(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    rng = random.Random(20131)
    log = str(tmp_path / "log")
    living = [start(pcs, tmp_path / "work", 2)]
    ended: dict[str, list[str]] = {}
    submitted = []
    for i in range(300):
        seconds = rng.choice([0.0, 0.0, 0.001, 0.01, 0.05])
        if i % 10 == 0:
            unit = cds.submit_compute_unit(
                {"executable": "/bin/sh", "arguments": ["-c", f"sleep 0.02; echo {i} >> {log}"]}
            )
        else:
            slots = rng.choice([1, 1, 1, 2])
            unit = cds.submit(units.named, log, str(i), seconds, number_of_processes=slots, retries=0)
        unit.set_callback(lambda unit, _, state: state.is_final and ended.setdefault(unit.id, []).append(state))
        submitted.append(unit)
    for _ in range(8):
        target = rng.choice(submitted)
        if rng.random() < 0.5 and len(living) > 1:
            living.pop(rng.randrange(len(living))).cancel()
        else:
            living.append(create(pcs, tmp_path / "work", 2, threads_per_worker=rng.choice([1, 2])))
            target.wait(LONG_S)
    cds.wait(2 * LONG_S)
    assert {str(unit.state) for unit in submitted} == {"Done"}
    assert [states(unit).count("Done") for unit in submitted] == [1] * 300
    eventually(lambda: len(ended) == 300, "all callbacks were called")
    assert set(map(tuple, ended.values())) == {("Done",)}
    # A unit that was interrupted may have left its name twice; none is missing.
    assert set(lines(log)) == {str(i) for i in range(300)}
    for unit in submitted:
        assert states(unit).count("Running") == states(unit).count("Pending") + states(unit).count("Staging")
    eventually(lambda: all(p.get_free_nodes() == 2 for p in living), "all slots are free at the end")


def test_two_services_do_not_use_each_others_pilots(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    with PilotComputeService() as other_pcs, ComputeDataService() as other:
        other.add_pilot_compute_service(other_pcs)
        pilot = start(pcs, tmp_path)
        mine = cds.submit_compute_unit_batch([{"executable": units.same, "args": (i,)} for i in range(20)])
        waits = other.submit(units.same, 1)
        cds.wait(LONG_S)
        assert waits.state == "Pending"
        assert "belongs to no service" in str(waits.explain())
        theirs = start(other_pcs, tmp_path)
        assert waits.result(LONG_S) == 1
        assert pilot_of(waits) == theirs.id
        assert {pilot_of(unit) for unit in mine} == {pilot.id}
        assert [p.id for p in other.list_pilot_compute()] == [theirs.id]
        assert other.list_compute_units() == [waits]


def test_a_removed_service_gets_no_more_units(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    start(pcs, tmp_path)
    running = cds.submit(units.hold, gate.path, name=gate.name)
    reach(running, State.Running)
    cds.remove_pilot_compute_service(pcs)
    waiting = cds.submit(units.same, 1)
    gate.open()
    assert running.wait(LONG_S) == "Done"  # what runs goes on
    with pytest.raises(PilotTimeoutError):
        waiting.wait(0.1)
    cds.add_pilot_compute_service(pcs)
    assert waiting.result(LONG_S) == 1


# -- slots


@pytest.mark.parametrize("threads", [1, 2])
def test_slots_are_never_over_committed(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path, threads: int
) -> None:
    pilot = start(pcs, tmp_path, 3, threads_per_worker=threads)
    assert pilot.get_details()["workers"] == 3 // threads + (3 % threads > 0)
    rng = random.Random(threads)
    wanted = [rng.choice([1, 1, 2, 3]) for _ in range(60)]
    submitted = [
        cds.submit(units.work, rng.choice([0.005, 0.01, 0.03]), number_of_processes=slots, name=f"of {slots}")
        for slots in wanted
    ]
    cds.wait(LONG_S)
    spans = [(*unit.result(), slots) for unit, slots in zip(submitted, wanted, strict=True)]
    assert most_at_once(spans) == 3
    assert pilot.get_free_nodes() == 3


def test_tiny_units_that_are_queued_at_a_worker_do_not_over_commit_it(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path, 2, threads_per_worker=2)
    tiny = [cds.submit(units.work, 0.001) for _ in range(150)]
    wide = [cds.submit(units.work, 0.001, number_of_processes=2) for _ in range(20)]
    tiny += [cds.submit(units.work, 0.001) for _ in range(150)]
    cds.wait(LONG_S)
    spans = [(*unit.result(), slots) for some, slots in ((tiny, 1), (wide, 2)) for unit in some]
    assert most_at_once(spans) == 2
    assert pilot.get_free_nodes() == 2


def test_a_wide_unit_keeps_its_slots_when_a_worker_dies_that_does_not_run_it(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path, 2)
    wide = cds.submit(units.hold, gate.path, name=gate.name, number_of_processes=2)
    reach(wide, State.Running)
    assert pilot.get_free_nodes() == 0
    runs_it = {w for w, keys in pcs.client.processing().items() if wide.future.key in keys}
    idle = {name: pid for address, (name, pid) in pcs.client.run(units.whoami).items() if address not in runs_it}
    (idle_worker,) = (process for name, process in workers(pcs, pilot).items() if name in idle)
    idle_worker.kill()
    eventually(lambda: pilot.get_details()["workers"] == 1, "the scheduler knows of the death")
    narrow = cds.submit(units.work, 0.0)
    assert pilot.get_free_nodes() == 0
    assert pilot.id in narrow.explain().reason
    gate.open()
    _, end = wide.result(LONG_S)
    begin, _ = narrow.result(LONG_S)
    assert begin >= end
    assert wide.get_details()["attempt"] == 1
    assert pilot.get_free_nodes() == 1


def test_plain_dask_tasks_run_beside_units(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    eu = start(pcs, tmp_path, 2, affinity_datacenter_label="eu", affinity_machine_label="m1")
    us = start(pcs, tmp_path, 1, affinity_datacenter_label="us")
    client = pcs.client
    held = cds.submit(units.hold, gate.path, name=gate.name, affinity_datacenter_label="eu")
    reach(held, State.Running)
    where = [
        client.submit(_worker_name, pure=False, resources=resources).result(LONG_S)
        for resources in ({"datacenter:eu": 1}, {f"pilot:{us.id}": 1}, {"machine:m1": 1})
    ]
    assert [name.rpartition("-")[0] for name in where] == [eu.id, us.id, eu.id]
    assert client.gather(client.map(units.same, range(30))) == list(range(30))
    # Dask takes a unit's result, and a unit takes one of Dask's.
    gate.open()
    seven = cds.submit(units.same, 7)
    assert client.submit(units.same, seven.future).result(LONG_S) == 7
    assert cds.submit(units.same, client.submit(units.same, 8)).result(LONG_S) == 8


def _worker_name() -> str:
    from distributed import get_worker

    return str(get_worker().name)


# -- placement at submission


def test_what_no_pilot_can_ever_run_is_refused(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path, 2, affinity_datacenter_label="eu")
    with pytest.raises(PlacementError, match=r"number_of_processes 3.*it has 2\b"):
        cds.submit(units.same, 1, number_of_processes=3)
    with pytest.raises(PlacementError, match=r"datacenter eu is not us"):
        cds.submit(units.same, 1, affinity_datacenter_label="us", affinity="require")
    with pytest.raises(PlacementError, match=r"it has 2\b"):
        pilot.submit_compute_unit({"executable": "/bin/true", "number_of_processes": 3})
    good, bad = {"executable": "/bin/true"}, {"executable": "/bin/true", "number_of_processes": 3}
    with pytest.raises(PlacementError):
        cds.submit_compute_unit_batch([good, bad])
    assert cds.list_compute_units() == []  # all or none
    assert cds.submit(units.same, 1, affinity_datacenter_label="us").result(LONG_S) == 1  # a wish is no must
    larger = start(pcs, tmp_path, 3)
    assert cds.submit(units.same, 2, number_of_processes=3).result(LONG_S) == 2
    larger.cancel()
    with pytest.raises(PlacementError, match=r"it has 2\b"):
        cds.submit(units.same, 1, number_of_processes=3)


def test_units_of_higher_priority_go_first(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    start(pcs, tmp_path)
    log = str(tmp_path / "log")
    first = cds.submit(units.hold, gate.path, name=gate.name)
    reach(first, State.Running)
    priorities = [0, 5, -1, 5, 2.5, 0]
    for n, priority in enumerate(priorities):
        cds.submit(units.named, log, f"{priority} {n}", priority=priority, name=f"kind {n % 2}")
    assert len(cds.why_waiting()) == 6
    gate.open()
    cds.wait(LONG_S)
    assert lines(log) == ["5 1", "5 3", "2.5 4", "0 0", "0 5", "-1 2"]


@pytest.mark.parametrize("seconds", [0.0, 0.06])
def test_units_run_in_the_order_of_their_submission(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path, seconds: float
) -> None:
    start(pcs, tmp_path)
    log = str(tmp_path / "log")
    number = 8 if seconds else 300  # tiny ones are queued at the worker
    for i in range(number):
        cds.submit(units.named, log, str(i), seconds)
    cds.wait(LONG_S)
    assert lines(log) == [str(i) for i in range(number)]


# -- one pilot


def test_units_that_are_submitted_to_a_pilot_run_there(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    first, second = start(pcs, tmp_path), start(pcs, tmp_path)
    direct = [
        first.submit_compute_unit({"executable": units.hold, "args": (gate.path,), "name": gate.name}) for _ in range(3)
    ]
    reach(direct[0], State.Running)
    assert f"waits for a slot of {first.id}" in direct[1].explain().reason
    with pytest.raises(PilotTimeoutError, match=rf"{first.id}.*{direct[1].id}"):
        first.wait(0.01)
    assert first.list_compute_units() == direct
    assert second.list_compute_units() == []
    gate.open()
    assert first.wait(LONG_S) == "Running"  # the pilot's own state: its units have ended
    assert {pilot_of(unit) for unit in direct} == {first.id}
    assert pcs.list_pilots() == [first, second]
    assert cds.list_pilot_compute() == [first, second]


def test_direct_units_of_a_canceled_pilot_are_canceled(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot, other = start(pcs, tmp_path), start(pcs, tmp_path)
    running, waiting = (
        pilot.submit_compute_unit({"executable": units.hold, "args": (gate.path,), "name": gate.name}) for _ in range(2)
    )
    reach(running, State.Running)
    pilot.cancel()
    assert running.wait(LONG_S) == waiting.wait(LONG_S) == "Canceled"
    assert pilot.wait() == "Canceled"
    with pytest.raises(StateError, match=rf"{pilot.id} is Canceled"):
        pilot.submit_compute_unit({"executable": "/bin/true"})
    assert other.submit_compute_unit({"executable": "/bin/true"}).wait(LONG_S) == "Done"


def test_direct_units_of_a_failed_pilot_fail(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    running, waiting = (
        pilot.submit_compute_unit({"executable": units.hold, "args": (gate.path,), "name": gate.name}) for _ in range(2)
    )
    reach(running, State.Running)
    for worker in workers(pcs, pilot).values():
        worker.kill()
    for unit in (running, waiting):
        assert unit.wait(LONG_S) == "Failed"
        with pytest.raises(UnitError, match=rf"{unit.id} was submitted to {pilot.id}, which failed"):
            unit.result()
    assert pilot.wait() == "Failed"
    assert "SIGKILL" in str(pilot.exception())


def test_details_of_a_pilot(pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path) -> None:
    pilot = start(
        pcs, tmp_path, 3, threads_per_worker=2, affinity_datacenter_label="eu", affinity_machine_label="m1", walltime=60
    )
    details = pilot.get_details()
    expected = {
        "id": pilot.id,
        "owner": pcs.id,
        "service_url": "fork://localhost",
        "slots": 3,
        "threads_per_worker": 2,
        "workers": 2,
        "working_directory": str(tmp_path),
        "datacenter": "eu",
        "machine": "m1",
        "walltime_s": 3600,
        "units": [],
        "error": None,
    }
    assert {key: details[key] for key in expected} == expected
    assert [state for state, _ in details["history"]] == states(pilot) == ["New", "Pending", "Running"]
    assert pilot.get_free_nodes() == 3
    wide = cds.submit(units.hold, gate.path, name=gate.name, number_of_processes=2)
    reach(wide, State.Running)
    assert pilot.get_free_nodes() == 1
    left = pilot.wall_time_left()
    assert left is not None
    assert 3500 < left < 3600
    assert start(pcs, tmp_path).wall_time_left() is None
    assert cds.get_details()["compute_units"] == {"Running": 1}
    assert cds.get_details()["pilot_compute"][0] == pilot.id
    gate.open()
    wide.wait(LONG_S)
    assert pilot.get_free_nodes() == 3


def test_a_pilot_ends_with_its_walltime(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path, walltime=1 / 60)
    processes = list(workers(pcs, pilot).values())
    running = pilot.submit_compute_unit({"executable": units.hold, "args": (gate.path,), "name": gate.name})
    moves = cds.submit(units.same, 1)
    reach(running, State.Running)
    eventually(lambda: pilot.state.is_final, "the walltime is over")
    assert pilot.state == "Done"
    assert pilot.wall_time_left() == 0
    begun, ended = (time for state, time in pilot.history if state in ("Running", "Done"))
    assert 1.0 <= ended - begun < 3.0
    assert running.wait(LONG_S) == "Canceled"
    for process in processes:
        process.wait(LONG_S)
    assert moves.state == "Pending"
    start(pcs, tmp_path)
    assert moves.result(LONG_S) == 1


def test_reinitialize(pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path) -> None:
    pilot = start(pcs, tmp_path)
    old, processes = pilot.id, list(workers(pcs, pilot).values())
    unit = cds.submit(units.hold, gate.path, name=gate.name)
    reach(unit, State.Running)
    description = {"service_url": "fork://localhost", "number_of_processes": 2, "working_directory": str(tmp_path)}
    pilot.reinitialize(description)
    assert pilot.id != old
    assert pilot.wait_running(LONG_S) == "Running"
    for process in processes:
        process.wait(LONG_S)
    gate.open()
    assert unit.wait(LONG_S) == "Done"
    assert pilot_of(unit) == pilot.id
    assert pcs.list_pilots() == [pilot]
    assert PilotCompute(pilot_url=f"{pilot.url.rpartition('/')[0]}/{old}").state == "Canceled"
    # Neither the old pilot's last message nor the end of its process ends the new one.
    eventually(lambda: pilot.get_free_nodes() == 2, "both slots are there")
    assert states(pilot) == ["New", "Pending", "Running"]


# -- walltime of units


def test_a_program_is_ended_after_its_walltime(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    unit = cds.submit_compute_unit(
        {"executable": "/bin/sh", "arguments": ["-c", "echo $$; sleep 1000 & wait"], "walltime": 0.3 / 60}
    )
    assert unit.wait(LONG_S) == "Failed"
    with pytest.raises(ExecutableError, match=r"after its walltime of 0\.3 s"):
        unit.result()
    assert pilot.get_free_nodes() == 1


def test_a_function_fails_after_its_walltime_and_its_slot_is_free_when_it_returns(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    quick = cds.submit(units.same, 1, walltime=1)
    unit = cds.submit(units.hold, gate.path, name=gate.name, walltime=0.2 / 60)
    assert unit.wait(LONG_S) == "Failed"
    with pytest.raises(UnitError, match=r"longer than its walltime of 0\.2 s"):
        unit.result()
    assert pilot.get_free_nodes() == 0
    next_one = cds.submit(units.work, 0.0)
    opened = time.time()
    gate.open()
    assert next_one.result(LONG_S)[0] >= opened
    assert quick.result() == 1
    eventually(lambda: pilot.get_free_nodes() == 1, "the slot is free")


def test_a_function_that_is_overdue_is_tried_again(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    start(pcs, tmp_path, 2)
    log = str(tmp_path / "log")
    unit = cds.submit(units.hold, gate.path, log, name=gate.name, walltime=0.2 / 60, retries=1)
    assert unit.wait(LONG_S) == "Failed"
    assert len(lines(log)) == 2
    assert states(unit) == ["New", "Pending", "Running", "Pending", "Running", "Failed"]


def test_wait_has_a_timeout_everywhere(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    unit = pilot.submit_compute_unit({"executable": units.hold, "args": (gate.path,), "name": gate.name})
    reach(unit, State.Running)
    waits: list[Any] = [unit.wait, unit.result, unit.exception, pilot.wait, pcs.wait]
    for wait in waits:
        began = time.monotonic()
        with pytest.raises(PilotTimeoutError, match=rf"still pending after 0\.05 s.*{unit.id}.*is Running"):
            wait(timeout=0.05)
        assert time.monotonic() - began < 5
    waiting = cds.submit(units.same, 1)
    with pytest.raises(PilotTimeoutError, match=rf"{waiting.id} \(same\) is Pending: waits for a slot of {pilot.id}"):
        cds.wait(0.05)
    gate.open()
    assert cds.wait(LONG_S) == "Running"
    assert pcs.wait(LONG_S) == "Running"
    assert pilot.wait(0) == "Running"  # what is over does not time out
