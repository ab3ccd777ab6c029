"""Data that is brought to where units will run, ahead of them: a slot is for running, not for waiting.

Two kinds of lines have their data brought. Those that have some of it nowhere near a home *want* it. Those of a home
that is swamped are *sent* to another place, where they would end before the last one at home would: the lines with the
fewest bytes for each unit go first. A data unit goes to a machine once, and what is on its way counts as there.

One transfer follows the other on a way, so that the first ones come soon, and where to send the next ones is decided
late, with what was learned by then.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from functools import partial
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
#: What a second of the ways, for each unit that it serves, counts beside one of waiting at a place: all that is to be
#: moved yet waits for the ways.
_WEIGHT_OF_WAYS = 4.0
#: Among the lines for so many combinations of ways it is worked out how most of them are served at once.
_MOST_WEIGHED = 12
#: A way counts as free when so little of the time that it takes is missing.
_SOON = 0.1
#: How many of the longest queues, and how many lines of each, are looked at.
_MOST_QUEUES, _MOST_MOVABLE = 4, 4


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


class _Choice(NamedTuple):
    """A line that may be served now."""

    rank: float
    option: _Option
    line: Line


#: What may be brought at once, by the ways that it takes.
_ByWays = list[tuple[frozenset[tuple[str, str | None]], _Choice]]


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
            seen = (matcher.transit.freed, matcher.policy.links.version, len(matcher).bit_length())
            if seen == self._seen and (self.next_at is None or now < self.next_at):
                return []
            self._seen = seen
        copies: list[Copying] = []
        self.next_at = None
        for pool in matcher.pools:
            if (len(pool.zones) > 1 or pool.wanting) and self._has_way(pool, now):
                self._see_to(pool, copies, now)
                self._send(pool, copies, now)
        return copies

    def _has_way(self, pool: Pool, now: float) -> bool:
        """Whether there is room on any way into the datacenters of a pool; if it is only too soon, till when."""
        links, soonest = self._matcher.policy.links, inf
        for zone in pool.zones.values():
            at = links.way_in_at(zone.site)
            if at is not None:
                soonest = min(soonest, at)
                if at <= now:
                    return True
        if soonest < inf:
            self._try_at(soonest)
        return not pool.zones

    def _try_at(self, at: float) -> None:
        """More could be brought then, though nothing happens."""
        if self.next_at is None or at < self.next_at:
            self.next_at = at

    # -- lines that lack some of their data

    def _see_to(self, pool: Pool, copies: list[Copying], now: float) -> None:
        """Bring what lines of a pool want, unless nothing has changed since there was no way for any of it."""
        matcher = self._matcher
        moment = matcher.transit.freed, matcher.policy.links.version, pool.version, len(pool.wanting)
        seen, until = pool.seen_to
        if seen != moment or (until is not None and now >= until):
            before, self.next_at = self.next_at, None
            self._bring_wanted(pool, copies, now)
            until, self.next_at = self.next_at, before
            pool.seen_to = (*moment[:3], len(pool.wanting)), until
        if until is not None:
            self._try_at(until)

    def _bring_wanted(self, pool: Pool, copies: list[Copying], now: float) -> None:
        wanting = pool.wanting
        most = _MOST_COMPARED if len(wanting) <= _FEW_WAITING else _LEAST_COMPARED
        while wanting:
            aside: list[tuple[float, float, int, Line]] = []
            choices: list[_Choice] = []
            while wanting and len(aside) < most:
                entry = heapq.heappop(wanting)
                line = entry[3]
                if not line.length or not line.is_coming or line.is_asked:
                    continue
                options = self._options(line, now)
                if options and not options[0].missing:
                    line.is_asked = True  # it is on its way
                    if line.target is None:
                        self._settle(line, options[0].place, now)
                    continue
                aside.append(entry)
                choices += [
                    _Choice(entry[0], option, line)
                    for option in options
                    if option.score <= options[0].score + options[0].stage_s / 2
                    and self._has_room(option.missing, option.place.site, now)
                ]
            chosen = self._at_once(choices)
            for entry in aside:
                if entry[3] not in chosen:
                    heapq.heappush(wanting, entry)
            if not chosen:
                return
            for line, option in chosen.items():
                self._bring(line, option, copies, now)
                line.is_asked = True

    def _options(self, line: Line, now: float) -> list[_Option]:
        """The places for a line that lacks data, the best first."""
        matcher = self._matcher
        views = matcher.views(line.request)
        options = []
        for place in self._places(line):
            missing = self._missing(views, place.site)
            if missing is not None:
                stage_s = self._stage_s(missing, place.site)
                served = self._served(line, missing, place)
                alone_s = sum(view.stage_s(place.site, matcher.policy.links, alone=True) for view in missing)
                cost_s = (_WEIGHT_OF_WAYS * alone_s + stage_s) / max(1, served)
                score = cost_s + self._tail_s(place, line, now)
                options.append(_Option(score, place, missing, stage_s))
        options.sort(key=lambda option: option.score)
        return options

    def _at_once(self, choices: list[_Choice]) -> dict[Line, _Option]:
        """As many as share no way, of the highest priority, and of as many the best.

        The best alone may take one way each that others need: between three datacenters, there and back leaves the
        third with nothing to do.
        """
        links = self._matcher.policy.links
        first = min((choice.rank for choice in choices), default=0.0)
        by_ways: dict[frozenset[tuple[str, str | None]], _Choice] = {}
        for choice in choices:
            if choice.rank == first:
                site = choice.option.place.site
                sources = (view.source(site, links) for view in choice.option.missing)
                ways = frozenset(
                    [
                        ("to", site.datacenter),
                        *(("from", source.datacenter) for source in sources if source is not None),
                    ]
                )
                if ways not in by_ways or choice.option.score < by_ways[ways].option.score:
                    by_ways[ways] = choice
        ranked = sorted(by_ways.items(), key=lambda item: (item[1].option.score, item[1].line.number))
        chosen = _most_apart(ranked) if len(ranked) <= _MOST_WEIGHED else _greedy(ranked)
        return {choice.line: choice.option for choice in chosen}

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
        sources = [(source, view) for view in missing if (source := view.source(site, links)) is not None]
        next_at = 0.0
        for source, view in sources:
            at = links.room_at(source, site, view.nbytes, view.n_files)
            if at is None:
                return False
            # Ways are free at about the same time: who waits for the last one has more to choose from.
            soon_s = _SOON * links.transfer_s(source, site, view.nbytes, view.n_files, alone=True)
            next_at = max(next_at, at - soon_s)
        if next_at > now:
            self._try_at(next_at)
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
            lines = queue.movable(_MOST_MOVABLE)
            if not lines:
                heapq.heappop(busy)
                queue.key_s = None
                continue
            tail_s = queue.place.tail_s(self._matcher.runtimes)
            if tail_s < -entry[0]:
                queue.key_s = tail_s
                heapq.heapreplace(busy, (-tail_s, queue.number, queue))
                if busy[0][2] is not queue:
                    continue
            if not any(self._send_one(line, copies, now) for line in lines):
                aside.append(heapq.heappop(busy))
        for entry in aside:
            heapq.heappush(busy, entry)

    def _send_one(self, line: Line, copies: list[Copying], now: float) -> bool:
        """Send a line to where it would end before the last one that waits at its home. Returns whether it was."""
        matcher = self._matcher
        if line.is_late or not line.request.inputs or line.need.slots != 1:
            return False
        views = matcher.views(line.request)
        run_s = matcher.runtimes.shown_s(line.request.kind, now)
        label_s = partial(matcher.policy.label_s, line.request)
        homes = [queue.place for queue in line.queues]  # it waits for the one that is free first
        tail_s = min(self._tail_s(place, line, now) + label_s(place.site) for place in homes)
        away_s = line.pool.away_s(matcher.runtimes)
        best: _Option | None = None
        least = inf
        for zone in islice(line.pool.zones.values(), _MOST_ZONES):
            place = self._machine(zone, line)
            if place is None or place in homes or not is_far(views, place.site):
                continue
            missing = self._missing(views, place.site)
            if not missing or not self._has_room(missing, place.site, now):
                continue
            stage_s = self._stage_s(missing, place.site) + label_s(place.site)
            free_s = self._tail_s(place, line, now) + away_s
            begins_s = max(stage_s, free_s)
            if (order := begins_s + free_s / 10) < least:  # of about equal ones, that which has less to do until then
                best, least = _Option(begins_s, place, missing, stage_s), order
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
        for view in option.missing:
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


def _greedy(ranked: _ByWays) -> list[_Choice]:
    taken: set[object] = set()
    chosen = []
    for ways, choice in ranked:
        if not taken & ways and choice.line not in taken:
            taken |= {*ways, choice.line}
            chosen.append(choice)
    return chosen


def _most_apart(ranked: _ByWays) -> list[_Choice]:
    """The most that share no way, of as many those with the least sum of scores."""
    best: tuple[int, float, list[_Choice]] = 0, 0.0, []

    def extend(number: int, taken: frozenset[object], score: float, chosen: list[_Choice]) -> None:
        nonlocal best
        if (-len(chosen), score) < (-best[0], best[1]):
            best = len(chosen), score, chosen
        for later in range(number, len(ranked)):
            ways, choice = ranked[later]
            if not taken & ways and choice.line not in taken:
                extend(later + 1, taken | ways | {choice.line}, score + choice.option.score, [*chosen, choice])

    extend(0, frozenset(), 0.0, [])
    return best[2]
