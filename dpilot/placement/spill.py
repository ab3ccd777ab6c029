"""What happens to slots that nobody takes at home, and to lines whose home has none: some go to others.

A queue that its home cannot serve gives a unit away where that unit would end earlier than the last one of the queue
could begin at home. Of its lines the one with the least to move goes. Apart from that a home is given up when it has
bound nothing for longer than the other place costs and a wish is worth: estimates can be wrong, and pilots may never
start. Then the first of the queue goes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import islice

from dpilot.placement.bindings import Binding, Bindings
from dpilot.placement.homes import is_far, named
from dpilot.placement.lines import Line, Queue, Waiting
from dpilot.placement.places import Pilot, Pool
from dpilot.placement.topology import Site
from dpilot.placement.views import InputView

__all__ = ["Spill"]

#: How many of the longest queues are looked at, and of how many it is worked out what moving would bring.
_MOST_SEEN, _MOST_TRIED = 16, 2
#: How many lines a pilot with a free slot looks at of those that have some of their inputs where it is.
_MOST_VISITS = 2
#: In a pool of no more datacenters each of them is looked at to take a unit; else so many pilots.
_MOST_ZONES, _MOST_CHOICES = 8, 4
#: How soon it is tried again to give something away for which there was no pilot, at the soonest; what changes less
#: changes nothing.
_LEAST_AGAIN_S = 0.1
#: By what part a queue must have grown before it is worked out anew whether moving pays.
_NOTABLE = 1.02


class Spill:
    """Gives units of busy homes to free slots elsewhere.

    Parameters
    ----------
    matcher : Bindings
        Whose units and slots they are.
    """

    def __init__(self, matcher: Bindings) -> None:
        self._matcher = matcher

    def wait(self, queue: Queue, head: Waiting) -> None:
        """A queue cannot be served by its home."""
        pool = queue.pool
        tail_s = queue.place.tail_s(self._matcher.runtimes)
        if queue.key_s is None or tail_s > queue.key_s * _NOTABLE:
            queue.key_s = tail_s
            heapq.heappush(pool.busy, (-tail_s, queue.number, queue))
            pool.settled = None
        if queue.due is None:
            self._set_due(queue, self._still(queue, head)[1])

    def _still(self, queue: Queue, head: Waiting) -> tuple[float, float]:
        """Since when nothing has moved at a home, and until when that is waited for, beside what another place costs.

        Not at all where no worker is here yet that could run what waits: nobody knows when one will be. That others are
        bound there is no move, then.
        """
        if not any(pilot.is_here_for(queue.need) for pilot in queue.place.pilots.values()):
            return head.since, head.since
        since = max(head.since, queue.place.last_bound)
        return since, since + self._matcher.policy.prefer_wait_s

    @staticmethod
    def _set_due(queue: Queue, due: float) -> None:
        queue.due = due
        queue.pool.due.push((due, queue.number, queue))

    def spill(self, changed: Sequence[Pilot], bindings: list[Binding], now: float, most: int) -> float | None:
        """Give away what should be, until there are `most` bindings. Returns in how many seconds to look again."""
        fresh = [pilot for pilot in changed if pilot.slots.has_room(0.0)]
        for pilot in fresh:
            self._welcome(pilot, bindings, now, most)
        rechecks = []
        for pool in self._matcher.pools:
            if pool.due and pool.root.has_room():
                self._relieve(pool, fresh, bindings, now, most)
                self._give_up(pool, bindings, now, most)
                if pool.due and pool.root.has_room():
                    rechecks.append(max(0.0, pool.due[0][0] - now))
        return min(rechecks, default=None)

    # -- lines that have some of their inputs where a slot is free

    def _welcome(self, pilot: Pilot, bindings: list[Binding], now: float, most: int) -> None:
        for place in pilot.places:
            visits = place.visits
            aside: list[tuple[float, float, int, Line]] = []
            while len(aside) < _MOST_VISITS and len(bindings) < most and (visit := visits.first()) is not None:
                line = visit[3]
                head = line.head()
                if head is None or not pilot.slots.has_room(0.0):
                    break
                if self._is_worth(head, line.queues[0], pilot, now):
                    bindings.append(self._matcher.bind(head, pilot, now))
                else:
                    aside.append(heapq.heappop(visits))
            for visit in aside:
                heapq.heappush(visits, visit)

    @staticmethod
    def _follow(line: Line, pilot: Pilot) -> None:
        """What one unit of a line has brought to a pilot, the others need not bring again: they visit it."""
        head = line.head()
        if head is not None and line.nbytes:
            pilot.places[-1].visits.push((head.rank, 0.0, line.number, line))

    def _is_worth(self, head: Waiting, queue: Queue, pilot: Pilot, now: float) -> bool:
        matcher, line = self._matcher, head.line
        if queue.place.parent is None or not self._may_take(pilot, head, now):
            return False
        views = matcher.views(line.request)
        if self._must_wait(head, views, pilot.site):
            return False
        cost_s = self.cost_s(head, views, pilot.site, now)
        return not cost_s or cost_s < self._worth_s(head, views, queue, now)

    def _must_wait(self, head: Waiting, views: Sequence[InputView], site: Site) -> bool:
        """Whether the data of a unit has to be at a site before it is, or its ways to there are full."""
        matcher, transit = self._matcher, self._matcher.transit
        far = is_far(views, site)
        if far and matcher.ahead and site.machine is not None and not head.line.is_late and head.line.need.slots == 1:
            return True
        return not all(transit.left_s(view.id, site, 0.0) is not None or transit.has_room(view, site) for view in views)

    def _may_take(self, pilot: Pilot, head: Waiting, now: float) -> bool:
        matcher, request = self._matcher, head.line.request
        output_s = matcher.outputs.cost_s(request, pilot.site)
        return (
            pilot.reserved is None
            and pilot.name in head.line.pool.root.pilots
            and pilot.lasts(matcher.until(request, now), output_s)
            and pilot.fits(head.line.need, matcher.runtimes.expected_s(request.kind) + output_s)
        )

    # -- the longest queues

    def _relieve(self, pool: Pool, fresh: Sequence[Pilot], bindings: list[Binding], now: float, most: int) -> None:
        matcher, busy = self._matcher, pool.busy
        aside: list[tuple[float, int, Queue]] = []
        moment = matcher.policy.links.version, matcher.transit.freed, matcher.runtimes.n_known
        if pool.settled == moment and not fresh:
            return
        tried = 0
        while busy and len(aside) < _MOST_SEEN and tried < _MOST_TRIED and len(bindings) < most:
            entry = busy[0]
            queue = entry[2]
            if queue.key_s != -entry[0]:
                heapq.heappop(busy)
                continue
            head = queue.lightest()
            if head is None:
                heapq.heappop(busy)
                queue.key_s = None
                continue
            tail_s = queue.place.tail_s(matcher.runtimes)
            if tail_s * _NOTABLE < queue.key_s:
                queue.key_s = tail_s
                heapq.heapreplace(busy, (-tail_s, queue.number, queue))
                continue
            known = queue.refused is not None and queue.refused[0] == moment and tail_s <= queue.refused[1] * _NOTABLE
            if known and not fresh:
                aside.append(heapq.heappop(busy))
                continue
            tried += 1
            views = matcher.views(head.line.request)
            worth_s = self._worth_s(head, views, queue, now)
            # What has room since just now comes first: where it was not worth the way a moment ago, it hardly is now.
            cost_s, pilot = self._elsewhere(head, views, queue, now, fresh[:_MOST_CHOICES]) if fresh else (0.0, None)
            if not known and (pilot is None or cost_s >= worth_s):
                cost_s, pilot = self._elsewhere(head, views, queue, now)
            if pilot is not None and cost_s < worth_s and not self._must_wait(head, views, pilot.site):
                bindings.append(matcher.bind(head, pilot, now))
                self._follow(head.line, pilot)
                tried = 0
                if not pool.root.has_room():
                    break
                continue
            queue.refused = moment, tail_s
            if pilot is not None and (first := queue.head()) is not None:
                due = self._still(queue, first)[1] + cost_s
                if queue.due is None or abs(due - queue.due) > _LEAST_AGAIN_S:
                    self._set_due(queue, due)
            aside.append(heapq.heappop(busy))
        pool.settled = moment if len(bindings) < most else None
        for entry in aside:
            heapq.heappush(busy, entry)

    # -- homes at which nothing moves

    def _give_up(self, pool: Pool, bindings: list[Binding], now: float, most: int) -> None:
        matcher, due = self._matcher, pool.due
        tried = 0
        while due and tried < _MOST_SEEN and len(bindings) < most and pool.root.has_room():
            at, _, queue = due[0]
            head = queue.head() if queue.due == at else None
            if head is None:
                heapq.heappop(due)
                if queue.due == at:
                    queue.due = None
                continue
            if at > now:
                return
            heapq.heappop(due)
            tried += 1
            since, patience = self._still(queue, head)
            if patience <= now:
                cost_s, pilot = self._elsewhere(head, matcher.views(head.line.request), queue, now)
                again_s = min(max(_LEAST_AGAIN_S, (now - since) / 2), max(matcher.policy.prefer_wait_s, 1.0))
                patience = now + again_s if pilot is None else patience + cost_s
                if pilot is not None and patience <= now:
                    bindings.append(matcher.bind(head, pilot, now))
                    tried = 0
            self._set_due(queue, patience)

    # -- what it costs and brings

    def cost_s(self, head: Waiting, views: Sequence[InputView], site: Site, now: float) -> float:
        """What a unit costs at a site, with what is on its way to there and on the links."""
        matcher, request = self._matcher, head.line.request
        seconds = matcher.policy.site_s(request, site, matcher.runtimes.expected_s(request.kind))
        for view in views:
            links = matcher.policy.links
            source = view.source(site, links)
            stage_s = view.stage_s(site, links) * (1.0 if source is None else links.doubt(source, site, view.nbytes))
            left_s = matcher.transit.left_s(view.id, site, now)
            seconds += stage_s if left_s is None else min(left_s, stage_s)
        return seconds

    def _worth_s(self, head: Waiting, views: Sequence[InputView], queue: Queue, now: float) -> float:
        """What a unit may cost elsewhere: so that it ends before the last one of its queue would begin at home.

        Where nothing moves at home, it is likely to take as long again as it has taken by now.
        """
        matcher, request, place = self._matcher, head.line.request, queue.place
        runtimes = matcher.runtimes
        run_s = runtimes.expected_s(request.kind)
        home_s = matcher.policy.fit_s(request, place.site, views, alone=True, run_s=run_s)
        worth_s = home_s + place.shown_tail_s(runtimes, request.kind, now) - runtimes.shown_s(request.kind, now)
        return max(worth_s, now - self._still(queue, head)[1])

    def _elsewhere(
        self,
        head: Waiting,
        views: Sequence[InputView],
        queue: Queue,
        now: float,
        among: Sequence[Pilot] | None = None,
    ) -> tuple[float, Pilot | None]:
        """The pilot with room where a unit costs least (`among`: of these), and what it costs there."""
        if among is None:
            pilots = self._choices(head, views, queue, now)
        else:
            pilots = [pilot for pilot in among if self._may_take(pilot, head, now)]
        costs = [
            (self.cost_s(head, views, pilot.site, now), pilot.load, pilot.name, pilot)
            for pilot in dict.fromkeys(pilots)
        ]
        cost_s, _, _, pilot = min(costs, default=(0.0, 0.0, "", None))
        return cost_s, pilot

    def _choices(self, head: Waiting, views: Sequence[InputView], queue: Queue, now: float) -> list[Pilot]:
        """Pilots with room that a unit may be taken to: one of each place that may be the cheapest."""
        matcher, pool, home = self._matcher, queue.pool, queue.place
        places = dict.fromkeys(named(head.line, views, matcher.policy))
        if home.parent is not None and home.parent is not pool.root:
            places[home.parent] = None
        if len(pool.zones) <= _MOST_ZONES:
            places.update(dict.fromkeys(pool.zones.values()))
        pilots = [
            taker
            for place in places
            if place.has_room() and (taker := matcher.taker(place, head, None, now)) is not None
        ]
        if len(pool.zones) > _MOST_ZONES:
            some = islice(pool.root.open_pilots(), _MOST_CHOICES)
            pilots += [pilot for pilot in some if self._may_take(pilot, head, now)]
        if not pilots and (any_one := matcher.taker(pool.root, head, None, now)) is not None:
            pilots = [any_one]
        return pilots
