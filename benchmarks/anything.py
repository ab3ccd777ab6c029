"""Random worlds in simulated time: how much longer dpilot takes than the best of several policies, and when.

``python -m benchmarks.anything`` draws pilots that come late, are lost or end, with and without machine labels, stores,
data units, links and units, runs each policy, and divides each makespan by the least of that world. What a policy takes
for granted (that pilots are there, links are known, units are alike) is not so in most of them. With ``--demanding``
units also ask for slots, labels, pilots and priorities, and read what others write. It tells the worst seeds, for a
closer look.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import click

from dpilot.errors import PilotError, PlacementError
from dpilot.monitor.tables import text_table
from dpilot.placement import Distance
from dpilot.simulator import Data, Link, Pilot, Scenario, Store, Unit, Uplink, simulate

__all__ = ["demanding", "measure", "world"]

MB = 10**6
POLICIES = ("dpilot", "most-bytes", "delay", "random", "round-robin")
SITES = ("eu", "us", "ap", "lab")


def world(seed: int) -> Scenario:
    """A random scenario; all that is drawn is drawn from the seed.

    Raises
    ------
    PilotError
        If no pilot could run one of its units.
    """
    draw = random.Random(seed)
    sites = SITES[: draw.randint(1, 4)]
    is_labelled = draw.random() < 0.8
    pilots = [Pilot("always", 4, sites[0], f"{sites[0]}-1" if is_labelled else None)]
    for site in sites:
        for number in range(draw.choice([0, 1, 1, 1, 2])):
            machine = f"{site}-{draw.choice([1, 1, 2])}" if is_labelled else None
            pilots.append(_pilot(draw, f"{site}-{number}", site, machine))
    stores = tuple(Store(f"at-{site}", site, f"{site}-1" if draw.random() < 0.5 else None) for site in sites)
    mean_s, mean_nbytes = draw.choice([0.01, 0.2, 1, 5, 30]), draw.choice([0.1, 1, 4, 50, 500]) * MB
    n_data, is_skewed = draw.choice([1, 2, 6, 24, 60]), draw.random() < 0.4
    data = []
    for number in range(n_data):
        homes = [stores[0] if is_skewed and draw.random() < 0.8 else draw.choice(stores)]
        if draw.random() < 0.1:
            homes.append(draw.choice(stores))
        nbytes, n_files = int(mean_nbytes * draw.choice([0.5, 1, 1, 2])), draw.choice([1, 1, 1, 20])
        data.append(Data(f"du-{number}", nbytes, n_files, tuple(dict.fromkeys(home.id for home in homes))))
    n_inputs, n_kinds, varies = draw.choice([0, 1, 1, 1, 2, 2, 3]), draw.choice([1, 1, 2]), draw.random() < 0.3
    units = []
    for number in range(draw.choice([3, 10, 40, 120, 300])):
        read = [
            min(int(draw.paretovariate(1.2)) - 1, n_data - 1) if is_skewed else draw.randrange(n_data)
            for _ in range(n_inputs)
        ]
        kind = draw.randrange(n_kinds)
        run_s = mean_s * (4 if kind else 1) * (draw.choice([0.5, 1, 1, 3]) if varies else 1)
        submitted_s = draw.random() * mean_s * 4 if draw.random() < 0.2 else 0.0
        inputs = tuple(dict.fromkeys(f"du-{which}" for which in read))
        units.append(Unit(f"cu-{number}", run_s, inputs, kind=f"kind-{kind}", submitted_s=submitted_s))
    stores, all_data, all_units = _outputs(random.Random(f"outputs of {seed}"), stores, data, units, mean_nbytes)
    bytes_per_s, latency_s = draw.choice([1.25, 12.5, 12.5, 125, 1250]) * MB, draw.choice([0.0005, 0.02, 0.08])
    links = (
        Link(bytes_per_s, latency_s, distance=Distance.OTHER_DATACENTER),
        Link(1250 * MB, 0.0005, distance=Distance.SAME_DATACENTER),
    )
    uplinks = tuple(Uplink(site, bytes_per_s, bytes_per_s) for site in sites) if draw.random() < 0.6 else ()
    return Scenario(tuple(pilots), all_units, stores, all_data, links, uplinks, name=f"world {seed}", seed=seed)


def _outputs(
    draw: random.Random,
    stores: tuple[Store, ...],
    data: Sequence[Data],
    units: Sequence[Unit],
    mean_nbytes: float,
) -> tuple[tuple[Store, ...], tuple[Data, ...], tuple[Unit, ...]]:
    """In some worlds units write, to the stores that have what is read; others are not there then."""
    if draw.random() >= 0.3:
        return stores, tuple(data), tuple(units)
    written = tuple(Data(f"out-{unit.id}", int(mean_nbytes * draw.choice([0.1, 0.5, 1]))) for unit in units)
    writers = tuple(replace(unit, outputs=(one.id,)) for unit, one in zip(units, written, strict=True))
    return _holding(stores, data), (*data, *written), writers


def _holding(stores: Iterable[Store], data: Iterable[Data]) -> tuple[Store, ...]:
    used = {home for one in data for home in one.replicas}
    return tuple(store for store in stores if store.id in used)


def demanding(seed: int) -> Scenario:
    """A world whose units may need several slots, a site or a pilot, come by priority, and read what others write.

    Raises
    ------
    PilotError
        If no pilot could run one of its units.
    """
    scenario, draw = world(seed), random.Random(f"demands of {seed}")
    units = list(scenario.units)
    if draw.random() < 0.4:
        slots, part = draw.choice([2, 2, 4, 8]), draw.choice([0.05, 0.2, 0.5, 1])
        units = [replace(unit, slots=slots) if draw.random() < part else unit for unit in units]
    if draw.random() < 0.3:
        sites, part = [pilot.datacenter for pilot in scenario.pilots], draw.choice([0.1, 0.5, 1])
        units = [_at(unit, draw.choice(sites)) if draw.random() < part else unit for unit in units]
    if draw.random() < 0.2:
        units = [replace(unit, priority=draw.choice([0.0, 0.0, 1.0, 5.0])) for unit in units]
    if draw.random() < 0.15:
        part = draw.choice([0.1, 0.5])
        units = [replace(u, pilot=draw.choice(scenario.pilots).id) if draw.random() < part else u for u in units]
    return _flow(draw, replace(scenario, units=tuple(units), name=f"demanding world {seed}"))


def _at(unit: Unit, datacenter: str | None) -> Unit:
    return replace(unit, datacenter=datacenter, affinity="require")


def _flow(draw: random.Random, scenario: Scenario) -> Scenario:
    """In most worlds each unit writes a data unit, and some read those of others before them."""
    width, depth = draw.choice([2, 4, 8, 40]), draw.choice(["none", "chains", "reduce", "fan", "stages", "stages"])
    if depth == "none" or any(unit.outputs for unit in scenario.units):
        return scenario
    mean_nbytes = draw.choice([0.1, 1, 20, 200]) * MB
    written = [Data(f"out-{unit.id}", int(mean_nbytes * draw.choice([0.2, 1, 1, 3]))) for unit in scenario.units]
    units = []
    for number, (unit, output) in enumerate(zip(scenario.units, written, strict=True)):
        begin = number - number % width  # of the group that it belongs to
        if depth == "chains":
            read = written[number - 1 : number] if number > begin else []
        elif depth == "reduce":
            read = written[begin:number] if number == begin + width - 1 else []
        elif depth == "fan":
            read = written[begin : begin + 1] if number > begin else []
        else:
            before = written[max(0, begin - width) : begin]
            read = draw.sample(before, min(2, len(before)))
        inputs = (*unit.inputs, *(data.id for data in read))
        units.append(replace(unit, inputs=inputs, outputs=(output.id,)))
    stores = _holding(scenario.stores, scenario.data)
    return replace(scenario, stores=stores, data=(*scenario.data, *written), units=tuple(units))


def _pilot(draw: random.Random, id: str, site: str, machine: str | None) -> Pilot:
    """One that may come late, with or without being announced, be lost, end, be far away, or be fast or slow."""
    arrives_s = draw.choice([1.0, 5.0, 20.0]) if draw.random() < 0.35 else 0.0
    is_announced = draw.random() < 0.6
    ends, lasts_s = draw.random(), draw.choice([3.0, 10.0, 40.0])
    return Pilot(
        id,
        draw.choice([1, 2, 4, 8, 16]),
        site,
        machine,
        submitted_s=0.0 if arrives_s and is_announced else None,
        arrives_s=arrives_s,
        ends_s=arrives_s + lasts_s if ends < 0.12 else None,
        walltime_s=10 * lasts_s if ends > 0.9 else None,
        delay_s=draw.choice([0, 0, 0.02, 0.1]),
        speed=draw.choice([0.5, 2.0]) if draw.random() < 0.2 else 1.0,
    )


def measure(seeds: Iterable[int], draw: Callable[[int], Scenario] = world) -> dict[str, dict[int, float]]:
    """Run all policies.

    Parameters
    ----------
    seeds : iterable of int
    draw : function
        :func:`world` or :func:`demanding`.

    Returns
    -------
    dict
        By policy and seed: its makespan over the least of all policies; infinite if it has left units that lost their
        only pilot. Worlds in which all of them do are left out.
    """
    found: dict[str, dict[int, float]] = {policy: {} for policy in POLICIES}
    for seed in seeds:
        try:
            scenario = draw(seed)
        except PilotError:
            continue  # nobody could run it
        makespans_s = {policy: _makespan_s(scenario, policy) for policy in POLICIES}
        for policy, makespan_s in makespans_s.items():
            if min(makespans_s.values()) < inf:
                found[policy][seed] = makespan_s / min(makespans_s.values())
    return found


def _makespan_s(scenario: Scenario, policy: str) -> float:
    try:
        return simulate(scenario, policy, trace=False).makespan_s
    except PlacementError:
        return inf


@click.command()
@click.option("--worlds", default=600, show_default=True, help="How many random worlds.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--demanding", "is_demanding", is_flag=True, help="Worlds whose units ask for more.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(worlds: int, first: int, is_demanding: bool, as_json: bool) -> None:
    """Compare policies in random worlds."""
    found = measure(range(first, first + worlds), demanding if is_demanding else world)
    if as_json:
        print(json.dumps(found))
        return
    rows: list[list[Any]] = []
    for policy, ratios in found.items():
        near = sum(ratio <= 1.15 for ratio in ratios.values()) / len(ratios)
        ordered = sorted(ratio for ratio in ratios.values() if ratio < inf)
        row = [statistics.fmean(ordered), statistics.median(ordered), ordered[len(ordered) * 95 // 100], ordered[-1]]
        rows.append([policy, *(f"{ratio:.2f}" for ratio in row), f"{near:.0%}"])
    print(f"Makespan over the least of these policies, in {len(found['dpilot'])} random worlds.\n")
    print(text_table(["policy", "mean", "median", "95 %", "worst", "within 1.15"], rows))
    worst = sorted(found["dpilot"], key=lambda seed: -found["dpilot"][seed])[:10]
    print("\ndpilot's worst: " + ", ".join(f"seed {seed} {found['dpilot'][seed]:.2f}" for seed in worst))


if __name__ == "__main__":
    main()
