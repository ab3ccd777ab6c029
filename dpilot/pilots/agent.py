"""The process that runs one pilot's Dask workers on one node; every launcher starts it.

    python -m dpilot.pilots.agent --scheduler tcp://HOST:PORT --pilot ID --workers N --threads T

It imports Dask once and forks one child for each worker, so that many workers cost one import.
Nothing of dpilot is imported here: the file also runs by its path, and starts as fast as Dask does.

Nothing that a pilot started outlives it:

- The agent's standard input is a pipe that its owner holds open and never writes to. When the owner
  ends, however it ends, the agent reads the end of the file and ends its workers.
- The kernel kills the workers when the agent dies (Linux: ``PR_SET_PDEATHSIG``).
- What a dead worker had started (executables of units, in sessions of their own) is handed by the
  kernel to the agent (Linux: ``PR_SET_CHILD_SUBREAPER``), which kills it at once: its unit may already
  run again on another worker. A process that detached itself from a unit of a worker that lives is
  left alone until that worker or the pilot ends.

The agent sleeps until a signal or the end of its input wakes it; it never polls. It exits with 0 when
every worker was closed by the scheduler or by the agent's own end, and with 1, and one line about it
on its error stream, when workers died or could not join the scheduler.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn
from urllib.parse import urlsplit

__all__ = ["WORKER_VARIABLE", "main"]

#: Exit status of a worker that could not join the scheduler in time.
_UNREACHABLE = 69
#: Exit status of a worker that is to be replaced by a new one: somebody called ``Client.restart()``.
_AGAIN = 75
#: In the environment of a worker, and so of all that it starts: whose process this is.
WORKER_VARIABLE = "DPILOT_WORKER"
#: How long killed processes may take to vanish (a hung file system can hold them) before the agent leaves.
_BURIAL_S = 2.0

#: Dask's settings, what they are if nobody has changed them, and what they are here.
_CALMER = {
    "distributed.worker.profile.interval": ("10ms", "50ms"),
    "distributed.admin.tick.interval": ("20ms", "100ms"),
}

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line behind the program's name; that of this process by default.

    Returns
    -------
    int
        The exit status: 0 if every worker was closed in good order, 1 otherwise.
    """
    options = _parse(arguments)
    if options.path:
        sys.path[:] = options.path
    if options.working_directory:
        os.chdir(options.working_directory)
    # The imports make no garbage worth looking for, and what they make is shared by all workers.
    gc.disable()
    for module in ("distributed", *options.preload):
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    _calm()
    # Dask has read it; it is not for the executables that the workers will start.
    os.environ.pop("DASK_INTERNAL_INHERIT_CONFIG", None)
    return _Agent(options).run()


def _calm() -> None:
    """Have workers do less often what they do all the time, unless the user's configuration says how often.

    Looking at threads for Dask's profile and at whether the event loop lags takes 4 % of a processor of each worker.
    """
    import dask

    calmer = {key: calm for key, (usual, calm) in _CALMER.items() if dask.config.get(key, usual) == usual}
    dask.config.set(calmer)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("dpilot.pilots.agent", description="Run one pilot's Dask workers on this node.")
    add = parser.add_argument
    add("--scheduler", required=True, metavar="URL", help="contact address of the Dask scheduler")
    add("--pilot", required=True, metavar="ID", help="the pilot's id; worker i is named ID-i")
    add("--workers", required=True, type=_positive, metavar="N", help="how many workers to run")
    add("--threads", default=1, type=_positive, metavar="T", help="threads (slots) of each worker")
    add("--last-threads", type=_positive, metavar="R", help="threads of the last worker (default: as the others)")
    add("--memory-limit", default="auto", metavar="X", help="of each worker, in bytes or like '4 GB' (default: auto)")
    add("--gpus", default=0, type=_positive, metavar="G", help="GPUs of each worker, of CUDA_VISIBLE_DEVICES")
    add("--tag", action="append", default=[], metavar="NAME", help="Dask resource of every worker, one per thread")
    add("--working-directory", metavar="DIR", help="where the workers run")
    add("--preload", action="append", default=[], metavar="MODULE", help="import it before the workers are forked")
    add("--path", action="append", default=[], metavar="DIR", help="search path for modules, in place of the usual one")
    add("--start-timeout", default=60.0, type=float, metavar="S", help="seconds for a worker to join the scheduler")
    add("--grace", default=5.0, type=float, metavar="S", help="seconds between SIGTERM and SIGKILL at the end")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _gpus(needed: int) -> list[str]:
    """The node's GPUs: those that whoever started the agent left to it, or the first ones."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not needed or given is None:
        return [str(number) for number in range(needed)]
    gpus = [gpu for gpu in given.split(",") if gpu]
    if len(gpus) < needed:
        sys.exit(
            f"gpus_per_worker: {needed} GPUs are needed in all, but CUDA_VISIBLE_DEVICES is {given!r}; ask for fewer"
        )
    return gpus


class _Agent:
    """Forks the workers, waits for them, and cleans up behind them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pid = os.getpid()
        self.living: dict[int, str] = {}  # pid -> name of the workers that run
        self.deaths: dict[str, int] = {}  # name -> exit status of those that died unasked
        self.kill_at: float | None = None  # once the end has begun: when patience ends
        self.scratch = ""
        self.wake, self.waker = socket.socketpair()

    def run(self) -> int:
        """Run the workers until the last has ended; the agent's exit status."""
        self.wake.setblocking(False)
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno())
        for signum in _SIGNALS:
            signal.signal(signum, lambda *_: None)  # with a handler, a signal writes its number to the waker
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self.scratch = tempfile.mkdtemp(prefix=f"dpilot-{self.options.pilot}-", dir=_temporary_directory())
        try:
            self._fork_workers(range(self.options.workers))
            self._watch()
        finally:
            self._bury()
            shutil.rmtree(self.scratch, ignore_errors=True)
        return self._report()

    def _fork_workers(self, numbers: Iterable[int]) -> None:
        workers, threads = self.options.workers, self.options.threads
        each = self.options.gpus
        gpus = _gpus(each * workers)
        # No handler may run in a child before the child has put it away.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for i in numbers:
            name = f"{self.options.pilot}-{i}"
            nthreads = (i == workers - 1 and self.options.last_threads) or threads
            pid = os.fork()
            if pid == 0:
                if self.options.gpus:
                    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[i * each : (i + 1) * each])
                    os.environ["DPILOT_GPUS"] = str(each)
                self._become_worker(name, nthreads, mask)
            self.living[pid] = name
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _become_worker(self, name: str, nthreads: int, mask: set[int | signal.Signals]) -> NoReturn:
        try:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.pid:  # the agent died before the kernel was told
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for signum in _SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.wake.close()
            self.waker.close()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
            os.environ[WORKER_VARIABLE] = name
            if numpy := sys.modules.get("numpy"):
                numpy.random.seed()  # Python reseeds its own generator after a fork; NumPy does not
            asyncio.run(_serve(self.options, name, nthreads, self.scratch))
        except BaseException:
            traceback.print_exc()
        _leave(1)

    def _watch(self) -> None:
        """Wait until no worker lives; begin their end when the owner asks for it, or is gone."""
        while self.living:
            if self._wait(self.kill_at) and self.kill_at is None:
                self.kill_at = time.monotonic() + self.options.grace
                self._signal_workers(signal.SIGTERM)
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.kill_at = float("inf")
                self._signal_workers(signal.SIGKILL)
            self._reap()

    def _wait(self, until: float | None) -> bool:
        """Sleep until a signal, the end of the input, or `until`; whether the agent shall end."""
        ended = self.kill_at is not None  # then the input has nothing more to say
        timeout = None if until is None or until == float("inf") else max(0.0, until - time.monotonic())
        wake = self.wake.fileno()
        ready, _, _ = select.select([wake] if ended else [wake, 0], [], [], timeout)
        if wake in ready:
            signals = self.wake.recv(65536)
            ended |= signal.SIGTERM in signals or signal.SIGINT in signals
        if 0 in ready:
            ended |= not os.read(0, 65536)
        return ended

    def _signal_workers(self, signum: signal.Signals) -> None:
        for pid in self.living:  # all are our children and not yet reaped, so no pid is another's
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _reap(self) -> None:
        """Take note of every child that has ended; kill what a dead worker left behind; replace who wants to be."""
        reaped, lost, again = False, len(self.living) < self.options.workers, list[int]()
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                reaped = True
                if name := self.living.pop(pid, None):
                    lost = True
                    code = os.waitstatus_to_exitcode(status)
                    if code == _AGAIN and self.kill_at is None:
                        again.append(int(name.rpartition("-")[2]))
                    elif code not in (0, _AGAIN) and self.kill_at is None:
                        self.deaths[name] = code
        if reaped and lost:  # also when an orphan died: its own children are ours now
            self._kill_orphans()
        self._fork_workers(again)

    def _kill_orphans(self) -> bool:
        """Kill all children that are no workers, and what is below them; whether there were any.

        Those whose environment says that they belong to a worker that lives are spared.
        """
        import psutil

        orphans = []
        living = set(self.living.values())
        for child in psutil.Process().children():
            if child.pid in self.living:
                continue
            with suppress(psutil.Error):
                if child.environ().get(WORKER_VARIABLE) in living:
                    continue
            orphans.append(child)
            with suppress(psutil.Error):
                orphans += child.children(recursive=True)
        for orphan in orphans:
            with suppress(psutil.Error):
                orphan.kill()
        return bool(orphans)

    def _bury(self) -> None:
        """Leave no process behind."""
        if self.kill_at is None:
            self.kill_at = float("inf")
        self._signal_workers(signal.SIGKILL)  # there are some only if the agent itself failed
        deadline = time.monotonic() + _BURIAL_S
        self._reap()
        while self._kill_orphans() and time.monotonic() < deadline:
            self._wait(deadline)
            self._reap()

    def _report(self) -> int:
        if not self.deaths:
            return 0
        pilot, workers, timeout = self.options.pilot, self.options.workers, self.options.start_timeout
        if set(self.deaths.values()) == {_UNREACHABLE} and len(self.deaths) == workers:
            sentence = (
                f"no worker could join the scheduler {self.options.scheduler} within {timeout:g} s: check that "
                f"something listens there, that {socket.gethostname()} can reach it, and that both or neither use TLS"
            )
        else:
            causes = ", ".join(f"{name} {_cause(code)}" for name, code in sorted(self.deaths.items()))
            sentence = f"{len(self.deaths)} of {workers} workers died: {causes}"
        sys.stderr.write(f"pilot {pilot}: {sentence}\n")
        return 1


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (somebody did, or the system ran out of memory)"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    if code == _UNREACHABLE:
        return "could not join the scheduler in time"
    return f"exited with status {code}"


async def _serve(options: argparse.Namespace, name: str, nthreads: int, scratch: str) -> NoReturn:
    """Be a Dask worker until it is closed, then leave the process. Its security is that of Dask's configuration."""
    from distributed import Worker
    from distributed.core import Status

    worker: Any = Worker(
        options.scheduler,
        name=name,
        nthreads=nthreads,
        resources=dict.fromkeys(options.tag, nthreads),
        memory_limit=options.memory_limit,
        local_directory=scratch,
        host=_loopback(options.scheduler),
        dashboard=False,
        death_timeout=options.start_timeout,
    )
    closing: list[asyncio.Task[object]] = []

    def end() -> None:
        if worker.status in (Status.running, Status.paused):
            closing.append(asyncio.ensure_future(worker.close(executor_wait=False, reason="pilot ends")))
        else:  # not yet joined, or closing but held up by a task that runs on
            _leave(0)

    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, end)
    try:
        await worker
    except TimeoutError:
        _leave(_UNREACHABLE)
    await worker.finished()
    # Not by returning: asyncio.run would wait for threads that tasks have left running.
    _leave(_AGAIN if getattr(worker, "comes_again", False) else 0)


def _leave(code: int) -> NoReturn:
    """End a forked process without the exit handlers, which are the agent's."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _loopback(address: str) -> str | None:
    """The host for a worker to listen on: as private as the scheduler's; None for Dask's choice."""
    host = urlsplit(address).hostname or ""
    return host if host == "localhost" or host.startswith("127.") else None


def _temporary_directory() -> str | None:
    import dask

    directory: str | None = dask.config.get("temporary-directory", None)
    return directory


def _prctl(option: int, value: int) -> None:
    """Ask something of the Linux kernel for this process; do nothing on other systems."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
