"""A unit on its worker: inputs in, the program or function run, outputs out.

:func:`run_unit` is the function of every unit's Dask task. It runs in a thread of the worker; the
:class:`UnitPlugin` there holds what the units of one worker share, and hears from Dask when one is canceled.
"""

from __future__ import annotations

import contextvars
import os
import pickle
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from dask.sizeof import sizeof
from distributed import Worker, WorkerPlugin
from distributed.comm.core import Comm

from dpilot import config
from dpilot.data import Cache, Store
from dpilot.errors import PilotError, StagingError, StateError, UnitCanceledError, UnitError
from dpilot.placement import Share
from dpilot.runtime import adapter
from dpilot.runtime.carrier import Carrier
from dpilot.runtime.gang import Gang, Part
from dpilot.runtime.host import Host
from dpilot.runtime.jobs import terms
from dpilot.runtime.member import Membership
from dpilot.runtime.peer import reachable
from dpilot.runtime.places import Place
from dpilot.runtime.process import MARK, RunningProgram
from dpilot.runtime.staging import Ahead, Inputs, Staging
from dpilot.runtime.wire import Wire
from dpilot.runtime.work import Call, Program, Reference, UnitTask, load_arguments

__all__ = ["PLUGIN", "UnitPlugin", "gpus", "run_unit", "sandbox"]

PLUGIN = "dpilot-units"
#: A result whose pickle is not larger travels with the message of the unit's success.
SMALL_NBYTES = 4096


class _Run:
    """One attempt of a unit at this worker, while it lasts."""

    def __init__(self, task: UnitTask, plugin: UnitPlugin) -> None:
        self.task = task
        self.plugin = plugin
        self.program: RunningProgram | None = None
        self.gang: Gang | None = None  # if it is an MPI program
        self.expected: dict[str, Any] = {}  # what the scheduler said of it, ahead of it
        self.canceled = threading.Event()
        self.reservation: str | None = None  # what the scheduler holds for it since it was stopped
        self.held = ExitStack()  # what it uses of the machine's cache
        self._stops: list[threading.Event] = []  # of its transfers
        self._lock = threading.Lock()
        self._directory: Path | None = None

    def cancel(self, grace_s: float | None = None) -> None:
        """Stop it, a program within `grace_s` seconds; called in the worker's event loop."""
        if grace_s is None:
            grace_s = config.seconds("unit.grace-period")
        with self._lock:
            self.canceled.set()
            for stop in self._stops:
                stop.set()
            if self.ahead is not None:
                self.ahead.stop.set()
            if self.program is not None:
                self.program.stop(grace_s)
            elif self.gang is not None:
                self.gang.abandon()

    def check(self, _nbytes: int = 0) -> None:
        """Raise if the unit was canceled; transfers call it for every chunk."""
        if self.canceled.is_set():
            raise UnitCanceledError(f"{self.task.id} was canceled")

    def inputs(self) -> Inputs:
        """Where its inputs are: as the scheduler said when it sent the unit."""
        if "inputs" in self.expected:
            return dict(self.expected["inputs"])
        here = adapter.contact_of(self.plugin.worker)
        return dict(self.plugin.ask("inputs", unit=self.task.id, pilot=self.plugin.pilot, worker=here))

    @property
    def ahead(self) -> Ahead | None:
        """What brings its inputs since before it began."""
        return self.expected.get("ahead")

    def gpus(self) -> tuple[str, ...]:
        """The names of the devices that are its own, as in CUDA_VISIBLE_DEVICES."""
        all_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        return tuple(all_gpus[number] for number in self.expected.get("gpus", ()))

    def terms(self) -> dict[str, Any]:
        """The terms of a transfer for this unit, which ends when the unit is canceled."""
        stop = threading.Event()
        with self._lock:
            self.check()
            self._stops.append(stop)
        return terms(self.check, stop)

    def start(self, program: Program, environment: Mapping[str, str]) -> RunningProgram:
        directory = self.directory()
        with self._lock:
            self.check()
            wrap = self.gang.command if self.gang is not None else None
            self.program = RunningProgram(program, directory, environment, wrap)
        return self.program

    def assemble(self) -> None:
        """Have the workers on which an MPI program is to run get ready."""
        worker = self.plugin.worker
        gang = self.expected.get("gang") or [(adapter.contact_of(worker), self.task.request.slots)]
        directory = self.directory()
        with self._lock:
            self.check()
            shares = [Share(*share) for share in gang]
            self.gang = Gang(self.task, shares, worker, directory, self.gpus(), self._break_off)
        self.held.callback(self.gang.close)

    def _break_off(self) -> None:
        """A worker of its gang is lost: called in the worker's event loop."""
        with self._lock:
            if self.program is not None:
                self.program.stop(0.0)

    def shares(self, marker: str) -> bool:
        """Whether the working directory is that of another worker, which has made `marker` in it."""
        path = self._path()
        if (path / marker).is_dir():
            self._directory = path
        return self._directory is not None

    def _path(self) -> Path:
        return Path(self.plugin.directory) / (self.task.directory or self.task.id)

    def directory(self) -> Path:
        """The unit's working directory, made when first asked for. What an earlier attempt left there goes."""
        if self._directory is None:
            path = self._path()
            try:
                if self.task.directory is not None:
                    path.mkdir(parents=True, exist_ok=True)
                else:
                    try:
                        path.mkdir(parents=True)
                    except FileExistsError:
                        # Moved away first: what is left of an earlier attempt may still be about to write there.
                        stale = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
                        path.rename(stale)
                        path.mkdir()
                        shutil.rmtree(stale, ignore_errors=True)
            except OSError as error:
                raise UnitError(
                    f"working directory {str(path)!r} of {self.task.id} cannot be made: {error.strerror or error}; "
                    "give the pilot a working_directory that its workers may write to"
                ) from None
            self._directory = path
        return self._directory


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
        self.runs: dict[str, _Run] = {}
        self._stopped: set[str] = set()  # keys of attempts that were stopped before they began
        self._functions: dict[bytes, Any] = {}
        self._directory: str | None = None
        self._lock = threading.Lock()
        self._expected: dict[str, dict[str, Any]] = {}  # of units that are on their way here: inputs, GPUs
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
        elif what == "expect":
            self._expect(details.pop("unit"), details)
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
        run = _Run(opened.task, self)
        run.expected["gpus"] = opened.gpus
        return await Membership(opened, run, self.worker).attend(comm)

    def _expect(self, unit: str, details: dict[str, Any]) -> None:
        """A unit is on its way here: what must be brought for it is brought meanwhile."""
        if "inputs" in details:
            details["inputs"] = pickle.loads(details["inputs"])
            details["ahead"] = Ahead(details["inputs"], self, self.carrier.start)
        self._expected[unit] = details

    def stop(self, key: str, reservation: str) -> None:
        """The scheduler took a task back: end it, and say when its slots are free."""
        expected = self._expected.pop(reservation.partition("#")[0], {})
        if "ahead" in expected:
            expected["ahead"].stop.set()
        with self._lock:
            run = self.runs.get(key)
            if run is not None:
                run.reservation = reservation
            elif adapter.is_executing(self.worker, key):
                self._stopped.add(key)  # its thread may be about to begin it
        if run is None:  # it has ended, or will not begin
            self.tell(reservation, "ended")
        else:
            run.cancel()

    def begin(self, key: str, run: _Run) -> None:
        """An attempt begins in this thread."""
        with self._lock:
            if key in self._stopped or adapter.was_freed(self.worker, key):
                self._stopped.discard(key)
                raise UnitCanceledError(f"{run.task.id} was canceled before it began")
            self.runs[key] = run
            run.expected = self._expected.pop(run.task.id, {})

    def end(self, key: str, run: _Run) -> None:
        """An attempt has ended."""
        run.held.close()
        with self._lock:
            del self.runs[key]
        if run.reservation is not None:
            self.tell(run.reservation, "ended")

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

    @property
    def directory(self) -> str:
        """The pilot's working directory."""
        if self._directory is None:
            self._directory = str(self.ask("pilot_directory", pilot=self.pilot))
        return self._directory

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
            with self._lock:
                if len(self._functions) > 1000:
                    self._functions.clear()
                self._functions[pickled] = function
        return function


def _connect(store: Store) -> None:
    with suppress(PilotError):  # whoever needs it will be told
        store.connect()


_current: contextvars.ContextVar[_Run] = contextvars.ContextVar("dpilot-unit")


def sandbox() -> Path:
    """The working directory of the compute unit that runs this; made when first asked for.

    What a function writes there its unit's ``output_data`` can collect.

    Raises
    ------
    StateError
        If no compute unit runs here.
    """
    try:
        return _current.get().directory()
    except LookupError:
        raise StateError(
            "sandbox() was called outside of a compute unit; call it in a function that a unit runs"
        ) from None


def gpus() -> tuple[str, ...]:
    """The GPUs of the compute unit that runs this, as they are named in ``CUDA_VISIBLE_DEVICES``.

    A program finds that variable set to them; a function, which shares its process with others, asks here.

    Raises
    ------
    StateError
        If no compute unit runs here.
    """
    try:
        return _current.get().gpus()
    except LookupError:
        raise StateError(
            "gpus() was called outside of a compute unit; call it in a function that a unit runs"
        ) from None


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
    run = _Run(task, plugin)
    plugin.begin(key, run)
    token = _current.set(run)
    try:
        with _errors_told(run):
            value = _run(run, dict(zip(references, results, strict=True)))
        _tell_result(plugin, key, value)
        return value
    finally:
        _current.reset(token)
        plugin.end(key, run)


@contextmanager
def _errors_told(run: _Run) -> Iterator[None]:
    try:
        yield
    except UnitCanceledError:
        raise
    except Exception as error:
        if isinstance(error, PilotError) and not isinstance(error, UnitError):
            raise StagingError(f"{run.task.id} failed: {error}", unit=run.task.id) from error
        raise


def _run(run: _Run, resolve: dict[Reference, Any]) -> Any:
    task = run.task
    if isinstance(task.work, Program) and task.work.ranks:
        run.assemble()
    if task.request.inputs or task.outputs or task.transfers:
        staging = Staging(task, run)
        staging.bring(resolve)
        try:
            value = _work(run, resolve)
        finally:
            error = staging.written_input()
        if error is not None:
            raise error
        staging.collect()
        return value
    return _work(run, resolve)


def _work(run: _Run, resolve: dict[Reference, Any]) -> Any:
    task, plugin = run.task, run.plugin
    if isinstance(task.work, Program):
        environment = {
            "DPILOT_UNIT": task.id,
            "DPILOT_PILOT": plugin.pilot,
            "DPILOT_WORK_DIR": str(run.directory()),
            "DPILOT_SLOTS": str(task.request.slots),
        }
        if plugin.has_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(run.gpus())
        if run.gang is not None:
            _run_ranks(run, run.gang, task.work, environment)
        else:
            _run_program(run, task.work, environment)
        run.check()
        return None
    assert isinstance(task.work, Call)
    function = plugin.function(task.work.function)
    args, kwargs = load_arguments(task.work.arguments, resolve)
    with _limited(run):
        return function(*args, **kwargs)


def _run_program(run: _Run, work: Program, environment: Mapping[str, str]) -> None:
    run.start(work, environment).wait(run.task.walltime_s, int(config.get("unit.stderr-lines")))


def _run_ranks(run: _Run, gang: Gang, work: Program, environment: Mapping[str, str]) -> None:
    """Run an MPI program. A unit that has lost a worker of its gang waits to be taken back, as if it were its own."""
    failure: Exception | None = None
    try:
        gang.wait()
        _run_program(run, work, {**environment, MARK: gang.token})
    except Exception as error:
        failure = error
    failures = gang.close()
    run.check()
    if failure is not None and gang.lost is not None:
        run.plugin.tell(run.task.id, "lost", worker=gang.lost)
        run.canceled.wait()
        run.check()
    if failure is None and failures:
        failure = failures[0]
    if failure is not None:
        raise failure


@contextmanager
def _limited(run: _Run) -> Iterator[None]:
    """Have a call reported when it takes longer than the unit's walltime. A thread cannot be interrupted."""
    walltime_s = run.task.walltime_s
    if walltime_s is None:
        yield
        return
    error = UnitError(
        f"{run.task.id} ran longer than its walltime of {walltime_s:g} s; ask for more walltime, or give it less to do"
    )
    timer = threading.Timer(walltime_s, run.plugin.tell, (run.task.id, "overdue"), {"error": pickle.dumps(error)})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tell_result(plugin: UnitPlugin, key: str, value: Any) -> None:
    """Let a small result travel with the message of success, so that nobody need fetch it."""
    try:
        if value is not None and sizeof(value) > SMALL_NBYTES:
            return
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:  # what cannot be pickled stays here, as any Dask result
        return
    if len(data) <= SMALL_NBYTES:
        adapter.attach_metadata(plugin.worker, key, data)
