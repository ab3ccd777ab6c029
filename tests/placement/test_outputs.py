"""The outputs' way home: what is learned of it, and what it does to where units go."""

import pytest

from dpilot.placement import Distance, Links, Outputs, Request, Site
from dpilot.simulator import Data, Link, Pilot, Scenario, Store, Unit, Uplink, simulate
from tests.placement.matching import EU, LAB, MB, US, bound, brings_ahead, matcher, reads, submit

HOME = ((Site("eu"),),)


def known(nbytes: int = 100 * MB) -> Outputs:
    """Outputs of a kind that writes so much, over links that carry 50 MB/s."""
    links = Links()
    for site in (US, LAB):
        links.observe(site, EU, 100 * MB, 2.04)
    outputs = Outputs(links)
    outputs.observe("k", nbytes)
    return outputs


def test_over_a_link_that_nobody_knows_it_may_take_longer_where_that_matters():
    outputs, ask = Outputs(Links()), request((EU,))
    outputs.observe("k", 100 * MB)
    assert outputs.cost_s(ask, US) == pytest.approx(2.04)
    assert outputs.cost_s(ask, US, run_s=1.0) == pytest.approx(3 * 2.04)
    outputs.begin("a", ask, US)
    assert outputs.cost_s(ask, US, run_s=1.0) == pytest.approx(3 * 2.04 + 3 * 2.0 - 1.0)


def request(*homes: tuple[Site, ...], kind: str = "k") -> Request:
    return Request("cds", kind, outputs=homes)


def test_before_one_of_a_kind_has_ended_it_writes_hardly_anything():
    outputs = known()
    other = request((EU,), kind="other")
    assert outputs.cost_s(other, US) == pytest.approx(0.04, abs=1e-3)  # a link's latency
    assert outputs.cost_s(other, EU) == 0.0
    assert outputs.sites(other) == (EU,)
    outputs.observe("other", 0)
    assert outputs.cost_s(other, US) == 0.0
    assert outputs.sites(other) == ()
    assert outputs.cost_s(Request("cds", "k"), US) == 0.0
    assert outputs.sites(request((EU,), (LAB, EU))) == (EU, LAB)


def test_what_is_written_takes_as_long_as_its_way_to_the_nearest_store():
    outputs = known()
    assert outputs.cost_s(request((EU,)), US) == pytest.approx(2.04)
    assert outputs.cost_s(request((EU, US)), US) == 0.0
    assert outputs.cost_s(request((EU,), (US,)), US) == pytest.approx(1.04)  # half of it


def test_places_are_chosen_anew_only_if_it_is_notably_more_or_less():
    outputs = known()
    before = outputs.version
    for nbytes in (101, 99, 100, 103):
        outputs.observe("k", nbytes * MB)
    assert outputs.version == before
    for _ in range(9):
        outputs.observe("k", 300 * MB)
    assert outputs.version > before
    assert outputs.cost_s(request((EU,)), US) > 4.0


def test_what_others_have_to_deliver_counts_as_far_as_it_exceeds_the_time_that_a_unit_runs():
    outputs, ask = known(), request((EU,))
    for unit in "abc":
        assert outputs.begin(unit, ask, US) == pytest.approx(2.04)
        assert outputs.taking_s(unit) == pytest.approx(2.04)
    assert outputs.cost_s(ask, US, run_s=100.0) == pytest.approx(2.04)
    assert outputs.cost_s(ask, US, run_s=1.0) == pytest.approx(2.04 + 6.0 - 1.0, abs=0.1)
    assert outputs.cost_s(ask, LAB, run_s=1.0) == pytest.approx(2.04 + 6.0 - 1.0, abs=0.1)  # the way in is the same
    assert outputs.cost_s(ask, US) == pytest.approx(2.04)
    for unit in "abca":
        outputs.end(unit)
    assert outputs.cost_s(ask, US, run_s=1.0) == pytest.approx(2.04)
    assert outputs.taking_s("a") == 0.0


def test_units_go_to_where_their_outputs_go():
    m = matcher(eu=EU, us=US)
    m.outputs.observe("", 100 * MB)
    submit(m, "a", "b", outputs=HOME)
    assert bound(m) == {"a": "eu", "b": "eu"}


def test_before_it_is_known_how_much_they_write_they_go_anywhere_and_then_are_placed_anew():
    """First to where it goes, though, as long as one may well end soon and tell."""
    m = matcher(eu=EU, us=US)
    submit(m, *"abcdefgh", outputs=HOME)
    assert list(bound(m).values()) == ["eu", "eu"]
    assert list(bound(m, 4.9).values()) == []
    assert list(bound(m, 5.2).values()) == ["us", "us"]
    m.outputs.observe("", 1000 * MB)  # 20 s to bring home
    m.observe("", 1.0)
    for unit in "abcd":
        m.release(unit)
    assert bound(m, 6.0) == {"e": "eu", "f": "eu"}
    assert m.held("e") is not None
    assert "h" in m


def test_they_go_elsewhere_where_that_ends_sooner():
    m = matcher(eu=EU, us=US)
    m.outputs.observe("", 100 * MB)  # 2 s to bring home
    m.observe("", 10.0)
    submit(m, *"abcdefgh", outputs=HOME)
    assert sorted(bound(m).values()) == ["eu", "eu", "us", "us"]


def test_where_no_pilot_is_near_the_store_the_nearest_takes_them():
    m = matcher(eu=EU, us=US)
    m.policy.links.observe(US, LAB, 100 * MB, 1.0)
    m.policy.links.observe(EU, LAB, 100 * MB, 20.0)
    m.outputs.observe("", 100 * MB)
    submit(m, "a", outputs=((LAB,),))
    assert bound(m) == {"a": "us"}


def test_data_is_brought_to_where_the_outputs_go_if_these_are_larger():
    for written, expected in ((500 * MB, EU), (1 * MB, None)):
        m = brings_ahead(eu=EU, us=US)
        m.policy.links.observe(US, EU, 100 * MB, 2.0)
        m.observe("", 1.0)
        m.outputs.observe("", written)
        submit(m, "a", outputs=HOME, **reads(m, "du", US))
        matching = m.match(0.0)
        assert [copy.site for copy in matching.copies] == ([] if expected is None else [expected])
        assert {binding.unit: binding.pilot for binding in matching.bindings} == ({} if expected else {"a": "us"})


def test_a_unit_holds_its_slot_until_its_outputs_are_home():
    m = matcher(us=US)
    m.outputs.observe("", 100 * MB)
    m.observe("", 0.001)  # so short that several would be queued at a worker
    submit(m, *"abcdefgh", outputs=HOME)
    assert len(bound(m)) == 2
    assert m.held("a").expected_s == pytest.approx(2.041)


def test_none_is_bound_to_a_pilot_that_ends_before_its_outputs_are_home():
    m = matcher(us=US)
    m.outputs.observe("", 100 * MB)
    m.observe("", 10.0)
    m.set_end("us", 20.0)
    submit(m, "a", "b", outputs=HOME)
    assert bound(m, 8.5) == {}  # 10 s, and 2 on the way home
    assert "its outputs take 2 s from there, and the pilot ends in 12 s" in m.explain("a", 8.5).reason
    submit(m, "short", kind="short", walltime_s=1.0)
    assert bound(m, 9.0) == {"short": "us"}  # they keep no slot back
    m.set_end("us", 30.0)
    assert len(bound(m, 9.0)) == 1


def test_who_would_not_have_its_outputs_home_in_time_goes_to_a_pilot_that_lasts():
    m = matcher(us=US, lab=LAB)
    m.outputs.observe("", 100 * MB)
    m.observe("", 10.0)
    m.set_end("us", 20.0)
    submit(m, "a", now=8.5, outputs=((Site("eu"), Site("ap")),))
    assert bound(m, 8.5) == {"a": "lab"}


def test_a_decision_tells_what_the_way_home_costs():
    m = matcher(eu=EU, us=US)
    m.outputs.observe("", 100 * MB)
    submit(m, "a", outputs=HOME)
    (binding,) = m.match(0.0).bindings
    assert binding.decision.reason.startswith("to eu: its data, labels and outputs fit best, by 2.0")
    costs = {row.pilot: row.output_s for row in binding.decision.rows}
    assert costs["us"] == pytest.approx(2.04)
    assert costs["eu"] == 0.0


def test_many_that_write_much_do_not_crowd_the_way_home():
    """Once their ways are known, and what they write: as many go elsewhere as the way can carry meanwhile."""
    far = Link(12.5 * MB, 0.02, distance=Distance.OTHER_DATACENTER)
    sites = {"eu": 4, "us": 8, "ap": 8}
    scenario = Scenario(
        tuple(Pilot(site, slots, site, f"{site}-1") for site, slots in sites.items()),
        tuple(Unit(f"cu-{n}", 5.0, outputs=(f"du-{n}",), submitted_s=100.0 if n > 11 else 0.0) for n in range(40)),
        (Store("store", "eu", "eu-1"),),
        tuple(Data(f"du-{n}", 100 * MB) for n in range(40)),
        (far,),
        tuple(Uplink(site, 12.5 * MB, 12.5 * MB) for site in sites),
    )
    took_s = {policy: simulate(scenario, policy).makespan_s - 100 for policy in ("dpilot", "random", "most-bytes")}
    assert took_s["dpilot"] < 1.1 * 41  # 4 every 5 s at home, and one every 8 s over the way
    assert took_s["dpilot"] < 0.5 * min(took_s["random"], took_s["most-bytes"])


def test_several_outputs_wait_for_what_others_deliver_once():
    outputs = known()
    for unit in "abcdef":
        outputs.begin(unit, request((EU,)), US)
    one, five = (outputs.cost_s(request(*(((EU,),) * n)), US, run_s=1.0) for n in (1, 5))
    assert five == pytest.approx(one, abs=0.3)  # but for the latency of each


def test_of_stores_as_far_the_fastest_is_the_nearest():
    outputs = known()
    outputs._links.observe(US, EU, 100 * MB, 10.0)
    outputs._links.observe(EU, US, 100 * MB, 1.0)
    outputs._links.observe(US, LAB, 100 * MB, 1.0)
    outputs._links.observe(LAB, US, 100 * MB, 10.0)
    assert outputs.cost_s(request((EU, LAB)), US) == pytest.approx(1.0, rel=0.1)


def test_what_goes_to_any_of_very_many_stores_costs_nothing():
    assert known().cost_s(request((EU,), ()), US) == pytest.approx(1.04)


def test_a_kind_that_writes_no_more_changes_nothing_for_ever():
    outputs = known()
    for _ in range(100):
        outputs.observe("k", 0)
    version = outputs.version
    for _ in range(100):
        outputs.observe("k", 0)
    assert outputs.version == version
    assert outputs.sites(request((EU,))) == ()


def test_the_next_one_is_sent_after_a_unit_that_has_yet_to_deliver_only_when_it_has():
    m = matcher(us=US)
    m.outputs.observe("", 100 * MB)  # 2 s to bring home
    for _ in range(9):
        m.observe("", 1.0)
    m.set_gap("us", 0.2)
    submit(m, *"abcd", outputs=HOME)
    assert len(bound(m)) == 2
    assert bound(m, 1.1) == {}
    assert len(bound(m, 3.1)) == 2


def test_what_was_bound_before_its_run_time_was_known_counts_with_its_outputs():
    m = matcher(us=US)
    m.outputs.observe("", 100 * MB)
    submit(m, "a", outputs=HOME)
    assert bound(m) == {"a": "us"}
    m.observe("", 10.0)
    assert m.held("a").expected_s == pytest.approx(12.04)
