"""A compute unit: its handle, and how a description becomes a task."""

from __future__ import annotations

import logging
import pickle
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

from dpilot.descriptions import ComputeUnitDescription, ComputeUnitSpec
from dpilot.errors import DescriptionError, InputError, StateError, UnitCanceledError
from dpilot.placement import Decision, Request, Site
from dpilot.runtime.session import Future, Session, future_key
from dpilot.runtime.work import Call, Program, Reference, UnitTask, dump_arguments, dump_function
from dpilot.service.data_unit import DataUnit
from dpilot.service.handle import Handle
from dpilot.service.traces import without_internals
from dpilot.states import COMPUTE_UNIT, State
from dpilot.urls import ObjectURL, new_id

__all__ = ["ComputeUnit", "Submission"]

logger = logging.getLogger(__name__)

#: How long to look for an error that only is to be shown.
_LOOK_S = 1.0


class ComputeUnit(Handle):
    """One piece of work that was submitted.

    Parameters
    ----------
    cu_url : str
        URL of one to reconnect to; new ones are made by ``submit_compute_unit``.
    """

    kind = "cu"
    table = COMPUTE_UNIT

    def __init__(self, cu_url: str) -> None:
        self._reconnect(cu_url)

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self._key: str = snapshot["key"]
        self._directory: str = snapshot["directory"]
        self._pilot: str | None = snapshot["pilot"]
        self._result: Any = snapshot["result"]
        self._future: Future[Any] | None = None  # until it is asked for
        self.name: str = snapshot["kind"]
        self.output_data = {
            unit.name or unit.id: unit for unit in (Handle._find(self._session, du) for du in snapshot["outputs"])
        }

    @classmethod
    def _new(cls, session: Session, task: UnitTask, key: str, name: str, outputs: dict[str, DataUnit]) -> ComputeUnit:
        unit = cls.__new__(cls)
        unit._key = key
        unit._directory = task.directory or task.id
        unit._pilot = None
        unit._result = None
        unit._future = None  # until it is sent
        unit.name = name
        #: The data units that it writes, by name.
        unit.output_data = outputs
        unit._begin(session, task.id, task.submitted)
        unit._life.advance(State.Pending, task.submitted)
        return unit

    def _give(self, future: Future[Any]) -> None:
        self._future = future

    def _apply(self, state: str | None, timestamp: float, details: dict[str, Any]) -> None:
        self._pilot = details.get("pilot", self._pilot)
        result = details.get("result")
        if result is not None:
            self._result = result
        if "warning" in details:
            logger.warning("%s", details["warning"])
        super()._apply(state, timestamp, details)

    # ---------------------------------------------------------------- what users see

    @property
    def future(self) -> Future[Any]:
        """The Dask future of its result."""
        self._session.settle((self.id,))
        if self._future is None:
            self._future = self._session.future(self.id, self._key)
        return self._future

    def result(self, timeout: float | None = None) -> Any:
        """What its function returned; None for a program that ended well.

        Parameters
        ----------
        timeout : float, optional
            How long to wait for it, in seconds.

        Raises
        ------
        Exception
            What the function raised, with its traceback on the worker; for a program an
            :class:`~dpilot.errors.ExecutableError`.
        UnitCanceledError
            If it was canceled.
        PilotTimeoutError
        """
        __tracebackhide__ = True  # IPython and pytest then show who asked, and what the unit ran; not this
        state = self.wait(timeout)
        if state is State.Canceled:
            raise UnitCanceledError(f"{self.id} was canceled and has no result", unit=self.id)
        if state is State.Failed:
            error = self.exception()
            assert error is not None
            raise error
        if self._result is not None:
            return pickle.loads(self._result)
        return self.future.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Why it failed; None if it ended well or was canceled. Waits for its end.

        Its traceback begins where the unit's own code does, and a note says which unit it was, and where.
        """
        if self.wait(timeout) is not State.Failed:
            return None
        if self._error is not None:
            return self._noted(self._error, None)
        error = self.future.exception()
        return self._noted(error, self.future.traceback()) if isinstance(error, BaseException) else None

    def _noted(self, error: BaseException, trace: TracebackType | None) -> BaseException:
        note = f"This was {self.id} ({self.name})" + (f", on {self._pilot}" if self._pilot else "")
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return error.with_traceback(without_internals(trace))

    def _known_error(self) -> BaseException | None:
        future = self._future
        if self._session.client.asynchronous:  # the event loop's own thread cannot wait for itself
            return self._error
        if self._error is None and future is not None and future.status == "error":
            error = future.exception(_LOOK_S)
            if isinstance(error, BaseException):
                return self._noted(error, future.traceback(_LOOK_S))
        return self._error

    async def _learn_error(self) -> BaseException | None:
        """As :meth:`_known_error`, in the event loop."""
        future = self._future
        if self._error is None and future is not None and future.status == "error":
            error = await future.exception()
            if isinstance(error, BaseException):
                return self._noted(error, await future.traceback())
        return self._error

    def _told(self) -> Iterator[str]:
        yield self.name
        if self._pilot is not None:
            yield f"on {self._pilot}"
        yield from super()._told()

    @property
    def pilot(self) -> Any:
        """The PilotCompute that runs it, or has run it; None while it waits for one."""
        return None if self._pilot is None else Handle._find(self._session, self._pilot)

    def explain(self) -> Decision:
        """Where it ran, or will run, and why: the cost of every pilot, or the reason for its rejection."""
        self._session.settle((self.id,))
        decision: Decision = self._session.call("explain", id=self.id)
        return decision

    def get_details(self) -> dict[str, Any]:
        """All that is known of it.

        Returns
        -------
        dict
            ``pilot`` (id), ``attempt``, ``history``, ``sandbox``, and ``bytes`` of input by where they came from:
            ``local`` (the same machine), ``same_datacenter`` and ``cross_datacenter``.
        """
        self._session.settle((self.id,))
        snapshot = self._session.snapshot(self.id)
        del snapshot["result"], snapshot["directory"]
        local, near, far = snapshot.pop("nbytes")
        snapshot["bytes"] = {"local": local, "same_datacenter": near, "cross_datacenter": far}
        snapshot["sandbox"] = self.get_local_working_directory() if snapshot["pilot"] else None
        snapshot["state"] = self.state
        return snapshot

    def get_local_working_directory(self) -> str:
        """The directory in which it runs, on the machine of its pilot.

        Raises
        ------
        StateError
            If no pilot was chosen yet.
        """
        pilot = self._pilot or self._session.snapshot(self.id)["pilot"]
        if pilot is None:
            raise StateError(f"{self.id} is {self.state} and has no directory before a pilot is chosen; wait() for it")
        base = self._session.call("pilot_directory", pilot=pilot)
        return str(Path(base) / self._directory)

    def _pending(self) -> str:
        self._session.settle((self.id,))
        reasons = self._session.call("why_waiting", ids=[self.id])
        return f"{self.id} ({self.name}) is {self.state}" + (f": {reasons[self.id]}" if self.id in reasons else "")

    def cancel(self) -> None:
        """End it: a program gets SIGTERM, and SIGKILL after the grace period.

        A Python function cannot be interrupted: the unit is Canceled at once, and its slot is free when the function
        returns.
        """
        self._session.settle((self.id,))
        if not self.state.is_final:
            self._session.call("cancel_units", ids=[self.id])
            self._session.wait_until(self._is_settled, None, self._pending)


class Submission:
    """Turns descriptions into tasks and handles, for one service or pilot, and submits them together.

    Parameters
    ----------
    session : Session
    pool : str
        Id of the service whose pilots may run the units.
    pilot : str, optional
        Id of the only pilot that may.
    check : callable
        Raises if no pilot could ever run a request.
    """

    def __init__(self, session: Session, pool: str, pilot: str | None, check: Callable[[Request, str], None]) -> None:
        self.session = session
        self.pool = pool
        self.pilot = pilot
        self.check = check
        self._functions: dict[int, bytes] = {}

    def submit(
        self, descriptions: Iterable[Mapping[str, Any]], take: Callable[[list[ComputeUnit]], None]
    ) -> list[ComputeUnit]:
        """Submit units. If one description is refused, none of them is submitted.

        `take` is called with the handles before any event of theirs is told.
        """
        specs: list[ComputeUnitSpec] = [ComputeUnitDescription.of(d).validate() for d in descriptions]
        prepared = [self._prepare(spec) for spec in specs]
        units = []
        for spec, (task, key, _) in zip(specs, prepared, strict=True):
            unit = ComputeUnit._new(self.session, task, key, spec.name or task.request.kind, {})
            self._outputs(spec, task, unit)
            units.append(unit)
        with self.session.changed:  # the event loop waits until all is done, not this thread for the event loop
            self.session.submit(
                (task, key, references, unit._give)
                for (task, key, references), unit in zip(prepared, units, strict=True)
            )
            take(units)
        return units

    def _prepare(self, spec: ComputeUnitSpec) -> tuple[UnitTask, str, tuple[Reference, ...]]:
        staged = tuple(dict.fromkeys(self._data_unit(item, "input_data") for item in spec.input_data))
        work: Program | Call
        references: tuple[Reference, ...] = ()
        if isinstance(spec.executable, str):
            kind = spec.name or PurePath(spec.executable).name
            work = Program(
                spec.executable,
                spec.arguments,
                dict(spec.environment),
                spec.stdin,
                spec.stdout,
                spec.stderr,
                spec.slots if spec.spmd_variation == "mpi" else 0,
            )
            inputs = staged
        else:
            function = spec.executable
            kind = spec.name or str(getattr(function, "__name__", type(function).__name__))
            pickled = self._functions.get(id(function))
            try:
                if pickled is None:
                    pickled = self._functions[id(function)] = dump_function(function)
                arguments, found = dump_arguments(spec.args, spec.kwargs, self._refer)
            except (DescriptionError, InputError):
                raise
            except Exception as error:
                raise DescriptionError(
                    f"{kind} or its arguments cannot be pickled: {error}; pass only what another process can receive",
                    field="executable",
                    value=function,
                ) from error
            work = Call(pickled, arguments)
            inputs = tuple(dict.fromkeys([*staged, *(r.id for r in found if r.kind == "data")]))
            references = tuple(r for r in found if r.kind == "result")
        request = Request(
            self.pool,
            kind,
            spec.slots,
            Site(spec.datacenter, spec.machine),
            spec.affinity == "require",
            self.pilot,
            inputs,
            spec.memory_nbytes or 0,
            spec.gpus,
            spec.walltime_s,
        )
        self.check(request, spec.name or kind)
        id_ = new_id("cu")
        task = UnitTask(
            id_,
            work,
            request,
            time.time(),
            spec.priority,
            spec.retries,
            (),
            staged,
            tuple((_absolute(transfer.source), transfer.target) for transfer in spec.file_transfer),
            spec.walltime_s,
            spec.working_directory,
            spec.input_mode == "copy",
            spec.empty_output == "error",
        )
        for output in spec.output_data:
            if isinstance(output.target, Handle) or "://" in str(output.target):
                du = self._data_unit(output.target, "output_data")
                if du in inputs:
                    raise DescriptionError(
                        f'output_data: the unit reads and writes {du}; write to a new data unit: {{"name": [globs]}}',
                        field="output_data",
                        value=du,
                    )
        # Dask names a group of tasks by what stands before the hexadecimal digits.
        return task, f"{re.sub(r'[^A-Za-z0-9_.]+', '_', kind)}-{id_[3:]}", references

    def _outputs(self, spec: ComputeUnitSpec, task: UnitTask, unit: ComputeUnit) -> None:
        """Make the data units that are named, and note all that are written."""
        outputs: dict[str, list[str]] = {}
        for output in spec.output_data:
            if isinstance(output.target, Handle) or "://" in str(output.target):
                du = self._data_unit(output.target, "output_data")
                target = output.target if isinstance(output.target, DataUnit) else Handle._find(self.session, du)
            else:
                target = unit.output_data.get(output.target) or DataUnit._output(
                    self.session, self.pool, output.target, {}
                )
            unit.output_data[target.name or target.id] = target
            outputs.setdefault(target.id, []).extend(output.globs)
        task.outputs = tuple((du, tuple(globs)) for du, globs in outputs.items())

    def _data_unit(self, item: Any, field: str) -> str:
        if isinstance(item, str):
            place = ObjectURL.parse(item, kind="du")
            scheduler, du = place.scheduler, place.id
        else:
            scheduler, du = item._session.address, item.id
        if scheduler != self.session.address:
            raise DescriptionError(
                f"{field}: {du} belongs to the scheduler {scheduler}, the unit to {self.session.address}; "
                "export() it, and submit its files here",
                field=field,
                value=item,
            )
        return str(du)

    def _refer(self, obj: Any) -> Reference | None:
        if isinstance(obj, DataUnit):
            return Reference("data", self._data_unit(obj, "args"))
        if isinstance(obj, ComputeUnit):
            if obj.state is State.Canceled:
                raise InputError(f"{obj.id} was canceled and has no result to pass; submit it anew", unit=obj.id)
            return Reference("result", obj._key)
        if isinstance(obj, Handle):
            raise DescriptionError(
                f"args: a {type(obj).__name__} cannot be an argument; give its URL, get_url()", field="args", value=obj
            )
        key = future_key(obj)
        return None if key is None else Reference("result", key)


def _absolute(source: str) -> str:
    """A path of this process, so that it means the same in every other one; a URL is left as it is."""
    return source if "://" in source else str(Path(source).absolute())
