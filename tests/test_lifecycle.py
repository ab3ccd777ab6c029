"""How units and pilots end: by themselves, when told to, when workers die, and when the process that owns them does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from dpilot import (
    ComputeDataService,
    InputError,
    PilotComputeService,
    PilotDataService,
    PilotLaunchError,
    State,
    UnitCanceledError,
)
from tests import units
from tests.helpers import LONG_S, Gate, create, eventually, lines, marked, reach, script, start, states, workers

pytestmark = pytest.mark.cluster

#: Between SIGTERM and SIGKILL, in the tests that wait for it.
GRACE_S = 0.5


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def short_grace() -> Iterator[None]:
    """Pilots that are started in the test get a short grace period with their configuration."""
    with dask.config.set({"dpilot.unit.grace-period": f"{GRACE_S}s"}):
        yield


def shell(command: str, **keys: Any) -> dict[str, Any]:
    return {"executable": "/bin/sh", "arguments": ["-c", command], **keys}


def process_in(path: Path) -> psutil.Process:
    """The process whose id a program has written to a file."""
    return psutil.Process(int(eventually(lambda: lines(path), f"{path} is written")[0]))


# -- workers and pilots that die


def test_units_of_a_killed_worker_run_again_and_end_once(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path / "work", 2)
    log = str(tmp_path / "log")
    ended: list[tuple[str, State]] = []
    submitted = [cds.submit(units.hold, gate.path, log, str(i), name=gate.name) for i in range(2)]
    submitted += [cds.submit_compute_unit(shell(f"echo {i} >> {log}")) for i in range(2, 6)]
    for unit in submitted:
        unit.set_callback(lambda unit, _, state: state.is_final and ended.append((unit.id, state)))
    for unit in submitted[:2]:
        reach(unit, State.Running)
    eventually(lambda: len(lines(log)) == 2, "both functions run")
    victim = next(iter(workers(pcs, pilot).values()))
    victim.send_signal(signal.SIGKILL)
    again = [unit for unit in submitted[:2] if eventually(lambda: pilot.get_details()["workers"] == 1, "it is noticed")]
    gate.open()
    cds.wait(LONG_S)
    assert {str(unit.state) for unit in submitted} == {"Done"}
    eventually(lambda: len(ended) == 6, "all callbacks were called")
    assert sorted(ended) == sorted((unit.id, State.Done) for unit in submitted)
    assert sorted(unit.get_details()["attempt"] for unit in again) == [1, 2]
    assert sorted(lines(log))[2:] in (["1", "2", "3", "4", "5"], ["0", "1", "2", "3", "4", "5"][1:])
    assert pilot.state == "Running"
    assert pilot.get_free_nodes() == 1


def test_a_program_of_a_killed_worker_does_not_outlive_it(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path / "work", 2)
    unit = cds.submit_compute_unit(shell(f"test -e {tmp_path}/pid && exit; echo $$ > {tmp_path}/pid; sleep 1000"))
    program = process_in(tmp_path / "pid")
    reach(unit, State.Running)
    where = program.parent()
    assert where is not None
    where.kill()
    program.wait(LONG_S)
    assert unit.wait(LONG_S) == "Done"
    assert states(unit) == ["New", "Pending", "Running", "Pending", "Running", "Done"]
    assert pilot.state == "Running"


def test_a_unit_that_kills_its_workers_fails_in_the_end(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    start(pcs, tmp_path, 5)
    unit = cds.submit(_die)
    assert unit.wait(LONG_S) == "Failed"
    assert type(unit.exception()).__name__ == "KilledWorker"
    assert cds.submit(units.same, 1).result(LONG_S) == 1  # there is a worker left


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pilot_whose_workers_are_all_killed_has_failed(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path, 2)
    unit = cds.submit(units.hold, gate.path, name=gate.name)
    reach(unit, State.Running)
    for worker in workers(pcs, pilot).values():
        worker.kill()
    assert pilot.wait(LONG_S) == "Failed"
    assert isinstance(pilot.exception(), PilotLaunchError)
    assert "2 of 2 workers died" in str(pilot.exception())
    assert "was killed by SIGKILL" in str(pilot.exception())
    assert unit.state == "Pending"
    assert unit.id in cds.why_waiting()
    create(pcs, tmp_path)
    gate.open()
    assert unit.wait(LONG_S) == "Done"


def test_a_pilot_whose_agent_is_killed_has_failed(pcs: PilotComputeService, tmp_path: Path) -> None:
    pilot = start(pcs, tmp_path)
    (worker,) = workers(pcs, pilot).values()
    agent = worker.parent()
    assert agent is not None
    agent.kill()
    worker.wait(LONG_S)
    assert pilot.wait(LONG_S) == "Failed"
    assert str(pilot.exception()).startswith(f"{pilot.id} was killed by SIGKILL")
    assert "distributed.worker - INFO" in next(tmp_path.rglob(f"{pilot.id}.log")).read_text()
    assert "INFO" not in str(pilot.exception())  # which tells nobody why


def test_a_pilot_whose_workers_cannot_join_has_failed(pcs: PilotComputeService, tmp_path: Path) -> None:
    pilot = create(pcs, tmp_path, environment={"PYTHONHOME": "/nowhere"})
    assert pilot.wait(LONG_S) == "Failed"
    assert f"{pilot.id} ended with status 1" in str(pilot.exception())
    assert "No module named 'encodings'" in str(pilot.exception())  # the end of the log


# -- cancel of one unit


def test_cancel_of_a_waiting_unit(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    running = cds.submit(units.hold, gate.path, name=gate.name)
    reach(running, State.Running)
    log = str(tmp_path / "log")
    waiting = cds.submit(units.named, log, "waiting")
    cds.why_waiting()  # it is known to the scheduler
    waiting.cancel()
    at_once = cds.submit(units.named, log, "at once")
    at_once.cancel()  # perhaps before the scheduler has it
    takes_it = cds.submit(units.same, running)
    takes_it.cancel()
    for unit in (waiting, at_once, takes_it):
        assert unit.state == "Canceled"
        assert unit.exception() is None
        with pytest.raises(UnitCanceledError, match=rf"{unit.id} was canceled"):
            unit.result()
        unit.cancel()  # again is no error
    gate.open()
    assert running.wait(LONG_S) == "Done"
    running.cancel()
    assert running.state == "Done"
    assert cds.wait(LONG_S) == "Running"
    assert lines(log) == []
    assert pilot.get_free_nodes() == 1


def test_cancel_of_a_running_function_frees_its_slot_when_it_returns(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    unit = cds.submit(units.hold, gate.path, name=gate.name)
    reach(unit, State.Running)
    unit.cancel()
    assert unit.state == "Canceled"
    assert pilot.get_free_nodes() == 0
    following = cds.submit(units.work, 0.0)
    assert f"waits for a slot of {pilot.id}" in following.explain().reason
    opened = time.time()
    gate.open()
    assert following.result(LONG_S)[0] >= opened
    assert pilot.get_free_nodes() == 1


def test_cancel_ends_the_whole_process_group_with_term_then_kill(
    short_grace: None, pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    # The shell, and its child, ignore SIGTERM; the child's child notes it, and ends.
    (tmp_path / "grandchild").write_text(
        f"trap 'echo TERM > {tmp_path}/term; exit' TERM\necho $$ > {tmp_path}/c\nwhile :; do sleep 0.01; done"
    )
    (tmp_path / "child").write_text(f"trap '' TERM\necho $$ > {tmp_path}/b\nwhile :; do sleep 0.01; done")
    begin = f"sh {tmp_path}/grandchild & trap '' TERM; sh {tmp_path}/child & echo $$ > {tmp_path}/a"
    unit = cds.submit_compute_unit(shell(f"{begin}; wait; wait; sleep 1000"))
    group = [process_in(tmp_path / name) for name in "abc"]
    assert len({os.getpgid(process.pid) for process in group}) == 1
    began = time.time()
    unit.cancel()
    assert time.time() - began < GRACE_S  # nobody need wait for the end of the programs
    assert unit.state == "Canceled"
    assert pilot.get_free_nodes() == 0
    following = cds.submit(units.work, 0.0)
    group[2].wait(LONG_S)
    assert lines(tmp_path / "term") == ["TERM"]
    free_at, _ = following.result(LONG_S)
    assert free_at - began >= GRACE_S
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in group)
    eventually(lambda: pilot.get_free_nodes() == 1, "the slot is free")


def test_the_slot_is_taken_while_anything_of_a_canceled_program_is_left(
    short_grace: None, pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    # The shell ends at SIGTERM; its child does not.
    (tmp_path / "child").write_text(f"trap '' TERM\necho $$ > {tmp_path}/pid\nwhile :; do sleep 0.01; done")
    unit = cds.submit_compute_unit(shell(f"echo $$ > {tmp_path}/leader; sh {tmp_path}/child & wait"))
    child, leader = process_in(tmp_path / "pid"), process_in(tmp_path / "leader")
    began = time.time()
    unit.cancel()
    leader.wait(LONG_S)
    assert child.is_running()
    assert pilot.get_free_nodes() == 0
    free_at, _ = cds.submit(units.work, 0.0).result(LONG_S)
    assert free_at - began >= GRACE_S
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_cancel_of_a_program_that_obeys_is_quick(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    start(pcs, tmp_path)
    unit = cds.submit_compute_unit(shell(f"echo $$ > {tmp_path}/pid; exec sleep 1000"))
    program = process_in(tmp_path / "pid")
    began = time.time()
    unit.cancel()
    assert cds.submit(units.work, 0.0).result(LONG_S)[0] - began < 2  # the grace period is 5 s
    program.wait(LONG_S)


def test_cancel_of_a_staging_unit(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, tmp_path: Path
) -> None:
    cds.add_pilot_data_service(pds)
    pilot = start(pcs, tmp_path / "work", affinity_datacenter_label="eu")
    store = pds.create_pilot({"service_url": f"file://{tmp_path}/store", "affinity_datacenter_label": "us"})
    (tmp_path / "input").write_bytes(bytes(1 << 20))
    du = store.submit_data_unit({"file_urls": [str(tmp_path / "input")]})
    assert du.wait(LONG_S) == "Running"
    # From now on its bytes come as slowly as the test lets them come.
    (path,) = (tmp_path / "store").glob("du-*/input")
    path.unlink()
    os.mkfifo(path)
    log = tmp_path / "log"
    unit = cds.submit_compute_unit(shell(f"echo ran > {log}", input_data=[du]))
    with path.open("wb") as pipe:  # returns when the unit has begun to read
        reach(unit, State.Staging)
        unit.cancel()
        assert unit.state == "Canceled"
        assert pilot.get_free_nodes() == 0
        following = cds.submit(units.work, 0.0)
        written = time.time()
        pipe.write(bytes(1 << 16))
        pipe.flush()
        # Its transfer stops at the next bytes, not at the end of the file.
        assert following.result(LONG_S)[0] >= written
    assert lines(log) == []
    assert states(unit) == ["New", "Pending", "Staging", "Canceled"]
    eventually(lambda: pilot.get_free_nodes() == 1, "the slot is free")


def test_cancel_of_tiny_units_that_are_queued_at_a_worker(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    log = str(tmp_path / "log")
    name = uuid.uuid4().hex
    for i in range(5):
        cds.submit(units.named, log, f"before {i}", name=name)
    cds.wait(LONG_S)  # they are known to be tiny now
    submitted = [cds.submit(units.named, log, str(i), 0.01, name=name) for i in range(100)]
    canceled = submitted[1::2]
    for unit in reversed(canceled):
        unit.cancel()
    cds.wait(LONG_S)
    assert {str(unit.state) for unit in submitted[::2]} == {"Done"}
    assert {str(unit.state) for unit in canceled} <= {"Done", "Canceled"}
    assert "Canceled" in {str(unit.state) for unit in canceled}
    ran = set(lines(log))
    for i, unit in enumerate(submitted):
        if unit.state == "Done":
            assert str(i) in ran
    eventually(lambda: pilot.get_free_nodes() == 1, "the slot is free")
    assert cds.submit(units.same, 1).result(LONG_S) == 1


def test_cancel_goes_on_to_units_that_take_the_result(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    start(pcs, tmp_path)
    first = cds.submit(units.hold, gate.path, name=gate.name)
    second = cds.submit(units.same, first)
    third = cds.submit(units.same, [second])
    reach(first, State.Running)
    assert "results of the units" in cds.why_waiting()[third.id]
    first.cancel()
    cds.wait(LONG_S)
    assert [unit.state for unit in (first, second, third)] == ["Canceled"] * 3
    with pytest.raises(InputError, match=rf"{first.id} was canceled"):
        cds.submit(units.same, [first])
    gate.open()
    assert cds.submit(units.same, 1).result(LONG_S) == 1


def test_a_unit_whose_argument_is_gone_from_the_scheduler_fails(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    start(pcs, tmp_path)
    gone = pcs.client.submit(units.same, 1, pure=False)
    gone.result(LONG_S)
    pcs.client.cancel(gone)
    unit = cds.submit(units.same, gone)
    assert unit.wait(LONG_S) == "Failed"
    with pytest.raises(InputError, match=rf"{unit.id} was refused by the scheduler.*its future released"):
        unit.result()
    assert cds.wait(LONG_S) == "Running"


def test_failure_goes_on_to_units_that_take_the_result(
    pcs: PilotComputeService, cds: ComputeDataService, tmp_path: Path
) -> None:
    start(pcs, tmp_path)
    first = cds.submit(units.fail, "no")
    second = cds.submit(units.same, [first])
    for unit in (first, second):
        with pytest.raises(ArithmeticError, match="no"):
            unit.result(LONG_S)
    assert second.state == "Failed"


def test_a_dask_user_cancels_a_units_future(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    running, waiting = (cds.submit(units.hold, gate.path, name=gate.name) for _ in range(2))
    reach(running, State.Running)
    pcs.client.cancel(waiting.future)
    assert waiting.wait(LONG_S) == "Canceled"
    pcs.client.cancel([running.future])
    assert running.wait(LONG_S) == "Canceled"
    with pytest.raises(UnitCanceledError):
        running.result()
    assert pilot.get_free_nodes() == 0
    gate.open()
    assert cds.submit(units.same, 1).result(LONG_S) == 1
    done = cds.submit(units.same, 2)
    assert done.result(LONG_S) == 2
    pcs.client.cancel(done.future)
    assert done.state == "Done"
    assert done.result() == 2
    # Dask's own tasks are canceled as ever.
    task = pcs.client.submit(units.work, 1000, resources={"no such thing": 1})
    pcs.client.cancel(task)
    assert task.cancelled()


# -- cancel of services


def test_cancel_of_a_compute_data_service(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    done = cds.submit(units.same, 1)
    done.wait(LONG_S)
    running = cds.submit_compute_unit(shell(f"echo $$ > {tmp_path}/pid; exec sleep 1000"))
    program = process_in(tmp_path / "pid")
    waiting = [cds.submit(units.same, i) for i in range(3)]
    other = pilot.submit_compute_unit({"executable": units.same, "args": (2,)})
    cds.cancel()
    assert cds.state == "Canceled"
    assert [unit.state for unit in (done, running, *waiting)] == ["Done", *["Canceled"] * 4]
    program.wait(LONG_S)
    # What is not its own goes on.
    assert other.result(LONG_S) == 2
    assert pilot.state == "Running"
    cds.cancel()


def test_cancel_of_a_pilot_compute_service(cds: ComputeDataService, gate: Gate, tmp_path: Path) -> None:
    pcs = PilotComputeService()
    cds.add_pilot_compute_service(pcs)
    pilots = [start(pcs, tmp_path), start(pcs, tmp_path, 2)]
    processes = [process for pilot in pilots for process in workers(pcs, pilot).values()]
    unit = cds.submit(units.hold, gate.path, name=gate.name)
    reach(unit, State.Running)
    pcs.cancel()
    assert pcs.state == "Canceled"
    assert [pilot.state for pilot in pilots] == ["Canceled"] * 2
    assert not any(process.is_running() for process in processes)
    assert unit.state == "Pending"
    assert pcs.wait(1) == "Canceled"
    pcs.cancel()


def test_waits_end_when_units_and_pilots_are_canceled_in_another_thread(
    pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    pilot = start(pcs, tmp_path)
    unit = pilot.submit_compute_unit({"executable": units.hold, "args": (gate.path,), "name": gate.name})
    waiting = cds.submit(units.same, 1)
    ended: list[State] = []
    waits = [
        threading.Thread(target=lambda w=w: ended.append(w(LONG_S))) for w in (unit.wait, waiting.wait, pilot.wait)
    ]
    for thread in waits:
        thread.start()
    reach(unit, State.Running)
    waiting.cancel()
    pilot.cancel()
    for thread in waits:
        thread.join(LONG_S)
    assert ended == ["Canceled"] * 3


async def test_await(pcs: PilotComputeService, cds: ComputeDataService, gate: Gate, tmp_path: Path) -> None:
    await asyncio.to_thread(start, pcs, tmp_path, 2)
    good, bad, held = cds.submit(units.same, 1), cds.submit(units.fail, "no"), cds.submit(units.hold, gate.path)
    assert [await unit for unit in (good, bad)] == ["Done", "Failed"]
    assert await good == "Done"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(held, 0.05)
    held.cancel()
    assert await held == "Canceled"


# -- the end of the process


PROGRAM = """
    import os, signal, sys, time
    from dpilot import ComputeDataService, PilotComputeService
    from tests.helpers import State, create, reach
    from tests import units

    directory, how = sys.argv[1:]
    pcs = PilotComputeService()
    for slots in (2, 1):
        create(pcs, directory, slots)
    cds = ComputeDataService()
    cds.add_pilot_compute_service(pcs)
    sleeps = ["-c", "setsid sleep 1000 & sleep 1000 & wait"]
    program = cds.submit_compute_unit({"executable": "/bin/sh", "arguments": sleeps})
    function = cds.submit(units.hold, f"{directory}/gate", name="hold")
    cds.submit_compute_unit_batch([{"executable": "/bin/sleep", "arguments": ["1000"]}] * 3)
    reach(program, State.Running)
    reach(function, State.Running)
    print("ready")
    sys.stdin.readline()
    if how == "exception":
        raise ArithmeticError("the user's own")
    if how == "sys.exit":
        sys.exit(3)
    if how == "wait":
        try:
            print("waiting")
            cds.wait()
        except KeyboardInterrupt:
            print("interrupted", program.state, function.state)
"""


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("normal", 0),
        ("exception", 1),
        ("sys.exit", 3),
        ("SIGTERM", -signal.SIGTERM),
        ("SIGKILL", -signal.SIGKILL),
        ("wait", 0),
    ],
)
def test_no_process_outlives_the_one_that_started_it(gate: Gate, tmp_path: Path, how: str, code: int) -> None:
    mark = ("DPILOT_TEST_EXIT", uuid.uuid4().hex)
    with script(PROGRAM, str(tmp_path), how, **dict([mark])) as process:
        assert process.hear() == "ready"
        # Agents, workers, and the shell and sleeps.
        eventually(lambda: len(marked(*mark)) == 1 + 2 + 3 + 4, "all processes run")
        left = [p for p in marked(*mark) if p.pid != process.pid]
        if how.startswith("SIG"):
            process.send_signal(signal.Signals[how])
        else:
            process.say()
        if how == "wait":
            assert process.hear() == "waiting"
            process.send_signal(signal.SIGINT)
        out, errors = process.end(code)
        _, alive = psutil.wait_procs(left, timeout=LONG_S)
        assert alive == []
        assert marked(*mark) == []
    assert out == ("interrupted Running Running\n" if how == "wait" else "")
    if how == "exception":
        assert "the user's own" in errors
    elif not how.startswith("SIG"):
        assert errors == ""
