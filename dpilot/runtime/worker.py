"""dpilot on a worker: what its units share, and what the scheduler orders.

:func:`run_unit` is the function of every unit's Dask task. It runs in a thread of the worker; the
:class:`UnitPlugin` there holds what the units of one worker share, and hears from the scheduler when one is canceled.
"""

from __future__ import annotations

import os
import pickle
import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from distributed import Worker, WorkerPlugin
from distributed.comm.core import Comm

from dpilot import config
from dpilot.data import Cache, Store
from dpilot.errors import PilotError, UnitCanceledError
from dpilot.runtime import adapter
from dpilot.runtime.attempt import Attempt, small
from dpilot.runtime.bundles import Bundles
from dpilot.runtime.carrier import Carrier
from dpilot.runtime.gang import Part
from dpilot.runtime.host import Host
from dpilot.runtime.member import Membership
from dpilot.runtime.peer import reachable
from dpilot.runtime.places import Place
from dpilot.runtime.staging import Ahead, heard
from dpilot.runtime.wire import Wire
from dpilot.runtime.work import Reference, UnitTask

__all__ = ["PLUGIN", "UnitPlugin", "run_unit"]

PLUGIN = "dpilot-units"


class UnitPlugin(WorkerPlugin):
    """What the units of one worker share. Dask installs it on every worker, also on those that come later."""

    name = PLUGIN
    idempotent = True
    _here: ClassVar[UnitPlugin | None] = None

    def setup(self, worker: Worker) -> None:
        """Dask calls this when the plugin, or the worker, is new."""
        self.worker = worker
        self.pid = os.getpid()
        self.pilot = next((name[6:] for name in worker.state.total_resources if name.startswith("pilot:")), "")
        self.has_gpus = "DPILOT_GPUS" in os.environ
        self.lock = threading.Lock()  # of what runs and waits here
        self.runs: dict[str, Attempt] = {}
        self._stopped: set[str] = set()  # keys of attempts that were stopped before they began
        self._functions: dict[bytes, Any] = {}
        self.directory = ""  # the pilot's working directory; the scheduler tells it before the first unit
        self._expected: dict[str, dict[str, Any]] = {}  # of units that are on their way here: inputs, GPUs
        self.bundles = Bundles(self)
        self.host = Host(lambda: self.cache)
        adapter.take_orders(worker, self.take_order)
        adapter.answer_requests(worker, self.host.answer)
        adapter.answer_gangs(worker, self.attend)
        adapter.log_no_failures()
        Wire.connection_args = adapter.connection_args(worker)
        type(self)._here = self

    @classmethod
    def here(cls) -> UnitPlugin | None:
        """That of the worker that this process is; None in other processes, and in those that units fork."""
        plugin = cls._here
        return plugin if plugin is not None and plugin.pid == os.getpid() else None

    def take_order(self, what: str, **details: Any) -> None:
        """The scheduler wants something of this worker (called in the event loop)."""
        if what == "stop":
            self.stop(**details)
        elif what == "give back":
            self._give_back(**details)
        elif what == "take":
            self.bundles.take(details["bundled"])
        elif what == "expect":
            self._expect(details.pop("unit"), details)
        elif what == "work_in":
            self.directory = details["directory"]
        elif what == "reach":
            self._reach(details["id"], pickle.loads(details["store"]))
        elif what == "forget":
            self.host.forget(details["id"])
        elif what == "carry":
            self.carrier.take(details["job"], details["pickled"])
        elif what == "drop":
            self.carrier.drop(details["job"])
        elif what == "restart":
            adapter.come_again(self.worker)

    async def attend(self, comm: Comm, part: adapter.Sealed) -> Any:
        """Take part in an MPI unit that another worker runs."""
        opened: Part = part.open()
        attempt = Attempt(opened.task, self)
        attempt.expected["gpus"] = opened.gpus
        return await Membership(opened, attempt, self.worker).attend(comm)

    def _expect(self, unit: str, details: dict[str, Any]) -> None:
        """A unit is on its way here: what must be brought for it is brought meanwhile."""
        if "inputs" in details:
            details["inputs"] = heard(details["inputs"])
            details["ahead"] = Ahead(details["inputs"], self, self.carrier.start)
        self._expected[unit] = details

    def _unexpect(self, unit: str) -> None:
        expected = self._expected.pop(unit, {})
        if "ahead" in expected:
            expected["ahead"].stop.set()

    def _give_back(self, key: str, unit: str, attempt: int) -> None:
        """The scheduler would have a unit run elsewhere, unless it has begun here."""
        if adapter.let_go(self.worker, key):
            self._unexpect(unit)
            self.tell(unit, "given back", attempt=attempt)

    def stop(self, key: str, reservation: str) -> None:
        """The scheduler took a task back: end it, and say when its slots are free."""
        self._unexpect(reservation.partition("#")[0])
        with self.lock:
            attempt = self.runs.get(key)
            if attempt is not None and attempt.reservation is not None:  # it was stopped before, and is not this one
                attempt = None
            if attempt is not None:
                attempt.reservation = reservation
            elif not self.bundles.withdraw(key) and adapter.is_executing(self.worker, key):
                self._stopped.add(key)  # its thread may be about to begin it
        if attempt is None:  # it has ended, or will not begin
            self.tell(reservation, "ended")
        else:
            attempt.cancel()

    def begin(self, key: str, attempt: Attempt) -> None:
        """An attempt that is a task of Dask's begins in this thread."""
        with self.lock:
            if key in self._stopped or adapter.was_freed(self.worker, key):
                self._stopped.discard(key)
                raise UnitCanceledError(f"{attempt.task.id} was canceled before it began")
            self.runs[key] = attempt
            attempt.expected = self._expected.pop(attempt.task.id, {})

    def end(self, key: str, attempt: Attempt) -> None:
        """An attempt has ended."""
        attempt.held.close()
        with self.lock:
            if self.runs.get(key) is attempt:
                del self.runs[key]
        if attempt.reservation is not None:
            self.tell(attempt.reservation, "ended")

    def _reach(self, id: str, store: Store) -> None:
        """Serve a store of this machine and say whether it is seen; connect to another one before it is needed."""
        if store.root.local is not None:
            self.host.serve(id, store, lambda sees: self.tell(id, "sees", sees=sees))
        else:
            # For S3 it takes a while. In a thread that will run units: fsspec's file systems belong to one thread each.
            adapter.run_soon(self.worker, lambda: _connect(store))

    def reach(self, place: Place) -> Store:
        """A store in this process: itself, or through the worker that sees it."""
        if place.host == self.worker.address:  # if it does not see it any more, it can say why
            return place.store
        return reachable(place, self.scheduler)

    @cached_property
    def carrier(self) -> Carrier:
        """Carries out the scheduler's jobs on files."""
        return Carrier(self.tell, self.reach, int(config.get("data.transfers-per-worker")), lambda: self.cache)

    def teardown(self, worker: Worker) -> None:
        """Dask calls this when the worker ends."""
        if type(self)._here is self:
            type(self)._here = Wire.connection_args = None
        self.host.close()
        if "carrier" in self.__dict__:
            self.carrier.close()

    @property
    def labels(self) -> tuple[str | None, str | None]:
        """Datacenter and machine of this worker."""
        tags = dict(name.split(":", 1) for name in self.worker.state.total_resources if ":" in name)
        return tags.get("datacenter"), tags.get("machine")

    @property
    def scheduler(self) -> str:
        """Contact address of the scheduler."""
        return adapter.scheduler_of(self.worker)

    @cached_property
    def cache(self) -> Cache:
        """The cache of this site's machine, beside the sandboxes unless the configuration names a place."""
        root = Path(config.get("data.cache-directory") or Path(self.directory) / ".dpilot-cache")
        site = "@".join(quote(label or "", safe="") for label in self.labels)
        return Cache(root / (site.strip("@") or "here"), config.nbytes("data.cache-size"))

    def ask(self, call: str, **arguments: Any) -> Any:
        """Ask the scheduler's plugin."""
        answer = adapter.call_from_worker(self.worker, call=call, arguments=adapter.Sealed.of(arguments))
        good, value = pickle.loads(answer)
        if not good:
            raise value
        return value

    def tell(self, unit: str, what: str, **details: Any) -> None:
        """Tell the scheduler's plugin of a unit's progress."""
        adapter.report(self.worker, {"unit": unit, "what": what, "details": details})

    def function(self, pickled: bytes) -> Any:
        """The function of a call; units that call the same one unpickle it once."""
        function = self._functions.get(pickled)
        if function is None:
            function = pickle.loads(pickled)
            with self.lock:
                if len(self._functions) > 1000:
                    self._functions.clear()
                self._functions[pickled] = function
        return function


def _connect(store: Store) -> None:
    with suppress(PilotError):  # whoever needs it will be told
        store.connect()


def run_unit(task: UnitTask, references: tuple[Reference, ...] = (), *results: Any) -> Any:
    """Run one compute unit; the function of its Dask task.

    Parameters
    ----------
    task : UnitTask
    references : tuple of Reference
        For which tasks' results the following arguments stand.
    *results
        The results.

    Returns
    -------
    object
        What the function returned; None for a program.
    """
    worker, key = adapter.this_task()
    plugin = worker.plugins[PLUGIN]
    assert isinstance(plugin, UnitPlugin)
    attempt = Attempt(task, plugin)
    plugin.begin(key, attempt)
    try:
        value = attempt.run(dict(zip(references, results, strict=True)))
        pickled = small(value)
        if pickled is not None:
            adapter.attach_metadata(worker, key, pickled)
        return value
    finally:
        plugin.end(key, attempt)
