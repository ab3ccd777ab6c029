"""Nobody starves, a slot that somebody could use does not stay idle, and waiting near the data is bounded."""

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpilot.placement import InputView, Links, Matcher, Policy, Request, Site
from dpilot.placement.ways import EARLY_S
from tests.placement.matching import check_that_lines_stand_in_their_queues

MB = 10**6
SITES = [Site("eu", "e0"), Site("eu", "e1"), Site("us", "u0"), Site("lab", "l0")]
WORLD = Policy(Links())  # how long things take indeed
RUN_S = {"short": 0.01, "middle": 1.0, "long": 20.0}

pilots = st.lists(
    st.tuples(st.sampled_from(SITES), st.lists(st.integers(1, 3), min_size=1, max_size=3)), min_size=1, max_size=4
)
requests = st.builds(
    lambda kind, slots, du, site: Request("cds", kind, slots, site, inputs=du),
    st.sampled_from(sorted(RUN_S)),
    st.integers(1, 3),
    st.sampled_from([(), ("du0",), ("du1",), ("du0", "du1"), ("big",)]),
    st.sampled_from([Site(), SITES[0], Site("us")]),
)


def world(shapes):
    inputs = {
        "du0": InputView("du0", 10 * MB, 1, (SITES[0],)),
        "du1": InputView("du1", 50 * MB, 2, (SITES[2], SITES[3])),
        "big": InputView("big", 5000 * MB, 1, (SITES[1],)),
    }
    m = Matcher(Policy(Links(), prefer_wait_s=5.0), inputs=inputs)
    for number, (site, workers) in enumerate(shapes):
        m.add_pilot(f"p{number}", site, sum(workers))
        for worker, slots in enumerate(workers):
            m.add_worker(f"p{number}", f"p{number}-{worker}", slots)
    for kind, seconds in RUN_S.items():
        m.runtimes.observe(kind, seconds)
    return m


class Clock:
    """Runs what the matcher binds: a unit ends when it has staged and run."""

    def __init__(self, m):
        self.m, self.now, self.running, self.requests = m, 0.0, [], {}
        self.bound_at, self.bound_to = {}, {}

    def submit(self, unit, request, **options):
        self.requests[unit] = request
        self.m.submit(unit, request, now=self.now, **options)

    def staged(self, unit, views, site):
        links = self.m.policy.links
        for view in views:
            if site not in view.sites:
                source = view.source(site, links)
                links.observe(source, site, view.nbytes, view.stage_s(site, WORLD.links, alone=True), view.n_files)
        self.m.staged(unit)

    def step(self):
        """Bind what can be, and go on to the next event. Returns whether there is one."""
        matching = self.m.match(self.now)
        for binding in matching.bindings:
            self.bound_at[binding.unit], self.bound_to[binding.unit] = self.now, binding.pilot
            request = self.requests[binding.unit]
            site, views = self.m._pilots[binding.pilot].site, self.m.views(request)
            stage_s = WORLD.fit_s(request, site, views, alone=True)
            heapq.heappush(self.running, (self.now + stage_s, 0, binding.unit, (views, site)))
            heapq.heappush(self.running, (self.now + stage_s + RUN_S[request.kind], 1, binding.unit, None))
        recheck = None if matching.recheck_s is None else self.now + matching.recheck_s
        if self.running and (recheck is None or self.running[0][0] <= recheck):
            self.now, _, unit, brought = heapq.heappop(self.running)
            if brought is None:
                self.m.release(unit)
            else:
                self.staged(unit, *brought)
        elif recheck is not None:
            self.now = max(self.now, recheck)
        else:
            return False
        return True


def feasible(shapes, request):
    return any(sum(workers) >= request.slots for _, workers in shapes)


@settings(max_examples=60, deadline=None)
@given(shapes=pilots, victim=requests, others=st.lists(requests, min_size=1, max_size=4))
def test_a_stream_of_later_units_never_starves_one(shapes, victim, others):
    if not feasible(shapes, victim):
        return
    clock = Clock(world(shapes))
    streams = [request for request in others if feasible(shapes, request)]
    number = 0

    def refill():
        nonlocal number
        while len(clock.m) < 12 and streams:
            number += 1
            clock.submit(f"s{number}", streams[number % len(streams)], order=number)

    refill()
    clock.step()
    clock.submit("victim", victim, order=number + 0.5)
    for _ in range(4000):
        refill()
        clock.step()
        if "victim" in clock.bound_at:
            break
    assert "victim" in clock.bound_at, f"not bound at {clock.now} s, after {number} others"


@settings(max_examples=600, deadline=None)
@given(shapes=pilots, kinds=st.lists(requests, min_size=1, max_size=5), draw=st.randoms(use_true_random=True))
def test_all_that_can_run_does_and_no_slot_stays_idle_for_ever(shapes, kinds, draw):
    """Of each kind there are several, some of them urgent."""
    clock = Clock(world(shapes))
    able = 0
    for number in range(draw.randrange(60)):
        request = draw.choice(kinds)
        able += feasible(shapes, request)
        clock.submit(f"u{number}", request, order=number, priority=draw.choice([0.0, 0.0, 1.0]))
    while clock.step():
        check_that_lines_stand_in_their_queues(clock.m)
    assert len(clock.bound_at) == able
    assert len(clock.m.transit) == 0


def test_nobody_waits_longer_for_a_slot_near_the_data_than_bringing_the_data_costs():
    """Ten units, one slot near their data and one far away: as many go far as end earlier there."""
    for nbytes, far in ((1 * MB, 5), (500 * MB, 4), (50_000 * MB, 0)):  # 0.02, 10 and 1000 s to bring; 20 s to run
        m = Matcher(Policy(Links()), inputs={"du": InputView("du", nbytes, 1, (Site("eu", "e"),))})
        for name, site in (("near", Site("eu", "e")), ("far", Site("us"))):
            m.add_pilot(name, site, 1)
            m.add_worker(name, f"{name}-0", 1)
        m.runtimes.observe("long", RUN_S["long"])
        clock = Clock(m)
        for number in range(10):
            clock.submit(f"u{number}", Request("cds", "long", inputs=("du",)), order=number)
        while clock.step():
            pass
        assert sorted(clock.bound_to.values()).count("far") == far


def test_a_swamped_link_is_seen_before_it_is_learned():
    """A link of which nothing is known is tried with one transfer. Then each follows the one before, a little early."""
    eu = Site("eu", "e")
    inputs = {f"du{number}": InputView(f"du{number}", 200 * MB, 1, (eu,)) for number in range(40)}
    m = Matcher(Policy(Links()), inputs=inputs)
    m.runtimes.observe("", 1.0)
    for name, site, slots in (("eu", eu, 2), ("us", Site("us", "u"), 20)):
        m.add_pilot(name, site, slots)
        m.add_worker(name, f"{name}-0", slots)
    for number in range(40):
        m.submit(f"u{number}", Request("cds", inputs=(f"du{number}",)), now=0.0, order=number)
    (first,) = [b.unit for b in m.match(0.0).bindings if b.pilot == "us"]
    assert len(m.transit) == 1
    assert m.match(0.0).bindings == []
    m.policy.links.observe(eu, Site("us", "u"), 200 * MB, 4.0)
    m.staged(first)
    assert len(m.transit) == 0
    next_s = 3.96 - EARLY_S  # 200 MB at what was seen, without the latency of 0.04 s
    for now in (4.0, 4.0 + next_s):
        matching = m.match(now)
        (unit,) = [b.unit for b in matching.bindings if b.pilot == "us"]
        assert matching.recheck_s == pytest.approx(next_s)
        assert m.match(now + next_s - 0.01).bindings == []
        m.policy.links.now = now + next_s
        m.staged(unit)


def test_many_units_of_one_data_unit_count_once_on_the_link():
    eu, us = Site("eu", "e"), Site("us", "u")
    m = Matcher(Policy(Links()), inputs={"du": InputView("du", 50 * MB, 1, (eu,))})
    m.runtimes.observe("", 1.0)
    for name, site, slots in (("eu", eu, 1), ("us", us, 8)):
        m.add_pilot(name, site, slots)
        m.add_worker(name, f"{name}-0", slots)
    for number in range(40):
        m.submit(f"u{number}", Request("cds", inputs=("du",)), now=0.0, order=number)
    assert len(m.match(0.0).bindings) == 9
    assert len(m.transit) == 1
    (row,) = (row for row in m.policy.links.table() if row.transfers)
    assert (row.source, row.target, row.transfers) == ("eu", "us", 1)
