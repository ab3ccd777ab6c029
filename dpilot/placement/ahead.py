"""Data that is brought to where units will run, ahead of them: a slot is for running, not for waiting.

Two kinds of lines have their data brought. Those that have some of it nowhere near a home *want* it
(:mod:`~dpilot.placement.wanted`). Those of a home that is swamped are *sent* to another place, where they would end
before the last one at home would: the lines with the fewest bytes for each unit go first. A data unit goes to a machine
once, and what is on its way counts as there.

One transfer follows the other on a way, so that the first ones come soon, and where to send the next ones is decided
late, with what was learned by then. What the longest queues would send, had they a way, claims its place meanwhile: who
has less to do does not fill that with what is in nobody's way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil, inf, log2

from dpilot.placement.copies import MOST_ZONES, Copying, Option
from dpilot.placement.demand import Demand
from dpilot.placement.homes import is_far
from dpilot.placement.lines import Line, Queue
from dpilot.placement.places import Place, Pool, level_s
from dpilot.placement.wanted import FEW_WAITING, Wanted

__all__ = ["Ahead", "Copying"]

#: How many of the longest queues, and how many lines of each, are looked at.
_MOST_QUEUES, _MOST_MOVABLE = 4, 4
#: A slot that stands idle is given something if to bring it takes this part of a run at the most, and so much is won.
_SHORT, _NOTABLE = 0.5, 0.25
#: What would end sooner by less than twice this part of what its home has to do is not worth its way: both places would
#: have half of it each. Nor is what would win less than this part of the time that its way takes, unless it is much.
_SLIGHT, _OF_ITS_WAY, _MUCH = 0.05, 0.25, 0.125
#: While fewer units wait, each counts; of more, so many steps make twice as many.
_FINE = 16
#: A link is tried for what is hoped to take at least so long: to wait for less costs little.
_WORTH_A_TRIAL_S = 1.0
#: Lines that would be sent if there was a way: where to, and how many seconds of work for each slot there.
_Claims = dict[Line, tuple[Place, float]]
#: Lines and places, and how many of a line's units are likely to be run there.
_Parts = dict[tuple[Line, Place], float]


class Ahead(Wanted):
    """Says which data is to be brought to where.

    Parameters
    ----------
    matcher : Demand
        Whose lines and places they are.
    """

    def __init__(self, matcher: Demand) -> None:
        super().__init__(matcher)
        self._seen: tuple[object, ...] = ()
        self._parting: _Parts = {}  # lines whose data is on its way to a further home, for a part of their units
        self._given_s: dict[Place, float] = {}  # by place: what lines will take that the agenda has given it

    def order(self, now: float, is_idle: bool) -> list[Copying]:
        """What is to be brought from now on; `is_idle`: a slot is free that nobody takes."""
        matcher = self._matcher
        if len(matcher) > FEW_WAITING and not is_idle:
            seen = (matcher.transit.freed, matcher.policy.links.version, len(matcher).bit_length())
            if seen == self._seen and (self.next_at is None or now < self.next_at):
                return []
            self._seen = seen
        copies: list[Copying] = []
        self.next_at = None
        for pool in matcher.pools:
            if (len(pool.zones) > 1 or pool.wanting) and self._has_way(pool, now):
                self._see_to(pool, copies, now)
                self._relieve(pool, copies, now, is_idle)
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

    def _relieve(self, pool: Pool, copies: list[Copying], now: float, is_idle: bool) -> None:
        """Send what waits at swamped homes elsewhere, unless little can have changed since there was none to send."""
        matcher = self._matcher
        known = matcher.policy.links.version, matcher.runtimes.n_known
        moment = matcher.transit.freed, *known, pool.version, _steps(len(matcher))
        seen, until, soon = pool.sent
        if is_idle or seen != moment or now >= min(until, soon):
            n_sent, longest_s = len(copies), -pool.busy[0][0] if pool.busy else 0.0
            until = self._soonest(lambda: self._send(pool, copies, now))
            pool.sent = moment if len(copies) == n_sent else (), until, now + _SLIGHT / 2 * longest_s
        if until < inf:
            self._try_at(until)

    def _send(self, pool: Pool, copies: list[Copying], now: float) -> None:
        busy, aside = pool.busy, list[tuple[float, int, Queue]]()
        # The agenda may be older than what is known of run times.
        given = pool.agenda.given.items()
        self._given_s = {place: sum(self._holds_s(line, place, now) for line in lines) for place, lines in given}
        claims: _Claims = {}
        self._parting = {part: units for part, units in self._parting.items() if self._is_parting(*part)}
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
            lines.sort(key=lambda line: self._has_sooner(line, queue, tail_s))
            if not any(self._send_one(line, copies, claims, now) for line in lines):
                aside.append(heapq.heappop(busy))
        for entry in aside:
            heapq.heappush(busy, entry)

    def _has_sooner(self, line: Line, queue: Queue, tail_s: float) -> bool:
        """Whether a line has another home, which is free sooner: then it is not what makes a queue so long."""
        runtimes = self._matcher.runtimes
        return any(other is not queue and other.place.tail_s(runtimes) <= tail_s for other in line.queues)

    def _send_one(self, line: Line, copies: list[Copying], claims: _Claims, now: float) -> bool:
        """Send a line to where it would end before the last one that waits at its home. Returns whether it was."""
        matcher = self._matcher
        claims.pop(line, None)
        if line.is_late or not line.request.inputs or line.need.slots != 1:
            return False
        run_s = matcher.runtimes.shown_s(line.request.kind, now)
        homes = [queue.place for queue in line.queues]
        tail_s = self._home_tail_s(line, homes, run_s, now)
        is_wanted = bool(line.pool.wanting or self._given_s)
        nearest: dict[bool, tuple[float, Option]] = {}  # of those to which there is a way now, and of the others
        for order, option in self._elsewhere(line, homes, claims, now):
            has_way = self._has_room(option.missing, option.place.site, now)
            if has_way not in nearest or order < nearest[has_way][0]:
                nearest[has_way] = order, option
        for has_way, (_, option) in sorted(nearest.items(), reverse=True):
            # What it has to bring, for it is a guess; and where others lack data, the ways are theirs.
            spare_s = tail_s - (max(run_s, option.stage_s) if is_wanted else run_s) / 2 - option.score
            if run_s < spare_s < 2 * max(_SLIGHT * tail_s, min(_OF_ITS_WAY * option.stage_s, _MUCH * tail_s)):
                continue
            if run_s >= spare_s:
                # For a slot that stands idle, units are counted in whole rounds: of a few that wait for more slots, the
                # last one ends when what runs has ended and it has run itself. Before, it may yet come otherwise.
                # Half of what runs has run, as far as the latest of it can have by now.
                if is_wanted or not run_s or option.stage_s > _SHORT * run_s or not option.place.has_idle():
                    continue
                left_s = run_s - min(run_s / 2, now - max(home.last_bound for home in homes))
                spare_s = left_s + ceil(tail_s / run_s - 0.5) * run_s - option.stage_s
                if spare_s < (1 + _NOTABLE) * run_s:
                    continue
            all_s = ceil(line.length / option.place.slots) * run_s
            if has_way:
                goes = all_s < spare_s
                if not goes:  # both places are to be done at once
                    self._parting[line, option.place] = spare_s / 2 / run_s * option.place.slots
                self._bring(line, option, copies, now, goes)
            else:
                claims[line] = option.place, line.length * run_s / option.place.slots
            return has_way
        spare_s = tail_s - 1.5 * run_s
        return not is_wanted and True in nearest and self._try(line, nearest[True][1], spare_s, copies, now)

    def _is_parting(self, line: Line, place: Place) -> bool:
        """Whether data of a line that still waits is on its way to a place."""
        transit = self._matcher.transit
        coming = (transit.left_s(du, place.site, 0.0) is not None for du in line.request.inputs)
        return line.length > 0 and any(coming)

    def _free_s(self, place: Place, line: Line, now: float) -> float:
        """When a place will have done what it has, with what others are about to take from it, or to give to it."""
        run_s, seconds = self._matcher.runtimes.shown_s(line.request.kind, now), 0.0
        for (other, target), units in self._parting.items():
            if target is place:
                seconds += min(units, other.length) * run_s / place.slots
            elif other.queues[0].place is place:
                seconds -= min(units, other.length) * run_s / place.slots
        return max(0.0, self._tail_s(place, line, now) + seconds)

    def _try(self, line: Line, option: Option, spare_s: float, copies: list[Copying], now: float) -> bool:
        """Bring what would be worth its way if its link is no slower than others, while the line goes on at home.

        So a link of which nothing is known is tried where much may be gained, and nothing waits for that but bytes.
        """
        place, links = option.place, self._matcher.policy.links
        hoped_s = sum(view.stage_s(place.site, links) for view in option.missing) + self._site_s(line, place)
        begins_s = hoped_s if option.score == option.stage_s else option.score
        is_worth = _WORTH_A_TRIAL_S < hoped_s < option.stage_s and begins_s < spare_s and place.has_room()
        if is_worth:
            self._bring(line, option, copies, now, goes=False)
        return is_worth

    def _home_tail_s(self, line: Line, homes: Sequence[Place], run_s: float, now: float) -> float:
        """When all that waits at a line's homes would be done, of which they do its own work together."""
        shares = line.shares or [float(line.length)] + [0.0] * (len(homes) - 1)
        tails = [
            (self._free_s(home, line, now) + self._site_s(line, home) - share * run_s / home.slots, home.slots)
            for home, share in zip(homes, shares, strict=True)
            if home.slots
        ]
        return level_s(tails, line.length * run_s)

    def _elsewhere(
        self, line: Line, homes: Sequence[Place], claims: _Claims, now: float
    ) -> Iterator[tuple[float, Option]]:
        """Where else a line could run, were its data there: the least of these numbers is the best."""
        matcher, given_s = self._matcher, self._given_s
        views = matcher.views(line.request)
        away_s = 0.0 if given_s else line.pool.away_s(matcher.runtimes)
        for zone in islice(line.pool.zones.values(), MOST_ZONES):
            place = self._machine(zone, line)
            if place is None or place in homes or not is_far(views, place.site):
                continue
            missing = self._missing(views, place.site)
            if missing:
                claimed_s = sum(seconds for other, seconds in claims.values() if other is place)
                free_s = self._free_s(place, line, now) + away_s + given_s.get(place, 0.0) + claimed_s
                stage_s = self._stage_s(missing, place.site) + self._site_s(line, place)
                begins_s = max(stage_s, free_s)
                # Of about equal ones, that which has less to do until then.
                yield begins_s + free_s / 10, Option(begins_s, place, missing, stage_s)


def _steps(waiting: int) -> int:
    """Another number whenever notably more or fewer units wait."""
    return waiting if waiting < _FINE else int(_FINE * (1 + log2(waiting / _FINE)))
