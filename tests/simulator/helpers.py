"""What must be true of every run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from dpilot.simulator import Result, Scenario


def check(result: Result, scenario: Scenario) -> None:
    """Every unit ended once, no pilot had more units at once than slots, and the bytes add up."""
    assert result.trace is not None
    rows = list(result.trace)
    done = [row for row in rows if row["outcome"] == "done"]
    assert sorted(row["unit"] for row in done) == sorted(unit.id for unit in scenario.units)
    assert sum(row["outcome"] == "lost" for row in rows) == result.n_lost
    check_slots(rows, scenario)
    check_order(done, scenario)
    nbytes = [sum(row[f"{where}_nbytes"] for row in done) for where in ("local", "near", "far")]
    assert all(got >= told for got, told in zip(result.nbytes, nbytes, strict=True))
    sizes = {data.id: data.nbytes for data in scenario.data}
    writers = defaultdict(int)
    for unit in scenario.units:
        for du in unit.outputs:
            writers[du] += 1
    for unit in scenario.units:
        row = next(row for row in done if row["unit"] == unit.id)
        moved = row["local_nbytes"] + row["near_nbytes"] + row["far_nbytes"]
        assert moved == sum(sizes[du] for du in unit.inputs) + sum(sizes[du] // writers[du] for du in unit.outputs)
    assert result.makespan_s == max(row["ended_s"] for row in done)
    waits = sum(result.waits_s) + sum(row["ended_s"] - row["started_s"] for row in done) / len(done)
    assert abs(waits - result.flow_s) < 1e-6 * max(1.0, result.flow_s)


def check_slots(rows: list[dict[str, Any]], scenario: Scenario) -> None:
    pilots = {pilot.id: pilot for pilot in scenario.pilots}
    units = {unit.id: unit for unit in scenario.units}
    changes = defaultdict(list)
    for row in rows:
        if row["slot_s"] is None:
            continue
        pilot, unit = pilots[row["pilot"]], units[row["unit"]]
        assert unit.may_run_on(pilot)
        assert pilot.arrives_s <= row["slot_s"] <= row["ended_s"] <= (pilot.gone_s or row["ended_s"])
        changes[pilot.id, None] += [(row["slot_s"], unit.slots), (row["ended_s"], -unit.slots)]
        if row["worker"] is not None and unit.slots == 1:
            changes[pilot.id, row["worker"]] += [(row["slot_s"], 1), (row["ended_s"], -1)]
    for (pilot_id, worker), moments in changes.items():
        pilot = pilots[pilot_id]
        limit = pilot.slots if worker is None else pilot.slots_per_worker
        taken = 0
        for _, change in sorted(moments):  # at one moment, what is given back comes first
            taken += change
            assert taken <= limit


def check_order(done: list[dict[str, Any]], scenario: Scenario) -> None:
    ended = {row["unit"]: row["ended_s"] for row in done}
    writers = defaultdict(list)
    speed = {pilot.id: pilot.speed for pilot in scenario.pilots}
    for unit in scenario.units:
        for du in unit.outputs:
            writers[du].append(unit.id)
    units = {unit.id: unit for unit in scenario.units}
    for row in done:
        unit = units[row["unit"]]
        moments = [row[f"{name}_s"] for name in ("submitted", "ready", "bound", "slot", "started", "ran", "ended")]
        assert moments == sorted(moments)
        assert abs(row["ran_s"] - row["started_s"] - unit.run_s / speed[row["pilot"]]) < 1e-6 * max(1, row["ended_s"])
        for du in unit.inputs:
            assert all(ended[writer] <= row["ready_s"] for writer in writers[du])


#: Each workload, small.
SMALL: dict[str, Callable[[], dict[str, Any]]] = {
    "uniform": lambda: {},
    "zipf": lambda: {},
    "pairs": lambda: {},
    "nocompute": lambda: {},
    "hotspot": lambda: {},
    "bag-of-tasks": lambda: {"n_units": 200},
    "map-reduce": lambda: {"n_maps": 20, "n_reduces": 3},
    "broadcast": lambda: {"n_units": 300, "n_machines": 5},
    "grid": lambda: {"n_pilots": 6, "n_units": 300, "n_data": 40, "n_datacenters": 3},
}
