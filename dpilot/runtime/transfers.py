"""The scheduler's queue of transfers: what is to be moved, who moves it, and how many at once.

A transfer makes one replica of one data unit (or reads one through, to verify it). It waits until the stores and the
link between them have room for it, is then given as a job to the worker that is nearest to its target, or to a client
where no worker can do it, and goes to the next source or the next worker where that fails. Uploads of a client's own
files are listed here, too, so that all transfers are seen in one place, but it is the client that begins and ends them.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from distributed import Scheduler

from dpilot import config
from dpilot.data import Manifest, Source
from dpilot.errors import ChecksumError, DataError, PilotError, StateError, StoreError, StoreFullError
from dpilot.placement import Links, Site
from dpilot.runtime import adapter
from dpilot.runtime.jobs import Copy, Fetch, Job, Verify
from dpilot.runtime.places import Place
from dpilot.runtime.records import DataRecord, Records, StoreRecord
from dpilot.urls import new_id

__all__ = ["Transfer", "Transfers"]

#: How many of the ended transfers are remembered, to be shown.
_REMEMBERED = 10_000
#: How far into the queue of one store it is looked for a transfer whose links have room.
_LOOKED_AT = 32


class Transfer:
    """One transfer.

    Parameters
    ----------
    kind : str
        ``upload`` (by a client, of files that only it sees), ``fetch`` (of files from anywhere, into a store),
        ``copy`` (from another replica) or ``verify``.
    du, target : str
        The data unit, and the store (of ``verify``: whose replica is read).
    nbytes : int
        How many there will be, as far as known.
    sources : mapping, optional
        Of ``fetch``: what is to be brought.
    """

    __slots__ = (
        "afresh",
        "began",
        "client",
        "du",
        "ended",
        "error",
        "id",
        "kind",
        "losses",
        "moved",
        "mover",
        "nbytes",
        "predicted_s",
        "repair",
        "source",
        "sources",
        "submitted",
        "target",
        "tried",
    )

    def __init__(self, kind: str, du: str, target: str, nbytes: int, sources: Mapping[str, Source] | None = None):
        self.id = new_id("tr")
        self.kind = kind
        self.du = du
        self.target = target
        self.nbytes = nbytes
        self.sources = sources
        self.source: str | None = None  # the store that is read
        self.mover: str | None = None  # address of the worker, or id of the client
        self.client = False  # whether it is a client
        self.moved = 0
        self.predicted_s: float | None = None
        self.submitted = time.time()
        self.began: float | None = None
        self.ended: float | None = None
        self.error: PilotError | None = None
        self.tried: dict[str, PilotError] = {}  # sources that failed
        self.losses = 0  # movers that died
        self.afresh = False  # of a copy: whether what is there is not to be trusted
        self.repair = False  # of verify: whether a damaged replica is to be made anew

    def row(self) -> dict[str, Any]:
        """What users see of it."""
        names = ("id", "kind", "du", "source", "target", "nbytes", "moved", "mover", "predicted_s")
        times = ("submitted", "began", "ended")
        error = str(self.error) if self.error else None
        return {name: getattr(self, name) for name in (*names, *times)} | {"error": error}


class Transfers:
    """The queue.

    Parameters
    ----------
    scheduler : Scheduler
    records : Records
    links : Links
        Tells which source is nearest, and how long a transfer should take.
    changed : callable
        Called with a data unit when one of its transfers has begun, or made progress.
    made, failed : callable
        Called with a transfer that has ended and what it gave, or why it failed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        records: Records,
        links: Links,
        changed: Callable[[DataRecord], None],
        made: Callable[[Transfer, Any], None],
        failed: Callable[[Transfer, PilotError], None],
    ) -> None:
        self._scheduler = scheduler
        self._records = records
        self._links = links
        self._changed = changed
        self._made = made
        self._failed = failed
        self._waiting: dict[str, deque[Transfer]] = {}  # by target
        self._moving: dict[str, Transfer] = {}
        self._of: dict[str, dict[str, Transfer]] = {}  # by data unit
        self._at_store: Counter[str] = Counter()
        self._on_link: Counter[tuple[Site, Site]] = Counter()
        self._by_mover: Counter[str] = Counter()
        self._served: Counter[str] = Counter()  # how often a worker was named to serve a store to others
        self._pump_is_due = False
        self._per_store = int(config.get("data.transfers-per-store"))
        self._per_link = int(config.get("data.transfers-per-link"))
        self._losses = int(config.get("data.retries"))
        self._delay_s = config.seconds("data.retry-delay")
        self._loop = asyncio.get_running_loop()
        self.ended: deque[Transfer] = deque(maxlen=_REMEMBERED)

    # ---------------------------------------------------------------- in and out

    def submit(self, transfer: Transfer) -> None:
        """Take a transfer into the queue."""
        self._of.setdefault(transfer.du, {})[transfer.id] = transfer
        self._waiting.setdefault(transfer.target, deque()).append(transfer)
        self.pump()

    def begin_upload(self, transfer: Transfer, client: str) -> None:
        """A client begins with an upload of its own."""
        self._of.setdefault(transfer.du, {})[transfer.id] = transfer
        transfer.client = True
        self._begin(transfer, client)

    def of(self, du: str) -> list[Transfer]:
        """The transfers of a data unit that have not ended."""
        return list(self._of.get(du, {}).values())

    def __iter__(self) -> Iterator[Transfer]:
        """All transfers: those that have ended, as far as they are remembered, move, or wait."""
        return chain(self.ended, self._moving.values(), chain.from_iterable(self._waiting.values()))

    @property
    def moving(self) -> Collection[Transfer]:
        """Those that are under way."""
        return self._moving.values()

    @property
    def n_waiting(self) -> int:
        """How many wait for room."""
        return sum(map(len, self._waiting.values()))

    def moved(self, id: str, nbytes: int) -> None:
        """The mover of a transfer tells how far it is."""
        transfer = self._moving.get(id)
        if transfer is not None:
            transfer.moved = nbytes
            self._tell(transfer)

    def finished(self, id: str, good: bool, value: Any, nbytes: int = 0) -> None:
        """The mover of a transfer tells that it has ended, and what it gave or why it failed."""
        transfer = self._moving.get(id)
        if transfer is None:  # canceled meanwhile
            return
        transfer.moved = nbytes
        self._let_go(transfer)
        if good:
            self._observe(transfer)
            self._end(transfer, None)
            self._made(transfer, value)
        else:
            self._next(transfer, value)

    def mover_gone(self, mover: str) -> None:
        """A worker or client is gone, and what it was moving with it."""
        for transfer in [t for t in self._moving.values() if t.mover == mover]:
            self._let_go(transfer)
            if transfer.client and transfer.kind == "upload":
                self._fail(transfer, DataError(f"the client that uploaded {transfer.du} is gone"))
            elif transfer.losses >= self._losses:
                self._fail(transfer, DataError(f"{transfer.losses + 1} workers died while they moved {transfer.du}"))
            else:
                self._retry(transfer)

    def cancel(self, du: str, target: str | None = None) -> list[Transfer]:
        """Stop the transfers of a data unit, or only those to one store; returns them."""
        found = [t for t in self.of(du) if target in (None, t.target)]
        for transfer in found:
            if transfer.id in self._moving:
                self._order(transfer, {"what": "drop", "job": transfer.id})
                self._let_go(transfer)
            elif transfer in self._waiting.get(transfer.target, ()):
                self._waiting[transfer.target].remove(transfer)
            self._end(transfer, StateError(f"the transfer of {du} to {transfer.target} was canceled"))
        return found

    # ---------------------------------------------------------------- the queue

    def pump(self) -> None:
        """Begin, at the end of this turn of the loop, with what can begin."""
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        for target, queue in list(self._waiting.items()):
            for transfer in list(queue)[:_LOOKED_AT]:
                try:
                    job = self._assign(transfer)
                except PilotError as error:
                    queue.remove(transfer)
                    self._fail(transfer, error)
                    continue
                if job is not None:
                    queue.remove(transfer)
                    mover = transfer.mover
                    assert mover is not None
                    self._begin(transfer, mover)
                    self._order(transfer, {"what": "carry", "job": transfer.id, "pickled": pickle.dumps(job)})
            if not queue:
                self._waiting.pop(target, None)

    def _assign(self, transfer: Transfer) -> Job | None:
        """Choose source and mover of a transfer; None if it must wait."""
        data, target = self._records.data.get(transfer.du), self._records.stores.get(transfer.target)
        if data is None or target is None or target.life.state.is_final:
            raise StateError(f"{transfer.du} cannot be moved to {transfer.target}: one of them is gone")
        if not self._has_room(target):
            return None
        if transfer.kind == "fetch":
            assert transfer.sources is not None
            if not self._choose_mover(transfer, data, [target]):
                return None
            return Fetch(transfer.du, transfer.sources, self.place(target, transfer.mover), transfer.nbytes or None)
        assert data.manifest is not None
        if transfer.kind == "verify":
            if not self._choose_mover(transfer, data, [target]):
                return None
            return Verify(data.manifest, self.place(target, transfer.mover))
        return self._assign_copy(transfer, data, data.manifest, target)

    def _assign_copy(self, transfer: Transfer, data: DataRecord, manifest: Manifest, target: StoreRecord) -> Job | None:
        sources = [self._records.stores[pd] for pd in data.replicas if pd not in transfer.tried]
        if not sources:
            raise next(iter(transfer.tried.values()), None) or DataError(f"{data.id} has no replica to copy")
        sources.sort(key=lambda store: (self._links.rank(store.site, target.site), store.id))
        for source in sources:
            is_open = self._has_room(source) and self._on_link[source.site, target.site] < self._per_link
            if is_open and self._choose_mover(transfer, data, [target, source]):
                transfer.source = source.id
                transfer.predicted_s = self._links.transfer_s(
                    source.site, target.site, manifest.nbytes, len(manifest.files)
                )
                room = target.reserved.get(data.id)
                places = self.place(source, transfer.mover), self.place(target, transfer.mover)
                return Copy(manifest, *places, room, transfer.afresh)
        return None

    def _has_room(self, store: StoreRecord) -> bool:
        return self._at_store[store.id] < self._per_store

    def place(self, store: StoreRecord, asks: str | None = None) -> Place:
        """A store, with a worker that serves it where it is local to a machine: the one that asks, if it sees it."""
        if asks in store.hosts:
            return Place(store.store, asks)
        host = min(store.hosts, key=lambda worker: (self._served[worker], worker), default=None)
        if host is not None:
            self._served[host] += 1  # one after the other
        return Place(store.store, host)

    def _choose_mover(self, transfer: Transfer, data: DataRecord, stores: list[StoreRecord]) -> bool:
        """Choose the worker nearest to the first of the stores, then to the others; or a client if there is none."""
        unseen = [store for store in stores if store.is_local and not store.hosts]
        if any(store.asked for store in unseen):
            return False  # workers were asked whether they see it, and will soon say
        if not unseen:
            best = min(self._ranked(stores), default=None)
            if best is not None:
                transfer.mover, transfer.client = best[-1], False
                return True
        # No worker can. The client that opened a local store sees it; where all can be reached, any client will do.
        able = set.intersection(*({store.opener} for store in unseen)) if unseen else data.watchers
        transfer.mover = min((c for c in able if adapter.is_connected(self._scheduler, c)), default=None)
        transfer.client = True
        return transfer.mover is not None

    def _ranked(self, stores: list[StoreRecord]) -> Iterable[tuple[Any, ...]]:
        for pilot in self._records.pilots.values():
            far = [1 + pilot.site.distance(store.site) for store in stores]
            for worker in pilot.workers:
                if adapter.is_running(self._scheduler, worker):
                    seen = [0 if worker in s.hosts else d for s, d in zip(stores, far, strict=True)]
                    yield (*seen, self._by_mover[worker], worker)

    # ---------------------------------------------------------------- one transfer's steps

    def _begin(self, transfer: Transfer, mover: str) -> None:
        transfer.mover, transfer.began, transfer.moved = mover, time.time(), 0
        self._moving[transfer.id] = transfer
        self._count(transfer, 1)
        self._tell(transfer)

    def _let_go(self, transfer: Transfer) -> None:
        del self._moving[transfer.id]
        self._count(transfer, -1)
        self.pump()

    def _count(self, transfer: Transfer, one: int) -> None:
        counts: list[tuple[Counter[Any], Any]] = [(self._at_store, transfer.target), (self._by_mover, transfer.mover)]
        stores = self._records.stores
        if transfer.source is not None:
            counts.append((self._at_store, transfer.source))
            counts.append((self._on_link, (stores[transfer.source].site, stores[transfer.target].site)))
        for counter, key in counts:
            counter[key] += one
            if not counter[key]:
                del counter[key]

    def _order(self, transfer: Transfer, message: dict[str, Any]) -> None:
        assert transfer.mover is not None
        if transfer.client:
            adapter.send_event(self._scheduler, transfer.mover, [(None, None, time.time(), message)])
        elif transfer.mover in self._scheduler.workers:
            adapter.order(self._scheduler, transfer.mover, message)

    def _next(self, transfer: Transfer, error: PilotError) -> None:
        """One way to make a transfer has failed: try the next source, if it was the source's fault."""
        is_copy = transfer.kind == "copy"
        # Either the worker that served the source or the target died, or a server is away; or a mover that was given up
        # for lost has worked on in the same place.
        may_pass = isinstance(error, StoreError) and ((error.transient and is_copy) or transfer.losses > 0)
        is_full = isinstance(error, StoreFullError)
        if may_pass and not is_full and transfer.losses < self._losses:
            self._retry(transfer)
            return
        if is_full or not is_copy:
            self._fail(transfer, error)
            return
        assert transfer.source is not None
        transfer.tried[transfer.source] = error
        if isinstance(error, ChecksumError):
            data = self._records.data.get(transfer.du)
            if data is not None and transfer.source in data.replicas:
                self.submit(Transfer("verify", transfer.du, transfer.source, transfer.nbytes))
        transfer.source = None
        self.submit(transfer)

    def _retry(self, transfer: Transfer) -> None:
        """Begin a transfer anew, but not at once: who is lost may be about to end, and at work until then."""
        transfer.losses += 1
        self._loop.call_later(self._delay_s * 2 ** (transfer.losses - 1), self._resume, transfer)

    def _resume(self, transfer: Transfer) -> None:
        if transfer.ended is None:
            transfer.source = None
            self.submit(transfer)

    def _fail(self, transfer: Transfer, error: PilotError) -> None:
        self._end(transfer, error)
        self._failed(transfer, error)

    def _end(self, transfer: Transfer, error: PilotError | None) -> None:
        transfer.ended, transfer.error, transfer.sources = time.time(), error, None
        self.ended.append(transfer)
        own = self._of[transfer.du]
        del own[transfer.id]
        if not own:
            del self._of[transfer.du]

    def _observe(self, transfer: Transfer) -> None:
        if transfer.source is not None and transfer.began is not None and transfer.moved:
            stores = self._records.stores
            source, target = stores[transfer.source].site, stores[transfer.target].site
            data = self._records.data.get(transfer.du)
            n_files = len(data.manifest.files) if data is not None and data.manifest is not None else 1
            self._links.observe(source, target, transfer.moved, time.time() - transfer.began, n_files)

    def _tell(self, transfer: Transfer) -> None:
        data = self._records.data.get(transfer.du)
        if data is not None:
            self._changed(data)
