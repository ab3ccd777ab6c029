"""Units that are sent after others, so that no slot stands idle while messages travel."""

from dpilot.placement import Links, Matcher, Policy, Site
from tests.placement.matching import EU, MB, US, bound, reads, submit


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


def test_nobody_is_sent_after_a_unit_when_it_turns_out_that_that_does_not_end():
    m = Matcher(Policy(Links(), 1.0))
    m.add_pilot("p", Site("p"), 1)
    m.add_worker("p", "p-0", 1)
    m.set_gap("p", 0.1)
    m.runtimes.observe("", 1.0)
    submit(m, "a")
    assert bound(m) == {"a": "p"}
    m.leave("a")
    now = 1.0 + m.match(1.0).recheck_s
    submit(m, "b", now=now)
    matching = m.match(now)
    assert not matching.bindings
    assert not matching.returns


def test_while_others_wait_the_next_one_follows_though_nobody_knows_when_the_one_before_ends():
    def bound_before_the_end(n_waiting):
        """What is bound behind a unit that should have run for long by then, while another runs."""
        m = Matcher(Policy(Links(), 1.0))
        m.add_pilot("p", Site("p"), 2)
        m.add_worker("p", "p-0", 2)
        m.set_gap("p", 0.1)
        for seconds in (0.2, 3.0, 0.5, 2.0):
            m.runtimes.observe("", seconds)
        submit(m, "a", "b", *(f"cu-{number}" for number in range(n_waiting)))
        assert len(bound(m)) == 2
        return bound(m, m.runtimes.known_s(""))

    assert bound_before_the_end(1) == {}, "it may yet go wherever a slot is free first"
    assert bound_before_the_end(6) == {"cu-0": "p", "cu-1": "p"}


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


def test_where_messages_take_no_time_but_data_does_the_next_one_brings_its_own_meanwhile():
    m = Matcher(Policy(Links(), 1.0))
    reads_at_home(m, 0.001, runs_s=10.0)
    m.staged("a", 4.0)
    assert bound(m, 0.5) == {}
    assert bound(m, 6.4) == {}
    assert bound(m, 6.6) == {"b": "us"}
    assert not m.match(10.4).returns, "nobody is late before it should have ended"
    assert m.match(10.7).returns == ["b"]


def test_nothing_follows_where_it_would_outlast_the_pilot_once_its_data_has_come():
    ran = {}
    for ends_at in (20.9, 21.1):
        m = Matcher(Policy(Links(), 1.0))
        reads_at_home(m, 0.001, runs_s=10.0)
        m.set_end("us", ends_at)
        m.staged("a", 4.0)
        m.match(0.5)
        ran[ends_at] = bound(m, 7.0)
    assert ran == {20.9: {}, 21.1: {"b": "us"}}


def test_where_it_is_heard_late_that_a_unit_runs_the_next_one_is_sent_as_much_earlier():
    m = Matcher(Policy(Links(), 1.0))
    reads_at_home(m, 0.1, runs_s=1.0)
    m.staged("a", late_s=0.3)
    assert round(m.match(0.5).recheck_s, 6) == 0.5
    assert bound(m, 0.99) == {}
    assert bound(m, 1.01) == {"b": "us"}


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
