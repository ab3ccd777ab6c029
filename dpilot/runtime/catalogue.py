"""The stores and data units of one scheduler: which replicas there are, which are on their way, and who waits."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from distributed import Scheduler

from dpilot.data import Manifest, Source
from dpilot.errors import DataError, PilotError, StateError, StoreError, StoreFullError
from dpilot.placement import Matcher, Site, StoreView, choose_stores
from dpilot.runtime.places import Place
from dpilot.runtime.records import DataRecord, Record, Records, StoreRecord
from dpilot.runtime.transfers import Transfer, Transfers
from dpilot.states import State

__all__ = ["Catalogue", "Readers", "store_view"]

logger = logging.getLogger(__name__)


class Readers(Protocol):
    """Who must know what becomes of data units: the coordinator."""

    def advance(self, record: Record, state: State, at: float | None = None, **extra: Any) -> bool:
        """Change a record's state and tell those who follow it."""

    def tell(self, record: Record, state: State | None, extra: dict[str, Any]) -> None:
        """Tell those who follow a record."""

    def inputs_ready(self, units: Collection[str], du: str) -> None:
        """Compute units waited for a data unit that can be read now."""

    def inputs_lost(self, units: Collection[str], error: PilotError) -> None:
        """Compute units waited for a data unit that will never be complete."""


class Catalogue:
    """Stores, data units and their transfers.

    Parameters
    ----------
    scheduler : Scheduler
    records : Records
    matcher : Matcher
        Sees where the data units are.
    readers : Readers
    """

    def __init__(self, scheduler: Scheduler, records: Records, matcher: Matcher, readers: Readers) -> None:
        self._records = records
        self._matcher = matcher
        self._readers = readers
        self.transfers = Transfers(
            scheduler, records, matcher.policy.links, self.tell, self._transfer_made, self._transfer_failed
        )

    # ---------------------------------------------------------------- replicas

    def view(self, data: DataRecord) -> None:
        """Let the matcher see a data unit as it is now."""
        data.seen = None
        self._matcher.data_changed(data.id)

    def add_replica(self, data: DataRecord, pd: str, manifest: Manifest, is_counted: bool = False) -> None:
        """A store has a replica now, or another version of it. Those of other versions are replicas no more.

        `is_counted`: whether its bytes are in what is known to be used of the store.
        """
        if data.manifest is not None and not manifest.agrees_with(data.manifest):
            for other in [other for other in data.replicas if other != pd]:
                self.drop_replica(data, other)
                data.busy[other] = None  # to be made anew, from this one
        store = self._records.stores[pd]
        before = data.manifest.nbytes if data.manifest is not None and pd in data.replicas else 0
        if not is_counted:
            store.used_nbytes += manifest.nbytes - before
        store.units[data.id] = None
        if data.manifest != manifest:
            data.cached.clear()
        data.manifest = manifest
        data.replicas[pd] = None
        data.placed.setdefault(pd, time.time())
        self.view(data)

    def drop_replica(self, data: DataRecord, pd: str) -> None:
        """A store has no replica any more, or none to be trusted."""
        if pd in data.replicas:
            del data.replicas[pd]
            store = self._records.stores[pd]
            store.units.pop(data.id, None)
            store.used_nbytes -= data.manifest.nbytes if data.manifest is not None else 0
            self.view(data)
            self.tell(data)

    def tell(self, data: DataRecord, **extra: Any) -> None:
        """Tell those who follow a data unit where it is, and how far its transfers are."""
        moving = [(t.target, t.moved, t.nbytes, t.began) for t in self.transfers.of(data.id)]
        where = {"replicas": list(data.replicas), "coming": list(data.busy), "moving": moving}
        self._readers.tell(data, None, {**where, **extra})

    def check_ready(self, data: DataRecord) -> None:
        """If a data unit can be read now, let those go on that wait for it, and make the replicas that are wanted."""
        if data.life.state.is_final or not data.replicas:
            return
        self._readers.advance(data, State.Running)
        if not data.writers and data.to_fetch is None:
            self._replenish(data)
        self.tell(data)
        if data.is_ready:
            waiting, data.waiting = data.waiting, set()
            self._readers.inputs_ready(waiting, data.id)

    def lose(self, data: DataRecord, error: PilotError) -> None:
        """A data unit will never be complete: whoever waits for it fails with the reason."""
        if not data.life.state.is_final:
            data.error = error
            self._readers.advance(data, State.Failed, error=pickle.dumps(error))
        waiting, data.waiting = data.waiting, set()
        self._readers.inputs_lost(waiting, error)

    # ---------------------------------------------------------------- stores

    def stores_of(self, owner: str) -> list[StoreRecord]:
        """The stores that a compute data service (or the store or data service itself) may use."""
        record = self._records.find(owner)
        if isinstance(record, StoreRecord):
            return [record]
        owners = {owner, *getattr(record, "members", ())}
        return [s for s in self._records.stores.values() if s.owner in owners and not s.life.state.is_final]

    def targets(self, data: DataRecord) -> list[StoreRecord]:
        """The stores that units may write a data unit to: those that have it, or the one of its labels, or all."""
        if data.replicas:
            return [self._records.stores[pd] for pd in data.replicas]
        stores = [store for store in self.stores_of(data.owner) if store.free_nbytes != 0]
        wanted = Site(data.description["datacenter"], data.description["machine"])
        if wanted == Site():
            return stores
        return [self._records.stores[pd] for pd in choose_stores(map(store_view, stores), wanted, 1, 1)]

    def place(self, pd: str, asks: str | None = None) -> Place:
        """A store as it travels to a worker, or to a client."""
        return self.transfers.place(self._records.stores[pd], asks)

    def reserve(self, data: DataRecord, stores: Collection[str], nbytes: int) -> None:
        """Set room aside for a data unit, on all of the stores or on none."""
        done: list[str] = []
        try:
            for pd in stores:
                self._records.stores[pd].reserve(data.id, nbytes)
                done.append(pd)
        except StoreFullError:
            self.unreserve(data, done)
            raise

    def unreserve(self, data: DataRecord, stores: Collection[str]) -> None:
        """What was set aside is used by now, or not needed."""
        for pd in stores:
            self._records.stores[pd].reserved.pop(data.id, None)

    # ---------------------------------------------------------------- what is moved

    def upload(self, data: DataRecord, pd: str, nbytes: int, client: str) -> tuple[str, Place]:
        """A client brings files that only it sees. Returns the transfer's id, and where they go."""
        transfer = Transfer("upload", data.id, pd, nbytes)
        self.transfers.begin_upload(transfer, client)
        if data.life.state is State.Pending:
            self._readers.advance(data, State.Staging)
        return transfer.id, self.place(pd)

    def fetch(self, data: DataRecord, pd: str, sources: Mapping[str, Source]) -> None:
        """Have a worker bring files from anywhere."""
        data.to_fetch = sources
        nbytes = sum(source.nbytes or 0 for source in sources.values())
        self.transfers.submit(Transfer("fetch", data.id, pd, nbytes, sources))

    def replicate(self, data: DataRecord, pd: str, afresh: bool = False) -> None:
        """Have a replica made on another store; nothing to do if it is there, or on its way there."""
        if pd in data.replicas or pd in data.busy:
            return
        if data.manifest is None or not data.replicas:
            raise DataError(f"{data.id} has no replica yet to copy to {pd}; wait() for it first")
        self._copy(data, pd, afresh)
        data.busy[pd] = None
        self.tell(data)

    def _copy(self, data: DataRecord, pd: str, afresh: bool = False) -> None:
        assert data.manifest is not None
        self._records.stores[pd].reserve(data.id, data.manifest.nbytes)
        transfer = Transfer("copy", data.id, pd, data.manifest.nbytes)
        transfer.afresh = afresh
        self.transfers.submit(transfer)

    def verify(self, data: DataRecord, pd: str, repair: bool) -> None:
        """Have a replica read through, and, if wanted, made anew should it be damaged."""
        if any(t.kind == "verify" and t.target == pd for t in self.transfers.of(data.id)):
            return
        transfer = Transfer("verify", data.id, pd, data.manifest.nbytes if data.manifest else 0)
        transfer.repair = repair
        self.transfers.submit(transfer)

    def _replenish(self, data: DataRecord) -> None:
        """Make the copies that were to follow the first replica, and those that are wanted beyond them."""
        under_way = {t.target for t in self.transfers.of(data.id)}
        for pd in [pd for pd in data.busy if pd not in under_way]:
            try:
                self._copy(data, pd)
            except StoreFullError as error:
                del data.busy[pd]
                self.tell(data, error=pickle.dumps(error))
        there = {*data.replicas, *data.busy}
        assert data.manifest is not None
        if data.manifest.files and len(there) < data.wanted:
            wanted = Site(data.description["datacenter"], data.description["machine"])
            views = [store_view(store) for store in self.stores_of(data.owner)]
            for pd in choose_stores(views, wanted, data.manifest.nbytes, data.wanted, there):
                try:
                    self.replicate(data, pd)
                except StoreFullError as error:
                    self.tell(data, error=pickle.dumps(error))

    def _transfer_made(self, transfer: Transfer, value: Any) -> None:
        data = self._records.data.get(transfer.du)
        if data is None:
            return
        if transfer.kind == "verify":
            self._verified(data, transfer, value)
            return
        if transfer.kind == "fetch":
            data.to_fetch = None
        elif transfer.kind == "upload" and data.to_fetch is not None:
            self.fetch(data, transfer.target, data.to_fetch)
        if transfer.kind == "copy" and data.manifest is not None and not value.agrees_with(data.manifest):
            self._copy(data, transfer.target)  # files were added or removed meanwhile
            return
        self.unreserve(data, [transfer.target])
        data.busy.pop(transfer.target, None)
        if data.life.state.is_final:
            self.tell(data)
            return
        self.add_replica(data, transfer.target, value)
        self.check_ready(data)

    def _transfer_failed(self, transfer: Transfer, error: PilotError) -> None:
        data = self._records.data.get(transfer.du)
        if data is None:
            return
        if transfer.kind == "verify":
            self._verified(data, transfer, [str(error)])
            return
        self.unreserve(data, [transfer.target])
        data.busy.pop(transfer.target, None)
        sources, data.to_fetch = data.to_fetch, None
        if not data.replicas and transfer.kind in ("fetch", "upload"):
            if not (data.busy and isinstance(error, StoreError)):
                self.unreserve(data, data.busy)
                data.busy.clear()
                self.lose(data, error)
            elif transfer.kind == "fetch":
                assert sources is not None
                self.fetch(data, next(iter(data.busy)), sources)
            else:
                data.to_fetch = sources  # the client goes on with the next store
        self.tell(data, error=pickle.dumps(error))

    def _verified(self, data: DataRecord, transfer: Transfer, problems: list[str]) -> None:
        pd = transfer.target
        self.tell(data, verified={pd: problems})
        if not problems or pd not in data.replicas:
            return
        logger.warning("the replica of %s on %s is damaged: %s", data.id, pd, "; ".join(problems[:3]))
        if not transfer.repair:
            return
        if len(data.replicas) == 1:
            error = DataError(
                f"the only replica of {data.id}, on {pd}, is damaged: {'; '.join(problems[:3])}; there is no other one "
                "to repair it from: remove the files that are damaged and add them again"
            )
            self.tell(data, error=pickle.dumps(error))
            return
        self.drop_replica(data, pd)
        self.replicate(data, pd, afresh=True)

    def cancel(self, data: DataRecord) -> None:
        """Stop the transfers of a data unit."""
        self.transfers.cancel(data.id)
        self.unreserve(data, data.busy)
        data.busy.clear()
        if data.replicas or data.life.state.is_final:
            self.tell(data)
        else:
            self.remove(data, DataError(f"{data.id} was canceled"))

    def remove(self, data: DataRecord, error: DataError) -> None:
        """A data unit is gone."""
        if not data.life.state.is_final:
            data.error = error
            self._readers.advance(data, State.Canceled)
        self.lose(data, error)

    def end_store(self, store: StoreRecord) -> None:
        """A store is used no more; what is in it stays there."""
        for du in list(store.units):
            data = self._records.data.get(du)
            if data is not None:
                self.drop_replica(data, store.id)
                data.wanted = max(1, data.wanted - 1)

    def adopt(self, pd: str, owner: str, manifests: Collection[Manifest], client: str, now: float) -> list[str]:
        """Take in data units that were found in a store; returns the ids of those that are of use."""
        found = []
        for manifest in manifests:
            data = self._records.data.get(manifest.du)
            if data is None:
                description = {"name": None, "replicas": 1, "datacenter": None, "machine": None}
                data = DataRecord(manifest.du, owner, now, (client,), description)
                data.is_written = True
                self._records.data[manifest.du] = data
                self._readers.advance(data, State.Pending)
            elif data.life.state.is_final or (
                data.replicas and data.manifest is not None and not manifest.agrees_with(data.manifest)
            ):
                logger.warning("%s has another version of %s than is known; it is left alone", pd, manifest.du)
                continue
            self.add_replica(data, pd, manifest, is_counted=self._records.stores[pd].store.nbytes_limit is not None)
            self.check_ready(data)
            found.append(manifest.du)
        return found

    def expect_open(self, data: DataRecord) -> None:
        """Raise if no files may be added to a data unit, or removed from it."""
        if data.life.state.is_final:
            raise StateError(f"{data.id} is {data.life.state}; make a new data unit")
        if data.sealed:
            raise StateError(f"{data.id} is sealed: its files stay as they are; make a new data unit")


def store_view(store: StoreRecord) -> StoreView:
    """What the placement sees of a store."""
    return StoreView(store.id, store.site, store.free_nbytes)
