"""What tests with real pilots share: gates that hold units, waiting for states, other processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import dask
import psutil
from distributed import LocalCluster

from dpilot import PilotCompute, PilotComputeService, State
from dpilot.service.handle import Handle
from tests.units import whoami

#: More than anything here takes, so that only a failure waits for it.
LONG_S = 20.0


class Gate:
    """Holds the units that run ``units.hold(gate.path)`` until it is opened; then it lets all through.

    `name` is for them: how long units of one name have run, in other tests, is what is expected of the next.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"hold-{uuid.uuid4().hex}"
        self.path = str(path)
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        self._file.close()


def reach(handle: Handle, state: State, times: int = 1) -> None:
    """Wait until a handle has been in a state that many times."""
    reached = threading.Event()

    def check(*_: object) -> None:
        if [entered.state for entered in handle.history].count(state) >= times:
            reached.set()

    handle.set_callback(check)
    try:
        check()
        assert reached.wait(LONG_S), f"{handle.id} was never {state}: {handle.history}"
    finally:
        handle.unset_callback(check)


def states(handle: Handle) -> list[str]:
    """The states that a handle has been in."""
    return [str(state) for state, _ in handle.history]


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for what no event tells of; what `condition` returned."""
    deadline = time.monotonic() + LONG_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)
    return found


def lines(path: str | Path) -> list[str]:
    """The lines of a file; none if it is not there."""
    path = Path(path)
    return path.read_text().splitlines() if path.exists() else []


def create(pcs: PilotComputeService, directory: Path, slots: int = 1, **keys: Any) -> PilotCompute:
    """A pilot on this machine, which is about to start."""
    description = {"service_url": "fork://localhost", "number_of_processes": slots, "working_directory": str(directory)}
    return pcs.create_pilot({**description, **keys})


def start(pcs: PilotComputeService, directory: Path, slots: int = 1, **keys: Any) -> PilotCompute:
    """A pilot on this machine with all its workers, and nothing to do yet."""
    pilot = create(pcs, directory, slots, **keys)
    eventually(lambda: pilot.get_free_nodes() == slots, f"{pilot.id} has {slots} slots")
    return pilot


def workers(pcs: PilotComputeService, pilot: PilotCompute) -> dict[str, psutil.Process]:
    """The processes of a pilot's workers, by name."""
    found = dict(pcs.client.run(whoami, on_error="ignore").values())
    return {name: psutil.Process(pid) for name, pid in sorted(found.items()) if name.startswith(pilot.id)}


def marked(name: str, value: str) -> list[psutil.Process]:
    """The living processes with that variable in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def script(code: str, *arguments: str, **environment: str) -> Iterator[Script]:
    """Another process that runs a Python program, as long as the block lasts."""
    process = Script(
        [sys.executable, "-u", "-c", dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


class Script(subprocess.Popen[str]):
    """A process to talk to, line by line."""

    def hear(self) -> str:
        """The next line that it writes."""
        assert self.stdout is not None
        line = self.stdout.readline()
        assert line, f"it has ended: {self.communicate()[1]}"
        return line.rstrip("\n")

    def say(self, line: str = "") -> None:
        """Write a line for it to read."""
        assert self.stdin is not None
        self.stdin.write(f"{line}\n")
        self.stdin.flush()

    def end(self, code: int = 0) -> tuple[str, str]:
        """Wait for its end; what it wrote since, and its errors."""
        out, errors = self.communicate(timeout=LONG_S)
        assert self.returncode == code, errors
        return out, errors


@contextmanager
def slow_link() -> Iterator[str]:
    """The address of a scheduler that has learned nothing yet, and is told that a link is slow; here none is."""
    link = {"from": "eu", "to": "us", "bandwidth": "1 MB", "latency": "80ms"}
    with (
        dask.config.set({"dpilot.placement.links": [link]}),
        LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=None) as cluster,
    ):
        yield cluster.scheduler_address
