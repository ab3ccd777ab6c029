"""An agent as a child process of this one: started, watched and ended without polling."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from dpilot.errors import PilotLaunchError
from dpilot.pilots.agent import WORKER_VARIABLE
from dpilot.pilots.launcher import Command, OnExit

__all__ = ["AgentProcess"]

logger = logging.getLogger(__name__)

#: Beyond the grace period that it gives its workers, how long an agent may take to end, in seconds.
_PATIENCE_S = 5.0
_TAIL_LINES = 20
_IS_WELL = re.compile(r" - distributed\.[\w.]+ - (INFO|DEBUG) - ")
_TAIL_NBYTES = 1 << 16

_processes: weakref.WeakSet[AgentProcess] = weakref.WeakSet()


class AgentProcess:
    """A running agent, owned by this process: it ends when this one does, however that happens.

    Parameters
    ----------
    pilot : str
        The pilot's id.
    command : Command
        What to run.
    environment : mapping of str to str
        The whole environment of the agent.
    log : Path
        The file to which the agent and its workers write.
    grace_s : float
        The grace period that the agent gives its workers, in seconds.

    Raises
    ------
    PilotLaunchError
        If the log cannot be written or the process cannot be started.
    """

    def __init__(
        self, pilot: str, command: Command, *, environment: Mapping[str, str], log: Path, grace_s: float
    ) -> None:
        self.pilot = pilot
        self.log = log
        self.grace_s = grace_s
        self._lock = threading.Lock()
        self._callbacks: list[OnExit] = []
        self._exited = threading.Event()
        self._canceled = False
        try:
            with log.open("ab") as output:
                self._popen = subprocess.Popen(
                    command.arguments,
                    stdin=subprocess.PIPE,  # its end tells the agent that we are gone
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # Ctrl-C in our terminal is not for the agent
                )
        except OSError as error:
            raise PilotLaunchError(
                f"pilot {pilot} cannot be started: {error}; its log would be {str(log)!r}, its program "
                f"{command.arguments[0]!r}"
            ) from error
        _processes.add(self)
        threading.Thread(target=self._watch, name=f"dpilot-{pilot}", daemon=True).start()

    def __repr__(self) -> str:
        code = self.poll()
        return f"<AgentProcess {self.pilot}, pid {self.pid}, {'running' if code is None else f'exited with {code}'}>"

    @property
    def pid(self) -> int:
        """The agent's process id; it leads a session of its own."""
        return self._popen.pid

    def poll(self) -> int | None:
        """The exit status (negative for a signal); None while it runs."""
        return self._popen.returncode if self._exited.is_set() else None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, at most `timeout` seconds; the exit status, or None if it still runs."""
        self._exited.wait(timeout)
        return self.poll()

    def cancel(self) -> None:
        """End the agent, its workers and all that they started. Returns at once; again is no error.

        The agent does it within the grace period; if it does not, this process does.
        """
        with self._lock:
            if self._canceled or self._exited.is_set():
                return
            self._canceled = True
            self._let_go()
        killer = threading.Thread(target=self._kill_late, name=f"dpilot-{self.pilot}-cancel", daemon=True)
        killer.start()

    def on_exit(self, callback: OnExit) -> None:
        """Have `callback` called with the exit status and the log's last lines when the agent has ended.

        It is called in a thread of its own; in this one, at once, if the agent has ended already.
        """
        with self._lock:
            if not self._exited.is_set():
                self._callbacks.append(callback)
                return
        callback(self._popen.returncode, self.tail())

    def tail(self) -> str:
        """The last 20 lines of the log but those in which Dask says that all is well; empty if it cannot be read."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_NBYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return "\n".join(deque((line for line in lines if not _IS_WELL.search(line)), _TAIL_LINES)).strip()
        return ""

    def _watch(self) -> None:
        code = self._popen.wait()
        if code < 0:
            _kill_orphans(self.pilot)
        with self._lock:
            self._exited.set()
            self._let_go()
            callbacks, self._callbacks = self._callbacks, []
        tail = self.tail()
        for callback in callbacks:
            try:
                callback(code, tail)
            except Exception:
                logger.exception("a callback at the end of pilot %s failed", self.pilot)

    def _let_go(self) -> None:
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()

    def _kill_late(self) -> None:
        if self._exited.wait(self.grace_s + _PATIENCE_S):
            return
        logger.warning("the agent of pilot %s (pid %d) did not end in time and is killed", self.pilot, self.pid)
        with suppress(psutil.Error):
            agent = psutil.Process(self.pid)
            for process in (*agent.children(recursive=True), agent):
                with suppress(psutil.Error):
                    process.kill()


def _kill_orphans(pilot: str) -> None:
    """Kill what the workers of a pilot had started, when its agent was killed and could not do it.

    All that a worker starts has the worker's name, which begins with the pilot's id, in its environment.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(WORKER_VARIABLE, "").rpartition("-")[0] == pilot:
                process.kill()


def _close_in_child() -> None:
    # A forked child (multiprocessing) would hold our ends of the pipes, and so hide our death from the agents.
    for process in _processes:
        process._let_go()


os.register_at_fork(after_in_child=_close_in_child)
