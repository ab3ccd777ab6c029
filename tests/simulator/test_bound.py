"""What no policy can beat: cases of which the least makespan is known."""

import pytest

from dpilot.placement import Distance
from dpilot.simulator import Bound, Data, Link, Pilot, Scenario, Store, Unit, Uplink, compare, lower_bound, workloads

MB = 10**6
SITES = ("eu", "us")


def approx(makespan_s, reason):
    return Bound(pytest.approx(makespan_s, rel=1e-5), reason)


def bag(n, *pilots, run_s=1.0):
    return Scenario(pilots, tuple(Unit(f"cu-{i}", run_s) for i in range(n)))


@pytest.mark.parametrize(
    ("scenario", "bound"),
    [
        (bag(1, Pilot("p", 4)), approx(1, "unit")),
        (bag(8, Pilot("p", 4)), approx(2, "slots")),
        (bag(9, Pilot("p", 4)), approx(3, "slots")),
        (bag(9, Pilot("p", 4, speed=2.0)), approx(1.5, "slots")),
        (bag(4, Pilot("p", 4, arrives_s=10.0)), approx(11, "unit")),
        (bag(100, Pilot("p", 1), Pilot("q", 9, arrives_s=10.0)), approx(19, "slots")),
        (bag(100, Pilot("p", 1), Pilot("q", 9, ends_s=10.0)), approx(10, "slots")),
    ],
)
def test_slots(scenario, bound):
    assert lower_bound(scenario) == bound


def two_sites(units, data, *, slots=(1, 1), mbit=80):
    """Data lies in eu; whatever leaves it goes at 10 MB/s."""
    return Scenario(
        pilots=tuple(Pilot(site, n, site, site) for site, n in zip(SITES, slots, strict=True) if n),
        units=units,
        stores=tuple(Store(site, site, site) for site in SITES),
        data=data,
        links=(Link(1000 * MB, distance=Distance.OTHER_DATACENTER),),
        uplinks=(Uplink("eu", mbit * MB / 8, mbit * MB / 8),),
    )


def test_what_has_to_leave_a_site_without_slots():
    data = tuple(Data(f"d-{i}", 50 * MB, replicas=("eu",)) for i in range(4))
    units = tuple(Unit(f"cu-{i}", 1.0, (f"d-{i}",)) for i in range(4))
    assert lower_bound(two_sites(units, data, slots=(0, 4))) == approx(20 + 1, "links")


def test_work_for_which_a_site_has_too_few_slots_leaves_with_its_data():
    # 40 s of work: what T - 20 s... each second of work that leaves takes 10 MB, one second of the link
    data = tuple(Data(f"d-{i}", 10 * MB, replicas=("eu",)) for i in range(40))
    units = tuple(Unit(f"cu-{i}", 1.0, (f"d-{i}",)) for i in range(40))
    bound = lower_bound(two_sites(units, data, slots=(1, 100)))
    assert bound == approx(20.5, "links")  # T of work stays, T - 1 s of link take the rest away


def test_inputs_of_two_sites_must_meet():
    data = (Data("a", 100 * MB, replicas=("eu",)), Data("b", 200 * MB, replicas=("us",)))
    scenario = two_sites(tuple(Unit(f"cu-{i}", 1.0, ("a", "b")) for i in range(2)), data, slots=(2, 2))
    assert lower_bound(scenario).makespan_s >= 10


def test_a_chain_of_units():
    units = (Unit("first", 1.0, (), ("mid",)), Unit("second", 2.0, ("mid",), ("end",)), Unit("third", 3.0, ("end",)))
    data = (Data("mid", 0), Data("end", 0))
    assert lower_bound(two_sites(units, data)).makespan_s == pytest.approx(6, abs=0.01)


def test_a_comparison_tells_regret():
    comparison = compare(workloads.nocompute(n_data=6, n_units=12), ["random", "dpilot"], evaluations=50)
    assert [result.policy for result in comparison.results] == ["random", "dpilot"]
    assert comparison.best_s >= comparison.bound.makespan_s
    by_bound, by_best = comparison.regret("dpilot")
    assert by_bound >= by_best >= 1
    assert compare(workloads.uniform(), ["random"], evaluations=0).regret("random")[1] is None
