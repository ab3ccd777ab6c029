"""The monitor's figures as plain tables: what the JSON, the page and the metrics show. docs/dashboard.md explains them.

Each is worked out when somebody looks, from the model's counts and, of the newest objects only, from their records.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

from dpilot._version import version
from dpilot.monitor.model import LOCALITIES
from dpilot.monitor.series import Level
from dpilot.monitor.watch import Watch
from dpilot.runtime.records import Records, UnitRecord
from dpilot.states import State

__all__ = ["VIEWS", "View"]

View = dict[str, Any]
#: How many of the newest (data units, transfers, pilots that have ended) or first (waiting units) are looked at.
_MOST_DATA = 100
_MOST_TRANSFERS = 100
_MOST_PILOTS = 1000
_MOST_WAITING = 500
_MOST_GROUPS = 50
#: Up to so many pilots have their slots over time in the table.
_MOST_LEVELS = 32


def summary(watch: Watch) -> View:
    """Everything in one screen of numbers."""
    model, coordinator = watch.model, watch.coordinator
    records, transfers = coordinator.records, coordinator.catalogue.transfers
    here, near, far = model.input_nbytes
    return {
        "version": version,
        "now": time.time(),
        "began": model.began,
        "units": _by_state(model.units),
        "pilots": _by_state(model.pilot_states),
        "slots": {"busy": int(model.busy.value), "total": sum(p.slots for p in model.pilots.values())},
        "data_units": _by_state(model.data),
        "stores": sum(not store.life.state.is_final for store in records.stores.values()),
        "replicas": sum(len(store.units) for store in records.stores.values()),
        "stored_bytes": sum(store.used_nbytes for store in records.stores.values()),
        "input_bytes": {"same_machine": here, "same_datacenter": near, "other_datacenter": far},
        "transfers": {"moving": len(transfers.moving), "waiting": transfers.n_waiting},
        "bytes_per_second": sum(link.rate for link in model.links.values()),
    }


def pilots(watch: Watch) -> View:
    """Pilots, those that live first, the newest first."""
    model, records = watch.model, watch.coordinator.records
    now = time.time()
    newest = list(islice(reversed(records.pilots.values()), _MOST_PILOTS * 2))
    shown = sorted(newest, key=lambda record: record.life.state.is_final)[:_MOST_PILOTS]
    rows = []
    for record in shown:
        pilot = model.pilots.get(record.id)
        row: View = {
            "pilot": record.id,
            "state": str(record.life.state),
            "datacenter": record.site.datacenter,
            "machine": record.site.machine,
            "workers": len(record.workers),
            "slots": record.slots if pilot is None or not pilot.slots else pilot.slots,
        }
        if pilot is not None:
            row |= {
                "busy": int(pilot.busy.value),
                "staging": pilot.bound[State.Staging],
                "running": pilot.bound[State.Running],
                **{str(state).lower(): pilot.ended[state] for state in (State.Done, State.Failed, State.Canceled)},
                "run_seconds": pilot.run_s.total,
            }
            if len(shown) <= _MOST_LEVELS:
                row["busy_over_time"] = _level(pilot.busy, now)
        rows.append(row)
    return {
        "now": now,
        "n": len(records.pilots),
        "pilots": rows,
        "busy_over_time": _level(model.busy, now),
        "busy_over_time_by_datacenter": {name: _level(level, now) for name, level in model.busy_at.items()},
    }


def stores(watch: Watch) -> View:
    """Stores. URLs have no credentials in them."""
    rows = [
        {
            "store": record.id,
            "state": str(record.life.state),
            "url": record.store.url,
            "datacenter": record.site.datacenter,
            "machine": record.site.machine,
            "data_units": len(record.units),
            "used_bytes": record.used_nbytes,
            "size_bytes": record.store.nbytes_limit,
        }
        for record in islice(reversed(watch.coordinator.records.stores.values()), _MOST_PILOTS)
    ]
    return {"stores": rows}


def data(watch: Watch) -> View:
    """Data units: how many in each state, and the newest."""
    rows = []
    for record in islice(reversed(watch.coordinator.records.data.values()), _MOST_DATA):
        manifest = record.manifest
        rows.append(
            {
                "data_unit": record.id,
                "name": record.description.get("name"),
                "state": str(record.life.state),
                "files": len(manifest.files) if manifest else 0,
                "bytes": manifest.nbytes if manifest else 0,
                "replicas": list(record.replicas),
                "coming": list(record.busy),
                "wanted": record.wanted,
                "ready": record.is_ready,
                "writers": len(record.writers),
            }
        )
    return {"n": _by_state(watch.model.data), "newest": rows}


def units(watch: Watch) -> View:
    """Units: how many in each state, at which pilot, and the newest that have ended."""
    model = watch.model
    at = {
        id: _by_state(pilot.bound + pilot.ended)
        for id, pilot in islice(reversed(model.pilots.items()), _MOST_PILOTS)
        if pilot.bound or pilot.ended
    }
    return {
        "n": _by_state(model.units),
        "by_pilot": at,
        "n_ended_runs": model.n_runs,
        "newest": [run._asdict() for run in islice(reversed(model.runs), 200)],
    }


def transfers(watch: Watch) -> View:
    """Links, with what was expected of them, and transfers."""
    model, queue = watch.model, watch.coordinator.catalogue.transfers
    learned = {row[:2]: row for row in watch.coordinator.matcher.policy.links.table()}
    rows = []
    for (source, target), link in sorted(model.links.items(), key=lambda item: -item[1].nbytes):
        row: View = {
            "source": source,
            "target": target,
            "moving": link.moving,
            "ended": link.seconds.n,
            "failed": link.failed,
            "bytes": link.nbytes,
            "bytes_per_second": link.rate,
            "seconds": link.seconds.total,
        }
        known = learned.get((source, target))
        if known is not None:
            row |= {
                "expected_bytes_per_second": known.bandwidth_bytes_per_s,
                "latency_seconds": known.latency_s,
                "compared": known.n,
                "actual_to_predicted": known.ratio if known.n else None,
                "last_predicted_seconds": known.predicted_s if known.n else None,
                "last_actual_seconds": known.actual_s if known.n else None,
            }
        rows.append(row)
    return {
        "now": time.time(),
        "links": rows,
        "moving": [transfer.row() for transfer in islice(queue.moving, _MOST_TRANSFERS)],
        "n_moving": len(queue.moving),
        "n_waiting": queue.n_waiting,
        "newest": [transfer.row() for transfer in islice(reversed(queue.ended), _MOST_TRANSFERS)],
    }


def matrix(watch: Watch) -> View:
    """Where data lay, and where the units ran that read it."""
    cells = watch.model.matrix
    return {
        "data_sites": sorted({data for data, _ in cells}),
        "run_sites": sorted({run for _, run in cells}),
        "cells": [
            {"data": data, "run": run, "runs": runs, "bytes": nbytes} for (data, run), (runs, nbytes) in cells.items()
        ],
        "localities": list(LOCALITIES),
    }


def waiting(watch: Watch) -> View:
    """Units that wait, and why: of the first few hundred, in groups."""
    model, coordinator = watch.model, watch.coordinator
    nowhere = {kind for pool in coordinator.matcher.pools for kind in pool.nowhere.own}
    groups: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    looked_at = 0
    for record in islice(model.pending.values(), _MOST_WAITING):
        if record.worker is None:
            looked_at += 1
            group = record.request.kind, _reason(record, coordinator.records, nowhere)
            groups[group] += 1
            example.setdefault(group, record.id)
    queues: list[View] = [
        {"datacenter": place.site.datacenter, "machine": place.site.machine, "kind": kind, "slots": slots}
        for pool in coordinator.matcher.pools
        for place in (pool.root, *pool.zones.values(), *(m for machines in pool.machines.values() for m in machines))
        for kind, slots in place.own.items()
    ]
    return {
        "n": model.units[State.Pending],
        "looked_at": looked_at,
        "groups": [
            {"kind": group[0], "reason": group[1], "units": n, "example": example[group]}
            for group, n in groups.most_common(_MOST_GROUPS)
        ],
        "queues": sorted(queues, key=lambda row: -row["slots"])[:_MOST_GROUPS],
    }


def _reason(record: UnitRecord, records: Records, nowhere: set[str]) -> str:
    for du in sorted(record.missing):
        data = records.data.get(du)
        if data is None or data.writers:
            return "its input is still to be written by other units"
        if data.replicas:
            return "its input is empty, and nothing writes to it"
        return "its input is on its way to a store"
    request = record.request
    if not record.runnable:
        return "it takes results of other units"
    if request.pilot is not None:
        return f"for a slot of {request.pilot}, to which it was submitted"
    if request.kind in nowhere:
        return "no pilot could run it: labels, slots, memory, GPUs or walltime"
    if request.require and any(request.site):
        return f"for a slot at {request.site}, which it requires"
    return "for a slot near its input" if request.inputs else "for a slot"


def _by_state(counts: Counter[State]) -> dict[str, int]:
    return {str(state): counts[state] for state in State if counts[state]}


def _level(level: Level, now: float) -> View:
    times, means = level.points(now)
    return {"time": times, "slots": means}


#: Name in the API -> what works it out.
VIEWS: dict[str, Callable[[Watch], View]] = {
    view.__name__: view for view in (summary, pilots, stores, data, units, transfers, matrix, waiting)
}
