"""The slots, memory and GPUs of one pilot, counted: what makes sure that no pilot is ever over-committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpilot.placement.heaps import LazyHeap
from dpilot.placement.shares import Reservation, Share, Standing, WorkerSlots, spread

__all__ = ["PilotSlots"]

#: The least that a unit costs at a worker, however short: it bounds how many are queued there.
LEAST_UNIT_S = 5e-4
#: Expected times are counted in whole parts of a second: sums of these are exact (of up to 2**29 s), so that what is
#: given back leaves nothing behind.
_PARTS = 2.0**24


class PilotSlots:
    """Which unit holds how many slots, how much memory and which GPUs at which worker of one pilot.

    A worker takes units while it has idle slots. It takes more, queued behind the running ones, only
    while all that it holds is less than `in_flight_s` seconds of work per slot: so units of a
    millisecond stream, and units of a second are bound when a slot is free for them.

    Parameters
    ----------
    in_flight_s : float
        Seconds of work per slot to keep at a worker.

    Attributes
    ----------
    gap_s : float
        How long messages take to a worker and back: as long as that lasts units have to be there for beyond those.
    bring_s : float
        How long it takes of late to bring what units read here; 0 where it is there already.
    """

    def __init__(self, in_flight_s: float = 0.05) -> None:
        self.in_flight_s = in_flight_s
        self.gap_s = self.bring_s = 0.0
        self.workers: dict[str, WorkerSlots] = {}
        self.reservations: dict[str, Reservation] = {}
        self.total = 0
        self.open = 0  # of them, those of workers that take units
        self.idle = 0  # of those, the ones that no unit holds
        self.backlog_s = 0.0
        self._leaving: set[str] = set()
        self._joined = 0
        self._sizes: dict[tuple[int | None, int], int] = {}  # memory and GPUs -> how many workers have as much
        # Workers with so many slots -> those that have any room. Of workers with as many slots the least loaded has the
        # most room, so that the first of each heap tells of all.
        self._by_load: dict[int, LazyHeap[Standing]] = {}

    # -- workers

    def add_worker(self, address: str, slots: int, memory_nbytes: int | None = None, gpus: int = 0) -> None:
        """A worker with `slots` slots has joined; `memory_nbytes` of None is no limit."""
        self._joined += 1
        worker = WorkerSlots(address, self._joined, slots, memory_nbytes, gpus, memory_nbytes or 0, list(range(gpus)))
        worker.plain = (Share(address, 1),)
        self.workers[address] = worker
        self._sizes[memory_nbytes, gpus] = self._sizes.get((memory_nbytes, gpus), 0) + 1
        self.total += slots
        self.open += slots
        self._count_idle(worker)
        self._stand(worker)

    def open_worker(self, address: str, is_open: bool) -> None:
        """Let a worker take units, or let it not (it starts, pauses or retires); what it holds it keeps."""
        worker = self.workers[address]
        self.open += worker.slots * (is_open - worker.is_open)
        worker.is_open = is_open
        self._count_idle(worker)
        self._stand(worker)

    def remove_worker(self, address: str) -> list[str]:
        """A worker is gone. Returns the units that it ran; all that they held is free again.

        Those that only held slots there run on elsewhere, and keep what they hold on other workers.
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
        size = worker.memory_nbytes, worker.gpus
        self._sizes[size] -= 1
        if not self._sizes[size]:
            del self._sizes[size]
        self.total -= worker.slots
        self.open -= worker.slots * worker.is_open
        self.idle -= worker.idle
        worker.changes += 1  # it stands nowhere any more
        return units

    def _count_idle(self, worker: WorkerSlots) -> None:
        idle = worker.slots - worker.busy if worker.is_open and worker.busy < worker.slots else 0
        self.idle += idle - worker.idle
        worker.idle = idle

    def _stand(self, worker: WorkerSlots) -> None:
        """Take in that a worker has changed."""
        worker.changes += 1
        if not worker.idle and self._room(worker, LEAST_UNIT_S) <= 0:
            return
        heap = self._by_load.get(worker.slots)
        if heap is None:
            heap = self._by_load[worker.slots] = LazyHeap(Standing.is_valid)
        load = worker.busy >= worker.slots, worker.backlog_s / worker.slots, worker.busy
        heap.push(Standing(load, worker.number, worker.changes, worker))

    # -- how much there is room for

    def _room(self, worker: WorkerSlots, expected_s: float) -> int:
        """How many units of one slot and `expected_s` seconds the worker would take now."""
        if expected_s >= self.in_flight_s or worker.exclusive or not worker.is_open:
            return worker.idle  # what is so long is not queued
        left_s = (self.in_flight_s + self.gap_s) * worker.slots - worker.backlog_s
        if left_s <= 0.0:
            return worker.idle
        queue = int(left_s / max(expected_s, LEAST_UNIT_S) + 1e-6)  # what adds up to a whole unit is one
        return max(worker.idle, queue)

    def free(self, expected_s: float) -> int:
        """How many units of one slot and `expected_s` seconds the pilot would take now."""
        return sum(self._room(worker, expected_s) for worker in self.workers.values())

    def has_room(self, expected_s: float) -> bool:
        """Whether the pilot would take a unit of one slot and `expected_s` seconds now."""
        return self.idle > 0 or (expected_s < self.in_flight_s and self._least_loaded(expected_s) is not None)

    def fits(self, slots: int, expected_s: float, memory_nbytes: int = 0, gpus: int = 0) -> bool:
        """Whether the pilot would take such a unit now."""
        if slots == 1 and not memory_nbytes and not gpus:
            return self.has_room(expected_s)
        if slots > 1 and self.idle - len(self._leaving) < slots:
            return False
        return self._shares(slots, expected_s, memory_nbytes, gpus) is not None

    def would_fit(self, slots: int, memory_nbytes: int = 0, gpus: int = 0) -> bool:
        """Whether the workers that are open now would take such a unit if they were idle."""
        if slots > self.open or not (memory_nbytes or gpus):
            return slots <= self.open
        workers = [w for w in self.workers.values() if w.is_open]
        if slots == 1:
            return any(
                w.gpus >= gpus and (w.memory_nbytes is None or w.memory_nbytes >= memory_nbytes) for w in workers
            )
        all_of_it = ((w.address, w.slots, w.memory_nbytes, list(range(w.gpus))) for w in workers)
        return spread(all_of_it, slots, memory_nbytes, gpus) is not None

    def largest(self) -> tuple[int | None, int]:
        """The memory of its largest worker (None: not known), and the GPUs of the one that has most of them."""
        memory = [nbytes for nbytes, _ in self._sizes]
        known = [nbytes for nbytes in memory if nbytes is not None]
        gpus = max((gpus for _, gpus in self._sizes), default=0)
        return (max(known) if known and len(known) == len(memory) else None), gpus

    def _least_loaded(self, expected_s: float) -> WorkerSlots | None:
        """The least loaded of the workers that would take a unit of one slot and `expected_s` seconds now."""
        best: Standing | None = None
        for heap in self._by_load.values():
            first = heap.first()
            if first and (best is None or first < best) and self._room(first.worker, expected_s) > 0:
                best = first
        return best.worker if best is not None else None

    def _standing(self) -> Iterable[WorkerSlots]:
        """The workers that have any room, roughly the least loaded first."""
        for heap in self._by_load.values():
            for standing in heap:
                if standing.is_valid():
                    yield standing.worker

    def _shares(self, slots: int, expected_s: float, memory_nbytes: int, gpus: int) -> Sequence[Share] | None:
        """What a unit would hold. One slot is at one worker; several are idle ones, on as few workers as will do.

        Memory and GPUs of a unit of several slots are taken where its slots are.
        """
        if slots == 1 and not memory_nbytes and not gpus:
            best = self._least_loaded(expected_s)
            return None if best is None else best.plain
        if slots == 1:
            for worker in self._standing():
                if self._room(worker, expected_s) > 0 and worker.has(memory_nbytes, gpus):
                    return [Share(worker.address, 1, memory_nbytes, tuple(worker.free_gpus[:gpus]))]
            return None
        free = (
            (w.address, w.idle - w.leaving, None if w.memory_nbytes is None else w.free_nbytes, w.free_gpus)
            for w in self.workers.values()
        )
        return spread(free, slots, memory_nbytes, gpus)

    # -- what units hold

    def acquire(
        self, unit: str, slots: int, expected_s: float, memory_nbytes: int = 0, gpus: int = 0
    ) -> Reservation | None:
        """Take `slots` slots, and memory and GPUs with them, for `unit`; or None if they are not free.

        One slot is taken at the least loaded worker. Several are taken idle, on as few workers as
        will do, and stay so until released.
        """
        expected_s = _whole_s(expected_s)
        if slots > 1 and self.idle - len(self._leaving) < slots:
            return None
        shares = self._shares(slots, expected_s, memory_nbytes, gpus)
        if shares is None:
            return None
        first = self.workers[shares[0].worker]
        waits = slots == 1 and not first.idle
        follows = slots == 1 and not waits and first.leaving > 0 and not first.vacant
        reservation = Reservation(tuple(shares), expected_s, slots > 1, waits, follows)
        for share in shares:
            worker = self.workers[share.worker]
            worker.exclusive += slots > 1
            worker.units.add(unit)
            self._change(worker, share, 1, expected_s)
        if follows:
            first.following[unit] = None
        self.reservations[unit] = reservation
        return reservation

    def rename(self, unit: str, name: str) -> None:
        """What `unit` holds is held by `name` from now on."""
        reservation = self.reservations.pop(unit)
        self.reservations[name] = reservation
        if unit in self._leaving:
            self._leaving.remove(unit)
            self._leaving.add(name)
        for share in reservation.shares:
            units = self.workers[share.worker].units
            units.discard(unit)
            units.add(name)
            if unit in self.workers[share.worker].following:
                self.workers[share.worker].following[name] = None
                del self.workers[share.worker].following[unit]

    def _shrink(self, unit: str, reservation: Reservation, address: str) -> None:
        """Give back what `unit` holds at one of its workers."""
        (gone,) = (share for share in reservation.shares if share.worker == address)
        kept = tuple(share for share in reservation.shares if share is not gone)
        self.reservations[unit] = reservation._replace(shares=kept)
        worker = self.workers[address]
        worker.exclusive -= 1
        worker.units.discard(unit)
        self._change(worker, gone, -1, reservation.expected_s)

    def _change(self, worker: WorkerSlots, share: Share, sign: int, expected_s: float) -> None:
        """A unit takes its share of a worker (`sign` is 1), or gives it back (-1)."""
        worker.busy += sign * share.slots
        more_s = sign * share.slots * expected_s
        worker.backlog_s += more_s
        self.backlog_s += more_s
        self._count_idle(worker)
        if share.memory_nbytes:
            worker.free_nbytes -= sign * share.memory_nbytes
        if share.gpus and sign > 0:
            worker.free_gpus = [device for device in worker.free_gpus if device not in share.gpus]
        elif share.gpus:
            worker.free_gpus = sorted((*worker.free_gpus, *share.gpus))
        self._stand(worker)

    def expect(self, unit: str, expected_s: float) -> None:
        """How long `unit` will take is known better by now: it counts as so long."""
        reservation = self.reservations[unit]
        expected_s = _whole_s(expected_s)
        self.reservations[unit] = reservation._replace(expected_s=expected_s)
        more_s = expected_s - reservation.expected_s
        if unit in self._leaving:  # it is work of the pilot still, but holds nobody back at its worker
            self.backlog_s += more_s
            return
        for share in reservation.shares:
            worker = self.workers[share.worker]
            worker.backlog_s += share.slots * more_s
            self.backlog_s += share.slots * more_s
            self._stand(worker)

    def leave(self, unit: str) -> bool:
        """`unit` is about to end: let the next one be sent to its worker, where it waits for the thread to be free.

        So a slot does not stand idle while messages travel. What asks for several slots, memory or GPUs has to wait for
        those that are free indeed. Returns whether there is room for another unit now.
        """
        reservation = self.reservations.get(unit)
        if reservation is None or reservation.several or unit in self._leaving:
            return False
        (share,) = reservation.shares
        worker = self.workers[share.worker]
        if share.memory_nbytes or share.gpus or not worker.is_open or worker.busy > worker.slots:
            return False
        if unit in worker.following:  # it waits itself
            return False
        self._leaving.add(unit)
        worker.leaving += 1
        self._change(worker, share, -1, reservation.expected_s)
        self.backlog_s += reservation.expected_s
        return True

    def stay(self, unit: str, least_s: float) -> str | None:
        """`unit` was about to end and does not: its slot is taken again, for so long at least as far as anybody knows.

        Returns the unit that waits there and has no slot now: it is to be taken back.
        """
        reservation = self.reservations[unit]
        (share,) = reservation.shares
        worker = self.workers[share.worker]
        self._leaving.remove(unit)
        worker.leaving -= 1
        self.backlog_s -= reservation.expected_s
        expected_s = max(_whole_s(least_s), reservation.expected_s)
        self.reservations[unit] = reservation._replace(expected_s=expected_s)
        self._change(worker, share, 1, expected_s)
        return worker.following.popitem()[0] if worker.following else None

    def is_leaving(self, unit: str) -> bool:
        """Whether a unit is about to end."""
        return unit in self._leaving

    def hold_up(self, address: str) -> None:
        """What runs at a worker takes longer than was thought: nothing more is queued behind it."""
        worker, long_s = self.workers[address], self.in_flight_s + self.gap_s
        for unit in worker.units - self._leaving:
            reservation = self.reservations[unit]
            if not reservation.several and reservation.expected_s < long_s:
                self.expect(unit, long_s)

    def release(self, unit: str) -> Reservation | None:
        """Give back what `unit` holds. Returns what it held, if anything."""
        reservation = self.reservations.pop(unit, None)
        if reservation is None:
            return None
        if unit in self._leaving:
            self._leaving.remove(unit)
            self.backlog_s -= reservation.expected_s
            worker = self.workers[reservation.worker]
            worker.units.discard(unit)
            worker.leaving -= 1
            worker.begin_next(unit)
            self._stand(worker)
            return reservation
        for share in reservation.shares:
            worker = self.workers[share.worker]
            worker.exclusive -= reservation.several
            worker.units.discard(unit)
            self._change(worker, share, -1, reservation.expected_s)
            if worker.following:
                worker.begin_next(unit)
        return reservation


def _whole_s(expected_s: float) -> float:
    return int(max(expected_s, LEAST_UNIT_S) * _PARTS) / _PARTS  # no more, or what has just room would have none
