"""What the monitor takes in: lanes, the replica that was read, when units that failed began; and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot import ComputeDataService, PilotCompute, PilotComputeService, PilotDataService
from dpilot.monitor.lanes import lanes
from dpilot.runtime.coordinator import Coordinator
from dpilot.runtime.observers import Observers
from tests.helpers import LONG_S, Gate
from tests.units import hold

SPANS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30), st.integers(1, 3)), max_size=40)


@given(SPANS, st.integers(3, 6))
def test_a_slot_is_one_lane_and_no_lane_has_two_units_at_once(drawn: Any, n_slots: int) -> None:
    spans = sorted((began, began + lasted, width) for began, lasted, width in drawn)
    until = [0.0] * n_slots
    for (began, ended, width), held in zip(spans, lanes(spans, n_slots), strict=True):
        assert len({lane for lane, _ in held}) == width
        for lane, drawn_from in held:
            assert began <= drawn_from <= ended
            assert drawn_from >= min(ended, until[lane]) - 2e-3
            until[lane] = max(until[lane], ended)


def test_units_one_after_the_other_share_a_lane() -> None:
    # The second was sent before the first had ended: nobody has told when it began there.
    assert lanes([(0.0, 2.0, 1), (1.5, 3.0, 1)], 1) == [[(0, 0.0)], [(0, 2.0)]]
    assert lanes([(0.0, 2.0, 1), (0.5, 3.0, 1), (2.0, 4.0, 1)], 4) == [[(0, 0.0)], [(1, 0.5)], [(0, 2.0)]]


def test_switched_off_there_is_no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("dpilot.monitor.watch.Watch", lambda coordinator: made.append(coordinator) or "a watch")
    coordinator = Coordinator()
    with dask.config.set({"dpilot.monitor.enabled": False}):
        observers = Observers()
        observers.begin(coordinator)
    assert (made, observers._observers) == ([], [])
    observers.begin(coordinator)
    assert (made, observers._observers) == ([coordinator], ["a watch"])


def _matrix(dask_scheduler: Any) -> dict[tuple[str, str], list[int]]:
    watch = dask_scheduler.plugins["dpilot"].observers._observers[0]
    return dict(watch.model.matrix)


@pytest.mark.cluster
def test_the_matrix_counts_the_replica_that_was_read(
    cds: ComputeDataService, pcs: PilotComputeService, pds: PilotDataService, tmp_path: Path
) -> None:
    for site in ("here", "there"):
        pds.create_pilot({"service_url": f"file://{tmp_path / site}", "affinity_datacenter_label": f"matrix-{site}"})
    near, far = pds.list_pilots()
    pilot = pcs.create_pilot(
        {
            "service_url": "fork://localhost",
            "working_directory": str(tmp_path / "work"),
            "affinity_datacenter_label": "matrix-here",
        }
    )
    source = tmp_path / "numbers"
    source.write_bytes(b"1234567")
    data = near.submit_data_unit({"file_urls": [str(source)]})
    data.wait(LONG_S)
    data.add_pilot_data(far)
    data.wait_replicas(2, LONG_S)
    pilot.wait_running(LONG_S)
    (tmp_path / "here" / data.id / "numbers").unlink()  # the nearest replica is damaged
    unit = cds.submit_compute_unit({"executable": "/usr/bin/wc", "arguments": ["-c", "numbers"], "input_data": [data]})
    unit.wait(LONG_S)
    assert unit.get_details()["bytes"]["cross_datacenter"] == 7
    cells = pcs.client.run_on_scheduler(_matrix)
    assert {key: cells[key] for key in cells if key[1] == "matrix-here"} == {("matrix-there", "matrix-here"): [1, 7]}


@pytest.mark.cluster
def test_a_unit_that_failed_began_when_its_worker_began_with_it(cds: ComputeDataService, pilot: PilotCompute) -> None:
    pilot.wait_running(LONG_S)
    fails = {"executable": "/bin/sh", "arguments": ["-c", "sleep 0.05; false"], "name": "fails"}
    for unit in cds.submit_compute_unit_batch([fails] * 8):
        unit.wait(LONG_S)
    frame = cds.units_frame()
    began, ended = sorted(frame["began"]), sorted(frame["ended"])
    # One after the other on each slot: so many have ended when the next one begins.
    assert all((begin - end).total_seconds() >= -0.005 for begin, end in zip(began[pilot.slots :], ended, strict=False))


@pytest.mark.cluster
def test_a_frame_of_decisions_is_bounded(cds: ComputeDataService, pilot: PilotCompute, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    units = cds.submit_compute_unit_batch({"executable": hold, "args": (gate.path,)} for _ in range(30))
    assert list(cds.decisions_frame(newest=10)["unit"]) == [unit.id for unit in units[-10:]]
    assert len(cds.decisions_frame()) == 30
    gate.open()
