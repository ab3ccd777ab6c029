"""Every policy on every workload: what must be true of any run, and how they compare."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpilot.simulator import (
    POLICIES,
    WORKLOADS,
    Data,
    Delay,
    Link,
    Pilot,
    Scenario,
    Store,
    Unit,
    Uplink,
    lower_bound,
    make_plan,
    simulate,
)
from tests.simulator.helpers import SMALL, check


def small(name):
    return WORKLOADS[name](**SMALL[name]())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_policy_runs_every_workload(workload, policy):
    scenario = small(workload)
    result = simulate(scenario, policy)
    check(result, scenario)
    assert result.makespan_s >= lower_bound(scenario).makespan_s * (1 - 1e-6)
    again = simulate(small(workload), policy)
    assert again == result
    assert list(again.trace) == list(result.trace)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workload", ["hotspot", "pairs"])
def test_every_policy_stands_pilots_that_come_and_go_and_a_link_that_turns_slow(workload, policy):
    base = small(workload)
    pilots = (
        base.pilots[0],
        Pilot("pilot-us", 2, "us", "us", ends_s=1.0),
        Pilot("late", 3, "ap", "ap", submitted_s=0.2, arrives_s=0.7, delay_s=0.02),
        Pilot("short", 2, "ap", "elsewhere", walltime_s=2.0),
    )
    scenario = base.replace(pilots=pilots, links=(*base.links, Link(1e6, 0.2, ("eu", "ap"), from_s=1.2)))
    result = simulate(scenario, policy)
    check(result, scenario)
    assert result.makespan_s >= lower_bound(scenario).makespan_s * (1 - 1e-6)


def test_another_seed_is_another_run():
    scenario = small("hotspot")
    assert simulate(scenario, "random", seed=1) != simulate(scenario, "random", seed=2)


def test_an_expert_s_labels_move_nothing_where_nothing_need_move():
    result = simulate(small("uniform"), "labels")
    assert result.far_nbytes == 0


def test_most_bytes_follows_the_bytes():
    pilots = (Pilot("a", 1, "eu", "a"), Pilot("b", 1, "eu", "b"))
    stores = (Store("a", "eu", "a"), Store("b", "eu", "b"))
    data = (Data("small", 10, replicas=("a",)), Data("large", 1000, replicas=("b",)))
    scenario = Scenario(pilots, (Unit("cu", 1.0, ("small", "large")),), stores, data)
    assert [row["pilot"] for row in simulate(scenario, "most-bytes").trace] == ["b"]


@pytest.mark.parametrize(("wait_s", "far"), [(0.0, True), (0.4, True), (100.0, False)])
def test_delay_waits_as_long_as_it_is_told(wait_s, far):
    """Two slots, of which one has the data: ten units of 1 s."""
    scenario = Scenario(
        pilots=(Pilot("here", 1, "eu", "e"), Pilot("there", 1, "us", "u")),
        stores=(Store("s", "eu", "e"),),
        data=(Data("du", 0, replicas=("s",)),),
        units=tuple(Unit(f"cu-{i}", 1.0, ("du",), kind="k") for i in range(10)),
        links=(Link(1e9, 0.0, ("e", "e")), Link(1e9, 0.0, ("eu", "us"))),
    )
    result = simulate(scenario, Delay(wait_s))
    check(result, scenario)
    there = sum(row["pilot"] == "there" for row in result.trace)
    assert (there > 0) == far


def test_a_plan_is_no_worse_than_what_it_begins_with():
    scenario = small("hotspot")
    begin = [simulate(scenario, "dpilot")]
    _, result = make_plan(scenario, evaluations=60, begin_with=begin)
    assert lower_bound(scenario).makespan_s <= result.makespan_s <= begin[0].makespan_s * 1.2
    assert make_plan(scenario, evaluations=60, begin_with=begin)[1] == result


SITES = [("eu", "e1"), ("eu", "e2"), ("us", "u"), ("ap", None), (None, None)]


@st.composite
def scenarios(draw):
    times = st.sampled_from([0.0, 0.1, 1.0, 3.7])
    site = st.sampled_from(SITES)
    pilots = [Pilot("stays", 3, *draw(site))]  # wide enough for all, and never gone
    for i in range(draw(st.integers(0, 3))):
        begin, known = draw(times), draw(st.booleans())
        pilots.append(
            Pilot(
                f"p-{i}",
                slots := draw(st.integers(1, 4)),
                *draw(site),
                workers=draw(st.sampled_from([None, 1, slots])),
                submitted_s=0.0 if known else None,
                arrives_s=begin,
                ends_s=draw(st.sampled_from([None, begin + 0.5, begin + 4])),
                delay_s=draw(st.sampled_from([0.0, 0.05])),
                speed=draw(st.sampled_from([1.0, 0.5, 3.0])),
            )
        )
    stores = [Store(f"s-{i}", *draw(site)) for i in range(draw(st.integers(1, 3)))]
    ids = [store.id for store in stores]
    homes = st.sets(st.sampled_from(ids), min_size=1).map(sorted)
    sizes, files = st.sampled_from([0, 10, 10**6, 10**8]), st.integers(1, 20)
    data = [Data(f"du-{i}", draw(sizes), draw(files), tuple(draw(homes))) for i in range(draw(st.integers(1, 4)))]
    written = [Data(f"out-{i}", 10**6) for i in range(draw(st.integers(0, 2)))]
    units = []
    for i in range(draw(st.integers(1, 12))):
        second = draw(st.booleans()) and bool(written)
        readable = [du.id for du in data]
        units.append(
            Unit(
                f"cu-{i}",
                draw(times),
                tuple(draw(st.lists(st.sampled_from(readable), max_size=3))),
                tuple(draw(st.sets(st.sampled_from([du.id for du in written]), max_size=2).map(sorted)))
                if second
                else (),
                slots=draw(st.sampled_from([1, 1, 1, 2, 3])),
                kind=draw(st.sampled_from("ab")),
                priority=draw(st.sampled_from([0.0, 1.0])),
                submitted_s=draw(times),
                datacenter=draw(st.sampled_from([None, "us"])),
            )
        )
    links = st.builds(Link, st.sampled_from([1e5, 1e7]), times, st.just(("eu", "us")), from_s=times)
    uplinks = st.builds(Uplink, st.sampled_from(["eu", "u"]), st.just(1e6), st.just(1e7), from_s=times)
    made = {du for unit in units for du in unit.outputs}
    units += [Unit(f"reader-{du}", 0.5, (du,)) for du in sorted(made)]
    return Scenario(
        pilots=tuple(pilots),
        units=tuple(units),
        stores=tuple(stores),
        data=(*data, *written),
        links=tuple(draw(st.lists(links, max_size=2))),
        uplinks=tuple(draw(st.lists(uplinks, max_size=2))),
        cache_nbytes=draw(st.sampled_from([10**10, 10**8, 10**6])),
        peers=draw(st.booleans()),
    )


@settings(max_examples=60)
@given(scenarios(), st.sampled_from(sorted(POLICIES)))
def test_whatever_the_scenario(scenario, policy):
    result = simulate(scenario, policy)
    check(result, scenario)
    assert lower_bound(scenario).makespan_s <= result.makespan_s * (1 + 1e-6) + 1e-6
    assert simulate(scenario, policy, trace=False) == result


@settings(max_examples=15)
@given(scenarios())
def test_whatever_the_plan(scenario):
    _, result = make_plan(scenario, evaluations=12)
    assert lower_bound(scenario).makespan_s <= result.makespan_s * (1 + 1e-6) + 1e-6
