"""Where units get their inputs from, what is brought to machines ahead of them, and what their staging teaches."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Collection, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from distributed import Scheduler

from dpilot.data import Manifest
from dpilot.errors import DataError, InputError, PilotError
from dpilot.placement import Copying, Distance, Site
from dpilot.runtime import adapter
from dpilot.runtime.ahead import Bring, Bringing
from dpilot.runtime.caches import Caches
from dpilot.runtime.catalogue import Catalogue
from dpilot.runtime.herald import Herald
from dpilot.runtime.jobs import Discard
from dpilot.runtime.matching import make_matcher
from dpilot.runtime.places import Replica
from dpilot.runtime.records import DataRecord, PilotRecord, StoreRecord, UnitRecord
from dpilot.runtime.staging import Brought, Inputs
from dpilot.urls import new_id

__all__ = ["Supply"]

logger = logging.getLogger(__name__)


class Supply(Herald):
    """The data that units read: in stores, in the caches of machines, and on its way.

    The coordinator makes :attr:`catalogue` and :attr:`caches`, for it is told by them.
    """

    catalogue: Catalogue
    caches: Caches

    def _begin(self, scheduler: Scheduler) -> None:
        super()._begin(scheduler)
        self.matcher = make_matcher(self.records)
        self._bringing = Bringing()
        self._brought: dict[tuple[str, Site], Brought] = {}  # ahead of units, of which none has read it yet
        self._jobs: dict[str, tuple[str, asyncio.Future[Any]]] = {}  # worker, and who waits
        self._background: set[asyncio.Task[Any]] = set()

    # ---------------------------------------------------------------- where inputs are

    def _inputs(self, record: UnitRecord, pilot: PilotRecord, worker: str | None = None) -> Inputs:
        """Where the inputs of a unit are, as seen from its worker, or from another one of its gang."""
        reader = worker or record.worker
        answer = {}
        for du in record.request.inputs:
            data = self._data(du)
            if data.manifest is None or not data.replicas:
                raise InputError(f"data unit {du} has lost its replicas since {record.id} was placed")
            answer[du] = (data.manifest, self._replicas(data, pilot.machine, reader))
        return answer

    def _replicas(self, data: DataRecord, site: Site, reader: str | None) -> list[Replica]:
        """Those of a data unit as a worker at a site sees them: the one that is counted on, then the nearest.

        What the worker sees as local files comes first: it is not moved at all. Of a store and a cache at the same
        site, it is the store: that serves many at once.
        """
        stores = [self._store(pd) for pd in data.replicas]
        if len(stores) == 1 and not data.cached:  # as most: there is nothing to put in order
            return [self._replica(stores[0], site, reader)]
        links, counted_on = self.matcher.policy.links, self.matcher.transit.source_of(data.id, site)
        found: list[tuple[Any, Replica]] = []
        for store in stores:
            replica = self._replica(store, site, reader)
            is_seen = replica.may_link and reader in store.hosts
            order = not is_seen, store.site != counted_on, links.rank(store.site, site), 0, store.id
            found.append((order, replica))
        assert data.manifest is not None
        for pilot, at, place in self.caches.sources(data, data.manifest, site, counted_on):
            order = True, at != counted_on, links.rank(at, site), 1, pilot
            found.append((order, Replica(pilot, place, int(at.distance(site)), False)))
        return [replica for _, replica in sorted(found, key=lambda one: one[0])]

    def _sees_inputs(self, record: UnitRecord) -> bool:
        """Whether the worker of a bound unit sees all that it reads as local files, so that nothing is brought."""
        pilot, data, stores = self.records.pilots.get(record.pilot or ""), self.records.data, self.records.stores
        return pilot is not None and all(
            any(record.worker in stores[pd].hosts and _may_link(stores[pd], pilot.machine) for pd in data[du].replicas)
            for du in record.request.inputs
        )

    def _replica(self, store: StoreRecord, site: Site, reader: str | None) -> Replica:
        distance = store.site.distance(site)
        replica = None if store.hosts else store.seen_at.get(distance)
        if replica is None:
            place = self.catalogue.place(store.id, reader)
            replica = Replica(store.id, place, int(distance), _may_link(store, site))
            if not store.hosts:
                store.seen_at[distance] = replica
        return replica

    def _source_site(self, source: str) -> Site | None:
        """The site of a store, or of the machine whose cache a pilot stands for."""
        if (store := self.records.stores.get(source)) is not None:
            return store.site
        pilot = self.records.pilots.get(source)
        return None if pilot is None else pilot.machine

    def _let_reach(self, worker: str, store: StoreRecord) -> None:
        """Have a worker connect to a store before a unit waits for it, and say whether it sees it as local files."""
        if not store.life.state.is_final and adapter.is_running(self.scheduler, worker):
            if store.is_local:
                store.asked.add(worker)
            adapter.order(self.scheduler, worker, {"what": "reach", "id": store.id, "store": pickle.dumps(store.store)})

    # ---------------------------------------------------------------- ahead of units

    async def _bring(self, copy: Copying) -> None:
        """Have a data unit brought to a machine ahead of the units that will read it there."""
        pilot, data = self.records.pilots.get(copy.pilot), self.records.data.get(copy.du)
        workers: Collection[str] = () if pilot is None else pilot.workers
        source = self.matcher.transit.source_of(copy.du, copy.site)
        worker = self._bringing.choose(workers, partial(adapter.is_running, self.scheduler), source)
        is_there = False
        if pilot is not None and worker is not None:
            try:
                if data is not None and data.manifest is not None:
                    replicas = tuple(self._replicas(data, pilot.machine, worker))
                    brought = await self.have_done(worker, Bring(data.manifest, replicas))
                    self._learn_of(data, pilot.machine, brought)
                    is_there = True
            except PilotError as error:
                # that a pilot comes and goes is nothing to warn of
                level = logging.WARNING if adapter.is_running(self.scheduler, worker) else logging.DEBUG
                logger.log(level, "%s could not be brought to %s ahead of units: %s", copy.du, copy.pilot, error)
            except Exception:  # it would count as on its way for ever
                logger.exception("%s could not be brought to %s ahead of units", copy.du, copy.pilot)
            finally:
                self._bringing.ended(worker)
        self.matcher.copied(copy.du, copy.site, is_there)
        if is_there and data is not None:
            self.catalogue.view(data)

    def _learn_of(self, data: DataRecord, site: Site, brought: Brought | None) -> None:
        """Take in what was brought to the cache of a site, if it was not there already."""
        self.caches.add(data, site)
        self.matcher.policy.links.now = time.time()
        if brought is None:
            return
        source = self._source_site(brought.pd)
        if source is not None:
            n_files = len(data.manifest.files) if data.manifest is not None else 1
            self.matcher.policy.links.observe(source, site, brought.nbytes, brought.seconds, n_files)
        self._brought[data.id, site] = brought
        self._evicted(brought.evicted, site)

    def _evicted(self, dus: Iterable[str], site: Site) -> None:
        """The cache of a site has data units no more."""
        for du in dus:
            self.caches.drop(du, site)

    # ---------------------------------------------------------------- what staging shows

    def _learn(self, record: UnitRecord, details: dict[str, Any]) -> None:
        """Take in what a unit's staging showed: how fast links are, and what its machine has in its cache now."""
        nbytes_from = list(details["nbytes"])
        record.nbytes = tuple(nbytes_from)
        pilot = self.records.pilots.get(record.pilot or "")
        if pilot is None:
            return
        early = []  # what was brought ahead counts for the first unit that reads it
        for du in record.request.inputs if self._brought else ():
            if (had := self._brought.pop((du, pilot.machine), None)) is not None:
                early.append((du, had.pd, had.nbytes, had.seconds, had.began))
                details["read"].setdefault(du, had.pd)
                nbytes_from[0] -= had.nbytes
                nbytes_from[had.distance] += had.nbytes
                record.nbytes = tuple(nbytes_from)
        found = [details["read"].get(du, "") for du in record.request.inputs]
        record.read = tuple([source if self._source_site(source) else "" for source in found])
        record.brought = (*details["transfers"], *early)
        self.observers.staged(record)
        self.matcher.policy.links.now = time.time()
        for du, pd, nbytes, seconds, _ in details["transfers"]:
            source, data = self._source_site(pd), self.records.data.get(du)
            if source is not None:
                n_files = len(data.manifest.files) if data is not None and data.manifest is not None else 1
                self.matcher.policy.links.observe(source, pilot.machine, nbytes, seconds, n_files)
            if data is not None:
                self.caches.add(data, pilot.machine)
        if details["evicted"]:
            self._evicted(details["evicted"], pilot.machine)

    def _learn_of_output(self, record: UnitRecord, store: StoreRecord, manifest: Manifest, seconds: float) -> None:
        """Take in what a unit has written, and how long that took."""
        files = [entry for entry in manifest.files if entry.producer == record.id]
        nbytes = sum(entry.nbytes for entry in files)
        record.written_nbytes += nbytes
        record.written_s += seconds
        pilot = self.records.pilots.get(record.pilot or "")
        if pilot is None or not nbytes:
            return
        is_far = pilot.machine.distance(store.site) is Distance.OTHER_DATACENTER
        if is_far or record.worker not in store.hosts:  # else it was written to a disk of its own
            links = self.matcher.policy.links
            links.now = time.time()
            links.observe_output(pilot.machine, store.site, nbytes, seconds)

    def suspect(self, du: str, pd: str) -> None:
        """A unit found a replica damaged: have it read through, and made anew."""
        data, pilot = self.records.data.get(du), self.records.pilots.get(pd)
        if data is not None and pd in data.replicas:
            self.catalogue.verify(data, pd, repair=True)
        elif data is not None and pilot is not None:  # its machine's cache has something wrong, or nothing by now
            self.caches.drop(du, pilot.machine)
            self._in_background(self._discard(data, pilot))

    async def _discard(self, data: DataRecord, pilot: PilotRecord) -> None:
        worker = min(pilot.workers, default=None)
        if worker is not None and data.manifest is not None:
            with suppress(PilotError):
                await self.have_done(worker, Discard(data.manifest))

    # ---------------------------------------------------------------- jobs of workers

    async def have_done(self, worker: str, job: Any) -> Any:
        """Have a worker carry out a job, and give what it gave."""
        id = new_id("jb")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._jobs[id] = worker, answer
        adapter.order(self.scheduler, worker, {"what": "carry", "job": id, "pickled": pickle.dumps(job)})
        return await answer

    def job_ended(self, job: str, good: bool, value: Any, nbytes: int) -> None:
        """A worker or client has carried out a job: of a transfer, or one that a call waits for."""
        if job not in self._jobs:
            self.catalogue.transfers.finished(job, good, value, nbytes)
            return
        _, answer = self._jobs.pop(job)
        if not answer.done():
            if good:
                answer.set_result(value)
            else:
                answer.set_exception(value)

    def mover_gone(self, mover: str) -> None:
        """A worker or client is gone, and with it what it was doing for others."""
        self.catalogue.transfers.mover_gone(mover)
        self._bringing.gone(mover)
        for job, (worker, answer) in list(self._jobs.items()):
            if worker == mover:
                del self._jobs[job]
                if not answer.done():
                    answer.set_exception(DataError(f"the worker {worker} died while it did a job on files; try again"))

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _may_link(store: StoreRecord, site: Site) -> bool:
    """Whether files may be linked where the path can be seen: not if the labels say that the store is far away."""
    return store.site.distance(site) is not Distance.OTHER_DATACENTER
