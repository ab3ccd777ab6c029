"""What a unit needs beside slots: memory, GPUs, time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpilot import ComputeDataService, PilotCompute, PilotComputeService, PlacementError, gpus
from tests.helpers import LONG_S, Gate, eventually, reach
from tests.units import hold, work

pytestmark = pytest.mark.cluster

NewPilot = Callable[..., PilotCompute]


@pytest.fixture
def new_pilot(pcs: PilotComputeService, tmp_path: Path) -> NewPilot:
    """Starts pilots on this machine."""

    def make(slots: int = 1, **more: Any) -> PilotCompute:
        description = {"number_of_processes": slots, "working_directory": str(tmp_path / "work"), **more}
        pilot = pcs.create_pilot({"service_url": "fork://localhost", **description})
        reach(pilot, "Running")
        return pilot

    return make


def test_what_no_pilot_has_is_refused_at_submission(cds: ComputeDataService, new_pilot: NewPilot) -> None:
    new_pilot(memory_per_worker="1 GB", walltime=10)
    for key, value, reason in (("memory", "2 GB", "2,000,000,000"), ("gpus", 1, "GPUs"), ("walltime", 11, "660 s")):
        with pytest.raises(PlacementError, match=reason):
            cds.submit_compute_unit({"executable": "/bin/true", key: value})
    assert cds.submit(int, "1", memory="0.5 GB", walltime=1).result(LONG_S) == 1


def test_memory_is_never_promised_twice(cds: ComputeDataService, new_pilot: NewPilot, tmp_path: Path) -> None:
    new_pilot(4, threads_per_worker=4, memory_per_worker="1 GB")
    gate = Gate(tmp_path / "gate")
    units = [cds.submit(hold, gate.path, name=gate.name, memory="0.4 GB") for _ in range(3)]
    eventually(lambda: sum(unit.state == "Running" for unit in units) == 2, "two run")
    (waiting,) = [unit for unit in units if unit.state != "Running"]
    assert "waits for a slot" in cds.why_waiting()[waiting.id]
    gate.open()
    assert all(unit.wait(LONG_S) == "Done" for unit in units)


def test_each_gpu_is_one_units(cds: ComputeDataService, new_pilot: NewPilot, tmp_path: Path) -> None:
    new_pilot(2, threads_per_worker=2, gpus_per_worker=2, environment={"CUDA_VISIBLE_DEVICES": "4,7"})
    assert sorted(cds.submit(gpus, gpus=2).result(LONG_S)) == ["4", "7"]
    assert cds.submit(gpus).result(LONG_S) == ()
    log = tmp_path / "log"
    script = f'echo "+$CUDA_VISIBLE_DEVICES" >> {log}; sleep 0.2; echo "-$CUDA_VISIBLE_DEVICES" >> {log}'
    shell = {"executable": "/bin/sh", "arguments": ["-c", script]}
    units = [cds.submit_compute_unit({**shell, "gpus": 1}) for _ in range(6)]
    assert all(unit.wait(LONG_S) == "Done" for unit in units)
    busy: set[str] = set()
    for line in log.read_text().split():
        sign, gpu = line[0], line[1:]
        assert gpu in ("4", "7")
        assert (gpu in busy) == (sign == "-")
        busy ^= {gpu}
    log.unlink()
    plain = cds.submit_compute_unit(shell)
    assert plain.wait(LONG_S) == "Done"
    assert log.read_text().split() == ["+", "-"]  # it asked for none, and sees none


def test_gpus_that_are_not_there(pcs: PilotComputeService, tmp_path: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    description = {"service_url": "fork://localhost", "number_of_processes": 2, "gpus_per_worker": 1}
    pilot = pcs.create_pilot({**description, "environment": environment, "working_directory": str(tmp_path)})
    assert pilot.wait(LONG_S) == "Failed"
    assert "CUDA_VISIBLE_DEVICES" in str(pilot.get_details()["error"])


def test_nothing_is_placed_that_cannot_end_in_time(cds: ComputeDataService, new_pilot: NewPilot) -> None:
    short = new_pilot(walltime=0.1)  # six seconds
    began = time.time()
    unit = cds.submit(work, 0.1, walltime=0.05)
    assert unit.wait(LONG_S) == "Done"
    assert unit.pilot.id == short.id
    eventually(lambda: short.wall_time_left() < 2.9, "three seconds are over")
    late = cds.submit(work, 0.1, walltime=0.05)  # three seconds are more than are left
    assert "ends in" in eventually(lambda: cds.why_waiting().get(late.id), "it waits")
    long = new_pilot()
    assert late.wait(LONG_S) == "Done"
    assert late.pilot.id == long.id
    assert time.time() > began
