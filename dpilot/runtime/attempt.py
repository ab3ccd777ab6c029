"""One attempt of a unit at its worker: inputs in, the program or function run, outputs out."""

from __future__ import annotations

import contextvars
import os
import pickle
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.sizeof import sizeof

from dpilot import config
from dpilot.errors import PilotError, StagingError, StateError, UnitCanceledError, UnitError
from dpilot.placement import Share
from dpilot.runtime import adapter
from dpilot.runtime.gang import Gang
from dpilot.runtime.jobs import terms
from dpilot.runtime.process import MARK, RunningProgram
from dpilot.runtime.staging import Ahead, Inputs, Staging
from dpilot.runtime.work import Call, Program, Reference, UnitTask, load_arguments

if TYPE_CHECKING:
    from dpilot.runtime.worker import UnitPlugin

__all__ = ["Attempt", "gpus", "sandbox", "small"]

#: A result whose pickle is not larger travels with the message of the unit's success.
SMALL_NBYTES = 4096


class Attempt:
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

    def run(self, resolve: dict[Reference, Any] | None = None) -> Any:
        """Do the unit's work: inputs in, the program or function run, outputs out.

        Parameters
        ----------
        resolve : dict of Reference to object, optional
            What stands for which references in the arguments; the inputs are added.

        Returns
        -------
        object
            What the function returned; None for a program.
        """
        token = _current.set(self)
        try:
            return _staged(self, {} if resolve is None else resolve)
        except UnitCanceledError:
            raise
        except (SystemExit, KeyboardInterrupt) as error:  # Dask would wait for ever, for what would end its worker
            raise UnitError(f"{self.task.id} raised {error!r}: return from the function, or raise an error") from error
        except Exception as error:
            if isinstance(error, PilotError) and not isinstance(error, UnitError):
                raise StagingError(f"{self.task.id} failed: {error}", unit=self.task.id) from error
            raise
        finally:
            _current.reset(token)

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
        """Start the unit's program, unless it was canceled."""
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


_current: contextvars.ContextVar[Attempt] = contextvars.ContextVar("dpilot-unit")


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


def _staged(attempt: Attempt, resolve: dict[Reference, Any]) -> Any:
    task = attempt.task
    if isinstance(task.work, Program) and task.work.ranks:
        attempt.assemble()
    if task.request.inputs or task.outputs or task.transfers:
        staging = Staging(task, attempt)
        staging.bring(resolve)
        try:
            value = _work(attempt, resolve)
        finally:
            error = staging.written_input()
        if error is not None:
            raise error
        staging.collect()
        return value
    return _work(attempt, resolve)


def _work(attempt: Attempt, resolve: dict[Reference, Any]) -> Any:
    task, plugin = attempt.task, attempt.plugin
    if isinstance(task.work, Program):
        environment = {
            "DPILOT_UNIT": task.id,
            "DPILOT_PILOT": plugin.pilot,
            "DPILOT_WORK_DIR": str(attempt.directory()),
            "DPILOT_SLOTS": str(task.request.slots),
        }
        if plugin.has_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(attempt.gpus())
        if attempt.gang is not None:
            _run_ranks(attempt, attempt.gang, task.work, environment)
        else:
            _run_program(attempt, task.work, environment)
        attempt.check()
        return None
    assert isinstance(task.work, Call)
    function = plugin.function(task.work.function)
    args, kwargs = load_arguments(task.work.arguments, resolve)
    with _limited(attempt):
        return function(*args, **kwargs)


def _run_program(attempt: Attempt, work: Program, environment: Mapping[str, str]) -> None:
    attempt.start(work, environment).wait(attempt.task.walltime_s, int(config.get("unit.stderr-lines")))


def _run_ranks(attempt: Attempt, gang: Gang, work: Program, environment: Mapping[str, str]) -> None:
    """Run an MPI program. A unit that has lost a worker of its gang waits to be taken back, as if it were its own."""
    failure: Exception | None = None
    try:
        gang.wait()
        _run_program(attempt, work, {**environment, MARK: gang.token})
    except Exception as error:
        failure = error
    failures = gang.close()
    attempt.check()
    if failure is not None and gang.lost is not None:
        attempt.plugin.tell(attempt.task.id, "lost", worker=gang.lost)
        attempt.canceled.wait()
        attempt.check()
    if failure is None and failures:
        failure = failures[0]
    if failure is not None:
        raise failure


@contextmanager
def _limited(attempt: Attempt) -> Iterator[None]:
    """Have a call reported when it takes longer than the unit's walltime. A thread cannot be interrupted."""
    walltime_s = attempt.task.walltime_s
    if walltime_s is None:
        yield
        return
    error = UnitError(
        f"{attempt.task.id} ran longer than its walltime of {walltime_s:g} s; "
        "ask for more walltime, or give it less to do"
    )
    timer = threading.Timer(
        walltime_s, attempt.plugin.tell, (attempt.task.id, "overdue"), {"error": pickle.dumps(error)}
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def small(value: Any) -> bytes | None:
    """The pickle of a small result: it travels with the message of success, so that nobody need fetch it."""
    try:
        if value is not None and sizeof(value) > SMALL_NBYTES:
            return None
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:  # what cannot be pickled stays at the worker, as any Dask result
        return None
    return data if len(data) <= SMALL_NBYTES else None
