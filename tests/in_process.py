"""A real scheduler with the plugin, and workers in this process: so tests see all sides, and meet units at gates."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from dask._task_spec import Task
from distributed import Client, Future, Scheduler, Worker
from distributed.scheduler import TaskState

from dpilot.placement import Decision, Request, Site
from dpilot.runtime import adapter
from dpilot.runtime.scheduler import PLUGIN, PilotPlugin
from dpilot.runtime.work import Call, Program, UnitTask, dump_arguments, dump_function
from dpilot.runtime.worker import UnitPlugin, run_unit

LONG_S = 20.0
POOL = "cds-0000000000000001"
SERVICE = "pcs-0000000000000001"

#: What the units of a test meet at; they run in threads of this process.
GATES: dict[str, threading.Event] = {}
RAN: list[str] = []


def hold(gate: str, name: str) -> str:
    RAN.append(name)
    assert GATES[gate].wait(LONG_S)
    return name


def ran(name: str) -> None:
    RAN.append(name)


def fails(times: int, name: str) -> str:
    RAN.append(name)
    if RAN.count(name) <= times:
        raise ArithmeticError(name)
    return name


class Cluster:
    """A scheduler with the plugin, its client, and pilots of one worker each."""

    def __init__(self, scheduler: Scheduler, client: Client, directory: Path, stack: AsyncExitStack) -> None:
        self.scheduler = scheduler
        self.client = client
        self.directory = directory
        self.stack = stack
        plugin = scheduler.plugins[PLUGIN]
        assert isinstance(plugin, PilotPlugin)
        self.plugin = plugin
        self.events: list[Any] = []  # (id, state, timestamp, details), as the client hears of them
        self._sent: set[str] = set()  # a graph may come to the scheduler after a call that was made later
        adapter.on_events(client, lambda events: self.events.extend(events))

    async def call(self, call: str, **arguments: Any) -> Any:
        good, value = pickle.loads(
            await adapter.call_from_client(self.client, call=call, arguments=adapter.Sealed.of(arguments))
        )
        if not good:
            raise value
        return value

    async def pilot(self, id: str, slots: int = 1, site: Site | None = None) -> Worker:
        """A pilot, and its worker, which has joined."""
        await self.declare(id, slots, site)
        return await self.join(id, slots)

    async def declare(self, id: str, slots: int = 1, site: Site | None = None) -> None:
        site = site or Site()
        details = {
            "slots": slots,
            "datacenter": site.datacenter,
            "machine": site.machine,
            "walltime_s": None,
            "memory_per_worker_nbytes": None,
            "gpus_per_worker": 0,
            "working_directory": str(self.directory / id),
        }
        await self.call("add_pilot", id=id, owner=SERVICE, client=self.client.id, details=details)

    async def join(self, pilot: str, slots: int = 1) -> Worker:
        return await self.stack.enter_async_context(
            Worker(
                self.scheduler.address,
                nthreads=slots,
                resources={f"pilot:{pilot}": slots},
                local_directory=str(self.directory),
                memory_limit=0,  # else Dask resumes workers that the test pauses
                dashboard=False,
            )
        )

    def submit(self, function: Callable[..., Any], *args: Any, **keys: Any) -> Unit:
        """A unit that calls a function; keys that a unit has are the unit's, others the request's."""
        return self.submit_all([(function, args)], **keys)[0]

    def submit_all(self, calls: list[tuple[Callable[..., Any], tuple[Any, ...]]], **keys: Any) -> list[Unit]:
        """Units in one graph."""
        own = {name: keys.pop(name) for name in ("priority", "retries", "transfers") if name in keys}
        if "own_walltime_s" in keys:
            own["walltime_s"] = keys.pop("own_walltime_s")
        works = [Call(dump_function(f), dump_arguments(args, {}, lambda _: None)[0]) for f, args in calls]
        return self._submit(works, own, keys)

    def run_program(self, executable: str, *arguments: str, **keys: Any) -> Unit:
        """A unit that runs a program."""
        return self._submit([Program(executable, arguments, {}, None, "out", "err")], {}, keys)[0]

    def _submit(self, works: Sequence[Call | Program], own: dict[str, Any], keys: dict[str, Any]) -> list[Unit]:
        graph = {}
        made = []
        for work in works:
            id = f"cu-{uuid.uuid4().hex[:16]}"
            task = UnitTask(id, work, Request(**{"pool": POOL, "kind": id, **keys}), time.time(), **own)
            graph[f"call-{id}"] = Task(f"call-{id}", run_unit, task, ())
            made.append(id)
        futures = self.client.get(graph, list(graph), sync=False)
        self._sent.update(made)
        return [Unit(self, id, future) for id, future in zip(made, futures, strict=True)]

    async def settled(self) -> None:
        """The scheduler has taken what was sent to it, and decided."""
        await self.client.run_on_scheduler(lambda: None)
        await eventually(lambda: self._sent <= self.plugin.records.units.keys(), "it knows of all units")
        self._sent.clear()
        await asyncio.sleep(0.05)


class Unit:
    """A unit, seen from both sides."""

    def __init__(self, cluster: Cluster, id: str, future: Future[Any]) -> None:
        self.cluster = cluster
        self.id = id
        self.future = future

    def __await__(self) -> Iterator[Any]:
        return asyncio.wait_for(self.future, LONG_S).__await__()

    @property
    def task(self) -> TaskState:
        return self.cluster.scheduler.tasks[self.future.key]

    @property
    def states(self) -> list[str]:
        record = self.cluster.plugin.records.units.get(self.id)  # None: it is on its way yet
        return [] if record is None else [str(state) for state, _ in record.life.history]

    @property
    def pilot(self) -> str | None:
        return self.cluster.plugin.records.units[self.id].pilot

    async def explain(self) -> Decision:
        decision = await self.cluster.call("explain", id=self.id)
        assert isinstance(decision, Decision)
        return decision


async def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LONG_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.005)
    return found


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(
            Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0")
        )
        client = await stack.enter_async_context(Client(scheduler.address, asynchronous=True, set_as_default=False))
        await client.register_plugin(PilotPlugin())
        await client.register_plugin(UnitPlugin())
        workers = await stack.enter_async_context(AsyncExitStack())
        cluster = Cluster(scheduler, client, directory, workers)
        for service in (SERVICE, POOL):
            await cluster.call("add_service", id=service, client=client.id)
        await cluster.call("set_member", service=POOL, member=SERVICE, present=True)
        yield cluster
