"""Units of several slots: all or nothing, so that no two wait for each other; and none is starved by small ones."""

import heapq

from hypothesis import given, settings
from hypothesis import strategies as st

from dpilot.placement import Matcher, PilotSlots, Request, Site

RUN_S = {"short": 0.01, "middle": 1.0, "long": 20.0}

workers = st.lists(st.integers(1, 4), min_size=1, max_size=4)
kinds = st.sampled_from(sorted(RUN_S))


class World:
    """A pilot with workers of so many slots, two on each host, and a clock."""

    def __init__(self, shape):
        self.m, self.total = Matcher(), sum(shape)
        self.m.add_pilot("p", Site(), self.total)
        for number, slots in enumerate(shape):
            self.m.add_worker("p", f"tcp://10.0.0.{number // 2}:{number}", slots)
        for kind, seconds in RUN_S.items():
            self.m.runtimes.observe(kind, seconds)
        self.now, self.running, self.kinds, self.order = 0.0, [], {}, []

    def submit(self, unit, kind, slots=1):
        self.kinds[unit] = kind
        self.m.submit(unit, Request("cds", kind, slots), now=self.now, order=len(self.kinds))

    def step(self):
        """Bind what can be, and go on to the next event. Returns whether there is one."""
        matching = self.m.match(self.now)
        for binding in matching.bindings:
            self.order.append(binding.unit)
            heapq.heappush(self.running, (self.now + RUN_S[self.kinds[binding.unit]], binding.unit))
        if matching.recheck_s is not None and (not self.running or self.now + matching.recheck_s < self.running[0][0]):
            self.now += matching.recheck_s
        elif self.running:
            self.now, unit = heapq.heappop(self.running)
            self.m.release(unit)
        else:
            return False
        return True


@settings(max_examples=100, deadline=None)
@given(shape=workers, gangs=st.lists(st.tuples(st.integers(1, 100), kinds), min_size=2, max_size=8))
def test_waiting_gangs_hold_nothing_and_all_of_them_run(shape, gangs):
    world, slots = World(shape), {}
    for number, (percent, kind) in enumerate(gangs):
        slots[f"g{number}"] = max(1, world.total * percent // 100)
        world.submit(f"g{number}", kind, slots[f"g{number}"])
    steps = True
    while steps:
        steps = world.step()
        for unit in slots:
            held = world.m.held(unit)
            assert (held is not None) == any(unit == running for _, running in world.running)
            assert held is None or sum(share.slots for share in held.shares) == slots[unit]
    assert sorted(world.order) == sorted(slots)


@settings(max_examples=100, deadline=None)
@given(shape=workers, percent=st.integers(50, 100), kind=kinds, small=kinds)
def test_a_large_gang_goes_before_all_small_units_that_came_later(shape, percent, kind, small):
    world = World(shape)
    if world.total < 2:
        return
    for number in range(3 * world.total):
        world.submit(f"early{number}", small)
    world.step()
    world.submit("gang", kind, max(2, world.total * percent // 100))
    late = [f"late{number}" for number in range(3 * world.total)]
    for unit in late:
        world.submit(unit, small)
    while world.step():
        pass
    assert len(world.order) == 6 * world.total + 1
    assert world.order.index("gang") < min(map(world.order.index, late))


def test_a_gang_is_on_few_hosts():
    slots = PilotSlots()
    for address, number in (("tcp://a:1", 3), ("tcp://b:1", 2), ("tcp://b:2", 2), ("tcp://c:1", 1)):
        slots.add_worker(address, number)
    assert slots.acquire("gang", 4, 1.0).slots == (("tcp://b:1", 2), ("tcp://b:2", 2))
    assert slots.acquire("next", 4, 1.0).slots == (("tcp://a:1", 3), ("tcp://c:1", 1))
    assert slots.acquire("last", 2, 1.0) is None
