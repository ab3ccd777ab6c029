"""What the policy sees: frozen snapshots of pilots, inputs and requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dpilot.placement.links import Links
from dpilot.placement.topology import Distance, Site

__all__ = ["InputView", "PilotView", "Request"]

#: How many times as long a data unit counts to take from a machine's cache in another datacenter as from a store there:
#: connections to workers are rarely used, and begin slowly.
_FAR_CACHE = 1.5


class PilotView(NamedTuple):
    """One pilot at one moment, as far as one kind of work is concerned.

    Parameters
    ----------
    id : str
    site : Site
    slots : int
        Slots that it offers in all.
    free : int
        Its idle slots; or 1 if it has none, but would take a unit of one slot all the same: one so short
        that some of its kind are kept queued at the workers.
    backlog_s : float
        Slot-seconds of work that it has taken or that is already meant for it.
    memory_nbytes : int or None
        Of its largest worker; None: not known, and not a limit.
    gpus : int
        Of its worker that has most of them.
    left_s : float or None
        For how many seconds it will still be there; None: without an end.
    """

    id: str
    site: Site
    slots: int
    free: int
    backlog_s: float = 0.0
    memory_nbytes: int | None = None
    gpus: int = 0
    left_s: float | None = None

    @property
    def load(self) -> float:
        """Backlog in seconds per slot."""
        return self.backlog_s / self.slots if self.slots else 0.0


@dataclass(frozen=True, slots=True)
class InputView:
    """One data unit that a unit reads: its size, and where its replicas are.

    Parameters
    ----------
    id : str
    nbytes, n_files : int
    sites : tuple of Site
        One for each replica.
    stored : int or None
        How many of these, the first ones, are stores; the others are caches of machines. None: all of them.
    """

    id: str
    nbytes: int
    n_files: int
    sites: tuple[Site, ...]
    stored: int | None = None

    def costs(self, site: Site, links: Links, alone: bool = False) -> list[float]:
        """Seconds to bring it to `site` from each replica; `alone`: as if nothing else was being moved."""
        costs = [links.transfer_s(replica, site, self.nbytes, self.n_files, alone) for replica in self.sites]
        if self.stored is not None:
            for number, replica in enumerate(self.sites[self.stored :], self.stored):
                if replica.distance(site) is Distance.OTHER_DATACENTER:
                    costs[number] *= _FAR_CACHE
        return costs

    def stage(self, site: Site, links: Links) -> tuple[float, Distance]:
        """Seconds to bring it to `site` from the replica that is the cheapest to bring, and how far that is."""
        distances = (replica.distance(site) for replica in self.sites)
        return min(zip(self.costs(site, links), distances, strict=True), default=(0.0, Distance.OTHER_DATACENTER))

    def source(self, site: Site, links: Links) -> Site | None:
        """Where to bring it from to `site`; None if there is no replica."""
        if len(self.sites) <= 1:
            return self.sites[0] if self.sites else None
        costs = self.costs(site, links)
        return self.sites[costs.index(min(costs))]

    def stage_s(self, site: Site, links: Links, alone: bool = False) -> float:
        """Seconds to bring it to `site`; `alone`: as if nothing else was being moved."""
        sites = self.sites
        if len(sites) == 1:
            return links.transfer_s(sites[0], site, self.nbytes, self.n_files, alone)
        return min(self.costs(site, links, alone), default=0.0)


class Request(NamedTuple):
    """What a unit asks of a pilot. Equal requests are interchangeable: they wait in one line.

    Parameters
    ----------
    pool : str
        Whose pilots may run it: the id of a compute data service.
    kind : str
        What work it is (the executable's or function's name): units of a kind run about as long.
    slots : int
    site : Site
        The labels that are asked for.
    require : bool
        Whether the labels bind (affinity "require") or are preferred.
    pilot : str or None
        The only pilot that may run it: the unit was submitted to it directly.
    inputs : tuple of str
        Ids of the data units that it reads.
    memory_nbytes : int
        Memory that it needs; 0: not stated.
    gpus : int
        Whole devices that it needs.
    walltime_s : float or None
        How long it may run; None: not stated.
    outputs : tuple of tuple of Site
        Of what it writes, the sites of the stores that each data unit may go to; none: it is near wherever it runs.
    """

    pool: str
    kind: str = ""
    slots: int = 1
    site: Site = Site()
    require: bool = False
    pilot: str | None = None
    inputs: tuple[str, ...] = ()
    memory_nbytes: int = 0
    gpus: int = 0
    walltime_s: float | None = None
    outputs: tuple[tuple[Site, ...], ...] = ()
