"""The scheduler plugin: where states change, units are bound, and every object has its record.

Four things reach it: Dask's own events (graphs, transitions, workers and clients that come and go), calls
of clients and workers (``call_*``), reports of running units, and time. Each changes records or the
matcher; then the matcher is asked once, at the end of the loop's turn, what to bind.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections import defaultdict
from collections.abc import Collection, Coroutine, Iterable
from typing import Any, TypeVar

from dask.typing import Key
from distributed import Scheduler, SchedulerPlugin
from distributed.scheduler import TaskState

from dpilot import config
from dpilot._version import version
from dpilot.data import Manifest, Store
from dpilot.errors import (
    DataError,
    InputError,
    PilotError,
    PilotLaunchError,
    StagingError,
    StateError,
    StoreFullError,
    UnitCanceledError,
    UnitError,
    UnknownObjectError,
)
from dpilot.placement import (
    Decision,
    Distance,
    InputView,
    Links,
    Matcher,
    Policy,
    Site,
    StoreView,
    choose_stores,
    nearest_store,
)
from dpilot.runtime import adapter
from dpilot.runtime.records import DataRecord, PilotRecord, Record, Records, ServiceRecord, StoreRecord, UnitRecord
from dpilot.runtime.work import Program, UnitTask
from dpilot.states import State

__all__ = ["PLUGIN", "PilotPlugin"]

PLUGIN = "dpilot"
logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)

#: How long a unit may have been at its worker before clients are told that it runs: most tiny units
#: have ended by then, and one message tells both.
_TELL_AFTER_S = 0.02
#: How long the agent of a pilot without workers has to tell why, before the pilot is called Failed.
_LAST_WORDS_S = 2.0


class PilotPlugin(SchedulerPlugin):
    """dpilot on the scheduler; ``client.register_plugin`` installs it, once."""

    name = PLUGIN
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Dask calls this when the plugin is registered."""
        self.scheduler = scheduler
        self.records = Records()
        self.matcher = _matcher()
        self._unit_of: dict[Key, UnitRecord] = {}
        self._pilot_at: dict[str, str] = {}
        self._events: defaultdict[str, list[Any]] = defaultdict(list)
        self._begun: list[tuple[UnitRecord, int, float]] = []
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._writer: dict[str, str] = {}
        self._match_is_due = False
        self._recheck: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._background: set[asyncio.Task[Any]] = set()
        adapter.answer_calls(scheduler, self.answer)
        adapter.answer_reports(scheduler, self.take_report)
        adapter.answer_cancels(scheduler, self._dask_cancels)

    # ---------------------------------------------------------------- events to clients

    def _advance(self, record: Record, state: State, at: float | None = None, **extra: Any) -> bool:
        """Change a record's state and tell those who follow it."""
        at = time.time() if at is None else at
        if not record.life.advance(state, max(at, record.life.history[-1].timestamp)):
            return False
        self._tell(record, state, extra)
        return True

    def _tell(self, record: Record, state: State | None, extra: dict[str, Any]) -> None:
        at = record.life.history[-1].timestamp
        for client in record.watchers:
            if not self._events:
                self._loop.call_soon(self._send_events)
            self._events[client].append((record.id, state and str(state), at, extra))

    def _send_events(self) -> None:
        events, self._events = self._events, defaultdict(list)
        for client, messages in events.items():
            adapter.send_event(self.scheduler, client, messages)

    # ---------------------------------------------------------------- Dask's events

    def update_graph(
        self, scheduler: Scheduler, *, client: str, keys: set[Key], tasks: list[Key], **kwargs: Any
    ) -> None:
        """New tasks are there, and none has moved yet: park those that are units."""
        # Dask only logs what is raised here, and would then run the unit anywhere.
        units = []
        for task, unit in adapter.units_in(scheduler, tasks):
            if task.key not in self._unit_of:  # else it is a unit whose result a new one takes
                adapter.park(task)
                units.append((task, unit))
        if not units:
            return
        adapter.pin(scheduler, [task.key for task, _ in units])
        for task, unit in sorted(units, key=lambda pair: pair[1].submitted):
            task.retries = unit.retries
            adapter.prioritize(task, unit.priority, unit.submitted)
            try:
                self._admit(task, unit, client)
            except Exception as error:
                if not isinstance(error, PilotError):
                    logger.exception("unit %s could not be admitted", unit.id)
                self._loop.call_soon(self._fail, self.records.units[unit.id], error)
        # Before Dask tells of the tasks: a client takes one that ends without having been admitted for refused.
        self._send_events()

    def _admit(self, task: TaskState, unit: UnitTask, client: str) -> None:
        record = UnitRecord(unit.id, str(task.key), unit.request.pool, unit.submitted, {client}, unit.request)
        record.priority = unit.priority
        record.order = unit.submitted
        record.directory = unit.directory or unit.id
        record.outputs = tuple(du for du, _ in unit.outputs)
        record.recompute = not isinstance(unit.work, Program)
        self.records.units[unit.id] = record
        self._unit_of[task.key] = record
        self._advance(record, State.Pending, unit.submitted)
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

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """A task has changed its state."""
        record = self._unit_of.get(key)
        if record is None:
            return
        if finish == "memory":
            self._succeeded(record, kwargs)
        elif finish == "erred":
            self._ended(record, State.Failed)
        elif finish == "no-worker":
            if start == "no-worker":  # it was bound to a worker that takes no tasks now
                self.matcher.release(record.id)
                record.worker = None
            self._parked(record)
        elif start == "processing":
            self._taken_back(record)
        elif start == "no-worker" and finish == "released":
            self.matcher.withdraw(record.id)
            record.runnable = False
        elif finish == "forgotten":
            self._ended(record, State.Canceled)
            self._unit_of.pop(key, None)

    def _dask_cancels(self, keys: Iterable[Key]) -> None:
        """A client cancels futures; those that are units' are canceled as the units are."""
        self.call_cancel_units([self._unit_of[key].id for key in keys if key in self._unit_of])

    def _parked(self, record: UnitRecord) -> None:
        task = self.scheduler.tasks[record.key]
        adapter.park(task)
        record.runnable = True
        if record.life.state.is_final:
            # Its result was lost with its worker. A small one is in the record, and a program must not run twice.
            if record.life.state is State.Done and record.recompute and record.result is None:
                self._enqueue(record)
        elif not record.missing:
            self._enqueue(record)

    def _enqueue(self, record: UnitRecord) -> None:
        self.matcher.submit(record.id, record.request, now=time.time(), priority=record.priority, order=record.order)
        self._match_soon()

    def _taken_back(self, record: UnitRecord) -> None:
        """A bound task left its worker before it ended: canceled, failed with a retry left, or its worker died."""
        adapter.park(self.scheduler.tasks[record.key])
        self._stop(record)
        self._stop_writing(record)
        if not record.life.state.is_final and record.life.state is not State.Pending:
            self._advance(record, State.Pending)
        self._match_soon()

    def _stop(self, record: UnitRecord) -> None:
        """Have a unit's worker stop it, if it is there."""
        worker, record.worker = record.worker, None
        if worker is not None and worker in self.scheduler.workers:
            # What it started may still run: its slots are free when the worker says so.
            reservation = f"{record.id}#{record.attempt}"
            self.matcher.keep(record.id, reservation)
            adapter.order(self.scheduler, worker, {"what": "stop", "key": record.key, "reservation": reservation})
        else:
            self.matcher.release(record.id)

    def _succeeded(self, record: UnitRecord, message: dict[str, Any]) -> None:
        computed = [s for s in message.get("startstops") or () if s["action"] == "compute"]
        self.matcher.release(record.id)
        record.worker = None
        self._stop_writing(record)
        self._match_soon()
        if record.life.state.is_final:  # recomputed
            return
        begun, ended = (computed[0]["start"], computed[-1]["stop"]) if computed else (None, None)
        if record.life.state is State.Pending:
            self._advance(record, State.Running, begun)
        if begun is not None and ended is not None:
            self.matcher.runtimes.observe(record.request.kind, ended - begun)
        record.result = (message.get("metadata") or {}).get(adapter.HANDLER)
        self._advance(record, State.Done, ended, result=record.result, pilot=record.pilot)
        for du in record.outputs:
            self._written(self.records.data[du], record)

    def _fail(self, record: UnitRecord, error: BaseException) -> None:
        """Have a unit fail, for a reason that lies outside of its work."""
        if not record.life.state.is_final:
            record.error = error
            adapter.fail(self.scheduler, record.key, error)

    def _ended(self, record: UnitRecord, state: State) -> None:
        """A unit failed, or is canceled: everything that it held or promised is undone."""
        self.matcher.withdraw(record.id)
        self.matcher.release(record.id)
        bound, record.worker = record.worker, None
        self._stop_writing(record)
        for du in record.missing:
            if du in self.records.data:
                self.records.data[du].waiting.discard(record.id)
        self._match_soon()
        if record.life.state.is_final:
            return
        if state is State.Failed and record.life.state is State.Pending and bound:
            self._advance(record, State.Running)
        self._advance(record, state, pilot=record.pilot)
        for du in record.outputs:
            data = self.records.data.get(du)
            if data is not None and record.id in data.writers:
                data.writers.discard(record.id)
                self._lose(data, self._unwritten(du, record))

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """A worker has joined; if its tags name a pilot, its slots are that pilot's."""
        tags, threads = adapter.worker_tags(scheduler, worker)
        pilot = self.records.pilots.get(tags.get("pilot", ""))
        if pilot is None:
            return
        if pilot.life.state.is_final:
            self._in_background(scheduler.remove_worker(worker, stimulus_id=f"dpilot-late-{time.time()}"))
            return
        pilot.workers.add(worker)
        self._pilot_at[worker] = pilot.id
        self.matcher.add_worker(pilot.id, worker, threads)
        self._status_changed(worker)

    def log_event(self, topic: str, msg: Any) -> None:
        """Dask logs an event. Only so does it tell plugins that a worker now takes tasks, or is paused."""
        if topic in self._pilot_at and adapter.is_status_change(msg):
            self._loop.call_soon(self._status_changed, topic)  # the change itself follows

    def _status_changed(self, worker: str) -> None:
        pilot = self.records.pilots.get(self._pilot_at.get(worker, ""))
        if pilot is None:
            return
        is_open = adapter.is_running(self.scheduler, worker)
        self.matcher.open_worker(pilot.id, worker, is_open)
        if is_open:
            for store in self.records.stores.values():
                self._let_reach(worker, store)
        if is_open and pilot.life.state is State.Pending:
            self._advance(pilot, State.Running)
            if pilot.walltime_s is not None:
                self._loop.call_later(pilot.walltime_s, self._out_of_time, pilot)
        self._match_soon()

    def _let_reach(self, worker: str, store: StoreRecord) -> None:
        """Have a worker connect to a store before a unit waits for it."""
        if not store.life.state.is_final and adapter.is_running(self.scheduler, worker):
            adapter.order(self.scheduler, worker, {"what": "reach", "store": pickle.dumps(store.store)})

    def _out_of_time(self, pilot: PilotRecord) -> None:
        if not pilot.life.state.is_final:
            self._in_background(self._close_pilot(pilot, State.Done))

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        """A worker is gone. Its units are parked again by now."""
        pilot = self.records.pilots.get(self._pilot_at.pop(worker, ""))
        if pilot is None:
            return
        pilot.workers.discard(worker)
        self.matcher.remove_worker(pilot.id, worker)
        if not pilot.workers and not pilot.life.state.is_final:
            self._loop.call_later(_LAST_WORDS_S, self._without_workers, pilot)
        self._match_soon()

    def _without_workers(self, pilot: PilotRecord) -> None:
        if not pilot.workers and not pilot.life.state.is_final:
            self._end_pilot(pilot, State.Failed, PilotLaunchError(f"all workers of {pilot.id} are gone; see its log"))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client is gone: it follows nothing any more."""
        self._events.pop(client, None)
        records = self.records
        for table in (records.services, records.pilots, records.stores, records.data, records.units):
            for record in table.values():
                record.watchers.discard(client)

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
        if not len(self.matcher):
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
        if bound:
            adapter.bind(self.scheduler, bound)
        if matching.recheck_s is not None:
            self._recheck = self._loop.call_later(matching.recheck_s, self._match_soon)

    def _tell_begun(self) -> None:
        begun, self._begun = self._begun, []
        for record, attempt, at in begun:
            if record.worker is not None and record.attempt == attempt and record.life.state is State.Pending:
                self._advance(record, State.Staging if record.request.inputs else State.Running, at, pilot=record.pilot)

    # ---------------------------------------------------------------- reports of running units

    def take_report(self, worker: str, unit: str, what: str, details: dict[str, Any]) -> None:
        """A worker tells of a unit: what it has staged, that it collects outputs, that its slots are free."""
        if what == "ended":
            self.matcher.release(unit)
            self._match_soon()
            return
        record = self.records.units.get(unit)
        if record is None or record.life.state.is_final:
            return
        if what == "staged":
            record.nbytes = tuple(details["nbytes"])
            self._advance(record, State.Staging, details["at"] - details["seconds"], pilot=record.pilot)
            self._advance(record, State.Running, details["at"])
            self._learn(record, details)
        elif what == "overdue" and record.worker == worker:
            self._overdue(record, details["error"])
        elif what == "collecting":
            self._advance(record, State.Running, details["at"], pilot=record.pilot)
            self._advance(record, State.Staging, details["at"])

    def _overdue(self, record: UnitRecord, error: bytes) -> None:
        """A function runs longer than it may. It cannot be interrupted: its slots are free when it returns."""
        if adapter.retry(self.scheduler, record.key):
            adapter.unbind(self.scheduler, [record.key])
        else:
            self._stop(record)
            self._fail(record, pickle.loads(error))

    def _learn(self, record: UnitRecord, details: dict[str, Any]) -> None:
        """Take in what a unit's staging showed: how fast links are, and what its machine has in its cache now."""
        pilot = self.records.pilots.get(record.pilot or "")
        if pilot is None:
            return
        for du, pd, nbytes, seconds in details["transfers"]:
            store, data = self.records.stores.get(pd), self.records.data.get(du)
            if store is not None:
                self.matcher.policy.links.observe(store.site, pilot.site, nbytes, seconds)
            if data is not None and pilot.site.machine is not None:
                data.cached.add(pilot.site)
                self._view(data)
        for du in details["evicted"]:
            if du in self.records.data:
                self.records.data[du].cached.discard(pilot.site)
                self._view(self.records.data[du])

    # ---------------------------------------------------------------- data units

    def _view(self, data: DataRecord) -> None:
        """Let the matcher see a data unit as it is now."""
        manifest = data.manifest
        self.matcher.inputs[data.id] = InputView(
            data.id,
            manifest.nbytes if manifest else 0,
            len(manifest.files) if manifest else 0,
            (*(self.records.stores[pd].site for pd in data.replicas), *data.cached),
        )

    def _add_replica(self, data: DataRecord, pd: str, manifest: Manifest) -> None:
        store = self._store(pd)
        before = data.manifest.nbytes if data.manifest is not None and pd in data.replicas else 0
        store.used_nbytes += manifest.nbytes - before
        store.units[data.id] = None
        if data.manifest != manifest:
            data.cached.clear()
        data.manifest = manifest
        data.replicas[pd] = None
        self._view(data)

    def _tell_replicas(self, data: DataRecord, **extra: Any) -> None:
        self._tell(data, None, {"replicas": list(data.replicas), "coming": list(data.busy), **extra})

    def _written(self, data: DataRecord, writer: UnitRecord) -> None:
        data.writers.discard(writer.id)
        self._check_ready(data)

    def _check_ready(self, data: DataRecord) -> None:
        """If a data unit can be read now, let those go on that wait for it."""
        if data.life.state.is_final or not data.replicas:
            return
        self._advance(data, State.Running)
        self._tell_replicas(data)
        if not data.is_ready:
            return
        waiting, data.waiting = data.waiting, set()
        for unit in waiting:
            record = self.records.units[unit]
            record.missing.discard(data.id)
            if not record.missing and record.runnable and not record.life.state.is_final:
                self._enqueue(record)
        self._match_soon()

    def _lose(self, data: DataRecord, error: PilotError) -> None:
        """A data unit will never be complete: whoever waits for it fails with the reason."""
        if not data.life.state.is_final:
            data.error = error
            self._advance(data, State.Failed, error=pickle.dumps(error))
        waiting, data.waiting = data.waiting, set()
        for unit in waiting:
            self._loop.call_soon(self._fail, self.records.units[unit], _unreadable(unit, error))

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

    def _end_pilot(self, pilot: PilotRecord, state: State, error: BaseException | None) -> None:
        if pilot.life.state.is_final:
            return
        pilot.error = error
        bound = [r for r in self._unit_of.values() if r.pilot == pilot.id and r.worker is not None]
        for record in bound:
            self.matcher.release(record.id)
        self.matcher.remove_pilot(pilot.id)
        self._advance(pilot, state, error=pickle.dumps(error) if error is not None else None)
        if state is State.Failed:
            for unit in pilot.units:
                failure = UnitError(f"{unit} was submitted to {pilot.id}, which failed: {error}")
                self._fail(self.records.units[unit], failure)
        else:
            self.call_cancel_units(pilot.units)
        adapter.unbind(self.scheduler, [record.key for record in bound if not record.life.state.is_final])
        self._pools()
        self._match_soon()

    def _pools(self) -> None:
        """Let the matcher know which pilots each compute data service may use."""
        for service in self.records.services.values():
            if service.id.startswith("cds-"):
                self.matcher.pools[service.id] = {
                    pilot.id
                    for pilot in self.records.pilots.values()
                    if pilot.owner in service.members and not pilot.life.state.is_final
                }
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

    def _stores_of(self, owner: str) -> list[StoreRecord]:
        """The stores that a compute data service (or the store or data service itself) may use."""
        record = self.records.find(owner)
        if isinstance(record, StoreRecord):
            return [record]
        service = _expect(record, ServiceRecord)
        owners = {owner, *service.members}
        return [s for s in self.records.stores.values() if s.owner in owners and not s.life.state.is_final]

    # ---------------------------------------------------------------- calls

    async def answer(self, call: str, arguments: bytes) -> bytes:
        """Carry out a call of a client or worker; the reply is (True, value) or (False, error), pickled."""
        try:
            value = getattr(self, f"call_{call}")(**pickle.loads(arguments))
            if asyncio.iscoroutine(value):
                value = await value
            return pickle.dumps((True, value))
        except PilotError as error:
            return pickle.dumps((False, error))
        except Exception as error:
            logger.exception("the call %s failed", call)
            return pickle.dumps((False, PilotError(f"the scheduler failed at {call}: {error!r}; see its log")))

    def call_hello(self) -> str:
        """The version of dpilot here."""
        return version

    def call_snapshot(self, id: str, client: str) -> dict[str, Any]:
        """All about an object, which the client follows from now on."""
        record = self.records.find(id)
        record.watchers.add(client)
        return record.snapshot()

    def call_add_service(self, id: str, client: str) -> None:
        """A service begins."""
        record = ServiceRecord(id, time.time(), {client})
        self.records.services[id] = record
        self._advance(record, State.Running)
        self._pools()

    def call_set_member(self, service: str, member: str, present: bool) -> None:
        """Add a service to, or remove it from, a compute data service."""
        members = self._service(service).members
        if present:
            self._service(member)
            members[member] = None
        else:
            members.pop(member, None)
        self._pools()

    def call_members(self, id: str) -> dict[str, list[str]]:
        """Ids of all that belongs to a service, a pilot or a store, by kind."""
        owners = {id, *getattr(self.records.find(id), "members", ())}
        units = self.records.units.values()
        return {
            "pilots": [r.id for r in self.records.pilots.values() if r.owner in owners],
            "stores": [r.id for r in self.records.stores.values() if r.owner in owners],
            "data": [r.id for r in self.records.data.values() if r.owner in owners or id in r.replicas or id in r.busy],
            "units": [r.id for r in units if r.owner == id or r.request.pilot == id],
        }

    def call_end_service(self, id: str) -> None:
        """A service is canceled: with a compute data service, its units that have not ended are, too."""
        service = self._service(id)
        units = [r for r in self.records.units.values() if r.owner == id]
        self.call_cancel_units([r.id for r in units])
        adapter.unpin(self.scheduler, [r.key for r in units])
        self._advance(service, State.Canceled)

    def call_add_pilot(self, id: str, owner: str, client: str, details: dict[str, Any]) -> None:
        """A pilot is about to be started."""
        record = PilotRecord(id, owner, time.time(), {client}, details)
        self.records.pilots[id] = record
        self.matcher.add_pilot(id, record.site, record.slots)
        self._advance(record, State.Pending)
        self._pools()

    def call_pilot_directory(self, pilot: str) -> str:
        """The directory in which the sandboxes of a pilot's units are."""
        return str(self._pilot(pilot).details["working_directory"])

    def call_pilot_ended(self, id: str, code: int, log: str) -> None:
        """The process that held a pilot has ended."""
        pilot = self._pilot(id)
        if code == 0:
            self._end_pilot(pilot, State.Done, None)
        else:
            tail = f"; the end of its log:\n{log}" if log else ""
            self._end_pilot(
                pilot, State.Failed, PilotLaunchError(f"{id} ended with status {code}{tail}", log=log, exit_code=code)
            )

    async def call_cancel_pilot(self, id: str) -> None:
        """End a pilot: its units go elsewhere, and so do results that only its workers hold."""
        pilot = self._pilot(id)
        if not pilot.life.state.is_final:
            await self._close_pilot(pilot, State.Canceled)

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
        self._tell(pilot, None, {"closed": True})

    def call_free_slots(self, id: str) -> int:
        """How many slots of a pilot no unit holds."""
        self._pilot(id)
        return self.matcher.idle_slots(id)

    # -- stores and data units

    def call_add_store(self, id: str, owner: str, client: str, store: Store, used_nbytes: int) -> None:
        """A store, which the client has opened."""
        record = StoreRecord(id, owner, time.time(), {client}, store)
        record.used_nbytes = used_nbytes
        self.records.stores[id] = record
        self._advance(record, State.Running)
        for worker in self._pilot_at:
            self._let_reach(worker, record)

    def call_end_store(self, id: str) -> None:
        """A store is used no more; what is in it stays there."""
        store = self._store(id)
        self._advance(store, State.Canceled)
        for du in list(store.units):
            data = self.records.data.get(du)
            if data is not None:
                self._drop_replica(data, id)

    def call_add_data(
        self, id: str, owner: str, client: str, description: dict[str, Any], nbytes: int, stores: Collection[str] | None
    ) -> list[str]:
        """A new data unit. Returns the stores on which it is to be put, with room set aside on each.

        `stores`: on these; None: on those that its owner's stores and its labels suggest.
        """
        wanted = Site(description["datacenter"], description["machine"])
        if stores is None:
            views = [_store_view(store) for store in self._stores_of(owner)]
            stores = choose_stores(views, wanted, nbytes, description["replicas"])
        reserved: list[StoreRecord] = []
        try:
            for pd in stores:
                self._store(pd).reserve(id, nbytes)
                reserved.append(self._store(pd))
        except StoreFullError:
            for store in reserved:
                store.reserved.pop(id, None)
            raise
        record = DataRecord(id, owner, time.time(), {client}, description)
        record.busy = dict.fromkeys(stores)
        self.records.data[id] = record
        self._view(record)
        self._advance(record, State.Pending)
        return list(stores)

    def call_begin_replica(self, id: str, pd: str) -> tuple[Manifest, list[Store], Store] | None:
        """A client is about to copy a data unit to a store: what, from where, and to where.

        None: there is nothing to do, for it is there, or on its way there.
        """
        data, store = self._data(id), self._store(pd)
        if pd in data.replicas or pd in data.busy:
            return None
        if data.manifest is None or not data.replicas:
            raise DataError(f"{id} has no replica yet to copy to {pd}; wait() for it first")
        store.reserve(id, data.manifest.nbytes)
        data.busy[pd] = None
        self._tell_replicas(data)
        sources = [self._store(source) for source in data.replicas]
        sources.sort(key=lambda source: (source.site.distance(store.site), source.id))
        return data.manifest, [source.store for source in sources], store.store

    def call_staging(self, id: str) -> None:
        """The files of a data unit begin to move."""
        data = self._data(id)
        if data.life.state is State.Pending:
            self._advance(data, State.Staging)

    def call_add_replica(self, id: str, pd: str, manifest: Manifest) -> None:
        """A replica is complete."""
        data = self._data(id)
        self._store(pd).reserved.pop(id, None)
        data.busy.pop(pd, None)
        if data.life.state.is_final:
            self._tell_replicas(data)
            raise StateError(f"{id} is {data.life.state}; its new replica on {pd} is not used")
        self._add_replica(data, pd, manifest)
        self._check_ready(data)

    def call_replica_failed(self, id: str, pd: str, error: PilotError) -> None:
        """A replica could not be made; the data unit has failed if it has no other one, and none is on its way."""
        data = self._data(id)
        self._store(pd).reserved.pop(id, None)
        data.busy.pop(pd, None)
        self._tell_replicas(data, error=pickle.dumps(error))
        if not data.replicas and not data.busy:
            self._lose(data, error)

    def call_changed(self, id: str, manifest: Manifest) -> None:
        """Files were added to, or removed from, every replica of a data unit."""
        data = self._data(id)
        for pd in data.replicas:
            store = self._store(pd)
            store.used_nbytes += manifest.nbytes - (data.manifest.nbytes if data.manifest else 0)
        data.manifest = manifest
        data.cached.clear()
        self._view(data)
        self._check_ready(data)

    def call_reserve(self, id: str, nbytes: int) -> list[tuple[str, Store]]:
        """Set room aside on every store of a data unit, for files to be added; returns the stores."""
        stores = [self._store(pd) for pd in self._data(id).replicas]
        try:
            for store in stores:
                store.reserve(id, nbytes)
        except StoreFullError:
            self.call_unreserve(id)
            raise
        return [(store.id, store.store) for store in stores]

    def call_unreserve(self, id: str) -> None:
        """The files of a data unit have been added, or will not be: what was set aside for them is free."""
        for pd in self._data(id).replicas:
            self._store(pd).reserved.pop(id, None)

    def call_seal(self, id: str) -> None:
        """A data unit is complete as it is, even if empty."""
        data = self._data(id)
        data.sealed = True
        self._check_ready(data)

    def call_replicas(self, id: str) -> list[tuple[str, Store]]:
        """The stores that have a replica of a data unit."""
        return [(pd, self._store(pd).store) for pd in self._data(id).replicas]

    def _drop_replica(self, data: DataRecord, pd: str) -> None:
        if pd in data.replicas:
            del data.replicas[pd]
            store = self._store(pd)
            store.units.pop(data.id, None)
            store.used_nbytes -= data.manifest.nbytes if data.manifest is not None else 0
            self._view(data)
            self._tell_replicas(data)

    def call_remove_replica(self, id: str, pd: str) -> None:
        """A replica is gone; with the last one, the data unit is."""
        data = self._data(id)
        self._drop_replica(data, pd)
        if not data.replicas and not data.life.state.is_final:
            data.error = DataError(f"data unit {id} was removed from its last store" if pd else f"{id} was canceled")
            self._advance(data, State.Canceled)
            self._lose(data, data.error)

    # -- compute units

    def call_inputs(self, unit: str, pilot: str) -> dict[str, tuple[Manifest, list[tuple[str, Store, int, bool]]]]:
        """For each input: its manifest, and its replicas, nearest first: id, store, distance, whether to link."""
        record, site = self._unit(unit), self._pilot(pilot).site
        answer = {}
        for du in record.request.inputs:
            data = self._data(du)
            if data.manifest is None or not data.replicas:
                raise InputError(f"data unit {du} has lost its replicas since {unit} was placed")
            stores = [self._store(pd) for pd in data.replicas]
            stores.sort(key=lambda store: (store.site.distance(site), store.id))
            rows = [(s.id, s.store, int(s.site.distance(site)), _may_link(s.site, site)) for s in stores]
            answer[du] = (data.manifest, rows)
        return answer

    async def call_outputs(self, unit: str, pilot: str) -> dict[str, tuple[str, Store, int | None]]:
        """Where each output of a unit goes: the store that has the data unit, else the nearest one.

        The data units are the unit's to write until it ends: of several writers, the others wait here.
        """
        record, site = self._unit(unit), self._pilot(pilot).site
        answer: dict[str, tuple[str, Store, int | None]] = {}
        attempt = record.attempt
        for du in sorted(record.outputs):
            await self._writing[du].acquire()
            if record.worker is None or record.attempt != attempt:  # it was taken back while it waited here
                self._writing[du].release()
                raise UnitCanceledError(f"{unit} writes no more: this attempt was stopped")
            self._writer[du] = unit
        for du in record.outputs:
            data = self._data(du)
            stores = self._stores_of(data.owner)
            pd = next(iter(data.replicas), None) or nearest_store(map(_store_view, stores), site)
            if pd is None:
                raise DataError(
                    f"data unit {du} can be put nowhere: {data.owner} has no store with room; add a PilotData"
                )
            store = self._store(pd)
            answer[du] = (pd, store.store, _store_view(store).free_nbytes)
        return answer

    def call_collected(self, unit: str, du: str, pd: str, manifest: Manifest) -> None:
        """A unit has put its files into a data unit. It is not readable before all its writers have ended."""
        data = self._data(du)
        for stale in [other for other in data.replicas if other != pd]:
            self._drop_replica(data, stale)
        self._add_replica(data, pd, manifest)

    def call_hold(self, id: str, client: str) -> None:
        """A client wants to keep, and know of, the result of a unit."""
        record = self._unit(id)
        if not adapter.hold(self.scheduler, record.key, client):
            raise StateError(f"the result of {id} ({record.life.state}) is gone: it was let go with its service")

    def call_cancel_units(self, ids: Collection[str]) -> None:
        """Cancel units that have not ended."""
        records = [r for r in map(self.records.units.get, ids) if r is not None and not r.life.state.is_final]
        for record in records:
            self._stop(record)
            self._ended(record, State.Canceled)
        adapter.cancel(self.scheduler, [r.key for r in records])

    def call_explain(self, id: str) -> Decision:
        """Why a unit is where it is, or what it waits for."""
        record = self._unit(id)
        if record.decision is not None and (record.worker is not None or record.life.state.is_final):
            return record.decision
        return self.matcher.explain(id) or Decision(id, None, self._why(record))

    def _why(self, record: UnitRecord) -> str:
        if record.life.state.is_final:
            return f"is {record.life.state}"
        if record.missing:
            return "waits for its input: " + "; ".join(self._why_not_ready(du) for du in sorted(record.missing))
        if not record.runnable:
            return "waits for the results of the units that it takes as arguments"
        return f"is {record.life.state}"

    def _why_not_ready(self, du: str) -> str:
        data = self.records.data[du]
        if data.writers:
            return f"{du} is written by {', '.join(sorted(data.writers)[:3])}"
        if data.replicas:
            return f"{du} is empty and nothing writes to it (seal() it if it is meant to be empty)"
        return f"{du} is {data.life.state} and has no replica yet"

    def call_why_waiting(self, ids: Iterable[str]) -> dict[str, str]:
        """For each unit that waits: why."""
        answer = {}
        for id in ids:
            record = self.records.find(id)
            if isinstance(record, UnitRecord) and record.worker is None and not record.life.state.is_final:
                answer[id] = self.call_explain(id).reason
        return answer


def _matcher() -> Matcher:
    names = {
        Distance.SAME_MACHINE: "same-machine",
        Distance.SAME_DATACENTER: "same-datacenter",
        Distance.OTHER_DATACENTER: "other-datacenter",
    }
    links = Links(
        bandwidth_bytes_per_s={d: float(config.nbytes(f"placement.bandwidth.{name}")) for d, name in names.items()},
        latency_s={d: config.seconds(f"placement.latency.{name}") for d, name in names.items()},
    )
    return Matcher(
        Policy(links, prefer_wait_s=config.seconds("placement.prefer-wait")),
        in_flight_s=config.seconds("placement.in-flight"),
        unknown_runtime_s=config.seconds("placement.unknown-runtime"),
    )


def _unreadable(unit: str, error: BaseException) -> InputError:
    return InputError(f"{unit} cannot run: {error}", root=error.root if isinstance(error, InputError) else str(error))


def _store_view(store: StoreRecord) -> StoreView:
    limit = store.store.nbytes_limit
    free = None if limit is None else max(0, limit - store.used_nbytes - sum(store.reserved.values()))
    return StoreView(store.id, store.site, free)


def _may_link(store: Site, pilot: Site) -> bool:
    """Whether files may be linked where the path can be seen: not if the labels say that the two are apart."""
    if store.distance(pilot) is Distance.OTHER_DATACENTER:
        return False
    return not (store.machine and pilot.machine and store.machine != pilot.machine)


def _expect(record: Record, kind: type[R]) -> R:
    if not isinstance(record, kind):
        raise UnknownObjectError(f"{record.id} is another kind of object than was asked for")
    return record
