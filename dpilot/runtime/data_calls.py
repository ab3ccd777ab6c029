"""What clients and workers may ask of the scheduler plugin about stores and data units."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dpilot.data import Manifest, Source, Store
from dpilot.errors import DataError, PilotError
from dpilot.placement import Site, choose_stores
from dpilot.runtime import adapter
from dpilot.runtime.catalogue import store_view
from dpilot.runtime.jobs import Open, Remove
from dpilot.runtime.places import Place
from dpilot.runtime.pools import Pools
from dpilot.runtime.records import DataRecord, StoreRecord
from dpilot.states import State
from dpilot.urls import new_id

__all__ = ["DataCalls"]

#: What a client that uploads is to do: the transfer's id, where to, and how many bytes it may put there.
Upload = tuple[str, Place, int]


class DataCalls(Pools):
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
        record = StoreRecord(id, owner, time.time(), (client,), store, client)
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
        for worker in store.hosts:
            adapter.order(self.scheduler, worker, {"what": "forget", "id": id})

    def call_place(self, pd: str) -> Place:
        """A store, and a worker that serves it to those who do not see it."""
        self._store(pd)
        return self.catalogue.place(pd)

    def call_host(self, store: str) -> tuple[str | None, bool]:
        """A worker that sees the machine-local store of that id (its marker's), and serves it to others.

        Returns also whether there are workers that have not said yet whether they see it.
        """
        records = [record for record in self.records.stores.values() if record.store.store_id == store]
        hosts = (worker for record in records for worker in record.hosts)
        return min(hosts, default=None), any(record.asked for record in records)

    def call_adopt(self, pd: str, manifests: Collection[Manifest], client: str) -> list[str]:
        """Data units were found in a store that this scheduler did not know of."""
        return self.catalogue.adopt(pd, self._store(pd).owner, manifests, client, time.time())

    # ---------------------------------------------------------------- new data units

    def call_add_data(
        self, owner: str, client: str, requests: Iterable[dict[str, Any]]
    ) -> list[tuple[list[str], Upload | None]]:
        """New data units, all or none; see :meth:`_add_data` for what each request says, and for the answers."""
        answers = []
        try:
            for request in requests:
                answers.append(self._add_data(owner, client, **request))
        except PilotError:
            for _, request in zip(answers, requests, strict=False):
                self.catalogue.cancel(self.records.data[request["id"]])
            raise
        return answers

    def _add_data(
        self,
        owner: str,
        client: str,
        id: str,
        description: dict[str, Any],
        n_own: int = 0,
        nbytes: int = 0,
        sources: Mapping[str, Source] | None = None,
        stores: Collection[str] | None = None,
        is_output: bool = False,
        registered: tuple[Store, Manifest] | None = None,
    ) -> tuple[list[str], Upload | None]:
        """A new data unit, with room set aside on each of the stores on which it is to be put.

        Parameters
        ----------
        n_own, nbytes : int
            Of the files that the client will bring, because only it sees them: how many, and how many bytes.
        sources : mapping, optional
            Files that a worker is to bring.
        stores : collection of str, optional
            On these; none given: on those that its owner's stores and its labels suggest.
        is_output : bool
            Whether a compute unit will write it: its store is chosen then.
        registered : tuple of Store and Manifest, optional
            It has these files, where they lie.

        Returns
        -------
        list of str
            The stores.
        tuple or None
            What the client is to upload, and where to.
        """
        record = DataRecord(id, owner, time.time(), (client,), description)
        total = nbytes + sum(source.nbytes or 0 for source in (sources or {}).values())
        if is_output or registered:
            stores = []
        elif stores is None:
            wanted = Site(description["datacenter"], description["machine"])
            views = [store_view(store) for store in self.catalogue.stores_of(owner)]
            stores = choose_stores(views, wanted, total, description["replicas"])
            if not stores and (n_own or sources):
                raise DataError(
                    f"there is no store to put {n_own + len(sources or ())} files on; create a pilot with a "
                    "PilotDataService and add that to the ComputeDataService first"
                )
        self.catalogue.reserve(record, stores, total)
        record.busy = dict.fromkeys(stores)
        self.records.data[id] = record
        self.catalogue.view(record)
        self.advance(record, State.Pending)
        upload: Upload | None = None
        if registered:
            self._register(record, client, *registered)
        elif stores:
            first = next(iter(stores))
            if sources and not n_own:
                self.catalogue.fetch(record, first, sources)
            else:
                record.to_fetch = sources or None
                upload = self._upload(record, first, nbytes, client)
        return list(stores), upload

    def _register(self, data: DataRecord, client: str, store: Store, manifest: Manifest) -> None:
        """Files that lie somewhere already are a data unit's first replica."""
        place = StoreRecord(new_id("pd"), data.id, time.time(), (), store, client)
        self.records.stores[place.id] = place
        self.advance(place, State.Running)
        for worker in self._pilot_at:
            self._let_reach(worker, place)
        self.catalogue.add_replica(data, place.id, manifest)
        self.catalogue.check_ready(data)

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

    def call_add_files(
        self, id: str, client: str, n_own: int, nbytes: int, sources: Mapping[str, Source] | None
    ) -> Upload | None:
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
        if sources and not n_own:
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

    def call_locate(self, id: str, datacenter: str | None, machine: str | None) -> tuple[Manifest, list[Place]]:
        """The manifest of a data unit, and the stores that have it: those nearest to these labels first."""
        data = self._data(id)
        if data.manifest is None or not data.replicas:
            raise DataError(f"{id} is {data.life.state} and has no replica yet to be read; wait() for it first")
        here, links = Site(datacenter, machine), self.matcher.policy.links
        stores = sorted(data.replicas, key=lambda pd: (links.rank(self._store(pd).site, here), pd))
        return data.manifest, [self.catalogue.place(pd) for pd in stores]

    def call_readable(self) -> list[tuple[str, str | None, int, float]]:
        """The data units that can be read: id, name, bytes, and when their manifest was made."""
        return [
            (data.id, data.description.get("name"), data.manifest.nbytes, data.manifest.created)
            for data in self.records.data.values()
            if data.manifest is not None and data.replicas
        ]

    def call_replicate(self, id: str, pd: str) -> None:
        """Have a replica made on another store, if there is none and none on its way."""
        self._store(pd)
        self.catalogue.replicate(self._data(id), pd)

    def call_remove_replica(self, id: str, pd: str, force: bool) -> tuple[Place, bool]:
        """A replica is no longer to be used; with the last one, the data unit is gone.

        Returns how its store is reached, and whether units read the data unit; if none does, its files may be deleted.
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
        readers = {r.id: r for r in self._unit_of.values() if r.worker is not None and id in r.request.inputs}
        place = self.catalogue.place(pd)
        if readers:
            job = Remove(id, place)
            workers = [r.worker for r in readers.values() if r.worker is not None]
            self.when_unbound(set(readers), lambda: self._in_background(self.have_done(workers[0], job)))
        return place, bool(readers)

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
