"""Data that is brought to where units will run, ahead of them."""

import pytest

from dpilot.placement import Distance, InputView, Links, Matcher, Policy, Site
from dpilot.placement.ahead import Ahead
from dpilot.placement.wanted import Wanted
from tests.placement.matching import EU, LAB, MB, US, bound, brings_ahead, reads, submit


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


@pytest.mark.parametrize("n_eu", [0, 8, 20])
def test_what_the_longest_queue_will_send_as_soon_as_it_can_keeps_others_from_filling_the_place(n_eu):
    """Something leaves eu already; us is free to send, and would, if eu had no more than it has."""
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    m.runtimes.observe("", 1.0)
    m.policy.links.begin(EU, US, 100 * MB, 1)
    submit(m, *(f"eu-{number}" for number in range(n_eu)), order=0, **reads(m, "at-eu", EU, nbytes=10 * MB))
    for number in range(2):
        submit(m, *(f"us-{number}{n}" for n in range(5)), order=1, **reads(m, f"at-us-{number}", US, nbytes=10 * MB))
    submit(m, "lab-0", "lab-1", order=0, site=LAB, require=True)
    assert len(m.match(0.0).copies) == (n_eu < 20)


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


@pytest.mark.parametrize(("n_eu", "n_copies"), [(108, 0), (116, 1)])
def test_what_evens_out_little_is_not_worth_bytes(n_eu, n_copies):
    """us has 100 to do: of the rest of the makespan, half of what eu has more could be saved."""
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 0.1)
    for name, site, n in (("eu", EU, n_eu), ("us", US, 100)):
        for number in range(2):
            units = (f"{name}-{number}-{n}" for n in range(n // 2))
            submit(m, *units, order=0, **reads(m, f"at-{name}-{number}", site, nbytes=MB))
    assert len(m.match(0.0).copies) == n_copies


def test_while_no_way_has_room_it_is_not_thought_of_what_is_brought_next(monkeypatch):
    thoughts = []
    think = Wanted._bring_wanted
    monkeypatch.setattr(Wanted, "_bring_wanted", lambda *those: thoughts.append(think(*those)))
    m = brings_ahead(eu=EU, us=US)
    for number in range(6):
        submit(m, f"cu-{number}", **reads(m, f"du-{number}", LAB, nbytes=100 * MB))
    assert len(m.match(0.0).copies) == 1
    assert len(thoughts) == 1
    submit(m, "another", **reads(m, "du-6", LAB, nbytes=100 * MB))
    assert m.match(0.1).copies == []
    assert len(thoughts) == 1
    submit(m, "small", **reads(m, "du-7", LAB, nbytes=1000))
    assert m.match(0.2).copies == []
    assert [copy.du for copy in m.match(2.1).copies] == ["du-7"], "it need not wait till the link is known"


def test_it_is_not_looked_for_what_could_be_sent_after_each_of_many(monkeypatch):
    looks = []
    look = Ahead._send
    monkeypatch.setattr(Ahead, "_send", lambda *those: looks.append(look(*those)))
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 0.01)
    for name, site in (("eu", EU), ("us", US)):
        submit(m, *(f"{name}-{n}" for n in range(200)), order=0, **reads(m, f"at-{name}", site, nbytes=MB))
    now, done = 0.0, 0
    while (bindings := m.match(now).bindings) and len(m) > 100:
        now, done = now + 0.01, done + len(bindings)
        for binding in bindings:
            m.release(binding.unit)
    assert done > 250
    assert len(looks) < done / 6


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


@pytest.mark.parametrize("comes", ["joins", "opens"])
def test_data_is_brought_as_soon_as_there_is_a_worker_to_bring_it(comes):
    """Units are often submitted while their pilot has yet to start."""
    m = Matcher(Policy(Links()), ahead=True)
    m.add_pilot("eu", EU, 1)
    if comes == "opens":
        m.add_worker("eu", "eu-0", 1)
        m.open_worker("eu", "eu-0", False)
    submit(m, "cu", **reads(m, "du", US, nbytes=10 * MB))
    assert m.match(0.0).copies == []
    if comes == "opens":
        m.open_worker("eu", "eu-0", True)
    else:
        m.add_worker("eu", "eu-0", 1)
    assert [(copy.du, copy.pilot) for copy in m.match(0.5).copies] == [("du", "eu")]


def test_data_is_sent_to_a_free_place_though_one_of_two_homes_seems_to_be_free_soon():
    """What waits counts as work of one of its homes, but is that of both."""
    m = brings_ahead(eu=EU, us=US, lab=LAB)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"cu-{number}" for number in range(12)), order=0, **reads(m, "du", EU, US, nbytes=10 * MB))
    matching = m.match(0.0)
    assert sorted(binding.pilot for binding in matching.bindings) == ["eu", "us"]
    assert [(copy.du, copy.site) for copy in matching.copies] == [("du", LAB)]


def test_who_waits_for_data_that_is_on_its_way_does_not_bring_it_once_more():
    """Not even where it would be the first to run, at a place that has got its workers since."""
    m = brings_ahead(eu=EU)
    m.policy.links.observe(LAB, EU, 100 * MB, 10.0)
    submit(m, "a", "b", order=0, **reads(m, "du", LAB, nbytes=400 * MB))
    assert [copy.site for copy in m.match(0.0).copies] == [EU]
    m.add_pilot("us", US, 1)
    m.add_worker("us", "us-0", 1)
    for now in range(1, 40):  # as long as it takes, and beyond the patience of who has nothing on its way
        matching = m.match(float(now))
        assert (matching.bindings, matching.copies) == ([], [])


def test_who_waits_for_slow_ways_does_not_crowd_them():
    """Each of 4 takes 40 s, and as many units as there are slots would bring theirs at once after 10 s."""
    m = Matcher(Policy(Links()), ahead=True)
    m.add_pilot("eu", EU, 4)
    for number in range(4):
        m.add_worker("eu", f"eu-{number}", 1)
    m.policy.links.observe(LAB, EU, 10 * MB, 4.0)
    for number in range(4):
        submit(m, f"cu-{number}", order=0, **reads(m, f"du-{number}", LAB, nbytes=100 * MB))
    for now in range(39):
        assert m.match(float(now)).bindings == []
    assert len(m.transit) <= 2, "one, and the next, which takes its connections over"


@pytest.mark.parametrize(("nbytes", "n_copies"), [(100_000, 4), (10 * MB, 1)])
def test_an_unknown_link_is_tried_with_one_transfer_unless_that_would_tell_nothing(nbytes, n_copies):
    m = brings_ahead(eu=EU)
    for number in range(4):
        submit(m, f"cu-{number}", order=0, **reads(m, f"du-{number}", LAB, nbytes=nbytes))
    assert len(m.match(0.0).copies) == n_copies


def test_a_pilot_that_comes_to_where_the_data_is_takes_units_whose_copies_are_slow():
    """They were to run elsewhere, where their data would come in 400 s."""
    m = brings_ahead(eu=EU)
    m.runtimes.observe("", 1.0)
    m.policy.links.observe(LAB, EU, 10 * MB, 10.0)
    submit(m, "cu", **reads(m, "du", LAB, nbytes=400 * MB))
    assert [copy.site for copy in m.match(0.0).copies] == [EU]
    m.add_pilot("lab", LAB, 1)
    assert bound(m, 20.0) == {}, "it has no workers yet"
    m.add_worker("lab", "lab-0", 1)
    assert bound(m, 30.0) == {"cu": "lab"}


def test_nobody_waits_for_ever_for_a_copy_of_which_nothing_is_heard_any_more():
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    submit(m, "cu", **reads(m, "du", LAB, nbytes=400 * MB))
    assert len(m.match(0.0).copies) == 1
    ran, now = {}, 0.0
    while not ran and now < 10_000:
        matching = m.match(now)
        ran = {binding.unit: binding.pilot for binding in matching.bindings}
        now += max(0.01, matching.recheck_s or 1.0)
    assert set(ran) == {"cu"}


def test_a_link_that_is_not_known_is_tried_where_much_may_be_gained_while_work_goes_on_at_home():
    """500 MB take 10 s, if it is no slower than others: 30 s is what may well be. The queue at home lasts 20 s."""
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"u{number}" for number in range(20)), **reads(m, "du", EU, nbytes=500 * MB))
    matching = m.match(0.0)
    assert [(copy.du, copy.site) for copy in matching.copies] == [("du", US)]
    assert [binding.pilot for binding in matching.bindings] == ["eu"]
    m.release("u0")
    assert bound(m, 1.0) == {"u1": "eu"}  # they do not wait for it
    reads(m, "du", EU, US, nbytes=500 * MB)
    m.copied("du", US)
    m.data_changed("du")
    assert bound(m, 1.5) == {"u2": "us"}


def test_what_is_small_is_not_brought_on_trial():
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 0.1)
    submit(m, *(f"u{number}" for number in range(8)), **reads(m, "du", EU, nbytes=20 * MB))  # 0.4 s, or 1.2
    assert m.match(0.0).copies == []


@pytest.mark.parametrize(("nbytes", "copies"), [(1 * MB, 1), (100 * MB, 1), (400 * MB, 0)])
def test_the_last_few_do_not_wait_for_a_whole_round_if_their_way_takes_little_of_it(nbytes, copies):
    """Four run at home for an hour, or some of it yet, and three wait: elsewhere slots are free."""
    m = Matcher(Policy(Links()), ahead=True)
    for name, site in (("eu", EU), ("us", US)):
        m.add_pilot(name, site, 4)
        for number in range(4):
            m.add_worker(name, f"{name}-{number}", 1)
    m.policy.links.observe(EU, US, 100 * MB, 2.0)
    m.runtimes.observe("", 10.0)
    for number in range(7):
        submit(m, f"u{number}", **reads(m, f"du-{number}", EU, nbytes=nbytes))
    matching = m.match(0.0)
    assert len(matching.bindings) == 4
    assert len(matching.copies) == copies


def test_what_takes_no_time_to_bring_is_no_mistake_while_nothing_is_known_of_run_times():
    m = Matcher(Policy(Links(latency_s=dict.fromkeys(Distance, 0.0))), ahead=True)
    for name, site in (("eu", EU), ("us", US)):
        m.add_pilot(name, site, 1)
        m.add_worker(name, f"{name}-0", 1)
    submit(m, "one", "two", order=0, **reads(m, "empty", EU, nbytes=0))
    assert bound(m) == {"one": "eu"}
    assert [copy.site for copy in m.match(1.0).copies] == [US]


def test_the_last_one_goes_to_an_idle_slot_though_others_run_beside_it():
    m = Matcher(Policy(Links()), ahead=True)
    for name, site, slots in (("eu", EU, 4), ("us", US, 8)):
        m.add_pilot(name, site, slots)
        m.add_worker(name, f"{name}-0", slots)
    m.policy.links.observe(EU, US, 100 * MB, 2.0)
    m.runtimes.observe("", 10.0)
    for number in range(7):
        submit(m, f"v{number}", **reads(m, f"there-{number}", US, nbytes=MB))
    assert set(bound(m).values()) == {"us"}
    for number in range(5):
        submit(m, f"u{number}", **reads(m, f"du-{number}", EU, nbytes=MB))
    matching = m.match(0.1)
    assert {binding.pilot for binding in matching.bindings} == {"eu"}
    assert [copy.site for copy in matching.copies] == [US]


def test_what_cannot_be_brought_on_trial_is_not_ordered_again_at_once():
    m = brings_ahead(eu=EU, us=US)
    m.runtimes.observe("", 1.0)
    submit(m, *(f"u{number}" for number in range(20)), **reads(m, "du", EU, nbytes=500 * MB))
    ordered = 0
    for turn in range(100):
        copies = m.match(turn / 100).copies
        ordered += len(copies)
        for copy in copies:
            m.copied(copy.du, copy.site, False)
    assert ordered == 1
    assert m.transit.has_failed("du", US, 59.0)
    assert not m.transit.has_failed("du", US, 61.0)


def test_who_needs_nothing_brought_where_it_was_given_a_place_is_bound_at_once():
    """Its outputs would have it at eu, which is busy, and its data has yet to come; it is given us, where that is."""
    m = brings_ahead(eu=EU, us=US)
    m.observe("", 1.0)
    m.outputs.observe("", 120 * MB)
    m.policy.links.observe(US, EU, 100 * MB, 2.04)
    m.observe("long", 5.0)
    submit(m, "busy", kind="long", site=EU, require=True)
    assert bound(m) == {"busy": "eu"}
    submit(m, "a", outputs=((EU,),), **reads(m, "du", US))
    matching = m.match(0.0)
    assert matching.copies == []
    assert matching.recheck_s == 0.0
    assert bound(m, 0.0) == {"a": "us"}


@pytest.mark.parametrize("store", [Site(), Site(None, "elsewhere")])
@pytest.mark.parametrize("pilots", [{"p": Site(None, "(p)")}, {"eu": EU, "us": US}, {"p": Site(None, "(p)"), "us": US}])
def test_data_that_bears_no_label_of_a_datacenter_is_near_all_pilots_and_nothing_waits_for_a_copy(store, pilots):
    m = brings_ahead(**pilots)
    submit(m, *(f"cu-{number}" for number in range(len(pilots))), **reads(m, "du", store))
    matching = m.match(0.0)
    assert {binding.pilot for binding in matching.bindings} == set(pilots)
    assert not matching.copies
