"""A run written down for the simulator: JSON lines, one object each. ``docs/simulator.md`` has the format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpilot import config
from dpilot.errors import DescriptionError
from dpilot.placement import Site
from dpilot.runtime.account import Account, PilotTold, UnitTold
from dpilot.simulator.recording import FORMAT, VERSION
from dpilot.states import State

__all__ = ["records", "write"]

Record = dict[str, Any]


def write(account: Account, path: str | Path) -> None:
    """Write a run down.

    Parameters
    ----------
    account : Account
    path : str or Path
        It ends in ``.jsonl``: so the simulator knows what it is.

    Raises
    ------
    DescriptionError
        If it does not.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise DescriptionError(
            f"{str(path)!r} does not end in .jsonl, by which `dpilot simulate` knows a recorded run; "
            f"write {path.with_suffix('.jsonl').name!r}",
            field="path",
            value=str(path),
        )
    with path.open("w", encoding="utf-8") as file:
        for record in records(account):
            file.write(json.dumps(record, allow_nan=False) + "\n")


def records(account: Account) -> Iterator[Record]:
    """A run as records: times in seconds since the first unit was submitted.

    Units that never ran, were canceled, or have not ended are left out, and so are pilots that never came. What units
    wrote is there when they have ended; all else has from the beginning every replica that it ever had.
    """
    units = _that_ran(account)
    zero = min((unit.times.submitted for unit in units), default=account.now)
    yield {
        "record": "run",
        "format": FORMAT,
        "version": VERSION,
        "name": account.owner or "all",
        "cache_nbytes": config.nbytes("data.cache-size"),
        "files_at_once": int(config.get("data.transfers")),
    }
    ended = max((unit.times.ended or 0.0 for unit in units), default=account.now)
    for pilot in account.pilots:
        if pilot.began is not None:
            yield _pilot(pilot, zero, ended)
    for store in account.stores:
        yield {"record": "store", "id": store.id, **_labels(store.site)}
    written = {du for unit in units if unit.state == State.Done for du in unit.outputs}
    for data in account.data:
        yield {
            "record": "data",
            "id": data.id,
            "nbytes": data.nbytes,
            "n_files": max(1, data.n_files),
            "replicas": [] if data.id in written else list(data.placed),
        }
    for unit in units:
        yield _unit(unit, zero)
    yield from _transfers(account, units, zero)


def _that_ran(account: Account) -> list[UnitTold]:
    """The units that ran; not those of whose inputs nothing is known."""
    ran = [
        unit
        for unit in account.units
        if unit.state in (State.Done, State.Failed)
        and unit.times.ran is not None
        and unit.times.ended is not None
        and unit.pilot is not None
    ]
    there = {data.id for data in account.data if data.placed}
    while True:  # until nothing is left that reads what only those wrote that were left out
        written = {du for unit in ran if unit.state == State.Done for du in unit.outputs}
        kept = [unit for unit in ran if there.union(written).issuperset(unit.request.inputs)]
        if len(kept) == len(ran):
            return kept
        ran = kept


def _pilot(pilot: PilotTold, zero: float, ended: float) -> Record:
    assert pilot.began is not None
    record = {
        "record": "pilot",
        "id": pilot.id,
        "slots": pilot.slots,
        **_labels(pilot.site),
        "workers": pilot.workers,
        "submitted_s": max(0.0, pilot.submitted - zero),
        "arrives_s": max(0.0, pilot.began - zero),
        "delay_s": pilot.delay_s,
    }
    if pilot.walltime_s is not None:
        record["walltime_s"] = pilot.walltime_s - max(0.0, zero - pilot.began)
    if pilot.ended is not None and pilot.ended < ended:
        record["ends_s"] = max(0.0, pilot.ended - zero)
    return record


def _unit(unit: UnitTold, zero: float) -> Record:
    request, when = unit.request, unit.times
    assert when.ran is not None
    assert when.ended is not None
    # Nothing in the format says that a unit takes the results of others: it is submitted when they are there.
    waits = unit.takes_results and unit.ready is not None
    submitted = unit.ready if waits and unit.ready is not None else when.submitted
    ready = max(submitted, unit.ready or submitted)
    bound = max(ready, unit.bound or ready)
    began = max(bound, when.began or bound)
    ran = max(began, when.ran)
    times = {
        "submitted_s": submitted,
        "ready_s": ready,
        "bound_s": bound,
        "slot_s": began,
        "started_s": ran,
        "ended_s": max(ran, when.ended),
    }
    record = {
        "record": "unit",
        "id": unit.id,
        "run_s": max(0.0, (when.collected or when.ended) - ran),
        "inputs": list(request.inputs),
        "outputs": list(unit.outputs) if unit.state == State.Done else [],
        "slots": request.slots,
        "kind": request.kind,
        "priority": unit.priority,
        **_labels(request.site),
        "affinity": "require" if request.require else "prefer",
        "pilot": request.pilot,
        "ran_on": unit.pilot,
        **{name: at - zero for name, at in times.items()},
        **dict(zip(("local_nbytes", "near_nbytes", "far_nbytes"), unit.nbytes, strict=True)),
    }
    return {name: value for name, value in record.items() if value is not None}


def _transfers(account: Account, units: list[UnitTold], zero: float) -> Iterator[Record]:
    """What was copied between sites, for units and from store to store."""
    site_of: defaultdict[str | None, Site | None] = defaultdict(lambda: None)
    site_of.update((store.id, store.site) for store in account.stores)
    site_of.update((pilot.id, pilot.site) for pilot in account.pilots)
    n_files = {data.id: data.n_files for data in account.data}
    moved = [
        (du, site_of[pd], site_of[unit.pilot], nbytes, began, seconds)
        for unit in units
        for du, pd, nbytes, seconds, began in unit.brought
    ]
    moved += [(had.du, site_of[had.store], had.site, had.nbytes, had.began, had.seconds) for had in account.unread]
    moved += [
        (t["du"], site_of[t["source"]], site_of[t["target"]], t["moved"], t["began"], t["ended"] - t["began"])
        for t in account.transfers
        if t["kind"] == "copy" and t["error"] is None and t["began"] is not None and t["ended"] is not None
    ]
    for du, source, target, nbytes, began, seconds in sorted(moved, key=lambda row: row[4]):
        if source is not None and target is not None and du in n_files:
            yield {
                "record": "transfer",
                "data": du,
                "source": _labels(source),
                "target": _labels(target),
                "nbytes": nbytes,
                "n_files": max(1, n_files[du]),
                "begun_s": began - zero,
                "seconds": max(0.0, seconds),
            }


def _labels(site: Site) -> Record:
    return {name: label for name, label in zip(("datacenter", "machine"), site, strict=True) if label is not None}
