"""What a decision costs the scheduler: the matcher alone, with time passed in, beside plain ways to choose.

``python -m benchmarks.placement`` runs a grid of pilots, workers, waiting units and data units, for several ways in
which the data may lie. A worker ends a unit, the matcher is asked, what it binds runs: so each event frees one slot,
which is the dearest case (in a real scheduler several ends share one turn of the loop). What a unit reads that is not
where it runs comes in the time that the matcher expects, of which it is told. Times per unit are of the
processor, and include what the benchmark itself does for an event, about 2 us.
"""

from __future__ import annotations

import gc
import heapq
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import click

from dpilot.monitor.tables import text_table
from dpilot.placement import InputView, Links, Matcher, PilotView, Policy, Request, Site

__all__ = ["SHAPES", "Case", "lay", "measure"]

MB = 10**6
RUN_S = 0.5
#: Of the ways that look at every pilot for every unit, so many units are measured.
FEW = 300

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Case(NamedTuple):
    """One point of the grid: how much there is of everything, and how the data lies."""

    shape: str
    pilots: int
    workers: int
    units: int
    data: int

    @property
    def sites(self) -> list[Site]:
        """One machine for each pilot; ten of them, or fewer, in a datacenter."""
        return [Site(f"dc{number // 10}", f"m{number}") for number in range(self.pilots)]


def _pseudo_random(seed: int) -> Iterator[int]:
    while True:
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        yield seed >> 33


def _even(case: Case) -> Iterator[tuple[int, ...]]:
    """Each data unit at one site, as many at each."""
    for number in range(case.data):
        yield (number % case.pilots,)


def _zipf(case: Case) -> Iterator[tuple[int, ...]]:
    """A few sites have most of the data."""
    chance = _pseudo_random(1)
    for _ in range(case.data):
        yield (min(case.pilots - 1, int(case.pilots ** (next(chance) / 2**31)) - 1),)


def _swamped(case: Case) -> Iterator[tuple[int, ...]]:
    """One site has all of it."""
    for _ in range(case.data):
        yield (0,)


def _replicas(case: Case) -> Iterator[tuple[int, ...]]:
    """Three replicas of each data unit."""
    chance = _pseudo_random(2)
    for _ in range(case.data):
        yield tuple({next(chance) % case.pilots for _ in range(3)})


#: How the data lies -> the sites of each data unit, and how many of them a unit reads.
SHAPES: dict[str, tuple[Callable[[Case], Iterator[tuple[int, ...]]], int]] = {
    "even": (_even, 1),
    "zipf": (_zipf, 1),
    "swamped": (_swamped, 1),
    "replicas": (_replicas, 1),
    "pairs": (_even, 2),
    "no data": (_even, 0),
}


def lay(case: Case) -> tuple[dict[str, InputView], list[Request]]:
    """The data units of a case, and what its units ask for."""
    lie, reads = SHAPES[case.shape]
    sites, chance = case.sites, _pseudo_random(3)
    views = {
        f"du-{number}": InputView(f"du-{number}", (1 + next(chance) % 20) * MB, 1, tuple(sites[i] for i in where))
        for number, where in enumerate(lie(case))
    }
    requests = []
    for number in range(case.units):
        first = f"du-{number % case.data}"
        second = f"du-{next(chance) % case.data}"
        inputs = (first, second)[:reads] if first != second else (first,)[:reads]
        requests.append(Request("cds", "work", inputs=inputs))
    return views, requests


def _pilots(case: Case, matcher: Matcher) -> None:
    each, more = divmod(case.workers, case.pilots)
    for number, site in enumerate(case.sites):
        name, workers = f"pilot-{number}", each + (number < more)
        matcher.add_pilot(name, site, workers)
        for worker in range(workers):
            matcher.add_worker(name, f"{name}-{worker}", 1)


class _Watch:
    """The processor time of a phase, and the longest of its events by the clock."""

    def __init__(self) -> None:
        self.total_s = self.worst_s = 0.0

    def __enter__(self) -> _Watch:
        self._begun = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.total_s += time.process_time() - self._begun

    def event(self, work: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """Do one thing, and see how long it takes. The processor's time is not asked for: that itself takes long."""
        begun = time.perf_counter()
        answer = work(*args, **options)
        self.worst_s = max(self.worst_s, time.perf_counter() - begun)
        return answer


def _by_matcher(case: Case, limit: int | None) -> dict[str, Any]:
    """Everything waits; then each slot that comes free is filled, until nothing waits or `limit` units are placed."""
    views, requests = lay(case)
    matcher = Matcher(Policy(Links()), inputs=views)
    matcher.runtimes.observe("work", RUN_S)
    _pilots(case, matcher)
    submitting, joining, placing = _Watch(), _Watch(), _Watch()
    names = [f"cu-{number}" for number in range(case.units)]
    gc.collect()
    gc.freeze()  # what is there by now is not the matcher's garbage to look through
    with submitting:
        for number, request in enumerate(requests):
            submitting.event(matcher.submit, names[number], request, now=0.0, order=float(number))
    now, placed, running = 0.0, 0, list[tuple[float, bool, str]]()  # a heap: when what is staged, or has ended
    site_of = {f"pilot-{number}": site for number, site in enumerate(case.sites)}
    chance = _pseudo_random(4)

    def match() -> float | None:
        nonlocal placed
        matching = placing.event(matcher.match, now)
        for binding in matching.bindings:
            placed += 1
            begins = now
            if matcher.transit.needs(binding.unit):
                inputs, site = requests[int(binding.unit[3:])].inputs, site_of[binding.pilot]
                begins += max(matcher.transit.left_s(du, site, now) or 0.0 for du in inputs)
                heapq.heappush(running, (begins, False, binding.unit))
            heapq.heappush(running, (begins + RUN_S * (0.5 + next(chance) / 2**31), True, binding.unit))
        return matching.recheck_s

    with placing:
        recheck_s = match()
        while (running or recheck_s is not None) and len(matcher) and (limit is None or placed < limit):
            if recheck_s is not None and (not running or now + recheck_s < running[0][0]):
                now += recheck_s
            else:
                now, has_ended, unit = heapq.heappop(running)
                placing.event(matcher.release if has_ended else matcher.staged, unit)
                if not has_ended:
                    continue
            recheck_s = match()
    if len(matcher):
        before = len(matcher)
        with joining:
            matcher.add_worker("pilot-0", "late", 1)
            matcher.match(now)
        assert len(matcher) < before, "the new worker got nothing"
    gc.unfreeze()
    return {
        "by": "dpilot",
        "placed": placed,
        "us": 1e6 * (submitting.total_s * placed / case.units + placing.total_s) / placed,
        "submit_us": 1e6 * submitting.total_s / case.units,
        "worst_ms": 1e3 * max(placing.worst_s, submitting.worst_s),
        "join_ms": 1e3 * joining.total_s if len(matcher) else None,
    }


def _nbytes(case: Case) -> float:
    """Bytes that the matcher keeps for each waiting unit; names, requests and views are the caller's."""
    views, requests = lay(case)
    names = [f"cu-{number}" for number in range(case.units)]
    matcher = Matcher(Policy(Links()), inputs=views)
    _pilots(case, matcher)
    matcher.match(0.0)
    gc.collect()
    tracemalloc.start()
    for number, request in enumerate(requests):
        matcher.submit(names[number], request, now=0.0, order=float(number))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / case.units


def _by_scan(case: Case) -> dict[str, Any]:
    """The plain way: for every unit, the cost of every pilot, and the cheapest one that has a free slot."""
    views, requests = lay(case)
    policy = Policy(Links())
    free = {f"pilot-{n}": case.workers // case.pilots for n in range(case.pilots)}
    sites = {f"pilot-{n}": site for n, site in enumerate(case.sites)}
    slots = case.workers // case.pilots
    few = requests[: min(FEW, case.workers)]
    watch = _Watch()

    def place(request: Request) -> None:
        pilots = [PilotView(name, sites[name], slots, free[name]) for name in free]
        free[policy.rank(request, pilots, views)[0].pilot] -= 1

    with watch:
        for request in few:
            place(request)
    return {"by": "scan of all pilots", "placed": len(few), "us": 1e6 * watch.total_s / len(few)}


def _round_robin(case: Case) -> dict[str, Any]:
    """The least that choosing can cost: the next pilot in turn, whatever the unit reads."""
    _, requests = lay(case)
    free = {f"pilot-{n}": case.workers // case.pilots for n in range(case.pilots)}
    turn = list(free)
    watch = _Watch()

    def place(number: int) -> None:
        free[turn[number % len(turn)]] -= 1

    with watch:
        for number in range(len(requests)):
            place(number)
    return {"by": "round robin", "placed": len(requests), "us": 1e6 * watch.total_s / len(requests)}


def measure(case: Case, limit: int | None = None, baselines: bool = True) -> list[dict[str, Any]]:
    """Measure one case.

    Parameters
    ----------
    case : Case
    limit : int, optional
        Stop when so many units are placed; None: place all of them.
    baselines : bool
        Whether to measure the plain ways, too.

    Returns
    -------
    list of dict
        One for each way to choose; times are per unit placed, submitting it and giving back its slot included.
    """
    rows = [{**case._asdict(), **_by_matcher(case, limit), "nbytes": _nbytes(case)}]
    if baselines:
        rows += [{**case._asdict(), **_by_scan(case)}, {**case._asdict(), **_round_robin(case)}]
    return rows


@click.command()
@click.option("--pilots", multiple=True, type=int, default=(10, 100, 1000), show_default=True)
@click.option("--workers", default=10_000, show_default=True, help="Of all pilots, with a slot each.")
@click.option("--units", default=100_000, show_default=True, help="Compute units that wait.")
@click.option("--data", default=100_000, show_default=True, help="Data units that they read.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=tuple(SHAPES))
@click.option("--limit", type=int, help="Stop each case when so many units are placed.")
@click.option("--repeat", default=1, show_default=True, help="The median of so many runs of each case.")
@click.option("--baselines/--no-baselines", default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(
    pilots: tuple[int, ...],
    workers: int,
    units: int,
    data: int,
    shapes: tuple[str, ...],
    limit: int | None,
    repeat: int,
    baselines: bool,
    as_json: bool,
) -> None:
    """Measure what a decision costs."""
    found = []
    for shape in shapes:
        for number in pilots:
            runs = [measure(Case(shape, number, workers, units, data), limit, baselines) for _ in range(repeat)]
            for row in zip(*runs, strict=True):
                found.append({**row[0], "us": statistics.median(run["us"] for run in row)})
    if as_json:
        print(json.dumps(found))
        return
    header = [
        "data",
        "pilots",
        "by",
        "placed",
        "us/unit",
        "submit us",
        "worst event ms",
        "worker joins ms",
        "bytes/unit",
    ]
    print(f"{workers:,} workers, {units:,} waiting units, {data:,} data units. Compare within this table.\n")
    print(
        text_table(
            header,
            [
                [
                    row["shape"],
                    f"{row['pilots']:,}",
                    row["by"],
                    f"{row['placed']:,}",
                    f"{row['us']:.1f}",
                    *(
                        (
                            f"{row['submit_us']:.1f}",
                            f"{row['worst_ms']:.1f}",
                            "" if row["join_ms"] is None else f"{row['join_ms']:.2f}",
                            f"{row['nbytes']:.0f}",
                        )
                        if "nbytes" in row
                        else ("", "", "", "")
                    ),
                ]
                for row in found
            ],
        )
    )


if __name__ == "__main__":
    main()
