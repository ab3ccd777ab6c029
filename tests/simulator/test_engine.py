"""Units, pilots and caches by the clock: cases of which the answer is known."""

import math

import pytest

from dpilot.errors import PlacementError
from dpilot.simulator import Binding, Data, Link, Orders, Pilot, RandomPilot, Scenario, Store, Unit, make_plan, simulate
from tests.simulator.helpers import check

MB = 10**6
E, U = ("eu", "e"), ("us", "u")
LINK = Link(10 * MB, between=("eu", "us"))


def bag(n=10, run_s=1.0, **pilot):
    return Scenario((Pilot("p", **{"slots": 4, **pilot}),), tuple(Unit(f"cu-{i}", run_s) for i in range(n)))


@pytest.mark.parametrize("policy", ["random", "round-robin", "dpilot"])
@pytest.mark.parametrize(("n", "slots", "makespan_s"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (10, 1, 10), (10, 3, 4)])
def test_a_bag_of_tasks(policy, n, slots, makespan_s):
    assert simulate(bag(n, slots=slots), policy).makespan_s == pytest.approx(makespan_s)


def test_a_fast_pilot_is_fast():
    assert simulate(bag(4, speed=2.0)).makespan_s == pytest.approx(0.5)


def test_a_pilot_that_comes_late():
    assert simulate(bag(4, submitted_s=0.0, arrives_s=7.0)).makespan_s == pytest.approx(8)


def test_data_comes_to_a_pilot_that_comes_late_as_to_one_that_is_there():
    """It was declared when units were submitted, but had no workers yet to bring anything."""
    stores, data, units = (Store("s", *U),), (Data("d", 50 * MB, replicas=("s",)),), (Unit("cu", 1.0, inputs=("d",)),)
    pilots = [Pilot("p", 1, *E, submitted_s=0.0, arrives_s=at_s) for at_s in (0.0, 7.0)]
    results = [simulate(Scenario((pilot,), units, stores, data, (LINK,))) for pilot in pilots]
    assert results[1].makespan_s == pytest.approx(results[0].makespan_s + 7)


def test_what_a_lost_pilot_was_bringing_is_brought_anew_at_once():
    """The scheduler hears that it will not come, and does not find it out after a while."""
    pilots = (Pilot("a", 1, *E, ends_s=2.0), Pilot("b", 1, *E))
    stores, data, units = (Store("s", *U),), (Data("d", 50 * MB, replicas=("s",)),), (Unit("cu", 1.0, inputs=("d",)),)
    result = simulate(Scenario(pilots, units, stores, data, (LINK,)))
    assert result.makespan_s <= 2 + 5 + 1 + 0.01


def test_units_that_are_submitted_later():
    units = tuple(Unit(f"cu-{i}", 1.0, submitted_s=10.0 * i) for i in range(3))
    result = simulate(Scenario((Pilot("p", 1),), units))
    assert (result.makespan_s, result.flow_s) == (pytest.approx(21), pytest.approx(1))


@pytest.mark.parametrize("policy", ["random", "round-robin", "dpilot"])
def test_higher_priority_first(policy):
    units = tuple(Unit(f"cu-{i}", 1.0, priority=i) for i in range(4))
    result = simulate(Scenario((Pilot("p", 1),), units), policy)
    assert [row["unit"] for row in result.trace] == ["cu-3", "cu-2", "cu-1", "cu-0"]


@pytest.mark.parametrize("policy", ["random", "round-robin", "dpilot"])
def test_what_runs_on_a_lost_pilot_runs_again(policy):
    pilots = (Pilot("a", 2, *E), Pilot("b", 2, *U, ends_s=1.5))
    scenario = Scenario(pilots, tuple(Unit(f"cu-{i}", 1.0) for i in range(8)))
    result = simulate(scenario, policy)
    check(result, scenario)
    assert result.n_lost >= 2
    assert result.makespan_s == pytest.approx(3)
    assert result.utilisation == (pytest.approx(1), pytest.approx(2 / 3))


def test_a_walltime_is_an_end():
    assert Pilot("p", 1, arrives_s=10.0, walltime_s=60.0).gone_s == 70
    assert Pilot("p", 1, walltime_s=60.0, ends_s=50.0).gone_s == 50


def test_without_a_pilot_left_it_says_who_waits():
    with pytest.raises(PlacementError, match=r"1 units are left at 1 s .* 0 pilots are there, and random leaves cu-0"):
        simulate(bag(1, ends_s=0.5), "random")


def test_who_asks_to_be_asked_again_for_ever_is_stuck_too():
    class Asks(RandomPilot):
        name = "asks"

        def decide(self, now):
            return Orders(recheck_s=1.0)

    with pytest.raises(PlacementError, match=r"1 units are left .* asks leaves cu-0 waiting"):
        simulate(bag(1), Asks())


def test_a_kind_whose_first_unit_was_lost_does_not_go_on_for_ever():
    """dpilot looked now and then at how long it had run by now."""
    with pytest.raises(PlacementError, match=r"1 units are left at 1 s .* dpilot leaves cu-0"):
        simulate(bag(1, ends_s=0.5), "dpilot")


def test_messages_take_time():
    # bind: 1 s there; run; the slot is given again when the end is known, and the next binding has arrived
    units = tuple(Unit(f"cu-{i}", 1.0) for i in range(2))
    assert simulate(Scenario((Pilot("p", 1, delay_s=1.0),), units), "random").makespan_s == pytest.approx(1 + 1 + 2 + 1)
    assert simulate(Scenario((Pilot("p", 1, delay_s=1.0),), units), "round-robin").makespan_s == pytest.approx(3)


def test_messages_about_what_is_brought_ahead_take_time():
    scenario = Scenario(
        (Pilot("p", 1, "here", "here", delay_s=0.5),),
        (Unit("u", 2.0, ("d",)),),
        (Store("s", "there", "there"),),
        (Data("d", 1_000_000, replicas=("s",)),),
        (Link(1e6, 0.0, ("here", "there")),),
    )
    # it is told to bring it, brings it, tells of it, is told to run the unit, runs it
    assert simulate(scenario, "dpilot").makespan_s == pytest.approx(0.5 + 1.0 + 0.5 + 0.5 + 2.0, abs=1e-3)


def test_what_is_brought_ahead_over_one_link_comes_in_turn():
    """The next one is ordered while the first is being sent, and waits for its connections."""
    scenario = Scenario(
        (Pilot("p", 1, "here", "here"),),
        tuple(Unit(f"u{number}", 0.1, (f"d{number}",)) for number in range(3)),
        (Store("s", "there", "there"),),
        tuple(Data(f"d{number}", MB, replicas=("s",)) for number in range(3)),
        (Link(1.0 * MB, 0.0, ("here", "there")),),
    )
    result = simulate(scenario, "dpilot")
    assert result.trace is not None
    assert [row["ended_s"] for row in result.trace] == pytest.approx([1.1, 2.1, 3.1], abs=1e-3)


def test_a_wide_unit_takes_its_slots():
    units = (Unit("one", 2.0), Unit("wide", 1.0, slots=4), Unit("two", 1.0))
    scenario = Scenario((Pilot("p", 4, workers=2),), units)
    for policy in ("random", "round-robin", "dpilot"):
        result = simulate(scenario, policy)
        check(result, scenario)
        assert result.makespan_s >= 3


def reads(n=2, **more):
    fields = {
        "pilots": (Pilot("p", 2, *U),),
        "stores": (Store("s", *E),),
        "data": (Data("du", 10 * MB, replicas=("s",)),),
        "units": tuple(Unit(f"cu-{i}", 1.0, ("du",)) for i in range(n)),
        "links": (LINK,),
    }
    return Scenario(**(fields | more))


def test_a_data_unit_is_brought_to_a_machine_once():
    result = simulate(reads(8, pilots=(Pilot("p", 2, *U), Pilot("q", 2, *U))), "random")
    assert result.makespan_s == pytest.approx(3)
    assert result.nbytes == (70 * MB, 0, 10 * MB)


def test_what_has_no_bytes_comes_as_what_was_before_it_is_broken_off():
    """A plan brings both ahead, and the pilot that does goes."""
    scenario = Scenario(
        (Pilot("stays", 3, *E), Pilot("goes", 1, *E, ends_s=0.5)),
        (Unit("cu-0", 0.0, ("large", "empty")),),
        (Store("s", *U),),
        (Data("large", 100 * MB, replicas=("s",)), Data("empty", 0, replicas=("s",))),
    )
    _, result = make_plan(scenario)
    assert result.n_units == 1


def test_without_a_machine_label_each_pilot_has_a_cache_of_its_own():
    result = simulate(reads(4, pilots=(Pilot("p", 2, "us"), Pilot("q", 2, "us"))), "random")
    assert result.nbytes == (20 * MB, 0, 20 * MB)
    assert result.makespan_s == pytest.approx(2 + 1)


def test_what_does_not_fit_into_a_cache_is_brought_each_time():
    result = simulate(reads(4, cache_nbytes=5 * MB), "random")
    assert result.nbytes == (0, 0, 40 * MB)


def test_the_least_recently_used_is_evicted():
    data = tuple(Data(f"du-{i}", 10 * MB, replicas=("s",)) for i in range(3))
    order = [0, 1, 0, 2, 0, 1]  # 0 stays, 1 goes for 2, 2 for 1
    units = tuple(Unit(f"cu-{n}", 1.0, (f"du-{i}",)) for n, i in enumerate(order))
    result = simulate(reads(data=data, units=units, pilots=(Pilot("p", 1, *U),), cache_nbytes=20 * MB), "random")
    assert result.nbytes[2] == 40 * MB


def test_what_is_in_use_is_not_evicted():
    data = tuple(Data(f"du-{i}", 10 * MB, replicas=("s",)) for i in range(2))
    units = (Unit("long", 100.0, ("du-0",)), Unit("other", 1.0, ("du-1",)), Unit("again", 1.0, ("du-0",)))
    result = simulate(reads(data=data, units=units, cache_nbytes=15 * MB), "random")
    assert result.nbytes == (10 * MB, 0, 20 * MB)


def test_a_transfer_of_a_lost_pilot_is_broken_off_and_another_one_begins_anew():
    pilots = (Pilot("p", 1, *U, ends_s=0.5), Pilot("q", 1, *U))
    scenario = reads(2, pilots=pilots)
    result = simulate(scenario, "round-robin")
    check(result, scenario)
    assert result.wasted_nbytes == (0, 0, 5 * MB)
    assert result.far_nbytes == 15 * MB
    assert result.makespan_s == pytest.approx(0.5 + 1 + 2)


def test_peers_pass_on_what_they_have():
    pilots = tuple(Pilot(f"p-{i}", 1, "us", f"u-{i}") for i in range(4))
    near = Link(1000 * MB, distance=None, between=("u-0", "u-1"))
    alone = simulate(reads(4, pilots=pilots, links=(LINK, near)), "random")
    assert alone.nbytes == (0, 0, 40 * MB)
    later = tuple(Unit(f"cu-{i}", 1.0, ("du",), submitted_s=5.0 * i, pilot=f"p-{i}") for i in range(4))
    shared = simulate(reads(units=later, pilots=pilots, peers=True), "random")
    assert shared.nbytes == (0, 30 * MB, 10 * MB)


def flow(**more):
    fields = {
        "pilots": (Pilot("p", 2, *E),),
        "stores": (Store("s", *U),),
        "data": (Data("mid", 20 * MB),),
        "units": (Unit("reader", 1.0, ("mid",)), *(Unit(f"w-{i}", 1.0, outputs=("mid",)) for i in range(2))),
        "links": (LINK,),
    }
    return Scenario(**(fields | more))


@pytest.mark.parametrize("policy", ["random", "round-robin", "labels", "most-bytes", "dpilot"])
def test_a_reader_waits_for_all_that_write(policy):
    scenario = flow()
    result = simulate(scenario, policy)
    check(result, scenario)
    # both run 1 s, take 10 MB each to the store by one link in 2 s; then 20 MB come back in 2 s
    assert result.makespan_s == pytest.approx(1 + 2 + 2 + 1)
    assert result.waits_s[0] == pytest.approx(3 / 3)


def test_an_upload_of_a_lost_pilot_is_done_again():
    scenario = flow(pilots=(Pilot("p", 2, *E, ends_s=2.0), Pilot("q", 2, *E, arrives_s=2.0)))
    result = simulate(scenario, "random")
    check(result, scenario)
    assert result.wasted_nbytes == (0, 0, 10 * MB)
    assert result.makespan_s == pytest.approx(2 + 1 + 2 + 2 + 1)


def test_a_policy_that_binds_twice_is_refused():
    class Twice(RandomPilot):
        def decide(self, now):
            return Orders([Binding(0, 0), Binding(0, 0)])

    with pytest.raises(PlacementError, match="random cannot bind cu-0 to p at 0 s: it does not wait"):
        simulate(bag(1), Twice())


def test_a_policy_that_binds_to_a_pilot_that_is_not_there_is_refused():
    class Early(RandomPilot):
        def decide(self, now):
            return Orders([Binding(0, 0)])

    with pytest.raises(PlacementError, match="p is not there"):
        simulate(bag(1, arrives_s=1.0), Early())


def test_a_trace_is_written_as_csv_json_and_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    trace = simulate(reads(3), "random").trace
    assert len(trace) == 3
    trace.to_csv(tmp_path / "trace.csv")
    trace.to_json(tmp_path / "trace.jsonl")
    frame = trace.to_frame()
    assert list(frame.columns) == list(trace.COLUMNS)
    assert frame["far_nbytes"].sum() == 10 * MB
    from_csv = pandas.read_csv(tmp_path / "trace.csv")
    from_json = pandas.read_json(tmp_path / "trace.jsonl", lines=True)
    for read in (from_csv, from_json):
        assert list(read["unit"]) == [row["unit"] for row in trace]
        assert all(math.isclose(a, row["ended_s"]) for a, row in zip(read["ended_s"], trace, strict=True))
