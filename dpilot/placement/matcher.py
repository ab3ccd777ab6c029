"""The waiting units and the pilots' slots: binds a unit when the slot that suits it best is free.

Late binding: nothing is bound before a slot is free for it, and every event (a unit, a slot, a pilot
or a replica more) lets all that waits be decided anew. Equal requests wait in one line, so a
decision is taken once for the head of a line, however many stand behind it.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dpilot.placement.estimates import RunTimes
from dpilot.placement.policy import Decision, Policy, Row
from dpilot.placement.slots import PilotSlots
from dpilot.placement.topology import Site
from dpilot.placement.views import InputView, PilotView, Request

__all__ = ["Binding", "Matcher", "Matching"]


class Binding(NamedTuple):
    """A unit and the worker that is to run it, with the decision that led there."""

    unit: str
    pilot: str
    worker: str
    decision: Decision


class Matching(NamedTuple):
    """What :meth:`Matcher.match` decided.

    ``recheck_s`` is the time after which it should be asked again even if nothing happens (a unit
    that waits for its best pilot may then go to another one), or None.
    """

    bindings: list[Binding]
    recheck_s: float | None


@dataclass(slots=True)
class _Pilot:
    site: Site
    slots: PilotSlots
    declared: int  # slots it has or, while it starts, will have

    def room(self, slots: int, expected_s: float) -> int:
        """Units of one slot that it would take now; for wider units, its idle slots."""
        return self.slots.free(expected_s) if slots == 1 else self.slots.idle


class _Waiting(NamedTuple):
    """A waiting unit; tuples order by priority, then by submission."""

    order: tuple[float, float]
    unit: str
    since: float


@dataclass(slots=True)
class _Line:
    heap: list[_Waiting] = field(default_factory=list)
    length: int = 0


class Matcher:
    """Matches waiting units with free slots.

    Parameters
    ----------
    policy : Policy
    in_flight_s : float
        Seconds of work per slot to keep at a worker, see :class:`PilotSlots`.
    unknown_runtime_s : float
        Run time assumed of a kind of work that has not run yet.
    """

    def __init__(
        self, policy: Policy | None = None, *, in_flight_s: float = 0.05, unknown_runtime_s: float = 0.5
    ) -> None:
        self.policy = policy or Policy()
        self.runtimes = RunTimes(unknown_runtime_s)
        self.in_flight_s = in_flight_s
        self.inputs: dict[str, InputView] = {}
        self.pools: dict[str, Collection[str]] = {}
        self._pilots: dict[str, _Pilot] = {}
        self._pilot_of: dict[str, str] = {}
        self._lines: dict[Request, _Line] = {}
        self._waiting: dict[str, tuple[Request, _Waiting]] = {}

    # -- pilots and their workers

    def add_pilot(self, pilot: str, site: Site, slots: int) -> None:
        """A pilot that is starting: its workers will bring `slots` slots."""
        self._pilots[pilot] = _Pilot(site, PilotSlots(self.in_flight_s), slots)

    def remove_pilot(self, pilot: str) -> None:
        """Forget a pilot. Whoever held slots there holds nothing any more."""
        gone = self._pilots.pop(pilot, None)
        if gone is not None:
            for unit in gone.slots.reservations:
                self._pilot_of.pop(unit, None)

    def add_worker(self, pilot: str, address: str, slots: int) -> None:
        """A worker of `pilot` has joined with `slots` slots."""
        held = self._pilots[pilot]
        held.slots.add_worker(address, slots)
        held.declared = max(held.declared, held.slots.total)

    def open_worker(self, pilot: str, address: str, is_open: bool) -> None:
        """Let a worker take units, or let it not: it starts, is paused or retires."""
        held = self._pilots.get(pilot)
        if held is not None and address in held.slots.workers:
            held.slots.open_worker(address, is_open)

    def remove_worker(self, pilot: str, address: str) -> None:
        """A worker of `pilot` is gone; what units held there is free."""
        held = self._pilots.get(pilot)
        if held is not None and address in held.slots.workers:
            held.declared -= held.slots.workers[address].slots
            for unit in held.slots.remove_worker(address):
                self._pilot_of.pop(unit, None)

    def idle_slots(self, pilot: str) -> int:
        """Slots of `pilot` that no unit holds."""
        return self._pilots[pilot].slots.idle if pilot in self._pilots else 0

    def total_slots(self, pilot: str) -> int:
        """Slots of all workers of `pilot` that are here."""
        return self._pilots[pilot].slots.total if pilot in self._pilots else 0

    # -- units

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, unit: str) -> bool:
        return unit in self._waiting

    def submit(self, unit: str, request: Request, *, now: float, priority: float = 0.0, order: float = 0.0) -> None:
        """`unit` is ready to run: its inputs are there. Higher `priority` first, then lower `order`."""
        line = self._lines.get(request)
        if line is None:
            line = self._lines[request] = _Line()
        waiting = _Waiting((-priority, order), unit, now)
        heapq.heappush(line.heap, waiting)
        line.length += 1
        self._waiting[unit] = (request, waiting)

    def withdraw(self, unit: str) -> None:
        """`unit` waits no longer (canceled, or failed)."""
        held = self._waiting.pop(unit, None)
        if held is not None:
            self._lines[held[0]].length -= 1

    def release(self, unit: str) -> None:
        """`unit` has ended, or was lost: give back its slots."""
        pilot = self._pilot_of.pop(unit, None)
        if pilot is not None:
            self._pilots[pilot].slots.release(unit)

    def keep(self, unit: str, name: str) -> None:
        """`unit` was taken back, but what it started still runs: its slots stay taken, by `name` from now on."""
        pilot = self._pilot_of.pop(unit, None)
        if pilot is not None:
            self._pilots[pilot].slots.rename(unit, name)
            self._pilot_of[name] = pilot

    # -- decisions

    def _rank(self, request: Request, reserved: Collection[str] = ()) -> list[Row]:
        expected_s = self.runtimes.expected_s(request.kind)
        views = [
            PilotView(
                name,
                pilot.site,
                pilot.declared,
                0 if name in reserved else pilot.room(request.slots, expected_s),
                pilot.slots.backlog_s,
            )
            for name, pilot in self._pilots.items()
        ]
        return self.policy.rank(request, views, self.inputs, self.pools.get(request.pool))

    def _head(self, request: Request) -> _Waiting | None:
        """The first of a line, which is forgotten when nobody stands in it."""
        line = self._lines.get(request)
        while line is not None and line.heap:
            head = line.heap[0]
            held = self._waiting.get(head.unit)
            if held is not None and held[1] is head:
                return head
            heapq.heappop(line.heap)  # withdrawn, or submitted anew since
        self._lines.pop(request, None)
        return None

    def match(self, now: float) -> Matching:
        """Bind all that can be bound well now.

        First every line, in the order of the heads, takes slots of its best pilot. What is then left
        free goes to those whose best pilot is busy, where that serves them better than to wait: the
        last of the line would wait longer than the other pilot costs, or the head has done so.
        """
        bindings: list[Binding] = []
        reserved: set[str] = set()
        recheck_s: list[float] = []
        for may_spill in (False, True):
            heads = [(head.order, request) for request in list(self._lines) if (head := self._head(request))]
            heads.sort(key=lambda item: item[0])
            heapq.heapify(heads)
            while heads and self._any_room(reserved):
                _, request = heapq.heappop(heads)
                head = self._head(request)
                assert head is not None, "a line without a head was kept"
                rows = self._rank(request, reserved)
                row = self._choose(request, rows, now - head.since, may_spill, reserved, recheck_s)
                if row is not None:
                    bindings.append(self._bind(head.unit, request, row, rows))
                    following = self._head(request)
                    if following is not None:
                        heapq.heappush(heads, (following.order, request))
        return Matching(bindings, min(recheck_s, default=None))

    def _any_room(self, reserved: Collection[str]) -> bool:
        return any(name not in reserved and pilot.slots.free(0.0) > 0 for name, pilot in self._pilots.items())

    def _choose(
        self,
        request: Request,
        rows: list[Row],
        waited_s: float,
        may_spill: bool,
        reserved: set[str],
        recheck_s: list[float],
    ) -> Row | None:
        """The row to bind the head of a line to now, or None if it had better wait."""
        possible = [row for row in rows if row.verdict == "possible"]
        if not possible:
            return None
        best = possible[0]
        expected_s = self.runtimes.expected_s(request.kind)
        free = [
            row
            for row in possible
            if row.pilot not in reserved and self._pilots[row.pilot].room(request.slots, expected_s) >= request.slots
        ]
        if free and free[0] is best:
            return best
        if free:
            other = free[0]
            patience_s = other.cost_s + (0.0 if may_spill else self.policy.prefer_wait_s)
            declared = self._pilots[best.pilot].declared
            tail_s = best.load + self._lines[request].length * request.slots * expected_s / declared
            worse_for_last = best.stage_s + best.label_s + tail_s > other.cost_s + expected_s
            if waited_s >= patience_s or (may_spill and worse_for_last):
                return other
            recheck_s.append(patience_s - waited_s)
        elif request.slots > 1:
            # Slots that come free there are kept for it: a stream of narrow units would starve it.
            reserved.add(best.pilot)
        return None

    def _bind(self, unit: str, request: Request, row: Row, rows: list[Row]) -> Binding:
        reservation = self._pilots[row.pilot].slots.acquire(unit, request.slots, self.runtimes.expected_s(request.kind))
        assert reservation is not None, f"{row.pilot} had room for {unit} and has none"
        self.withdraw(unit)
        self._pilot_of[unit] = row.pilot
        return Binding(unit, row.pilot, reservation.worker, Decision(unit, row.pilot, *_told(row, rows)))

    def explain(self, unit: str) -> Decision | None:
        """Where `unit`, which is waiting, would go now; None if it is not waiting."""
        held = self._waiting.get(unit)
        if held is None:
            return None
        rows = self._rank(held[0])
        possible = [row for row in rows if row.verdict == "possible"]
        if not rows:
            return Decision(unit, None, "waits for a pilot: there is none")
        if not possible:
            return Decision(unit, None, "waits: no pilot can run it", tuple(rows))
        best = possible[0]
        told = tuple(replace(row, verdict="best") if row is best else row for row in rows)
        return Decision(unit, None, f"waits for a slot of {best.pilot}", told)


def _told(chosen: Row, rows: list[Row]) -> tuple[str, tuple[Row, ...]]:
    others = [row for row in rows if row.verdict == "possible" and row is not chosen]
    if not others:
        why = "the only pilot that can run it"
    elif others[0].cost_s < chosen.cost_s:
        why = f"it waited longer for {others[0].pilot} than {chosen.pilot} costs"
    elif others[0].cost_s > chosen.cost_s:
        why = f"the cheapest by {others[0].cost_s - chosen.cost_s:.3f} s"
    elif others[0].load > chosen.load:
        why = "as cheap as others, and the least loaded"
    else:
        why = "as cheap as others, and first by name"
    marked = tuple(replace(row, verdict="chosen") if row is chosen else row for row in rows)
    return f"to {chosen.pilot}: {why}", marked
