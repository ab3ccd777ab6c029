"""How long transfers take: cases of which the answer is known."""

import pytest

from dpilot.placement import Distance
from dpilot.simulator import Data, Link, Pilot, Scenario, Store, Unit, Uplink, simulate

EU, US = {"datacenter": "eu", "machine": "e"}, {"datacenter": "us", "machine": "u"}
MB = 10**6


def scenario(n=1, *, slots=10, sizes=(100,), run_s=1.0, **more):
    """`n` units in us, each with its own data unit in eu."""
    data = tuple(Data(f"du-{i}", sizes[i % len(sizes)] * MB, replicas=("store",)) for i in range(n))
    return Scenario(
        pilots=(Pilot("pilot", slots, **US),),
        stores=(Store("store", **EU),),
        data=data,
        units=tuple(Unit(f"cu-{i}", run_s, (data[i].id,)) for i in range(n)),
        **{"links": (Link(10 * MB, 0.5, between=("eu", "us")),), **more},
    )


def ends(scenario, policy="random"):
    return {row["unit"]: row["ended_s"] for row in simulate(scenario, policy).trace}


def test_one_transfer_takes_latency_and_bytes_over_bandwidth():
    assert ends(scenario()) == {"cu-0": pytest.approx(0.5 + 10 + 1)}


def test_two_transfers_share_a_link():
    assert ends(scenario(2)) == {f"cu-{i}": pytest.approx(0.5 + 20 + 1) for i in range(2)}


def test_the_larger_one_has_the_link_for_itself_at_the_end():
    # 2 x 50 MB at 5 MB/s, then the 50 MB that are left at 10 MB/s
    assert ends(scenario(2, sizes=(50, 100))) == {"cu-0": pytest.approx(11.5), "cu-1": pytest.approx(16.5)}


def test_one_slot_makes_them_follow_each_other():
    assert ends(scenario(2, slots=1)) == {"cu-0": pytest.approx(11.5), "cu-1": pytest.approx(23.0)}


def test_a_link_that_turns_slow():
    slow = scenario(links=(Link(10 * MB, 0.5, ("eu", "us")), Link(1 * MB, 0.5, ("eu", "us"), from_s=5.5)))
    assert ends(slow) == {"cu-0": pytest.approx(5.5 + 50 + 1)}


def test_a_link_that_turns_slow_when_it_is_not_used_yet():
    assert ends(scenario(links=(Link(1 * MB, 0.5, ("eu", "us"), from_s=0.1),))) == {"cu-0": pytest.approx(0.1 + 97 + 1)}


def test_all_links_of_a_distance():
    far = Link(20 * MB, 1.0, distance=Distance.OTHER_DATACENTER)
    assert ends(scenario(links=(far,))) == {"cu-0": pytest.approx(1 + 5 + 1)}


@pytest.mark.parametrize("site", ["eu", "us", "e", "u"])
def test_an_uplink_or_downlink_is_a_limit_at_either_end(site):
    assert ends(scenario(uplinks=(Uplink(site, 5 * MB, 5 * MB),))) == {"cu-0": pytest.approx(0.5 + 20 + 1)}


def test_an_uplink_that_turns_slow():
    uplinks = (Uplink("eu", 20 * MB, 20 * MB), Uplink("eu", 1 * MB, 20 * MB, from_s=5.5))
    assert ends(scenario(uplinks=uplinks)) == {"cu-0": pytest.approx(5.5 + 50 + 1)}


def test_the_other_direction_is_another_lane():
    both = scenario(2)
    both = both.replace(
        pilots=(*both.pilots, Pilot("other", 1, **EU)),
        stores=(*both.stores, Store("back", **US)),
        data=(both.data[0], Data("du-1", 100 * MB, replicas=("back",))),
        units=(Unit("cu-0", 1.0, ("du-0",), pilot="pilot"), Unit("cu-1", 1.0, ("du-1",), pilot="other")),
        uplinks=(Uplink("eu", 10 * MB, 10 * MB),),
    )
    assert ends(both) == {f"cu-{i}": pytest.approx(11.5) for i in range(2)}


def test_a_site_that_sends_to_two_shares_its_uplink():
    two = scenario(2)
    two = two.replace(
        pilots=(*two.pilots, Pilot("ap", 1, "ap", "a")),
        units=(Unit("cu-0", 1.0, ("du-0",), pilot="pilot"), Unit("cu-1", 1.0, ("du-1",), pilot="ap")),
        links=(Link(10 * MB, distance=Distance.OTHER_DATACENTER),),
        uplinks=(Uplink("eu", 10 * MB, 10 * MB),),
    )
    assert ends(two) == {f"cu-{i}": pytest.approx(21) for i in range(2)}


def test_one_that_ends_gives_its_part_back_to_the_others():
    # three at 10/3 until 10 MB are over, then two at 5 until 20, then one at 10
    sizes = scenario(3, sizes=(10, 20, 40), run_s=0.0)
    assert ends(sizes) == {"cu-0": pytest.approx(3.5), "cu-1": pytest.approx(5.5), "cu-2": pytest.approx(7.5)}


def test_latency_is_paid_once_for_so_many_files():
    files = scenario(files_at_once=4)
    files = files.replace(data=(Data("du-0", 100 * MB, n_files=9, replicas=("store",)),))
    assert ends(files) == {"cu-0": pytest.approx(3 * 0.5 + 10 + 1)}


def test_no_bytes_take_the_latency():
    empty = scenario()
    assert ends(empty.replace(data=(Data("du-0", 0, replicas=("store",)),))) == {"cu-0": pytest.approx(1.5)}


def test_some_transfers_lag_as_the_lot_has_it():
    lagging = {seed: ends(scenario(seed=seed, lagging=1.0))["cu-0"] for seed in range(20)}
    assert all(0.5 + 3 * 10 + 1 <= end <= 0.5 + 8 * 10 + 1 for end in lagging.values())
    assert len(set(lagging.values())) == 20
    assert lagging[3] == ends(scenario(seed=3, lagging=1.0))["cu-0"]
    some = [ends(scenario(seed=seed, lagging=0.5))["cu-0"] for seed in range(20)]
    assert 0 < some.count(pytest.approx(0.5 + 10 + 1)) < 20
