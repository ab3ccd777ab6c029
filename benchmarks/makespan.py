"""Makespan and bytes of dpilot's placement, in simulated time: beside a bound, a plan, and other policies.

``python -m benchmarks.makespan`` prints a line for each case: the medians, and the worst, over several seeds. ``plan``
is the best that a search with perfect knowledge has found (none for large cases), which needs no messages while all
others do; ``MB`` is what crossed between datacenters.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import click

from dpilot.monitor.tables import text_table
from dpilot.simulator import Link, Pilot, Scenario, Uplink, lower_bound, make_plan, simulate
from dpilot.simulator.workloads import WORKLOADS, broadcast, grid, hotspot, nocompute, pairs, uniform, zipf

__all__ = ["CASES", "Case", "measure"]

#: How long a message takes from the scheduler to a pilot.
DELAY_S = 0.028
#: Policies that dpilot is compared with.
OTHERS = ("labels", "most-bytes", "delay")

Case = Callable[[int], Scenario]


def far_away(scenario: Scenario, delay_s: float = DELAY_S) -> Scenario:
    """The same with messages that take so long each way."""
    return scenario.replace(pilots=tuple(dataclasses.replace(pilot, delay_s=delay_s) for pilot in scenario.pilots))


def _sized(name: str, seed: int, **changes: Any) -> Scenario:
    return WORKLOADS[name](seed=seed, **changes)


def _slots(name: str, seed: int) -> Scenario:
    """Twice as many slots and units."""
    slots = {"nocompute": (4, 0, 4), "hotspot": (1, 4, 5)}.get(name, (4, 4, 4))
    return WORKLOADS[name](seed=seed, n_units=96, slots=slots)


def _slow_link(seed: int, at_s: float = 1.0) -> Scenario:
    base = hotspot(seed=seed)
    return base.replace(links=(*base.links, Link(1e6, 0.08, ("eu", "us"), from_s=at_s)))


def _slow_uplink(seed: int) -> Scenario:
    base = hotspot(seed=seed)
    return base.replace(uplinks=(*base.uplinks, Uplink("eu", 1e6, 1e6, from_s=1.0)))


def _dead_link(seed: int) -> Scenario:
    """What is on its way when its link all but stops would take half a minute more."""
    base = pairs(seed=seed)
    return base.replace(links=(*base.links, Link(1e5, 0.08, ("eu", "us"), from_s=1.0)))


def _lost(seed: int) -> Scenario:
    base = uniform(seed=seed, n_units=96)
    us = dataclasses.replace(base.pilots[1], ends_s=1.0)
    return base.replace(pilots=(base.pilots[0], us, base.pilots[2]))


def _added(seed: int) -> Scenario:
    base = hotspot(seed=seed)
    return base.replace(pilots=(*base.pilots, Pilot("more", 4, "eu", "eu", arrives_s=1.0)))


def _varied(seed: int) -> Scenario:
    """Run times differ by a factor of ten and more."""
    base, draw = hotspot(seed=seed), random.Random(seed)
    units = (dataclasses.replace(unit, run_s=draw.lognormvariate(-2.0, 1.2)) for unit in base.units)
    return base.replace(units=tuple(units))


def _lagging(name: str, seed: int) -> Scenario:
    """One copy in five takes three to eight times as long as its link would have it."""
    return WORKLOADS[name](seed=seed).replace(lagging=0.2)


def _stragglers(name: str, seed: int) -> Scenario:
    """One unit in twenty runs twenty times as long as the others."""
    base, draw = WORKLOADS[name](seed=seed, n_units=96), random.Random(seed)
    slow = set(draw.sample(range(len(base.units)), len(base.units) // 20))
    units = (dataclasses.replace(u, run_s=20 * u.run_s) if n in slow else u for n, u in enumerate(base.units))
    return base.replace(units=tuple(units))


CASES: dict[str, Case] = {
    **{name: partial(_sized, name) for name in ("uniform", "zipf", "pairs", "nocompute", "hotspot")},
    **{f"{name}, small": partial(_sized, name, n_data=12, n_units=24) for name in ("zipf", "pairs", "hotspot")},
    **{f"{name}, 2x": partial(_slots, name) for name in ("uniform", "zipf", "pairs", "nocompute", "hotspot")},
    "zipf, 1 s units": lambda seed: zipf(seed=seed, run_s=1.0),
    "pairs, 16 MiB": lambda seed: pairs(seed=seed, nbytes=16 * 2**20),
    "hotspot, 10 Mbit/s": lambda seed: hotspot(seed=seed, bandwidth=1.25e6),
    "hotspot, 1 Gbit/s": lambda seed: hotspot(seed=seed, bandwidth=1.25e8, latency_s=0.01),
    "link turns slow": _slow_link,
    "uplink turns slow": _slow_uplink,
    "link all but stops": _dead_link,
    "pilot is lost": _lost,
    "pilot is added": _added,
    "workers, no data": lambda seed: uniform(seed=seed, where=(0.5, 0.5, 0.0)),
    "data at one site": lambda seed: uniform(seed=seed, where=(1.0, 0.0, 0.0)),
    "data where no worker is": lambda seed: nocompute(seed=seed, where=(0.0, 1.0, 0.0)),
    "run times vary": _varied,
    "few data units": lambda seed: zipf(seed=seed, n_data=4, n_units=400),
    "2 data units": lambda seed: uniform(seed=seed, n_data=2, n_units=200, where=(1.0, 0.0, 0.0)),
    **{f"{name}, copies lag": partial(_lagging, name) for name in ("zipf", "pairs", "nocompute", "hotspot")},
    **{f"{name}, stragglers": partial(_stragglers, name) for name in ("uniform", "zipf", "hotspot")},
    "tiny units": lambda seed: uniform(seed=seed, run_s=0.005, n_units=400),
    "tiny units, large data": lambda seed: hotspot(seed=seed, run_s=0.005, n_units=200, nbytes=50 * 10**6),
    "one data unit, 20 machines": lambda seed: broadcast(200, 20, nbytes=200 * 10**6, seed=seed),
    "100 machines": lambda seed: grid(100, 2000, n_data=500, nbytes=20 * 10**6, mean_run_s=2.0, seed=seed),
}


def measure(case: Case, seeds: Iterable[int], evaluations: int = 150, others: Iterable[str] = OTHERS) -> dict[str, Any]:
    """Measure one case.

    Parameters
    ----------
    case : function of int
        Gives the scenario of a seed.
    seeds : iterable of int
    evaluations : int
        How many plans to try, for scenarios of up to 100 units.
    others : iterable of str
        Policies to compare with.

    Returns
    -------
    dict
        Medians; ``worst`` is of makespan over plan, or over the bound if there is none.
    """
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        plain = case(seed)
        scenario = far_away(plain)
        own = simulate(scenario, "dpilot")
        compared = [simulate(scenario, name) for name in others]
        bound_s = lower_bound(scenario).makespan_s
        plan = None
        if evaluations and len(plain.units) <= 100:
            plan = make_plan(plain, evaluations=evaluations, begin_with=[own])[1]
        moved = own.far_nbytes + sum(own.wasted_nbytes[1:])
        best = min((result.makespan_s for result in compared), default=None)
        rows.append(
            {
                "seconds": own.makespan_s,
                "bound": own.makespan_s / bound_s,
                "plan": None if plan is None else own.makespan_s / plan.makespan_s,
                "other": None if best is None else own.makespan_s / best,
                "mb": moved / 1e6,
                "plan_mb": None if plan is None else plan.far_nbytes / 1e6,
            }
        )
    found: dict[str, Any] = {name: _median(row[name] for row in rows) for name in rows[0]}
    found["worst"] = max(row["plan"] or row["bound"] for row in rows)
    return found


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


@click.command()
@click.option("--seeds", default=5, show_default=True, help="How many.")
@click.option("--plans", default=150, show_default=True, help="How many plans to try for each seed; 0: none.")
@click.option("--only", multiple=True, help="Cases whose name has this in it.")
@click.option("--others/--no-others", default=True, help="Compare with other policies, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(seeds: int, plans: int, only: tuple[str, ...], others: bool, as_json: bool) -> None:
    """See how good dpilot's placement is, in simulated time."""
    chosen = {name: case for name, case in CASES.items() if not only or any(part in name for part in only)}
    found = {name: measure(case, range(1, seeds + 1), plans, OTHERS if others else ()) for name, case in chosen.items()}
    if as_json:
        print(json.dumps(found))
        return
    columns = ("seconds", "bound", "plan", "worst", "other", "mb", "plan_mb")
    header = ["case", "s", "x bound", "x plan", "worst", "x best other", "MB", "plan's MB"]
    rows = [
        [name, *("" if row[c] is None else f"{row[c]:.0f}" if "mb" in c else f"{row[c]:.2f}" for c in columns)]
        for name, row in found.items()
    ]
    print(text_table(header, rows))


if __name__ == "__main__":
    main()
