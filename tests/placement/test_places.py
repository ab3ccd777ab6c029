"""Places and their pilots: the least loaded one is known without looking at them all."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dpilot.placement import Site
from dpilot.placement.places import Pilot, Pool
from dpilot.placement.slots import PilotSlots

SITES = [Site("eu", "e0"), Site("eu", "e1"), Site("us", "u0"), Site(None, None)]
kinds = st.sampled_from([*3 * ["take", "give"], "expect", "open", "part"])
actions = st.tuples(kinds, st.integers(0, 3), st.integers(0, 9))


def least(place):
    room = [pilot for pilot in place.pilots.values() if pilot.slots.has_room(0.0)]
    return min(room, key=lambda pilot: (*pilot.rank, pilot.name), default=None)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(SITES), min_size=1, max_size=4), st.lists(actions, min_size=20, max_size=60))
def test_a_place_knows_its_least_loaded_pilot(sites, steps):
    """Whatever was taken and given back meanwhile, and whether or not somebody looked after each step."""
    pool, pilots, held = Pool(), [], []
    for number, site in enumerate(sites):
        pilot = Pilot(f"p{number}", site, PilotSlots(), 2, None, 0)
        for worker in range(2):
            pilot.slots.add_worker(f"p{number}-{worker}", 1)
        pilots.append(pilot)
        pool.add(pilot)
        pilot.changed()
    for number, (what, which, how) in enumerate(steps):
        pilot = pilots[which % len(pilots)]
        if what == "take" and pilot.slots.acquire(f"u{number}", 1, how / 100):
            held.append((f"u{number}", pilot))
        elif what == "give" and held:
            unit, pilot = held.pop(how % len(held))
            pilot.slots.release(unit)
        elif what == "expect" and held:
            unit, pilot = held[how % len(held)]
            pilot.slots.expect(unit, how / 10)
        elif what == "open":
            pilot.slots.open_worker(f"{pilot.name}-{how % 2}", how > 3)
        elif what == "part":
            if pilot.places:
                pool.remove(pilot)
            else:
                pool.add(pilot)
        pilot.changed()
        if how % 3:
            machines = [place for places in pool.machines.values() for place in places]
            for place in (pool.root, *pool.zones.values(), *machines):
                assert place.first() is least(place)
                assert set(place.open_pilots()) == {p for p in place.pilots.values() if p.slots.has_room(0.0)}
