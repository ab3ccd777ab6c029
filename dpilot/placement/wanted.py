"""Lines that have some of their data nowhere near a home: where they are to run, and what is brought there next.

Few of them are seen together: an agenda says where each is to run, and what is brought first is chosen with all the
rest in mind. Of many, some are looked at, and what serves most for its time on the ways is brought.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

from dpilot.placement.agenda import Copy, Venue
from dpilot.placement.copies import MOST_ZONES, Copies, Copying, Option
from dpilot.placement.homes import is_far
from dpilot.placement.lines import Line
from dpilot.placement.places import Place, Pool
from dpilot.placement.sequence import Flow, foremost
from dpilot.placement.topology import ANYWHERE, Site
from dpilot.placement.views import InputView
from dpilot.placement.ways import Way

__all__ = ["FEW_WAITING", "Wanted"]

#: While no more units wait, it is looked at every time whether data should be brought.
FEW_WAITING = 1000
#: So many lines are seen together, if to bring what one lacks takes so long for each option that all of them have: that
#: is worth some thought.
_MOST_TOGETHER, _WORTH_S = 96, 0.0005
#: How many lines are compared before the data of one is brought, while few wait and while many do.
_MOST_COMPARED, _LEAST_COMPARED = 32, 2
#: How many of the readers of a data unit are looked at.
_MOST_READERS = 32
#: What a second of the ways, for each unit that it serves, counts beside one of waiting at a place: all that is to be
#: moved yet waits for the ways.
_WEIGHT_OF_WAYS = 4.0
#: Among the lines for so many combinations of ways it is worked out how most of them are served at once.
_MOST_WEIGHED = 12


class _Choice(NamedTuple):
    """A line that may be served now."""

    rank: float
    option: Option
    line: Line


#: What may be brought at once, by the ways that it takes.
_ByWays = list[tuple[frozenset[tuple[str, str | None]], _Choice]]
#: Of the heap of lines that want something: rank, bytes a unit, number.
_Entry = tuple[float, float, int, Line]
#: A data unit and the machine that it is to be brought to; the datacenters at the ends of a link.
_Key = tuple[str, Site]
_Ends = tuple[str | None, str | None]


class Wanted(Copies):
    """Says what is brought for lines that lack some of their data."""

    def _see_to(self, pool: Pool, copies: list[Copying], now: float) -> None:
        """Bring what lines of a pool want, unless nothing has changed since there was no way for any of it."""
        matcher = self._matcher
        moment = matcher.transit.freed, matcher.policy.links.version, pool.version, len(pool.wanting)
        seen, until = pool.seen_to
        if seen != moment or now >= until:
            until = self._way_at(pool, now)
            if until <= now:
                until = self._soonest(lambda: self._bring_wanted(pool, copies, now))
            pool.seen_to = (*moment[:3], len(pool.wanting)), until
        if until < inf:
            self._try_at(until)

    def _way_at(self, pool: Pool, now: float) -> float:
        """From when on a way has room over which a few lines may have something brought: before, to think is vain."""
        if len(pool.wanting) > _MOST_TOGETHER or not 0 < len(pool.zones) <= MOST_ZONES:
            return now
        smallest: dict[tuple[Site, ...], InputView] = {}  # by where it is: there is room for the smallest first
        for *_, line in pool.wanting:
            for view in self._matcher.views(line.request):
                if view.sites not in smallest or view.nbytes < smallest[view.sites].nbytes:
                    smallest[view.sites] = view
        soonest = inf
        for view in smallest.values():
            for zone in pool.zones.values():
                if is_far((view,), zone.site):
                    soonest = min(soonest, self._room_at((view,), zone.site))
                    if soonest <= now:
                        return now
        return soonest

    def _bring_wanted(self, pool: Pool, copies: list[Copying], now: float) -> None:
        wanting = pool.wanting
        if len(wanting) <= _MOST_TOGETHER:
            most = _MOST_TOGETHER
        else:
            most = _MOST_COMPARED if len(wanting) <= FEW_WAITING else _LEAST_COMPARED
        known: dict[Line, list[Option]] = {}  # since the last turn
        while wanting:
            aside: dict[Line, _Entry] = {}
            found: dict[Line, list[Option]] = {}
            while wanting and len(aside) < most:
                entry = heapq.heappop(wanting)
                line = entry[3]
                if not line.length or not line.is_coming or line.is_asked or line in aside:
                    continue  # of several entries of a line, the first is the most urgent
                options = known[line] if line in known else self._options(line, now)
                if options and not options[0].missing:
                    self._expect(line, options[0].place, now)
                    continue
                aside[line] = entry
                found[line] = options
            if most == _MOST_TOGETHER and self._is_worth_a_plan(found):
                chosen = self._planned(pool, aside, found, now)
                brought = {view.id for choice in chosen for view in choice.option.missing}
                known = {line: options for line, options in found.items() if brought.isdisjoint(line.request.inputs)}
            else:
                pool.agenda.forget()
                chosen = self._compared(aside, found, now)
            for _rank, option, line in chosen:
                self._bring(line, option, copies, now, goes=option.is_all)
                line.is_asked = option.is_all
            for line, entry in aside.items():
                if not line.is_asked:
                    heapq.heappush(wanting, entry)
            if not chosen:
                return
        pool.agenda.forget()

    # -- where a line may run

    def _options(self, line: Line, now: float) -> list[Option]:
        """The places for a line that lacks data, the best first; those behind links that all but stand, if all are."""
        views = self._matcher.views(line.request)
        options = []
        for place in self._places(line):
            missing = self._missing(views, place.site)
            if missing is not None:
                options.append(self._option(line, place, missing, now))
        options = [option for option in options if not self.is_stalled(option.missing, option.place.site)] or options
        options.sort(key=lambda option: option.score)
        return options

    def _option(self, line: Line, place: Place, missing: list[InputView], now: float, *, is_all: bool = True) -> Option:
        matcher = self._matcher
        links = matcher.policy.links
        stage_s = self._stage_s(missing, place.site)
        alone_s = sum(view.stage_s(place.site, links, alone=True) for view in missing)
        cost_s = (_WEIGHT_OF_WAYS * alone_s + stage_s) / max(1, self._served(line, missing, place))
        cost_s += _WEIGHT_OF_WAYS * matcher.outputs.cost_s(line.request, place.site) + self._site_s(line, place)
        score = cost_s + self._tail_s(place, line, now)
        return Option(score, place, missing, stage_s, is_all)

    def _places(self, line: Line) -> Iterator[Place]:
        """Machines to which the data of a line may be brought."""
        home = line.queues[0].place
        if home is not line.pool.away:
            homes = {home: None}
            others = self._matcher.named(line)
            if line.request.site == ANYWHERE and len(line.pool.zones) <= MOST_ZONES:
                others += line.pool.zones.values()  # what it lacks there may come for others
            homes.update(dict.fromkeys(place for place in others if place.could(line.need) and place.keeps))
        else:
            homes = dict.fromkeys(islice(line.pool.zones.values(), MOST_ZONES))
        found: dict[Place, None] = {}
        for place in homes:
            machine = self._machine(place, line)
            if machine is not None:
                found[machine] = None
        yield from found

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

    # -- few lines, seen together

    def _is_worth_a_plan(self, found: Mapping[Line, list[Option]]) -> bool:
        """Whether there are some to be seen together, and to bring what they lack takes longer than to think of it."""
        took_s = [options[0].stage_s for options in found.values() if options]
        thought_s = _WORTH_S * sum(map(len, found.values()))
        return len(took_s) > _LEAST_COMPARED and sum(took_s) >= thought_s * len(took_s)

    def _planned(
        self,
        pool: Pool,
        entries: Mapping[Line, _Entry],
        found: Mapping[Line, list[Option]],
        now: float,
    ) -> list[_Choice]:
        """What is brought next of what the agenda says: for the most urgent lines first, then over other ways."""
        by_rank: dict[float, dict[_Key, _Choice]] = {}
        for line, option in self._venues(pool, found, now).items():
            if not option.missing:
                self._expect(line, option.place, now)
                continue
            rank, is_all = entries[line][0], len(option.missing) == 1
            choices = by_rank.setdefault(rank, {})
            for view in option.missing:  # one by one: they share the way into the place
                own = option if is_all else self._option(line, option.place, [view], now, is_all=False)
                before = choices.get((view.id, option.place.site))
                if before is None or own.score < before.option.score:
                    choices[view.id, option.place.site] = _Choice(rank, own, line)
        taken: dict[Hashable, float] = {}
        chosen: list[_Choice] = []
        for rank in sorted(by_rank):
            chosen += self._in_turn(by_rank[rank], taken, now)
        return chosen

    def _venues(self, pool: Pool, found: Mapping[Line, list[Option]], now: float) -> dict[Line, Option]:
        """Where lines should run, so that the ways and the places have as little to do as can be."""
        links = self._matcher.policy.links
        busy_s: dict[Hashable, float] = {}
        venues: dict[Line, list[Venue[Place]]] = {}
        known: dict[_Key, tuple[Copy, ...]] = {}

        def copies(view: InputView, site: Site) -> tuple[Copy, ...]:
            """The copy, and what it takes to begin with a link, which the first one over it does."""
            source = view.source(site, links)
            if source is None:
                return ()
            takes = tuple(links.ways(source, site, view.nbytes))
            busy_s.update((way, way.wait_s(now)) for way, _ in takes)
            begins_s = links.begins_s(source, site, view.nbytes)
            begins = tuple((way, begins_s) for way, _ in takes)
            return Copy((view.id, site), takes), Copy((source.datacenter, site.datacenter), begins)

        for line, options in found.items():
            venues[line] = own = []
            for option in options:
                place, brought = option.place, list[Copy]()
                if place not in busy_s:
                    busy_s[place] = self._tail_s(place, line, now)
                for view in option.missing:
                    key = view.id, place.site
                    if key not in known:
                        known[key] = copies(view, place.site)
                    brought += known[key]
                own.append(Venue(place, self._holds_s(line, place, now), tuple(brought)))
        chosen = pool.agenda.revise({line: own for line, own in venues.items() if own}, busy_s)
        return {line: found[line][number] for line, number in chosen.items()}

    def _holds_s(self, line: Line, place: Place, now: float) -> float:
        """How long a line would have all slots of a place, as far as run times were seen."""
        unit_s = self._matcher.runtimes.shown_s(line.request.kind, now) + self._site_s(line, place)
        return line.length * unit_s / max(1, place.slots)

    def _in_turn(self, choices: Mapping[_Key, _Choice], taken: dict[Hashable, float], now: float) -> list[_Choice]:
        """What may begin now, with all that is to be brought after it in mind.

        `taken` are ways on which something begins now, or as soon as there is room, and until when; more are added.
        """
        links = self._matcher.policy.links
        flows: dict[_Ends, list[tuple[_Choice, list[tuple[Way, float]]]]] = {}
        begins_s: dict[_Ends, float] = {}
        for choice in sorted(choices.values(), key=lambda choice: (choice.option.score, choice.line.number)):
            (view,), site = choice.option.missing, choice.option.place.site
            source = view.source(site, links)
            if source is not None and (takes := links.ways(source, site, view.nbytes)):
                ends = source.datacenter, site.datacenter
                flows.setdefault(ends, []).append((choice, takes))
                begins_s[ends] = links.begins_s(source, site, view.nbytes)
        free_at: dict[Hashable, float] = {}
        last: dict[Hashable, int] = {}  # by way: the flow that came last
        for number, (ends, those) in enumerate(flows.items()):
            for way, _ in those[0][1]:
                free_at[way] = max(now + way.wait_s(now), taken.get(way, 0.0))
                if links.came_last(way, *ends):
                    last[way] = number
                else:
                    last.setdefault(way, -1)
        queues = [
            Flow(tuple(way for way, _ in those[0][1]), [tuple(s for _, s in takes) for _, takes in those], begin_s)
            for those, begin_s in zip(flows.values(), begins_s.values(), strict=True)
        ]
        first = [those[0][0] for those in flows.values()]  # of a flow one begins, for then its ways are taken
        chosen: list[_Choice] = []
        among = set(range(len(queues)))
        while any(taken.keys().isdisjoint(queues[number].ways) for number in among):
            number = foremost(queues, free_at, last, among)
            flow = queues[number]
            if taken.keys().isdisjoint(flow.ways):
                choice = first[number]
                if self._has_room(choice.option.missing, choice.option.place.site, now):
                    chosen.append(choice)
                flow.take(number, free_at, last)
                queues[number] = flow._replace(copies=flow.copies[1:])
                taken.update((way, free_at[way]) for way in flow.ways)
            else:
                among.discard(number)  # it comes after one of these
        return chosen

    # -- many lines, of which some are compared

    def _compared(
        self, entries: Mapping[Line, _Entry], found: Mapping[Line, list[Option]], now: float
    ) -> list[_Choice]:
        """As many as share no way, of the highest priority, and of as many the best.

        The best alone may take one way each that others need: between three datacenters, there and back leaves the
        third with nothing to do.
        """
        choices = [
            _Choice(entries[line][0], option, line)
            for line, options in found.items()
            for option in options
            if option.score <= options[0].score + options[0].stage_s / 2
            and self._has_room(option.missing, option.place.site, now)
        ]
        first = min((choice.rank for choice in choices), default=0.0)
        by_ways: dict[frozenset[tuple[str, str | None]], _Choice] = {}
        for choice in choices:
            if choice.rank == first:
                site = choice.option.place.site
                sources = (source for _, source in self._sources(choice.option.missing, site))
                ways = frozenset([("to", site.datacenter), *(("from", source.datacenter) for source in sources)])
                if ways not in by_ways or choice.option.score < by_ways[ways].option.score:
                    by_ways[ways] = choice
        ranked = sorted(by_ways.items(), key=lambda item: (item[1].option.score, item[1].line.number))
        return _most_apart(ranked) if len(ranked) <= _MOST_WEIGHED else _greedy(ranked)


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
