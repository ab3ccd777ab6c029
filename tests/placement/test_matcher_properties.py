"""Whatever happens to a matcher, in whatever order: hypothesis looks for what should never be."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dpilot.placement import InputView, Matcher, Policy, Request, Site
from tests.placement.matching import check_that_lines_stand_in_their_queues

SITES = [Site("eu", "e"), Site("us", "u"), Site("eu"), Site()]
KINDS = ["tiny", "long", "unknown"]
TINY_S, GAP_S = 0.001, 0.05
#: Longer than anybody waits for a better pilot: no longer than the slowest copy takes.
LONG_S = 1e6


class Matching(RuleBasedStateMachine):
    """Two matchers that are told the same must do the same; what is bound is checked against a plain model."""

    def __init__(self):
        super().__init__()
        self.matchers = [Matcher(Policy()), Matcher(Policy())]
        self.now = 0.0
        self.count = 0
        self.pilots = {}  # name -> (site, {worker: slots}, {workers that are closed})
        self.requests = {}  # waiting unit -> request
        self.running = {}  # unit -> (request, pilot, worker)
        self.pool = None
        self.ends = {}
        for m in self.matchers:
            m.inputs["du-eu"] = InputView("du-eu", 10**8, 3, (SITES[0],))
            m.inputs["du-all"] = InputView("du-all", 10**6, 1, tuple(SITES))
            m.runtimes.observe("tiny", TINY_S)
            m.runtimes.observe("long", 10.0)

    def tell(self, method, *args, **kwargs):
        for m in self.matchers:
            getattr(m, method)(*args, **kwargs)

    def fresh(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    @rule(
        site=st.sampled_from(SITES),
        declared=st.integers(1, 4),
        there=st.lists(st.integers(1, 3), max_size=3),
        gpus=st.integers(0, 1),
    )
    def a_pilot_starts(self, site, declared, there, gpus):
        name = self.fresh("pilot")
        self.tell("add_pilot", name, site, declared, gpus=gpus)
        self.pilots[name] = (site, {}, set())
        for slots in there:
            self.join(name, slots)
        if self.pool is not None:
            self.pool.add(name)

    @precondition(lambda self: self.pilots)
    @rule(data=st.data(), slots=st.integers(1, 4), memory=st.sampled_from([None, 2, 5]), gpus=st.integers(0, 2))
    def a_worker_joins(self, data, slots, memory, gpus):
        self.join(data.draw(st.sampled_from(sorted(self.pilots))), slots, memory_nbytes=memory, gpus=gpus)

    @precondition(lambda self: self.pilots)
    @rule(data=st.data(), left_s=st.sampled_from([None, 0.0, 50.0, 10_000.0]))
    def the_end_of_a_pilot_is_known(self, data, left_s):
        pilot = data.draw(st.sampled_from(sorted(self.pilots)))
        self.ends[pilot] = None if left_s is None else self.now + left_s
        self.tell("set_end", pilot, self.ends[pilot])

    def join(self, pilot, slots, **size):
        worker = self.fresh("worker")
        self.tell("add_worker", pilot, worker, slots, **size)
        self.pilots[pilot][1][worker] = slots

    def workers(self):
        return sorted((pilot, worker) for pilot, (_, workers, _) in self.pilots.items() for worker in workers)

    @precondition(lambda self: self.workers())
    @rule(data=st.data())
    def a_worker_dies(self, data):
        pilot, worker = data.draw(st.sampled_from(self.workers()))
        self.tell("remove_worker", pilot, worker)
        del self.pilots[pilot][1][worker]
        self.pilots[pilot][2].discard(worker)
        self.run_again(worker)

    def run_again(self, *workers):
        """Units whose workers are gone wait anew; what canceled ones left behind has ended with the workers."""
        for unit, (request, _, where) in list(self.running.items()):
            if where in workers:
                del self.running[unit]
                if request is not None:
                    self.requests[unit] = request
                    self.tell("submit", unit, request, now=self.now, order=self.count)

    @precondition(lambda self: len(self.pilots) > 2)
    @rule(data=st.data())
    def a_pilot_ends(self, data):
        pilot = data.draw(st.sampled_from(sorted(self.pilots)))
        self.tell("remove_pilot", pilot)
        _, workers, _ = self.pilots.pop(pilot)
        self.run_again(*workers)

    @precondition(lambda self: self.workers())
    @rule(data=st.data(), is_open=st.booleans())
    def a_worker_opens_or_closes(self, data, is_open):
        pilot, worker = data.draw(st.sampled_from(self.workers()))
        self.tell("open_worker", pilot, worker, is_open)
        closed = self.pilots[pilot][2]
        (closed.discard if is_open else closed.add)(worker)

    @rule(
        data=st.data(),
        kind=st.sampled_from(KINDS),
        slots=st.integers(1, 5),
        site=st.sampled_from(SITES),
        require=st.booleans(),
        inputs=st.sampled_from([(), ("du-eu",), ("du-eu", "du-all")]),
        priority=st.sampled_from([0.0, 0.0, 1.0]),
        size=st.sampled_from([(0, 0), (0, 0), (3, 0), (0, 1), (2, 2)]),
        walltime_s=st.sampled_from([None, None, 20.0]),
        n=st.integers(1, 5),
    )
    def units_come(self, data, kind, slots, site, require, inputs, priority, size, walltime_s, n):
        pilot = data.draw(st.sampled_from([None, None, *sorted(self.pilots)]))
        request = Request("cds", kind, slots, site, require, pilot, inputs, *size, walltime_s)
        for _ in range(n):
            unit = self.fresh("unit")
            self.requests[unit] = request
            self.tell("submit", unit, request, now=self.now, priority=priority, order=self.count)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def a_unit_is_canceled(self, data):
        unit = data.draw(st.sampled_from(sorted(self.requests)))
        self.tell("withdraw", unit)
        del self.requests[unit]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_unit_ends(self, data):
        unit = data.draw(st.sampled_from(sorted(self.running)))
        self.tell("release", unit)
        del self.running[unit]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), retried=st.booleans())
    def a_unit_is_stopped_and_its_slots_stay_taken_for_a_while(self, data, retried):
        unit = data.draw(st.sampled_from(sorted(self.running)))
        request, pilot, worker = self.running.pop(unit)
        kept = self.fresh(f"{unit}#")
        self.tell("keep", unit, kept)
        self.running[kept] = (None, pilot, worker)
        if retried and request is not None:
            self.requests[unit] = request
            self.tell("submit", unit, request, now=self.now, order=self.count)

    @rule(nbytes=st.sampled_from([10**5, 10**9]), site=st.sampled_from(SITES))
    def a_replica_is_made(self, nbytes, site):
        for m in self.matchers:
            m.inputs["du-eu"] = InputView("du-eu", nbytes, 1, (SITES[0], site))
            m.data_changed("du-eu")

    @rule(
        begin=st.sampled_from(SITES[:3]),
        end=st.sampled_from(SITES[:3]),
        nbytes=st.sampled_from([10**3, 10**7]),
        seconds=st.sampled_from([0.01, 1.0, 500.0]),
    )
    def a_link_shows_how_fast_it_is(self, begin, end, nbytes, seconds):
        for m in self.matchers:
            m.policy.links.observe(begin, end, nbytes, seconds)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_unit_is_about_to_end(self, data):
        self.tell("leave", data.draw(st.sampled_from(sorted(self.running))))

    @precondition(lambda self: self.pilots)
    @rule(data=st.data(), gap_s=st.sampled_from([0.0, GAP_S]))
    def messages_take_so_long(self, data, gap_s):
        self.tell("set_gap", data.draw(st.sampled_from(sorted(self.pilots))), gap_s)

    @rule(kind=st.sampled_from(KINDS), seconds=st.sampled_from([0.0, TINY_S, 0.04, 3.0]))
    def a_run_time_is_learned(self, kind, seconds):
        self.tell("observe", kind, seconds)

    @rule(data=st.data())
    def a_pool_is_to_be_forgotten(self, data):
        self.tell("drop_pool", data.draw(st.sampled_from(["cds", "nobody's", *sorted(self.pilots)])))

    @rule(some=st.booleans())
    def the_pool_changes(self, some):
        self.pool = set(sorted(self.pilots)[::2]) if some else None
        for m in self.matchers:
            m.set_pool("cds", self.pool)

    @rule(seconds=st.sampled_from([0.0, 0.1, 100.0, LONG_S]))
    def time_passes_and_what_fits_is_bound(self, seconds):
        self.now += seconds
        for unit in self.running if seconds else ():
            self.tell("staged", unit)  # else their links would be taken to be as slow as that
        one, other = (m.match(self.now) for m in self.matchers)
        assert one == other, "the same events gave two decisions"
        assert self.running.keys() >= set(one.returns), "only who is at a worker can be taken back from there"
        for binding in one.bindings:
            request = self.requests.pop(binding.unit)  # KeyError: lost, or bound twice
            site, workers, closed = self.pilots[binding.pilot]
            assert binding.worker in workers
            assert binding.worker not in closed
            assert request.pilot in (None, binding.pilot)
            assert self.pool is None or binding.pilot in self.pool or request.pilot == binding.pilot
            lasts_s = self.matchers[0].lasts_s(request)
            ends_at = self.ends.get(binding.pilot)
            assert ends_at is None or lasts_s is None or self.now + lasts_s <= ends_at
            shares = self.matchers[0].held(binding.unit).shares
            assert (sum(len(share.gpus) for share in shares), sum(share.slots for share in shares)) == (
                request.gpus,
                request.slots,
            )
            assert not request.require or request.site.missed_by(site) is None
            assert binding.decision.pilot == binding.pilot
            assert [row.pilot for row in binding.decision.rows if row.verdict == "chosen"] == [binding.pilot]
            self.running[binding.unit] = (request, binding.pilot, binding.worker)
        for unit in one.returns:
            request, *_ = self.running.pop(unit)  # KeyError: it is not bound
            self.tell("release", unit)
            self.requests[unit] = request
            self.tell("submit", unit, request, now=self.now, order=self.count)
        if one.returns:
            self.time_passes_and_what_fits_is_bound(0.0)
        if seconds == LONG_S and not one.bindings:  # else some wait yet, for the pilots that have just taken others
            self.check_progress()

    def check_progress(self):
        """No narrow unit waits beside an idle slot that it may take, unless wider ones have a claim to that pilot."""
        m = self.matchers[0]
        wide = any(request.slots > 1 or request.kind == "long" for request in self.requests.values())
        for unit, request in self.requests.items():
            if request.slots == 1 and not wide:
                for row in m.explain(unit, self.now).rows:
                    slots = m._pilots[row.pilot].slots
                    fits = slots.idle and slots.fits(1, 10.0, request.memory_nbytes, request.gpus)
                    assert row.verdict == "rejected" or not fits, (unit, row)

    @invariant()
    def no_pilot_is_over_committed(self):
        for m in self.matchers:
            for name, (_, workers, _) in self.pilots.items():
                held = m._pilots[name].slots
                assert held.total == sum(workers.values())
                assert held.open == sum(slots for worker, slots in workers.items() if held.workers[worker].is_open)
                assert held.idle == sum(worker.idle for worker in held.workers.values())
                for address, worker in held.workers.items():
                    # Of those that are about to end, the next ones may be there already: each once.
                    there = [held.reservations[unit] for unit in worker.units - held._leaving]
                    assert worker.leaving == len(worker.units & held._leaving)
                    taken = [dict(reservation.slots)[address] for reservation in there]
                    assert worker.busy == sum(taken)
                    shares = [share for r in there for share in r.shares if share.worker == address]
                    devices = [device for share in shares for device in share.gpus] + worker.free_gpus
                    assert sorted(devices) == list(range(worker.gpus)), "a device is with two units, or lost"
                    if worker.memory_nbytes is not None:
                        memory = sum(share.memory_nbytes for share in shares)
                        assert memory + worker.free_nbytes == worker.memory_nbytes
                        assert memory <= worker.memory_nbytes
                    long = [
                        n for n, r in zip(taken, there, strict=True) if r.several or r.expected_s >= held.in_flight_s
                    ]
                    assert worker.following.keys() <= worker.units - held._leaving
                    waiting = len(worker.following)
                    assert sum(long) - waiting <= worker.slots, "more long or wide units than slots"
                    if worker.busy > worker.slots + waiting:  # short ones are queued, for so long and no longer
                        room_s = held.in_flight_s + GAP_S  # it may have fallen since
                        assert worker.backlog_s <= room_s * worker.slots + 1e-6

    @invariant()
    def nothing_is_lost(self):
        for m in self.matchers:
            assert len(m) == len(self.requests)
            held = {unit for pilot in m._pilots.values() for unit in pilot.slots.reservations}
            assert held == set(self.running)

    @invariant()
    def the_first_unit_of_a_line_stands_in_each_of_its_queues(self):
        for m in self.matchers:
            check_that_lines_stand_in_their_queues(m)

    @invariant()
    def slots_are_kept_only_for_who_waits_for_them(self):
        for m in self.matchers:
            for pilot in m._pilots.values():
                queue = pilot.reserved
                if queue is not None:
                    assert queue.reserved is pilot
                    assert queue.reserved_for.unit in m, f"{pilot.name} is kept for who waits no more"
                    assert queue in queue.reserved_for.line.queues, f"{pilot.name} is kept for who waits elsewhere"

    def teardown(self):
        """Everything ends, and no unit that some pilot could run by now is left waiting."""
        while True:
            self.time_passes_and_what_fits_is_bound(LONG_S)
            if not self.running:
                break
            for unit in self.running:
                self.tell("release", unit)
            self.running.clear()
        for unit, request in self.requests.items():
            for row in self.matchers[0].explain(unit, self.now).rows:
                if row.verdict != "rejected":
                    pilot = self.matchers[0]._pilots[row.pilot].slots
                    fits = pilot.fits(request.slots, 10.0, request.memory_nbytes, request.gpus)
                    assert not fits, f"{unit} waits for ever, though {row.pilot} is idle"
        for m in self.matchers:
            for pilot in m._pilots.values():
                assert all(worker.busy == 0 and not worker.units for worker in pilot.slots.workers.values())
                assert pilot.slots.backlog_s < 1e-6


TestMatching = Matching.TestCase
TestMatching.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
