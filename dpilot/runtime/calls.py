"""What clients and workers may ask of the scheduler plugin: one method for each call."""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import time
from collections.abc import Collection, Iterable
from typing import Any

from dpilot._version import version
from dpilot.data import Manifest
from dpilot.errors import (
    DataError,
    PilotError,
    PilotLaunchError,
    StateError,
    UnitCanceledError,
)
from dpilot.placement import Decision, Site
from dpilot.runtime import adapter
from dpilot.runtime.data_calls import DataCalls
from dpilot.runtime.places import Place
from dpilot.runtime.records import DataRecord, PilotRecord, ServiceRecord, UnitRecord
from dpilot.runtime.staging import Inputs
from dpilot.states import State

__all__ = ["Calls"]

logger = logging.getLogger(__name__)


class Calls(DataCalls):
    """The calls: :meth:`answer` carries out ``call_<name>`` with the arguments that came with it."""

    async def answer(self, call: str, arguments: adapter.Sealed) -> bytes:
        """Carry out a call of a client or worker; the reply is (True, value) or (False, error), pickled."""
        try:
            value = getattr(self, f"call_{call}")(**arguments.open())
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
        record.follow(client)
        return record.snapshot()

    def call_add_service(self, id: str, client: str) -> None:
        """A service begins."""
        record = ServiceRecord(id, time.time(), (client,))
        self.records.services[id] = record
        self.advance(record, State.Running)
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
        self.matcher.drop_pool(id)
        self.advance(service, State.Canceled)

    def call_add_pilot(self, id: str, owner: str, client: str, details: dict[str, Any]) -> None:
        """A pilot is about to be started."""
        record = PilotRecord(id, owner, time.time(), (client,), details)
        self.records.pilots[id] = record
        self.matcher.add_pilot(
            id,
            record.machine,
            record.slots,
            memory_nbytes=details["memory_per_worker_nbytes"],
            gpus=details["gpus_per_worker"],
        )
        self.advance(record, State.Pending)
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
            killer = next((known.name for known in signal.Signals if known == -code), None)
            how = f"was killed by {killer}" if killer else f"ended with status {code}"
            tail = f"; the end of its log:\n{log}" if log else ""
            self._end_pilot(pilot, State.Failed, PilotLaunchError(f"{id} {how}{tail}", log=log, exit_code=code))

    async def call_cancel_pilot(self, id: str) -> None:
        """End a pilot: its units go elsewhere, and so do results that only its workers hold."""
        pilot = self._pilot(id)
        if not pilot.life.state.is_final:
            await self._close_pilot(pilot, State.Canceled)

    def call_free_slots(self, id: str) -> int:
        """How many slots of a pilot no unit holds."""
        self._pilot(id)
        return self.matcher.idle_slots(id)

    # -- compute units

    def call_inputs(self, unit: str, pilot: str, worker: str | None = None) -> Inputs:
        """For each input of a unit: its manifest, and where to bring it from to that worker."""
        return self._inputs(self._unit(unit), self._pilot(pilot), worker)

    async def call_outputs(self, unit: str, pilot: str) -> dict[str, tuple[str, Place, int | None]]:
        """Where each output of a unit goes: the store that has the data unit, else the nearest one.

        The data units are the unit's to write until it ends: of several writers, the others wait here.
        """
        record, site = self._unit(unit), self._pilot(pilot).machine
        answer: dict[str, tuple[str, Place, int | None]] = {}
        attempt, asked = record.attempt, time.monotonic()
        for du in sorted(record.outputs):
            await self._writing[du].acquire()
            if record.worker is None or record.attempt != attempt:  # it was taken back while it waited here
                self._writing[du].release()
                raise UnitCanceledError(f"{unit} writes no more: this attempt was stopped")
            self._writer[du] = unit
        record.written_nbytes, record.written_s = 0, time.monotonic() - asked
        for du in record.outputs:
            pd = self._store_for(self._data(du), site)
            answer[du] = (pd, self.catalogue.place(pd, record.worker), self._store(pd).free_nbytes)
        links = self.matcher.policy.links
        links.now = time.time()
        record.writes = tuple(dict.fromkeys((site, self._store(pd).site) for pd, _, _ in answer.values()))
        for source, target in record.writes:
            links.begin_output(source, target)
        return answer

    def _store_for(self, data: DataRecord, site: Site) -> str:
        """Where a unit at `site` is to write a data unit: where it is, or as its labels say, or near by."""
        targets = self.catalogue.targets(data)
        links = self.matcher.policy.links
        pd = min(((links.rank(site, store.site), store.id) for store in targets), default=(None, None))[1]
        if pd is None:
            raise DataError(
                f"data unit {data.id} can be put nowhere: {data.owner} has no store with room; add a PilotData"
            )
        return pd

    def call_collected(self, unit: str, du: str, pd: str, manifest: Manifest, seconds: float) -> None:
        """A unit has put its files into a data unit, which took so long.

        It is not readable before all its writers have ended.
        """
        self.catalogue.add_replica(self._data(du), pd, manifest)
        self._learn_of_output(self._unit(unit), self._store(pd), manifest, seconds)

    def call_hold(self, id: str, client: str) -> None:
        """A client wants to keep, and know of, the result of a unit."""
        record = self._unit(id)
        if not adapter.hold(self.scheduler, record.key, client):
            raise StateError(f"the result of {id} ({record.life.state}) is gone: it was let go with its service")

    def call_cancel_units(self, ids: Collection[str]) -> None:
        """Cancel units that have not ended."""
        self._cancel_units(ids)

    def call_explain(self, id: str) -> Decision:
        """Why a unit is where it is, or what it waits for."""
        record = self._unit(id)
        if record.decision is not None and (record.worker is not None or record.life.state.is_final):
            return record.decision
        return self.matcher.explain(id, time.time()) or Decision(id, None, self._why(record))

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
