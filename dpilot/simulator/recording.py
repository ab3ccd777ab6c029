"""A run that was recorded, read again: JSON lines, one record each. ``docs/simulator.md`` has the format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from dpilot.descriptions import did_you_mean
from dpilot.descriptions import parsers as p
from dpilot.errors import DescriptionError
from dpilot.placement import Distance, Site
from dpilot.simulator.reading import fields_of, read_one
from dpilot.simulator.result import Result
from dpilot.simulator.scenario import Data, Link, Pilot, Scenario, Store, Unit

__all__ = ["FORMAT", "HAPPENED", "VERSION", "Recording", "read_records"]

FORMAT = "dpilot-run"
VERSION = 1

#: The time of a smaller transfer is latency; it tells nothing of bandwidth.
_LEAST_TELLING_NBYTES = 256 * 1024


def _site(value: Any) -> Site:
    if not isinstance(value, Mapping) or not set(value) <= {"datacenter", "machine"}:
        raise p.Wrong("is no site; write {datacenter: ..., machine: ...}")
    return Site(*(None if value.get(name) is None else p.label(value[name]) for name in ("datacenter", "machine")))


#: What a record says of what happened, beside what the object is.
HAPPENED: dict[str, dict[str, Any]] = {
    "run": {
        "format!": p.label,
        "version!": p.count,
        "name": p.label,
        "cache_nbytes": p.count_or_0,
        "files_at_once": p.count,
        "peers": p.flag,
    },
    "pilot": {},
    "store": {},
    "data": {"nbytes!": p.count_or_0},
    "unit": {
        "ran_on": p.label,
        **dict.fromkeys(("ready_s", "bound_s", "slot_s", "started_s", "ended_s"), p.number),
        **dict.fromkeys(("local_nbytes", "near_nbytes", "far_nbytes"), p.count_or_0),
    },
    "transfer": {
        "data!": p.label,
        "source!": _site,
        "target!": _site,
        "nbytes!": p.count_or_0,
        "n_files": p.count,
        "begun_s!": p.number,
        "seconds!": p.number,
    },
}


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorded run.

    Parameters
    ----------
    scenario : Scenario
        What was there and what was asked for, with links as its transfers showed them.
    result : Result or None
        What happened in the run itself, as far as it was recorded; None if no unit's end was.
    """

    scenario: Scenario
    result: Result | None


def read_records(records: str | Path | Iterable[Mapping[str, Any]]) -> Recording:
    """Read a recorded run; see :meth:`Scenario.from_records`."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for where, record in _lines(Path(records)) if isinstance(records, (str, Path)) else _numbered(records):
        kind = record.get("record") if isinstance(record, Mapping) else None
        if kind not in HAPPENED:
            raise DescriptionError(
                f"{where}: record {kind!r} is unknown; {did_you_mean(kind, HAPPENED)}", field="record", value=kind
            )
        given = {name: value for name, value in record.items() if name != "record"}
        found[kind].append(fields_of(kind, given, where, HAPPENED[kind]))
    run = _header(found["run"])
    units = [{name: u[name] for name in u if name not in HAPPENED["unit"]} for u in found["unit"]]
    scenario = Scenario(
        pilots=tuple(read_one(Pilot, fields) for fields in found["pilot"]),
        stores=tuple(read_one(Store, fields) for fields in found["store"]),
        data=tuple(read_one(Data, fields) for fields in found["data"]),
        units=tuple(read_one(Unit, fields) for fields in units),
        links=_links(found["transfer"]),
        **run,
    )
    return Recording(scenario, _result(scenario, found["unit"]))


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except (OSError, ValueError) as error:
        raise DescriptionError(f"{path} cannot be read as JSON lines: {error}", field=None, value=str(path)) from error


def _numbered(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    return ((f"records[{number}]", record) for number, record in enumerate(records))


def _header(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if len(runs) != 1 or runs[0]["format"] != FORMAT or runs[0]["version"] != VERSION:
        raise DescriptionError(
            f'a recorded run begins with one record {{"record": "run", "format": "{FORMAT}", "version": {VERSION}}}; '
            f"found were {runs!r}",
            field="run",
            value=runs,
        )
    return {name: value for name, value in runs[0].items() if name not in ("format", "version")}


def _links(transfers: list[dict[str, Any]]) -> tuple[Link, ...]:
    """What lay between sites: bytes over the time in which any were moving, as transfers at one time share a link."""
    pairs: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for transfer in transfers:
        source, target = transfer["source"], transfer["target"]
        far = source.distance(target) is Distance.OTHER_DATACENTER
        labels = (source.datacenter, target.datacenter) if far else (source.machine, target.machine)
        if all(labels):
            pairs[tuple(sorted(labels))].append(transfer)
    links = []
    for pair, moved in pairs.items():
        small = [t["seconds"] / t.get("n_files", 1) for t in moved if t["nbytes"] < _LEAST_TELLING_NBYTES]
        large = [t for t in moved if t["nbytes"] >= _LEAST_TELLING_NBYTES and t["seconds"] > 0]
        if large:
            latency_s = median(small) if small else 0.0
            links.append(Link(sum(t["nbytes"] for t in large) / _busy_s(large), latency_s, between=pair))
    return tuple(links)


def _busy_s(transfers: list[dict[str, Any]]) -> float:
    busy_s, until_s = 0.0, float("-inf")
    for begun_s, ended_s in sorted((t["begun_s"], t["begun_s"] + t["seconds"]) for t in transfers):
        busy_s += max(0.0, ended_s - max(begun_s, until_s))
        until_s = max(until_s, ended_s)
    return busy_s


def _result(scenario: Scenario, units: list[dict[str, Any]]) -> Result | None:
    ended = [unit for unit in units if "ended_s" in unit]
    if not ended:
        return None
    names = ("local_nbytes", "near_nbytes", "far_nbytes")
    moments = ("submitted_s", "ready_s", "bound_s", "slot_s", "started_s")
    waits = []
    for begin, end in pairwise(moments):
        known = [unit[end] - unit[begin] for unit in ended if begin in unit and end in unit]
        waits.append(sum(known) / len(known) if known else 0.0)
    makespan_s = max(unit["ended_s"] for unit in ended)
    ran_s: defaultdict[str, float] = defaultdict(float)
    for unit in ended:
        ran_s[unit.get("ran_on", "")] += unit["run_s"] * unit.get("slots", 1)
    return Result(
        scenario=scenario.name,
        policy="recorded",
        n_units=len(ended),
        makespan_s=makespan_s,
        flow_s=sum(unit["ended_s"] - unit.get("submitted_s", 0.0) for unit in ended) / len(ended),
        nbytes=tuple(sum(unit.get(name, 0) for unit in ended) for name in names),
        wasted_nbytes=(0, 0, 0),
        waits_s=(*waits, 0.0),
        utilisation=tuple(
            ran_s[pilot.id] / (pilot.slots * here_s)
            if (here_s := min(makespan_s, pilot.gone_s or makespan_s) - pilot.arrives_s) > 0
            else 0.0
            for pilot in scenario.pilots
        ),
        n_lost=0,
        n_events=0,
    )
