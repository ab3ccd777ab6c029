"""Memory, GPUs and the end of a pilot: what they rule out, at submit and when a slot is free."""

import pytest

from dpilot.placement import Matcher, PilotSlots, PilotView, Request, Site, feasible

EU, US = Site("eu", "e"), Site("us", "u")
GB = 10**9


def bound(m, now=0.0):
    return {binding.unit: binding.pilot for binding in m.match(now).bindings}


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cds"), None),
        (Request("cds", slots=5), "5 slots are needed, it has 4"),
        (Request("cds", memory_nbytes=8 * GB), None),
        (Request("cds", memory_nbytes=9 * GB), "9,000,000,000 bytes of memory are needed, a worker has 8,000,000,000"),
        (Request("cds", slots=2, memory_nbytes=9 * GB), None),
        (Request("cds", gpus=2), None),
        (Request("cds", gpus=3), "3 GPUs are needed, a worker has 2"),
        (Request("cds", walltime_s=60.0), None),
        (Request("cds", walltime_s=61.0), "it would run for 61 s, and the pilot ends in 60 s"),
        (Request("cds", site=US, require=True), "required, but datacenter eu is not us"),
        (Request("cds", pilot="other"), "the unit was submitted to other"),
    ],
)
def test_what_a_pilot_could_never_run(request_, reason):
    assert feasible(request_, PilotView("p", EU, 4, 0, 0.0, 8 * GB, 2, 60.0)) == reason


def test_a_stated_walltime_counts_before_what_was_learned():
    view = PilotView("p", EU, 1, 1, left_s=60.0)
    assert feasible(Request("cds"), view, expected_s=61.0) is not None
    assert feasible(Request("cds", walltime_s=10.0), view, expected_s=61.0) is None
    assert feasible(Request("cds", memory_nbytes=GB), view) is None  # how much it has is not known


def test_memory_is_shared_out():
    pilot = PilotSlots()
    pilot.add_worker("w", 4, memory_nbytes=8 * GB)
    assert pilot.acquire("a", 1, 1.0, memory_nbytes=5 * GB)
    assert not pilot.fits(1, 1.0, memory_nbytes=5 * GB)
    assert pilot.acquire("b", 1, 1.0, memory_nbytes=5 * GB) is None
    assert pilot.acquire("c", 1, 1.0, memory_nbytes=3 * GB)
    assert pilot.acquire("d", 1, 1.0)
    pilot.release("a")
    assert pilot.acquire("b", 1, 1.0, memory_nbytes=5 * GB)


def test_a_gpu_is_given_to_one_unit_at_a_time():
    pilot = PilotSlots()
    pilot.add_worker("plain", 4)
    pilot.add_worker("gpus", 4, gpus=3)
    first, second = (pilot.acquire(unit, 1, 1.0, gpus=n).shares[0] for unit, n in (("a", 1), ("b", 2)))
    assert (first.worker, first.gpus, second.worker, second.gpus) == ("gpus", (0,), "gpus", (1, 2))
    assert pilot.acquire("c", 1, 1.0, gpus=1) is None
    pilot.release("a")
    assert pilot.acquire("c", 1, 1.0, gpus=1).shares[0].gpus == (0,)


def test_a_wide_unit_takes_memory_and_gpus_where_its_slots_are():
    pilot = PilotSlots()
    for name in ("w0", "w1"):
        pilot.add_worker(name, 2, memory_nbytes=4 * GB, gpus=1)
    wide = pilot.acquire("wide", 4, 1.0, memory_nbytes=8 * GB, gpus=2)
    assert [(share.slots, share.memory_nbytes, share.gpus) for share in wide.shares] == [(2, 4 * GB, (0,))] * 2
    pilot.release("wide")
    assert pilot.acquire("wide", 4, 1.0, memory_nbytes=9 * GB) is None
    assert pilot.acquire("wide", 2, 1.0, gpus=3) is None
    assert (pilot.idle, pilot.reservations) == (4, {})


def test_units_go_where_their_gpus_are_and_wait_for_them():
    m = Matcher()
    m.add_pilot("plain", EU, 2)
    m.add_worker("plain", "p0", 2)
    m.submit("g1", Request("cds", gpus=1), now=0.0)
    m.submit("g2", Request("cds", gpus=1), now=0.0, order=1)
    m.submit("any", Request("cds"), now=0.0, order=2)
    assert bound(m) == {"any": "plain"}
    assert m.explain("g1").rows[0].reason == "1 GPUs are needed, a worker has 0"
    m.add_pilot("gpu", US, 2, gpus=1)
    assert bound(m) == {}
    m.add_worker("gpu", "g0", 2, gpus=1)
    assert bound(m) == {"g1": "gpu"}
    assert m.held("g1").shares[0].gpus == (0,)
    m.release("g1")
    assert bound(m) == {"g2": "gpu"}
    assert m.held("g1") is None


def test_memory_that_no_worker_has_keeps_nobody_else_waiting():
    m = Matcher()
    m.add_pilot("p", EU, 2)
    m.add_worker("p", "w", 2, memory_nbytes=GB)
    m.submit("huge", Request("cds", memory_nbytes=2 * GB), now=0.0)
    m.submit("small", Request("cds", memory_nbytes=GB), now=0.0, order=1)
    assert bound(m) == {"small": "p"}
    m.add_worker("p", "w2", 1, memory_nbytes=2 * GB)
    assert bound(m) == {"huge": "p"}
    assert m.held("huge").worker == "w2"


def test_nothing_is_placed_that_cannot_finish():
    m = Matcher()
    m.add_pilot("p", EU, 1, ends_at=100.0)
    m.add_worker("p", "w", 1)
    m.submit("long", Request("cds", walltime_s=60.0), now=0.0)
    m.submit("unknown", Request("cds"), now=0.0, order=1)
    assert bound(m, now=50.0) == {"unknown": "p"}  # nobody knows how long it runs
    m.release("unknown")
    assert m.explain("long", now=50.0).rows[0].reason == "it would run for 60 s, and the pilot ends in 50 s"
    m.submit("short", Request("cds", walltime_s=40.0), now=50.0, order=2)
    assert bound(m, now=55.0) == {"short": "p"}
    m.add_pilot("later", US, 1)
    m.add_worker("later", "l", 1)
    assert bound(m, now=56.0) == {"long": "later"}


def test_run_times_that_were_learned_count_against_the_end():
    m = Matcher()
    m.add_pilot("p", EU, 1)
    m.add_worker("p", "w", 1)
    m.set_end("p", 10.0)
    m.runtimes.observe("long", 20.0)
    m.submit("long", Request("cds", "long"), now=0.0)
    assert bound(m) == {}
    m.set_end("p", 100.0)
    assert bound(m) == {"long": "p"}


def test_a_line_whose_home_will_not_last_goes_elsewhere():
    from dpilot.placement import InputView

    m = Matcher(inputs={"du": InputView("du", 10**7, 1, (EU,))})
    for name, site in (("eu", EU), ("us", US)):
        m.add_pilot(name, site, 1)
        m.add_worker(name, f"{name}-0", 1)
    m.set_end("eu", 100.0)
    m.runtimes.observe("", 60.0)
    for number in range(2):
        m.submit(f"u{number}", Request("cds", inputs=("du",), walltime_s=60.0), now=0.0, order=number)
    assert bound(m)["u0"] == "eu"
    m.release("u0")
    m.release("u1")
    m.submit("late", Request("cds", inputs=("du",), walltime_s=60.0), now=0.0, order=3)
    assert bound(m, now=50.0) == {"late": "us"}


def test_what_lasts_too_long_for_a_pilot_keeps_nobody_from_it():
    """Equal units but for how long they run: the first waits for a pilot that lasts, the others do not wait for it."""
    m = Matcher()
    for name, ends_at in (("short", 50.0), ("long", None)):
        m.add_pilot(name, Site("eu", "e"), 1, ends_at=ends_at)
        m.add_worker(name, f"{name}-0", 1)
    m.observe("long", 100.0)
    m.observe("quick", 1.0)
    for number, kind in enumerate(("long", "long", "quick")):
        m.submit(f"{kind}-{number}", Request("cds", kind), now=0.0, order=number)
    assert {binding.unit: binding.pilot for binding in m.match(0.0).bindings} == {"long-0": "long", "quick-2": "short"}


def test_kinds_of_work_that_come_no_more_are_forgotten():
    m = Matcher()
    m.add_pilot("p", Site("eu", "e"), 1, ends_at=1e6)
    m.add_worker("p", "p-0", 1)
    for number in range(1000):
        m.submit(f"cu-{number}", Request("cds", f"kind-{number}"), now=0.0)
        assert [binding.unit for binding in m.match(0.0).bindings] == [f"cu-{number}"]
        m.release(f"cu-{number}")
    (place,) = {place for place in m._pilots["p"].places if place.parent is None}
    assert len(place.queues) <= 64
