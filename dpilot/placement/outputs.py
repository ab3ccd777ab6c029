"""The outputs' way home: how much each kind of work writes, and how long that takes to where it goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import ceil

from dpilot.placement.links import Links
from dpilot.placement.topology import Site
from dpilot.placement.views import Request
from dpilot.placement.ways import WEIGHT, Way

__all__ = ["Outputs"]

#: By what part what units write must have changed before places are chosen anew for it.
_NOTABLE = 2.0
#: What a unit is taken to write before one of its kind has ended: so little that it decides nothing but between places
#: that are equally good otherwise.
_UNKNOWN_NBYTES = 1.0


class Outputs:
    """What units write.

    How much is learned by kind of work (an exponentially weighted mean); until one has ended, it is hardly anything.
    What bound units will write takes ways that others need, too: of those that are bound to the sites at a way's end,
    each writes once in the time that it runs and delivers, so the way of another one is as much longer as what all of
    them have to deliver exceeds the time that it runs for. That is the asymptotic bound of a closed queue (Muntz and
    Wong, 1974). Over a link of which nothing is known all that may well take longer.

    Parameters
    ----------
    links : Links

    Attributes
    ----------
    version : int
        Another one whenever a kind of work writes notably more or less than was thought.
    """

    def __init__(self, links: Links) -> None:
        self.version = 0
        self._links = links
        self._mean: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._owed_s: defaultdict[Way, float] = defaultdict(float)  # by bound units, to a way
        self._of: dict[str, tuple[float, list[tuple[Way, float]]]] = {}

    def observe(self, kind: str, nbytes: int) -> None:
        """A unit of `kind` has written so many bytes."""
        before = self._mean.get(kind)
        mean = float(nbytes) if before is None else before + WEIGHT * (nbytes - before)
        mean = self._mean[kind] = mean if mean >= 1.0 else 0.0
        told = self._told_of(kind)
        if not told / _NOTABLE <= mean <= told * _NOTABLE:
            self._told[kind] = mean
            self.version += 1

    def _told_of(self, kind: str) -> float:
        return self._told.get(kind, _UNKNOWN_NBYTES)

    def sites(self, request: Request) -> tuple[Site, ...]:
        """Where what a request writes may go to; of what is known to write nothing, nowhere."""
        if not request.outputs or not self._told_of(request.kind):
            return ()
        return tuple(dict.fromkeys(site for sites in request.outputs for site in sites))

    def cost_s(self, request: Request, site: Site, run_s: float | None = None) -> float:
        """How long what a request writes at a site takes to where it goes.

        Parameters
        ----------
        request : Request
        site : Site
        run_s : float or None
            How long it runs before that: what others have to deliver counts, and that nobody knows the link. None:
            what is expected of it alone.
        """
        if not request.outputs:
            return 0.0
        own_s = owed_s = 0.0
        for home, nbytes in self._deliveries(request, site):
            way_s = self._links.transfer_s(site, home, nbytes, 1, alone=True)
            own_s += way_s if run_s is None else way_s * self._links.doubt(site, home, nbytes)
            if run_s is not None:
                for way, _ in self._links.ways(site, home, nbytes):
                    owed_s = max(owed_s, self._owed_s.get(way, 0.0))
        return own_s + max(0.0, owed_s - (run_s or 0.0))

    def begin(self, unit: str, request: Request, site: Site) -> float:
        """A unit is bound at a site. Returns how long what it writes takes from there."""
        seconds = self.cost_s(request, site)
        if seconds:
            owed = [
                (way, way_s * self._links.doubt(site, home, nbytes))
                for home, nbytes in self._deliveries(request, site)
                for way, way_s in self._links.ways(site, home, nbytes)
            ]
            for way, way_s in owed:
                self._owed_s[way] += way_s
            self._of[unit] = seconds, owed
        return seconds

    def end(self, unit: str) -> None:
        """A unit is bound no more, or all that it writes is where it goes."""
        _, owed = self._of.pop(unit, (0.0, ()))
        for way, way_s in owed:
            self._owed_s[way] -= way_s
            if self._owed_s[way] <= 0.0:
                del self._owed_s[way]

    def taking_s(self, unit: str) -> float:
        """How long what a bound unit writes was expected to take when it was bound."""
        return self._of[unit][0] if unit in self._of else 0.0

    def _deliveries(self, request: Request, site: Site) -> Iterator[tuple[Site, int]]:
        """Where each output goes from a site, and how many bytes: to the nearest store, of as near ones the fastest.

        Not those that stay in the datacenter, which is taken to be wide: what little differs there is chance.
        """
        nbytes = ceil(self._told_of(request.kind) / len(request.outputs))
        if nbytes:
            for sites in request.outputs:
                if not any(map(site.is_near, sites)) and sites:
                    yield min(sites, key=lambda home: self._links.rank(site, home)), nbytes
