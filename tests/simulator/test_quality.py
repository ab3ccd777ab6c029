"""How good the placement is: makespans and bytes beside a bound and a plan, in simulated time, so always the same."""

import dataclasses
import random
from collections import Counter
from statistics import fmean

import pytest

from benchmarks.anything import measure
from dpilot.simulator import Data, Link, Pilot, Scenario, Store, Unit, Uplink, lower_bound, make_plan, simulate
from dpilot.simulator.workloads import WORKLOADS, broadcast, hotspot, nocompute, pairs, uniform

MIB = 2**20


def far_away(scenario: Scenario) -> Scenario:
    """The same with messages that take 28 ms each way."""
    return scenario.replace(pilots=tuple(dataclasses.replace(pilot, delay_s=0.028) for pilot in scenario.pilots))


@pytest.mark.parametrize(
    ("name", "most", "most_mib"),
    [("uniform", 1.15, 0), ("zipf", 1.2, 14), ("pairs", 1.1, 68), ("nocompute", 1.15, 36), ("hotspot", 1.25, 48)],
)
def test_a_workload_takes_little_longer_than_its_plan(name, most, most_mib):
    scenario = far_away(WORKLOADS[name]())
    result = simulate(scenario, "dpilot")
    _, plan = make_plan(scenario, evaluations=100, begin_with=[result])
    assert result.makespan_s <= most * plan.makespan_s
    assert result.far_nbytes + sum(result.wasted_nbytes) <= most_mib * MIB


@pytest.mark.parametrize(("name", "most_mib"), [("zipf", 22), ("pairs", 80)])
@pytest.mark.parametrize(("run_s", "most"), [(0.2, 1.09), (0.5, 1.04), (2.0, 1.02)])
def test_over_fast_links_little_more_is_moved_than_has_to_be(name, most_mib, run_s, most):
    """What is brought for a part of a line, or may be run at several sites, is not taken for one site's work.

    That ways have little to do makes no copy as good as none. Some more is brought for the last units only, of which
    each one too many at a site makes a round more.
    """
    results = [
        simulate(far_away(WORKLOADS[name](seed=seed, run_s=run_s, bandwidth=125e6, latency_s=0.005)), "dpilot")
        for seed in range(8)
    ]
    assert fmean(result.far_nbytes + sum(result.wasted_nbytes) for result in results) <= most_mib * MIB
    assert fmean(result.makespan_s for result in results) <= most * 48 * run_s / 6


def _varied(base, spread, seed):
    """The same with run times that vary around those that it has."""
    draw = random.Random(seed)
    units = (dataclasses.replace(u, run_s=u.run_s * draw.lognormvariate(-(spread**2) / 2, spread)) for u in base.units)
    return base.replace(units=tuple(units))


def test_nothing_crosses_before_anything_is_known_of_run_times():
    assert simulate(far_away(uniform()), "dpilot").far_nbytes == 0


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_each_data_unit_goes_once_from_where_no_worker_is(spread):
    """What else there is stays where it is: a place that has more to do is given less of what is brought."""
    for seed in range(4):
        base = far_away(nocompute(seed=seed))
        there = sum("store-us" in data.replicas for data in base.data)
        assert simulate(_varied(base, spread, seed), "dpilot").far_nbytes == there * 4 * MIB


def test_a_slow_link_of_which_nothing_is_known_is_not_trusted_with_all_slots():
    scenario = hotspot(bandwidth=1.25e6)
    assert simulate(scenario, "dpilot").makespan_s <= 1.2 * lower_bound(scenario).makespan_s


def test_what_waits_for_a_link_that_turned_slow_goes_elsewhere():
    base = hotspot()
    slow = base.replace(uplinks=(*base.uplinks, Uplink("eu", 1e6, 1e6, from_s=1.0)))
    assert simulate(slow, "dpilot").makespan_s < 1.05 * simulate(slow, "labels").makespan_s
    slow = base.replace(links=(*base.links, Link(1e6, 0.08, ("eu", "us"), from_s=1.0)))
    assert simulate(slow, "dpilot").makespan_s < simulate(slow, "labels").makespan_s


def test_what_was_sent_behind_a_unit_that_does_not_end_is_taken_back_and_not_lost():
    base = far_away(uniform(n_units=96))
    units = [dataclasses.replace(unit, run_s=4.0 if n % 20 == 19 else 0.2) for n, unit in enumerate(base.units)]
    result = simulate(base.replace(units=tuple(units)), "dpilot")
    outcomes = Counter(row["outcome"] for row in result.trace)
    assert outcomes["done"] == 96
    assert outcomes["taken back"] > 0
    assert outcomes["lost"] == result.n_lost == 0


@pytest.mark.parametrize(
    ("n_units", "n_data", "mib", "spread", "most_mib"),
    [(144, 24, 4, 0.6, 16), (96, 12, 16, 0.2, 0), (120, 6, 24, 0.3, 0)],
)
def test_where_run_times_vary_slots_do_not_stand_idle_and_hardly_anything_is_moved(
    n_units, n_data, mib, spread, most_mib
):
    """Messages take 56 ms there and back, units 200 ms on average; all have their data beside as many slots."""
    late, moved = [], 0
    for seed in range(6):
        base = far_away(uniform(seed=seed, n_units=n_units, n_data=n_data, nbytes=mib * MIB))
        scenario = _varied(base, spread, seed)
        result = simulate(scenario, "dpilot")
        late.append(result.makespan_s / (sum(unit.run_s for unit in scenario.units) / 6))
        moved += result.far_nbytes
    assert fmean(late) <= 1.2
    assert moved <= 6 * most_mib * MIB


def test_what_comes_from_a_store_nearby_is_brought_while_the_unit_before_runs():
    """Ten units on each slot, of 1 s, each of which has 0.6 s to wait for its data, if it has to."""
    scenario = Scenario(
        pilots=(Pilot("p", 4, "eu", "m", delay_s=0.001),),
        stores=(Store("s", "eu"),),
        data=tuple(Data(f"du-{n}", 75 * MIB, replicas=("s",)) for n in range(40)),
        units=tuple(Unit(f"cu-{n}", 1.0, (f"du-{n}",)) for n in range(40)),
    )
    result = simulate(scenario, "dpilot")
    waited_s = sorted(row["started_s"] - row["slot_s"] for row in result.trace if row["outcome"] == "done")
    assert waited_s[20] < 0.1 < 0.5 < waited_s[-1]
    assert result.makespan_s < 10 * 1.0 + 3 * 0.6


def test_a_pilot_that_is_announced_and_does_not_come_is_not_counted_on():
    base = hotspot()
    late = base.replace(pilots=(*base.pilots, Pilot("late", 8, "eu", "eu", submitted_s=0.0, arrives_s=20.0)))
    assert simulate(late, "dpilot").makespan_s <= 1.5 * simulate(base, "dpilot").makespan_s


def test_what_all_machines_read_spreads_from_one_to_the_next():
    scenario = far_away(broadcast(200, 20, nbytes=200 * 10**6))
    spread, alone = simulate(scenario, "dpilot"), simulate(scenario.replace(peers=False), "dpilot")
    assert spread.far_nbytes <= 2 * 200 * 10**6
    assert spread.makespan_s < alone.makespan_s
    assert spread.makespan_s < 0.5 * simulate(scenario, "labels").makespan_s


def test_what_spreads_takes_longer_as_the_logarithm_of_the_machines():
    few, many = (simulate(broadcast(10 * n, n, nbytes=200 * 10**6), "dpilot").makespan_s for n in (10, 160))
    assert many < 4 * few


def test_what_all_read_besides_data_of_their_own_is_brought_to_one_site_after_the_other():
    """250 MB take 20 s to one site and then to the other: nobody brings 50 MB of his own meanwhile."""
    sites = ("eu", "us", "ap")
    scenario = Scenario(
        tuple(Pilot(site, 4, site, f"{site}-1") for site in sites),
        tuple(Unit(f"cu-{n}", 0.2, ("all", f"du-{n}")) for n in range(48)),
        tuple(Store(f"at-{site}", site, f"{site}-1") for site in sites),
        (
            Data("all", 250 * 10**6, replicas=("at-eu",)),
            *(Data(f"du-{n}", 50 * 10**6, replicas=(f"at-{sites[n % 3]}",)) for n in range(48)),
        ),
        uplinks=tuple(Uplink(site, 1.25e7, 1.25e7) for site in sites),
    )
    result = simulate(scenario, "dpilot")
    assert result.far_nbytes == 2 * 250 * 10**6
    assert result.makespan_s < 1.1 * 41


def test_units_that_wait_for_a_link_that_all_but_stops_are_taken_back():
    base = pairs()
    dead = far_away(base.replace(links=(*base.links, Link(1e5, 0.08, ("eu", "us"), from_s=1.0))))
    result = simulate(dead, "dpilot")
    assert result.makespan_s < simulate(far_away(base), "dpilot").makespan_s + 4 * 4e6 / 1e5 / 10
    assert result.makespan_s < 0.5 * simulate(dead, "delay").makespan_s


def test_in_random_worlds_it_is_hardly_ever_much_later_than_the_best_of_simple_policies():
    """Pilots that come late, are lost or end, links of which nothing is known: nothing that a case was made for."""
    found = measure(range(120))
    mean = {policy: fmean(ratios.values()) for policy, ratios in found.items()}
    assert mean["dpilot"] < 1.15
    assert all(mean["dpilot"] < other for policy, other in mean.items() if policy != "dpilot")
    assert max(found["dpilot"].values()) < 4
