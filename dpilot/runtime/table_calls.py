"""What clients may ask of the scheduler plugin in order to show it: all about one object, and tables of many.

One call answers for all units of a service: a notebook must not ask once for each of 10,000.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Any

from dpilot.data import Registered
from dpilot.placement import Decision
from dpilot.runtime import adapter
from dpilot.runtime.calls import Calls
from dpilot.runtime.records import DataRecord, PilotRecord, Record, ServiceRecord, StoreRecord, UnitRecord
from dpilot.states import State

__all__ = ["TableCalls"]

#: Rows of a table: its columns by name, all of one length.
Columns = dict[str, list[Any]]
#: Of a table that takes long to work out: how long the loop waits for it at a time, and rows at most.
_SLICE_S = 0.01
_MOST_ROWS = 500_000
#: How many members of an object are told of; of more, only how many there are.
_MOST = 40


class TableCalls(Calls):
    """One method ``call_<name>`` for each call. No credentials are in what they give."""

    def call_about(self, id: str) -> dict[str, Any]:
        """All that is worth showing of an object, in plain values."""
        record = self.records.find(id)
        told: dict[str, Any] = {"id": id, "state": str(record.life.state)}
        if isinstance(record, PilotRecord):
            return told | self._about_pilot(record, *self._units_by_pilot())
        if isinstance(record, StoreRecord):
            return told | self._about_store(record)
        if isinstance(record, DataRecord):
            return told | self._about_data(record)
        if isinstance(record, UnitRecord):
            return told | self._about_unit(record)
        assert isinstance(record, ServiceRecord)
        return told | self._about_service(record)

    def _units_by_pilot(self) -> tuple[dict[str | None, Counter[str]], Counter[str]]:
        """How many units of each pilot are in which state, and how many slots those hold that are there now."""
        states: dict[str | None, Counter[str]] = {}
        held: Counter[str] = Counter()
        for unit in self.records.units.values():
            states.setdefault(unit.pilot, Counter())[str(unit.life.state)] += 1
            if unit.worker is not None and unit.pilot is not None:
                held[unit.pilot] += unit.request.slots
        return states, held

    def _about_pilot(
        self, pilot: PilotRecord, states: dict[str | None, Counter[str]], held: Counter[str]
    ) -> dict[str, Any]:
        return {
            "pilot": pilot.id,
            "state": str(pilot.life.state),
            "site": tuple(pilot.site),
            "slots": pilot.slots,
            "busy": min(pilot.slots, held[pilot.id]),  # tiny units wait at their worker
            "workers": len(pilot.workers),
            "service_url": pilot.details["service_url"],
            "walltime_s": pilot.walltime_s,
            "units": dict(states.get(pilot.id, ())),
        }

    def _about_store(self, store: StoreRecord) -> dict[str, Any]:
        names = [self.records.data[du].description.get("name") for du in islice(store.units, _MOST)]
        return {
            "store": store.id,
            "state": str(store.life.state),
            "url": store.store.url,
            "site": tuple(store.site),
            "used_nbytes": store.used_nbytes,
            "size_nbytes": store.store.nbytes_limit,
            "n_data": len(store.units),
            "data": list(zip(islice(store.units, _MOST), names, strict=True)),
            "is_registered": isinstance(store.store, Registered),
        }

    def _about_data(self, data: DataRecord) -> dict[str, Any]:
        files = data.manifest.files if data.manifest is not None else ()
        moving = {t.target: (t.moved, t.nbytes, t.began) for t in self.catalogue.transfers.of(data.id)}
        return {
            "name": data.description.get("name"),
            "n_files": len(files),
            "nbytes": data.manifest.nbytes if data.manifest is not None else 0,
            "files": [(entry.name, entry.nbytes) for entry in files[:_MOST]],
            "replicas": [self._place_of(pd) for pd in data.replicas],
            "coming": [self._place_of(pd) | {"moving": moving.get(pd)} for pd in data.busy if pd not in data.replicas],
            "writers": sorted(data.writers)[:_MOST],
            "n_waiting": len(data.waiting),
            "sealed": data.sealed,
        }

    def _place_of(self, pd: str) -> dict[str, Any]:
        store = self.records.stores[pd]
        return {
            "store": pd,
            "url": store.store.url,
            "site": tuple(store.site),
            "is_registered": isinstance(store.store, Registered),
        }

    def _about_unit(self, unit: UnitRecord) -> dict[str, Any]:
        data, request = self.records.data, unit.request
        is_failed = unit.life.state is State.Failed
        return {
            "kind": request.kind,
            "pilot": unit.pilot,
            "site": self._site_of(unit.pilot),
            "slots": request.slots,
            "attempt": unit.attempt,
            "wants": tuple(request.site),
            "is_required": request.require,
            "nbytes": unit.nbytes,
            "staged_s": unit.staged_s,
            "inputs": [(du, data[du].description.get("name")) for du in request.inputs[:_MOST] if du in data],
            "outputs": [(du, data[du].description.get("name")) for du in unit.outputs[:_MOST] if du in data],
            "reason": "" if unit.life.state.is_final and unit.decision is None else self.call_explain(unit.id).reason,
            "error": self._error_text(unit) if is_failed else None,
        }

    def _site_of(self, pilot: str | None) -> tuple[str | None, str | None]:
        record = self.records.pilots.get(pilot or "")
        return (None, None) if record is None else (record.site.datacenter, record.site.machine)

    def _error_text(self, record: Record) -> str | None:
        """Why a unit failed, in words; the error itself may need modules that are not here."""
        if record.error is not None:
            return str(record.error)
        if isinstance(record, UnitRecord) and record.life.state is State.Failed:
            with suppress(KeyError):  # Dask has forgotten it
                return adapter.error_text(self.scheduler, record.key)
            return record.failure
        return None

    def _about_service(self, service: ServiceRecord) -> dict[str, Any]:
        owners = {service.id, *service.members}
        pilots = [r for r in self.records.pilots.values() if r.owner in owners]
        stores = [r for r in self.records.stores.values() if r.owner in owners]
        is_central = service.id.startswith("cds")
        units = [r for r in self.records.units.values() if r.owner == service.id] if is_central else []
        states, held = self._units_by_pilot()
        moving = [t for t in self.catalogue.transfers.moving if not is_central or self._is_of(t.du, owners)]
        rows = [self._about_pilot(pilot, states, held) for pilot in pilots]
        rows.sort(key=lambda row: (row["state"] not in ("Running", "Pending"), str(row["site"]), row["pilot"]))
        live = [row for row in rows if row["state"] in ("Running", "Pending")]
        waits = next((r for r in units if r.worker is None and not r.life.state.is_final), None)
        return {
            "n_pilots": len(rows),
            "pilots": rows[:_MOST],
            "slots": sum(row["slots"] for row in live),
            "busy": sum(row["busy"] for row in live),
            "n_stores": len(stores),
            "stores": [self._about_store(store) | {"data": []} for store in stores[:_MOST]],
            "bytes": [sum(nbytes) for nbytes in zip(*(unit.nbytes for unit in units), strict=True)] or [0, 0, 0],
            "moving": [(t.moved, t.nbytes, t.began) for t in moving],
            "waits": (waits.id, self.call_explain(waits.id).reason) if waits is not None else None,
            "failed": [
                (r.id, r.request.kind, self._error_text(r))
                for r in islice((r for r in units if r.life.state is State.Failed), 3)
            ],
        }

    def _is_of(self, du: str, owners: set[str]) -> bool:
        data = self.records.data.get(du)
        return data is not None and data.owner in owners

    # ---------------------------------------------------------------- tables

    def call_units_table(self, owner: str) -> Columns:
        """The compute units of a service."""
        rows = [self._unit_row(unit) for unit in self.records.units.values() if unit.owner == owner]
        return _columns(_UNIT_COLUMNS, rows)

    def _unit_row(self, unit: UnitRecord) -> tuple[Any, ...]:
        state, request, site = unit.life.state, unit.request, self._site_of(unit.pilot)
        when = unit.times()
        names = (unit.id, request.kind, str(state), unit.pilot, *site, request.slots, unit.attempt, unit.priority)
        times = (when.submitted, when.began, when.ended, unit.staged_s)
        return (*names, *times, *unit.nbytes, len(request.inputs), len(unit.outputs), self._error_text(unit))

    def call_data_table(self, ids: Iterable[str]) -> Columns:
        """Data units."""
        rows = []
        for du in ids:
            data = self.records.data.get(du)
            if data is None:
                continue
            files = data.manifest.files if data.manifest is not None else ()
            nbytes = data.manifest.nbytes if data.manifest is not None else 0
            sites = [self.records.stores[pd].site for pd in data.replicas]
            moved = sum(transfer.moved for transfer in self.catalogue.transfers.of(du))
            created = data.life.history[0].timestamp
            is_there = next((t for state, t in data.life.history if state is State.Running), None)
            rows.append(
                (
                    *(du, data.description.get("name"), str(data.life.state), data.is_ready, len(files), nbytes),
                    *(len(data.replicas), len(data.busy), moved, list(data.replicas)),
                    *(sorted({site.datacenter for site in sites if site.datacenter}), created, is_there),
                    str(data.error) if data.error is not None else None,
                )
            )
        return _columns(_DATA_COLUMNS, rows)

    async def call_decisions_table(self, owner: str, all_pilots: bool, newest: int) -> Columns:
        """Where units went, or would go, and what that costs: of each unit the chosen pilot, or all.

        A decision is worked out when somebody asks, from all pilots: the loop goes on between some and the next ones.
        """
        units = list(islice((u for u in reversed(self.records.units.values()) if u.owner == owner), newest))
        found: list[list[tuple[Any, ...]]] = []
        waiting: dict[Any, Decision] = {}  # what units of one kind wait for is worked out once
        until, left = time.monotonic() + _SLICE_S, _MOST_ROWS
        for unit in units:
            rows = self._decision_rows(unit, all_pilots, waiting)
            left -= len(rows)
            if left < 0:
                break
            found.append(rows)
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + _SLICE_S
        return _columns(_DECISION_COLUMNS, [row for rows in reversed(found) for row in rows])

    def _decision_rows(self, unit: UnitRecord, all_pilots: bool, waiting: dict[Any, Decision]) -> list[tuple[Any, ...]]:
        decision = unit.decision
        if decision is None or (unit.worker is None and not unit.life.state.is_final):
            if unit.life.state.is_final or unit.missing or not unit.runnable:
                decision = Decision(unit.id, None, self._why(unit))
            else:
                decision = waiting.get(unit.request)
                if decision is None:
                    explained = self.matcher.explain(unit.id, time.time())
                    decision = waiting[unit.request] = explained or Decision(unit.id, None, self._why(unit))
        reason, told = decision.tell()
        rejected = sum(row.verdict == "rejected" for row in told)
        picked = told if all_pilots else [row for row in told if row.verdict in ("chosen", "best")][:1]
        head = (unit.id, unit.request.kind, str(unit.life.state))
        rows: list[tuple[Any, ...]] = []
        for row in picked:
            costs = (row.queue_s, row.stage_s, row.label_s, row.output_s, row.cost_s, *row.nbytes)
            why = row.reason if all_pilots else reason
            site = self._site_of(row.pilot)
            rows.append((*head, row.pilot, *site, row.verdict, *costs, len(told), rejected, why))
        if not picked:
            nothing = (decision.pilot, None, None, None, *(None,) * 8)
            rows.append((*head, *nothing, len(told), rejected, reason))
        return rows


_UNIT_COLUMNS = (
    *("unit", "kind", "state", "pilot", "datacenter", "machine", "slots", "attempt", "priority"),
    *("submitted", "began", "ended", "staged_s"),
    *("local_bytes", "same_datacenter_bytes", "cross_datacenter_bytes", "inputs", "outputs", "error"),
)
_DATA_COLUMNS = (
    *("data_unit", "name", "state", "ready", "files", "bytes", "replicas", "coming", "moved_bytes"),
    *("pilot_data", "datacenters", "submitted", "placed", "error"),
)
_DECISION_COLUMNS = (
    *("unit", "kind", "state", "pilot", "datacenter", "machine", "verdict"),
    *("queue_s", "stage_s", "label_s", "output_s", "cost_s"),
    *("local_bytes", "same_datacenter_bytes", "cross_datacenter_bytes"),
    *("considered", "rejected", "reason"),
)


def _columns(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Columns:
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}
