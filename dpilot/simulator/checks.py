"""What a scenario must be before it is run: every refusal names the object, the field, the value and the fix."""

from __future__ import annotations

import math
from collections import Counter

from dpilot.errors import DescriptionError, PlacementError
from dpilot.simulator.scenario import Data, Link, Pilot, Scenario, Unit

__all__ = ["check"]


def _refuse(what: object, field: str, value: object, text: str) -> DescriptionError:
    return DescriptionError(f"{what}: {field} {value!r} {text}", field=field, value=value)


def check(scenario: Scenario) -> None:
    """Refuse a scenario that cannot be run.

    Raises
    ------
    DescriptionError
        It names the object, the field, its value and what to write instead.
    PlacementError
        If a unit can run on none of the pilots.
    """
    if not scenario.pilots:
        raise _refuse(scenario.name, "pilots", (), "is empty; without a pilot nothing runs: add one")
    if not scenario.units:
        raise _refuse(scenario.name, "units", (), "is empty; there is nothing to run: add one")
    for what in ("pilots", "stores", "data", "units"):
        if repeated := [id for id, n in Counter(it.id for it in getattr(scenario, what)).items() if n > 1]:
            raise _refuse(scenario.name, what, repeated[0], "is there twice; ids are unique")
    for name in ("cache_nbytes", "files_at_once"):
        _least(scenario.name, name, getattr(scenario, name), name == "files_at_once")
    if not 0 <= scenario.lagging <= 1:
        raise _refuse(scenario.name, "lagging", scenario.lagging, "is no part; write a number from 0 to 1")
    for pilot in scenario.pilots:
        _check_pilot(pilot)
    for data in scenario.data:
        _check_data(data, scenario)
    for link in scenario.links:
        _check_link(link)
    for uplink in scenario.uplinks:
        for name in ("up_bytes_per_s", "down_bytes_per_s"):
            _positive(f"uplink of {uplink.site}", name, getattr(uplink, name))
        _seconds(f"uplink of {uplink.site}", "from_s", uplink.from_s)
    _check_units(scenario)


def _check_pilot(pilot: Pilot) -> None:
    name = f"pilot {pilot.id}"
    _least(name, "slots", pilot.slots, 1)
    if pilot.workers is not None:
        _least(name, "workers", pilot.workers, 1)
        if pilot.slots % pilot.workers:
            raise _refuse(name, "workers", pilot.workers, f"do not share {pilot.slots} slots evenly; write a divisor")
    for field in ("arrives_s", "delay_s", "known_s"):
        _seconds(name, field.replace("known_s", "submitted_s"), getattr(pilot, field))
    _positive(name, "speed", pilot.speed)
    if pilot.known_s > pilot.arrives_s:
        raise _refuse(name, "submitted_s", pilot.submitted_s, f"is after arrives_s, {pilot.arrives_s}; write less")
    if pilot.walltime_s is not None:
        _positive(name, "walltime_s", pilot.walltime_s)
    if pilot.ends_s is not None and not pilot.arrives_s < pilot.ends_s < math.inf:
        raise _refuse(name, "ends_s", pilot.ends_s, f"is not after arrives_s, {pilot.arrives_s}; write more")


def _check_data(data: Data, scenario: Scenario) -> None:
    name = f"data {data.id}"
    _least(name, "nbytes", data.nbytes, 0)
    _least(name, "n_files", data.n_files, 1)
    for store in data.replicas:
        if store not in scenario.store_of:
            raise _refuse(name, "replicas", store, "is no store; add it to stores, or correct its name")


def _check_link(link: Link) -> None:
    name = f"link between {' and '.join(link.between)}" if link.between else f"link of {link.distance!r}"
    if (link.between is None) == (link.distance is None):
        raise _refuse(name, "between", link.between, "and distance are two ways to say where it is; write one of them")
    _positive(name, "bandwidth_bytes_per_s", link.bandwidth_bytes_per_s)
    _seconds(name, "latency_s", link.latency_s)
    _seconds(name, "from_s", link.from_s)


def _check_units(scenario: Scenario) -> None:
    written = {du for unit in scenario.units for du in unit.outputs}
    readable = {data.id for data in scenario.data if data.replicas} | written
    known = {data.id for data in scenario.data}
    runs_on: dict[tuple[object, ...], bool] = {}
    if written and not scenario.stores:
        raise _refuse(scenario.name, "stores", (), "is empty, but units write data units; add a store for them")
    for unit in scenario.units:
        name = f"unit {unit.id}"
        _seconds(name, "run_s", unit.run_s)
        _seconds(name, "submitted_s", unit.submitted_s)
        _least(name, "slots", unit.slots, 1)
        if not math.isfinite(unit.priority):
            raise _refuse(name, "priority", unit.priority, "is not finite; write a number")
        for field, ids in (("inputs", unit.inputs), ("outputs", unit.outputs)):
            for du in ids:
                if du not in known:
                    raise _refuse(name, field, du, "is no data unit; add it to data, or correct its name")
        for du in unit.inputs:
            if du not in readable:
                raise _refuse(name, "inputs", du, "has no replica, and no unit writes it; give it replicas")
            if du in unit.outputs:
                raise _refuse(name, "inputs", du, "is one of its outputs; it would wait for itself")
        if unit.affinity not in ("prefer", "require"):
            raise _refuse(name, "affinity", unit.affinity, "is unknown; write 'prefer' or 'require'")
        asks = (unit.slots, unit.pilot, unit.affinity, unit.datacenter, unit.machine)
        if asks not in runs_on:
            runs_on[asks] = any(unit.may_run_on(pilot) for pilot in scenario.pilots)
        if not runs_on[asks]:
            raise PlacementError(
                f"unit {unit.id} can run on none of the pilots: it asks for {unit.slots} slots, "
                f"labels {unit.site} ({unit.affinity})" + (f" and the pilot {unit.pilot}" if unit.pilot else "")
            )
    _check_flow(scenario)


def _check_flow(scenario: Scenario) -> None:
    """Refuse units that wait for each other in a circle."""
    missing: dict[str, int] = {}
    writers: Counter[str] = Counter(du for unit in scenario.units for du in unit.outputs)
    if not writers:
        return
    readers: dict[str, list[Unit]] = {}
    for unit in scenario.units:
        missing[unit.id] = sum(du in writers for du in unit.inputs)
        for du in unit.inputs:
            readers.setdefault(du, []).append(unit)
    able = [unit for unit in scenario.units if not missing[unit.id]]
    for unit in able:  # grows
        for du in unit.outputs:
            writers[du] -= 1
            for reader in readers.get(du, ()) if not writers[du] else ():
                missing[reader.id] -= 1
                if not missing[reader.id]:
                    able.append(reader)
    if len(able) < len(scenario.units):
        stuck = next(id for id, n in missing.items() if n)
        raise _refuse(f"unit {stuck}", "inputs", stuck, "waits, in a circle, for its own outputs; break the circle")


def _least(what: str, field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _refuse(what, field, value, f"is no whole number of at least {int(least)}; write one")


def _positive(what: str, field: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise _refuse(what, field, value, "is not a positive finite number; write one")


def _seconds(what: str, field: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise _refuse(what, field, value, "is not a number of seconds from 0 on; write one")
