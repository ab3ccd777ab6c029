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
- No call does more than so much: what is left over is asked for again at once, by a recheck in 0 seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from dpilot.placement.ahead import Ahead, Copying
from dpilot.placement.bindings import Binding, Bindings
from dpilot.placement.followers import Followers
from dpilot.placement.homes import could_in_time, named
from dpilot.placement.lines import Line, Queue, Waiting
from dpilot.placement.places import Pilot, Place
from dpilot.placement.policy import Policy
from dpilot.placement.spill import Spill
from dpilot.placement.topology import Site
from dpilot.placement.views import InputView

__all__ = ["Binding", "Matcher", "Matching"]

#: How many units are bound, or given another home, by one call.
_MOST_STEPS = 128
#: How many pilots with room that nobody takes at home are offered to others by one call.
_MOST_FRESH = 16
#: How many lines are told at once of a replica.
_MOST_TOLD = 64
#: How soon it is looked again how long the first unit of a kind has run by now.
_LEAST_LOOK_S = 0.02
#: How long more is waited at the least for what is on its way, before it is seen whether it still is.
_PATIENCE_S = 1.0
#: How many times as long as usual a line waits for its turn while what is brought for others comes.
_MOST_PATIENCE = 10
#: How many times sooner a unit has to begin elsewhere to be taken back.
_CLEARLY = 2.0
#: How many datacenters are looked at for a unit that may be taken back.
_MOST_ZONES = 8


class Matching(NamedTuple):
    """What :meth:`Matcher.match` decided.

    ``recheck_s`` is the time after which it should be asked again even if nothing happens (a unit that waits for its
    best pilot may then go to another one; or not all that can be bound was bound, and it is 0), or None. ``copies`` are
    to be brought ahead of units; of each :meth:`Matcher.copied` is to be told when it has ended. ``recalls`` are units
    that wait at their pilots for data that takes much too long, and would have it much sooner elsewhere: they are to be
    taken back, if they do not run yet, and submitted again. ``returns`` are units that wait at their workers behind
    others that do not end: their workers are to give them back, if they have not begun by then.
    """

    bindings: list[Binding]
    recheck_s: float | None
    copies: Sequence[Copying] = ()
    recalls: Sequence[str] = ()
    returns: Sequence[str] = ()


class Matcher(Bindings):
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
        super().__init__(policy, in_flight_s, unknown_runtime_s, inputs, ahead)
        self._spill = Spill(self)
        self._ahead = Ahead(self)
        self._followers = Followers(self)
        self._awaiting: dict[Queue, None] = {}  # their first unit waits for the way of an input, or for a replica
        self._freed = 0, 0  # how often ways had got room when these were looked at last
        self._made: list[Binding] = []  # and not told yet
        self._returned: list[str] = []  # likewise

    def match(self, now: float) -> Matching:
        """Bind all that can be bound well now, or so much of it as one call may do.

        First every queue that something has happened to takes, in the order of the units, free slots of its home. So
        slots go to those whose data lies there. What is then left free goes to lines whose home is busy, as long as a
        unit ends earlier there than the last one of those that wait for the home would.

        Should it raise, which were a mistake of ours, then what it has bound is told by the next call.
        """
        matching = self._match(self._made, now)
        returned = [unit for unit in self._returned if unit not in matching.recalls]
        self._made, self._returned = [], []
        return matching._replace(returns=returned)

    def _match(self, bindings: list[Binding], now: float) -> Matching:
        self.runtimes.now = self.policy.links.now = now
        self.transit.begin_turn(now)
        self._returned += self._followers.take_back(now)
        self._followers.send(now)
        recalls = self._reconsider(now)
        if recalls:
            return Matching(bindings, 0.0, (), recalls)
        for pilot in self._changed:
            pilot.changed()
            self._mark_all(pilot)
        self._fresh.update(self._changed)
        self._changed.clear()
        if self._freed != (freed := (self.transit.freed, self.transit.stalled)):
            self._freed = freed
            for queue in self._awaiting:
                self.mark(queue)
            self._awaiting.clear()
        if not self._serve(bindings, now):
            return Matching(bindings, 0.0)
        fresh = list(islice(self._fresh, _MOST_FRESH))
        recheck_s = self._spill.spill(fresh, bindings, now, _MOST_STEPS)
        for pilot in fresh:
            del self._fresh[pilot]
        if self._marked or self._fresh or self._untold or len(bindings) >= _MOST_STEPS:
            return Matching(bindings, 0.0)
        self._followers.look(now)
        copies: Sequence[Copying] = ()
        if self.ahead:
            copies = self._ahead.order(now, any(pilot.slots.idle for pilot in fresh))
            if self._marked:  # who needs nothing brought where it was given a place
                return Matching(bindings, 0.0, copies)
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
                (bound.unit, None) for bound in waiting if bound and self._is_better_off(bound, site, left_s, now)
            )
        steps = 0
        for pool in self.pools:
            late = pool.late
            while late and (late[0][0] <= now or not late[0][2].is_coming) and steps < _MOST_STEPS:
                steps += 1
                line = heapq.heappop(late)[2]
                if not line.is_coming or not line.length:
                    continue
                if (until := self._patience(line, now)) > now:
                    late.push((until, line.number, line))
                else:
                    line.is_late, line.target = True, None
                    self._untold[line] = None
        if self._untold:
            for line in list(islice(self._untold, _MOST_STEPS)):
                del self._untold[line]
                self.stand(line, now)
        self._recalled.update(recalls)
        return list(recalls)

    def _patience(self, line: Line, now: float) -> float:
        """Until when it is to be waited for the data of a line: it may be on its way, or its ways be slow."""
        transit, request, head = self.transit, line.request, line.head()
        if line.target is not None:
            site = line.target.site
            left_s = [transit.left_s(du, site, now) for du in request.inputs if not transit.is_overdue(du, site)]
            if coming_s := [seconds for seconds in left_s if seconds is not None]:
                return now + max(_PATIENCE_S, *coming_s)
        views, sites = self.views(request), [zone.site for zone in islice(line.pool.zones.values(), _MOST_ZONES)]
        reached = (site for site in sites if not self._ahead.is_stalled(views, site))
        cost_s = min((self.policy.fit_s(request, site, views, alone=True) for site in reached), default=0.0)
        assert head is not None, "a line without units was kept"
        patience_s = 2 * (cost_s + self.policy.prefer_wait_s)
        next_s = transit.next_copy_s(now)
        if next_s is not None and now < head.since + _MOST_PATIENCE * patience_s:  # its turn is yet to come
            return max(head.since + patience_s, now + max(_PATIENCE_S, next_s))
        return head.since + patience_s

    def _is_better_off(self, bound: Waiting, site: Site, left_s: float, now: float) -> bool:
        """Whether a unit that waits at a site for data would clearly begin sooner elsewhere.

        Even more clearly, if units like it were taken back before: it may be just as slow wherever it goes.
        """
        line, views = bound.line, self.views(bound.line.request)
        clearly = _CLEARLY**2 if line.is_stuck else _CLEARLY
        return any(
            place.could(line.need)
            and not place.site.is_near(site)
            and clearly * (self._spill.cost_s(bound, views, place.site, now) + place.tail_s(self.runtimes)) < left_s
            for place in (*named(line, views, self.policy), *islice(line.pool.zones.values(), _MOST_ZONES))
        )

    @property
    def is_expecting(self) -> bool:
        """Whether there is something to be done at some time even if no unit waits and nothing happens."""
        return bool(self.begun or self.left or len(self.transit)) or self._followers.next_look() is not None

    def _recheck_s(self, now: float, recheck_s: float | None) -> float | None:
        """When to look again, with transfers under way, and kinds of work of which nothing is known yet."""
        times = [] if recheck_s is None else [now + recheck_s]
        if (look := self._followers.next_look()) is not None:
            times.append(look)
        if self.transit.room_at is not None:
            times.append(self.transit.room_at)
        if not self.ahead:
            return max(0.0, min(times) - now) if times else None
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
            if pilot is not None and self._awaits(line, queue.place, pilot):
                self._spill.wait(queue, waiting)
                self._awaiting[queue] = None
            elif pilot is not None:
                bindings.append(self.bind(waiting, pilot, now))
                self.keep_together(line, waiting)
                self.mark(queue)
            elif self._outlasts(queue, line, now):
                self.stand(line, now)
                self.mark(queue)
            else:
                self._wait(queue, waiting, now)
        return True

    def _awaits(self, line: Line, place: Place, pilot: Pilot) -> bool:
        """Whether an input is on its way to so many machines of a line's home that this one should wait for theirs.

        Or over a link that is tried for the first time.
        """
        if place.site.machine is not None or pilot.site.machine is None or not line.request.inputs:
            return False
        transit, site = self.transit, pilot.site
        return bool(len(transit)) and any(
            site not in view.sites and transit.left_s(view.id, site, 0.0) is None and not transit.spreads(view, site)
            for view in self.views(line.request)
        )

    def _outlasts(self, queue: Queue, line: Line, now: float) -> bool:
        """Whether a line would outlast all pilots of its home by now, so that it needs another one."""
        until = self.until(line.request, now) if line.pool.ends else None
        if until is None or queue.place is line.pool.nowhere:
            return False
        return not could_in_time(line, queue.place, self.policy, until)

    def _wait(self, queue: Queue, waiting: Waiting, now: float) -> None:
        """The first of a queue has no slot at home: keep those for it that come free there, and let it be spilled.

        A stream of narrow or tiny units would starve a wide or long one else. Not while workers are missing, or paused:
        then it is not the others that it waits for.
        """
        if queue.reserved is not None and queue.reserved_for is not waiting:
            self._unreserve(queue.reserved)
        if queue.reserved is None:
            need, until = queue.need, self.until(waiting.line.request, now)
            fitting = [
                pilot
                for pilot in queue.place.open_pilots()
                if pilot.reserved is None
                and pilot.could(need)
                and pilot.lasts(until, self.outputs.cost_s(waiting.line.request, pilot.site))
                and pilot.slots.would_fit(*need[:3])
            ]
            if fitting:
                pilot = min(fitting, key=lambda pilot: (pilot.load, pilot.name))
                pilot.reserved, queue.reserved, queue.reserved_for = queue, pilot, waiting
        if queue.place.parent is not None:
            self._spill.wait(queue, waiting)
