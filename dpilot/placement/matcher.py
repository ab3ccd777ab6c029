"""The waiting units and the pilots' slots: binds a unit when the slot that suits it best is free.

Late binding: nothing is bound before a slot is free for it, and every event (a unit, a slot, a pilot
or a replica more) lets all that waits be decided anew. Equal requests wait in one line, so a
decision is taken once for the head of a line, however many stand behind it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
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
    last_bound: float = 0.0

    def room(self, slots: int, expected_s: float) -> int:
        """Its idle slots; or 1 if it has none, and would queue a unit of one slot."""
        return self.slots.idle or int(slots == 1 and self.slots.has_room(expected_s))


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

        First every line, in the order of the heads, takes free slots of its home: the pilot that fits it best, however
        busy. So slots go to those whose data lie there. What is then left free goes to lines whose home is busy, as
        long as a unit ends earlier there than the last one of those that wait for the home would.
        """
        bindings: list[Binding] = []
        reserved: set[str] = set()
        queued_s: defaultdict[str, float] = defaultdict(float)  # slot-seconds of work that waits for each home
        left: list[Request] = []
        if not self._any_room(reserved):
            return Matching(bindings, None)
        heads = [(head.order, head.unit, request) for request in list(self._lines) if (head := self._head(request))]
        heapq.heapify(heads)
        while heads and self._any_room(reserved):
            _, _, request = heapq.heappop(heads)
            rows = self._rank(request, reserved)
            home = _home(rows)
            if home is None:
                continue
            if home.free:
                bindings.append(self._bind(request, home, rows, now))
                following = self._head(request)
                if following is not None:
                    heapq.heappush(heads, (following.order, following.unit, request))
            else:
                if request.slots <= self._pilots[home.pilot].slots.open:
                    # Slots that come free there are kept for it: a stream of narrow or tiny units would starve it.
                    # Not while workers are missing, or paused: then it is not the others that it waits for.
                    reserved.add(home.pilot)
                queued_s[home.pilot] += self._lines[request].length * request.slots * self._expected_s(request)
                left.append(request)
        recheck_s = [
            wait_s
            for request in left
            if (wait_s := self._spill(request, now, reserved, queued_s, bindings)) is not None
        ]
        return Matching(bindings, min(recheck_s, default=None))

    def _spill(
        self,
        request: Request,
        now: float,
        reserved: Collection[str],
        queued_s: dict[str, float],
        bindings: list[Binding],
    ) -> float | None:
        """Bind units of a line to other pilots than its home while that pays; else, when to ask again."""
        expected_s = self._expected_s(request)
        while (head := self._head(request)) is not None and self._any_room(reserved):
            rows = self._rank(request, reserved)
            home = _home(rows)
            other = next((row for row in rows if row.verdict == "possible" and row.free), None)
            if home is None or other is None:
                return None
            pilot = self._pilots[home.pilot]
            tail_s = home.stage_s + home.label_s + home.load + queued_s[home.pilot] / pilot.declared
            # Where nothing has moved for long, the estimate is wrong, or the pilot does not start.
            patience_s = other.cost_s + self.policy.prefer_wait_s - (now - max(head.since, pilot.last_bound))
            if other.cost_s + expected_s >= tail_s and patience_s > 0:
                return patience_s
            bindings.append(self._bind(request, other, rows, now))
            queued_s[home.pilot] -= request.slots * expected_s
        return None

    def _any_room(self, reserved: Collection[str]) -> bool:
        return any(name not in reserved and pilot.slots.has_room(0.0) for name, pilot in self._pilots.items())

    def _expected_s(self, request: Request) -> float:
        return self.runtimes.expected_s(request.kind)

    def _bind(self, request: Request, row: Row, rows: list[Row], now: float) -> Binding:
        head = self._head(request)
        assert head is not None, "a line without a head was kept"
        pilot = self._pilots[row.pilot]
        reservation = pilot.slots.acquire(head.unit, request.slots, self._expected_s(request))
        assert reservation is not None, f"{row.pilot} had room for {head.unit} and has none"
        pilot.last_bound = now
        self.withdraw(head.unit)
        self._pilot_of[head.unit] = row.pilot
        decision = Decision(head.unit, row.pilot, *_told(row, rows))
        return Binding(head.unit, row.pilot, reservation.worker, decision)

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
        home = _home(rows)
        assert home is not None
        told = tuple(row._replace(verdict="best") if row is home else row for row in rows)
        return Decision(unit, None, f"waits for a slot of {home.pilot}", told)


def _fit(row: Row) -> tuple[float, bool, float, str]:
    return row.stage_s + row.label_s, not row.free, row.load, row.pilot


def _home(rows: list[Row]) -> Row | None:
    """The pilot that fits a request best, but for the queue there: by its data and labels, then load and name."""
    return min((row for row in rows if row.verdict == "possible"), key=_fit, default=None)


def _told(chosen: Row, rows: list[Row]) -> tuple[str, tuple[Row, ...]]:
    others = [row for row in rows if row.verdict == "possible" and row is not chosen]
    home = _home(rows)
    assert home is not None
    second = _home(others)
    if second is None:
        why = "the only pilot that can run it"
    elif chosen is not home:
        why = f"{home.pilot} fits better, but the queue there is longer than {chosen.pilot} costs"
    elif (worse_s := _fit(second)[0] - _fit(chosen)[0]) > 0:
        why = f"its data and labels fit best, by {worse_s:.3f} s"
    elif not second.free:
        why = "as good as others, and free"
    elif second.load > chosen.load:
        why = "as good as others, and the least loaded"
    else:
        why = "as good as others, and first by name"
    marked = tuple(row._replace(verdict="chosen") if row is chosen else row for row in rows)
    return f"to {chosen.pilot}: {why}", marked
