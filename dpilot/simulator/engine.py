"""The clock and what happens by it: units that wait, run and end, and pilots that come and go."""

from __future__ import annotations

import gc
import heapq
from collections import deque
from collections.abc import Callable
from itertools import groupby
from typing import Any

from dpilot.errors import PlacementError
from dpilot.placement import Site, StoreView, nearest_store
from dpilot.simulator.network import Network
from dpilot.simulator.placement import Binding, Orders, Placement
from dpilot.simulator.pool import Attempt, Pool
from dpilot.simulator.result import DONE, LOST, TAKEN_BACK, WAITS, Result, Trace
from dpilot.simulator.scenario import Scenario
from dpilot.simulator.staging import Staging

__all__ = ["Engine"]

#: A policy is not asked again sooner than this if nothing happens: time has to go on.
_LEAST_RECHECK_S = 1e-6
#: How often it is asked again in a row where nothing else is going to happen, and it orders nothing.
_MOST_VAIN = 1000


class Engine:
    """One run of a scenario under a policy.

    Parameters
    ----------
    scenario : Scenario
    policy : Placement
    seed : int
        For the policy, if it draws lots.
    trace : bool
        Whether to keep what happened to each unit.
    """

    def __init__(self, scenario: Scenario, policy: Placement, *, seed: int = 0, trace: bool = True) -> None:
        self.now = 0.0
        self.n_events = 0
        self._scenario, self._policy = scenario, policy
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._number = 0
        self._due = False
        self._recheck = self._vain = 0
        numbers = {data.id: number for number, data in enumerate(scenario.data)}
        self._inputs = [tuple(map(numbers.__getitem__, unit.inputs)) for unit in scenario.units]
        self._outputs = {
            n: tuple(map(numbers.__getitem__, u.outputs)) for n, u in enumerate(scenario.units) if u.outputs
        }
        self._run_s = [unit.run_s for unit in scenario.units]
        self._slots = [unit.slots for unit in scenario.units]
        self._ready_s = [-1.0] * len(scenario.units)
        self._waits_now = bytearray(len(scenario.units))  # 1 for those that are ready and not bound
        self._left = len(scenario.units)
        self._bound: dict[int, Attempt] = {}
        self._lost = 0
        self._waits = [0.0] * len(WAITS)
        self._flow_s = self._makespan_s = 0.0
        self._nbytes = [0, 0, 0]
        self._trace = Trace(scenario) if trace else None
        policy.begin(scenario, seed)
        self._network = Network(scenario, self._at)
        self._staging = Staging(
            scenario, policy, self._network, self._at, lambda: self.now, self._inputs, self._run, self._wake
        )
        self._stores = [StoreView(store.id, store.site, None) for store in scenario.stores]
        self._pools = [Pool(pilot) for pilot in scenario.pilots]
        self._plan_writing()
        self._plan_arrivals()

    def _at(self, time: float, function: Callable[[Any], None], argument: Any) -> None:
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, function, argument))

    def _plan_arrivals(self) -> None:
        for number, pilot in enumerate(self._scenario.pilots):
            self._at(pilot.known_s, self._policy.pilot_expected, number)
            self._at(pilot.arrives_s, self._pilot_comes, number)
            if pilot.gone_s is not None:
                self._at(pilot.gone_s, self._pilot_goes, number)
        units = self._scenario.units
        order = sorted(range(len(units)), key=lambda number: units[number].submitted_s)
        for time, group in groupby(order, key=lambda number: units[number].submitted_s):
            self._at(time, self._submit, list(group))

    def _plan_writing(self) -> None:
        """Who waits for which data unit, and how many write it."""
        self._writers: dict[int, int] = {}
        for outputs in self._outputs.values():
            for data in outputs:
                self._writers[data] = self._writers.get(data, 0) + 1
        self._shares = {data: self._scenario.data[data].nbytes // n for data, n in self._writers.items()}
        self._written_to: dict[int, Site] = {}
        self._readers: dict[int, list[int]] = {data: [] for data in self._writers}
        self._missing: dict[int, int] = {}

    # -- the clock

    def run(self) -> Result:
        """Let time pass until the last unit has ended.

        Raises
        ------
        PlacementError
            If units are left that no pilot will take, or the policy asks for what cannot be.
        """
        was_enabled = gc.isenabled()
        gc.disable()  # there is no cyclic garbage here, and looking for it among a million units takes long
        try:
            while self._left:
                self._step()
        finally:
            if was_enabled:
                gc.enable()
        return self._result()

    def _step(self) -> None:
        """All that happens at the next moment, and what the policy makes of it."""
        heap = self._heap
        if not heap or self._vain > _MOST_VAIN:
            raise self._stuck()
        self.now = now = heap[0][0]
        while heap and heap[0][0] <= now:
            _, _, function, argument = heapq.heappop(heap)
            function(argument)
            self.n_events += 1
        if self._due:
            self._due = False
            self._obey(self._policy.decide(now))

    def _result(self) -> Result:
        return Result(
            scenario=self._scenario.name,
            policy=self._policy.name,
            n_units=len(self._scenario.units),
            makespan_s=self._makespan_s,
            flow_s=self._flow_s / len(self._scenario.units),
            nbytes=tuple(map(sum, zip(self._nbytes, self._staging.copied, strict=True))),
            wasted_nbytes=tuple(self._staging.wasted),
            waits_s=tuple(wait_s / len(self._scenario.units) for wait_s in self._waits),
            utilisation=tuple(pool.busy.share(pool.spec, self._makespan_s) for pool in self._pools),
            n_lost=self._lost,
            n_events=self.n_events,
            trace=self._trace,
        )

    def _stuck(self) -> PlacementError:
        first = self._waits_now.find(1)
        unit = self._scenario.units[first].id if first >= 0 else "none that is ready"
        here = sum(pool.is_here for pool in self._pools)
        return PlacementError(
            f"{self._left} units are left at {self.now:.6g} s and nothing happens any more: {here} pilots are there, "
            f"and {self._policy.name} leaves {unit} waiting; have a pilot stay that can run it"
        )

    def _wake(self) -> None:
        self._due = True

    def _ask_again(self, number: int) -> None:
        self._due |= number == self._recheck

    def _obey(self, orders: Orders) -> None:
        is_vain = not (self._heap or any(orders[:-1]))  # all but when to ask again
        self._vain = self._vain + 1 if is_vain else 0
        for data, pilot in orders.copies:
            self._at(self.now + self._pools[pilot].spec.delay_s, self._copy, (data, pilot))
        for unit in orders.recalls:
            self._recall(self._bound[unit])
        for unit in orders.returns:
            attempt = self._bound[unit]
            self._at(self.now + self._pools[attempt.pilot].spec.delay_s, self._give_up, attempt)
        for binding in orders.bindings:
            self._bind(binding)
        self._recheck += 1
        if orders.recheck_s is not None:
            self._at(self.now + max(orders.recheck_s, _LEAST_RECHECK_S), self._ask_again, self._recheck)

    def _copy(self, copy: tuple[int, int]) -> None:
        """A pilot is told to bring a data unit."""
        data, pilot = copy
        pool = self._pools[pilot]
        if pool.is_here and pool.machine is not None:
            self._staging.copy(data, pool.machine, pilot)

    # -- pilots

    def _pilot_comes(self, number: int) -> None:
        pool = self._pools[number]
        pool.machine = self._staging.machine(number, pool.spec.site)
        pool.is_here = self._due = True
        self._policy.pilot_came(number)

    def _pilot_goes(self, number: int) -> None:
        pool = self._pools[number]
        pool.is_here = False
        self._due = True
        attempts, pool.attempts = list(pool.attempts), {}
        for attempt in attempts:
            if attempt.is_done:  # the message of it was on its way
                self._hear(attempt)
            attempt.is_over = True
        self._policy.pilot_gone(number)
        for attempt in attempts:
            if not attempt.is_done:
                self._lose(attempt, pool)
        self._staging.pilot_gone(number)
        pool.queue.clear()
        pool.queues.clear()

    def _recall(self, attempt: Attempt) -> None:
        """Take a unit back. The message is taken to be there at once: what is lost by its way is small."""
        pool = self._pools[attempt.pilot]
        if attempt.started_s >= 0 or attempt.is_over:
            return
        attempt.is_over = True
        del pool.attempts[attempt]
        had_slots = attempt.slot_s >= 0
        self._lose(attempt, pool, TAKEN_BACK)
        self._staging.forsake(attempt)
        if had_slots:
            self._give_back(pool, attempt)
        else:
            self._unqueue(attempt, pool)

    def _unqueue(self, attempt: Attempt, pool: Pool) -> None:
        for queue in (pool.queue, *pool.queues.values()):
            if attempt in queue:
                queue.remove(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        """A pilot is to give a unit back: it does if the unit has no slot yet, and says so."""
        pool = self._pools[attempt.pilot]
        if attempt.slot_s < 0 and not attempt.is_over:
            self._unqueue(attempt, pool)
            self._at(self.now + pool.spec.delay_s, self._given_up, attempt)

    def _given_up(self, attempt: Attempt) -> None:
        if not attempt.is_over:
            attempt.is_over = True
            pool = self._pools[attempt.pilot]
            del pool.attempts[attempt]
            self._lose(attempt, pool, TAKEN_BACK)
            self._staging.forsake(attempt)

    def _lose(self, attempt: Attempt, pool: Pool, outcome: str = LOST) -> None:
        self._bound.pop(attempt.unit, None)
        attempt.ended_s = self.now
        self._lost += outcome == LOST
        self._waits[-1] += self.now - attempt.ready_s
        if attempt.slot_s >= 0:
            pool.busy.add((self.now - attempt.slot_s) * self._slots[attempt.unit], 0.0)
        self._staging.drop(attempt)
        if attempt.upload is not None:
            self._staging.cancel(*attempt.upload)
        if self._trace is not None:
            self._trace.add(attempt, outcome)
        self._policy.lost(attempt.unit, attempt.pilot)
        self._make_ready(attempt.unit)

    # -- units

    def _submit(self, units: list[int]) -> None:
        for unit in units:
            missing = {data for data in self._inputs[unit] if self._writers.get(data)} if self._writers else ()
            if missing:
                self._missing[unit] = len(missing)
                for data in missing:
                    self._readers[data].append(unit)
            else:
                self._make_ready(unit)

    def _make_ready(self, unit: int) -> None:
        if self._ready_s[unit] < 0:
            self._waits[0] += self.now - self._scenario.units[unit].submitted_s
        self._ready_s[unit] = self.now
        self._waits_now[unit] = 1
        self._due = True
        self._policy.ready(unit, self.now)

    def _bind(self, binding: Binding) -> None:
        pool = self._pools[binding.pilot]
        unit = binding.unit
        if not self._waits_now[unit] or not pool.is_here:
            why = f"{pool.spec.id} is not there" if not pool.is_here else "it does not wait"
            raise PlacementError(
                f"{self._policy.name} cannot bind {self._scenario.units[unit].id} to {pool.spec.id} "
                f"at {self.now:.6g} s: {why}"
            )
        assert pool.machine is not None
        attempt = Attempt(binding, pool.machine, self._ready_s[unit], self.now)
        self._waits_now[unit] = 0
        self._bound[unit] = attempt
        pool.attempts[attempt] = None
        if pool.spec.delay_s:
            self._at(self.now + pool.spec.delay_s, self._queue, attempt)
        else:
            self._queue(attempt)

    def _queue(self, attempt: Attempt) -> None:
        """An attempt has reached its pilot: it takes its slots, or waits there for them."""
        if attempt.is_over:
            return
        pool = self._pools[attempt.pilot]
        if self._policy.brings_ahead:
            self._staging.bring_ahead(attempt)
        queue = pool.queue if not attempt.held else pool.queues.setdefault(attempt.held[0][0], deque())
        if not queue and self._fits(pool, attempt):
            self._take(pool, attempt)
        else:
            queue.append(attempt)

    def _serve(self, pool: Pool, queue: deque[Attempt]) -> None:
        """Slots are free: they go to those who wait for them."""
        while queue and self._fits(pool, queue[0]):
            self._take(pool, queue.popleft())

    def _take(self, pool: Pool, attempt: Attempt) -> None:
        pool.idle -= self._slots[attempt.unit]
        for worker, n in attempt.held:
            pool.free[worker] -= n
        attempt.slot_s = self.now
        if self._inputs[attempt.unit]:
            self._staging.stage(attempt)
        else:
            self._run(attempt)

    def _fits(self, pool: Pool, attempt: Attempt) -> bool:
        if attempt.held:
            return all(pool.free[worker] >= n for worker, n in attempt.held)
        return pool.idle >= self._slots[attempt.unit]

    def _run(self, attempt: Attempt) -> None:
        """Its inputs are there."""
        attempt.started_s = self.now
        if self._inputs[attempt.unit]:
            self._policy.staged(attempt.unit, attempt.brought_s, self.now)
            self._due = True
        run_s = self._run_s[attempt.unit] / self._pools[attempt.pilot].spec.speed
        self._at(self.now + run_s, self._ran, attempt)

    def _ran(self, attempt: Attempt) -> None:
        if attempt.is_over:
            return
        attempt.ran_s = self.now
        if attempt.unit in self._outputs:
            self._write(attempt, 0)
        else:
            self._end(attempt)

    def _write(self, attempt: Attempt, done: int) -> None:
        """Take its outputs to stores, one after the other; so many are done."""
        outputs = self._outputs[attempt.unit]
        if done == len(outputs):
            attempt.upload = None
            self._end(attempt)
            return
        data, site = outputs[done], attempt.machine.site
        if data not in self._written_to:
            store = nearest_store(self._stores, site)
            assert store is not None, "a scenario with outputs and without stores was accepted"
            self._written_to[data] = self._scenario.store_of[store].site
        share, target = self._shares[data], self._written_to[data]
        self._staging.upload(attempt, share, target, lambda _: self._write(attempt, done + 1))

    def _end(self, attempt: Attempt) -> None:
        """Its work is done and its slots are free, though the scheduler may not have heard of it yet."""
        pool = self._pools[attempt.pilot]
        attempt.is_done = True
        attempt.ended_s = self.now
        slots = self._slots[attempt.unit]
        self._staging.drop(attempt)
        pool.busy.add((self.now - attempt.slot_s) * slots, (attempt.ran_s - attempt.started_s) * slots)
        self._give_back(pool, attempt)
        if pool.spec.delay_s:
            self._at(self.now + pool.spec.delay_s, self._hear, attempt)
        else:
            self._hear(attempt)

    def _give_back(self, pool: Pool, attempt: Attempt) -> None:
        """The slots of an attempt are free: the next ones take them."""
        pool.idle += self._slots[attempt.unit]
        if attempt.held:
            for worker, n in attempt.held:
                pool.free[worker] += n
            for queue in [pool.queues[worker] for worker, _ in attempt.held if worker in pool.queues]:
                self._serve(pool, queue)
        elif pool.queue:
            self._serve(pool, pool.queue)

    def _hear(self, attempt: Attempt) -> None:
        """The scheduler hears that an attempt has ended."""
        if attempt.is_over:
            return
        attempt.is_over = self._due = True
        self._bound.pop(attempt.unit, None)
        self._pools[attempt.pilot].attempts.pop(attempt, None)
        self._left -= 1
        self._makespan_s = max(self._makespan_s, attempt.ended_s)
        self._flow_s += attempt.ended_s - self._scenario.units[attempt.unit].submitted_s
        for distance, nbytes in enumerate(attempt.nbytes or ()):
            self._nbytes[distance] += nbytes
        self._count_waits(attempt)
        if self._trace is not None:
            self._trace.add(attempt, DONE)
        self._policy.ended(attempt.unit, attempt.pilot, attempt.ran_s - attempt.started_s)
        for data in self._outputs.get(attempt.unit, ()):
            self._check_written(data)

    def _count_waits(self, attempt: Attempt) -> None:
        self._waits[1] += attempt.bound_s - attempt.ready_s
        self._waits[2] += attempt.slot_s - attempt.bound_s
        self._waits[3] += attempt.started_s - attempt.slot_s

    def _check_written(self, data: int) -> None:
        """One that writes a data unit has ended: after the last of them it can be read."""
        self._writers[data] -= 1
        if self._writers[data]:
            return
        self._staging.written(data, self._written_to[data])
        for unit in self._readers.pop(data, ()):
            self._missing[unit] -= 1
            if not self._missing[unit]:
                self._make_ready(unit)
