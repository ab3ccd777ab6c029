"""The units that are bound: which pilot takes one, what it holds there, and why it went there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from dpilot.placement.decision import Decision, Row, home_of, told
from dpilot.placement.demand import Demand
from dpilot.placement.estimates import LEAST_GAP_S
from dpilot.placement.lines import Line, Queue, Waiting
from dpilot.placement.places import PLAIN, Pilot, Place
from dpilot.placement.policy import Policy
from dpilot.placement.shares import Reservation
from dpilot.placement.views import InputView, PilotView, Request
from dpilot.placement.ways import WEIGHT

__all__ = ["Binding", "Bindings"]

#: How many pilots a decision remembers.
_MOST_ROWS = 8


class Binding(NamedTuple):
    """A unit and the worker that is to run it, with the decision that led there."""

    unit: str
    pilot: str
    worker: str
    decision: Decision


class Bindings(Demand):
    """Binds units to slots, and gives the slots back."""

    def taker(self, place: Place, waiting: Waiting, queue: Queue | None, now: float) -> Pilot | None:
        """The pilot of a place that should take a unit now; `queue`: the one that it stands in, if that is its home."""
        first = place.first()
        if first is None:
            return None
        if first.slots.idle and first.reserved is None and first.ends_at is None and waiting.line.need == PLAIN:
            return first
        return self._best(place, waiting, queue, now)

    def _best(self, place: Place, waiting: Waiting, queue: Queue | None, now: float) -> Pilot | None:
        request, need = waiting.line.request, waiting.line.need
        expected_s = self.runtimes.expected_s(request.kind)
        until = self.until(request, now)

        def able(pilot: Pilot) -> bool:
            kept = pilot.reserved
            if kept is not None and kept is not queue:
                first = kept.reserved_for
                if queue is None or (first is not None and first < waiting):
                    return False
            output_s = self.outputs.cost_s(request, pilot.site)
            return pilot.lasts(until, output_s) and pilot.fits(need, expected_s + output_s)

        return place.best(able, need.slots == 1 and expected_s < self.in_flight_s)

    def bind(self, waiting: Waiting, pilot: Pilot, now: float) -> Binding:
        """Give a unit slots of a pilot that has them."""
        line, request, unit = waiting.line, waiting.line.request, waiting.unit
        views = tuple(self.views(request)) if request.inputs else ()
        seen = self.policy, request, self._seen(line, pilot, now), views, line.pool.members
        expected_s = self.runtimes.expected_s(request.kind)
        if request.outputs:
            expected_s += self.outputs.begin(unit, request, pilot.site)
        reservation = pilot.slots.acquire(unit, request.slots, expected_s, request.memory_nbytes, request.gpus)
        assert reservation is not None, f"{pilot.name} had room for {unit} and has none"
        pilot.changed()
        for place in pilot.places:
            place.last_bound = now
        self.withdraw(unit)
        self._pilot_of[unit] = pilot
        if views:
            self.transit.begin(unit, views, pilot.site, now, pilot.slots.gap_s)
            self._staging[unit] = waiting
        elif request.slots == 1 and pilot.slots.gap_s > LEAST_GAP_S and not reservation.waits:
            self.begun.append((unit, request.kind, None))
        if not reservation.waits and not (views and self.transit.needs(unit)):
            self.runtimes.begin(request.kind, unit, now)
        return Binding(unit, pilot.name, reservation.worker, Decision(unit, pilot.name, work_out=_work_out, seen=seen))

    def staged(self, unit: str, brought_s: float = 0.0, late_s: float = 0.0, *, now: float | None = None) -> None:
        """`unit`, which is bound, has its inputs, and runs: they are on no link any more.

        Bringing them took `brought_s` seconds, if they were not there. That it runs is heard `late_s` seconds later
        than messages from there usually are; `now`, which is by default when it was matched last.
        """
        bound = self._staging.pop(unit, None)
        self._recalled.discard(unit)
        came = self.transit.needs(unit)
        self.transit.end(unit)
        if bound is None:
            return
        kind, slots = bound.line.request.kind, self._pilot_of[unit].slots
        slots.bring_s += WEIGHT * (brought_s - slots.bring_s) if slots.bring_s else brought_s
        if came:
            self.runtimes.begin(kind, unit, self.runtimes.now if now is None else now)
        if bound.line.request.slots == 1 and slots.gap_s + slots.bring_s > LEAST_GAP_S:
            self.begun.append((unit, kind, late_s))

    def observe(self, kind: str, seconds: float) -> None:
        """A unit of `kind` has run for `seconds`.

        If it is the first one, those bound before anything was known of the kind count as that long from now on.
        """
        is_first = self.runtimes.known_s(kind) is None
        bound = self.runtimes.running(kind) if is_first else []
        self.runtimes.observe(kind, seconds)
        if is_first:
            bound += [unit for unit, waiting in self._staging.items() if waiting.line.request.kind == kind]
            for unit in dict.fromkeys(bound):
                pilot = self._pilot_of[unit]
                pilot.slots.expect(unit, seconds + self.outputs.taking_s(unit))
                self._changed[pilot] = None

    def release(self, unit: str) -> Reservation | None:
        """`unit` has ended, or was lost: give back its slots. Returns what it held; None if it was not bound."""
        pilot = self._pilot_of.get(unit)
        if pilot is None:
            return None
        self._lose(unit)
        self._changed[pilot] = None
        return pilot.slots.release(unit)

    def leave(self, unit: str) -> None:
        """A unit is about to end: the next one may be sent after it, see :meth:`PilotSlots.leave`."""
        pilot = self._pilot_of.get(unit)
        if pilot is not None and pilot.slots.leave(unit):
            self._changed[pilot] = None
            self.left.append(unit)

    def keep(self, unit: str, name: str) -> None:
        """`unit` was taken back, but what it started still runs: its slots stay taken, by `name` from now on."""
        pilot = self._pilot_of.get(unit)
        if pilot is not None:
            self._lose(unit)
            pilot.slots.rename(unit, name)
            self._pilot_of[name] = pilot

    # -- explanations

    def _seen(self, line: Line, chosen: Pilot, now: float) -> list[PilotView]:
        """The pilots that a decision was about, as they are now: all of a few, or some of many."""
        if len(self._pilots) <= _MOST_ROWS:
            return [pilot.view(now) for pilot in self._pilots.values()]
        home = line.queues[0].place.pilots
        views = [pilot.view(now) for pilot in islice(home.values(), _MOST_ROWS - 1) if pilot is not chosen]
        views.append(chosen.view(now))
        return views

    def explain(self, unit: str, now: float = 0.0) -> Decision | None:
        """Where `unit`, which is waiting, would go now; None if it is not waiting."""
        waiting = self._waiting.get(unit)
        if waiting is None:
            return None
        request = waiting.line.request
        expected_s = self.runtimes.expected_s(request.kind)
        short = request.slots == 1 and expected_s < self.in_flight_s
        pilots = []
        for pilot in self._pilots.values():
            view = pilot.view(now)
            if short and not view.free and pilot.slots.has_room(expected_s):
                view = view._replace(free=1)
            pilots.append(view._replace(free=0) if pilot.reserved is not None else view)
        views = {view.id: view for view in self.views(request)}
        members = self._members.get(request.pool)
        rows = self.policy.rank(request, pilots, views, members, self.lasts_s(request))
        if not rows:
            return Decision(unit, None, "waits for a pilot: there is none")
        home = home_of(rows)
        if home is None:
            reasons = "; ".join(f"{row.pilot}: {row.reason}" for row in rows[:3])
            return Decision(unit, None, f"waits: no pilot can run it ({reasons})", tuple(rows))
        told = tuple(row._replace(verdict="best") if row is home else row for row in rows)
        return Decision(unit, None, f"waits for a slot of {home.pilot}", told)


def _work_out(
    chosen: str,
    policy: Policy,
    request: Request,
    pilots: list[PilotView],
    views: Sequence[InputView],
    members: frozenset[str] | None,
) -> tuple[str, tuple[Row, ...]]:
    # A slot that is free for a unit may be one in a worker's queue.
    pilots = [p._replace(free=max(p.free, request.slots)) if p.id == chosen else p for p in pilots]
    rows = policy.rank(request, pilots, {view.id: view for view in views}, members)
    return told(chosen, rows)
