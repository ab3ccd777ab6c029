"""One card for each kind of object: what its handle knows, and what the scheduler tells of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from dpilot.monitor import cards
from dpilot.monitor.cards import Card, Fault, Part, count_text, site_text
from dpilot.monitor.tables import nbytes_text
from dpilot.placement import Decision
from dpilot.service.compute_data import ComputeDataService
from dpilot.service.compute_unit import ComputeUnit
from dpilot.service.data_unit import DataUnit
from dpilot.service.handle import Handle
from dpilot.service.pilot_compute import PilotCompute, PilotComputeService
from dpilot.service.pilot_data import PilotData, PilotDataService
from dpilot.states import State

__all__ = ["card_of", "service_card"]

#: How long to wait for what the scheduler has to tell.
_PATIENCE_S = 1.0
_MOST_NAMES = 6

About = Mapping[str, Any]


def card_of(shown: Any) -> Card:
    """The card of a handle or decision: with what the scheduler tells of it, if it answers soon."""
    if isinstance(shown, Decision):
        return _decision(shown)
    if "_life" not in shown.__dict__:
        return Card(type(shown).__name__, note="Not connected yet: add a service to it, or submit to it.")
    about: About | None = shown._session.peek("about", _PATIENCE_S, id=shown.id)
    for kind, portray in _PORTRAITS.items():
        if isinstance(shown, kind):
            return portray(shown, about)
    return cards.begin(shown, about)


def _decision(decision: Decision) -> Card:
    card = Card("Decision", decision.unit)
    card.fact("why", decision.reason)
    if decision.rows:
        card.tables.append(("", cards.decision_table(decision)))
    return card


def _pilot(pilot: PilotCompute, about: About | None) -> Card:
    card = cards.begin(pilot, about)
    told = about or {}
    card.fact("at", site_text(pilot.site))
    card.fact("launcher", told.get("service_url"))
    card.bars.append(("slots", cards.slots_bar(told.get("busy"), pilot.slots)))
    if about is not None:
        left_s = _time_left(pilot, told.get("walltime_s"))
        card.fact("workers", f"{told['workers']:,}")
        card.fact("time left", left_s)
        if told["units"]:
            card.bars.append(("units", cards.states_bar(told["units"])))
    return card


def _time_left(pilot: PilotCompute, walltime_s: float | None) -> str:
    if walltime_s is None or pilot.state.is_final:
        return ""
    started = next((at for state, at in pilot.history if state is State.Running), None)
    left_s = walltime_s if started is None else max(0.0, walltime_s - (time.time() - started))
    return f"{cards.seconds_text(left_s)} of {cards.seconds_text(walltime_s)}"


def _store(store: PilotData, about: About | None) -> Card:
    card = cards.begin(store, about)
    card.fact("URL", store.service_url)
    card.fact("at", site_text((store._store.datacenter, store._store.machine)))
    if about is not None:
        limit = about["size_nbytes"]
        if limit:
            share = min(1.0, about["used_nbytes"] / limit)
            part = Part(share, "warn" if share > 0.9 else "busy", "used")
            card.bars.append(("used", cards.Bar((part,), cards.used_text(about))))
        else:
            card.fact("used", nbytes_text(about["used_nbytes"]))
        card.fact("data units", _names(about["data"], about["n_data"]))
    return card


def _names(rows: list[tuple[str, str | None]], n: int | None = None) -> str:
    n = len(rows) if n is None else n
    some = ", ".join(name or id for id, name in rows[:_MOST_NAMES])
    return f"{some} and {n - _MOST_NAMES:,} more" if n > _MOST_NAMES else some


def _data(data: DataUnit, about: About | None) -> Card:
    card = cards.begin(data, about)
    card.name = data.name or ""
    now = time.time()
    if about is None:
        card.fact("replicas on", *data._on)
        card.fact("on the way to", *data._coming)
        bar = cards.moving_bar([row[1:] for row in data._moving], now)
        if bar is not None:
            card.bars.append(("moved", bar))
        return card
    if about["n_files"]:
        files = ", ".join(name for name, _ in about["files"][:_MOST_NAMES])
        more = f" and {about['n_files'] - _MOST_NAMES:,} more" if about["n_files"] > _MOST_NAMES else ""
        card.fact("files", f"{about['n_files']:,}: {files}{more}")
        card.fact("size", nbytes_text(about["nbytes"]))
    card.fact("written by", *about["writers"][:_MOST_NAMES])
    if about["n_waiting"]:
        card.fact("awaited by", count_text(about["n_waiting"], "compute unit"))
    card.map((place, None) for place in about["replicas"])
    for place in about["coming"]:
        bar = cards.moving_bar([place["moving"]], now) if place["moving"] is not None else None
        card.map([(place, bar or cards.Bar((), "waits for its turn"))])
    moving = [place["moving"] for place in about["coming"] if place["moving"] is not None]
    if len(moving) > 1:
        bar = cards.moving_bar(moving, now)
        assert bar is not None
        card.bars.append(("moved", bar))
    return card


def _unit(unit: ComputeUnit, about: About | None) -> Card:
    card = cards.begin(unit, about)
    card.name = unit.name
    told = about or {}
    card.fact("pilot", unit._pilot, site_text(told.get("site")))
    card.fact("time", *_times(unit, told.get("staged_s", 0.0)))
    if about is None:
        card.fact("writes", _names([(du.id, du.name) for du in unit.output_data.values()]))
        return card
    wants = site_text(about["wants"])
    card.fact("asked for", wants and f"{wants}{' (required)' if about['is_required'] else ''}")
    card.fact("slots", about["slots"] if about["slots"] > 1 else None)
    card.fact("attempt", about["attempt"] if about["attempt"] > 1 else None)
    card.fact("reads", _names(about["inputs"]))
    card.fact("writes", _names(about["outputs"]))
    if about["pilot"]:
        card.fact("why there", about["reason"].removeprefix(f"to {about['pilot']}").removeprefix(": "))
    elif not unit.state.is_final:
        card.fact("waits", _wait(about["reason"]))
    bar = cards.locality_bar(about["nbytes"])
    if bar is not None:
        card.bars.append(("input", bar))
    if not card.faults and about["error"]:
        card.faults.append(Fault(about["error"]))
    return card


def _wait(reason: str) -> str:
    """Why something waits, behind a word that says that it does."""
    return reason.removeprefix("waits").lstrip(": ")


def _times(unit: ComputeUnit, staged_s: float) -> list[str]:
    history = unit.history
    submitted = next((at for state, at in history if state is State.Pending), history[0].timestamp)
    began = None
    for state, at in history:
        if state is State.Pending:
            began = None
        elif began is None and state in (State.Staging, State.Running):
            began = at
    if began is None:
        if unit.state.is_final or unit.state is State.Unknown:
            return []
        return [f"has waited {cards.seconds_text(max(0.0, time.time() - submitted))}"]
    said = [f"waited {cards.seconds_text(max(0.0, began - submitted))}"]
    if staged_s:
        said.append(f"staged {cards.seconds_text(staged_s)}")
    if unit.state.is_final:
        said.append(f"ran {cards.seconds_text(max(0.0, history[-1].timestamp - began - staged_s))}")
    elif unit.state is State.Running:
        said.append(f"has run {cards.seconds_text(max(0.0, time.time() - began - staged_s))}")
    return said


def _pilot_service(service: PilotComputeService, about: About | None) -> Card:
    card = cards.begin(service, about)
    if about is None:
        states = Counter(str(pilot.state) for pilot in service.list_pilots())
        card.bars.append(("pilots", cards.states_bar(states)))
        return card
    card.bars.append(("slots", cards.slots_bar(about["busy"], about["slots"])))
    if about["pilots"]:
        card.tables.append(("", cards.pilots_table(about["pilots"], about["n_pilots"])))
    return card


def _data_service(service: PilotDataService, about: About | None) -> Card:
    card = cards.begin(service, about)
    if about is None:
        card.fact("stores", *(store.service_url for store in service.list_pilots()[:_MOST_NAMES]))
    elif about["stores"]:
        card.tables.append(("", cards.stores_table(about["stores"], about["n_stores"])))
    return card


def service_card(
    service: ComputeDataService, about: About | None, errors: Mapping[str, BaseException | None] | None = None
) -> Card:
    """The card of a compute data service; with `errors` of units that failed, where these cannot be looked up here."""
    card = cards.begin(service, about)
    units, data = service.list_compute_units(), service.list_data_units()
    if units:
        card.bars.append(("units", cards.states_bar(Counter(str(unit.state) for unit in units))))
    if data:
        card.bars.append(("data units", cards.states_bar(Counter(str(unit.state) for unit in data))))
    if about is None:
        return card
    if about["n_pilots"]:
        card.bars.append(("slots", cards.slots_bar(about["busy"], about["slots"])))
    bar = cards.locality_bar(tuple(about["bytes"]))
    if bar is not None:
        card.bars.append(("input", bar))
    bar = cards.moving_bar(about["moving"], time.time())
    if bar is not None:
        card.bars.append(("transfers", bar))
    if about["waits"] is not None:
        card.fact("waits", f"{about['waits'][0]}, {_wait(about['waits'][1])}")
    if about["pilots"]:
        card.tables.append(
            (count_text(about["n_pilots"], "pilot"), cards.pilots_table(about["pilots"], about["n_pilots"]))
        )
    if about["stores"]:
        card.tables.append(
            (count_text(about["n_stores"], "store"), cards.stores_table(about["stores"], about["n_stores"]))
        )
    failed = {unit.id: unit for unit in units if unit.state is State.Failed}
    for id, kind, text in about["failed"]:
        error = errors.get(id) if errors is not None else failed[id]._known_error() if id in failed else None
        fault = cards.fault_of(error) if error is not None else Fault(text or "failed")
        card.faults.append(fault._replace(summary=f"{id} ({kind}): {fault.summary}"))
    return card


_PORTRAITS: dict[type[Handle], Callable[[Any, About | None], Card]] = {
    PilotCompute: _pilot,
    PilotData: _store,
    DataUnit: _data,
    ComputeUnit: _unit,
    PilotComputeService: _pilot_service,
    PilotDataService: _data_service,
    ComputeDataService: service_card,
}
