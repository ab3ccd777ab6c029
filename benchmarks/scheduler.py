"""What units cost the scheduler: the plugin in a real Scheduler, with workers that are only names.

``python -m benchmarks.scheduler`` submits units that wait, lets workers join, and has each unit that is sent to one end
at once, as if its worker had said so. All that is measured is in the scheduler: no unit is run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import time
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import click
from dask._task_spec import Task
from distributed import Client, Scheduler
from distributed.core import Status

from dpilot.monitor.tables import text_table
from dpilot.placement import Request
from dpilot.runtime import adapter
from dpilot.runtime.scheduler import PLUGIN, PilotPlugin
from dpilot.runtime.work import Call, UnitTask
from dpilot.runtime.worker import run_unit

__all__ = ["measure"]

_NONE = pickle.dumps(None)
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


class _Share:
    """How long the plugin itself takes, within all that Dask does."""

    def __init__(self, plugin: PilotPlugin) -> None:
        self.total_s = 0.0
        self._depth = 0
        for name in ("update_graph", "transition", "_match", "add_worker"):
            setattr(plugin, name, self._timed(getattr(plugin, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.total_s += time.perf_counter() - begun

        return timed


class _Bench:
    def __init__(self, scheduler: Scheduler, client: Client) -> None:
        self.scheduler = scheduler
        self.client = client
        plugin = scheduler.plugins[PLUGIN]
        assert isinstance(plugin, PilotPlugin)
        self.plugin = plugin
        self.futures: list[Any] = []
        self.background: list[asyncio.Task[Any]] = []

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
                task = UnitTask(id, Call(_NONE, _NONE), Request("cds-1", "work"), time.time())
                graph[f"work-{id}"] = Task(f"work-{id}", run_unit, task, ())
            else:
                graph[f"plain-{id}"] = Task(f"plain-{id}", run_unit, id, ())
        before = len(self.scheduler.tasks)
        resources = {} if units else {"resources": {"nobody has it": 1}}
        self.futures += self.client.get(graph, list(graph), sync=False, **resources)
        while len(self.scheduler.tasks) < before + n or any(
            task.state == "waiting" for task in self.scheduler.tasks.values()
        ):
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

    async def place_all(self, n: int) -> int:
        """End each unit that is at a worker, until all have been; how many."""
        done = 0
        while done < n:
            for state in list(self.scheduler.workers.values()):
                for task in list(state.processing):
                    finished = {
                        "status": "OK",
                        "nbytes": 1,
                        "type": _NONE,
                        "typename": "NoneType",
                        "thread": 1,
                        "startstops": [],
                        "metadata": {},
                        "run_id": task.run_id,
                    }
                    self.scheduler.handle_task_finished(task.key, state.address, f"end-{done}", **finished)
                    done += 1
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


async def _measure(pilots: int, workers: int, units: int, memory: int) -> dict[str, Any]:
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0") as scheduler,
        Client(scheduler.address, asynchronous=True, set_as_default=False) as client,
    ):
        await client.register_plugin(PilotPlugin())
        adapter.on_events(client, lambda events: None)
        bench = _Bench(scheduler, client)
        for service in ("pcs-1", "cds-1"):
            await bench.call("add_service", id=service, client=client.id)
        await bench.call("set_member", service="cds-1", member="pcs-1", present=True)
        row: dict[str, Any] = {"pilots": pilots, "workers": workers, "units": units}
        plain, own = await _nbytes(bench, memory, False), await _nbytes(bench, memory, True)
        row["nbytes"] = own - plain
        for number in range(pilots):
            details = {
                "slots": -(-workers // pilots),
                "datacenter": f"dc{number // 10}",
                "machine": f"m{number}",
                "walltime_s": None,
                "memory_per_worker_nbytes": None,
                "gpus_per_worker": 0,
                "working_directory": "/",
            }
            await bench.call("add_pilot", id=f"pc-{number}", owner="pcs-1", client=client.id, details=details)
        share = _Share(bench.plugin)
        await bench.submit(units - memory, True)
        row["submit_us"] = 1e6 * share.total_s / (units - memory)
        bench.plugin.matcher.runtimes.observe("work", 1.0)
        joins, share.total_s = [], 0.0
        for number in range(workers):
            begun, own_s = time.perf_counter(), share.total_s
            await bench.join(f"pc-{number % pilots}", number)
            await asyncio.sleep(0)
            joins.append((time.perf_counter() - begun, share.total_s - own_s))
        row["join_ms"], row["own_join_ms"] = (1e3 * sorted(part)[len(part) // 2] for part in zip(*joins, strict=True))
        share.total_s, begun = 0.0, time.perf_counter()
        placed = await bench.place_all(units)
        row["us"] = 1e6 * (time.perf_counter() - begun) / placed
        row["own_us"] = 1e6 * share.total_s / placed
        for task in bench.background:
            task.cancel()
        await asyncio.gather(*bench.background, return_exceptions=True)
        return row


def measure(pilots: int, workers: int, units: int, memory: int = 1000) -> dict[str, Any]:
    """Measure one case.

    Parameters
    ----------
    pilots, workers, units : int
        How many there are; a worker has one slot.
    memory : int
        How many of the units to weigh, beside as many plain tasks that wait.

    Returns
    -------
    dict
        ``nbytes`` per waiting unit beyond Dask's; ``submit_us`` and ``own_us`` of the plugin, per unit submitted and
        placed, in a scheduler that takes ``us`` for it in all; ``join_ms`` of a worker, ``own_join_ms`` of it dpilot's.
    """
    return asyncio.run(_measure(pilots, workers, units, memory))


@click.command()
@click.option("--pilots", multiple=True, type=int, default=(10, 100), show_default=True)
@click.option("--workers", default=200, show_default=True, help="Of all pilots, with a slot each.")
@click.option("--units", default=5_000, show_default=True, help="Compute units that wait.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(pilots: tuple[int, ...], workers: int, units: int, as_json: bool) -> None:
    """Measure what units cost the scheduler."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a thousand workers come and go
    rows = [measure(number, workers, units) for number in pilots]
    if as_json:
        print(json.dumps(rows))
        return
    header = ["pilots", "workers", "units", "bytes/unit", "submit us", "placed us", "of all us", "join ms", "of all ms"]
    print("dpilot's own, and that of the scheduler in all. Compare within this table.\n")
    print(
        text_table(
            header,
            [
                [
                    *(f"{row[name]:,}" for name in ("pilots", "workers", "units")),
                    *(f"{row[name]:,.0f}" for name in ("nbytes", "submit_us", "own_us", "us")),
                    *(f"{row[name]:.2f}" for name in ("own_join_ms", "join_ms")),
                ]
                for row in rows
            ],
        )
    )


if __name__ == "__main__":
    main()
