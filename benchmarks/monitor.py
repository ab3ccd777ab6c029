"""What the monitor costs the scheduler: its share of processor time, while units run and with very many records."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from distributed import Client

#: What the monitor may take of the scheduler's processor time.
LIMIT = 0.05


def noop(number: int) -> None:
    """Do nothing."""


class Clock:
    """Counts the processor time of the scheduler's event loop, and of what the monitor does in it."""

    def __init__(self) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.start()
        idle = SimpleNamespace(call=lambda *args: None)
        self.watch(idle, "call")
        begun = time.thread_time()
        for _ in range(20_000):
            idle.call(None, None)
        # What counting a call adds to its own time, and to all: the clock is no part of what is measured.
        self._own_s = self.spent_s["call"] / 20_000
        self._all_s = (time.thread_time() - begun) / 20_000
        self.start()

    def watch(self, owner: Any, name: str) -> None:
        """Have a method's time counted."""
        method, spent_s, calls, now = getattr(owner, name), self.spent_s, self.calls, time.thread_time

        @wraps(method)
        def timed(*args: Any) -> Any:
            begun = now()
            try:
                return method(*args)
            finally:
                spent_s[name] += now() - begun
                calls[name] += 1

        setattr(owner, name, timed)

    def start(self) -> None:
        """Begin anew."""
        self.spent_s.clear()
        self.calls.clear()
        self._begun = time.thread_time()

    def row(self, what: str) -> dict[str, Any]:
        """What was counted since."""
        n = sum(self.calls.values())
        total = time.thread_time() - self._begun - n * self._all_s
        parts = {name: seconds - self.calls[name] * self._own_s for name, seconds in self.spent_s.items()}
        mine = sum(parts.values())
        return {"what": what, "scheduler_s": total, "monitor_s": mine, "share": mine / total, "parts": parts}


_OBSERVED = ("advanced", "told", "staged", "_tick")


def _clock_on(dask_scheduler: Any) -> None:
    # On the scheduler. The observers hold the watch; its methods are replaced by ones that count.
    observers = dask_scheduler.plugins["dpilot"].observers
    watch = observers._observers[0]
    clock = dask_scheduler.monitor_clock = Clock()
    for name in _OBSERVED:
        clock.watch(watch, name)
    clock.start()


def _clock_off(dask_scheduler: Any, what: str) -> dict[str, Any]:
    row: dict[str, Any] = dask_scheduler.monitor_clock.row(what)
    return row


def running(n: int, page: bool) -> dict[str, Any]:
    """`n` no-op units on two slots; with `page`, somebody looks at the page's figures all the while."""
    from dpilot import ComputeDataService, PilotComputeService
    from dpilot.monitor.views import VIEWS

    with (
        tempfile.TemporaryDirectory(prefix="dpilot-bench-") as directory,
        _scheduler() as address,
        PilotComputeService(address) as pcs,
        ComputeDataService(coordination_url=address) as cds,
    ):
        cds.add_pilot_compute_service(pcs)
        pcs.create_pilot({"service_url": "fork://localhost", "number_of_processes": 2, "working_directory": directory})
        pcs.wait_running()
        cds.submit_compute_unit_batch([{"executable": noop, "args": (i,)} for i in range(10)])
        cds.wait()
        client = pcs.client
        client.run_on_scheduler(_clock_on)
        if page:
            client.run_on_scheduler(_look, names=list(VIEWS))
        cds.submit_compute_unit_batch([{"executable": noop, "args": (i,)} for i in range(n)])
        cds.wait()
        what = f"{n:,} no-op units" + (", all figures worked out twice a second" if page else "")
        row: dict[str, Any] = client.run_on_scheduler(_clock_off, what=what)
        return row


@contextmanager
def _scheduler() -> Iterator[str]:
    """A scheduler in a process of its own, whose event loop no client shares."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "scheduler.json")
        options = ["--host", "tcp://127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options, "--scheduler-file", str(file)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                while process.poll() is None and not file.exists():
                    time.sleep(0.05)
                with Client(scheduler_file=str(file), set_as_default=False) as client:
                    yield str(client.scheduler.address)
            finally:
                process.terminate()


def _look(dask_scheduler: Any, names: list[str]) -> None:
    from dpilot.monitor.views import VIEWS

    watch: Any = dask_scheduler.plugins["dpilot"].observers._observers[0]
    clock = dask_scheduler.monitor_clock
    watch.looks = lambda: [VIEWS[name](watch) for name in names]
    clock.watch(watch, "looks")

    def look() -> None:
        if dask_scheduler.status.name == "running":
            watch.looks()
            asyncio.get_running_loop().call_later(0.5, look)

    look()


def held(n_units: int, n_pilots: int) -> list[dict[str, Any]]:
    """With so many records: what one event, one tick and one look at each of the figures take."""
    return asyncio.run(_held(n_units, n_pilots))


async def _held(n_units: int, n_pilots: int) -> list[dict[str, Any]]:
    from distributed import Scheduler

    from dpilot.monitor.dashboard import PANELS
    from dpilot.monitor.views import VIEWS
    from dpilot.placement import Request, Site
    from dpilot.runtime.records import PilotRecord, UnitRecord
    from dpilot.runtime.scheduler import PilotPlugin
    from dpilot.states import State

    async with Scheduler(port=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", dashboard=True) as scheduler:
        plugin = PilotPlugin()
        await plugin.start(scheduler)
        watch: Any = plugin.observers._observers[0]
        now = time.time()
        details = {"slots": 10, "walltime_s": None, "memory_per_worker_nbytes": None, "gpus_per_worker": 0}
        for i in range(n_pilots):
            labels = {"datacenter": f"dc-{i % 20}", "machine": f"m-{i % 200}"}
            pilot = PilotRecord(f"pc-{i:012x}", "pcs-0", now, set(), {**details, **labels})
            plugin.records.pilots[pilot.id] = pilot
            plugin.matcher.add_pilot(pilot.id, Site(**labels), 10)
            plugin.matcher.add_worker(pilot.id, f"tcp://w{i}", 10)
            plugin.matcher.open_worker(pilot.id, f"tcp://w{i}", True)
            for state in (State.Pending, State.Running):
                plugin.advance(pilot, state)
        units = [UnitRecord(f"cu-{i:012x}", "", "cds-0", now, set(), Request("cds-0", "noop")) for i in range(n_units)]
        plugin.records.units.update((unit.id, unit) for unit in units)

        def submit() -> None:
            for unit in units:
                plugin.advance(unit, State.Pending)
            watch._take_in()

        def run() -> None:
            for i, unit in enumerate(units[: n_units // 2]):
                unit.pilot = f"pc-{i % n_pilots:012x}"
                plugin.advance(unit, State.Running)
                plugin.advance(unit, State.Done)
            watch._take_in()

        rows = [
            _timed("one event, of units submitted", submit, n_units),
            _timed("one, of units run", run, n_units // 2 * 2),
        ]
        rows.append(_timed("one tick (four a second), all pilots changed", watch._tick, 1))
        rows += [
            _timed(f"/dpilot/api/{name}.json", partial(lambda view: json.dumps(view(watch)), view), 1)
            for name, view in VIEWS.items()
        ]
        panels = [kind.make(watch, "light") for kind in PANELS]

        def draw() -> None:
            watch.model.n_runs += 1  # or nothing would be drawn anew
            for panel in panels:
                panel.update()

        rows.append(_timed("drawing the page (at most two a second, for each that is open)", draw, 1))
        plugin.observers.close()
        return rows


def _timed(what: str, function: Callable[[], Any], n: int) -> dict[str, Any]:
    begun = time.thread_time()
    function()
    return {"what": what, "us": (time.thread_time() - begun) / n * 1e6}


@click.command()
@click.option("--units", default=10_000, show_default=True, help="No-op units to run.")
@click.option("--records", default=100_000, show_default=True, help="Units that the scheduler knows.")
@click.option("--pilots", default=1_000, show_default=True, help="Pilots that it knows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(units: int, records: int, pilots: int, as_json: bool) -> None:
    """Measure the monitor's share of the scheduler's processor time."""
    from dpilot.monitor.tables import text_table

    shares = [running(units, page=False), running(units, page=True)]
    costs = held(records, pilots)
    if as_json:
        print(json.dumps({"limit": LIMIT, "shares": shares, "costs": costs}))
        return
    print(f"Of the processor time of the scheduler's event loop (at most {LIMIT:.0%} is allowed):\n")
    header = ["while", "scheduler", "monitor", "share"]
    print(
        text_table(
            header,
            [[r["what"], f"{r['scheduler_s']:.2f} s", f"{r['monitor_s']:.3f} s", f"{r['share']:.1%}"] for r in shares],
        )
    )
    print(f"\nWith {records:,} units and {pilots:,} pilots:\n")
    print(text_table(["what", "takes"], [[row["what"], f"{row['us']:,.1f} us"] for row in costs]))


if __name__ == "__main__":
    main()
