"""What clients and workers may ask of the scheduler plugin about stores and data units."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Collection, Mapping
from typing import Any

from dpilot.data import Manifest, Source, Store
from dpilot.errors import DataError
from dpilot.placement import Site, choose_stores
from dpilot.runtime import adapter
from dpilot.runtime.catalogue import store_view
from dpilot.runtime.coordinator import Coordinator
from dpilot.runtime.jobs import Open
from dpilot.runtime.places import Place
from dpilot.runtime.records import DataRecord, StoreRecord
from dpilot.states import State
from dpilot.urls import new_id

__all__ = ["DataCalls"]

#: What a client that uploads is to do: the transfer's id, where to, and how many bytes it may put there.
Upload = tuple[str, Place, int]


class DataCalls(Coordinator):
    """One method ``call_<name>`` for each call."""

    # ---------------------------------------------------------------- stores

    async def call_open_store(self, store: Store) -> tuple[Store, int] | None:
        """Have a worker on the store's own machine open it; None if there is no such worker."""
        site = Site(store.datacenter, store.machine)
        workers = [
            worker
            for pilot in self.records.pilots.values()
            if pilot.site.machine == site.machine and site.missed_by(pilot.site) is None
            for worker in pilot.workers
            if adapter.is_running(self.scheduler, worker)
        ]
        if not workers:
            return None
        opened: tuple[Store, int] = await self.have_done(min(workers), Open(store))
        return opened

    def call_add_store(self, id: str, owner: str, client: str, store: Store, used_nbytes: int) -> None:
        """A store, which has been opened."""
        record = StoreRecord(id, owner, time.time(), {client}, store, client)
        record.used_nbytes = used_nbytes
        self.records.stores[id] = record
        self.advance(record, State.Running)
        for worker in self._pilot_at:
            self._let_reach(worker, record)

    def call_end_store(self, id: str) -> None:
        """A store is used no more; what is in it stays there."""
        store = self._store(id)
        self.advance(store, State.Canceled)
        self.catalogue.end_store(store)

    def call_place(self, pd: str) -> Place:
        """A store, and a worker that serves it to those who do not see it."""
        self._store(pd)
        return self.catalogue.place(pd)

    def call_adopt(self, pd: str, manifests: Collection[Manifest], client: str) -> list[str]:
        """Data units were found in a store that this scheduler did not know of."""
        return self.catalogue.adopt(pd, self._store(pd).owner, manifests, client, time.time())

    # ---------------------------------------------------------------- new data units

    def call_add_data(
        self,
        id: str,
        owner: str,
        client: str,
        description: dict[str, Any],
        nbytes: int = 0,
        sources: Mapping[str, Source] | None = None,
        stores: Collection[str] | None = None,
        is_output: bool = False,
    ) -> tuple[list[str], Upload | None]:
        """A new data unit, with room set aside on each of the stores on which it is to be put.

        Parameters
        ----------
        nbytes : int
            Of the files that the client will bring, because only it sees them.
        sources : mapping, optional
            Files that a worker is to bring.
        stores : collection of str, optional
            On these; none given: on those that its owner's stores and its labels suggest.
        is_output : bool
            Whether a compute unit will write it: its store is chosen then.

        Returns
        -------
        list of str
            The stores.
        tuple or None
            What the client is to upload, and where to.
        """
        total = nbytes + sum(source.nbytes or 0 for source in (sources or {}).values())
        if is_output:
            stores = []
        elif stores is None:
            wanted = Site(description["datacenter"], description["machine"])
            views = [store_view(store) for store in self.catalogue.stores_of(owner)]
            stores = choose_stores(views, wanted, total, description["replicas"])
        record = DataRecord(id, owner, time.time(), {client}, description)
        self.catalogue.reserve(record, stores, total)
        record.busy = dict.fromkeys(stores)
        self.records.data[id] = record
        self.catalogue.view(record)
        self.advance(record, State.Pending)
        upload: Upload | None = None
        if stores:
            first = next(iter(stores))
            if sources and not nbytes:
                self.catalogue.fetch(record, first, sources)
            else:
                record.to_fetch = sources or None
                upload = self._upload(record, first, nbytes, client)
        return list(stores), upload

    def call_register(
        self, id: str, owner: str, client: str, description: dict[str, Any], store: Store, manifest: Manifest
    ) -> None:
        """A new data unit over files that lie somewhere already: they are its first replica."""
        pd = new_id("pd")
        record = DataRecord(id, owner, time.time(), {client}, description)
        place = StoreRecord(pd, id, time.time(), set(), store, client)
        self.records.stores[pd] = place
        self.advance(place, State.Running)
        for worker in self._pilot_at:
            self._let_reach(worker, place)
        self.records.data[id] = record
        self.advance(record, State.Pending)
        self.catalogue.add_replica(record, pd, manifest)
        self.catalogue.check_ready(record)

    def _upload(self, data: DataRecord, pd: str, nbytes: int, client: str) -> Upload:
        transfer, place = self.catalogue.upload(data, pd, nbytes, client)
        return transfer, place, self._store(pd).reserved[data.id]

    def call_uploaded(self, id: str, transfer: str, good: bool, value: Any, nbytes: int, client: str) -> Upload | None:
        """A client's upload has ended, with a manifest or an error. Returns where it is to try next, if it should."""
        data = self._data(id)
        self.catalogue.transfers.finished(transfer, good, value, nbytes)
        if good or data.life.state.is_final or data.replicas or not data.busy:
            return None
        return self._upload(data, next(iter(data.busy)), nbytes, client)

    def call_moved(self, transfer: str, nbytes: int) -> None:
        """A client tells how far its transfer is."""
        self.catalogue.transfers.moved(transfer, nbytes)

    def call_job_ended(self, job: str, good: bool, value: Any, nbytes: int) -> None:
        """A client has carried out a job."""
        self.job_ended(job, good, value, nbytes)

    # ---------------------------------------------------------------- files

    def call_add_files(self, id: str, client: str, nbytes: int, sources: Mapping[str, Source] | None) -> Upload | None:
        """Files are to be added to a data unit; its replicas follow one that has them.

        Returns what the client is to upload, and where to; None: a worker brings all of them.
        """
        data = self._data(id)
        self.catalogue.expect_open(data)
        if not data.replicas:
            raise DataError(f"{id} has no replica yet to add files to; wait() for it first")
        if data.busy:
            raise DataError(f"{id} is on its way to {', '.join(data.busy)}; wait() until its replicas are there")
        total = nbytes + sum(source.nbytes or 0 for source in (sources or {}).values())
        self.catalogue.reserve(data, data.replicas, total)
        first = next(iter(data.replicas))
        data.busy[first] = None
        if sources and not nbytes:
            self.catalogue.fetch(data, first, sources)
            return None
        data.to_fetch = sources or None
        return self._upload(data, first, nbytes, client)

    def call_changed(self, id: str, manifest: Manifest) -> None:
        """Files were removed from every replica of a data unit."""
        data = self._data(id)
        for pd in data.replicas:
            self._store(pd).used_nbytes += manifest.nbytes - (data.manifest.nbytes if data.manifest else 0)
        data.manifest = manifest
        data.cached.clear()
        self.catalogue.view(data)
        self.catalogue.check_ready(data)

    def call_expect_open(self, id: str) -> None:
        """Raise if a data unit's files may not be changed."""
        self.catalogue.expect_open(self._data(id))

    def call_seal(self, id: str) -> None:
        """A data unit is complete as it is, even if empty."""
        data = self._data(id)
        data.sealed = True
        self.catalogue.check_ready(data)

    # ---------------------------------------------------------------- replicas

    def call_replicas(self, id: str) -> list[tuple[str, Place]]:
        """The stores that have a replica of a data unit, and how they are reached."""
        return [(pd, self.catalogue.place(pd)) for pd in self._data(id).replicas]

    def call_replicate(self, id: str, pd: str) -> None:
        """Have a replica made on another store, if there is none and none on its way."""
        self._store(pd)
        self.catalogue.replicate(self._data(id), pd)

    def call_remove_replica(self, id: str, pd: str, force: bool) -> Place:
        """A replica is no longer to be used, and its files may be deleted; with the last one, the data unit is gone.

        Returns how its store is reached.
        """
        data = self._data(id)
        if pd not in data.replicas:
            raise DataError(f"{id} has no replica on {pd}; its stores: {', '.join(data.replicas) or 'none'}")
        if len(data.replicas) == 1 and not force:
            raise DataError(
                f"the replica of {id} on {pd} is its last one: its files would be gone; give force=True to delete them"
            )
        data.wanted = max(1, min(data.wanted, len(data.replicas) - 1))
        self.catalogue.drop_replica(data, pd)
        if not data.replicas:
            self.catalogue.remove(data, DataError(f"data unit {id} was removed from its last store"))
        return self.catalogue.place(pd)

    def call_cancel_data(self, id: str) -> None:
        """Stop the transfers of a data unit; without a replica it is Canceled."""
        self.catalogue.cancel(self._data(id))

    def call_verify(self, id: str, repair: bool) -> list[str]:
        """Have all replicas of a data unit read through; events tell what was found. Returns the stores."""
        data = self._data(id)
        if data.manifest is None or not data.replicas:
            raise DataError(f"{id} has no replica to verify; wait() for it first")
        for pd in data.replicas:
            self.catalogue.verify(data, pd, repair)
        return list(data.replicas)

    def call_transfers(self, owners: Collection[str]) -> list[dict[str, Any]]:
        """The transfers of the data units of these services, as rows; of all for none."""
        known = self.records.data
        rows = []
        for transfer in self.catalogue.transfers:
            data = known.get(transfer.du)
            if not owners or (data is not None and data.owner in owners):
                rows.append(transfer.row())
        return rows

    # ---------------------------------------------------------------- jobs

    async def have_done(self, worker: str, job: Any) -> Any:
        """Have a worker carry out a job, and give what it gave."""
        id = new_id("jb")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._jobs[id] = worker, answer
        adapter.order(self.scheduler, worker, {"what": "carry", "job": id, "pickled": pickle.dumps(job)})
        return await answer
