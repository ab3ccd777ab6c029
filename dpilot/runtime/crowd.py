"""Other people's tasks on the workers of pilots: units and they take turns, so that neither starves the other.

Dask knows which of its tasks are at a worker, the matcher only its units. A worker that has as many of both as
threads, some of them not units, takes no units; when one that is no unit has ended, it takes what the matcher would
send to it then. So is it while Dask itself keeps tasks back until workers have room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from dask.typing import Key
from distributed import Scheduler

from dpilot.runtime import adapter

__all__ = ["Crowd"]


class Crowd:
    """Who else is at the workers.

    Parameters
    ----------
    scheduler : Scheduler
    workers : callable
        Tells the addresses of the workers that count.
    changed : callable
        Is called with a worker's address when :meth:`has_room` may have changed for it.
    """

    def __init__(
        self, scheduler: Scheduler, workers: Callable[[], Iterable[str]], changed: Callable[[str], None]
    ) -> None:
        self._scheduler = scheduler
        self._workers = workers
        self._changed = changed
        self._worker_of: dict[Key, str] = {}
        self._number: Counter[str] = Counter()
        self._turns: set[str] = set()
        self._is_queueing = False

    def __bool__(self) -> bool:
        """Whether anybody else is there."""
        return bool(self._worker_of) or self._is_queueing

    def has_room(self, worker: str) -> bool:
        """Whether a worker may take units."""
        if worker not in self._number and not adapter.is_queueing(self._scheduler):
            return True
        return worker in self._turns or not adapter.is_full(self._scheduler, worker)

    def moved(self, key: Key, start: str, finish: str) -> bool:
        """A task that is no unit has changed its state; whether a worker's turn has begun."""
        queueing = adapter.is_queueing(self._scheduler)
        if queueing is not self._is_queueing:
            self._is_queueing = queueing
            for worker in self._workers():
                self._changed(worker)
        if start == "processing" and (left := self._worker_of.pop(key, None)) is not None:
            self._number[left] -= 1
            if not self._number[left]:
                del self._number[left]
            self._turns.add(left)
            self._changed(left)
            return True
        if finish == "processing" and (address := adapter.worker_of(self._scheduler, key)) is not None:
            self._worker_of[key] = address
            self._number[address] += 1
            self._changed(address)
        return False

    def end_turns(self) -> None:
        """What was to be sent to workers in their turns has been sent."""
        turns, self._turns = self._turns, set()
        for worker in turns:
            self._changed(worker)
