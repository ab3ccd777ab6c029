"""What the caches of machines have, and which workers serve it to other machines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import islice

from dpilot.data import Manifest, Store, entry_name
from dpilot.placement import Site
from dpilot.runtime.places import CACHE, Place
from dpilot.runtime.records import DataRecord, Records

__all__ = ["Caches"]

#: How many caches are named besides the one that is counted on.
_MOST_NAMED = 2


class Caches:
    """The caches of all machines. Elsewhere one is called by the id of a pilot on its machine.

    Parameters
    ----------
    records : Records
    view : callable
        Called with a data unit of which a machine has a copy more, or less.
    """

    def __init__(self, records: Records, view: Callable[[DataRecord], None]) -> None:
        self._records = records
        self._view = view
        self._servers: defaultdict[Site, dict[str, str]] = defaultdict(dict)  # machine -> worker -> pilot
        self._kept: defaultdict[Site, set[str]] = defaultdict(set)
        self._served: Counter[str] = Counter()

    # -- who serves

    def join(self, worker: str, pilot: str, site: Site) -> None:
        """A worker is there: it serves the cache of its machine."""
        self._servers[site][worker] = pilot

    def leave(self, worker: str, site: Site) -> None:
        """A worker is gone; with the last one of a machine, nobody serves its cache."""
        servers = self._servers.get(site, {})
        servers.pop(worker, None)
        self._served.pop(worker, None)
        if not servers:
            self._servers.pop(site, None)
            for du in list(self._kept.get(site, ())):
                self.drop(du, site)

    # -- what is where

    def add(self, data: DataRecord, site: Site) -> None:
        """A machine has a data unit."""
        if site in self._servers:
            data.cached.add(site)
            self._kept[site].add(data.id)
            self._view(data)

    def drop(self, du: str, site: Site) -> None:
        """A machine has a data unit no more, or not one to be trusted."""
        kept = self._kept.get(site)
        if kept is not None:
            kept.discard(du)
            if not kept:
                del self._kept[site]
        data = self._records.data.get(du)
        if data is not None and site in data.cached:
            data.cached.discard(site)
            self._view(data)

    def sources(
        self, data: DataRecord, manifest: Manifest, site: Site, counted_on: Site | None
    ) -> Iterator[tuple[str, Site, Place]]:
        """From which other machines a site may bring a data unit: a pilot there, its site, and how it is reached.

        ``counted_on`` comes first, if it is one. None, if the site has it itself.
        """
        if site in data.cached:
            return
        others = [other for other in islice(data.cached, _MOST_NAMED + 1) if other != counted_on]
        first = [counted_on] if counted_on is not None and counted_on in data.cached else []
        for other in (*first, *others[:_MOST_NAMED]):
            servers = self._servers.get(other)
            if servers:
                worker = min(servers, key=lambda address: (self._served[address], address))
                self._served[worker] += 1  # one after the other
                store = Store("/", store_id=f"{CACHE}{entry_name(manifest)}")
                yield servers[worker], other, Place(store, worker)
