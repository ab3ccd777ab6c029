"""Run times of kinds of work: what is known while few have ended."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dpilot.placement import Matcher, Request, RunTimes, Site


def test_the_first_to_end_do_not_pass_for_all():
    draw, runtimes = random.Random(1), RunTimes()
    ends = sorted((draw.expovariate(1 / 2.0), f"cu-{i}") for i in range(500))
    for _, unit in ends:
        runtimes.begin("kind", unit, 0.0)
    for ended_s, unit in ends[:30]:
        runtimes.now = ended_s
        runtimes.end(unit)
        runtimes.observe("kind", ended_s)
    assert ends[29][0] < 0.3
    assert runtimes.known_s("kind") < ends[29][0]
    assert runtimes.expected_s("kind") == ends[29][0]  # all that is sure: most have run that long


def test_units_that_are_alike_are_known_after_the_first():
    runtimes = RunTimes()
    for i in range(6):
        runtimes.begin("kind", f"cu-{i}", 0.1 * i)
    runtimes.now = 1.0
    runtimes.end("cu-0")
    runtimes.observe("kind", 1.0)
    assert runtimes.expected_s("kind") == 1.0


def test_nobody_looks_after_a_kind_none_of_whose_units_run_any_more():
    """The first one was lost: what it had shown is no reason to look again, and says nothing of the next one."""
    runtimes = RunTimes()
    for unit in ("cu-0", "cu-1"):
        runtimes.begin("kind", unit, 0.0)
    runtimes.end("cu-0")
    assert runtimes.unknown_for_s(8.0) == 8.0
    runtimes.end("cu-1")
    assert runtimes.unknown_for_s(9.0) is None
    runtimes.begin("kind", "cu-2", 3600.0)
    assert runtimes.unknown_for_s(3601.0) == 1.0


def test_the_next_one_is_sent_ahead_only_where_the_end_is_known_well_enough():
    runtimes, gap_s = RunTimes(), 0.06
    assert runtimes.follow_s("even", gap_s) == 0.0, "nothing is known, and the next one does not wait for long there"
    assert runtimes.follow_s("even", 0.01) is None
    for _ in range(10):
        runtimes.observe("even", 1.0)
    assert runtimes.follow_s("even", gap_s) == 1.0
    assert runtimes.follow_s("even", 0.01) is None
    for seconds in (0.1, 3.0, 0.5, 2.0):
        runtimes.observe("uneven", seconds)
    assert runtimes.follow_s("uneven", gap_s) is None
    mean_s = runtimes.known_s("uneven")
    assert mean_s / 2 < runtimes.follow_s("uneven", gap_s, is_queueing=True) < mean_s, "any slot has one to run then"
    for _ in range(3):
        runtimes.observe("tiny", 0.01)
    assert runtimes.follow_s("tiny", gap_s) is None, "it is kept in line there instead"


def test_more_units_are_kept_at_a_worker_that_is_farther_away():
    bound = {}
    for gap_s in (0.0, 0.1, 60.0):
        m = Matcher(in_flight_s=0.05)
        m.add_pilot("p", Site("eu", "m"), 2)
        m.add_worker("p", "w", 2)
        m.set_gap("p", gap_s)
        m.runtimes.observe("", 0.01)
        for i in range(200):
            m.submit(f"cu-{i}", Request("cds"), now=0.0)
        bound[gap_s] = len(m.match(0.0).bindings)
    assert bound == {0.0: 10, 0.1: 30, 60.0: 60}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["begin", "end", "observe"])), max_size=60))
def test_what_is_expected_is_never_less_than_what_was_seen(steps):
    runtimes, begun = RunTimes(), set()
    for now, (number, step) in enumerate(steps):
        runtimes.now = float(now)
        unit = f"cu-{number}"
        if step == "begin" and unit not in begun:
            runtimes.begin("kind", unit, float(now))
            begun.add(unit)
        elif step == "end":
            runtimes.end(unit)
            begun.discard(unit)
        elif step == "observe":
            runtimes.observe("kind", float(number))
        known_s = runtimes.known_s("kind")
        assert runtimes.expected_s("kind") >= (0.5 if known_s is None else known_s)
