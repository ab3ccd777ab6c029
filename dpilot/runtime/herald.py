"""Who is told what becomes of an object: the records of one scheduler, and the clients that follow them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any, TypeVar

from distributed import Scheduler

from dpilot.errors import UnknownObjectError
from dpilot.runtime import adapter
from dpilot.runtime.observers import Observers
from dpilot.runtime.records import DataRecord, PilotRecord, Record, Records, ServiceRecord, StoreRecord, UnitRecord
from dpilot.states import State

__all__ = ["Herald"]

R = TypeVar("R", bound=Record)


class Herald:
    """The records, and the messages that tell of them."""

    def _begin(self, scheduler: Scheduler) -> None:
        """Start with nothing; called in the scheduler's event loop."""
        self.scheduler = scheduler
        self.records = Records()
        self.observers = Observers()
        self._events: defaultdict[str, list[Any]] = defaultdict(list)
        self._loop = asyncio.get_running_loop()

    def advance(self, record: Record, state: State, at: float | None = None, **extra: Any) -> bool:
        """Change a record's state and tell those who follow it."""
        at = time.time() if at is None else at
        life = record.life
        before = life.state
        if not life.advance(state, at if at > life.since else life.since):
            return False
        self.tell(record, state, extra)
        self.observers.advanced(record, before)
        return True

    def tell(self, record: Record, state: State | None, extra: dict[str, Any]) -> None:
        """Tell those who follow a record."""
        if state is None:
            self.observers.told(record)
        at = record.life.since
        for client in record.watchers:
            if not self._events:
                self._loop.call_soon(self._send_events)
            self._events[client].append((record.id, state and str(state), at, extra))

    def _send_events(self) -> None:
        events, self._events = self._events, defaultdict(list)
        for client, messages in events.items():
            adapter.send_event(self.scheduler, client, messages)

    def _pilot(self, id: str) -> PilotRecord:
        return self.records.pilots.get(id) or _expect(self.records.find(id), PilotRecord)

    def _store(self, id: str) -> StoreRecord:
        return self.records.stores.get(id) or _expect(self.records.find(id), StoreRecord)

    def _data(self, id: str) -> DataRecord:
        return self.records.data.get(id) or _expect(self.records.find(id), DataRecord)

    def _unit(self, id: str) -> UnitRecord:
        return self.records.units.get(id) or _expect(self.records.find(id), UnitRecord)

    def _service(self, id: str) -> ServiceRecord:
        return self.records.services.get(id) or _expect(self.records.find(id), ServiceRecord)


def _expect(record: Record, kind: type[R]) -> R:
    if not isinstance(record, kind):
        raise UnknownObjectError(f"{record.id} is another kind of object than was asked for")
    return record
