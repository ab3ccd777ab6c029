"""Data that is brought to where units will run, ahead of them: a slot is for running, not for waiting.

Two kinds of lines have their data brought. Those that have some of it nowhere near a home *want* it. Those of a home
that is swamped are *sent* to another place, where they would end before the last one at home would: the lines with the
fewest bytes for each unit go first. A data unit goes to a machine once, and what is on its way counts as there.

Few transfers at a time share a way: as many as fill it, so that the first ones come soon, and where to send the next
ones is decided late, with what was learned by then.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil, inf
from typing import NamedTuple

from dpilot.placement.demand import Demand
from dpilot.placement.homes import is_far
from dpilot.placement.lines import Line, Queue
from dpilot.placement.places import Pilot, Place, Pool
from dpilot.placement.topology import Site
from dpilot.placement.views import InputView

__all__ = ["Ahead", "Copying"]

#: How many lines are compared before the data of one is brought, while few wait and while many do.
_MOST_COMPARED, _LEAST_COMPARED = 32, 2
#: While no more units wait, it is looked at every time whether data should be brought.
_FEW_WAITING = 1000
#: How many of the readers of a data unit, of the datacenters, and of the pilots in one, are looked at.
_MOST_READERS, _MOST_ZONES, _MOST_PILOTS = 32, 8, 4
#: How many of the longest queues are looked at.
_MOST_QUEUES = 4


class Copying(NamedTuple):
    """A data unit is to be brought to the machine of a pilot, whether a unit there asks for it yet or not."""

    du: str
    pilot: str
    site: Site


class _Option(NamedTuple):
    """Where a line may run, and what has to be brought there."""

    score: float
    place: Place
    missing: list[InputView]
    stage_s: float


class Ahead:
    """Says which data is to be brought to where.

    Parameters
    ----------
    matcher : Demand
        Whose lines and places they are.
    """

    def __init__(self, matcher: Demand) -> None:
        self._matcher = matcher
        self._seen: tuple[object, ...] = ()
        self.next_at: float | None = None  # when more could be brought, though nothing has happened

    def order(self, now: float, is_idle: bool) -> list[Copying]:
        """What is to be brought from now on; `is_idle`: a slot is free that nobody takes."""
        matcher = self._matcher
        if len(matcher) > _FEW_WAITING and not is_idle:
            seen = (matcher.transit.ended, matcher.policy.links.version, len(matcher).bit_length())
            if seen == self._seen:
                return []
            self._seen = seen
        copies: list[Copying] = []
        self.next_at = None
        for pool in matcher.pools:
            if len(pool.zones) > 1 or pool.wanting:
                self._bring_wanted(pool, copies, now)
                self._send(pool, copies, now)
        return copies

    # -- lines that lack some of their data

    def _bring_wanted(self, pool: Pool, copies: list[Copying], now: float) -> None:
        wanting = pool.wanting
        most = _MOST_COMPARED if len(wanting) <= _FEW_WAITING else _LEAST_COMPARED
        while wanting:
            aside: list[tuple[float, float, int, Line]] = []
            best: tuple[float, float, int, Line, _Option] | None = None
            while wanting and len(aside) < most:
                entry = heapq.heappop(wanting)
                line = entry[3]
                if not line.length or not line.is_coming or line.is_asked:
                    continue
                option = self._option(line, now)
                if option is None:
                    aside.append(entry)
                elif not option.missing:
                    line.is_asked = True  # it is on its way
                    if line.target is None:
                        self._settle(line, option.place, now)
                else:
                    aside.append(entry)
                    if best is None or (entry[0], option.score) < best[:2]:
                        best = entry[0], option.score, entry[2], line, option
            for entry in aside:
                if best is None or entry[3] is not best[3]:
                    heapq.heappush(wanting, entry)
            if best is None:
                return
            self._bring(best[3], best[4], copies, now)
            best[3].is_asked = True

    def _option(self, line: Line, now: float) -> _Option | None:
        """The best place for a line that lacks data, if what is missing there can be brought there now."""
        matcher = self._matcher
        views = matcher.views(line.request)
        best: _Option | None = None
        for place in self._places(line):
            missing = self._missing(views, place.site)
            if missing is None:
                continue
            stage_s = self._stage_s(missing, place.site)
            served = self._served(line, missing, place)
            score = stage_s / max(1, served) + self._tail_s(place, line, now)
            if best is None or score < best.score:
                best = _Option(score, place, missing, stage_s)
        if best is not None and not self._has_room(best.missing, best.place.site, now):
            return None
        return best

    def _places(self, line: Line) -> Iterator[Place]:
        """Machines to which the data of a line may be brought."""
        home = line.queues[0].place
        if home is not line.pool.away:
            homes = {home: None}
            homes.update(
                dict.fromkeys(place for place in self._matcher.named(line) if place.could(line.need) and place.keeps)
            )
        else:
            homes = dict.fromkeys(islice(line.pool.zones.values(), _MOST_ZONES))
        found: dict[Place, None] = {}
        for place in homes:
            machine = self._machine(place, line)
            if machine is not None:
                found[machine] = None
        yield from found

    def _machine(self, place: Place, line: Line) -> Place | None:
        """The least busy machine of a place that could run a line and has workers."""
        if place.site.machine is not None:
            return place if place.could(line.need) and _carrier(place) is not None else None
        pilots = [place.first(), *islice(place.pilots.values(), _MOST_PILOTS)]
        machines = [
            pilot.places[-1]
            for pilot in pilots
            if pilot is not None and pilot.site.machine is not None and pilot.slots.open and pilot.could(line.need)
        ]
        runtimes = self._matcher.runtimes
        return min(machines, key=lambda machine: machine.tail_s(runtimes), default=None)

    def _missing(self, views: Sequence[InputView], site: Site) -> list[InputView] | None:
        """Inputs that are not near a site, nor on their way there; None if one has been for too long."""
        transit, missing = self._matcher.transit, []
        for view in views:
            if is_far((view,), site):
                if transit.is_overdue(view.id, site):
                    return None
                if transit.left_s(view.id, site, 0.0) is None:
                    missing.append(view)
        return missing

    def _has_room(self, missing: Sequence[InputView], site: Site, now: float) -> bool:
        """Whether the ways of some data units to a site have room for them now; if only it is too soon, till when."""
        links = self._matcher.policy.links
        sources = [source for view in missing if (source := view.source(site, links)) is not None]
        if not all(links.has_room(source, site) for source in sources):
            return False
        next_at = max((links.next_at(source, site) for source in sources), default=0.0)
        if next_at > now and (self.next_at is None or next_at < self.next_at):
            self.next_at = next_at
        return next_at <= now

    def _stage_s(self, views: Sequence[InputView], site: Site) -> float:
        """How long it may take to bring some data units to a site."""
        links, seconds = self._matcher.policy.links, 0.0
        for view in views:
            source = view.source(site, links)
            if source is not None:
                seconds += view.stage_s(site, links) * links.doubt(source, site)
        return seconds

    def _served(self, line: Line, missing: Sequence[InputView], place: Place) -> int:
        """How many waiting units would have all of their data at a place if it was given what is missing there."""
        if len(missing) != 1 or len(line.request.inputs) == 1:
            return line.length
        matcher, served = self._matcher, 0
        for reader in islice(matcher.readers(missing[0].id), _MOST_READERS):
            # What others that wait for data will get by copies that are on their way is served already.
            if reader is not line and (reader.pool is not line.pool or not reader.is_coming or reader.is_asked):
                continue
            rest = [view for view in matcher.views(reader.request) if view.id != missing[0].id]
            if not self._missing(rest, place.site):
                served += reader.length
        return served

    def _tail_s(self, place: Place, line: Line, now: float) -> float:
        """When a place will have done what it has, as far as run times were seen; half of what runs there has run."""
        runtimes, kind = self._matcher.runtimes, line.request.kind
        tail_s, run_s = place.tail_s(runtimes), runtimes.expected_s(kind)
        if tail_s == inf:
            return inf
        if len(place.pilots) <= _MOST_PILOTS:  # those that have yet to come may never do
            here = sum(pilot.slots.open for pilot in place.pilots.values())
            tail_s *= place.slots / here if here else 1.0
        if runtimes.known_s(kind) is None and run_s:
            tail_s *= runtimes.shown_s(kind, now) / run_s
            run_s = runtimes.shown_s(kind, now)
        return max(0.0, tail_s - run_s / 2) if place.backlog_s else tail_s

    # -- lines whose home is swamped

    def _send(self, pool: Pool, copies: list[Copying], now: float) -> None:
        busy, aside = pool.busy, list[tuple[float, int, Queue]]()
        while busy and len(aside) < _MOST_QUEUES:
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
            tail_s = queue.place.tail_s(self._matcher.runtimes)
            if tail_s < -entry[0]:
                queue.key_s = tail_s
                heapq.heapreplace(busy, (-tail_s, queue.number, queue))
                if busy[0][2] is not queue:
                    continue
            if not self._send_one(head.line, queue, copies, now):
                aside.append(heapq.heappop(busy))
        for entry in aside:
            heapq.heappush(busy, entry)

    def _send_one(self, line: Line, queue: Queue, copies: list[Copying], now: float) -> bool:
        """Send a line to where it would end before the last one of its queue does at home. Returns whether it was."""
        matcher, home = self._matcher, queue.place
        if line.is_late or not line.request.inputs or line.need.slots != 1:
            return False
        views = matcher.views(line.request)
        run_s = matcher.runtimes.shown_s(line.request.kind, now)
        home_s = matcher.policy.label_s(line.request, home.site)
        tail_s = self._tail_s(home, line, now) + home_s
        best: _Option | None = None
        for zone in islice(line.pool.zones.values(), _MOST_ZONES):
            place = self._machine(zone, line)
            if place is None or place is home or not is_far(views, place.site):
                continue
            missing = self._missing(views, place.site)
            if not missing or not self._has_room(missing, place.site, now):
                continue
            stage_s = self._stage_s(missing, place.site) + matcher.policy.label_s(line.request, place.site)
            begins_s = max(stage_s, self._tail_s(place, line, now))
            if best is None or begins_s < best.score:
                best = _Option(begins_s, place, missing, stage_s)
        if best is None:
            return False
        least_s = max(run_s, best.stage_s) / 2  # what it has to bring, for it is a guess
        if best.score + run_s + least_s >= tail_s:
            return False
        is_all = best.score + ceil(line.length / best.place.slots) * run_s + least_s < tail_s
        self._bring(line, best, copies, now, goes=is_all)
        return True

    # -- both

    def _bring(self, line: Line, option: _Option, copies: list[Copying], now: float, goes: bool = True) -> None:
        carrier = _carrier(option.place)
        assert carrier is not None, f"{option.place.site} was chosen and has no workers"
        links = self._matcher.policy.links
        for view in option.missing:
            source = view.source(option.place.site, links)
            assert source is not None, f"{view.id} was to be brought and is nowhere"
            links.space(source, option.place.site, now, view.stage_s(option.place.site, links))
            self._matcher.transit.begin_copy(view, option.place.site, now)
            copies.append(Copying(view.id, carrier.name, option.place.site))
        if goes and line.queues[0].place is not option.place:
            self._settle(line, option.place, now)

    def _settle(self, line: Line, place: Place, now: float) -> None:
        """A place is the home of a line from now on."""
        line.target = place
        self._matcher.stand(line, now)
        line.is_asked = True


def _carrier(place: Place) -> Pilot | None:
    """A pilot of a machine whose workers can bring something there."""
    return next((pilot for pilot in place.pilots.values() if pilot.slots.open), None)
