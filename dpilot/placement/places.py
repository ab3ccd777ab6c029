"""Where pilots are: the tree of places of a pool, each of which knows its least loaded pilot.

A place is a machine, a datacenter or a whole pool; a pilot belongs to one of each. To a unit that none of whose inputs
is on a machine, all machines of a datacenter are alike, and so are all datacenters that have none of them: so a unit
looks at the few places that its inputs and labels name, and never at the pilots one by one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice, pairwise
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from dpilot.placement.agenda import Agenda
from dpilot.placement.estimates import RunTimes
from dpilot.placement.heaps import LazyHeap
from dpilot.placement.slots import PilotSlots
from dpilot.placement.topology import Site
from dpilot.placement.views import PilotView, Request

if TYPE_CHECKING:
    from dpilot.placement.lines import Line, Queue

__all__ = ["PLAIN", "Need", "Pilot", "Place", "Pool", "level_s"]

#: How many pilots without an idle slot are asked whether they would queue a tiny unit.
_MOST_ASKED = 32
#: What is left of parts of units when all of them are gone.
_NONE = 1e-6
#: More than any pilot is loaded.
_NOT_SHOWN = True, inf


class Need(NamedTuple):
    """What a unit cannot do without; `site` are the labels that bind, None if none do."""

    slots: int
    memory_nbytes: int
    gpus: int
    site: Site | None

    @classmethod
    def of(cls, request: Request) -> Need:
        """What a request cannot do without."""
        site = request.site if request.require and request.site != (None, None) else None
        need = cls(request.slots, request.memory_nbytes, request.gpus, site)
        return PLAIN if need == PLAIN else need


#: What any idle slot meets.
PLAIN = Need(1, 0, 0, None)


class Pilot:
    """A pilot: its slots, and the places that it belongs to."""

    __slots__ = (
        "_counted_s",
        "_view",
        "declared",
        "ends_at",
        "gpus",
        "memory_nbytes",
        "name",
        "offered",
        "places",
        "reserved",
        "shown",
        "site",
        "slots",
        "stamp",
        "stated",
    )

    def __init__(
        self, name: str, site: Site, slots: PilotSlots, declared: int, memory_nbytes: int | None, gpus: int
    ) -> None:
        self.name = name
        self.site = site
        self.slots = slots
        self.declared = declared  # slots it has or, while it starts, will have
        self.stated = memory_nbytes, gpus  # of each worker, before one is here
        self.memory_nbytes, self.gpus = self.stated
        self.ends_at: float | None = None
        self.places: list[Place] = []
        self.reserved: Queue | None = None  # the line at the head of this queue waits for its slots
        self.stamp = 0  # how often it has changed
        self.offered = 0  # as of which change its places know of its room; what they know of earlier ones is void
        self.shown = _NOT_SHOWN  # as how loaded it stands at any of them, at the most
        self._counted_s = 0.0
        self._view: tuple[int, PilotView] | None = None

    @property
    def load(self) -> float:
        """Seconds of work per slot that it has already."""
        return self.slots.backlog_s / self.declared if self.declared else 0.0

    @property
    def can_carry(self) -> bool:
        """Whether it has workers that can bring something to its machine."""
        return self.slots.open > 0

    @property
    def rounds(self) -> float:
        """How many wait for each of its slots; of several pools those of the one whose units wait most."""
        around = {place.parent for place in self.places}
        return max((place.rounds for place in self.places if place not in around), default=0.0)

    def could(self, need: Need) -> bool:
        """Whether it could meet a need if it was idle."""
        return (
            need.slots <= self.declared
            and (need.site is None or need.site.missed_by(self.site) is None)
            and (self.memory_nbytes is None or need.memory_nbytes <= self.memory_nbytes * need.slots)
            and need.gpus <= self.gpus * need.slots
        )

    def is_here_for(self, need: Need) -> bool:
        """Whether so many workers are here by now that it could meet a need if they were idle."""
        return need.slots <= self.slots.open and self.could(need)

    def lasts(self, until: float | None, output_s: float = 0.0) -> bool:
        """Whether it is still there then, if what a unit reads is brought first; None: nobody knows when that is.

        What the unit writes has to leave after that, which takes `output_s`.
        """
        return self.ends_at is None or until is None or until + self.slots.bring_s + output_s <= self.ends_at

    def fits(self, need: Need, expected_s: float) -> bool:
        """Whether it would take a unit with such a need now."""
        if need.site is not None and need.site.missed_by(self.site) is not None:
            return False
        return self.slots.fits(need.slots, expected_s, need.memory_nbytes, need.gpus)

    def view(self, now: float) -> PilotView:
        """What the policy sees of it."""
        seen = self._view
        if seen is None or seen[0] != self.stamp or self.ends_at is not None or seen[1].left_s is not None:
            left_s = None if self.ends_at is None else self.ends_at - now
            slots = self.slots
            view = PilotView(
                self.name, self.site, self.declared, slots.idle, slots.backlog_s, self.memory_nbytes, self.gpus, left_s
            )
            self._view = seen = self.stamp, view
        return seen[1]

    def changed(self) -> None:
        """Take in that its slots, or what they hold, have changed."""
        self.stamp += 1
        backlog_s = self.slots.backlog_s
        more_s = backlog_s - self._counted_s
        if more_s:
            self._counted_s = backlog_s
            for place in self.places:
                place.backlog_s += more_s
        rank = self.rank
        if rank < self.shown and self.slots.has_room(0.0):  # else its places see for themselves when it is its turn
            self.shown, self.offered = rank, self.stamp
            entry = *rank, self.name, self.stamp, self
            for place in self.places:
                place.offer(entry)

    @property
    def rank(self) -> tuple[bool, float]:
        """How loaded it is: whether all its slots are taken, and its load."""
        return self.slots.idle == 0, self.load

    def enter(self, place: Place) -> None:
        """Belong to a place, too."""
        self.places.append(place)
        self.shown = _NOT_SHOWN
        place.pilots[self.name] = self
        place.slots += self.declared
        place.backlog_s += self._counted_s
        place.reconsider()

    def leave(self, place: Place) -> None:
        """Belong to a place no more."""
        self.places.remove(place)
        del place.pilots[self.name]
        place.slots -= self.declared
        place.backlog_s -= self._counted_s
        place.reconsider()

    def declare(self, slots: int) -> bool:
        """Have so many slots, and what memory and GPUs its workers have. Returns whether units may have other homes."""
        largest = self.slots.largest() if self.slots.workers else self.stated
        if slots == self.declared and largest == (self.memory_nbytes, self.gpus):
            return False
        for place in self.places:
            place.slots += slots - self.declared
        self.declared = slots
        self.memory_nbytes, self.gpus = largest
        news = [place.reconsider() for place in self.places]  # each of them, also after the first that is
        return any(news)


#: A pilot as loaded as it was after so many changes; it may be more loaded by now.
_Entry = tuple[bool, float, str, int, Pilot]


class Place:
    """A machine, a datacenter, a pool or a single pilot: its pilots by load, and the lines whose home it is.

    Parameters
    ----------
    site : Site
        Stands for the sites of its pilots.
    parent : Place or None
        The place around it.
    """

    __slots__ = (
        "_could",
        "_counts",
        "_room",
        "backlog_s",
        "below",
        "coming",
        "last_bound",
        "own",
        "parent",
        "pilots",
        "queues",
        "site",
        "slots",
        "visits",
    )

    def __init__(self, site: Site, parent: Place | None = None) -> None:
        self.site = site
        self.parent = parent
        self.pilots: dict[str, Pilot] = {}
        self.slots = 0
        self.backlog_s = 0.0  # slot-seconds that its pilots have taken
        self.own: dict[str, float] = {}  # kind of work -> slots asked for by units whose home it is
        self.below: dict[str, float] = {}  # the same, with those of the places in it
        self._counts = [self.own, self.below]  # and what counts them for the places around it
        if parent is not None:
            self._counts += parent._counts[1:]
        self.queues: dict[Hashable, Queue] = {}  # by what they need
        self.coming: dict[Hashable, Queue] = {}  # of lines whose data has yet to come here
        # Lines that have some of their inputs here, and stand elsewhere: rank, weight, number, line.
        self.visits: LazyHeap[tuple[float, float, int, Line]] = LazyHeap(self.is_visit)
        self.last_bound = 0.0
        self._room: LazyHeap[_Entry] = LazyHeap(self._is_valid)  # the pilots that have any room
        self._could: dict[Need, bool] = {}

    # -- its pilots

    def offer(self, entry: _Entry) -> None:
        """One of its pilots has room, and is as loaded as the entry tells."""
        self._room.push(entry)

    def _is_valid(self, entry: _Entry) -> bool:
        pilot = entry[4]
        return entry[3] >= pilot.offered and self.pilots.get(pilot.name) is pilot

    def is_visit(self, entry: tuple[float, float, int, Line]) -> bool:
        """Whether units of a line still wait, and have their home elsewhere."""
        line = entry[3]
        return line.length > 0 and all(queue.place is not self for queue in line.queues)

    def has_room(self) -> bool:
        """Whether any of its pilots would take any unit."""
        return self.first() is not None

    def best(self, able: Callable[[Pilot], bool], queues: bool) -> Pilot | None:
        """The least loaded pilot that is able to take a unit now; those with idle slots come first.

        Parameters
        ----------
        able : function of Pilot
        queues : bool
            Whether the unit is one that may be queued where no slot is idle.
        """
        aside: list[_Entry] = []
        found = None
        room, asked = self._room, 0
        while (pilot := self.first()) is not None:
            if room[0][0]:
                asked += 1
                if not queues or asked > _MOST_ASKED:
                    break
            if able(pilot):
                found = pilot
                break
            aside.append(heapq.heappop(room))
        for entry in aside:
            heapq.heappush(room, entry)
        return found

    @property
    def keeps(self) -> bool:
        """Whether what is brought to its machines stays there, as far as its first pilot tells."""
        return any(pilot.site.machine is not None for pilot in islice(self.pilots.values(), 1))

    def has_idle(self) -> bool:
        """Whether a slot is idle that none of those that wait for the place will take."""
        return sum(self.below.values()) < sum(pilot.slots.idle for pilot in self.pilots.values())

    def first(self) -> Pilot | None:
        """The least loaded pilot that has any room."""
        room = self._room
        while (entry := room.first()) is not None:
            pilot = entry[4]
            if entry[3] == pilot.stamp:
                return pilot
            if pilot.slots.has_room(0.0):
                rank = pilot.rank
                pilot.shown = max(rank, pilot.shown)
                heapq.heapreplace(room, (*rank, pilot.name, pilot.stamp, pilot))
            else:
                pilot.shown = _NOT_SHOWN
                heapq.heappop(room)
        return None

    def open_pilots(self) -> Iterator[Pilot]:
        """The pilots that have any room, roughly the least loaded first."""
        for entry in self._room:
            if self._is_valid(entry) and entry[4].slots.has_room(0.0):
                yield entry[4]

    def could(self, need: Need) -> bool:
        """Whether one of its pilots could meet a need if it was idle."""
        answer = self._could.get(need)
        if answer is None:
            answer = self._could[need] = any(pilot.could(need) for pilot in self.pilots.values())
        return answer

    def could_until(self, need: Need, until: float | None) -> bool:
        """The same, of those pilots that are still there then."""
        return self.could(need) and (
            until is None or any(p.lasts(until) and p.could(need) for p in self.pilots.values())
        )

    def reconsider(self) -> bool:
        """Its pilots have changed. Returns whether that makes a difference to any need that was asked for."""
        before, self._could = self._could, {}
        return any(self.could(need) != answer for need, answer in before.items())

    # -- what waits for it

    def count(self, kind: str, slots: float) -> None:
        """So many slots more (or fewer) are asked for by units whose home it is."""
        for counts in self._counts:
            number = counts.get(kind, 0) + slots
            if number > _NONE:
                counts[kind] = number
            else:
                counts.pop(kind, None)

    @property
    def rounds(self) -> float:
        """How many slots are asked for, for each that it has, by what waits; of what waits around it an even part."""
        if not self.slots:
            return 0.0
        rounds, place = sum(self.below.values()) / self.slots, self.parent
        while place is not None:
            if place.own and place.slots:
                rounds += sum(place.own.values()) / place.slots
            place = place.parent
        return rounds

    def tail_s(self, runtimes: RunTimes) -> float:
        """Seconds until its slots will have done all that they hold and that waits for them.

        What waits for the places around it, it gets an even part of.
        """
        if not self.slots:
            return inf
        seconds = (self.backlog_s + _work_s(self.below, runtimes)) / self.slots
        place = self.parent
        while place is not None:
            if place.own and place.slots:
                seconds += _work_s(place.own, runtimes) / place.slots
            place = place.parent
        return seconds

    def shown_tail_s(self, runtimes: RunTimes, kind: str, now: float) -> float:
        """The same, as far as run times were seen, for a unit of some kind.

        If none of that kind has ended, all but the known work counts as if each lasted as long as the first has by now.
        """
        tail_s, run_s = self.tail_s(runtimes), runtimes.expected_s(kind)
        if not self.slots or not run_s or runtimes.known_s(kind) is not None:
            return tail_s
        known = {other: number for other, number in self.below.items() if runtimes.known_s(other) is not None}
        known_s = _work_s(known, runtimes) / self.slots
        return known_s + (tail_s - known_s) * runtimes.shown_s(kind, now) / run_s


def _is_wanting(entry: tuple[float, float, int, Line]) -> bool:
    line = entry[3]
    return line.length > 0 and line.is_coming and not line.is_asked


def _is_coming(entry: tuple[float, int, Line]) -> bool:
    return entry[2].length > 0 and entry[2].is_coming


def _is_due(entry: tuple[float, int, Queue]) -> bool:
    return entry[2].due == entry[0]


def level_s(tails: Iterable[tuple[float, int]], work_s: float) -> float:
    """When places will have done some more work together, of which those do most that are free first.

    Of each is told when it will have done what it has, in seconds, and how many slots it has.
    """
    slots = 0
    for (tail_s, more), (next_s, _) in pairwise([*sorted(tails), (inf, 0)]):
        slots += more
        if work_s <= slots * (next_s - tail_s):
            return tail_s + work_s / slots
        work_s -= slots * (next_s - tail_s)
    return inf


def _work_s(counts: dict[str, float], runtimes: RunTimes) -> float:
    return sum(number * runtimes.expected_s(kind) for kind, number in counts.items())


class Pool:
    """The pilots that the units of one compute data service may use, as a tree of places.

    Parameters
    ----------
    members : collection of str or None
        Names of the pilots; None: all there are.
    is_flat : bool
        Without datacenters and machines in it: where the pilots are plays no role.
    """

    def __init__(self, members: frozenset[str] | None = None, is_flat: bool = False) -> None:
        self.members = members
        self.is_flat = is_flat
        self.root = Place(Site())
        self.nowhere = Place(Site())  # the home of lines that no pilot could run
        self.away = Place(Site(), self.root)  # and of those whose data lies where no pilot is
        # Lines whose data has to be brought: rank, bytes a unit, number, line; and when their patience with that ends.
        self.wanting: LazyHeap[tuple[float, float, int, Line]] = LazyHeap(_is_wanting)
        self.late: LazyHeap[tuple[float, int, Line]] = LazyHeap(_is_coming)
        # What was so when nothing more could be brought for them, and when that is to be tried again, if at any time.
        self.seen_to: tuple[tuple[int, ...], float] = (), inf
        # The same of what waits at homes that are swamped, and till when they have about as much to do.
        self.sent: tuple[tuple[int, ...], float, float] = (), inf, inf
        self.agenda: Agenda[Line, Place] = Agenda()  # where they are to run
        self.zones: dict[str | None, Place] = {}  # by datacenter
        self.machines: dict[str, list[Place]] = {}
        self.version = 0  # another one whenever lines may have other homes
        self.ends = False  # whether any of its pilots has an end
        self.settled: Hashable = None  # when it was seen last that no queue has anything worth its way
        self.busy: list[tuple[float, int, Queue]] = []  # a heap: queues that cannot be served, the longest first
        self.due: LazyHeap[tuple[float, int, Queue]] = LazyHeap(_is_due)  # when their patience ends

    def away_s(self, runtimes: RunTimes) -> float:
        """Seconds of work for each slot of the lines whose data lies where no pilot is: it goes to who has least."""
        return _work_s(self.away.own, runtimes) / self.root.slots if self.root.slots else 0.0

    def add(self, pilot: Pilot) -> None:
        """Take in a pilot."""
        site = pilot.site
        self.version += 1
        self.ends = self.ends or pilot.ends_at is not None
        pilot.enter(self.root)
        if self.is_flat:
            return
        zone = self.zones.get(site.datacenter)
        if zone is None:
            zone = self.zones[site.datacenter] = Place(Site(site.datacenter), self.root)
        pilot.enter(zone)
        if site.machine is not None:
            machines = self.machines.setdefault(site.machine, [])
            machine = next((place for place in machines if place.site == site), None)
            if machine is None:
                machine = Place(site, zone)
                machines.append(machine)
            pilot.enter(machine)

    def remove(self, pilot: Pilot) -> list[Place]:
        """Forget a pilot. Returns the places that it belonged to."""
        left = [place for place in pilot.places if self.has(place)]
        for place in left:
            pilot.leave(place)
        self.version += 1
        return left

    def coming(self) -> Iterator[Line]:
        """The lines that have a home, to which their data has yet to come."""
        machines = (machine for machines in self.machines.values() for machine in machines)
        for place in (*self.zones.values(), *machines):
            for queue in place.coming.values():
                yield from queue.lines

    def has(self, place: Place) -> bool:
        """Whether a place is of this pool."""
        while place.parent is not None:
            place = place.parent
        return place is self.root
