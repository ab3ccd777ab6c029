"""The matcher: events in, bindings out; no cluster, no clock."""

import pytest

from dpilot.placement import InputView, Links, Matcher, Policy, Site
from dpilot.placement.lines import TOGETHER_S
from tests.placement.matching import (
    EU,
    LAB,
    MB,
    US,
    bound,
    brings_ahead,
    check_that_lines_stand_in_their_queues,
    matcher,
    reads,
    submit,
)


def test_nothing_is_bound_before_a_slot_is_free():
    m = matcher(eu=EU)
    submit(m, "a", "b", "c")
    assert set(bound(m)) == {"a", "b"}
    assert bound(m) == {}
    m.release("a")
    assert bound(m) == {"c": "eu"}
    assert len(m) == 0


def test_priority_then_submission():
    m = matcher(eu=EU)
    submit(m, "late", order=2)
    submit(m, "early", order=1)
    submit(m, "urgent", order=3, priority=1, kind="other")
    assert list(bound(m)) == ["urgent", "early"]


def test_units_go_to_their_data_and_the_free_go_to_the_least_loaded():
    m = matcher(eu=EU, us=US)
    submit(m, "at-us", **reads(m, "du", US))
    assert bound(m) == {"at-us": "us"}
    submit(m, "anywhere")
    assert bound(m) == {"anywhere": "eu"}


def test_equal_pilots_are_taken_in_turn_by_load_then_by_name():
    m = matcher(b=EU, a=EU)
    submit(m, "1", "2", "3", "4")
    assert list(bound(m).items()) == [("1", "a"), ("2", "b"), ("3", "a"), ("4", "b")]


def test_a_required_label_binds_and_a_preferred_one_yields():
    m = matcher(eu=EU)
    submit(m, "must", site=Site("us"), require=True)
    submit(m, "would", site=Site("us"))
    assert bound(m) == {"would": "eu"}
    decision = m.explain("must")
    assert decision.pilot is None
    assert decision.rows[0].reason == "required, but datacenter eu is not us"
    m.add_pilot("us", US, 1)
    m.add_worker("us", "us-0", 1)
    assert bound(m) == {"must": "us"}


def test_pools_and_direct_submission():
    m = matcher(eu=EU, us=US)
    m.set_pool("cds", {"us"})
    submit(m, "pooled", **reads(m, "du", EU))
    submit(m, "direct", pilot="eu")
    assert bound(m) == {"pooled": "us", "direct": "eu"}


def test_a_pool_is_forgotten_once_nobody_waits_in_it_and_made_anew_if_it_is_needed_again():
    m = matcher(eu=EU)
    m.set_pool("cds", {"eu"})
    submit(m, "a", "b", "c")
    submit(m, "direct", pilot="eu")
    assert set(bound(m)) == {"a", "b"}
    pilot = m.pilot_of("a")
    assert len(pilot.places) == 4, "pool, datacenter and machine; and by itself"
    m.drop_pool("cds")
    m.drop_pool("eu")
    assert len(pilot.places) == 4, "some wait"
    m.withdraw("c")
    m.withdraw("direct")
    m.drop_pool("cds")
    m.drop_pool("eu")
    m.drop_pool("nobody's")
    assert (len(pilot.places), len(m.pools)) == (0, 0)
    m.release("a")
    assert bound(m) == {}
    submit(m, "d", "e")
    assert bound(m) == {"d": "eu"}
    m.release("b")
    assert bound(m) == {"e": "eu"}


def test_slots_go_to_those_whose_data_lies_there():
    """The slots at eu are not given to units from us, though to wait for us would take longer."""
    m = matcher(eu=EU, us=US)
    submit(m, *(f"us{i}" for i in range(4)), **reads(m, "du-us", US, nbytes=MB))
    submit(m, *(f"eu{i}" for i in range(4)), **reads(m, "du-eu", EU, nbytes=MB))
    assert bound(m) == {"us0": "us", "us1": "us", "eu0": "eu", "eu1": "eu"}
    m.release("eu0")
    assert bound(m) == {"eu2": "eu"}


def test_what_is_rounded_while_units_end_leaves_no_less_than_nothing_to_do():
    """0.1 + 0.7 - 0.7 - 0.1 is less than nothing: the look for a queue that grew shorter would never end."""
    m = Matcher(Policy(Links()), unknown_runtime_s=0.0)
    m.runtimes.observe("short", 0.1)
    m.runtimes.observe("long", 0.7)
    for pilot in ("short", "long"):
        m.add_pilot(pilot, EU, 2)
        m.add_worker(pilot, f"{pilot}-0", 1)
        submit(m, pilot, kind=pilot, pilot=pilot)
    assert len(bound(m)) == 2
    submit(m, "wide", slots=2, site=EU)
    m.release("long")
    assert bound(m) == {}
    m.release("short")
    assert bound(m) == {}
    m.add_worker("short", "short-1", 1)
    assert bound(m) == {"wide": "short"}


def test_a_swamped_site_spills_over_where_that_ends_earlier():
    m = matcher(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"u{i}" for i in range(10)), **reads(m, "du", EU, nbytes=50 * MB))  # 1 s to move, as long as to run
    first = bound(m)
    assert list(first.values()) == ["eu", "eu", "us", "us"]
    m = matcher(eu=EU, us=US)
    submit(m, "u0", "u1", "u2", **reads(m, "du", EU, nbytes=500 * MB))  # 10 s to move
    assert list(bound(m).values()) == ["eu", "eu"]


@pytest.mark.parametrize(("wish", "wait_s"), [({}, 0.0), ({"site": EU}, 5.0)], ids=["data", "labels"])
def test_no_pilot_is_waited_for_for_ever(wish, wait_s):
    """For one that has yet to start no longer than it takes to bring what is read to another, and a wish is worth."""
    m = matcher(us=US)
    m.add_pilot("eu", EU, 2)  # starts, and does not come
    submit(m, "u", **wish, **reads(m, "du", EU, nbytes=10 * MB))
    matching = m.match(0.0)
    assert matching.bindings == []
    assert 0.1 < matching.recheck_s - wait_s < 1.0
    assert bound(m, now=wait_s + 0.1) == {}
    assert bound(m, now=wait_s + 1.0) == {"u": "us"}


def test_an_urgent_unit_does_not_have_others_like_it_forgotten():
    """It was submitted after them, and they would follow it, ahead of what reads less."""
    m = matcher(eu=EU, us=US)
    submit(m, "x", "y", order=0, site=EU, require=True)
    assert set(bound(m)) == {"x", "y"}
    here = {"site": EU, "require": True}
    submit(m, "little", order=1, **here, **reads(m, "du-1", EU, nbytes=10 * MB))
    much = reads(m, "du-2", EU, nbytes=100 * MB)
    submit(m, "a", "b", order=2, **here, **much)
    submit(m, "urgent", order=4, priority=1.0, **here, **much)
    order = []
    for ended in ("x", "urgent", "little", "a", "b"):
        m.release(ended)
        order += bound(m)
    assert order == ["urgent", "little", "a", "b"]
    check_that_lines_stand_in_their_queues(m)


def test_who_is_not_here_is_no_home_to_what_only_it_could_run():
    """Beside the data there are pilots, but the only one that has the slots for it starts, and others are served."""
    m = matcher(eu=EU, us=US)
    m.add_pilot("wide", EU, 4)
    m.add_worker("us", "us-2", 2)
    submit(m, "u", slots=4, **reads(m, "du", EU, nbytes=10 * MB))
    for number in range(20):
        now = number / 10
        submit(m, f"n{number}", now=now, site=EU, require=True)
        found = bound(m, now)
        m.release(f"n{number}")
        assert found[f"n{number}"] == "eu"
        if "u" in found:
            break
    assert found["u"] == "us"
    assert 0.1 < now < 1.0, "it takes as long to bring what it reads"


def test_who_has_waited_long_enough_takes_the_first_slots_there_are():
    """Its home does not come. As long as there were too few slots elsewhere, they were looked for ever less often."""
    m = matcher(us=US)
    m.add_pilot("eu", EU, 2)
    m.runtimes.observe("", 0.5)
    submit(m, "narrow", site=US, require=True)
    assert set(bound(m)) == {"narrow"}
    submit(m, "wide", slots=2, **reads(m, "du", EU, nbytes=100 * MB))
    now = 0.0
    while now < 50.0:
        assert bound(m, now) == {}
        now += 0.5
    m.release("narrow")
    assert bound(m, now) == {"wide": "us"}


def test_a_home_is_not_waited_for_as_long_as_it_would_have_been_worth_once():
    """When it was worked out first, nothing was known of the way to the other place; by now it is."""
    m = matcher(us=US)
    m.add_pilot("eu", EU, 2)
    submit(m, "u", **reads(m, "du", EU, nbytes=500 * MB))
    assert m.match(0.0).recheck_s > 10.0
    for _ in range(5):
        m.policy.links.observe(EU, US, 500 * MB, 1.0)
    m.release("nobody")
    now = m.match(0.1).recheck_s + 0.1
    assert now < 5.0
    assert bound(m, now) == {"u": "us"}


def test_a_stream_of_narrow_units_does_not_starve_a_wide_one():
    m = matcher(eu=EU)
    submit(m, "n0", "n1")
    bound(m)
    submit(m, "wide", slots=2)
    submit(m, *(f"n{i}" for i in range(2, 6)))
    m.release("n0")
    assert bound(m) == {}
    m.release("n1")
    assert bound(m) == {"wide": "eu"}
    m.release("wide")
    assert set(bound(m)) == {"n2", "n3"}


def test_a_wide_unit_keeps_nobody_waiting_while_workers_are_missing():
    m = matcher(eu=EU)
    m.open_worker("eu", "eu-1", False)
    submit(m, "wide", slots=2)
    submit(m, "n0", "n1")
    assert bound(m) == {"n0": "eu"}
    m.open_worker("eu", "eu-1", True)
    assert bound(m) == {}  # the slot is kept for the wide one now
    m.release("n0")
    assert bound(m) == {"wide": "eu"}


def test_a_stream_of_tiny_units_does_not_starve_a_long_one():
    m = matcher(eu=EU)
    m.runtimes.observe("tiny", 0.001)
    submit(m, *(f"t{i}" for i in range(200)), kind="tiny")
    streaming = set(bound(m))
    assert len(streaming) == 100  # 50 ms of work for each slot
    submit(m, "long", kind="long", order=0.5)
    for unit in sorted(streaming):
        m.release(unit)
        if "long" in (now := bound(m)):
            break
        assert now == {}
    assert now["long"] == "eu"


def test_what_is_withdrawn_or_gone_is_not_bound():
    m = matcher(eu=EU, us=US)
    submit(m, "a", "b")
    m.withdraw("a")
    m.withdraw("never-was")
    m.remove_pilot("eu")
    assert bound(m) == {"b": "us"}
    m.remove_worker("us", "us-0")
    m.remove_worker("us", "us-1")
    submit(m, "c")
    assert bound(m) == {}
    assert m.idle_slots("us") == m.total_slots("us") == 0


def test_a_canceled_unit_keeps_its_slots_until_it_has_ended():
    m = matcher(eu=EU)
    submit(m, "a", "b", "c")
    bound(m)
    m.keep("a", "a#1")
    assert bound(m) == {}
    m.release("a#1")
    assert bound(m) == {"c": "eu"}


def test_a_closed_worker_takes_nothing():
    m = matcher(eu=EU)
    m.open_worker("eu", "eu-0", False)
    submit(m, "a", "b")
    assert bound(m) == {"a": "eu"}
    m.open_worker("eu", "eu-0", True)
    assert bound(m) == {"b": "eu"}


def test_run_times_are_learned():
    m = matcher(eu=EU)
    assert m.runtimes.expected_s("kind") == 1.0
    m.runtimes.observe("kind", 3.0)
    assert m.runtimes.expected_s("kind") == 3.0
    m.runtimes.observe("kind", 1.0)
    assert 1.0 < m.runtimes.expected_s("kind") < 3.0


def test_a_decision_tells_every_pilot_and_why():
    m = matcher(eu=EU, us=US)
    m.set_pool("cds", {"eu", "us"})
    m.add_pilot("lab", LAB, 1)
    submit(m, "u", **reads(m, "du", US))
    (binding,) = m.match(0.0).bindings
    assert str(binding.decision).splitlines() == [
        "u: to us: its data and labels fit best, by 1.940 s",
        "  pilot  verdict   queue s  stage s  label s  output s   cost s  bytes here/near/far",
        "  us     chosen      0.000    0.100    0.000     0.000    0.100  100,000,000/0/0",
        "  eu     possible    0.000    2.040    0.000     0.000    2.040  0/0/100,000,000",
        "  lab    rejected  it belongs to no service of this compute data service",
    ]
    assert binding.worker.startswith("us-")


def test_waiting_is_explained():
    m = Matcher()
    submit(m, "u")
    assert m.explain("u").reason == "waits for a pilot: there is none"
    m.add_pilot("eu", EU, 1)
    assert m.explain("u").reason == "waits for a slot of eu"
    submit(m, "wide", slots=3)
    assert m.explain("wide").reason == "waits: no pilot can run it (eu: 3 slots are needed, it has 1)"
    assert m.explain("wide").rows[0].reason == "3 slots are needed, it has 1"
    assert m.explain("other") is None


def test_what_many_machines_read_goes_to_few_of_them_at_a_time():
    m = Matcher(Policy(Links()), ahead=True)
    for number in range(12):
        m.add_pilot(f"p-{number}", Site("eu", f"m-{number}"), 1)
        m.add_worker(f"p-{number}", f"w-{number}", 1)
    m.runtimes.observe("", 60.0)
    home = Site("eu", "m-0")
    m.policy.links.observe(home, Site("eu", "m-1"), 100 * MB, 1.0)
    submit(m, *(f"cu-{number}" for number in range(24)), **reads(m, "du", home, nbytes=1000 * MB))
    first = bound(m)
    assert "p-0" in first.values()
    assert len(first) == 3  # at home, and at two machines to which the one replica is brought
    there = [unit for unit, pilot in first.items() if pilot != "p-0"]
    assert {m.transit.source_of("du", Site("eu", first[unit].replace("p", "m"))) for unit in there} == {home}
    sites = [home, *(Site("eu", first[unit].replace("p", "m")) for unit in there)]
    for unit in there:
        m.staged(unit)
    reads(m, "du", *sites, nbytes=1000 * MB)
    m.data_changed("du")
    second = bound(m, now=3.0)
    assert len(second) == 6  # two from each of three
    sources = [m.transit.source_of("du", Site("eu", pilot.replace("p", "m"))) for pilot in second.values()]
    assert {source: sources.count(source) for source in sites} == dict.fromkeys(sites, 2)


def test_who_waits_for_a_link_to_be_tried_goes_on_when_it_was():
    """Over an unknown link a few data units are brought first; then others are, though no unit has ended."""
    m = Matcher(Policy(Links()))
    m.add_pilot("eu", EU, 10)
    m.add_worker("eu", "eu-0", 10)
    for number in range(9):
        submit(m, f"u{number}", **reads(m, f"du-{number}", Site("eu"), nbytes=MB))
    assert set(bound(m)) == {f"u{number}" for number in range(8)}
    assert bound(m, 0.001) == {}
    m.policy.links.now = 0.002
    m.policy.links.observe(Site("eu"), EU, MB, 0.002)
    m.staged("u0", 0.002)
    assert bound(m, 0.002) == {"u8": "eu"}


@pytest.mark.parametrize(("alone_s", "then"), [(8.0, 16), (1.0, 8)])
def test_a_store_that_serves_several_as_fast_as_one_serves_more_at_a_time(alone_s, then):
    """8 machines bring 1 GB in 8 s. If one alone takes as long, then 16 do next; not if it takes a part of that."""
    m = Matcher(Policy(Links()), ahead=True)
    m.runtimes.observe("", 60.0)
    for number in range(100):
        m.add_pilot(f"p{number}", Site("eu", f"m{number}"), 1)
        m.add_worker(f"p{number}", f"w{number}", 1)
    links, store = m.policy.links, Site("eu")
    links.observe(store, Site("eu", "m0"), 1000 * MB, alone_s)
    submit(m, *(f"u{number}" for number in range(100)), **reads(m, "du", store, nbytes=1000 * MB))
    first = bound(m)
    assert len(first) == 8
    links.now = 8.0
    for unit, pilot in first.items():
        links.observe(store, Site("eu", pilot.replace("p", "m")), 1000 * MB, 8.0)
        m.staged(unit, 8.0)
    assert len(bound(m, 8.0)) == then


def test_a_unit_whose_data_all_but_stops_is_taken_back_and_goes_elsewhere():
    m = Matcher(Policy(Links(), 1.0))
    for name, site in {"us": US, "lab": LAB}.items():
        m.add_pilot(name, site, 1)
        m.add_worker(name, f"{name}-0", 1)
    m.runtimes.observe("", 1.0)
    for target in (US, LAB):
        m.policy.links.observe(EU, target, 100 * MB, 1.0)
    submit(m, "a", **reads(m, "du", EU, nbytes=10 * MB))
    (first,) = bound(m).values()
    now, recalls = 0.0, []
    while not recalls and now < 60:
        matching = m.match(now)
        recalls = matching.recalls
        now += matching.recheck_s or 1.0
    assert recalls == ["a"]
    m.release("a")
    submit(m, "a", now=now, inputs=("du",))
    assert bound(m, now + 10) == {"a": "lab" if first == "us" else "us"}


def test_long_work_of_a_known_kind_is_seen_by_who_is_of_an_unknown_one():
    """Of its own kind nobody has run yet; but it waits behind 20 s of work, and another place takes none."""
    m = matcher(eu=Site("eu"), us=Site("us"))
    m.runtimes.observe("long", 10.0)
    submit(m, *(f"long-{number}" for number in range(6)), order=0, kind="long", site=Site("eu"), require=True)
    assert set(bound(m).values()) == {"eu"}
    submit(m, "new", order=1, kind="new", **reads(m, "du", Site("eu"), nbytes=MB))
    assert bound(m, 0.1) == {"new": "us"}


def test_what_runs_is_taken_to_have_begun_when_that_was_heard():
    """And not when units were matched last, which may be long ago."""
    m = matcher(eu=Site("eu"))
    submit(m, "a", kind="new", **reads(m, "du", Site("eu"), nbytes=MB))
    assert bound(m) == {"a": "eu"}
    m.staged("a", now=100.0)
    assert m.runtimes.shown_s("new", 100.5) == 0.5


def test_who_could_go_nowhere_else_is_not_forgotten_for_long():
    """Its home does not come, and when it was tried to give it away all others were busy."""
    m = matcher(us=US)
    m.add_pilot("eu", EU, 2)
    submit(m, "a", "b", order=0, site=US, require=True)
    submit(m, "u", order=1, **reads(m, "du", EU, nbytes=MB))
    assert set(bound(m)) == {"a", "b"}
    for now in (1.0, 2.0):
        assert bound(m, now) == {}
    m.release("a")
    matching = m.match(2.1)
    recheck_s = 0.0 if matching.bindings else matching.recheck_s
    assert recheck_s < 2.0
    assert matching.bindings or bound(m, 2.1 + recheck_s) == {"u": "us"}


def test_a_unit_is_not_taken_back_from_one_slow_place_after_the_other():
    """All ways from where its data is are as slow as the first one: to begin anew each time would take longest."""
    m = Matcher(Policy(Links(), 1.0))
    for name, site in {"us": US, "lab": LAB, "ap": Site("ap", "a")}.items():
        m.add_pilot(name, site, 1)
        m.add_worker(name, f"{name}-0", 1)
    m.runtimes.observe("", 1.0)
    submit(m, "u", **reads(m, "du", EU, nbytes=4 * MB))
    now, begun, n_recalls = 0.0, None, 0
    while begun is None or now - begun < 3.2:  # it takes so long wherever it is
        matching = m.match(now)
        for unit in matching.recalls:
            m.release(unit)
            submit(m, unit, now=now, inputs=("du",))
            begun, n_recalls = None, n_recalls + 1
        if matching.bindings:
            begun = now
        now += max(0.01, min(0.1, matching.recheck_s or 0.1))
        assert now < 10.0
    assert n_recalls <= 1


def test_what_was_not_worth_its_way_is_looked_at_anew_once_it_is_known_how_long_units_run():
    """Shorter than was assumed, so that the queue seems to have shrunk; before, nothing was known to be worth it."""
    m = matcher(eu=Site("eu"), us=Site("us"))
    submit(m, *(f"cu-{number}" for number in range(20)), order=0, **reads(m, "du", Site("eu"), nbytes=MB))
    assert set(bound(m).values()) == {"eu"}
    for unit in ("cu-0", "cu-1"):
        m.staged(unit, now=0.0)
    assert bound(m, 0.001) == {}
    m.observe("", 0.1)
    m.release("cu-0")
    assert "us" in bound(m, 0.1).values()


@pytest.mark.parametrize("store", [Site("eu"), Site("eu", "disk")])
def test_small_inputs_try_no_link(store):
    m = Matcher(Policy(Links()), ahead=True)
    m.add_pilot("p", EU, 100)
    m.add_worker("p", "w", 100)
    for number in range(100):
        submit(m, f"u{number}", **reads(m, f"du-{number}", store, nbytes=10_000))
    assert len(bound(m)) == 100


def test_who_waits_for_a_link_to_be_tried_goes_on_if_that_hangs():
    m = Matcher(Policy(Links()), ahead=True)
    m.add_pilot("p", EU, 4)
    m.add_worker("p", "w", 4)
    for number in range(4):
        submit(m, f"u{number}", pilot="p", **reads(m, f"du-{number}", Site("eu", "disk"), nbytes=MB))
    assert len(bound(m)) == 1
    assert len(bound(m, 1.0)) >= 1  # much longer than it should have taken


def test_what_is_brought_is_not_late_before_the_message_can_be_there():
    """It takes 10 ms, and messages 200 ms there and back: units were taken back over and over again."""
    m = matcher(eu=EU, us=US)
    m.set_gap("us", 0.2)
    submit(m, "u", site=US, require=True, **reads(m, "du", Site("us"), nbytes=5 * MB))
    assert bound(m) == {"u": "us"}
    assert m.transit.left_s("du", US, 0.0) == pytest.approx(0.212)
    assert m.transit.look(0.2) == []
    assert not m.transit.is_overdue("du", US)
    assert m.transit.look(0.4) == [("du", US)]


def test_what_another_place_may_run_too_is_left_for_it():
    """Else a place that has its own to do takes it, and something has to be moved to the one that has not."""
    m = brings_ahead(eu=EU, us=US)
    m.inputs.update({"both": InputView("both", MB, 1, (EU, US)), "here": InputView("here", MB, 1, (EU,))})
    submit(m, "busy-eu", site=EU, require=True)
    submit(m, "busy-us", site=US, require=True)
    assert bound(m) == {"busy-eu": "eu", "busy-us": "us"}
    submit(m, "anywhere", inputs=("both",), order=0.0)
    submit(m, "at-home", inputs=("here",), order=1.0)
    m.release("busy-eu")
    assert bound(m) == {"at-home": "eu"}
    m.release("busy-us")
    assert bound(m) == {"anywhere": "us"}


def test_but_not_for_long():
    m = brings_ahead(eu=EU, us=US)
    m.inputs.update({"both": InputView("both", MB, 1, (EU, US)), "here": InputView("here", MB, 1, (EU,))})
    submit(m, "busy-eu", site=EU, require=True)
    submit(m, "busy-us", site=US, require=True)
    m.match(0.0)
    submit(m, "anywhere", inputs=("both",), order=0.0)
    submit(m, "at-home", inputs=("here",), order=TOGETHER_S + 1)
    m.release("busy-eu")
    assert bound(m) == {"anywhere": "eu"}


def test_what_several_places_may_run_is_shared_out_as_work():
    """Those that are free first get most of it, so that all are done at once; whoever runs it, all of it is gone."""
    m = brings_ahead(eu=EU, us=US)
    m.inputs.update({"both": InputView("both", MB, 1, (EU, US)), "here": InputView("here", MB, 1, (EU,))})
    for number in range(6):
        submit(m, f"at-home-{number}", inputs=("here",))
    running = bound(m)
    for number in range(9):
        submit(m, f"anywhere-{number}", inputs=("both",))
    (pool,) = m.pools
    eu, us = (pool.zones[site].below.get("", 0) for site in ("eu", "us"))
    assert eu + us == pytest.approx(len(m))
    m.data_changed("both")  # it is seen anew who has how much
    tails = [pool.zones[site].tail_s(m.runtimes) for site in ("eu", "us")]
    assert tails[0] == pytest.approx(tails[1], abs=0.5)
    while running:
        for unit in running:
            m.release(unit)
        running = bound(m)
    assert not len(m)
    assert not pool.zones["eu"].below
    assert not pool.zones["us"].below
