"""The figures of a run, worked out of its account: one function for each table, rows as dicts.

Times are seconds since the epoch, durations seconds, sizes bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from math import ceil
from statistics import fmean
from typing import Any

from dpilot.monitor.blind import blind_nbytes
from dpilot.monitor.model import LOCALITIES, NO_INPUT, link_name, site_name
from dpilot.monitor.series import DURATIONS_S
from dpilot.placement import Site
from dpilot.runtime.account import Account, PilotTold, UnitTold
from dpilot.states import State

__all__ = ["COLUMNS", "TABLES", "Row", "locality", "span", "throughput"]

Row = dict[str, Any]

#: What the program of a Python function is called.
PYTHON = "Python function"
#: Of a run's throughput: how long a step may be, and how many there are at most.
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_MOST_STEPS = 60
_DAY_S = 86400.0


def span(account: Account) -> tuple[float, float]:
    """When the first unit was submitted, and when the last one ended, or now if one has not."""
    began = min((unit.times.submitted for unit in account.units), default=account.now)
    ends = [unit.times.ended for unit in account.units]
    known = [end for end in ends if end is not None]
    return began, max(began, max(known) if known and len(known) == len(ends) else account.now)


def locality(unit: UnitTold) -> str:
    """How far the input of a unit had to come."""
    if not unit.request.inputs:
        return NO_INPUT
    return LOCALITIES[max((i for i, nbytes in enumerate(unit.nbytes) if nbytes), default=0)]


def ran_s(unit: UnitTold) -> float | None:
    """How long a unit ran, with the collecting of its output; None: it has not ended, or never ran."""
    when = unit.times
    return None if when.ran is None or when.ended is None else max(0.0, when.ended - when.ran)


def summary(account: Account) -> list[Row]:
    """One row with what matters most."""
    began, ended = span(account)
    states = Counter(unit.state for unit in account.units)
    here_s = busy_s = 0.0
    for row in pilots(account):
        here_s += row["here_s"] * row["slots"]
        busy_s += row["ran_s"] + row["staged_s"]
    seen, blind = nbytes(account)
    n_ended = sum(unit.times.ended is not None for unit in account.units)
    makespan_s = ended - began
    return [
        {
            "owner": account.owner,
            "began": began,
            "ended": ended,
            "makespan_s": makespan_s,
            "units": len(account.units),
            **{str(state).lower(): states[state] for state in (State.Done, State.Failed, State.Canceled)},
            "not_ended": len(account.units) - n_ended,
            "units_a_day": n_ended / makespan_s * _DAY_S if makespan_s else 0.0,
            "pilots": len(account.pilots),
            "slots": sum(pilot.slots for pilot in account.pilots if pilot.began is not None),
            "utilisation": min(1.0, busy_s / here_s) if here_s else 0.0,
            "read_bytes": sum(sum(unit.nbytes) for unit in account.units),
            "moved_bytes": seen[_NBYTES[1]] + seen[_NBYTES[2]],
            "blind_moved_bytes": blind[_NBYTES[1]] + blind[_NBYTES[2]],
            "saved_bytes": sum(blind[name] - seen[name] for name in _NBYTES[1:]),
        }
    ]


_NBYTES = ("local_bytes", "same_datacenter_bytes", "cross_datacenter_bytes")


def _sites(account: Account) -> dict[str, Site]:
    """Where data came from: stores, and pilots, whose machines' caches have some."""
    return {pilot.id: pilot.site for pilot in account.pilots} | {store.id: store.site for store in account.stores}


def nbytes(account: Account) -> list[Row]:
    """Bytes of input by how far they came: as it was, and as expected of a data-blind placement.

    What was brought ahead of units and never read counts as moved.
    """
    seen = [sum(column) for column in zip(*(unit.nbytes for unit in account.units), strict=True)] or [0, 0, 0]
    site_of = _sites(account)
    for had in account.unread:
        if had.store in site_of:
            seen[site_of[had.store].distance(had.site)] += had.nbytes
    blind = [round(n) for n in blind_nbytes(account)]
    rows = zip(("this run", "data-blind"), (seen, blind), strict=True)
    return [{"placement": name, **dict(zip(_NBYTES, row, strict=True))} for name, row in rows]


def units(account: Account) -> list[Row]:
    """The compute units."""
    site = {pilot.id: pilot.site for pilot in account.pilots}
    rows = []
    for unit in account.units:
        when, (datacenter, machine) = unit.times, site.get(unit.pilot or "", Site())
        started = when.began if when.began is not None else when.ended
        rows.append(
            {
                "unit": unit.id,
                "kind": unit.request.kind,
                "program": unit.program,
                "state": unit.state,
                "pilot": unit.pilot,
                "datacenter": datacenter,
                "machine": machine,
                "slots": unit.request.slots,
                "attempt": unit.attempt,
                "submitted": when.submitted,
                "began": when.began,
                "ended": when.ended,
                "waited_s": None if started is None else max(0.0, started - when.submitted),
                "staged_s": None if when.began is None or when.ran is None else when.ran - when.began,
                "ran_s": ran_s(unit),
                "locality": locality(unit),
                **dict(zip(_NBYTES, unit.nbytes, strict=True)),
                "error": unit.error,
            }
        )
    return rows


def pilots(account: Account) -> list[Row]:
    """The pilots, and how their slots' time was spent, from the run's begin to its end."""
    began, ended = span(account)
    of: defaultdict[str | None, list[UnitTold]] = defaultdict(list)
    for unit in account.units:
        of[unit.pilot].append(unit)
    rows = []
    for pilot in account.pilots:
        held = of[pilot.id]
        states = Counter(unit.state for unit in held)
        here_s = _here_s(pilot, began, ended)
        ran = staged = 0.0
        for unit in held:
            when = unit.times
            if when.began is not None:
                until = account.now if when.ended is None else when.ended
                begun = until if when.ran is None else when.ran
                staged += (begun - when.began) * unit.request.slots
                ran += max(0.0, until - begun) * unit.request.slots
        all_s = here_s * pilot.slots
        rows.append(
            {
                "pilot": pilot.id,
                "datacenter": pilot.site.datacenter,
                "machine": pilot.site.machine,
                "service_url": pilot.service_url,
                "state": pilot.state,
                "slots": pilot.slots,
                "submitted": pilot.submitted,
                "began": pilot.began,
                "ended": pilot.ended,
                "here_s": here_s,
                **{str(state).lower(): states[state] for state in (State.Done, State.Failed, State.Canceled)},
                "ran_s": ran,
                "staged_s": staged,
                "utilisation": min(1.0, (ran + staged) / all_s) if all_s else 0.0,
                "running": min(1.0, ran / all_s) if all_s else 0.0,
                "staging": min(1.0, staged / all_s) if all_s else 0.0,
            }
        )
    return rows


def _here_s(pilot: PilotTold, began: float, ended: float) -> float:
    """How long a pilot was there between two moments."""
    if pilot.began is None:
        return 0.0
    return max(0.0, min(ended, pilot.ended or ended) - max(began, pilot.began))


def matrix(account: Account) -> list[Row]:
    """Where data lay, and where the units ran that read it: runs and bytes."""
    nbytes = {data.id: data.nbytes for data in account.data}
    data_at = {source: site_name(site) for source, site in _sites(account).items()}
    ran_at = {pilot.id: site_name(pilot.site) for pilot in account.pilots}
    cells: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for unit in account.units:
        for du, pd in zip(unit.request.inputs, unit.read, strict=False):
            if pd in data_at and unit.pilot in ran_at:
                cell = cells[data_at[pd], ran_at[unit.pilot]]
                cell[0] += 1
                cell[1] += nbytes.get(du, 0)
    return [
        {"data": data, "run": run, "runs": runs, "bytes": total} for (data, run), (runs, total) in sorted(cells.items())
    ]


def kinds(account: Account) -> list[Row]:
    """Kinds of work, those first that took longest in all: how often they ran, and how long."""
    of: defaultdict[tuple[str, str], list[UnitTold]] = defaultdict(list)
    for unit in account.units:
        of[unit.request.kind, unit.program or PYTHON].append(unit)
    rows = []
    for (kind, program), members in of.items():
        times = sorted(seconds for seconds in map(ran_s, members) if seconds is not None)
        rows.append(
            {
                "kind": kind,
                "program": program,
                "units": len(members),
                "failed": sum(unit.state == State.Failed for unit in members),
                "ran_s": sum(times),
                "mean_s": fmean(times) if times else None,
                "least_s": times[0] if times else None,
                "median_s": _quantile(times, 0.5),
                "p95_s": _quantile(times, 0.95),
                "most_s": times[-1] if times else None,
                "staged_s": sum(
                    max(0.0, u.times.ran - u.times.began) for u in members if u.times.began and u.times.ran
                ),
            }
        )
    return sorted(rows, key=lambda row: (-row["ran_s"], row["kind"], row["program"]))


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def run_times(account: Account) -> list[Row]:
    """A histogram of run times, for each kind of work: units that ran longer than ``above_s``, up to ``to_s``."""
    counts: Counter[tuple[str, int]] = Counter()
    for unit in account.units:
        seconds = ran_s(unit)
        if seconds is not None:
            counts[unit.request.kind, sum(bound < seconds for bound in DURATIONS_S)] += 1
    bounds = (0.0, *DURATIONS_S, None)
    return [
        {"kind": kind, "above_s": bounds[step], "to_s": bounds[step + 1], "units": n}
        for (kind, step), n in sorted(counts.items())
    ]


def throughput(account: Account) -> list[Row]:
    """How many units ended in each step of time: at most 60 steps, of a day at most unless there are more days."""
    began, ended = span(account)
    step_s = next((step for step in _STEPS_S if (ended - began) / step <= _MOST_STEPS), _DAY_S)
    first = began - began % step_s
    return _by_step(account.units, first, max(1, ceil((ended - first) / step_s)), step_s)


def days(account: Account) -> list[Row]:
    """How many units ended on each day (UTC)."""
    began, ended = span(account)
    first = began - began % _DAY_S
    rows = _by_step(account.units, first, max(1, ceil((ended - first) / _DAY_S)), _DAY_S)
    return [
        {"day": datetime.fromtimestamp(row.pop("began"), UTC).date().isoformat()}
        | {name: value for name, value in row.items() if name != "seconds"}
        for row in rows
    ]


def _by_step(units: Iterable[UnitTold], first: float, n: int, step_s: float) -> list[Row]:
    counts: Counter[tuple[int, str]] = Counter()
    for unit in units:
        if unit.times.ended is not None:
            counts[min(n - 1, int((unit.times.ended - first) // step_s)), unit.state] += 1
    states = (State.Done, State.Failed, State.Canceled)
    return [
        {"began": first + i * step_s, "seconds": step_s}
        | {str(state).lower(): counts[i, str(state)] for state in states}
        for i in range(n)
    ]


def slowest(account: Account) -> list[Row]:
    """The 20 units that took longest from the begin of their staging to their end, and how they compare."""
    median = {(row["kind"], row["program"]): row["median_s"] for row in kinds(account)}
    rows = [row for row in units(account) if row["ran_s"] is not None]
    rows.sort(key=lambda row: -(row["ran_s"] + (row["staged_s"] or 0.0)))
    names = COLUMNS["slowest"][:-1]
    found = []
    for row in rows[:20]:
        usual_s = median[row["kind"], row["program"] or PYTHON]
        found.append(
            {name: row[name] for name in names} | {"times_median": row["ran_s"] / usual_s if usual_s else None}
        )
    return found


def failures(account: Account) -> list[Row]:
    """The units that failed, and why."""
    names = COLUMNS["failures"]
    return [{name: row[name] for name in names} for row in units(account) if row["state"] == State.Failed]


def links(account: Account) -> list[Row]:
    """What was copied between sites, for units and from store to store."""
    site_of = _sites(account)
    at = {pilot.id: pilot.site for pilot in account.pilots}
    sums: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])

    def add(source: Site | None, target: Site | None, moved: int, seconds: float) -> None:
        if source is not None and target is not None:
            row = sums[link_name(source, target)]
            row[0] += 1
            row[1] += moved
            row[2] += seconds

    for unit in account.units:
        for _, pd, moved, seconds, _ in unit.brought:
            add(site_of.get(pd), at.get(unit.pilot or ""), moved, seconds)
    for had in account.unread:
        add(site_of.get(had.store), had.site, had.nbytes, had.seconds)
    for t in account.transfers:
        if t["kind"] == "copy" and t["error"] is None and t["began"] is not None and t["ended"] is not None:
            add(site_of.get(t["source"]), site_of.get(t["target"]), t["moved"], t["ended"] - t["began"])
    return [
        {"source": source, "target": target, "transfers": int(n), "bytes": int(moved), "seconds": seconds}
        for (source, target), (n, moved, seconds) in sorted(sums.items(), key=lambda item: -item[1][1])
    ]


#: The columns of the tables that may have no rows.
COLUMNS: dict[str, tuple[str, ...]] = {
    "units": (
        *("unit", "kind", "program", "state", "pilot", "datacenter", "machine", "slots", "attempt"),
        *("submitted", "began", "ended", "waited_s", "staged_s", "ran_s", "locality", *_NBYTES, "error"),
    ),
    "pilots": (
        *("pilot", "datacenter", "machine", "service_url", "state", "slots", "submitted", "began", "ended", "here_s"),
        *("done", "failed", "canceled", "ran_s", "staged_s", "utilisation", "running", "staging"),
    ),
    "matrix": ("data", "run", "runs", "bytes"),
    "kinds": (
        *("kind", "program", "units", "failed", "ran_s", "mean_s", "least_s", "median_s", "p95_s", "most_s"),
        "staged_s",
    ),
    "run_times": ("kind", "above_s", "to_s", "units"),
    "slowest": (
        *("unit", "kind", "pilot", "datacenter", "state", "waited_s", "staged_s", "ran_s", "locality"),
        "times_median",
    ),
    "failures": ("unit", "kind", "pilot", "datacenter", "machine", "attempt", "ended", "error"),
    "links": ("source", "target", "transfers", "bytes", "seconds"),
}
#: Name of a table -> what works it out.
TABLES: dict[str, Callable[[Account], list[Row]]] = {
    "summary": summary,
    "units": units,
    "pilots": pilots,
    "matrix": matrix,
    "bytes": nbytes,
    "kinds": kinds,
    "run_times": run_times,
    "throughput": throughput,
    "days": days,
    "slowest": slowest,
    "failures": failures,
    "links": links,
}
