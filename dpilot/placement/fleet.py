"""The pilots that units may be bound to: their workers, their pools, and which queues they concern."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from math import inf

from dpilot.placement.estimates import RunTimes
from dpilot.placement.lines import Line, Queue, Waiting
from dpilot.placement.outputs import Outputs
from dpilot.placement.places import Pilot, Place, Pool
from dpilot.placement.shares import Reservation
from dpilot.placement.slots import PilotSlots
from dpilot.placement.topology import Site
from dpilot.placement.transit import Transit
from dpilot.placement.views import Request

__all__ = ["Fleet"]

#: What took longer did not only travel: somebody was busy.
_MOST_GAP_S = 0.25


class Fleet:
    """The half of a matcher that is about pilots: events of theirs mark the queues that they concern.

    Parameters
    ----------
    transit : Transit
    runtimes : RunTimes
    outputs : Outputs
    in_flight_s : float
        Seconds of work per slot to keep at a worker.
    """

    def __init__(self, transit: Transit, runtimes: RunTimes, outputs: Outputs, in_flight_s: float) -> None:
        self.transit = transit
        self.runtimes = runtimes
        self.outputs = outputs
        self.in_flight_s = in_flight_s
        self._pilots: dict[str, Pilot] = {}
        self._pilot_of: dict[str, Pilot] = {}
        self._staging: dict[str, Waiting] = {}  # units that are bound and have yet to say that they have their inputs
        self._members: dict[str, frozenset[str]] = {}
        self._pools: dict[str, Pool] = {}
        self._direct: dict[str, Pool] = {}  # for units that were submitted to one pilot
        self._changed: dict[Pilot, None] = {}
        self._fresh: dict[Pilot, None] = {}  # those that may have room since it was last tried to fill it
        # Since the last look: units, kinds, and how late it is heard that they run; None: they have yet to say so.
        self.begun: list[tuple[str, str, float | None]] = []
        self.left: list[str] = []  # units about to end, likewise
        self._untold: dict[Line, None] = {}  # lines that may have other homes, and have yet to be given them
        self._marked: list[tuple[Waiting, int, Queue]] = []  # a heap: queues that something has happened to

    # -- pilots and their workers

    def add_pilot(
        self,
        pilot: str,
        site: Site,
        slots: int,
        *,
        memory_nbytes: int | None = None,
        gpus: int = 0,
        ends_at: float | None = None,
    ) -> None:
        """A pilot that is starting: its workers will bring `slots` slots.

        Parameters
        ----------
        pilot : str
        site : Site
        slots : int
        memory_nbytes : int or None
            Memory of each worker; None: not known.
        gpus : int
            GPUs of each worker.
        ends_at : float or None
            When it will be gone; None: never, or not known yet (see :meth:`set_end`).
        """
        made = self._pilots[pilot] = Pilot(pilot, site, PilotSlots(self.in_flight_s), slots, memory_nbytes, gpus)
        made.ends_at = ends_at
        for name, pool in self._pools.items():
            if pilot in self._members.get(name, (pilot,)):
                self._join(made, pool)
        if pilot in self._direct:
            self._join(made, self._direct[pilot])

    def remove_pilot(self, pilot: str) -> None:
        """Forget a pilot. Whoever held slots there holds nothing any more."""
        gone = self._pilots.pop(pilot, None)
        if gone is None:
            return
        for unit in list(gone.slots.reservations):
            self._lose(unit)
        self._unreserve(gone)
        self._changed.pop(gone, None)
        self._fresh.pop(gone, None)
        for pool in (*self._pools.values(), *self._direct.values()):
            self._part(gone, pool)

    def set_end(self, pilot: str, ends_at: float | None) -> None:
        """When a pilot will be gone: no unit is placed there that is known to run longer."""
        self._pilots[pilot].ends_at = ends_at
        for pool in self._pools_of(self._pilots[pilot]):
            pool.ends = pool.ends or ends_at is not None
        self._re_decide(self._pilots[pilot])

    def set_gap(self, pilot: str, gap_s: float) -> None:
        """How long messages take to the workers of a pilot and back, see :class:`PilotSlots`."""
        if pilot in self._pilots:
            self._pilots[pilot].slots.gap_s = min(gap_s, _MOST_GAP_S)

    def set_pool(self, pool: str, pilots: frozenset[str] | set[str] | None) -> None:
        """Which pilots the units of a pool may use; None: all, as long as nobody tells."""
        if pilots is None:
            self._members.pop(pool, None)
        else:
            self._members[pool] = frozenset(pilots)
        known = self._pools.get(pool)
        if known is None:
            return
        known.members = self._members.get(pool)
        for pilot in self._pilots.values():
            is_there = pilot.name in known.root.pilots
            if is_there != (known.members is None or pilot.name in known.members):
                if is_there:
                    self._unreserve(pilot)
                    self._part(pilot, known)
                else:
                    self._join(pilot, known)

    def add_worker(
        self, pilot: str, address: str, slots: int, *, memory_nbytes: int | None = None, gpus: int = 0
    ) -> None:
        """A worker of `pilot` has joined with `slots` slots; `memory_nbytes` of None is no limit."""
        held = self._pilots[pilot]
        could_carry = held.can_carry
        held.slots.add_worker(address, slots, memory_nbytes, gpus)
        if held.declare(max(held.declared, held.slots.total)):
            self._re_decide(held)
        self._see_anew(held, could_carry)
        self._changed[held] = None

    def open_worker(self, pilot: str, address: str, is_open: bool) -> None:
        """Let a worker take units, or let it not: it starts, is paused or retires."""
        held = self._pilots.get(pilot)
        if held is not None and address in held.slots.workers:
            could_carry = held.can_carry
            held.slots.open_worker(address, is_open)
            self._see_anew(held, could_carry)
            self._unreserve(held)
            self._changed[held] = None

    def hold_up(self, pilot: str, address: str) -> None:
        """What runs at a worker takes longer than was thought, see :meth:`PilotSlots.hold_up`."""
        held = self._pilots.get(pilot)
        if held is not None and address in held.slots.workers:
            held.slots.hold_up(address)
            self._changed[held] = None

    def remove_worker(self, pilot: str, address: str) -> None:
        """A worker of `pilot` is gone; what units held there is free."""
        held = self._pilots.get(pilot)
        if held is None or address not in held.slots.workers:
            return
        slots = held.slots.workers[address].slots
        for unit in held.slots.remove_worker(address):
            self._lose(unit)
        held.declare(held.declared - slots)
        self._unreserve(held)
        self._re_decide(held)
        self._changed[held] = None

    def _see_anew(self, pilot: Pilot, could_carry: bool) -> None:
        """If data can be brought to a pilot's machine now, or not any more: see anew to lines that lack some."""
        if pilot.can_carry is not could_carry:
            for pool in self._pools_of(pilot):
                pool.seen_to = (), inf
                if pilot.can_carry:
                    self._came(pilot, pool)

    def _came(self, pilot: Pilot, pool: Pool) -> None:
        """A pilot has its first worker: lines whose data is yet to come elsewhere may have it near there."""

    def _lose(self, unit: str) -> None:
        """A unit is bound no more."""
        self._pilot_of.pop(unit, None)
        self._staging.pop(unit, None)
        self.outputs.end(unit)
        self.transit.end(unit)
        self.runtimes.end(unit)

    def idle_slots(self, pilot: str) -> int:
        """Slots of `pilot` that no unit holds."""
        return self._pilots[pilot].slots.idle if pilot in self._pilots else 0

    def total_slots(self, pilot: str) -> int:
        """Slots of all workers of `pilot` that are here."""
        return self._pilots[pilot].slots.total if pilot in self._pilots else 0

    def units_at(self, pilot: str, address: str) -> list[str]:
        """The units that hold anything of a worker."""
        held = self._pilots.get(pilot)
        worker = None if held is None else held.slots.workers.get(address)
        return [] if worker is None else sorted(worker.units)

    def pilot_of(self, unit: str) -> Pilot | None:
        """The pilot that a unit is bound to; None if it is not bound."""
        return self._pilot_of.get(unit)

    def touch(self, pilot: Pilot) -> None:
        """What the slots of a pilot hold has changed."""
        self._changed[pilot] = None

    def held(self, unit: str) -> Reservation | None:
        """What a bound unit holds: slots, memory and GPUs, by worker; None if it is not bound."""
        pilot = self._pilot_of.get(unit)
        return None if pilot is None else pilot.slots.reservations[unit]

    # -- pools

    @property
    def pools(self) -> Collection[Pool]:
        """The pools that units were submitted to."""
        return self._pools.values()

    def _pools_of(self, pilot: Pilot) -> list[Pool]:
        """Those that a pilot belongs to."""
        return [pool for pool in (*self._pools.values(), *self._direct.values()) if pilot.name in pool.root.pilots]

    def _pool(self, request: Request) -> Pool:
        if request.pilot is not None:
            pools, name = self._direct, request.pilot
        else:
            pools, name = self._pools, request.pool
        pool = pools.get(name)
        if pool is None:
            members = self._members.get(request.pool) if request.pilot is None else frozenset((request.pilot,))
            pool = pools[name] = Pool(members, is_flat=request.pilot is not None)
            for pilot in self._pilots.values():
                if members is None or pilot.name in members:
                    self._join(pilot, pool)
        return pool

    def _join(self, pilot: Pilot, pool: Pool) -> None:
        pool.add(pilot)
        self._changed[pilot] = None
        self._tell_coming(pool.away)
        for queue in pool.nowhere.queues.values():
            self.mark(queue)

    def _part(self, pilot: Pilot, pool: Pool) -> None:
        for place in pool.remove(pilot):
            for queue in place.queues.values():
                self.mark(queue)
            self._tell_coming(place)
        self._tell_coming(pool.away)

    def _tell_coming(self, place: Place) -> None:
        """Lines whose data is coming to a place may have another home."""
        for queue in place.coming.values():
            self._untold.update(queue.lines)

    def _re_decide(self, pilot: Pilot) -> None:
        """What a pilot can do has changed: lines may have other homes."""
        for pool in self._pools_of(pilot):
            pool.version += 1
            for queue in pool.nowhere.queues.values():
                self.mark(queue)
            self._tell_coming(pool.away)
        for place in pilot.places:
            self._tell_coming(place)
        self._mark_all(pilot)

    # -- queues that something has happened to

    def mark(self, queue: Queue) -> None:
        """Something has happened to a queue: see what it can do when next asked."""
        if queue.is_coming:
            return
        head = queue.head()
        if head is None:
            self._unreserve(queue.reserved)
        elif queue.marked is not head:
            queue.marked = head
            heapq.heappush(self._marked, (head, queue.number, queue))

    def _mark_all(self, pilot: Pilot) -> None:
        for place in pilot.places:
            for queue in place.queues.values():
                self.mark(queue)

    def _unreserve(self, pilot: Pilot | None) -> None:
        """Let everybody have a pilot's slots again."""
        if pilot is not None and pilot.reserved is not None:
            queue, pilot.reserved = pilot.reserved, None
            queue.reserved = queue.reserved_for = None
            self._mark_all(pilot)
