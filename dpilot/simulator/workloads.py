"""Common workloads as scenarios: the same arguments give the same scenario."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from dpilot.simulator.scenario import Data, Link, Pilot, Scenario, Store, Unit, Uplink

__all__ = [
    "WORKLOADS",
    "bag_of_tasks",
    "broadcast",
    "grid",
    "hotspot",
    "map_reduce",
    "nocompute",
    "pairs",
    "uniform",
    "zipf",
]

_SITES = ("eu", "us", "ap")
_MB = 10**6


def _three_sites(
    name: str,
    *,
    n_data: int,
    n_units: int,
    slots: Sequence[int],
    where: Sequence[float],
    nbytes: int,
    run_s: float,
    bandwidth: float,
    latency_s: float,
    seed: int,
    popularity: Sequence[float] | None = None,
    per_unit: int = 1,
) -> Scenario:
    """Three sites, each with a store and an uplink of its own, and with workers or without."""
    draw = random.Random(f"{name}/{seed}")
    quota = [int(part * n_data) for part in where]
    by_rest = sorted(range(len(where)), key=lambda site: quota[site] - where[site] * n_data)
    for site in by_rest[: n_data - sum(quota)]:
        quota[site] += 1
    homes = [_SITES[site] for site, n in enumerate(quota) for _ in range(n)]
    draw.shuffle(homes)
    data = tuple(Data(f"du-{i:03}", nbytes, replicas=(f"store-{home}",)) for i, home in enumerate(homes))
    units = []
    order: list[int] = []
    for i in range(n_units):
        if popularity is not None:
            picked = draw.choices(range(n_data), popularity, k=1)
        else:  # every data unit is read about equally often
            while len(order) < per_unit:
                order += draw.sample(range(n_data), n_data)
            picked, order = order[:per_unit], order[per_unit:]
        units.append(Unit(f"cu-{i:04}", run_s, tuple(data[d].id for d in picked), kind=name))
    return Scenario(
        name=name,
        pilots=tuple(Pilot(f"pilot-{s}", n, s, s) for s, n in zip(_SITES, slots, strict=True) if n),
        stores=tuple(Store(f"store-{s}", s, s) for s in _SITES),
        data=data,
        units=tuple(units),
        links=tuple(
            Link(2 * bandwidth, latency_s, between=pair) for pair in (("eu", "us"), ("eu", "ap"), ("us", "ap"))
        ),
        uplinks=tuple(Uplink(s, bandwidth, bandwidth) for s in _SITES),
        seed=seed,
    )


_DEFAULTS: dict[str, Any] = {
    "n_data": 24,
    "n_units": 48,
    "slots": (2, 2, 2),
    "where": (1 / 3, 1 / 3, 1 / 3),
    "nbytes": 4 * 2**20,
    "run_s": 0.2,
    "bandwidth": 12.5e6,
    "latency_s": 0.08,
    "seed": 1,
}


def uniform(**changes: Any) -> Scenario:
    """Data and slots evenly over three sites, one input each: nothing need cross.

    Parameters
    ----------
    **changes
        Of ``n_data=24``, ``n_units=48``, ``slots=(2, 2, 2)``, ``nbytes=4 MiB``, ``run_s=0.2``,
        ``bandwidth=12.5e6`` (bytes per second, of each site's uplink and downlink), ``latency_s=0.08``
        (connection, request and first byte) and ``seed=1``; as for the next four.
    """
    return _three_sites("uniform", **{**_DEFAULTS, **changes})


def zipf(**changes: Any) -> Scenario:
    """A few data units are read by most units, and most lie at one site."""
    n_data = changes.get("n_data", _DEFAULTS["n_data"])
    total = sum(1 / i**1.2 for i in (1, 2, 3))
    where = [1 / i**1.2 / total for i in (1, 2, 3)]
    return _three_sites(
        "zipf", **{**_DEFAULTS, "where": where, **changes}, popularity=[1 / (i + 1) for i in range(n_data)]
    )


def pairs(**changes: Any) -> Scenario:
    """Each unit reads two data units, often of two sites."""
    return _three_sites("pairs", **{**_DEFAULTS, **changes}, per_unit=2)


def nocompute(**changes: Any) -> Scenario:
    """One site has data and no workers: its data must cross."""
    return _three_sites("nocompute", **{**_DEFAULTS, "slots": (2, 0, 2), **changes})


def hotspot(**changes: Any) -> Scenario:
    """80 % of the data lie at the site that has the fewest slots."""
    return _three_sites("hotspot", **{**_DEFAULTS, "slots": (1, 2, 3), "where": (0.8, 0.1, 0.1), **changes})


def grid(
    n_pilots: int = 10,
    n_units: int = 1000,
    *,
    n_data: int = 0,
    n_datacenters: int = 10,
    slots: int = 10,
    nbytes: int = 100 * _MB,
    mean_run_s: float = 10.0,
    seed: int = 1,
) -> Scenario:
    """Many machines in several datacenters, a store on each; every unit reads one data unit, run times vary.

    Parameters
    ----------
    n_pilots, n_units, n_data, n_datacenters : int
        How many of each; no data unit: nothing is read.
    slots : int
        Of each pilot, one for each of its workers.
    nbytes : int
        Of each data unit.
    mean_run_s : float
        Of an exponential distribution.
    seed : int
    """
    draw = random.Random(f"grid/{seed}")
    sites = [(f"dc-{i % n_datacenters}", f"m-{i}") for i in range(n_pilots)]
    data = tuple(Data(f"du-{i}", nbytes, replicas=(f"store-{draw.randrange(n_pilots)}",)) for i in range(n_data))
    inputs: list[tuple[str, ...]] = [(du.id,) for du in data] or [()]
    return Scenario(
        name="grid",
        pilots=tuple(Pilot(f"pilot-{i}", slots, *site) for i, site in enumerate(sites)),
        stores=tuple(Store(f"store-{i}", *site) for i, site in enumerate(sites)) if n_data else (),
        data=data,
        units=tuple(
            Unit(f"cu-{i}", draw.expovariate(1 / mean_run_s), inputs[i % len(inputs)], kind="work")
            for i in range(n_units)
        ),
        seed=seed,
    )


def bag_of_tasks(n_units: int = 1000, *, slots: int = 8, mean_run_s: float = 1.0, seed: int = 1) -> Scenario:
    """Units that read nothing, over three pilots of which one comes late and one leaves early.

    Parameters
    ----------
    n_units, slots : int
        How many units; slots of each pilot.
    mean_run_s : float
        Of an exponential distribution.
    seed : int
    """
    draw = random.Random(f"bag/{seed}")
    busy_s = n_units * mean_run_s / slots
    return Scenario(
        name="bag-of-tasks",
        pilots=(
            Pilot("stays", slots, "eu", "e"),
            Pilot("comes", slots, "us", "u", submitted_s=0.0, arrives_s=busy_s / 6),
            Pilot("goes", slots, "ap", "a", ends_s=busy_s / 4),
        ),
        units=tuple(Unit(f"cu-{i}", draw.expovariate(1 / mean_run_s), kind="task") for i in range(n_units)),
        seed=seed,
    )


def map_reduce(
    n_maps: int = 60, n_reduces: int = 6, *, nbytes: int = 20 * _MB, run_s: float = 2.0, seed: int = 1
) -> Scenario:
    """Each map reads a data unit of its own and writes one tenth of it; each reduce reads its part of what all wrote.

    Parameters
    ----------
    n_maps, n_reduces : int
    nbytes : int
        What each map reads.
    run_s : float
        How long a map, and a reduce, runs.
    seed : int
    """
    draw = random.Random(f"map-reduce/{seed}")
    parts = [[f"part-{m}-{r}" for r in range(n_reduces)] for m in range(n_maps)]
    maps = [Unit(f"map-{m}", run_s, (f"input-{m}",), tuple(parts[m]), kind="map") for m in range(n_maps)]
    reduces = [Unit(f"reduce-{r}", run_s, tuple(part[r] for part in parts), kind="reduce") for r in range(n_reduces)]
    return Scenario(
        name="map-reduce",
        pilots=tuple(Pilot(f"pilot-{s}", 4, s, s) for s in _SITES),
        stores=tuple(Store(f"store-{s}", s, s) for s in _SITES),
        data=tuple(Data(f"input-{m}", nbytes, replicas=(f"store-{draw.choice(_SITES)}",)) for m in range(n_maps))
        + tuple(Data(part, nbytes // (10 * n_reduces)) for row in parts for part in row),
        units=tuple(maps + reduces),
        seed=seed,
    )


def broadcast(
    n_units: int = 2000, n_machines: int = 20, *, nbytes: int = 1000 * _MB, run_s: float = 1.0, seed: int = 1
) -> Scenario:
    """One data unit, in one store, that every unit reads, on many machines; machines bring it from each other.

    Parameters
    ----------
    n_units, n_machines : int
    nbytes : int
        Of the data unit.
    run_s : float
    seed : int
    """
    sites = [(f"dc-{i % 2}", f"m-{i}") for i in range(n_machines)]
    return Scenario(
        name="broadcast",
        pilots=tuple(Pilot(f"pilot-{i}", 8, *site) for i, site in enumerate(sites)),
        stores=(Store("store", *sites[0]),),
        data=(Data("everybodys", nbytes, replicas=("store",)),),
        units=tuple(Unit(f"cu-{i}", run_s, ("everybodys",), kind="read") for i in range(n_units)),
        uplinks=tuple(Uplink(machine, 1.25e8, 1.25e8) for _, machine in sites),
        seed=seed,
        peers=True,
    )


#: By the names that the command line knows.
WORKLOADS: dict[str, Callable[..., Scenario]] = {
    "uniform": uniform,
    "zipf": zipf,
    "pairs": pairs,
    "nocompute": nocompute,
    "hotspot": hotspot,
    "bag-of-tasks": bag_of_tasks,
    "map-reduce": map_reduce,
    "broadcast": broadcast,
    "grid": grid,
}
