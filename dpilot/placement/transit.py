"""Which data is on its way to where: for units that are bound and wait for it, or ahead of all units."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from dpilot.placement.links import Links
from dpilot.placement.topology import Distance, Site
from dpilot.placement.views import InputView

__all__ = ["Transit"]

#: A transfer that takes so many times longer than expected is looked at, and teaches its link. It is overdue, unless it
#: is the first on its link, of which nothing was known: what waits for it may go elsewhere.
_LATE = 2.0
#: Replicas that cost so little more than the cheapest one are as good.
_ALIKE = 1.01
#: To so many machines at a time a replica is brought: from a machine, and from a store that is none. More of them wait
#: for the next replicas, unless that is soon over.
_MOST_SERVED, _MOST_STORED = 2, 8
_SOON_S = 0.1
#: After how long it is tried again to bring ahead what could not be brought; and how many of these are remembered.
_AGAIN_S, _MOST_FAILED = 60.0, 1000


class _Way:
    __slots__ = ("begun", "due", "is_overdue", "overdue_s", "source", "units", "view")

    def __init__(self, view: InputView, source: Site, begun: float, seconds: float, overdue_s: float) -> None:
        self.view = view
        self.overdue_s = overdue_s
        self.source = source
        self.begun = begun
        self.due = begun + seconds
        self.is_overdue = False
        self.units: dict[str, None] = {}  # who waits for it


class Transit:
    """The transfers that bound units wait for, and those ahead of all units, counted on their links.

    So a link that is swamped is seen before a transfer has told how slow it is. A data unit that goes to a machine is
    on its way once, however many units there wait for it. One that takes much longer than expected teaches the links
    before it has ended.
    """

    def __init__(self, links: Links) -> None:
        self._links = links
        self.freed = 0  # how often ways have got room again
        self.stalled = 0  # and how often since something on them all but stands
        self.room_at: float | None = None  # when some will have, of which :meth:`has_room` has said no
        self._ways: dict[tuple[str, Site], _Way] = {}
        self._of: dict[str, list[tuple[str, Site]]] = {}
        self._looks: list[tuple[float, int, tuple[str, Site], _Way]] = []  # a heap: when to see how one gets on
        self._copies: dict[tuple[str, Site], _Way] = {}  # of these, what is brought ahead of all units
        self._failed_at: dict[tuple[str, Site], float] = {}  # when it could not be brought ahead of units
        self._served: dict[tuple[str, Site], int] = {}  # by data unit and source: how many machines it is brought to
        self._count = 0

    def __len__(self) -> int:
        return len(self._ways)

    def begin_turn(self, now: float) -> None:
        """It is asked anew what has room."""
        if self.room_at is not None and self.room_at <= now:
            self.freed += 1
        self.room_at = None

    def begin(self, unit: str, views: Iterable[InputView], site: Site, now: float, gap_s: float = 0.0) -> None:
        """`unit` was bound at `site`: inputs that are not on that machine have to be brought.

        Messages take `gap_s` seconds there and back, so that it is as much later heard that they are there.
        """
        keys = []
        for view in views:
            if site.machine is not None and site in view.sites:
                continue
            key = view.id, site
            way = self._ways.get(key)
            if way is None:
                source = self._source(view, site)
                if source is None or source.distance(site) is Distance.SAME_MACHINE:
                    continue
                seconds = self._links.transfer_s(source, site, view.nbytes, view.n_files)
                overdue_s = _LATE * seconds * self._links.doubt(source, site, view.nbytes)
                way = self._ways[key] = _Way(view, source, now + gap_s, seconds, overdue_s)
                self._links.begin(source, site, view.nbytes, view.n_files)
                self._served[view.id, source] = self._served.get((view.id, source), 0) + 1
                self._look_at(way.begun + _LATE * seconds, key, way)
            if unit not in way.units:  # it may name an input twice
                way.units[unit] = None
                keys.append(key)
        if keys:
            self._of[unit] = keys

    def end(self, unit: str) -> None:
        """`unit` has its inputs, or needs them no more."""
        keys = self._of.pop(unit, None)
        if keys is None:
            return
        for key in keys:
            way = self._ways[key]
            del way.units[unit]
            if not way.units:
                del self._ways[key]
                self.freed += 1
                self._links.end(way.source, key[1], was_stalled=way.is_overdue)
                served = key[0], way.source
                self._served[served] -= 1
                if not self._served[served]:
                    del self._served[served]

    def _source(self, view: InputView, site: Site) -> Site | None:
        """Where to bring a data unit from: of the replicas that cost least, the one that serves the fewest others."""
        if len(view.sites) <= 1 or not self._served:
            return view.source(site, self._links)
        costs = view.costs(site, self._links)
        least = min(costs) * _ALIKE
        alike = [source for source, cost in zip(view.sites, costs, strict=True) if cost <= least]
        return min(alike, key=lambda source: self._served.get((view.id, source), 0))

    def source_of(self, du: str, site: Site) -> Site | None:
        """Where a data unit that is on its way to a machine comes from; None if it is not on its way there."""
        way = self._ways.get((du, site))
        return None if way is None else way.source

    def has_room(self, view: InputView, site: Site) -> bool:
        """Whether it is of use to bring a data unit to a site now: its way is not full, and it spreads."""
        source = self._source(view, site)
        if source is None:
            return True
        at = self._links.room_at(source, site, view.nbytes, view.n_files)
        if at is None or at > self._links.now:
            self.room_at = at if self.room_at is None else min(self.room_at, at or self.room_at)
            return False
        return self.spreads(view, site)

    def spreads(self, view: InputView, site: Site) -> bool:
        """Whether a replica that is near has no more to serve than it should.

        Else the data unit will come sooner from one of those that these make. So what all machines want spreads from
        one to the next, and not from one source to all.
        """
        source = self._source(view, site)
        if source is None or source.distance(site) is not Distance.SAME_DATACENTER:
            return True
        if self._links.room_at(source, site, view.nbytes, view.n_files) is None:
            return False
        served = self._served.get((view.id, source), 0)
        most = _MOST_SERVED
        if source.machine is None:  # a store that was seen to serve so many as fast may serve twice as many
            most = max(_MOST_STORED, int(2 * self._links.served(source, site)))
        if served < most:
            return True
        return served * self._links.transfer_s(source, site, view.nbytes, view.n_files, alone=True) < _SOON_S

    def waiting_for(self, du: str, site: Site) -> list[str]:
        """The units that are bound at a machine and wait for a data unit that is on its way there."""
        way = self._ways.get((du, site))
        return [] if way is None else [unit for unit in way.units if unit != _copy(du, site)]

    def needs(self, unit: str) -> bool:
        """Whether something is on its way for `unit`."""
        return unit in self._of

    def begin_copy(self, view: InputView, site: Site, now: float, gap_s: float = 0.0) -> None:
        """A data unit is brought to a machine ahead of all units; for the gap see :meth:`begin`."""
        self.begin(_copy(view.id, site), (view,), site, now, gap_s)
        if (way := self._ways.get((view.id, site))) is not None:
            self._copies[view.id, site] = way

    def end_copy(self, du: str, site: Site) -> bool:
        """It is there, or will not come. Returns whether it was on its way."""
        was_coming = _copy(du, site) in self._of
        self._copies.pop((du, site), None)
        self.end(_copy(du, site))
        return was_coming

    def fail_copy(self, du: str, site: Site, now: float) -> None:
        """A data unit could not be brought to a machine ahead of units."""
        if len(self._failed_at) >= _MOST_FAILED:
            self._failed_at.clear()
        self._failed_at[du, site] = now

    def has_failed(self, du: str, site: Site, now: float) -> bool:
        """Whether it could not of late, and is not to be tried again yet."""
        at = self._failed_at.get((du, site))
        return at is not None and now < at + _AGAIN_S

    def left_s(self, du: str, site: Site, now: float) -> float | None:
        """Seconds until a data unit will have come to a machine; None if it is not on its way there."""
        way = self._ways.get((du, site)) if site.machine is not None else None
        return None if way is None else max(0.0, way.due - now)

    def next_copy_s(self, now: float) -> float | None:
        """Seconds until the next of what is brought ahead of units comes; None: nothing is, or all of it is overdue."""
        return min((max(0.0, way.due - now) for way in self._copies.values() if not way.is_overdue), default=None)

    def is_overdue(self, du: str, site: Site) -> bool:
        """Whether a data unit has been on its way to a machine for much longer than expected."""
        way = self._ways.get((du, site))
        return way is not None and way.is_overdue

    def is_overdue_near(self, du: str, site: Site) -> bool:
        """The same of any machine of a datacenter. It looks at all that is on its way: ask for what is stuck only."""
        return any(
            way.is_overdue and way.view.id == du and target.is_near(site) for (_, target), way in self._ways.items()
        )

    def look(self, now: float) -> list[tuple[str, Site]]:
        """See which transfers take longer than they should. Returns those overdue: data units, and where they go to."""
        late, looks = [], self._looks
        while looks and (looks[0][0] <= now or self._ways.get(looks[0][2]) is not looks[0][3]):
            _, _, key, way = heapq.heappop(looks)
            if self._ways.get(key) is way:
                gone_s = now - way.begun
                self._links.overdue(way.source, key[1], way.view.nbytes, gone_s, way.view.n_files)
                way.due = now + gone_s / 2  # who knows; it is as good a guess as any
                self._look_at(way.due, key, way)
                if gone_s >= way.overdue_s:
                    if not way.is_overdue:
                        self._links.stall(way.source, key[1])
                        self.stalled += 1
                    way.is_overdue = True
                    late.append(key)
        return late

    def _look_at(self, when: float, key: tuple[str, Site], way: _Way) -> None:
        self._count += 1
        heapq.heappush(self._looks, (when, self._count, key, way))

    def next_look(self) -> float | None:
        """When to look next; None: nothing is on its way."""
        return self._looks[0][0] if self._looks else None


def _copy(du: str, site: Site) -> str:
    """What stands for a copy where units are named: no unit is called so."""
    return f"{du} to {site.datacenter or ''}/{site.machine or ''}"
