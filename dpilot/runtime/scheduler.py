"""The scheduler plugin: where states change, units are bound, and every object has its record.

Four things reach it: Dask's own events (graphs, transitions, workers and clients that come and go), calls
of clients and workers (``call_*``), reports of running units, and time. Each changes records or the
matcher; then the matcher is asked once, at the end of the loop's turn, what to bind.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterable
from typing import Any

from dask.typing import Key
from distributed import Scheduler, SchedulerPlugin

from dpilot.errors import (
    PilotError,
    PilotLaunchError,
)
from dpilot.runtime import adapter
from dpilot.runtime.account import AccountCalls
from dpilot.runtime.crowd import Crowd
from dpilot.runtime.records import PilotRecord, UnitRecord
from dpilot.states import State

__all__ = ["PLUGIN", "PilotPlugin"]

PLUGIN = "dpilot"
logger = logging.getLogger(__name__)

#: How long the agent of a pilot without workers has to tell why, before the pilot is called Failed.
_LAST_WORDS_S = 2.0
#: How long workers that were restarted have to come back.
_RETURN_S = 60.0


class PilotPlugin(AccountCalls, SchedulerPlugin):
    """dpilot on the scheduler; ``client.register_plugin`` installs it, once."""

    name = PLUGIN
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Dask calls this when the plugin is registered."""
        self._begin(scheduler)
        adapter.hide_parked(scheduler)
        adapter.answer_calls(scheduler, self.answer)
        adapter.answer_reports(scheduler, self.take_report)
        adapter.answer_cancels(scheduler, self._dask_cancels)
        self._crowd = Crowd(scheduler, lambda: self._pilot_at, self._make_room)
        self._takes: dict[str, bool] = {}  # worker -> whether the matcher believes that it takes units
        adapter.on_seceded(scheduler, self._make_room)

    async def before_close(self) -> None:
        """The scheduler ends."""
        self.observers.close()

    # ---------------------------------------------------------------- tasks

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

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """A task has changed its state."""
        record = self._unit_of.get(key)
        if record is None:
            if self._crowd.moved(key, start, finish):
                self._loop.call_soon(self._crowd.end_turns)  # after the matcher
            return
        worker = record.worker
        if finish == "memory":
            self._succeeded(record, kwargs)
        elif finish == "erred":
            record.failure = kwargs.get("exception_text")
            self._ended(record, State.Failed, adapter.computed(kwargs, record.bound)[0])
        elif finish == "no-worker":
            if start == "no-worker":  # it was bound to a worker that takes no tasks now
                self.matcher.release(record.id)
                self.unbound(record)
            self._parked(record)
        elif start == "processing":
            self._taken_back(record)
        elif start == "no-worker" and finish == "released":
            self.matcher.withdraw(record.id)
            record.runnable = False
        elif start in ("memory", "erred") and finish == "released":  # Dask would run it anew at once
            adapter.park(self.scheduler.tasks[key])
        elif finish == "forgotten":
            self._ended(record, State.Canceled)
            self._unit_of.pop(key, None)
        if worker is not None and self._crowd:
            self._make_room(worker)

    def unbound(self, record: UnitRecord) -> str | None:
        """A unit has left its worker, which is returned: None if it was at none."""
        worker = super().unbound(record)
        if worker is not None and self._crowd:
            self._loop.call_soon(self._make_room, worker)  # Dask has yet to take its task from there
        return worker

    def _dask_cancels(self, keys: Iterable[Key]) -> None:
        """A client cancels futures; those that are units' are canceled as the units are."""
        self._cancel_units([self._unit_of[key].id for key in keys if key in self._unit_of])

    def restart(self, scheduler: Scheduler) -> None:
        """A client has called ``restart()``: Dask has canceled all units, and now ends its workers; ours come back."""
        for pilot in self.records.pilots.values():
            pilot.returns = bool(pilot.workers)
            for worker in pilot.workers:
                adapter.order(scheduler, worker, {"what": "restart"})

    # ---------------------------------------------------------------- workers and clients

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
        pilot.returns = False
        self._pilot_at[worker] = pilot.id
        self.caches.join(worker, pilot.id, pilot.machine)
        memory_nbytes = adapter.memory_nbytes(scheduler, worker)
        gpus = pilot.details["gpus_per_worker"]
        self.matcher.add_worker(pilot.id, worker, threads, memory_nbytes=memory_nbytes, gpus=gpus)
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
        self._make_room(worker)
        if is_open:
            adapter.order(self.scheduler, worker, {"what": "work_in", "directory": pilot.details["working_directory"]})
            for store in self.records.stores.values():
                self._let_reach(worker, store)
        if is_open and pilot.life.state is State.Pending:
            self.advance(pilot, State.Running)
            if pilot.walltime_s is not None:
                self.matcher.set_end(pilot.id, time.time() + pilot.walltime_s)
                self._loop.call_later(pilot.walltime_s, self._out_of_time, pilot)
        self._match_soon()

    def _make_room(self, worker: str) -> None:
        """Have a worker take units, or not: it may be paused, or full of other people's tasks."""
        pilot = self._pilot_at.get(worker)
        takes = adapter.is_running(self.scheduler, worker) and self._crowd.has_room(worker)
        if pilot is not None and takes is not self._takes.get(worker):
            self._takes[worker] = takes
            self.matcher.open_worker(pilot, worker, takes)
            self._match_soon()

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        """A worker is gone. Its units are parked again by now."""
        pilot = self.records.pilots.get(self._pilot_at.pop(worker, ""))
        self._takes.pop(worker, None)
        self._usual_s.pop(worker, None)
        if pilot is None:
            return
        pilot.workers.discard(worker)
        self.caches.leave(worker, pilot.machine)
        units = (self.records.units.get(unit) for unit in self.matcher.units_at(pilot.id, worker))
        gangs = [record for record in units if record is not None and record.ranks and record.worker != worker]
        self.matcher.remove_worker(pilot.id, worker)
        for record in gangs:
            self._lost(record, worker)
        for store in self.records.stores.values():
            store.hosts.discard(worker)
            store.asked.discard(worker)
        self.mover_gone(worker)
        if not pilot.workers and not pilot.life.state.is_final:
            patience_s = _RETURN_S if pilot.returns else _LAST_WORDS_S
            self._loop.call_later(patience_s, self._without_workers, pilot)
        self._match_soon()

    def _sees(self, worker: str, store: str, sees: bool) -> None:
        """A worker says whether it sees a store as local files."""
        record = self.records.stores.get(store)
        if record is not None and worker in record.asked:
            record.asked.discard(worker)
            if sees:
                record.hosts.add(worker)
            self.catalogue.transfers.pump()

    def _without_workers(self, pilot: PilotRecord) -> None:
        if not pilot.workers and not pilot.life.state.is_final:
            self._end_pilot(pilot, State.Failed, PilotLaunchError(f"all workers of {pilot.id} are gone; see its log"))

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client is gone: it follows nothing any more."""
        self._events.pop(client, None)
        records = self.records
        for table in (records.services, records.pilots, records.stores, records.data, records.units):
            for record in table.values():
                record.unfollow(client)
        self.mover_gone(client)

    # ---------------------------------------------------------------- reports of running units

    def take_report(self, worker: str, unit: str, what: str, details: dict[str, Any]) -> None:
        """A worker tells of a unit: what it has staged, that it collects outputs, that its slots are free."""
        if what == "ended":
            self.matcher.release(unit)
            self._match_soon()
            return
        if what == "moved":
            self.catalogue.transfers.moved(unit, details["nbytes"])
            return
        if what == "carried":
            self.job_ended(unit, details["good"], pickle.loads(details["value"]), details["nbytes"])
            return
        if what == "sees":
            self._sees(worker, unit, details["sees"])
            return
        if what == "held up":
            self.held_up(worker, details["runs"], details["back"])
            return
        if what == "given back":
            self.given_back(worker, unit, details["attempt"])
            return
        record = self.records.units.get(unit)
        if record is None or record.life.state.is_final:
            return
        if what == "warning":
            self.warn(record, details["text"])
        elif what == "damaged":
            self.suspect(details["du"], details["pd"])
        elif what == "staged":
            record.staged_s = details["seconds"]
            self.advance(record, State.Staging, details["at"] - details["seconds"], pilot=record.pilot)
            self.advance(record, State.Running, details["at"])
            self._learn(record, details)
            brought_s = max([seconds for *_, seconds, _ in details["transfers"]], default=0.0)
            self.has_inputs(record, brought_s, details["at"])
        elif what == "overdue" and record.worker == worker:
            self._overdue(record, details["error"])
        elif what == "lost" and record.worker == worker:
            self._lost(record, details["worker"])
        elif what == "collecting":
            self.advance(record, State.Running, details["at"], pilot=record.pilot)
            self.advance(record, State.Staging, details["at"])
