"""The waiting units and the pilots' slots: binds a unit when the slot that suits it best is free.

Late binding: nothing is bound before a slot is free for it, and every event (a unit, a slot, a pilot
or a replica more) lets all that it concerns be decided anew.

What an event costs does not grow with the number of pilots or of waiting units:

- Equal requests wait in one *line*: a decision is taken once for the first unit (:mod:`~dpilot.placement.lines`).
- A line's *home* is a *place*: a machine, a datacenter or the whole pool, whichever is the largest whose pilots all fit
  it best (:mod:`~dpilot.placement.homes`). Only places that its inputs and labels name are looked at. Lines with one
  home and one need stand in a *queue*, in the order of their first units.
- A place knows its least loaded pilot (:mod:`~dpilot.placement.places`). So a slot that comes free concerns three
  places and their queues, a unit that comes concerns one queue.
- A queue that its home cannot serve stands among the *busy* ones, the longest first. Slots that nobody takes at home go
  to the longest of them (:mod:`~dpilot.placement.spill`), and what was found not to be worth its way is not looked at
  again before something has changed.
- Homes are not kept up to date: a line has a version, and is given its home anew when it comes to the head of its queue
  and the pilots or links are no longer the same. A replica more or less is told to the lines that read it.
- No call does more than so much: what is left over is asked for again at once, by a recheck in 0 seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from dpilot.placement.ahead import Ahead, Copying
from dpilot.placement.decision import Decision, Row, home_of, told
from dpilot.placement.estimates import RunTimes
from dpilot.placement.fleet import Fleet
from dpilot.placement.homes import choose, is_far, named
from dpilot.placement.lines import Line, Queue, Waiting
from dpilot.placement.places import Need, Pilot, Place, Pool
from dpilot.placement.policy import Policy
from dpilot.placement.spill import Spill
from dpilot.placement.topology import Site
from dpilot.placement.transit import Transit
from dpilot.placement.views import InputView, PilotView, Request

__all__ = ["Binding", "Matcher", "Matching"]

#: How many units are bound, or given another home, by one call.
_MOST_STEPS = 128
#: How many pilots with room that nobody takes at home are offered to others by one call.
_MOST_FRESH = 16
#: How many lines are told at once of a replica.
_MOST_TOLD = 64
#: How soon it is looked again how long the first unit of a kind has run by now.
_LEAST_LOOK_S = 0.02
#: How many times sooner a unit has to begin elsewhere to be taken back.
_CLEARLY = 2.0
#: How many pilots a decision remembers.
_MOST_ROWS = 8


class Binding(NamedTuple):
    """A unit and the worker that is to run it, with the decision that led there."""

    unit: str
    pilot: str
    worker: str
    decision: Decision


class Matching(NamedTuple):
    """What :meth:`Matcher.match` decided.

    ``recheck_s`` is the time after which it should be asked again even if nothing happens (a unit that waits for its
    best pilot may then go to another one; or not all that can be bound was bound, and it is 0), or None. ``copies`` are
    to be brought ahead of units; of each :meth:`Matcher.copied` is to be told when it has ended. ``recalls`` are units
    that wait at their pilots for data that takes much too long, and would have it much sooner elsewhere: they are to be
    taken back, if they do not run yet, and submitted again.
    """

    bindings: list[Binding]
    recheck_s: float | None
    copies: Sequence[Copying] = ()
    recalls: Sequence[str] = ()


class Matcher(Fleet):
    """Matches waiting units with free slots.

    Parameters
    ----------
    policy : Policy
    in_flight_s : float
        Seconds of work per slot to keep at a worker, see :class:`PilotSlots`.
    unknown_runtime_s : float
        Run time assumed of a kind of work that has not run yet.
    inputs : mapping of id to InputView
        The data units, as they are now. It is the caller's: the matcher looks up what a unit reads when it decides, and
        keeps nothing of it. Tell :meth:`data_changed` when one that units may be waiting for has changed.
    ahead : bool
        Whether the caller brings data ahead of units when :meth:`match` says so. Without it, only units that are bound
        have their data brought.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        in_flight_s: float = 0.05,
        unknown_runtime_s: float = 0.5,
        inputs: Mapping[str, InputView] | None = None,
        ahead: bool = False,
    ) -> None:
        self.ahead = ahead
        self.policy = policy or Policy()
        super().__init__(Transit(self.policy.links), in_flight_s)
        self.runtimes = RunTimes(unknown_runtime_s)
        self.inputs: Mapping[str, InputView] = {} if inputs is None else inputs
        self._lines: dict[Request, Line] = {}
        self._readers: dict[str, Line | dict[Line, None]] = {}  # data unit -> who reads it; mostly it is one
        self._waiting: dict[str, Waiting] = {}
        self._staging: dict[str, Waiting] = {}  # units that are bound and wait for data
        self._recalled: set[str] = set()  # of these, those that are to be taken back
        self._count = 0
        self._spill = Spill(self)
        self._ahead = Ahead(self)

    # -- units

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, unit: str) -> bool:
        return unit in self._waiting

    def submit(self, unit: str, request: Request, *, now: float, priority: float = 0.0, order: float = 0.0) -> None:
        """`unit` is ready to run: its inputs are there. Higher `priority` first, then lower `order`."""
        line = self._lines.get(request)
        self._count += 1
        if line is None:
            line = self._lines[request] = Line(request, self._pool(request), Need.of(request), self._count)
            for du in request.inputs:
                self._read(du, line)
        self._staging.pop(unit, None)
        if unit in self._recalled:
            self._recalled.discard(unit)
            line.is_stuck = True
            if line.queues:
                self._untold[line] = None
        waiting = self._waiting[unit] = Waiting(-priority, order, self._count, unit, now, line)
        line.push(waiting)
        if not line.queues:
            self.stand(line, now)
            return
        line.queues[0].place.count(request.kind, request.slots)
        if line.head() is waiting:
            for queue in line.queues:
                queue.push(waiting)
        grown = line.length & (line.length - 1) == 0  # twice as long as when it was last told
        for queue in line.queues:
            if grown:
                queue.push_movable(line)
            self.mark(queue)
        if grown and line.is_coming:
            self._want(line, waiting)

    def withdraw(self, unit: str) -> None:
        """`unit` waits no longer (canceled, or failed)."""
        self._recalled.discard(unit)
        waiting = self._waiting.pop(unit, None)
        if waiting is None:
            return
        line, request = waiting.line, waiting.line.request
        was_head = line.head() is waiting
        line.shorten(self._waiting)
        if line.queues:
            line.queues[0].place.count(request.kind, -request.slots)
        head = line.head()
        if head is None:
            for queue in line.queues:
                queue.lines.pop(line, None)
            self._untold.pop(line, None)
            del self._lines[request]
            for du in request.inputs:
                self._unread(du, line)
        if was_head:
            for queue in line.queues:
                if head is not None:
                    queue.push(head)
                if queue.reserved_for is waiting:
                    self._unreserve(queue.reserved)

    def staged(self, unit: str) -> None:
        """`unit`, which is bound, has its inputs: they are on no link any more."""
        self._staging.pop(unit, None)
        self._recalled.discard(unit)
        self.transit.end(unit)

    def copied(self, du: str, site: Site, is_there: bool = True) -> None:
        """A data unit was brought ahead of units, or could not be: then units that want it bring it themselves."""
        if self.transit.end_copy(du, site) and not is_there:
            for line in list(self.readers(du)):
                if line.is_coming:
                    line.is_late, line.target = True, None
                    self._untold[line] = None

    def release(self, unit: str) -> None:
        """`unit` has ended, or was lost: give back its slots."""
        pilot = self._pilot_of.pop(unit, None)
        if pilot is not None:
            self._staging.pop(unit, None)
            self.transit.end(unit)
            pilot.slots.release(unit)
            self._changed[pilot] = None

    def leave(self, unit: str) -> None:
        """A unit is about to end: the next one may be sent after it, see :meth:`PilotSlots.leave`."""
        pilot = self._pilot_of.get(unit)
        if pilot is not None and pilot.slots.leave(unit):
            self._changed[pilot] = None

    def keep(self, unit: str, name: str) -> None:
        """`unit` was taken back, but what it started still runs: its slots stay taken, by `name` from now on."""
        pilot = self._pilot_of.pop(unit, None)
        if pilot is not None:
            self._staging.pop(unit, None)
            self.transit.end(unit)
            pilot.slots.rename(unit, name)
            self._pilot_of[name] = pilot

    def data_changed(self, du: str) -> None:
        """A data unit has a replica more or less, or another size: those that wait for it may have another home."""
        readers = self._readers.get(du)
        if readers is None:
            return
        if isinstance(readers, Line):
            self.stand(readers, None)
        elif len(readers) <= _MOST_TOLD:
            for line in readers:
                self.stand(line, None)
        else:
            self._untold.update(readers)

    def readers(self, du: str) -> Iterable[Line]:
        """The lines that read a data unit."""
        readers = self._readers.get(du, {})
        return (readers,) if isinstance(readers, Line) else readers

    def named(self, line: Line) -> list[Place]:
        """The places that a line's inputs and labels name."""
        return named(line, self.views(line.request))

    def _read(self, du: str, line: Line) -> None:
        before = self._readers.setdefault(du, line)
        if isinstance(before, dict):
            before[line] = None
        elif before is not line:
            self._readers[du] = {before: None, line: None}

    def _unread(self, du: str, line: Line) -> None:
        readers = self._readers.get(du)
        if isinstance(readers, dict):
            readers.pop(line, None)
        if readers is line or readers == {}:
            del self._readers[du]

    # -- where lines stand

    def views(self, request: Request) -> list[InputView]:
        """The inputs of a request as they are now."""
        inputs = self.inputs
        return [inputs[du] for du in request.inputs]

    def lasts_s(self, request: Request) -> float | None:
        """How long a unit runs, as far as is known; None: not known."""
        return self.runtimes.known_s(request.kind) if request.walltime_s is None else request.walltime_s

    def _version(self, line: Line) -> int:
        # None of these ever falls, so the sum tells of both.
        return line.pool.version + self.policy.links.version

    def stand(self, line: Line, now: float | None) -> None:
        """Have a line stand in the queues of its homes as they are now."""
        request, pool, head = line.request, line.pool, line.head()
        assert head is not None, "a line without units was kept"
        views = self.views(request)
        lasts_s = None if now is None else self.lasts_s(request)
        until = None if now is None or lasts_s is None else now + lasts_s
        ahead = self.ahead and line.need.slots == 1 and not line.is_late
        homes, visits = choose(line, views, self.policy, until, ahead, partial(self._is_stuck_at, views))
        home = homes[0] if homes else pool.nowhere
        may_come = ahead and home is not pool.nowhere and home.keeps
        line.is_coming = home is pool.away or (may_come and is_far(views, home.site))
        line.is_asked = False
        queues = tuple([self._queue(place, pool, line.need, line.is_coming) for place in homes or (home,)])
        line.version = self._version(line)
        before, line.queues = line.queues, queues
        if before != queues:
            if before:
                before[0].place.count(request.kind, -line.length * request.slots)
            queues[0].place.count(request.kind, line.length * request.slots)
            line.nbytes = float(sum(view.nbytes for view in views))
            for queue in before:
                queue.lines.pop(line, None)
            for queue in queues:
                if queue.is_coming:
                    queue.lines[line] = None
                if queue not in before:
                    queue.push(head)
                    queue.push_movable(line)
            for weight, place in visits:
                heapq.heappush(place.visits, (head.rank, weight, line.number, line))
            if line.is_coming:
                cost_s = 0.0 if home is pool.away else self.policy.fit_s(request, home.site, views)
                heapq.heappush(pool.late, (head.since + 2 * (cost_s + self.policy.prefer_wait_s), line.number, line))
        if line.is_coming:
            self._want(line, head)
        for queue in queues:
            self.mark(queue)

    def _is_stuck_at(self, views: Sequence[InputView], site: Site) -> bool:
        return any(self.transit.is_overdue_near(view.id, site) for view in views)

    def _want(self, line: Line, head: Waiting) -> None:
        """The data of a line has to be brought."""
        entry = head.rank, line.nbytes / line.length, line.number, line
        heapq.heappush(line.pool.wanting, entry)

    def _queue(self, place: Place, pool: Pool, need: Need, is_coming: bool) -> Queue:
        queues = place.coming if is_coming else place.queues
        queue = queues.get(need)
        if queue is None:
            self._count += 1
            queue = queues[need] = Queue(place, pool, need, self._count, is_coming)
        return queue

    # -- decisions

    def match(self, now: float) -> Matching:
        """Bind all that can be bound well now, or so much of it as one call may do.

        First every queue that something has happened to takes, in the order of the units, free slots of its home. So
        slots go to those whose data lies there. What is then left free goes to lines whose home is busy, as long as a
        unit ends earlier there than the last one of those that wait for the home would.
        """
        bindings: list[Binding] = []
        recalls = self._reconsider(now)
        if recalls:
            return Matching(bindings, 0.0, (), recalls)
        for pilot in self._changed:
            pilot.changed()
            self._mark_all(pilot)
        self._fresh.update(self._changed)
        self._changed.clear()
        if not self._serve(bindings, now):
            return Matching(bindings, 0.0)
        fresh = list(islice(self._fresh, _MOST_FRESH))
        recheck_s = self._spill.spill(fresh, bindings, now, _MOST_STEPS)
        for pilot in fresh:
            del self._fresh[pilot]
        if self._marked or self._fresh or self._untold or len(bindings) >= _MOST_STEPS:
            return Matching(bindings, 0.0)
        if not self.ahead:
            return Matching(bindings, recheck_s)
        is_idle = any(pilot.slots.idle for pilot in fresh)
        copies = self._ahead.order(now, is_idle)
        return Matching(bindings, self._recheck_s(now, recheck_s), copies)

    def _reconsider(self, now: float) -> list[str]:
        """Lines that may have other homes now: a data unit has come, or takes too long. Returns units to take back."""
        recalls: dict[str, None] = {}
        for du, site in self.transit.look(now):
            for line in islice(self.readers(du), _MOST_TOLD):
                if line.is_coming and line.queues[0].place.site == site:
                    line.target, line.is_stuck = None, True
                    self._untold[line] = None
            left_s = self.transit.left_s(du, site, now) or 0.0
            waiting = (self._staging.get(unit) for unit in self.transit.waiting_for(du, site))
            recalls.update(
                (bound.unit, None) for bound in waiting if bound and self._is_better_off(bound, site, left_s)
            )
        for pool in self.pools:
            late = pool.late
            while late and (late[0][0] <= now or not late[0][2].is_coming):
                line = heapq.heappop(late)[2]
                if line.is_coming and line.length:
                    line.is_late, line.target = True, None
                    self._untold[line] = None
        for line in list(islice(self._untold, _MOST_STEPS)):
            del self._untold[line]
            self.stand(line, now)
        self._recalled.update(recalls)
        return list(recalls)

    def _is_better_off(self, bound: Waiting, site: Site, left_s: float) -> bool:
        """Whether a unit that waits at a site for data would clearly begin sooner elsewhere."""
        line, request = bound.line, bound.line.request
        views = self.views(request)
        zones = islice(line.pool.zones.values(), _MOST_ROWS)
        return any(
            place.could(line.need)
            and not place.site.is_near(site)
            and _CLEARLY * (self.policy.fit_s(request, place.site, views) + place.tail_s(self.runtimes)) < left_s
            for place in (*named(line, views), *zones)
        )

    def _recheck_s(self, now: float, recheck_s: float | None) -> float | None:
        """When to look again, with transfers under way, and kinds of work of which nothing is known yet."""
        times = [] if recheck_s is None else [now + recheck_s]
        if (look := self.transit.next_look()) is not None:
            times.append(look)
        if self._ahead.next_at is not None:
            times.append(self._ahead.next_at)
        times += [pool.late[0][0] for pool in self.pools if pool.late]
        if (shown_s := self.runtimes.unknown_for_s(now)) is not None:
            times.append(now + max(_LEAST_LOOK_S, shown_s / 4))
        return max(0.0, min(times) - now) if times else None

    def _serve(self, bindings: list[Binding], now: float) -> bool:
        """Let queues take slots of their homes. Returns whether all was done."""
        steps = 0
        while self._marked:
            if steps >= _MOST_STEPS:
                return False
            waiting, _, queue = heapq.heappop(self._marked)
            if queue.marked is not waiting:
                continue
            queue.marked = None
            if queue.head() is not waiting:
                self.mark(queue)
                continue
            steps += 1
            line = waiting.line
            if line.version != self._version(line):
                self.stand(line, now)
                self.mark(queue)  # if the line has left, for the next one
                continue
            pilot = self.taker(queue.place, waiting, queue, now)
            if pilot is not None and self._spreads(line, queue.place, pilot):
                self._spill.wait(queue, waiting)  # till there is another replica
            elif pilot is not None:
                bindings.append(self.bind(waiting, pilot, now))
                self.mark(queue)
            elif self._outlasts(queue, line, now):
                self.stand(line, now)
                self.mark(queue)
            else:
                self._wait(queue, waiting, now)
        return True

    def _spreads(self, line: Line, place: Place, pilot: Pilot) -> bool:
        """Whether an input is on its way to so many machines of a line's home that this one should wait for theirs."""
        if place.site.machine is not None or pilot.site.machine is None or not line.request.inputs:
            return False
        transit, site = self.transit, pilot.site
        return bool(len(transit)) and any(
            site not in view.sites and transit.left_s(view.id, site, 0.0) is None and not transit.has_room(view, site)
            for view in self.views(line.request)
        )

    def taker(self, place: Place, waiting: Waiting, queue: Queue | None, now: float) -> Pilot | None:
        """The pilot of a place that should take a unit now; `queue`: the one that it stands in, if that is its home."""
        first = place.first()
        if first is None:
            return None
        request, need = waiting.line.request, waiting.line.need
        if first.slots.idle and first.reserved is None and first.ends_at is None and need.is_plain:
            return first
        expected_s = self.runtimes.expected_s(request.kind)
        lasts_s = self.lasts_s(request)
        until = None if lasts_s is None else now + lasts_s

        def able(pilot: Pilot) -> bool:
            kept = pilot.reserved
            if kept is not None and kept is not queue:
                first = kept.reserved_for
                if queue is None or (first is not None and first < waiting):
                    return False
            return pilot.lasts(until) and pilot.fits(need, expected_s)

        return place.best(able, need.slots == 1 and expected_s < self.in_flight_s)

    def _outlasts(self, queue: Queue, line: Line, now: float) -> bool:
        """Whether a line would outlast all pilots of its home by now, so that it needs another one."""
        lasts_s = self.lasts_s(line.request)
        return (
            lasts_s is not None
            and queue.place is not line.pool.nowhere
            and line.pool.ends
            and not queue.place.could_until(line.need, now + lasts_s)
        )

    def _wait(self, queue: Queue, waiting: Waiting, now: float) -> None:
        """The first of a queue has no slot at home: keep those for it that come free there, and let it be spilled.

        A stream of narrow or tiny units would starve a wide or long one else. Not while workers are missing, or paused:
        then it is not the others that it waits for.
        """
        if queue.reserved is not None and queue.reserved_for is not waiting:
            self._unreserve(queue.reserved)
        if queue.reserved is None:
            need = queue.need
            fitting = [
                pilot
                for pilot in queue.place.open_pilots()
                if pilot.reserved is None and pilot.could(need) and pilot.slots.would_fit(*need[:3])
            ]
            if fitting:
                pilot = min(fitting, key=lambda pilot: (pilot.load, pilot.name))
                pilot.reserved, queue.reserved, queue.reserved_for = queue, pilot, waiting
        if queue.place.parent is not None:
            self._spill.wait(queue, waiting)

    def bind(self, waiting: Waiting, pilot: Pilot, now: float) -> Binding:
        """Give a unit slots of a pilot that has them."""
        line, request, unit = waiting.line, waiting.line.request, waiting.unit
        views = tuple(self.views(request))
        told = partial(self._told, request, pilot.name, self._seen(line, pilot, now), views, line.pool.members)
        expected_s = self.runtimes.expected_s(request.kind)
        reservation = pilot.slots.acquire(unit, request.slots, expected_s, request.memory_nbytes, request.gpus)
        assert reservation is not None, f"{pilot.name} had room for {unit} and has none"
        pilot.changed()
        for place in pilot.places:
            place.last_bound = now
        self.withdraw(unit)
        self._pilot_of[unit] = pilot
        if views:
            self.transit.begin(unit, views, pilot.site, now)
        if not views or not self.transit.needs(unit):
            self.runtimes.begin(request.kind, now)
        else:
            self._staging[unit] = waiting
        return Binding(unit, pilot.name, reservation.worker, Decision(unit, pilot.name, work_out=told))

    # -- explanations

    def _seen(self, line: Line, chosen: Pilot, now: float) -> list[PilotView]:
        """The pilots that a decision was about, as they are now: all of a few, or some of many."""
        if len(self._pilots) <= _MOST_ROWS:
            return [pilot.view(now) for pilot in self._pilots.values()]
        home = line.queues[0].place.pilots
        views = [pilot.view(now) for pilot in islice(home.values(), _MOST_ROWS - 1) if pilot is not chosen]
        views.append(chosen.view(now))
        return views

    def _told(
        self,
        request: Request,
        chosen: str,
        pilots: list[PilotView],
        views: Sequence[InputView],
        members: frozenset[str] | None,
    ) -> tuple[str, tuple[Row, ...]]:
        # A slot that is free for a unit may be one in a worker's queue.
        pilots = [p._replace(free=max(p.free, request.slots)) if p.id == chosen else p for p in pilots]
        rows = self.policy.rank(request, pilots, {view.id: view for view in views}, members)
        return told(chosen, rows)

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
