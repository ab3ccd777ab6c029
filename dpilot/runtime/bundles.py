"""Tiny units at a worker: many come in one message, run one after another, and are told of together.

A task of Dask's costs more than a unit that does next to nothing. So units of a kind that is known to be short, which
stage nothing but inputs that are on the machine, are sent to their worker as a *bundle*, past the worker's own Dask.
To the scheduler each is a task like any other: bound, canceled and tried again by itself, and its end is told by
Dask's own message.

The threads of the worker run what waits in *turns*: after a few milliseconds a turn is over, what has ended is told,
and the next turn gets in line behind other tasks. A unit that runs for longer than was thought is told of. When nothing
has begun for as long, since all threads are taken, what waits is given back, and goes to where a slot is free.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dpilot.runtime import adapter
from dpilot.runtime.attempt import Attempt, small
from dpilot.runtime.staging import heard
from dpilot.runtime.work import Bundled

if TYPE_CHECKING:
    from dpilot.runtime.worker import UnitPlugin

__all__ = ["Bundles"]

#: How long a turn lasts.
_TURN_S = 0.02
#: How long a unit may run, and others wait, before the scheduler is told.
_LONG_S = 0.05


class Bundles:
    """The units of bundles that wait or run at one worker.

    Parameters
    ----------
    plugin : UnitPlugin
        Its ``lock`` is held whenever units begin, end or are withdrawn.
    """

    def __init__(self, plugin: UnitPlugin) -> None:
        self._plugin = plugin
        self._waiting: dict[str, Bundled] = {}
        self._queue: list[tuple[float, float, int, str]] = []  # keys in order; some of them do not wait any more
        self._number = itertools.count()
        self._running: dict[str, float] = {}  # since when, of what the scheduler was not told about
        self._turns = 0
        self._has_moved = False  # whether any unit has begun since the last look
        self._is_watched = False

    def take(self, bundle: Iterable[Bundled]) -> None:
        """Units have come (called in the event loop)."""
        with self._plugin.lock:
            self._has_moved |= not self._waiting
            for unit in bundle:
                self._waiting[unit.key] = unit
                order = -unit.task.priority, unit.task.submitted, next(self._number), unit.key
                heapq.heappush(self._queue, order)
        self._start_turns()
        if not self._is_watched:
            self._is_watched = True
            adapter.call_later(self._plugin.worker, _LONG_S, self._watch)

    def withdraw(self, key: str) -> bool:
        """A unit is not to begin; whether it had not. Whoever calls this holds the lock."""
        return self._waiting.pop(key, None) is not None

    # ---------------------------------------------------------------- turns

    def _start_turns(self) -> None:
        worker = self._plugin.worker
        if not adapter.takes_tasks(worker):
            return
        with self._plugin.lock:
            further = min(adapter.n_threads(worker) - self._turns, len(self._waiting))
            self._turns += max(0, further)
        for _ in range(further):
            adapter.run_soon(worker, self._turn)

    def _turn(self) -> None:
        """Run units until none waits, or the turn is over (called in a thread)."""
        worker = self._plugin.worker
        ended: list[adapter.Outcome] = []
        until = time.monotonic() + _TURN_S
        while time.monotonic() < until and not adapter.has_seceded() and (begun := self._begin()) is not None:
            unit, attempt = begun
            outcome = adapter.carry_out(worker, unit.key, unit.run_id, attempt.run, small)
            with self._plugin.lock:
                self._running.pop(unit.key, None)
            self._plugin.end(unit.key, attempt)
            if attempt.reservation is None:  # else it was taken back
                ended.append(outcome)
        adapter.call_soon(worker, self._turn_is_over, ended)

    def _begin(self) -> tuple[Bundled, Attempt] | None:
        with self._plugin.lock:
            while self._queue and adapter.takes_tasks(self._plugin.worker):
                *_, key = heapq.heappop(self._queue)
                unit = self._waiting.pop(key, None)
                if unit is not None:
                    attempt = self._plugin.runs[key] = Attempt(unit.task, self._plugin)
                    if unit.inputs is not None:
                        attempt.expected["inputs"] = heard(unit.inputs)
                    self._running[key] = time.time()
                    self._has_moved = True
                    return unit, attempt
        return None

    def _turn_is_over(self, ended: list[adapter.Outcome]) -> None:
        adapter.deliver(self._plugin.worker, ended)
        self._turns -= 1
        self._start_turns()

    # ---------------------------------------------------------------- what takes long

    def _watch(self) -> None:
        """Look whether something takes longer than was thought."""
        since = time.time() - _LONG_S
        with self._plugin.lock:
            runs = {key: began for key, began in self._running.items() if began < since}
            for key in runs:
                del self._running[key]
            back: list[str] = []
            if not self._has_moved:
                back = list(self._waiting)
                self._waiting.clear()
                self._queue.clear()
            self._has_moved = False
            self._is_watched = bool(self._waiting or self._running)
        if runs or back:
            self._plugin.tell("", "held up", runs=runs, back=back)
        if self._is_watched:
            adapter.call_later(self._plugin.worker, _LONG_S, self._watch)
