"""The harness's own plan, carried out by hand: who knows all beforehand, and has nothing to do but to follow it.

A driver of the same multi-site harness as ``wan_driver.py``, for comparison: what its plan takes where files are read
over real connections and on this machine's cores. The plan (the solver's assignment of compute units to sites, and the
order of the copies) is made before the clock starts. Then one task of Dask's at each site brings what is missing, so
many copies at a time as the variant says, reads ahead what is near, and runs the site's units on as many threads as it
has slots, the ones first whose data is there. Nothing is decided while it runs, and no message is sent.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import plain_dask  # these are beside the harness, the first among its own drivers
import wanbound
import wantask

VARIANTS = ("2", "4")
NEEDS_CLUSTER = True

_Unit = Mapping[str, Any]
#: By site: its compute units, and the data units that are brought there, both in order.
_Plan = dict[str, tuple[list[Any], list[str]]]

#: What the plan takes a read nearby for, in seconds, and what part of a link TCP uses: about what the harness measures.
_READ_S, _EFFICIENCY = 0.02, 0.92
#: How many files are read ahead at once that lie at the site itself.
_NEAR = 2


class _Site:
    """The compute units of one site, which run as their data comes."""

    def __init__(self, units: Mapping[str, _Unit], jobs: Iterable[Any]) -> None:
        self.units = units
        self.left = list(jobs)
        self.here: dict[str, bytes] = {}
        self.results: list[Any] = []
        self.changed = threading.Condition()

    def bring(self, todo: list[str]) -> None:
        while True:
            with self.changed:
                if not todo:
                    return
                du = todo.pop(0)
            data = plain_dask.read(self.units[du])
            with self.changed:
                self.here[du] = data
                self.changed.notify_all()

    def work(self) -> None:
        while (job := self._next()) is not None:
            self.results.append(wantask.compute(job, [self.here[du] for du in job["inputs"]], time.time()))

    def _next(self) -> Any:
        with self.changed:
            while self.left:
                for job in self.left:
                    if all(du in self.here for du in job["inputs"]):
                        self.left.remove(job)
                        return job
                self.changed.wait()
        return None


def run_site(units: Mapping[str, _Unit], jobs: list[Any], far: list[str], slots: int, ways: int) -> list[Any]:
    """Run all compute units of a site; `far` is what is brought, in this order, `ways` at a time."""
    site = _Site(units, jobs)
    near = list(dict.fromkeys(du for job in jobs for du in job["inputs"] if du not in far))
    steps: list[Callable[[], None]] = [functools.partial(site.bring, far)] * ways
    steps += [functools.partial(site.bring, near)] * _NEAR
    steps += [site.work] * slots
    threads = [threading.Thread(target=step) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return site.results


def _plan(ctx: Mapping[str, Any]) -> _Plan:
    """The fastest of the assignments that the harness times for its plan, with copies in the order of that."""
    sites = {site["name"]: site for site in ctx["sites"]}
    units = {unit["id"]: unit for unit in ctx["units"]}
    case = {"slots": {name: site["slots"] for name, site in sites.items()}, "units": ctx["units"], "cus": ctx["cus"]}
    links = {
        name: dict.fromkeys(("up_bps", "down_bps"), site["uplink_mbit"] * 1e6 / 8) | {"delay_ms": site["delay_ms"]}
        for name, site in sites.items()
    }
    real = {
        name: {**link, **{way: link[way] * _EFFICIENCY for way in ("up_bps", "down_bps")}}
        for name, link in links.items()
    }
    read_s = _READ_S * len(ctx["cus"][0]["inputs"])
    fast = wanbound._model(case, links)
    frugal = wanbound._model(case, links, fixed_t=fast["T"] * 1.05, by_bytes=True)
    models = [fast, frugal, wanbound._model(case, real, ms_extra=read_s)]

    def takes_s(model: Mapping[str, Any]) -> float:
        parts = (model[part] for part in ("plan", "copies", "groups"))
        seconds: float = wanbound.simulate(case, links, *parts, _READ_S, _EFFICIENCY, 0.1)
        return seconds

    best = min((model for model in models if model), key=takes_s)
    there = _in_order(best, units, real)
    job_of = {job["id"]: job for job in ctx["cus"]}
    jobs: dict[str, list[tuple[float, str]]] = {name: [] for name in sites}
    for group, counts in best["plan"].items():
        ids = list(best["groups"][group])
        for name, count in counts.items():
            at = max((there.get((du, name), 0.0) for du in group[0]), default=0.0)
            jobs[name] += [(at, ids.pop()) for _ in range(count)]
    return {
        name: ([job_of[id] for _, id in sorted(jobs[name])], [du for du, site in there if site == name])
        for name in sites
    }


def _in_order(model: Any, units: Mapping[str, _Unit], links: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """When each copy has come, one at a time on each way, those first that many units read; in the order of that."""
    readers: dict[tuple[str, str], int] = {}
    for group, counts in model["plan"].items():
        for site, count in counts.items():
            for du in group[0]:
                readers[du, site] = readers.get((du, site), 0) + count
    left = [copy for copy in model["copies"] if readers.get(copy)]
    up, down, there = dict.fromkeys(links, 0.0), dict.fromkeys(links, 0.0), dict[tuple[str, str], float]()

    def begins(copy: tuple[str, str]) -> tuple[float, int]:
        return max(up[units[copy[0]]["site"]], down[copy[1]]), -readers[copy]

    while left:
        copy = min(left, key=begins)
        left.remove(copy)
        source, site = units[copy[0]]["site"], copy[1]
        ends = begins(copy)[0] + units[copy[0]]["size"] / min(links[source]["up_bps"], links[site]["down_bps"])
        up[source] = down[site] = there[copy] = ends
    return there


def setup(ctx: dict[str, Any]) -> Any:
    client, at = plain_dask.setup(ctx)
    # Who runs this file imports the solver: so all have done that before the clock starts.
    client.gather([client.submit(run_site, {}, [], [], 0, 0, workers=own[:1], pure=False) for own in at.values()])
    return client, at, _plan(ctx)


def run(ctx: dict[str, Any], state: Any) -> list[Any]:
    client, at, plan = state
    units = {unit["id"]: unit for unit in ctx["units"]}
    futures = []
    for site in ctx["sites"]:
        jobs, far = plan[site["name"]]
        if jobs:
            read = {du: units[du] for job in jobs for du in job["inputs"]}
            arguments = read, jobs, far, site["slots"], int(ctx["variant"])
            futures.append(client.submit(run_site, *arguments, workers=at[site["name"]][:1], pure=False))
    return [result for results in client.gather(futures) for result in results]


def teardown(ctx: dict[str, Any], state: Any) -> None:
    state[0].close()
