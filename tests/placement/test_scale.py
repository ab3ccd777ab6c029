"""What must not grow: the work of an event, and what is kept of units that wait no more."""

import sys

from dpilot.placement import InputView, Matcher, Policy, Request, Site

MB = 10**6


def world(pilots, units, readers_of=None):
    inputs = {}
    m = Matcher(Policy(), inputs=inputs)
    for number in range(pilots):
        site = Site(f"dc{number // 10}", f"m{number}")
        m.add_pilot(f"p{number}", site, 2)
        m.add_worker(f"p{number}", f"p{number}-0", 2)
        inputs[f"du{number}"] = InputView(f"du{number}", MB, 1, (site,))
    for number in range(units):
        mine = f"own{number}"
        inputs[mine] = InputView(mine, MB, 1, inputs[f"du{number % pilots}"].sites)
        m.submit(
            f"u{number}", Request("cds", inputs=(mine, readers_of) if readers_of else (mine,)), now=0.0, order=number
        )
    return m


def drain(m, now=0.0):
    """Match until nothing more is bound; returns the calls it took, and the most that one bound."""
    calls, most = 0, 0
    while True:
        matching = m.match(now)
        calls += 1
        most = max(most, len(matching.bindings))
        if matching.recheck_s != 0.0:
            return calls, most


def calls_of(m, work):
    """How many Python functions an event runs through: the same on every machine."""
    count = 0

    def see(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_one_call_binds_a_bounded_number_and_asks_for_the_next_at_once():
    m = world(pilots=400, units=2000)
    calls, most = drain(m)
    assert calls > 2
    assert most <= 128
    assert len(m) == 1200


def test_a_slot_that_comes_free_costs_as_much_among_many_pilots_and_units_as_among_few():
    def event(pilots, units):
        m = world(pilots, units)
        drain(m)
        bound = sorted(m._pilot_of)[:20]

        def ends():
            for unit in bound:
                m.release(unit)
                m.match(1.0)

        return calls_of(m, ends)

    few, many = event(10, 100), event(500, 5000)
    assert many < 1.5 * few


def test_a_worker_that_joins_costs_as_much_with_many_waiting_as_with_few():
    def join(units):
        m = world(10, units)
        drain(m)
        return calls_of(m, lambda: (m.add_worker("p3", "late", 2), m.match(1.0)))

    assert join(5000) < 1.5 * join(100)


def test_a_data_unit_that_all_read_may_change_at_any_time():
    m = world(pilots=10, units=3000, readers_of="du0")
    drain(m)

    def change():
        m.inputs["du0"] = InputView("du0", MB, 1, (Site("dc0", "m0"), Site("dc0", "m5")))
        m.data_changed("du0")

    assert calls_of(m, change) < 30_000  # some of the lines, not all of them
    before = len(m)
    m.release(next(iter(m._pilot_of)))
    drain(m, 1.0)
    assert len(m) < before


def test_nothing_is_kept_of_units_that_wait_no_more():
    m = world(pilots=10, units=200)
    now = 0.0
    while len(m) or m._pilot_of:
        now += 1.0
        drain(m, now)
        for unit in list(m._pilot_of):
            m.release(unit)
    assert (m._lines, m._readers, m._waiting, len(m.transit)) == ({}, {}, {}, 0)
    assert all(not pilot.slots.reservations for pilot in m._pilots.values())
    (pool,) = m.pools
    places = [pool.root, *pool.zones.values(), *(place for places in pool.machines.values() for place in places)]
    assert all((place.own, place.below) == ({}, {}) for place in places)
