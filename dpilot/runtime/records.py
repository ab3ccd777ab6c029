"""What the scheduler knows of each object: the one truth that handles, wherever they are, show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from dpilot.data import Manifest, Source, Store
from dpilot.errors import StoreFullError, UnknownObjectError
from dpilot.placement import Decision, Distance, InputView, Request, Site
from dpilot.runtime.places import Replica
from dpilot.states import COMPUTE_UNIT, DATA_UNIT, PILOT, SERVICE, Lifecycle, State

__all__ = ["DataRecord", "PilotRecord", "Record", "Records", "ServiceRecord", "StoreRecord", "Times", "UnitRecord"]

#: What most units lack: an empty set of its own for each would take 0.2 KB.
_NOTHING: frozenset[str] = frozenset()


@lru_cache(maxsize=1024)
def _one(clients: frozenset[str]) -> frozenset[str]:
    """Of equal sets, one: most units are followed by the same client."""
    return clients


class Record:
    """Base: an id, a life, the clients that follow it, and the error that ended it."""

    __slots__ = ("error", "id", "life", "owner", "watchers")

    def __init__(self, id: str, owner: str, life: Lifecycle, watchers: Iterable[str]) -> None:
        self.id = id
        self.owner = owner
        self.life = life
        self.watchers = _one(frozenset(watchers))
        self.error: BaseException | None = None

    def follow(self, client: str) -> None:
        """A client is told what becomes of it from now on."""
        self.watchers = _one(self.watchers | {client})

    def unfollow(self, client: str) -> None:
        """A client is told no more."""
        if client in self.watchers:
            self.watchers = _one(self.watchers - {client})

    def snapshot(self) -> dict[str, Any]:
        """What a handle is made from."""
        return {"id": self.id, "owner": self.owner, "history": self.life.history, "error": self.error}


class ServiceRecord(Record):
    """A service: its members are pilots, stores, or, of a compute data service, other services."""

    __slots__ = ("members",)

    def __init__(self, id: str, now: float, watchers: Iterable[str]) -> None:
        super().__init__(id, "", Lifecycle(SERVICE, now), watchers)
        self.members: dict[str, None] = {}

    def snapshot(self) -> dict[str, Any]:
        """What a handle is made from."""
        return {**super().snapshot(), "members": list(self.members)}


class PilotRecord(Record):
    """A pilot: what was asked for, and the workers that have joined."""

    __slots__ = ("details", "machine", "returns", "site", "slots", "units", "walltime_s", "workers")

    def __init__(self, id: str, owner: str, now: float, watchers: Iterable[str], details: dict[str, Any]) -> None:
        super().__init__(id, owner, Lifecycle(PILOT, now), watchers)
        self.details = details
        self.slots: int = details["slots"]
        self.site = Site(details["datacenter"], details["machine"])  # its labels
        self.machine = self.site.of_pilot(id)  # where its cache is
        self.walltime_s: float | None = details["walltime_s"]
        self.workers: set[str] = set()
        self.returns = False  # whether its workers were told to end and come back
        self.units: dict[str, None] = {}

    def snapshot(self) -> dict[str, Any]:
        """What a handle is made from."""
        return {**super().snapshot(), **self.details, "workers": len(self.workers), "units": list(self.units)}


class StoreRecord(Record):
    """A store. Its credentials are in `store`, which does not show them, and nowhere else."""

    __slots__ = ("asked", "hosts", "opener", "reserved", "seen_at", "site", "sites", "store", "units", "used_nbytes")

    def __init__(self, id: str, owner: str, now: float, watchers: Iterable[str], store: Store, opener: str) -> None:
        super().__init__(id, owner, Lifecycle(SERVICE, now), watchers)
        self.store = store
        self.opener = opener  # the client that made it
        self.hosts: set[str] = set()  # workers that see it as local files
        self.asked: set[str] = set()  # workers that have not said yet whether they do
        self.site = Site(store.datacenter, store.machine)
        self.sites = (self.site,)  # of all that is only here
        self.seen_at: dict[Distance, Replica] = {}  # how its replicas look from a site so far away, if it has no host
        self.units: dict[str, None] = {}
        self.used_nbytes = 0
        self.reserved: dict[str, int] = {}

    @property
    def is_local(self) -> bool:
        """Whether it is a directory, which not every machine sees."""
        return self.store.root.local is not None

    @property
    def free_nbytes(self) -> int | None:
        """How many bytes more it may hold; None: without a limit."""
        limit = self.store.nbytes_limit
        return None if limit is None else max(0, limit - self.used_nbytes - sum(self.reserved.values()))

    def reserve(self, purpose: str, nbytes: int) -> None:
        """Set `nbytes` aside for a transfer, so that several at once cannot over-fill the store."""
        limit, free = self.store.nbytes_limit, self.free_nbytes
        if free is not None and nbytes > free:
            raise StoreFullError(
                f"{nbytes:,} bytes do not fit into {self.id} ({self.store.url}): its size is {limit:,} bytes, "
                f"of which {free:,} are free; give it a larger size, or remove data units"
            )
        self.reserved[purpose] = nbytes

    def snapshot(self) -> dict[str, Any]:
        """What a handle is made from."""
        return {
            **super().snapshot(),
            "store": self.store,
            "units": list(self.units),
            "used_nbytes": self.used_nbytes,
            "size_nbytes": self.store.nbytes_limit,
        }


class DataRecord(Record):
    """A data unit: its manifest, its replicas, and who writes to it or waits for it."""

    __slots__ = (
        "busy",
        "cached",
        "description",
        "is_written",
        "manifest",
        "placed",
        "replicas",
        "sealed",
        "seen",
        "to_fetch",
        "waiting",
        "wanted",
        "writers",
    )

    def __init__(self, id: str, owner: str, now: float, watchers: Iterable[str], description: dict[str, Any]) -> None:
        super().__init__(id, owner, Lifecycle(DATA_UNIT, now), watchers)
        self.description = description
        self.manifest: Manifest | None = None
        self.replicas: dict[str, None] = {}
        self.placed: dict[str, float] = {}  # every store that ever had a replica, and since when
        self.writers: set[str] = set()  # compute units that will write to it
        self.waiting: set[str] = set()  # compute units that wait for it
        self.sealed = False
        self.is_written = False  # whether a compute unit has written it, if nothing but an empty set
        self.wanted: int = description["replicas"]  # how many replicas it should have
        self.cached: set[Site] = set()  # sites of machines that have it in their cache
        self.seen: InputView | None = None  # what the placement has seen of it; None: nothing, or it has changed
        self.busy: dict[str, None] = {}  # stores to which it is on its way
        self.to_fetch: Mapping[str, Source] | None = None  # files to be brought by a worker, after the client's own

    @property
    def is_ready(self) -> bool:
        """Whether it can be read: it has a replica, nobody writes to it, and it is not waiting to be filled."""
        return (
            bool(self.replicas)
            and not self.writers
            and self.to_fetch is None
            and self.manifest is not None
            and (self.sealed or self.is_written or bool(self.manifest.files))
        )

    def snapshot(self) -> dict[str, Any]:
        """What a handle is made from."""
        return {
            **super().snapshot(),
            "description": self.description,
            "manifest": self.manifest,
            "replicas": list(self.replicas),
            "coming": list(self.busy),
            "writers": sorted(self.writers),
            "ready": self.is_ready,
        }


class Times(NamedTuple):
    """When a compute unit did what, in seconds since the epoch; None: not yet, or never."""

    submitted: float
    began: float | None  # its input was staged from then on
    ran: float | None
    collected: float | None  # its output was staged from then on; only programs tell
    ended: float | None


class UnitRecord(Record):
    """A compute unit."""

    __slots__ = (
        "attempt",
        "began",
        "bound",
        "brought",
        "bundled",
        "decision",
        "directory",
        "failure",
        "is_plain",
        "key",
        "missing",
        "nbytes",
        "order",
        "outputs",
        "pilot",
        "priority",
        "program",
        "ranks",
        "read",
        "ready",
        "recompute",
        "request",
        "result",
        "runnable",
        "staged_s",
        "takes_results",
        "warnings",
        "worker",
        "writes",
        "written_nbytes",
        "written_s",
    )

    def __init__(self, id: str, key: str, owner: str, now: float, watchers: Iterable[str], request: Request) -> None:
        super().__init__(id, owner, Lifecycle(COMPUTE_UNIT, now), watchers)
        self.key = key
        self.request = request
        self.priority = 0.0
        self.order = 0.0
        self.directory = id  # where it runs: absolute, or in the pilot's directory
        self.outputs: tuple[str, ...] = ()
        self.program: str | None = None  # the executable; None of a Python function
        self.missing = _NOTHING  # inputs that are not ready
        self.takes_results = False  # whether it takes those of other units as arguments
        self.ready: float | None = None  # when all that it reads and takes was there
        self.runnable = False  # whether Dask has parked it: all that it takes as arguments is there
        self.pilot: str | None = None
        self.worker: str | None = None
        self.attempt = 0
        self.began: float | None = None  # when its thread began with it, which staged first; known at its end
        self.bound = 0.0  # when it was bound, in seconds since the epoch
        self.is_plain = False  # whether it stages nothing but inputs and has not begun before: it may go in a bundle
        self.bundled = False  # whether it went to its worker in one
        self.ranks = 0  # of an MPI program; 0: it is none
        self.recompute = False  # whether Dask may run it again when its result was lost
        self.decision: Decision | None = None
        self.nbytes = (0, 0, 0)  # of input, by the distance they were read from
        self.staged_s = 0.0  # how long that took
        self.read: tuple[str, ...] = ()  # where each input came from: a store, or a pilot (its machine's cache)
        #: Of what was copied to its machine: data unit, store, bytes, seconds, and when that began.
        self.brought: tuple[tuple[str, str, int, float, float], ...] = ()
        self.writes: tuple[tuple[Site, Site], ...] = ()  # from where to where, as long as it does
        self.written_nbytes = 0  # to its outputs
        self.written_s = 0.0  # how long that took, with waiting for others that write there
        self.result: bytes | None = None
        self.failure: str | None = None  # the repr of what it raised, for when Dask has forgotten it
        self.warnings: tuple[str, ...] = ()

    def times(self) -> Times:
        """When it was submitted, and what its last attempt did when."""
        ended = self.life.since if self.life.state.is_final else None
        # The states tell only when it was given to its worker.
        is_known = ended is not None and self.began is not None
        began = ran = collected = None
        for entered, at in self.life.steps() if self.outputs or not is_known else ():
            if entered is State.Pending:  # what an attempt did that came back here counts as waiting
                began = ran = collected = None
            elif entered is State.Running and ran is None:
                began, ran = at if began is None else began, at
            elif entered is State.Staging:
                began, collected = at if began is None else began, at if ran is not None else None
        if ended is not None and self.began is not None:
            began = min(ended, self.began)
            ran = min(ended, began + self.staged_s)
        return Times(self.life.made, began, ran, collected, ended)

    def snapshot(self) -> dict[str, Any]:
        """What a handle is made from."""
        return {
            **super().snapshot(),
            "key": self.key,
            "kind": self.request.kind,
            "pilot": self.pilot,
            "attempt": self.attempt,
            "result": self.result,
            "nbytes": self.nbytes,
            "outputs": self.outputs,
            "directory": self.directory,
            "slots": self.request.slots,
            "warnings": self.warnings,
        }


#: Prefix of an id -> the table of the records.
_TABLES = {
    "pcs": "services",
    "pds": "services",
    "cds": "services",
    "pc": "pilots",
    "pd": "stores",
    "du": "data",
    "cu": "units",
}


@dataclass
class Records:
    """All records, by kind and id."""

    services: dict[str, ServiceRecord] = field(default_factory=dict)
    pilots: dict[str, PilotRecord] = field(default_factory=dict)
    stores: dict[str, StoreRecord] = field(default_factory=dict)
    data: dict[str, DataRecord] = field(default_factory=dict)
    units: dict[str, UnitRecord] = field(default_factory=dict)

    def find(self, id: str) -> Record:
        """The record of any object.

        Raises
        ------
        UnknownObjectError
        """
        name = _TABLES.get(id.partition("-")[0])
        record: Record | None = getattr(self, name).get(id) if name else None
        if record is None:
            raise UnknownObjectError(
                f"{id} is not known to this scheduler; it may have been removed, or belong to another scheduler", id=id
            )
        return record
