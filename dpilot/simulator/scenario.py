"""What is simulated: pilots, stores, data units, compute units and the links between their sites."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpilot.placement import Distance, Site

if TYPE_CHECKING:
    from dpilot.simulator.recording import Recording

__all__ = ["Data", "Link", "Pilot", "Scenario", "Store", "Unit", "Uplink"]


@dataclass(frozen=True, slots=True)
class Pilot:
    """A pool of workers at one site.

    Parameters
    ----------
    id : str
    slots : int
        Of all its workers together.
    datacenter, machine : str, optional
        Labels of its site.
    workers : int, optional
        How many workers share the slots evenly; by default one for each slot.
    submitted_s : float, optional
        From when on the scheduler knows that it will come; by default when it arrives.
    arrives_s : float
        When its workers are there.
    walltime_s : float, optional
        How long it stays, as the scheduler knows. What runs there at its end is lost, and runs anew elsewhere.
    ends_s : float, optional
        When it goes without a warning; None: it stays until its walltime is over or, without one, until the end.
    delay_s : float
        How long a message between the scheduler and it takes, one way.
    speed : float
        How fast units run there: one that takes ``run_s`` seconds takes ``run_s / speed``.
    """

    id: str
    slots: int
    datacenter: str | None = None
    machine: str | None = None
    workers: int | None = None
    submitted_s: float | None = None
    arrives_s: float = 0.0
    walltime_s: float | None = None
    ends_s: float | None = None
    delay_s: float = 0.0
    speed: float = 1.0

    @property
    def site(self) -> Site:
        """Where it is: without a machine label, on a machine of its own."""
        return Site(self.datacenter, self.machine).of_pilot(self.id)

    @property
    def slots_per_worker(self) -> int:
        """Slots of each of its workers."""
        return self.slots // (self.workers or self.slots)

    @property
    def gone_s(self) -> float | None:
        """When it goes, with a warning or without; None: never."""
        ends = [self.ends_s, None if self.walltime_s is None else self.arrives_s + self.walltime_s]
        return min((end_s for end_s in ends if end_s is not None), default=None)

    @property
    def known_s(self) -> float:
        """From when on the scheduler knows of it."""
        return self.arrives_s if self.submitted_s is None else self.submitted_s


@dataclass(frozen=True, slots=True)
class Store:
    """Keeps replicas of data units.

    Parameters
    ----------
    id : str
    datacenter, machine : str, optional
        Labels of its site.
    """

    id: str
    datacenter: str | None = None
    machine: str | None = None

    @property
    def site(self) -> Site:
        """Its labels."""
        return Site(self.datacenter, self.machine)


@dataclass(frozen=True, slots=True)
class Data:
    """A data unit.

    Parameters
    ----------
    id : str
    nbytes, n_files : int
    replicas : tuple of str
        Ids of the stores that have it from the beginning; none if units write it.
    """

    id: str
    nbytes: int
    n_files: int = 1
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """A compute unit.

    Parameters
    ----------
    id : str
    run_s : float
        How long it runs once its inputs are there, at a pilot of speed 1. The scheduler does not know it.
    inputs, outputs : tuple of str
        Ids of the data units that it reads, and of those that it writes: to the store nearest to its pilot.
    slots : int
    kind : str
        What work it is: dpilot learns run times by kind.
    priority : float
        Higher ones first.
    submitted_s : float
    datacenter, machine : str, optional
        Labels that it asks for.
    affinity : str
        ``"prefer"`` or ``"require"``: whether these labels bind.
    pilot : str, optional
        The only pilot that may run it.
    """

    id: str
    run_s: float
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    slots: int = 1
    kind: str = ""
    priority: float = 0.0
    submitted_s: float = 0.0
    datacenter: str | None = None
    machine: str | None = None
    affinity: str = "prefer"
    pilot: str | None = None

    @property
    def site(self) -> Site:
        """The labels that it asks for."""
        return Site(self.datacenter, self.machine)

    def may_run_on(self, pilot: Pilot) -> bool:
        """Whether `pilot` has the slots and, if they are required, the labels that it asks for."""
        return (
            self.slots <= pilot.slots
            and self.pilot in (None, pilot.id)
            and (self.affinity != "require" or self.site.missed_by(pilot.site) is None)
        )


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between sites; the transfers on it share its bandwidth evenly.

    Parameters
    ----------
    bandwidth_bytes_per_s : float
        Each way.
    latency_s : float
        Paid for each file, less where several are moved at once (see :class:`Scenario`).
    between : tuple of 2 str, optional
        The two sites: labels of datacenters or, within one, of machines. Twice the same machine is its own disk.
    distance : Distance, optional
        Instead of `between`: of every pair of sites that are so far apart. Each pair has a link of its own.
    from_s : float
        From when on it is so: a later `Link` between the same sites is one that turns slow, or fast.
    """

    bandwidth_bytes_per_s: float
    latency_s: float = 0.0
    between: tuple[str, str] | None = None
    distance: Distance | None = None
    from_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Uplink:
    """What one site sends and receives through, whatever is at the other end.

    Parameters
    ----------
    site : str
        The label of a datacenter (for what leaves or enters it) or of a machine.
    up_bytes_per_s, down_bytes_per_s : float
    from_s : float
        From when on it is so.
    """

    site: str
    up_bytes_per_s: float
    down_bytes_per_s: float
    from_s: float = 0.0


#: As dpilot assumes before it has seen a transfer.
_DEFAULT_LINKS = (
    Link(1e9, 1e-4, distance=Distance.SAME_MACHINE),
    Link(5e8, 2e-3, distance=Distance.SAME_DATACENTER),
    Link(5e7, 4e-2, distance=Distance.OTHER_DATACENTER),
)


@dataclass(frozen=True)
class Scenario:
    """Everything that a simulation starts from. It is checked when it is made.

    Parameters
    ----------
    pilots, stores, data, units, links, uplinks : tuple
        Links that are not stated are as dpilot assumes by default (see ``dpilot.yaml``); uplinks without a limit.
    name : str
    seed : int
        For policies that draw lots.
    cache_nbytes : int
        What each machine keeps of the data units that were brought to it.
    files_at_once : int
        How many files of a data unit are moved at the same time, so how often a link's latency is paid.
    peers : bool
        Whether machines bring data units also from the caches of others, not only from stores.
    lagging : float
        The part of the transfers between datacenters that lag, as those do that lose packets: each takes three to eight
        times as long as its share of the way would have it. They are chosen by lot, by the seed.

    Raises
    ------
    DescriptionError
        It names the object, the field, its value and what to write instead.
    PlacementError
        If a unit can run on none of the pilots.
    """

    pilots: tuple[Pilot, ...]
    units: tuple[Unit, ...]
    stores: tuple[Store, ...] = ()
    data: tuple[Data, ...] = ()
    links: tuple[Link, ...] = ()
    uplinks: tuple[Uplink, ...] = ()
    name: str = "scenario"
    seed: int = 0
    cache_nbytes: int = 10_000_000_000
    files_at_once: int = 8
    peers: bool = True
    lagging: float = 0.0

    def __post_init__(self) -> None:
        from dpilot.simulator.checks import check

        check(self)

    @cached_property
    def store_of(self) -> Mapping[str, Store]:
        """The stores by their ids."""
        return {store.id: store for store in self.stores}

    @cached_property
    def all_links(self) -> tuple[Link, ...]:
        """The links, those assumed included: in the order in which they come to hold."""
        return (*_DEFAULT_LINKS, *sorted(self.links, key=lambda link: link.from_s))

    def replace(self, **changes: Any) -> Scenario:
        """The same scenario but for some of its fields."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_file(cls, path: str | Path) -> Scenario:
        """Read a scenario from a YAML, JSON or TOML file, or from a recorded run (``.jsonl``).

        Raises
        ------
        DescriptionError
            If it cannot be read, or something in it is wrong.
        """
        from dpilot.simulator.reading import read_file

        return read_file(path)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Scenario:
        """Read a scenario from what such a file holds: a dict of lists of dicts."""
        from dpilot.simulator.reading import read_mapping

        return read_mapping(mapping)

    @classmethod
    def from_records(cls, records: str | Path | Iterable[Mapping[str, Any]]) -> Recording:
        """Read a run that was recorded: a file of JSON lines, or its records.

        Returns
        -------
        Recording
            Its ``scenario``, and what happened in the run itself.
        """
        from dpilot.simulator.recording import read_records

        return read_records(records)
