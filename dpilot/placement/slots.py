"""The slots of one pilot, counted: what makes sure that no pilot is ever over-committed."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["PilotSlots", "Reservation"]

#: The least that a unit costs at a worker, however short: it bounds how many are queued there.
LEAST_UNIT_S = 5e-4


class Reservation(NamedTuple):
    """What a unit holds: slots at one or more workers. The first worker runs it."""

    slots: tuple[tuple[str, int], ...]
    expected_s: float
    several: bool  # whether it asked for more than one

    @property
    def worker(self) -> str:
        """Address of the worker that runs the unit."""
        return self.slots[0][0]


@dataclass(slots=True)
class _Worker:
    address: str
    number: int  # in the order of joining
    slots: int
    busy: int = 0
    backlog_s: float = 0.0
    exclusive: int = 0  # units of more than one slot that are here: nothing may be queued behind their backs
    units: set[str] = field(default_factory=set)
    is_open: bool = True
    changes: int = 0

    @property
    def idle(self) -> int:
        return max(0, self.slots - self.busy) if self.is_open else 0


class _Standing(NamedTuple):
    """How loaded a worker was after so many changes; sorts by load, then by the order of joining."""

    load: tuple[bool, float, int]
    number: int
    changes: int
    worker: _Worker

    @property
    def is_valid(self) -> bool:
        return self.changes == self.worker.changes


class PilotSlots:
    """Which unit holds how many slots at which worker of one pilot.

    A worker takes units while it has idle slots. It takes more, queued behind the running ones, only
    while all that it holds is less than `in_flight_s` seconds of work per slot: so units of a
    millisecond stream, and units of a second are bound when a slot is free for them.

    Parameters
    ----------
    in_flight_s : float
        Seconds of work per slot to keep at a worker.
    """

    def __init__(self, in_flight_s: float = 0.05) -> None:
        self.in_flight_s = in_flight_s
        self.workers: dict[str, _Worker] = {}
        self.reservations: dict[str, Reservation] = {}
        self.total = 0
        self.open = 0  # of them, those of workers that take units
        self.backlog_s = 0.0
        self._idle = 0
        self._joined = 0
        self._by_load: list[_Standing] = []  # a heap: the workers that have any room, and what is out of date

    @property
    def idle(self) -> int:
        """Slots that no unit holds."""
        return self._idle

    def add_worker(self, address: str, slots: int) -> None:
        """A worker with `slots` slots has joined."""
        self._joined += 1
        worker = self.workers[address] = _Worker(address, self._joined, slots)
        self.total += slots
        self.open += slots
        self._idle += slots
        self._stand(worker)

    def open_worker(self, address: str, is_open: bool) -> None:
        """Let a worker take units, or let it not (it starts, pauses or retires); what it holds it keeps."""
        worker = self.workers[address]
        self._idle -= worker.idle
        self.open += worker.slots * (is_open - worker.is_open)
        worker.is_open = is_open
        self._idle += worker.idle
        self._stand(worker)

    def remove_worker(self, address: str) -> list[str]:
        """A worker is gone. Returns the units that it ran; all that they held is free again.

        Those that only held slots there run on elsewhere, and keep the slots that they hold on other workers.
        """
        worker = self.workers.get(address)
        if worker is None:
            return []
        units = []
        for unit in sorted(worker.units):
            reservation = self.reservations[unit]
            if reservation.worker == address:
                units.append(unit)
                self.release(unit)
            else:
                self._shrink(unit, reservation, address)
        del self.workers[address]
        self.total -= worker.slots
        self.open -= worker.slots * worker.is_open
        self._idle -= worker.idle
        worker.changes += 1  # it stands nowhere any more
        return units

    def _room(self, worker: _Worker, expected_s: float) -> int:
        """How many units of one slot and `expected_s` seconds the worker would take now."""
        if worker.exclusive or not worker.is_open or expected_s >= self.in_flight_s:
            return worker.idle  # what is so long is not queued
        left_s = self.in_flight_s * worker.slots - worker.backlog_s
        queue = int(left_s / max(expected_s, LEAST_UNIT_S) + 1e-6)  # what adds up to a whole unit is one
        return max(worker.idle, queue)

    def free(self, expected_s: float) -> int:
        """How many units of one slot and `expected_s` seconds the pilot would take now."""
        return sum(self._room(worker, expected_s) for worker in self.workers.values())

    def has_room(self, expected_s: float) -> bool:
        """Whether the pilot would take a unit of one slot and `expected_s` seconds now."""
        return self._idle > 0 or (expected_s < self.in_flight_s and self._least_loaded(expected_s) is not None)

    def _least_loaded(self, expected_s: float) -> _Worker | None:
        """The least loaded of the workers that would take a unit of one slot and `expected_s` seconds now."""
        while self._by_load and not self._by_load[0].is_valid:
            heapq.heappop(self._by_load)
        if self._by_load and self._room(self._by_load[0].worker, expected_s) > 0:
            return self._by_load[0].worker
        # One that is more loaded, but has more slots, may have room all the same.
        fitting = (s for s in self._by_load if s.is_valid and self._room(s.worker, expected_s) > 0)
        best = min(fitting, default=None)
        return best.worker if best is not None else None

    def _stand(self, worker: _Worker) -> None:
        """Take in that a worker has changed."""
        worker.changes += 1
        if len(self._by_load) > 2 * len(self.workers):
            self._by_load = [standing for standing in self._by_load if standing.is_valid]
            heapq.heapify(self._by_load)
        if self._room(worker, LEAST_UNIT_S) > 0:
            load = worker.busy >= worker.slots, worker.backlog_s / worker.slots, worker.busy
            heapq.heappush(self._by_load, _Standing(load, worker.number, worker.changes, worker))

    def acquire(self, unit: str, slots: int, expected_s: float) -> Reservation | None:
        """Take `slots` slots for `unit`, or None if they are not free.

        One slot is taken at the least loaded worker. Several are taken idle, on as few workers as
        will do, and stay so until released.
        """
        expected_s = max(expected_s, LEAST_UNIT_S)
        held: list[tuple[str, int]]
        if slots == 1:
            best = self._least_loaded(expected_s)
            if best is None:
                return None
            held = [(best.address, 1)]
        else:
            if self._idle < slots:
                return None
            held = []
            missing = slots
            by_idle = sorted(self.workers.items(), key=lambda item: (-item[1].idle, item[0]))
            for address, worker in by_idle:
                take = min(worker.idle, missing)
                if take:
                    held.append((address, take))
                    missing -= take
        reservation = Reservation(tuple(held), expected_s, slots > 1)
        for address, count in held:
            worker = self.workers[address]
            worker.exclusive += slots > 1
            worker.units.add(unit)
            self._change(worker, count, expected_s)
        self.reservations[unit] = reservation
        return reservation

    def rename(self, unit: str, name: str) -> None:
        """What `unit` holds is held by `name` from now on."""
        reservation = self.reservations.pop(unit)
        self.reservations[name] = reservation
        for address, _ in reservation.slots:
            units = self.workers[address].units
            units.discard(unit)
            units.add(name)

    def _shrink(self, unit: str, reservation: Reservation, address: str) -> None:
        """Give back the slots that `unit` holds at one of its workers."""
        kept = tuple(held for held in reservation.slots if held[0] != address)
        self.reservations[unit] = reservation._replace(slots=kept)
        worker = self.workers[address]
        worker.exclusive -= 1
        worker.units.discard(unit)
        self._change(worker, -dict(reservation.slots)[address], reservation.expected_s)

    def _change(self, worker: _Worker, count: int, expected_s: float) -> None:
        self._idle -= worker.idle
        worker.busy += count
        self._idle += worker.idle
        worker.backlog_s = max(0.0, worker.backlog_s + count * expected_s)
        self.backlog_s = max(0.0, self.backlog_s + count * expected_s)
        self._stand(worker)

    def release(self, unit: str) -> bool:
        """Give back what `unit` holds. Returns whether it held anything."""
        reservation = self.reservations.pop(unit, None)
        if reservation is None:
            return False
        for address, count in reservation.slots:
            worker = self.workers[address]
            worker.exclusive -= reservation.several
            worker.units.discard(unit)
            self._change(worker, -count, reservation.expected_s)
        return True
