"""What the scheduler plugin knows and decides: records, the lives of units and data units, and what is bound.

No method here is called by Dask or by a client: the plugin (``scheduler.py``) and the calls (``calls.py``) do that.
Each changes records or the matcher; the matcher is asked once, at the end of the loop's turn, what to bind.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from dask.typing import Key
from distributed import Scheduler
from distributed.scheduler import TaskState

from dpilot.errors import (
    DataError,
    InputError,
    PilotError,
    StagingError,
    StateError,
    UnitError,
    UnknownObjectError,
)
from dpilot.placement import Copying, Distance, Site
from dpilot.runtime import adapter
from dpilot.runtime.ahead import Bring, Bringing
from dpilot.runtime.caches import Caches
from dpilot.runtime.catalogue import Catalogue
from dpilot.runtime.jobs import Discard
from dpilot.runtime.matching import make_matcher
from dpilot.runtime.observers import Observers
from dpilot.runtime.records import DataRecord, PilotRecord, Record, Records, ServiceRecord, StoreRecord, UnitRecord
from dpilot.runtime.staging import Brought, Inputs, Replica
from dpilot.runtime.work import Program, UnitTask
from dpilot.states import State
from dpilot.urls import new_id

__all__ = ["Coordinator"]

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)

#: How long a unit may have been at its worker before clients are told that it runs: most tiny units
#: have ended by then, and one message tells both.
_TELL_AFTER_S = 0.02
#: Where a unit is on its way for no longer than this, there and back, the next one is not sent ahead: Dask's own
#: batches of messages take some milliseconds anywhere.
_LEAST_GAP_S = 0.02
#: The result of a program.
_NONE = pickle.dumps(None)


class Coordinator:
    """The state of dpilot on one scheduler, and the steps that change it."""

    def _begin(self, scheduler: Scheduler) -> None:
        """Start with nothing; called in the scheduler's event loop."""
        self.scheduler = scheduler
        self.records = Records()
        self.matcher = make_matcher(self.records)
        self._unit_of: dict[Key, UnitRecord] = {}
        self._pilot_at: dict[str, str] = {}
        self._events: defaultdict[str, list[Any]] = defaultdict(list)
        self._begun: list[tuple[UnitRecord, int, float]] = []
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._writer: dict[str, str] = {}
        self._match_is_due = False
        self._recheck: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._gap_s: dict[str, float] = {}  # by pilot: from when a unit is bound to when its end is known, less its run
        self._leaving: list[tuple[set[str], Callable[[], None]]] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._bringing = Bringing()
        self._brought: dict[tuple[str, Site], Brought] = {}  # ahead of units, of which none has read it yet
        self.catalogue = Catalogue(scheduler, self.records, self.matcher, self)
        self.caches = Caches(self.records, self.catalogue.view)
        self._jobs: dict[str, tuple[str, asyncio.Future[Any]]] = {}  # worker, and who waits
        self.observers = Observers()
        self.observers.begin(self)

    # ---------------------------------------------------------------- events to clients

    def advance(self, record: Record, state: State, at: float | None = None, **extra: Any) -> bool:
        """Change a record's state and tell those who follow it."""
        at = time.time() if at is None else at
        before = record.life.state
        if not record.life.advance(state, max(at, record.life.history[-1].timestamp)):
            return False
        self.tell(record, state, extra)
        self.observers.advanced(record, before)
        return True

    def tell(self, record: Record, state: State | None, extra: dict[str, Any]) -> None:
        """Tell those who follow a record."""
        if state is None:
            self.observers.told(record)
        at = record.life.history[-1].timestamp
        for client in record.watchers:
            if not self._events:
                self._loop.call_soon(self._send_events)
            self._events[client].append((record.id, state and str(state), at, extra))

    def _send_events(self) -> None:
        events, self._events = self._events, defaultdict(list)
        for client, messages in events.items():
            adapter.send_event(self.scheduler, client, messages)

    # ---------------------------------------------------------------- compute units

    def _admit(self, task: TaskState, unit: UnitTask, client: str) -> None:
        record = UnitRecord(unit.id, str(task.key), unit.request.pool, unit.submitted, {client}, unit.request)
        record.priority = unit.priority
        record.order = unit.submitted
        record.directory = unit.directory or unit.id
        record.outputs = tuple(du for du, _ in unit.outputs)
        record.program = sys.intern(unit.work.executable) if isinstance(unit.work, Program) else None
        record.recompute = record.program is None
        record.takes_results = bool(task.dependencies)
        record.ranks = unit.work.ranks if isinstance(unit.work, Program) else 0
        self.records.units[unit.id] = record
        self._unit_of[task.key] = record
        self.advance(record, State.Pending, unit.submitted)
        if unit.request.pilot is not None:
            pilot = self._pilot(unit.request.pilot)
            pilot.units[unit.id] = None
            if pilot.life.state.is_final:
                raise StateError(f"{unit.id} was submitted to {pilot.id}, which is {pilot.life.state}")
        for du in record.outputs:  # first: whatever happens to this unit, they and their readers are told
            data = self._data(du)
            if data.life.state.is_final:
                raise StagingError(f"{unit.id} writes to {du}, which is {data.life.state}; write to a new data unit")
            data.writers.add(unit.id)
        for du in unit.request.inputs:
            data = self._data(du)
            if data.life.state.is_final:
                raise _unreadable(unit.id, data.error or DataError(f"data unit {du} is {data.life.state}"))
            if not data.is_ready:
                record.missing.add(du)
                data.waiting.add(unit.id)

    def _parked(self, record: UnitRecord) -> None:
        task = self.scheduler.tasks[record.key]
        adapter.park(task)
        record.runnable = True
        if record.life.state is State.Done:
            # Its result was lost with its worker. A small one is in the record, and a program must not run twice.
            if record.recompute and record.result is None:
                self._enqueue(record)
            else:
                del self._unit_of[task.key]
                self._loop.call_soon(adapter.supply, self.scheduler, record.key, record.result or _NONE)
        elif record.life.state.is_final:  # somebody had Dask try its task again
            error = StateError(f"{record.id} is {record.life.state}, which is final; submit it anew")
            self._loop.call_soon(adapter.fail, self.scheduler, record.key, error)
        elif not record.missing:
            self._enqueue(record)

    def _enqueue(self, record: UnitRecord) -> None:
        now = time.time()
        record.ready = now if record.ready is None else record.ready
        self.matcher.submit(record.id, record.request, now=now, priority=record.priority, order=record.order)
        self._match_soon()

    def _taken_back(self, record: UnitRecord) -> None:
        """A bound task left its worker before it ended: canceled, failed with a retry left, or its worker died."""
        adapter.park(self.scheduler.tasks[record.key])
        self._stop(record)
        self._stop_writing(record)
        if not record.life.state.is_final and record.life.state is not State.Pending:
            self.advance(record, State.Pending)
        self._match_soon()

    def _stop(self, record: UnitRecord) -> None:
        """Have a unit's worker stop it, if it is there."""
        worker = self.unbound(record)
        if worker is not None and worker in self.scheduler.workers:
            # What it started may still run: its slots are free when the worker says so.
            reservation = f"{record.id}#{record.attempt}"
            self.matcher.keep(record.id, reservation)
            adapter.order(self.scheduler, worker, {"what": "stop", "key": record.key, "reservation": reservation})
        else:
            self.matcher.release(record.id)

    def unbound(self, record: UnitRecord) -> str | None:
        """A unit has left its worker, which is returned: None if it was at none."""
        worker, record.worker = record.worker, None
        for units, then in list(self._leaving):
            units.discard(record.id)
            if not units:
                self._leaving.remove((units, then))
                then()
        return worker

    def when_unbound(self, units: set[str], then: Callable[[], None]) -> None:
        """Do something once these units have left their workers."""
        self._leaving.append((units, then))

    def _succeeded(self, record: UnitRecord, message: dict[str, Any]) -> None:
        begun, ended = adapter.computed(message)
        self.matcher.release(record.id)
        self.unbound(record)
        self._stop_writing(record)
        self._match_soon()
        if record.life.state.is_final:  # recomputed
            return
        record.began = begun
        if record.life.state is State.Pending:
            self.advance(record, State.Running, begun)
        if begun is not None and ended is not None:
            # Without the staging: that is a matter of the place, not of the kind of work.
            self.matcher.runtimes.observe(record.request.kind, max(0.0, ended - begun - record.staged_s))
            self._observe_gap(record, ended - begun)
        record.result = (message.get("metadata") or {}).get(adapter.HANDLER)
        self.advance(record, State.Done, ended, result=record.result, pilot=record.pilot)
        for du in record.outputs:
            self._written(self.records.data[du], record)

    def _observe_gap(self, record: UnitRecord, took_s: float) -> None:
        """Learn how long units of a pilot are on their way, there and back; slowly from those that waited there."""
        if record.pilot is not None:
            gap_s = max(0.0, time.time() - record.bound - took_s)
            known_s = self._gap_s.get(record.pilot)
            self._gap_s[record.pilot] = gap_s if known_s is None else min(gap_s, known_s + 0.05 * (gap_s - known_s))

    def _fail(self, record: UnitRecord, error: BaseException) -> None:
        """Have a unit fail, for a reason that lies outside of its work."""
        if not record.life.state.is_final:
            record.error = error
            adapter.fail(self.scheduler, record.key, error)

    def _ended(self, record: UnitRecord, state: State, begun: float | None = None) -> None:
        """A unit failed, or is canceled: everything that it held or promised is undone."""
        self.matcher.withdraw(record.id)
        self.matcher.release(record.id)
        bound = self.unbound(record)
        self._stop_writing(record)
        for du in record.missing:
            if du in self.records.data:
                self.records.data[du].waiting.discard(record.id)
        self._match_soon()
        if record.life.state.is_final:
            return
        record.began = begun
        if state is State.Failed and record.life.state is State.Pending and bound:
            self.advance(record, State.Running, begun)
        self.advance(record, state, pilot=record.pilot)
        for du in record.outputs:
            data = self.records.data.get(du)
            if data is not None and record.id in data.writers:
                data.writers.discard(record.id)
                self.catalogue.lose(data, self._unwritten(du, record))

    def _cancel_units(self, ids: Collection[str]) -> None:
        """Cancel units that have not ended."""
        records = [r for r in map(self.records.units.get, ids) if r is not None and not r.life.state.is_final]
        for record in records:
            self._stop(record)
            self._ended(record, State.Canceled)
        adapter.cancel(self.scheduler, [r.key for r in records])

    def _lost(self, record: UnitRecord, worker: str) -> None:
        """A bound MPI unit has lost one of its workers, and it is not the one that runs it: as if it were that one."""
        if record.worker is None:
            return
        if adapter.failed_too_often(self.scheduler, record.key):
            self._stop(record)
            self._fail(
                record,
                UnitError(
                    f"{record.id} has lost a worker of its gang once too often, the last time {worker}; see the log of "
                    f"{record.pilot}"
                ),
            )
        else:
            adapter.unbind(self.scheduler, [record.key])

    def _overdue(self, record: UnitRecord, error: bytes) -> None:
        """A function runs longer than it may. It cannot be interrupted: its slots are free when it returns."""
        if adapter.retry(self.scheduler, record.key):
            adapter.unbind(self.scheduler, [record.key])
        else:
            self._stop(record)
            self._fail(record, pickle.loads(error))

    # ---------------------------------------------------------------- binding

    def _match_soon(self) -> None:
        """Ask the matcher at the end of this turn of the loop, once."""
        if not self._match_is_due:
            self._match_is_due = True
            self._loop.call_soon(self._match)

    def _match(self) -> None:
        self._match_is_due = False
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None
        if not len(self.matcher) and not len(self.matcher.transit):
            return
        now = time.time()
        matching = self.matcher.match(now)
        bound: dict[str, str] = {}
        for binding in matching.bindings:
            record = self.records.units[binding.unit]
            record.pilot, record.worker, record.decision = binding.pilot, binding.worker, binding.decision
            record.attempt += 1
            if not self._begun:
                self._loop.call_later(_TELL_AFTER_S, self._tell_begun)
            self._begun.append((record, record.attempt, now))
            bound[record.key] = binding.worker
            self._bound(record, now)
            self._announce(record, binding.pilot, binding.worker)
        if bound:
            adapter.bind(self.scheduler, bound)
        for copy in matching.copies:
            self._in_background(self._bring(copy))
        if matching.recalls:
            self._recall(matching.recalls)
        if matching.recheck_s is not None:
            self._recheck = self._loop.call_later(matching.recheck_s, self._match_soon)

    def _recall(self, units: Iterable[str]) -> None:
        """Take units back from their workers, if they do not run yet: they wait for data that they may have sooner."""
        records = [record for record in map(self.records.units.get, units) if record is not None]
        adapter.unbind(self.scheduler, [r.key for r in records if r.life.state in (State.Pending, State.Staging)])

    def _bound(self, record: UnitRecord, now: float) -> None:
        """Expect the end of a unit that was bound: the next one is sent so that it arrives just then."""
        record.bound = now
        runs_s = self.matcher.runtimes.soonest_s(record.request.kind)
        gap_s = self._gap_s.get(record.pilot or "", 0.0)
        if runs_s is not None and gap_s > _LEAST_GAP_S and runs_s > gap_s / 2:
            # It ends half a gap later, for the way to its worker takes that long; so does the way of the next one.
            self._loop.call_later(runs_s, self._leaves, record, record.attempt)

    def _leaves(self, record: UnitRecord, attempt: int) -> None:
        if record.worker is not None and record.attempt == attempt:
            self.matcher.leave(record.id)
            self._match_soon()

    def _announce(self, record: UnitRecord, pilot: str, worker: str) -> None:
        """Tell a worker where a unit's inputs are, and which GPUs are the unit's, ahead of the unit."""
        message: dict[str, Any] = {}
        if record.request.inputs:
            with suppress(PilotError):  # it will ask, and be told
                message["inputs"] = pickle.dumps(self._inputs(record, self._pilot(pilot)))
        if record.request.gpus:
            held = self.matcher.held(record.id)
            assert held is not None
            message["gpus"] = held.shares[0].gpus
        if record.ranks:
            held = self.matcher.held(record.id)
            assert held is not None
            message["gang"] = held.shares
        if message:
            adapter.order(self.scheduler, worker, {"what": "expect", "unit": record.id, **message})

    def _inputs(self, record: UnitRecord, pilot: PilotRecord, worker: str | None = None) -> Inputs:
        """Where the inputs of a unit are, as seen from its worker, or from another one of its gang."""
        reader = worker or record.worker
        answer = {}
        for du in record.request.inputs:
            data = self._data(du)
            if data.manifest is None or not data.replicas:
                raise InputError(f"data unit {du} has lost its replicas since {record.id} was placed")
            answer[du] = (data.manifest, self._replicas(data, pilot.site, reader))
        return answer

    def _replicas(self, data: DataRecord, site: Site, reader: str | None) -> list[Replica]:
        """Those of a data unit as a worker at a site sees them: the one that is counted on, then the nearest.

        What the worker sees as local files comes first: it is not moved at all.
        """
        links, counted_on = self.matcher.policy.links, self.matcher.transit.source_of(data.id, site)
        found: list[tuple[Any, Replica]] = []
        for store in map(self._store, data.replicas):
            place, may_link = self.catalogue.place(store.id, reader), _may_link(store.site, site)
            is_seen = may_link and reader in store.hosts
            order = not is_seen, store.site != counted_on, links.rank(store.site, site), store.id
            found.append((order, Replica(store.id, place, int(store.site.distance(site)), may_link)))
        assert data.manifest is not None
        for pilot, at, place in self.caches.sources(data, data.manifest, site, counted_on):
            order = True, at != counted_on, links.rank(at, site), pilot
            found.append((order, Replica(pilot, place, int(at.distance(site)), False)))
        return [replica for _, replica in sorted(found, key=lambda one: one[0])]

    def _source_site(self, source: str) -> Site | None:
        """The site of a store, or of the machine whose cache a pilot stands for."""
        record = self.records.stores.get(source) or self.records.pilots.get(source)
        return None if record is None else record.site

    async def _bring(self, copy: Copying) -> None:
        """Have a data unit brought to a machine ahead of the units that will read it there."""
        pilot, data = self.records.pilots.get(copy.pilot), self.records.data.get(copy.du)
        workers: Collection[str] = () if pilot is None else pilot.workers
        worker = self._bringing.choose(workers, partial(adapter.is_running, self.scheduler))
        is_there = False
        if pilot is not None and worker is not None:
            try:
                if data is not None and data.manifest is not None:
                    replicas = tuple(self._replicas(data, pilot.site, worker))
                    brought = await self.have_done(worker, Bring(data.manifest, replicas))
                    self._learn_of(data, pilot.site, brought)
                    is_there = True
            except PilotError as error:
                logger.warning("%s could not be brought to %s ahead of units: %s", copy.du, copy.pilot, error)
            finally:
                self._bringing.ended(worker)
        self.matcher.copied(copy.du, copy.site, is_there)
        if is_there and data is not None:
            self.catalogue.view(data)
        self._match_soon()

    def _learn_of(self, data: DataRecord, site: Site, brought: Brought | None) -> None:
        """Take in what was brought to the cache of a site, if it was not there already."""
        self.caches.add(data, site)
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

    def _tell_begun(self) -> None:
        begun, self._begun = self._begun, []
        for record, attempt, at in begun:
            if record.worker is not None and record.attempt == attempt and record.life.state is State.Pending:
                self.advance(record, State.Staging if record.request.inputs else State.Running, at, pilot=record.pilot)

    def _learn(self, record: UnitRecord, details: dict[str, Any]) -> None:
        """Take in what a unit's staging showed: how fast links are, and what its machine has in its cache now."""
        nbytes_from = list(details["nbytes"])
        record.nbytes = tuple(nbytes_from)
        pilot = self.records.pilots.get(record.pilot or "")
        if pilot is None:
            return
        early = []  # what was brought ahead counts for the first unit that reads it
        for du in record.request.inputs:
            if (had := self._brought.pop((du, pilot.site), None)) is not None:
                early.append((du, had.pd, had.nbytes, had.seconds, had.began))
                details["read"].setdefault(du, had.pd)
                nbytes_from[0] -= had.nbytes
                nbytes_from[had.distance] += had.nbytes
        record.nbytes = tuple(nbytes_from)
        found = (details["read"].get(du, "") for du in record.request.inputs)
        record.read = tuple("" if self._source_site(source) is None else source for source in found)
        record.brought = (*details["transfers"], *early)
        self.observers.staged(record)
        for du, pd, nbytes, seconds, _ in details["transfers"]:
            source, data = self._source_site(pd), self.records.data.get(du)
            if source is not None:
                n_files = len(data.manifest.files) if data is not None and data.manifest is not None else 1
                self.matcher.policy.links.observe(source, pilot.site, nbytes, seconds, n_files)
            if data is not None:
                self.caches.add(data, pilot.site)
        self._evicted(details["evicted"], pilot.site)

    # ---------------------------------------------------------------- data units

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
        for job, (worker, answer) in list(self._jobs.items()):
            if worker == mover:
                del self._jobs[job]
                answer.set_exception(DataError(f"the worker {worker} died while it did a job on files; try again"))

    def inputs_ready(self, units: Collection[str], du: str) -> None:
        """Compute units waited for a data unit that can be read now."""
        for unit in units:
            record = self.records.units[unit]
            record.missing.discard(du)
            if not record.missing and record.runnable and not record.life.state.is_final:
                self._enqueue(record)
        self._match_soon()

    def inputs_lost(self, units: Collection[str], error: PilotError) -> None:
        """Compute units waited for a data unit that will never be complete: they fail with the reason."""
        for unit in units:
            self._loop.call_soon(self._fail, self.records.units[unit], _unreadable(unit, error))

    def warn(self, record: UnitRecord, text: str) -> None:
        """Something about a unit that its owner should know, though the unit goes on."""
        logger.warning("%s", text)
        record.warnings = (*record.warnings, text)
        self.tell(record, None, {"warning": text})

    def suspect(self, du: str, pd: str) -> None:
        """A unit found a replica damaged: have it read through, and made anew."""
        data, pilot = self.records.data.get(du), self.records.pilots.get(pd)
        if data is not None and pd in data.replicas:
            self.catalogue.verify(data, pd, repair=True)
        elif data is not None and pilot is not None:  # its machine's cache has something wrong, or nothing by now
            self.caches.drop(du, pilot.site)
            self._in_background(self._discard(data, pilot))

    async def _discard(self, data: DataRecord, pilot: PilotRecord) -> None:
        worker = min(pilot.workers, default=None)
        if worker is not None and data.manifest is not None:
            with suppress(PilotError):
                await self.have_done(worker, Discard(data.manifest))

    def _written(self, data: DataRecord, writer: UnitRecord) -> None:
        data.writers.discard(writer.id)
        data.is_written = True
        self.catalogue.check_ready(data)

    def _unwritten(self, du: str, writer: UnitRecord) -> InputError:
        """What is wrong with a data unit whose writer has failed or was canceled; `root` is where that began."""
        if writer.life.state is State.Canceled:
            root = f"{writer.id} was canceled"
        elif isinstance(writer.error, InputError):
            root = writer.error.root
        else:
            root = f"{writer.id} failed: {writer.error or adapter.error_text(self.scheduler, writer.key)}"
        return InputError(f"data unit {du} will not be complete: {root}", root=root)

    def _stop_writing(self, record: UnitRecord) -> None:
        for du in record.outputs:
            if self._writer.get(du) == record.id:
                del self._writer[du]
                self._writing[du].release()

    # ---------------------------------------------------------------- pilots

    def _let_reach(self, worker: str, store: StoreRecord) -> None:
        """Have a worker connect to a store before a unit waits for it, and say whether it sees it as local files."""
        if not store.life.state.is_final and adapter.is_running(self.scheduler, worker):
            if store.is_local:
                store.asked.add(worker)
            adapter.order(self.scheduler, worker, {"what": "reach", "id": store.id, "store": pickle.dumps(store.store)})

    def _out_of_time(self, pilot: PilotRecord) -> None:
        if not pilot.life.state.is_final:
            self._in_background(self._close_pilot(pilot, State.Done))

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _end_pilot(self, pilot: PilotRecord, state: State, error: BaseException | None) -> None:
        if pilot.life.state.is_final:
            return
        pilot.error = error
        bound = [r for r in self._unit_of.values() if r.pilot == pilot.id and r.worker is not None]
        for record in bound:
            self.matcher.release(record.id)
        self.matcher.remove_pilot(pilot.id)
        self.advance(pilot, state, error=pickle.dumps(error) if error is not None else None)
        if state is State.Failed:
            for unit in pilot.units:
                failure = UnitError(f"{unit} was submitted to {pilot.id}, which failed: {error}")
                self._fail(self.records.units[unit], failure)
        else:
            self._cancel_units(pilot.units)
        adapter.unbind(self.scheduler, [record.key for record in bound if not record.life.state.is_final])
        self._pools()
        self._match_soon()

    async def _close_pilot(self, pilot: PilotRecord, state: State) -> None:
        workers = list(pilot.workers)
        self._end_pilot(pilot, state, None)
        if len(self.scheduler.workers) > len(workers) > 0:
            try:
                await asyncio.wait_for(self.scheduler.retire_workers(workers, close_workers=True, remove=True), 20)
            except Exception:
                logger.warning("results on the workers of %s could not be moved elsewhere", pilot.id, exc_info=True)
        for worker in workers:
            await self.scheduler.remove_worker(worker, stimulus_id=f"dpilot-cancel-{time.time()}", expected=True)
        self.tell(pilot, None, {"closed": True})

    def _pools(self) -> None:
        """Let the matcher know which pilots each compute data service may use."""
        for service in self.records.services.values():
            if service.id.startswith("cds-"):
                members = {
                    pilot.id
                    for pilot in self.records.pilots.values()
                    if pilot.owner in service.members and not pilot.life.state.is_final
                }
                self.matcher.set_pool(service.id, members)
        self._match_soon()

    # ---------------------------------------------------------------- records

    def _pilot(self, id: str) -> PilotRecord:
        return _expect(self.records.find(id), PilotRecord)

    def _store(self, id: str) -> StoreRecord:
        return _expect(self.records.find(id), StoreRecord)

    def _data(self, id: str) -> DataRecord:
        return _expect(self.records.find(id), DataRecord)

    def _unit(self, id: str) -> UnitRecord:
        return _expect(self.records.find(id), UnitRecord)

    def _service(self, id: str) -> ServiceRecord:
        return _expect(self.records.find(id), ServiceRecord)


def _unreadable(unit: str, error: BaseException) -> InputError:
    return InputError(f"{unit} cannot run: {error}", root=error.root if isinstance(error, InputError) else str(error))


def _expect(record: Record, kind: type[R]) -> R:
    if not isinstance(record, kind):
        raise UnknownObjectError(f"{record.id} is another kind of object than was asked for")
    return record


def _may_link(store: Site, pilot: Site) -> bool:
    """Whether files may be linked where the path can be seen: not if the labels say that the store is far away."""
    return store.distance(pilot) is not Distance.OTHER_DATACENTER
