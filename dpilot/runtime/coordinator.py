"""What becomes of units: their lives on the scheduler, and what is bound.

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
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

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
)
from dpilot.placement import Copying, Site
from dpilot.runtime import adapter
from dpilot.runtime.caches import Caches
from dpilot.runtime.catalogue import Catalogue
from dpilot.runtime.records import DataRecord, UnitRecord
from dpilot.runtime.staging import told
from dpilot.runtime.supply import Supply
from dpilot.runtime.work import Program, UnitTask
from dpilot.states import State

__all__ = ["Coordinator"]

logger = logging.getLogger(__name__)

#: How long a unit may have been at its worker before clients are told that it runs: most tiny units
#: have ended by then, and one message tells both.
_TELL_AFTER_S = 0.02
#: How much of a longer way of messages is believed to be usual from now on.
_BELIEVED = 0.05
#: How long after a mistake it is tried again to place units.
_AGAIN_S = 1.0
#: Where outputs may go to more sites than this, there is one near by.
_MOST_SITES = 8
#: The result of a program.
_NONE = pickle.dumps(None)


class Coordinator(Supply):
    """The units of one scheduler, and the steps that change them."""

    def _begin(self, scheduler: Scheduler) -> None:
        super()._begin(scheduler)
        self._unit_of: dict[Key, UnitRecord] = {}
        self._pilot_at: dict[str, str] = {}
        self._begun: list[tuple[UnitRecord, int, float]] = []
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._writer: dict[str, str] = {}
        self._match_is_due = False
        self._recheck: asyncio.TimerHandle | None = None
        self._gap_s: dict[str, float] = {}  # by pilot: from when a unit is bound to when its end is known, less its run
        self._usual_s: dict[str, float] = {}  # by worker: from when it says that something is so until that is heard
        self._leaving: list[tuple[set[str], Callable[[], None]]] = []
        self.catalogue = Catalogue(scheduler, self.records, self.matcher, self)
        self.caches = Caches(self.records, self.catalogue.view)
        self.observers.begin(self)

    # ---------------------------------------------------------------- compute units

    def _admit(self, task: TaskState, unit: UnitTask, client: str) -> None:
        record = UnitRecord(unit.id, str(task.key), unit.request.pool, unit.submitted, (client,), unit.request)
        record.priority = unit.priority
        record.order = unit.submitted
        record.directory = unit.directory or unit.id
        record.outputs = tuple(du for du, _ in unit.outputs)
        record.program = sys.intern(unit.work.executable) if isinstance(unit.work, Program) else None
        record.recompute = record.program is None
        record.takes_results = bool(task.dependencies)
        record.ranks = unit.work.ranks if isinstance(unit.work, Program) else 0
        stages = unit.outputs or unit.transfers or task.dependencies
        record.is_plain = not stages and unit.request.slots == 1 and not unit.request.gpus and not record.ranks
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
                record.missing |= {du}
                data.waiting.add(unit.id)

    def _parked(self, record: UnitRecord) -> None:
        task = self.scheduler.tasks[record.key]
        adapter.park(task)
        record.runnable = True
        if record.life.state is State.Done:
            # Its result was lost with its worker. A small one is in the record, and a program must not run twice.
            record.is_plain = False  # it has begun before
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
        if record.outputs:
            record.request = record.request._replace(outputs=self._output_sites(record.outputs))
        self.matcher.submit(record.id, record.request, now=now, priority=record.priority, order=record.order)
        self._match_soon()

    def _output_sites(self, outputs: Iterable[str]) -> tuple[tuple[Site, ...], ...]:
        """Of each data unit, the sites of the stores that it may be written to; of very many none is named."""
        found = []
        for data in filter(None, map(self.records.data.get, outputs)):
            sites = {store.site for store in self.catalogue.targets(data)}
            found.append(tuple(sorted(sites, key=str)) if len(sites) <= _MOST_SITES else ())
        return tuple(sorted(found, key=str))

    def _taken_back(self, record: UnitRecord) -> None:
        """A bound task left its worker before it ended: canceled, failed with a retry left, or its worker died."""
        adapter.park(self.scheduler.tasks[record.key])
        if record.worker is not None:  # else it was given back, and has not begun
            record.is_plain = False
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
        for units, then in self._leaving and list(self._leaving):
            units.discard(record.id)
            if not units:
                self._leaving.remove((units, then))
                then()
        return worker

    def when_unbound(self, units: set[str], then: Callable[[], None]) -> None:
        """Do something once these units have left their workers."""
        self._leaving.append((units, then))

    def _succeeded(self, record: UnitRecord, message: dict[str, Any]) -> None:
        begun, ended = adapter.computed(message, record.bound)
        held = self.matcher.release(record.id)
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
            staged_s = record.staged_s + record.written_s
            self.matcher.observe(record.request.kind, max(0.0, ended - begun - staged_s))
            if record.outputs:
                self.matcher.outputs.observe(record.request.kind, record.written_nbytes)
            if held is not None and not held.waits and not record.bundled:
                self._observe_gap(record, ended - begun, held.follows)
        record.result = (message.get("metadata") or {}).get(adapter.HANDLER)
        self.advance(record, State.Done, ended, result=record.result, pilot=record.pilot)
        for du in record.outputs:
            self._written(self.records.data[du], record)

    def _observe_gap(self, record: UnitRecord, took_s: float, follows: bool) -> None:
        """Learn how long units of a pilot are on their way, there and back, from one that found a slot idle.

        Of one that follows another it is seen that they take no longer than it did.
        """
        if record.pilot is not None:
            gap_s = time.time() - record.bound - took_s
            known_s = self._gap_s.get(record.pilot)
            if known_s is not None:
                gap_s = min(gap_s, known_s) if follows else _usually_s(known_s, gap_s)
            self._set_gap(record.pilot, gap_s)

    def _set_gap(self, pilot: str, gap_s: float) -> None:
        self._gap_s[pilot] = max(0.0, gap_s)
        self.matcher.set_gap(pilot, self._gap_s[pilot])

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
        if not (len(self.matcher) or self.matcher.is_expecting):
            return
        now = time.time()
        try:
            matching = self.matcher.match(now)
        except Exception:  # a mistake of ours, because of which nobody must wait for ever
            logger.exception("units could not be placed; it is tried again in %s s", _AGAIN_S)
            self._recheck = self._loop.call_later(_AGAIN_S, self._match_soon)
            return
        bound: dict[Key, str] = {}
        bundled: dict[Key, bytes | None] = {}
        inputs: dict[tuple[str, tuple[str, ...]], bytes | None] = {}  # of bundled units: many read the same
        for binding in matching.bindings:
            record = self.records.units[binding.unit]
            record.pilot, record.worker, record.decision = binding.pilot, binding.worker, binding.decision
            record.attempt += 1
            bound[record.key] = binding.worker
            record.bundled = self._goes_in_a_bundle(record)
            if record.bundled:
                record.bound = now
                reads = binding.worker, record.request.inputs
                if reads not in inputs:
                    inputs[reads] = self._told_inputs(record)
                bundled[record.key] = inputs[reads]
                continue
            if not self._begun:
                self._loop.call_later(_TELL_AFTER_S, self._tell_begun)
            self._begun.append((record, record.attempt, now))
            record.bound = now
            self._announce(record, binding.worker)
        if bound:
            adapter.bind(self.scheduler, bound, bundled)
        for copy in matching.copies:
            self._in_background(self._bring_ahead(copy))
        if matching.recalls:
            self._recall(matching.recalls)
        self._ask_back(matching.returns)
        if matching.recheck_s is not None:
            self._recheck = self._loop.call_later(matching.recheck_s, self._match_soon)

    def _goes_in_a_bundle(self, record: UnitRecord) -> bool:
        """Whether a bound unit does: all that may be queued at a worker, else what is would be overtaken.

        But for what has inputs to be brought: others would wait for that.
        """
        matcher = self.matcher
        if not record.is_plain or matcher.runtimes.expected_s(record.request.kind) >= matcher.in_flight_s:
            return False
        return not matcher.transit.needs(record.id) or self._sees_inputs(record)

    async def _bring_ahead(self, copy: Copying) -> None:
        await self._bring(copy)
        self._match_soon()

    def held_up(self, worker: str, runs: dict[str, float], back: list[str]) -> None:
        """At a worker, units of bundles run longer than was thought, and others are given back: they have not begun."""
        for key, began in runs.items():
            record = self._at_in_bundle(key, worker)
            if record is not None and record.life.state is State.Pending:
                self.advance(record, State.Running, began, pilot=record.pilot)
        returned = [record for key in back if (record := self._at_in_bundle(key, worker)) is not None]
        for record in returned:
            self.unbound(record)
            self.matcher.release(record.id)
        adapter.unbind(self.scheduler, [record.key for record in returned])
        if returned:
            self.matcher.hold_up(self._pilot_at[worker], worker)

    def _at_in_bundle(self, key: str, worker: str) -> UnitRecord | None:
        record = self._unit_of.get(key)
        return record if record is not None and record.bundled and record.worker == worker else None

    def _recall(self, units: Iterable[str]) -> None:
        """Take units back from their workers, if they do not run yet: they wait for data that they may have sooner."""
        records = [record for record in map(self.records.units.get, units) if record is not None]
        adapter.unbind(self.scheduler, [r.key for r in records if r.life.state in (State.Pending, State.Staging)])

    def _ask_back(self, units: Iterable[str]) -> None:
        """Ask workers for units that wait there behind others: those that have begun by then stay."""
        for record in map(self.records.units.get, units):
            if record is not None and record.worker in self.scheduler.workers:
                order = {"what": "give back", "key": record.key, "unit": record.id, "attempt": record.attempt}
                adapter.order(self.scheduler, record.worker, order)

    def given_back(self, worker: str, unit: str, attempt: int) -> None:
        """A worker gives a unit back, which has not begun."""
        record = self.records.units.get(unit)
        if record is not None and record.worker == worker and record.attempt == attempt:
            self.unbound(record)
            self.matcher.release(record.id)
            adapter.unbind(self.scheduler, [record.key])

    def has_inputs(self, record: UnitRecord, brought_s: float, at: float) -> None:
        """A bound unit has its inputs, and runs since `at`; bringing them took `brought_s`, if they were not there."""
        now = time.time()
        is_told_at_once = record.worker is not None and not record.bundled  # others of a bundle came before it
        if record.pilot is not None and is_told_at_once and record.pilot not in self._gap_s:
            self._set_gap(record.pilot, now - record.bound - record.staged_s)
        self.matcher.staged(record.id, brought_s, self._late_s(record.worker, now - at), now=now)
        self._match_soon()

    def _late_s(self, worker: str | None, took_s: float) -> float:
        """How much later than usual it is heard what a worker says that it did `took_s` ago, by its own clock.

        Where all that leaves a site is data, messages wait behind it.
        """
        if worker is None:
            return 0.0
        usual_s = self._usual_s[worker] = _usually_s(self._usual_s.get(worker, took_s), took_s)
        return took_s - usual_s

    def _told_inputs(self, record: UnitRecord) -> bytes | None:
        """What a bound unit's worker is told of its inputs; None: there are none, or it will ask, and be told why."""
        if record.request.inputs:
            assert record.pilot is not None
            with suppress(PilotError):
                return told(self._inputs(record, self._pilot(record.pilot)))
        return None

    def _announce(self, record: UnitRecord, worker: str) -> None:
        """Tell a worker where a unit's inputs are, and which GPUs are the unit's, ahead of the unit."""
        message: dict[str, Any] = {}
        if (inputs := self._told_inputs(record)) is not None:
            message["inputs"] = inputs
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

    def _tell_begun(self) -> None:
        begun, self._begun = self._begun, []
        for record, attempt, at in begun:
            if record.worker is not None and record.attempt == attempt and record.life.state is State.Pending:
                self.advance(record, State.Staging if record.request.inputs else State.Running, at, pilot=record.pilot)

    # ---------------------------------------------------------------- data units

    def inputs_ready(self, units: Collection[str], du: str) -> None:
        """Compute units waited for a data unit that can be read now."""
        for unit in units:
            record = self.records.units[unit]
            record.missing -= {du}
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
        if record.writes:
            links = self.matcher.policy.links
            links.now = time.time()
            for source, target in record.writes:
                links.end_output(source, target)
            record.writes = ()
        for du in record.outputs:
            if self._writer.get(du) == record.id:
                del self._writer[du]
                self._writing[du].release()


def _usually_s(known_s: float, seen_s: float) -> float:
    """How long messages usually take: what is less is believed at once, for they may be held up but not be early."""
    return min(seen_s, known_s + _BELIEVED * (seen_s - known_s))


def _unreadable(unit: str, error: BaseException) -> InputError:
    return InputError(f"{unit} cannot run: {error}", root=error.root if isinstance(error, InputError) else str(error))
