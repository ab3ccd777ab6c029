"""The matcher: events in, bindings out; no cluster, no clock."""

import pytest

from dpilot.placement import InputView, Links, Matcher, Policy, Request, Site

EU, US, LAB = Site("eu", "e"), Site("us", "u"), Site("lab", "l")
MB = 10**6


def matcher(prefer_wait_s=5.0, unknown_s=1.0, **sites):
    """A matcher with a pilot of two one-slot workers at each site."""
    made = Matcher(Policy(Links(), prefer_wait_s), unknown_runtime_s=unknown_s)
    for name, site in sites.items():
        made.add_pilot(name, site, 2)
        for number in range(2):
            made.add_worker(name, f"{name}-{number}", 1)
    return made


def brings_ahead(**sites):
    """A matcher that has data brought ahead, with a pilot of one slot at each site."""
    made = Matcher(Policy(Links()), ahead=True)
    for name, site in sites.items():
        made.add_pilot(name, site, 1)
        made.add_worker(name, f"{name}-0", 1)
    return made


def bound(m, now=0.0):
    return {binding.unit: binding.pilot for binding in m.match(now).bindings}


def submit(m, *units, now=0.0, priority=0.0, order=None, **request):
    for number, unit in enumerate(units):
        m.submit(
            unit,
            Request("cds", **request),
            now=now,
            priority=priority,
            order=len(m) + number if order is None else order,
        )


def reads(m, du, *sites, nbytes=100 * MB):
    m.inputs[du] = InputView(du, nbytes, 1, sites)
    return {"inputs": (du,)}


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


def test_no_pilot_is_waited_for_for_ever():
    m = matcher(us=US)
    m.add_pilot("eu", EU, 2)  # starts, and does not come
    submit(m, "u", **reads(m, "du", EU, nbytes=MB))
    matching = m.match(0.0)
    assert matching.bindings == []
    assert 5.0 < matching.recheck_s < 5.2  # prefer-wait, and the transfer
    assert bound(m, now=5.0) == {}
    assert bound(m, now=6.0) == {"u": "us"}


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
        "  pilot  verdict   queue s  stage s  label s   cost s  bytes here/near/far",
        "  us     chosen      0.000    0.100    0.000    0.100  100,000,000/0/0",
        "  eu     possible    0.000    2.040    0.000    2.040  0/0/100,000,000",
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


def lets_one_follow():
    """A matcher with two pilots: at one a unit was about to end and does not, and "b" was sent after it."""
    m = Matcher(Policy(Links(), 1.0))
    for name in ("p", "q"):
        m.add_pilot(name, Site(name), 1)
        m.add_worker(name, f"{name}-0", 1)
        m.set_gap(name, 0.1)
    m.runtimes.observe("", 1.0)
    for unit in ("a", "other"):
        submit(m, unit)
    pilots = bound(m)
    m.leave("a")
    submit(m, "b", now=1.0)
    assert bound(m, 1.0) == {"b": pilots["a"]}
    return m


def test_a_unit_behind_one_that_does_not_end_is_taken_back_and_goes_elsewhere():
    m = lets_one_follow()
    home = m.pilot_of("b").name
    matching = m.match(1.0)
    assert not matching.returns
    now = 1.0 + matching.recheck_s
    assert m.match(now).returns == ["b"]
    m.release("b")
    submit(m, "b", now=now)
    assert bound(m, now) == {}, "the slot of the one that does not end is taken"
    m.release("other")
    assert bound(m, now + 1.0)["b"] != home


def reads_at_home(m, gap_s, runs_s=None):
    """A matcher with one slot and two units that have their data beside it, one of them bound."""
    m.add_pilot("us", US, 1)
    m.add_worker("us", "us-0", 1)
    m.set_gap("us", gap_s)
    if runs_s is not None:
        m.runtimes.observe("", runs_s)
    for unit in ("a", "b"):
        submit(m, unit, **reads(m, "du", US, nbytes=MB))
    assert bound(m) == {"a": "us"}


def test_the_next_one_follows_the_first_of_a_kind_as_soon_as_that_has_its_data():
    m = Matcher(Policy(Links(), 1.0))
    reads_at_home(m, 0.1)
    assert bound(m, 0.2) == {}
    m.staged("a")
    assert m.match(0.2).recheck_s == 0.0
    assert bound(m, 0.2) == {"b": "us"}
    m.staged("a")
    assert m.match(5.0).returns == ["b"], "it takes long, as is seen by now"


def test_the_next_one_is_sent_so_that_it_has_its_data_when_the_one_before_ends():
    m = Matcher(Policy(Links(), 1.0))
    reads_at_home(m, 0.1, runs_s=1.0)
    m.staged("a")
    assert round(m.match(0.5).recheck_s, 6) == 0.8
    assert bound(m, 1.29) == {}
    assert bound(m, 1.31) == {"b": "us"}


def test_nothing_follows_where_messages_take_no_time():
    m = Matcher(Policy(Links(), 1.0))
    reads_at_home(m, 0.001)
    m.staged("a")
    for now in (0.5, 1.0, 10.0):
        assert bound(m, now) == {}


def test_a_unit_that_was_bound_anew_is_not_about_to_end_when_it_would_have_been():
    m = Matcher(Policy(Links(), 1.0))
    reads_at_home(m, 0.1, runs_s=1.0)
    m.staged("a")
    m.match(0.5)
    m.release("a")
    m.withdraw("b")
    submit(m, "a", now=1.0, **reads(m, "du", US, nbytes=MB))
    assert bound(m, 1.0) == {"a": "us"}
    m.staged("a")
    m.match(1.2)
    submit(m, "b", now=1.3, **reads(m, "du", US, nbytes=MB))
    assert bound(m, 1.4) == {}
    assert bound(m, 2.1) == {"b": "us"}


def test_a_unit_whose_turn_has_come_is_not_taken_back():
    m = lets_one_follow()
    m.release("a")
    for now in (2.0, 4.0, 8.0):
        assert not m.match(now).returns
    assert not m.is_expecting


def test_a_unit_that_has_begun_meanwhile_stays_and_ends_as_all_do():
    m = lets_one_follow()
    assert m.match(9.0).returns == ["b"]
    for unit in ("a", "b", "other"):
        m.release(unit)
    assert [m.idle_slots(pilot) for pilot in ("p", "q")] == [1, 1]
    assert not m.is_expecting


def test_a_unit_whose_data_is_late_everywhere_stays_where_it_is():
    m = Matcher(Policy(Links(), 1.0))
    m.add_pilot("us", US, 1)
    m.add_worker("us", "us-0", 1)
    submit(m, "a", **reads(m, "du", EU, nbytes=10 * MB))
    assert bound(m) == {"a": "us"}
    assert not any(m.match(float(now)).recalls for now in range(60))


def test_the_next_one_is_sent_as_early_as_its_data_takes_to_be_brought():
    m = Matcher(Policy(Links(), 1.0))
    reads_at_home(m, 0.1, runs_s=1.0)
    m.staged("a", 0.6)
    assert round(m.match(0.5).recheck_s, 6) == 0.3
    assert bound(m, 0.81) == {"b": "us"}


def test_what_reads_the_same_is_run_together_where_the_rest_may_be_sent_elsewhere():
    """Of six data units at home, each read twice, those are sent that nobody has read there yet."""
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    for number in range(12):
        submit(m, f"cu-{number}", order=number, **reads(m, f"du-{number % 6}", EU, nbytes=10 * MB))
    matching = m.match(0.0)
    assert [binding.unit for binding in matching.bindings] == ["cu-0"]
    assert [copy.du for copy in matching.copies] == ["du-5"], "the last one: it will be run here last"
    m.release("cu-0")
    assert bound(m, 1.0) == {"cu-6": "eu"}, "it reads what cu-0 has read, and is worth less elsewhere than the others"
    m.release("cu-6")
    assert bound(m, 2.0) == {"cu-1": "eu"}


def test_nobody_is_overtaken_by_what_was_submitted_long_after_it():
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    for unit, du, order in (("a", 0, 0.0), ("b", 1, 1.0), ("c", 1, 1.0), ("late", 0, 60.0)):
        submit(m, unit, order=order, **reads(m, f"du-{du}", EU, nbytes=10_000 * MB))
    assert bound(m) == {"a": "eu"}
    m.release("a")
    assert bound(m, 1.0) == {"b": "eu"}


def test_as_many_are_brought_at_once_as_ways_are_free():
    """There and back between two of three sites would leave the third with nothing to do."""
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    for number, (one, other) in enumerate([(EU, US), (US, EU), (US, LAB), (LAB, EU)] * 3):
        for which, site in (("a", one), ("b", other)):
            reads(m, f"du-{number}{which}", site, nbytes=MB)
        submit(m, f"cu-{number}", order=0, inputs=(f"du-{number}a", f"du-{number}b"))
    copies = m.match(0.0).copies
    assert len(copies) == 3
    assert {copy.site for copy in copies} == {EU, US, LAB}
    assert {m.inputs[copy.du].sites[0] for copy in copies} == {EU, US, LAB}


def test_what_has_come_to_a_free_place_is_not_sent_on():
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"cu-{number}" for number in range(6)), order=0, **reads(m, "du", EU, US, nbytes=10 * MB))
    assert sorted(bound(m).values()) == ["eu", "us"]
    assert m.match(0.5).copies == [], "4 wait at two places: another copy would come when they are done"


def test_what_waits_at_two_places_is_work_of_the_one_that_is_free_first():
    """The other one has too much to do, and what is sent away goes to a third, which has nothing to do."""
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"eu-{number}" for number in range(20)), order=0, **reads(m, "at-eu", EU, nbytes=10 * MB))
    submit(m, *(f"two-{number}" for number in range(6)), order=1, **reads(m, "at-two", EU, US, nbytes=10 * MB))
    matching = m.match(0.0)
    assert {binding.unit: binding.pilot for binding in matching.bindings} == {"eu-0": "eu", "two-0": "us"}
    assert [(copy.du, copy.site) for copy in matching.copies] == [("at-eu", LAB)]


def test_of_a_long_queue_what_has_no_other_home_is_sent():
    """What is also at a place that is free sooner moves the least for each unit, but is not what eu is busy with."""
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"us-{number}" for number in range(10)), order=0, site=US, require=True)
    submit(m, *(f"eu-{number}" for number in range(20)), order=0, **reads(m, "at-eu", EU, nbytes=100 * MB))
    submit(m, *(f"two-{number}" for number in range(6)), order=1, **reads(m, "at-two", EU, US, nbytes=10 * MB))
    assert [(copy.du, copy.site) for copy in m.match(0.0).copies] == [("at-eu", LAB)]


@pytest.mark.parametrize("n_lacking", [0, 2])
def test_data_is_sent_if_that_brings_half_a_unit_or_if_others_need_the_ways_half_of_what_it_takes(n_lacking):
    """eu has as much to do in both cases, and to send what six or four of its units read takes 3.5 s at the most."""
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"eu-{number}" for number in range(6 - n_lacking)), order=0, **reads(m, "at-eu", EU, nbytes=56 * MB))
    for number in range(n_lacking):
        submit(m, f"lacks-{number}", order=1, site=EU, require=True, **reads(m, f"at-lab-{number}", LAB, nbytes=MB))
    copies = {(copy.du, copy.site) for copy in m.match(0.0).copies}
    assert copies == ({("at-lab-0", EU)} if n_lacking else {("at-eu", US)})


def test_of_equally_near_places_data_is_sent_to_the_one_that_has_less_to_do():
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    m.runtimes.observe("", 1.0)
    submit(m, "busy", pilot="us")
    submit(m, *(f"eu-{number}" for number in range(20)), order=0, **reads(m, "at-eu", EU, nbytes=100 * MB))
    assert [copy.site for copy in m.match(0.0).copies] == [LAB]


def test_units_of_one_pilot_bring_their_data_though_its_ways_are_taken():
    m = Matcher(Policy(Links()), ahead=True)
    m.add_pilot("us", US, 2)
    for number in range(2):
        m.add_worker("us", f"us-{number}", 1)
    for number in range(2):
        submit(m, f"cu-{number}", pilot="us", **reads(m, f"du-{number}", EU))
    assert bound(m) == {"cu-0": "us", "cu-1": "us"}, "there is no other place that it could wait for"


def test_with_many_waiting_more_is_brought_when_a_way_is_free_and_not_asked_for_before():
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    submit(m, "busy", pilot="us")
    assert bound(m) == {"busy": "us"}
    m.policy.links.begin(EU, US, 100 * MB, 1)
    m.policy.links.now = 2.04
    m.policy.links.observe(EU, US, 100 * MB, 2.04)
    m.policy.links.end(EU, US)
    for number in range(1500):
        submit(m, f"cu-{number}", order=number, **reads(m, f"du-{number}", EU))
    now, turns, copies = 3.0, 0, 0
    while now < 9.0:
        matching = m.match(now)
        copies += len(matching.copies)
        assert matching.recheck_s is not None
        now += matching.recheck_s
        turns += 1
    assert copies == 2, "none has ended"
    assert turns < 40


def bring(m, seconds=1.0, until=30.0):
    """Have all that is ordered come, each copy so many seconds later; gives the copies and who ran where."""
    copies, ran, coming, now = [], {}, [], 0.0
    while now < until:
        for copy in [each for at, each in coming if at <= now]:
            view = m.inputs[copy.du]
            m.inputs[copy.du] = InputView(view.id, view.nbytes, view.n_files, (*view.sites, copy.site), 1)
            m.policy.links.now = now
            m.policy.links.observe(view.sites[0], copy.site, view.nbytes, seconds)
            m.copied(copy.du, copy.site)
            m.data_changed(copy.du)
        coming = [(at, each) for at, each in coming if at > now]
        matching = m.match(now)
        copies += matching.copies
        coming += [(now + seconds, each) for each in matching.copies]
        for binding in matching.bindings:
            ran[binding.unit] = binding.pilot
            m.release(binding.unit)
        now += 0.25
    return copies, ran


def test_a_unit_runs_at_a_third_place_if_what_it_lacks_comes_there_for_others():
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    reads(m, "a", EU)
    reads(m, "b", US)
    for number in range(3):
        reads(m, f"l{number}", LAB)
        submit(m, f"a{number}", order=0, inputs=("a", f"l{number}"))
        submit(m, f"b{number}", order=0, inputs=("b", f"l{number}"))
    submit(m, "third", order=0, inputs=("a", "b"))
    copies, ran = bring(m)
    assert sorted((copy.du, copy.site) for copy in copies) == [("a", LAB), ("b", LAB)]
    assert ran == dict.fromkeys([*(f"{x}{number}" for x in "ab" for number in range(3)), "third"], "lab")


def test_what_lies_in_three_places_comes_to_one_of_them_piece_by_piece():
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    for number in range(3):
        for site in (EU, US, LAB):
            reads(m, f"{site.machine}{number}", site, nbytes=10 * MB)
        submit(m, f"cu-{number}", order=0, inputs=(f"e{number}", f"u{number}", f"l{number}"))
    copies, ran = bring(m)
    assert sorted(ran) == ["cu-0", "cu-1", "cu-2"]
    assert len(copies) == 6
    assert sorted(ran.values()) == ["eu", "lab", "us"], "each place one: so all ways have as much to do"


def test_a_link_on_which_something_all_but_stands_is_used_by_those_who_have_no_other():
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    m.policy.links.begin(LAB, EU, 100 * MB, 1)
    m.policy.links.stall(LAB, EU)
    for number in range(3):
        submit(m, f"cu-{number}", order=0, **reads(m, f"du-{number}", Site("far", "f"), nbytes=10 * MB))
    for number in range(3):
        for which, site in (("a", EU), ("b", LAB)):
            reads(m, f"{which}{number}", site, nbytes=10 * MB)
        submit(m, f"ab-{number}", order=0, inputs=(f"a{number}", f"b{number}"))
    copies, ran = bring(m)
    assert len(ran) == 6
    assert [copy for copy in copies if copy.du.startswith("b") and copy.site == EU] == []
    m.policy.links.end(LAB, EU, was_stalled=True)
    assert not m.policy.links.is_stalled(LAB, EU)


def test_who_is_urgent_and_cannot_be_served_keeps_nobody_else_from_his_data():
    """Nothing can be brought to where no worker is yet."""
    m = brings_ahead(eu=EU, us=US)
    m.add_pilot("lab", LAB, 1)
    for which in "xy":
        reads(m, which, Site("far", which), nbytes=10 * MB)
    submit(m, "urgent", priority=1.0, site=LAB, require=True, inputs=("x", "y"))
    for number in range(6):
        for which, site in (("e", EU), ("u", US)):
            reads(m, f"{which}{number}", site, nbytes=10 * MB)
        submit(m, f"cu-{number}", order=0, inputs=(f"e{number}", f"u{number}"))
    assert {copy.site for copy in m.match(0.0).copies} == {EU, US}


def test_the_most_urgent_unit_of_a_line_says_when_its_data_is_brought():
    for more in (0, 1):
        m = brings_ahead(eu=EU, us=US)
        for number in range(4):
            for which, site in (("e", EU), ("u", US)):
                reads(m, f"{which}{number}", site, nbytes=10 * MB)
            submit(m, f"cu-{number}", order=0, inputs=(f"e{number}", f"u{number}"))
        submit(m, "high", priority=5.0, order=0, inputs=("e3", "u3"))
        if more:
            submit(m, "low", "lower", priority=-1.0, order=0, inputs=("e3", "u3"))
        assert m.match(0.0).copies[0].du in ("e3", "u3")


def test_a_link_with_much_to_do_keeps_nobody_from_ways_that_it_leaves():
    far = Site("far", "f")
    sites = {"eu": EU, "us": US, "lab": LAB, "far": far}
    m = brings_ahead(**sites)
    for here, there, number in (
        ("eu", "us", 20),
        *((one, other, 2) for one in sites for other in sites if one != other),
    ):
        for each in range(number):
            du = f"{here}-{there}-{number}-{each}"
            reads(m, du, sites[here], nbytes=10 * MB)
            submit(m, f"cu-{du}", order=0, site=sites[there], require=True, inputs=(du,))
    copies = m.match(0.0).copies
    assert {copy.site for copy in copies} == set(sites.values())
    assert {m.inputs[copy.du].sites[0] for copy in copies} == set(sites.values())


def test_data_is_brought_also_where_units_were_submitted_to_a_pilot_directly():
    m = brings_ahead(eu=EU, us=US)
    submit(m, "own", pilot="eu", kind="own")
    assert bound(m) == {"own": "eu"}
    for number in range(4):
        submit(m, f"cu-{number}", order=0, **reads(m, f"du-{number}", Site("far", "f"), nbytes=10 * MB))
    copies, ran = bring(m)
    assert sorted(copy.du for copy in copies) == [f"du-{number}" for number in range(4)]
    assert len(ran) == 4
