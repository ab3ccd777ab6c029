"""Carries out the scheduler's jobs in threads: on a worker beside the slots, not in them; or in a client."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dpilot.data import Cache, Stop, Store
from dpilot.errors import PilotError, StateError
from dpilot.runtime.jobs import Job
from dpilot.runtime.places import Place

__all__ = ["Carrier"]

logger = logging.getLogger(__name__)

#: How often the progress of a job is told.
_TELL_EVERY_S = 0.25


class Carrier:
    """The jobs that one process carries out.

    Parameters
    ----------
    tell : callable
        ``tell(id, what, **details)`` reports to the scheduler, from any thread: ``moved`` with ``nbytes`` so far, and
        at last ``carried`` with ``good`` and the pickled ``value`` or error.
    reach : callable
        Gives a store in this process: itself, or through the worker that sees it.
    n_threads : int
        How many jobs are carried out at the same time.
    cache : callable, optional
        Gives the machine's cache.
    """

    def __init__(
        self,
        tell: Callable[..., None],
        reach: Callable[[Place], Store],
        n_threads: int,
        cache: Callable[[], Cache] | None = None,
    ) -> None:
        self._tell = tell
        self.cache = cache
        self.reach = reach
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="dpilot-carrier")
        self._under_way: dict[str, _Task] = {}
        self.is_closed = False

    def take(self, id: str, job: bytes) -> None:
        """Carry out a job, pickled, when a thread is free, and tell the scheduler what it gave."""
        task = self._under_way[id] = _Task(self, id, is_given=True)
        self._pool.submit(self._answer, task, job)

    def carry_out(self, id: str, job: Job) -> tuple[bool, Any, int]:
        """Carry out a job in this thread.

        Returns
        -------
        bool
            Whether it was done.
        object
            What it gave, or the error that ended it: a :class:`~dpilot.errors.PilotError`.
        int
            How many bytes have moved.
        """
        task = self._under_way[id] = _Task(self, id)
        return self._carry_out(task, lambda: job)

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function that carries out jobs, when a thread is free."""
        self._pool.submit(function, *arguments)

    def drop(self, id: str) -> None:
        """Stop a job, if it is under way. It removes what it has made so far."""
        task = self._under_way.get(id)
        if task is not None:
            task.stop.set()

    def close(self) -> None:
        """Stop all jobs. Those that the scheduler gave to this process it may have given to another one by now."""
        self.is_closed = True
        for task in list(self._under_way.values()):
            if task.is_given:
                task.stop.abandon()
            else:
                task.stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, task: _Task, job: bytes) -> None:
        good, value, nbytes = self._carry_out(task, lambda: pickle.loads(job))
        if not self.is_closed:
            self._tell(task.id, "carried", nbytes=nbytes, good=good, value=pickle.dumps(value))

    def _carry_out(self, task: _Task, load: Callable[[], Job]) -> tuple[bool, Any, int]:
        try:
            task.moved(0)
            return True, load().run(task), task.nbytes
        except PilotError as error:
            return False, error, task.nbytes
        except Exception as error:
            logger.exception("job %s failed", task.id)
            failure = PilotError(f"a job on files failed: {error!r}; see the log of the process that did it")
            return False, failure, task.nbytes
        finally:
            self._under_way.pop(task.id, None)


class _Task:
    """A job under way; the setting of :class:`~dpilot.runtime.jobs.Job`. Others are given by the scheduler."""

    def __init__(self, carrier: Carrier, id: str, is_given: bool = False) -> None:
        self.id = id
        self.is_given = is_given
        self.nbytes = 0
        self.stop = Stop()
        self._carrier = carrier
        self._told_at = time.monotonic()
        self._lock = threading.Lock()

    def reach(self, place: Place) -> Store:
        return self._carrier.reach(place)

    def cache(self) -> Cache:
        if self._carrier.cache is None:
            raise StateError("only the workers of pilots have a cache")
        return self._carrier.cache()

    def moved(self, nbytes: int) -> None:
        if self.stop.is_set():
            raise StateError("the transfer was canceled")
        with self._lock:
            self.nbytes += nbytes
            now = time.monotonic()
            due = now - self._told_at >= _TELL_EVERY_S
            if due:
                self._told_at = now
        if due:
            self._carrier._tell(self.id, "moved", nbytes=self.nbytes)
