"""What units cost the scheduler: the plugin in a real Scheduler, with workers that are only names.

``python -m benchmarks.scheduler`` submits units that wait, lets workers join, and has each unit that is sent to one end
at once, as if its worker had said so. All that is measured is in the scheduler: no unit is run. Data units are records,
whose files are nowhere; what is to be brought is there at once.

How long the plugin takes is told apart from what Dask takes, and of it what the decision takes: all that the matcher is
told and asked. Each case has a process of its own, which does not close its scheduler: to take leave of 10,000 workers,
each of which is told of each other, would take Dask minutes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import pickle
import sys
import time
import tracemalloc
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import click
from dask._task_spec import Task
from distributed import Client, Scheduler
from distributed.core import Status

from benchmarks.placement import SHAPES, Case, lay
from dpilot.data import FileEntry, Manifest, Store
from dpilot.monitor.tables import text_table
from dpilot.placement import Request
from dpilot.runtime import adapter
from dpilot.runtime.embedded import collect_seldom
from dpilot.runtime.records import DataRecord, StoreRecord
from dpilot.runtime.scheduler import PLUGIN, PilotPlugin
from dpilot.runtime.work import Call, UnitTask
from dpilot.runtime.worker import run_unit
from dpilot.states import State

__all__ = ["measure"]

_NONE = pickle.dumps(None)
#: How long each unit is said to have run.
_RUN_S = 1.0
_METRICS = {
    "cpu": 0.0,
    "memory": 0,
    "time": 0.0,
    "task_counts": {},
    "bandwidth": {"total": 100_000_000, "workers": {}, "types": {}},
    "digests_total_since_heartbeat": {},
    "managed_bytes": 0,
    "spilled_bytes": {"memory": 0, "disk": 0},
    "transfer": {
        "incoming_bytes": 0,
        "incoming_count": 0,
        "incoming_count_total": 0,
        "outgoing_bytes": 0,
        "outgoing_count": 0,
        "outgoing_count_total": 0,
    },
    "event_loop_interval": 0.02,
}


class _Silent:
    """The connection of a worker that is not there: what is sent to it is dropped, and it says nothing."""

    name = peer_address = local_address = "silent"
    _is_closed = False

    async def write(self, *_: Any, **__: Any) -> int:
        return 0

    async def read(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    def abort(self) -> None:
        self._is_closed = True

    async def close(self) -> None:
        self.abort()

    def closed(self) -> bool:
        return self._is_closed


class _Clock:
    """Who takes how long: each moment is counted for one only, the innermost of those whose methods are under way."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._stack = ["Dask"]
        self._since = time.perf_counter()
        gc.callbacks.append(self._collected)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._enter("garbage")
        else:
            self._leave()

    def _enter(self, who: str) -> None:
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now
        self._stack.append(who)

    def _leave(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stack.pop()] += now - self._since
        self._since = now

    def watch(self, who: str, watched: object, *names: str) -> None:
        """Count what some methods of an object take for `who`."""
        for name in names:
            setattr(watched, name, self._timed(who, getattr(watched, name)))

    def _timed(self, who: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(who)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return timed

    def take(self) -> Mapping[str, float]:
        """What was counted since the last time."""
        self._enter(self._stack[-1])
        self._leave()
        taken, self.seconds = self.seconds, defaultdict(float)
        return taken


class _Bench:
    def __init__(self, scheduler: Scheduler, client: Client) -> None:
        self.scheduler = scheduler
        self.client = client
        plugin = scheduler.plugins[PLUGIN]
        assert isinstance(plugin, PilotPlugin)
        self.plugin = plugin
        self.futures: list[Any] = []
        self.background: list[asyncio.Task[Any]] = []
        self.inputs: list[tuple[str, ...]] = [()]  # of the units, in turn
        self._n_units = 0
        self.clock = _Clock()
        own = "update_graph", "transition", "_match", "add_worker", "_status_changed", "take_report", "_tell_begun"
        self.clock.watch("plugin", plugin, *own, "_send_events")
        decision = "match", "submit", "withdraw", "release", "staged", "data_changed"
        self.clock.watch("decision", plugin.matcher, *decision)
        self.clock.watch("Dask", scheduler, "transition", "transitions", "_transition", "_transitions")
        self.clock.watch("Dask", scheduler, "send_all", "worker_send", "client_desires_keys")
        self._begun = time.perf_counter()

    def say(self, what: str) -> None:
        print(f"{time.perf_counter() - self._begun:6.1f} s: {what}", file=sys.stderr, flush=True)

    async def call(self, call: str, **arguments: Any) -> Any:
        good, value = pickle.loads(
            await adapter.call_from_client(self.client, call=call, arguments=adapter.Sealed.of(arguments))
        )
        if not good:
            raise value
        return value

    async def submit(self, n: int, units: bool) -> None:
        graph = {}
        for _ in range(n):
            id = f"cu-{uuid.uuid4().hex[:12]}"
            if units:
                inputs = self.inputs[self._n_units % len(self.inputs)]
                self._n_units += 1
                task = UnitTask(id, Call(_NONE, _NONE), Request("cds-1", "work", inputs=inputs), time.time())
                graph[f"work-{id}"] = Task(f"work-{id}", run_unit, task, ())
            else:
                graph[f"plain-{id}"] = Task(f"plain-{id}", run_unit, id, ())
        before, states = len(self.scheduler.tasks), self.scheduler.tasks
        resources = {} if units else {"resources": {"nobody has it": 1}}
        self.futures += self.client.get(graph, list(graph), sync=False, **resources)
        while len(states) < before + n or any(states[key].state == "waiting" for key in graph):
            await asyncio.sleep(0.01)

    async def join(self, pilot: str, number: int) -> str:
        address = f"tcp://10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:{1024 + number % 60000}"
        work = self.scheduler.add_worker(
            _Silent(),  # type: ignore[arg-type]
            address=address,
            status=Status.running.name,
            server_id=address,
            nthreads=1,
            name=address,
            resolve_address=False,
            now=time.time(),
            resources={f"pilot:{pilot}": 1.0},
            memory_limit=0,
            metrics={**_METRICS, "time": time.time()},
            services={},
            local_directory="/",
            versions={},
            nanny="",
            extra={},
            stimulus_id="bench",
        )
        self.background.append(asyncio.ensure_future(work))
        await asyncio.sleep(0)
        return address

    def add_data(self, case: Case) -> None:
        """A store for each site, and the data units on them."""
        records, catalogue = self.plugin.records, self.plugin.catalogue
        for number, site in enumerate(case.sites):
            store = Store(f"s3://bucket/{number}", datacenter=site.datacenter, machine=site.machine)
            record = StoreRecord(f"pd-{number}", "pds-1", 0.0, (), store, self.client.id)
            record.life.advance(State.Canceled, 0.0)  # so workers are not told of it: of 1,000 stores each
            records.stores[record.id] = record
        views, requests = lay(case)
        numbers = {site: f"pd-{number}" for number, site in enumerate(case.sites)}
        for view in views.values():
            data = DataRecord(view.id, "cds-1", 0.0, (), {"replicas": 1})
            records.data[view.id] = data
            data.life.advance(State.Pending, 0.0)
            manifest = Manifest(view.id, (FileEntry("file", view.nbytes),), 0.0)
            for site in view.sites:
                catalogue.add_replica(data, numbers[site], manifest)
            catalogue.check_ready(data)
        self.inputs = [request.inputs for request in requests]

        async def have_done(worker: str, job: Any) -> None:
            return None

        self.plugin.have_done = have_done  # type: ignore[method-assign]

    async def place(self, n: int) -> int:
        """End each unit that is at a worker, until so many have been, or a few more; how many."""
        done, records = 0, self.plugin.records.units
        unit_of = {record.key: record for record in records.values()}
        while done < n:
            for state in list(self.scheduler.workers.values()):
                for task in list(state.processing):
                    now = time.time()
                    record = unit_of[str(task.key)]
                    if record.request.inputs:
                        details = {"seconds": 0.0, "at": now, "nbytes": (0, 0, 0), "read": {}, "transfers": ()}
                        self.plugin.take_report(state.address, record.id, "staged", {**details, "evicted": ()})
                    finished = {
                        "status": "OK",
                        "nbytes": 1,
                        "type": _NONE,
                        "typename": "NoneType",
                        "thread": 1,
                        # Of work whose duration it does not know, Dask looks at all that there is whenever some ends.
                        "startstops": [{"action": "compute", "start": now - _RUN_S, "stop": now}],
                        "metadata": {},
                        "run_id": task.run_id,
                    }
                    self.scheduler.handle_task_finished(task.key, state.address, f"end-{done}", **finished)
                    done += 1
                    if done % 10_000 == 0:
                        self.say(f"{done:,} units placed")
            await asyncio.sleep(0)
        return done


async def _nbytes(bench: _Bench, n: int, units: bool) -> float:
    gc.collect()
    tracemalloc.start()
    await bench.submit(n, units)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / n


async def _measure(case: Case, memory: int, limit: int | None) -> dict[str, Any]:
    collect_seldom()  # as in any process of a scheduler
    scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0")
    client = await Client(scheduler.address, asynchronous=True, set_as_default=False)
    await client.register_plugin(PilotPlugin())
    adapter.on_events(client, lambda events: None)
    bench = _Bench(scheduler, client)
    for service in ("pcs-1", "cds-1"):
        await bench.call("add_service", id=service, client=client.id)
    await bench.call("set_member", service="cds-1", member="pcs-1", present=True)
    row: dict[str, Any] = case._asdict()
    plain, own = await _nbytes(bench, memory, False), await _nbytes(bench, memory, True)
    row["nbytes"] = own - plain
    for number, site in enumerate(case.sites):
        details = {
            "slots": -(-case.workers // case.pilots),
            "datacenter": site.datacenter,
            "machine": site.machine,
            "walltime_s": None,
            "memory_per_worker_nbytes": None,
            "gpus_per_worker": 0,
            "working_directory": "/",
        }
        await bench.call("add_pilot", id=f"pc-{number}", owner="pcs-1", client=client.id, details=details)
    bench.say(f"{case.pilots:,} pilots")
    left = case.units - memory
    bench.plugin.matcher.runtimes.observe("work", _RUN_S)
    joins = []
    if SHAPES[case.shape][1]:
        bench.add_data(case)
        bench.say(f"{case.data:,} data units")
    bench.clock.take()
    while left:
        more = min(left, 10_000)
        left -= more
        await bench.submit(more, True)
        bench.say(f"{case.units - left:,} units wait")
    row["submit_us"], row["decision_submit_us"], _, _ = _shares(bench.clock, case.units - memory)
    for number in range(case.workers):
        begun = time.perf_counter()
        await bench.join(f"pc-{number % case.pilots}", number)
        await asyncio.sleep(0)
        joins.append((time.perf_counter() - begun, _shares(bench.clock, 1)[0] / 1e6))
        if (number + 1) % 1_000 == 0:
            bench.say(f"{number + 1:,} workers")
    row["join_ms"], row["own_join_ms"] = (1e3 * sorted(part)[len(part) // 2] for part in zip(*joins, strict=True))
    bench.clock.take()
    placed = await bench.place(case.units if limit is None else min(limit, case.units))
    row["own_us"], row["decision_us"], row["garbage_us"], row["us"] = _shares(bench.clock, placed)
    return row


def _shares(clock: _Clock, n: int) -> tuple[float, float, float, float]:
    """Microseconds for each of `n`: the plugin's, of them those of the decision; garbage collection's; all."""
    seconds = clock.take()
    own_s = seconds["plugin"] + seconds["decision"]
    found = own_s, seconds["decision"], seconds["garbage"], sum(seconds.values())
    return tuple(1e6 * part / n for part in found)  # type: ignore[return-value]


def _tell(case: Case, memory: int, limit: int | None, teller: Connection) -> None:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    asyncio.run(_tell_and_go(case, memory, limit, teller))


async def _tell_and_go(case: Case, memory: int, limit: int | None, teller: Connection) -> None:
    teller.send(await _measure(case, memory, limit))
    os._exit(0)


def measure(case: Case, memory: int = 1000, limit: int | None = None) -> dict[str, Any]:
    """Measure one case, in a process of its own.

    Parameters
    ----------
    case : Case
        A worker has one slot.
    memory : int
        How many of the units to weigh, beside as many plain tasks that wait.
    limit : int, optional
        Stop when so many units are placed; None: place all of them.

    Returns
    -------
    dict
        ``nbytes`` per waiting unit beyond Dask's; ``submit_us`` and ``own_us`` of the plugin, per unit submitted and
        placed, in a scheduler that takes ``us`` for it in all, ``garbage_us`` of it to look for garbage;
        ``decision_submit_us`` and ``decision_us`` of the plugin's, the matcher's; ``join_ms`` of a worker,
        ``own_join_ms`` of it dpilot's.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_tell, args=(case, memory, limit, theirs))
    child.start()
    theirs.close()
    row: dict[str, Any] = ours.recv()
    child.join()
    return row


@click.command()
@click.option("--pilots", multiple=True, type=int, default=(10, 100), show_default=True)
@click.option("--workers", default=200, show_default=True, help="Of all pilots, with a slot each.")
@click.option("--units", default=5_000, show_default=True, help="Compute units that wait.")
@click.option("--data", default=5_000, show_default=True, help="Data units that they read.")
@click.option("--shape", "shapes", multiple=True, type=click.Choice(list(SHAPES)), default=("no data",))
@click.option("--limit", type=int, help="Stop each case when so many units are placed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(
    pilots: tuple[int, ...],
    workers: int,
    units: int,
    data: int,
    shapes: tuple[str, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """Measure what units cost the scheduler."""
    cases = [Case(shape, number, workers, units, data) for shape in shapes for number in pilots]
    rows = [measure(case, limit=limit) for case in cases]
    if as_json:
        print(json.dumps(rows))
        return
    header = ["data", "pilots", "workers", "units", "bytes/unit", "submit us", "decision", "placed us", "decision"]
    print("dpilot's own, of it the decision; garbage collection, and all. Compare within this table.\n")
    print(
        text_table(
            [*header, "garbage", "of all us", "join ms", "of all ms"],
            [
                [
                    row["shape"],
                    *(f"{row[name]:,}" for name in ("pilots", "workers", "units")),
                    *(f"{row[name]:,.0f}" for name in ("nbytes", "submit_us", "decision_submit_us")),
                    *(f"{row[name]:,.0f}" for name in ("own_us", "decision_us", "garbage_us", "us")),
                    *(f"{row[name]:.2f}" for name in ("own_join_ms", "join_ms")),
                ]
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    main()
