"""Pilots of real processes on this machine: what they are, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, LocalCluster

from dpilot.pilots import process
from dpilot.pilots.launcher import LaunchRequest, launcher_for
from dpilot.pilots.process import AgentProcess
from dpilot.urls import new_id

pytestmark = pytest.mark.cluster

#: More than anything here takes, so that only a failure waits for it.
LONG_S = 20.0

Start = Callable[..., AgentProcess]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where agents make their temporary directories."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


@pytest.fixture
def start(cluster: LocalCluster, client: Client, tmp_path: Path, scratch: Path) -> Iterator[Start]:
    """Start a pilot and wait for its workers."""
    agents = []

    def start(slots: int = 2, wait: bool = True, **changes: Any) -> AgentProcess:
        fields = {"pilot": new_id("pc"), "scheduler": cluster.scheduler_address, "working_directory": str(tmp_path)}
        request = LaunchRequest(**{**fields, "slots": slots, **changes})
        # An agent that is killed leaves its temporary directory behind.
        with dask.config.set({"temporary-directory": str(scratch)}):
            agent = launcher_for("fork://localhost").submit(request)
        assert isinstance(agent, AgentProcess)
        agents.append(agent)
        if wait:
            client.wait_for_workers(request.workers, timeout=LONG_S)
        return agent

    yield start
    for agent in agents:
        agent.cancel()
    for agent in agents:
        assert agent.wait(LONG_S) is not None


def workers(agent: AgentProcess) -> dict[str, psutil.Process]:
    """The workers of an agent by name, as processes."""
    pids = sorted(child.pid for child in psutil.Process(agent.pid).children())
    return {f"{agent.pilot}-{i}": psutil.Process(pid) for i, pid in enumerate(pids)}


def all_gone(*processes: psutil.Process) -> bool:
    """Whether they end soon."""
    _, alive = psutil.wait_procs(processes, timeout=LONG_S)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def run_executable(code: str = "import time; time.sleep(1000)") -> int:
    """A task as units with executables are: a process in a session of its own. Its pid."""
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True).pid


def run_detached() -> int:
    """A task whose executable leaves a daemon behind. The daemon's pid."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True, stdout=2).pid)"
    return int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)


def on(client: Client, worker: str, function: Callable[..., Any], *args: Any) -> Any:
    return client.submit(function, *args, workers=[worker], pure=False).result(timeout=LONG_S)


# --- what a pilot is ----------------------------------------------------------------------------


def test_workers_join_with_names_threads_and_tags(client: Client, start: Start) -> None:
    agent = start(5, threads_per_worker=2, memory_nbytes=10**9, tags=("pilot:x", "datacenter:eu south"))
    found = {w["name"]: w for w in client.scheduler_info(n_workers=-1)["workers"].values()}
    assert {name: w["nthreads"] for name, w in found.items()} == {
        f"{agent.pilot}-0": 2,
        f"{agent.pilot}-1": 2,
        f"{agent.pilot}-2": 1,
    }
    for worker in found.values():
        assert worker["resources"] == dict.fromkeys(("pilot:x", "datacenter:eu south"), worker["nthreads"])
        assert worker["memory_limit"] == 10**9
        assert worker["host"] == "127.0.0.1"


def test_a_worker_listens_where_the_scheduler_does(client: Client, start: Start) -> None:
    agent = start(1)
    listening = [c.laddr.ip for c in workers(agent)[f"{agent.pilot}-0"].net_connections() if c.status == "LISTEN"]
    assert listening
    assert set(listening) == {"127.0.0.1"}


def test_workers_see_this_process_modules_and_configuration(
    client: Client, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "beside_the_script.py").write_text("def answer():\n    return 42\n")
    (tmp_path / "random.py").write_text("raise ImportError('the working directory is no place for modules')\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    import beside_the_script

    with dask.config.set({"dpilot.test-value": {"a": 1}, "not-json": object()}):
        start(1)
    assert client.submit(beside_the_script.answer).result(timeout=LONG_S) == 42
    assert client.submit(lambda: dask.config.get("dpilot.test-value")).result(timeout=LONG_S) == {"a": 1}


def test_what_workers_do_all_the_time_they_do_less_often_unless_somebody_has_said_how_often(
    client: Client, start: Start
) -> None:
    def intervals() -> list[str]:
        keys = ("worker.profile.interval", "admin.tick.interval")
        return [dask.config.get(f"distributed.{key}") for key in keys]

    with dask.config.set({"distributed.admin.tick.interval": "30ms"}):
        start(1)
    assert client.submit(intervals).result(timeout=LONG_S) == ["50ms", "30ms"]
    assert intervals() == ["10ms", "20ms"], "of plain Dask, here"


def test_preloads_are_imported_before_the_workers_are_forked(client: Client, start: Start) -> None:
    start(1, preload=("colorsys",))
    assert client.submit(lambda: "colorsys" in sys.modules).result(timeout=LONG_S)


def test_executables_inherit_nothing_of_the_agent(
    client: Client, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/users/own")
    agent = start(1, environment={"COLOUR": "blue"})

    def inspect() -> tuple[dict[str, str], list[str], str]:
        code = (
            "import os, sys; fds = {fd: os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')"
            " if os.path.exists(f'/proc/self/fd/{fd}')}; print([fds, dict(os.environ), os.getcwd()])"
        )
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, close_fds=False, check=True).stdout
        fds, environment, directory = eval(output)
        return environment, [fds.pop("0"), *sorted(set(fds) - {"1", "2"})], directory

    environment, fds, directory = client.submit(inspect).result(timeout=LONG_S)
    assert fds == ["/dev/null"]
    assert environment["PYTHONPATH"] == "/users/own"
    assert environment["COLOUR"] == "blue"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["DPILOT_WORKER"] == f"{agent.pilot}-0"
    assert "DASK_INTERNAL_INHERIT_CONFIG" not in environment
    assert directory == str(tmp_path)


def test_workers_draw_different_random_numbers(client: Client, start: Start) -> None:
    agent = start(2)

    def draw() -> tuple[float, float]:
        import random

        import numpy

        return random.random(), numpy.random.random()

    first, second = (on(client, name, draw) for name in workers(agent))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_an_agent_is_out_of_reach_of_our_terminal(start: Start) -> None:
    agent = start(1)
    assert os.getsid(agent.pid) == agent.pid
    assert os.getpgid(agent.pid) == agent.pid


# --- how a pilot ends ---------------------------------------------------------------------------


def test_cancel_ends_workers_executables_and_detached_processes(client: Client, start: Start, scratch: Path) -> None:
    agent = start(2)
    pids = [*client.map(lambda _: run_executable(), range(2)), client.submit(run_detached)]
    started = [psutil.Process(pid) for pid in client.gather(pids)]
    client.submit(time.sleep, 1000, pure=False)  # a running thread does not hold it up
    mine = workers(agent)
    assert list(scratch.iterdir())
    agent.cancel()
    agent.cancel()
    assert agent.wait(LONG_S) == 0
    assert all_gone(*mine.values(), *started)
    assert not list(scratch.iterdir())
    agent.cancel()  # still no error


def test_workers_closed_by_the_scheduler_end_the_agent_in_good_order(client: Client, start: Start) -> None:
    agent = start(2)
    # Not a task: a worker with a result in its memory cannot be retired when there is no other to take it.
    executables = [psutil.Process(pid) for pid in client.run(run_executable).values()]
    client.retire_workers(names=list(workers(agent)), close_workers=True)
    assert agent.wait(LONG_S) == 0
    assert all_gone(*executables)


def test_sigterm_ends_the_agent_in_good_order(client: Client, start: Start) -> None:
    agent = start(2)
    mine = workers(agent)
    executable = psutil.Process(client.submit(run_executable).result(timeout=LONG_S))
    os.kill(agent.pid, signal.SIGTERM)
    assert agent.wait(LONG_S) == 0
    assert all_gone(*mine.values(), executable)


def test_workers_that_do_not_close_are_killed_after_the_grace_period(start: Start) -> None:
    agent = start(2, grace_s=0.3)
    mine = workers(agent)
    mine[f"{agent.pilot}-1"].suspend()
    agent.cancel()
    assert agent.wait(LONG_S) == 0
    assert all_gone(*mine.values())


def test_an_agent_that_does_not_end_is_killed(client: Client, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PATIENCE_S", 0.2)
    agent = start(2, grace_s=0.2)
    mine = workers(agent)
    executable = psutil.Process(client.submit(run_executable).result(timeout=LONG_S))
    psutil.Process(agent.pid).suspend()
    agent.cancel()
    assert agent.wait(LONG_S) == -signal.SIGKILL
    assert all_gone(*mine.values(), executable)


def test_workers_and_executables_die_with_their_agent(client: Client, start: Start) -> None:
    agent = start(2)
    mine = workers(agent)
    executable = psutil.Process(client.submit(run_executable).result(timeout=LONG_S))
    os.kill(agent.pid, signal.SIGKILL)
    assert agent.wait(LONG_S) == -signal.SIGKILL
    assert all_gone(*mine.values(), executable)


OWNER = """
import os, sys, time
from dpilot.pilots.launcher import LaunchRequest, launcher_for
request = LaunchRequest(pilot=sys.argv[1], scheduler=sys.argv[2], slots=2, working_directory=sys.argv[3])
agent = launcher_for("fork://localhost").submit(request)
print(agent.pid, flush=True)
if os.fork() == 0:  # as multiprocessing does: this child must not hide its parent's death
    print(os.getpid(), flush=True)
time.sleep(1000)
"""


def test_an_agent_ends_when_its_owner_is_killed(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, new_id("pc"), cluster.scheduler_address, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        agent, fork = (psutil.Process(int(owner.stdout.readline())) for _ in range(2))
        try:
            client.wait_for_workers(2, timeout=LONG_S)
            mine = agent.children()
            executable = psutil.Process(client.submit(run_executable).result(timeout=LONG_S))
            owner.kill()
            assert all_gone(agent, *mine, executable)
            assert fork.is_running()
        finally:
            fork.kill()
            owner.kill()


# --- when workers die ---------------------------------------------------------------------------


def test_a_dead_workers_executables_die_and_the_others_go_on(client: Client, start: Start) -> None:
    agent = start(2)
    mine = workers(agent)
    dead, alive = mine
    tree = "import subprocess, time; subprocess.Popen(['sleep', '1000']); time.sleep(1000)"
    orphan = psutil.Process(on(client, dead, run_executable, tree))
    spared = psutil.Process(on(client, alive, run_executable))
    deserted = psutil.Process(on(client, dead, run_detached))
    detached = psutil.Process(on(client, alive, run_detached))
    assert {deserted.ppid(), detached.ppid()} == {agent.pid}
    below = orphan.children()
    mine[dead].kill()
    assert all_gone(mine[dead], orphan, *below, deserted)
    assert agent.poll() is None
    assert on(client, alive, os.getpid) == mine[alive].pid
    assert spared.is_running()
    assert detached.is_running()
    agent.cancel()
    assert agent.wait(LONG_S) == 1
    assert (
        agent.tail().splitlines()[-1].startswith(f"pilot {agent.pilot}: 1 of 2 workers died: {dead} was killed by SIG")
    )
    assert all_gone(spared, detached)


def test_the_agent_reports_when_all_workers_died(start: Start) -> None:
    agent = start(2)
    reports: list[tuple[int, str]] = []
    reported = threading.Event()

    def fail(code: int, tail: str) -> None:
        raise RuntimeError("callbacks do not disturb each other")

    def report(code: int, tail: str) -> None:
        reports.append((code, tail))
        reported.set()

    agent.on_exit(fail)
    agent.on_exit(report)
    for worker in workers(agent).values():
        worker.kill()
    assert reported.wait(LONG_S)
    agent.on_exit(report)  # it has ended, so this is called at once
    (code, tail), again = reports
    assert again == (code, tail)
    assert code == agent.poll() == agent.wait() == 1
    assert len(tail.splitlines()) <= 20
    last = tail.splitlines()[-1]
    assert f"pilot {agent.pilot}: 2 of 2 workers died: {agent.pilot}-0 was killed by SIGKILL" in last
    assert f"{agent.pilot}-1 was killed by SIGKILL" in last


def test_a_scheduler_that_cannot_be_reached_is_named(start: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        agent = start(2, wait=False, scheduler=address, start_timeout_s=0.5)
        assert agent.wait(LONG_S) == 1
    last = agent.tail().splitlines()[-1]
    assert last.startswith(
        f"pilot {agent.pilot}: no worker could join the scheduler {address} within 0.5 s: check that"
    )


def test_a_preload_that_cannot_be_imported_is_in_the_log(start: Start) -> None:
    agent = start(1, wait=False, preload=("no_such_module",))
    assert agent.wait(LONG_S) == 1
    assert "No module named 'no_such_module'" in agent.tail()
