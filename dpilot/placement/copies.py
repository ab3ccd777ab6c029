"""Data units that are brought to machines ahead of units: which machine, whether its ways have room, what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

from dpilot.placement.demand import Demand
from dpilot.placement.homes import is_far
from dpilot.placement.lines import Line
from dpilot.placement.places import Pilot, Place
from dpilot.placement.topology import Site
from dpilot.placement.views import InputView

__all__ = ["MOST_PILOTS", "MOST_ZONES", "Copies", "Copying", "Option"]

#: How many of the datacenters, and of the pilots in one, are looked at.
MOST_ZONES, MOST_PILOTS = 8, 4
#: A way counts as free when so little of the time that it takes is missing.
_SOON = 0.1


class Copying(NamedTuple):
    """A data unit is to be brought to the machine of a pilot, whether a unit there asks for it yet or not."""

    du: str
    pilot: str
    site: Site


class Option(NamedTuple):
    """Where a line may run, and what has to be brought there."""

    score: float
    place: Place
    missing: list[InputView]
    stage_s: float
    is_all: bool = True  # that is missing


class Copies:
    """What has to be known of data that is to be brought.

    Parameters
    ----------
    matcher : Demand
        Whose lines and places they are.
    """

    def __init__(self, matcher: Demand) -> None:
        self._matcher = matcher
        self.next_at: float | None = None  # when more could be brought, though nothing has happened

    def _try_at(self, at: float) -> None:
        """More could be brought then, though nothing happens."""
        if self.next_at is None or at < self.next_at:
            self.next_at = at

    def _soonest(self, look: Callable[[], object]) -> float:
        """Look for what to bring; returns when to look again, if it is only too soon for something; else never."""
        before, self.next_at = self.next_at, None
        look()
        at, self.next_at = self.next_at, before
        return inf if at is None else at

    def _machine(self, place: Place, line: Line) -> Place | None:
        """The least busy machine of a place that could run a line and has workers."""
        if place.site.machine is not None:
            return place if place.could(line.need) and _carrier(place) is not None else None
        pilots = [place.first(), *islice(place.pilots.values(), MOST_PILOTS)]
        machines = [
            machine
            for pilot in pilots
            if pilot is not None and pilot.site.machine is not None and pilot.can_carry and pilot.could(line.need)
            for machine in pilot.places
            if machine.site.machine is not None and line.pool.has(machine)
        ]
        runtimes = self._matcher.runtimes
        return min(machines, key=lambda machine: machine.tail_s(runtimes), default=None)

    def _missing(self, views: Sequence[InputView], site: Site) -> list[InputView] | None:
        """Inputs that are not near a site, nor on their way there; None if one is for too long, or cannot be."""
        transit, now, missing = self._matcher.transit, self._matcher.policy.links.now, list[InputView]()
        for view in views:
            if is_far((view,), site):
                if transit.is_overdue(view.id, site) or transit.has_failed(view.id, site, now):
                    return None
                if transit.left_s(view.id, site, 0.0) is None:
                    missing.append(view)
        return missing

    def _has_room(self, missing: Sequence[InputView], site: Site, now: float) -> bool:
        """Whether the ways of some data units to a site have room for them now; if only it is too soon, till when."""
        at = self._room_at(missing, site)
        if now < at < inf:
            self._try_at(at)
        return at <= now

    def _room_at(self, missing: Sequence[InputView], site: Site) -> float:
        """From when on the ways of some data units to a site have room for them, as far as is known."""
        links, room_at = self._matcher.policy.links, 0.0
        for view, source in self._sources(missing, site):
            at = links.room_at(source, site, view.nbytes, view.n_files)
            if at is None:
                return inf
            # Ways are free at about the same time: who waits for the last one has more to choose from.
            soon_s = _SOON * links.transfer_s(source, site, view.nbytes, view.n_files, alone=True)
            room_at = max(room_at, at - soon_s)
        return room_at

    def is_stalled(self, views: Sequence[InputView], site: Site) -> bool:
        """Whether a link over which some data units would come to a site all but stands."""
        links = self._matcher.policy.links
        return any(links.is_stalled(source, site) for _, source in self._sources(views, site))

    def _stage_s(self, views: Sequence[InputView], site: Site) -> float:
        """How long it may take to bring some data units to a site."""
        links, seconds = self._matcher.policy.links, 0.0
        for view, source in self._sources(views, site):
            seconds += view.stage_s(site, links) * links.doubt(source, site, view.nbytes)
        return seconds

    def _site_s(self, line: Line, place: Place) -> float:
        """What a place costs wherever the inputs are."""
        run_s = self._matcher.runtimes.expected_s(line.request.kind)
        return self._matcher.policy.site_s(line.request, place.site, run_s)

    def _sources(self, views: Sequence[InputView], site: Site) -> Iterator[tuple[InputView, Site]]:
        """From where some data units, of those that are anywhere, are to be brought to a site."""
        for view in views:
            source = view.source(site, self._matcher.policy.links)
            if source is not None:
                yield view, source

    def _tail_s(self, place: Place, line: Line, now: float) -> float:
        """When a place will have done what it has, as far as run times were seen; half of what runs there has run."""
        runtimes, kind = self._matcher.runtimes, line.request.kind
        tail_s = place.shown_tail_s(runtimes, kind, now)
        if tail_s == inf:
            return inf
        if len(place.pilots) <= MOST_PILOTS:  # those that have yet to come may never do
            here = sum(pilot.slots.open for pilot in place.pilots.values())
            tail_s *= place.slots / here if here else 1.0
        return max(0.0, tail_s - runtimes.shown_s(kind, now) / 2) if place.backlog_s else tail_s

    def _bring(self, line: Line, option: Option, copies: list[Copying], now: float, goes: bool = True) -> None:
        """Have data brought for a line, which goes there, too."""
        carrier = _carrier(option.place)
        assert carrier is not None, f"{option.place.site} was chosen and has no workers"
        for view in option.missing:
            self._matcher.transit.begin_copy(view, option.place.site, now, carrier.slots.gap_s)
            copies.append(Copying(view.id, carrier.name, option.place.site))
        if goes and line.queues[0].place is not option.place:
            self._settle(line, option.place, now)

    def _expect(self, line: Line, place: Place, now: float) -> None:
        """What a line lacks is on its way to a place already."""
        if line.target is None:
            self._settle(line, place, now)
        line.is_asked = True

    def _settle(self, line: Line, place: Place, now: float) -> None:
        """A place is the home of a line from now on."""
        line.target = place
        self._matcher.stand(line, now)
        line.is_asked = True


def _carrier(place: Place) -> Pilot | None:
    """A pilot of a machine whose workers can bring something there."""
    return next((pilot for pilot in place.pilots.values() if pilot.can_carry), None)
