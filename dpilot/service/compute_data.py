"""The compute data service: takes compute units and data units, and sees to where they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dpilot.descriptions import check_coordination_url
from dpilot.display import Displayed
from dpilot.errors import PilotError, UnknownObjectError
from dpilot.placement import Request
from dpilot.runtime.session import Session
from dpilot.service.compute_unit import ComputeUnit, Submission
from dpilot.service.data_unit import DataUnit
from dpilot.service.frames import Frames
from dpilot.service.handle import Handle, counted, expect_handle
from dpilot.service.pilot_compute import PilotCompute, PilotComputeService, check_feasible
from dpilot.service.pilot_data import PilotData, PilotDataService
from dpilot.service.progress import show_progress
from dpilot.states import SERVICE, State
from dpilot.urls import ObjectURL, new_id

__all__ = [
    "ComputeDataService",
    "ComputeDataServiceCentral",
    "ComputeDataServiceDecentral",
    "ComputeUnitService",
    "DataUnitService",
]

#: Names of keyword arguments of :meth:`ComputeDataService.submit` that describe the unit, not the call.
_UNIT_KEYS = (
    "input_data",
    "input_mode",
    "output_data",
    "empty_output",
    "affinity_datacenter_label",
    "affinity_machine_label",
    "affinity",
    "number_of_processes",
    "retries",
    "priority",
    "name",
    "walltime",
    "memory",
    "gpus",
)


#: Attributes of the base class.
_BASE = ("_session", "id", "_life", "_error", "_callbacks", "_open")


class ComputeDataService(Frames):
    """Places compute units and data units on the pilots of the services that were added to it.

    Parameters
    ----------
    cds_url : str, optional
        URL of one to reconnect to.
    coordination_url : str, optional
        Contact address of a Dask scheduler; none given: that of the first service that is added, or the
        embedded one.
    """

    kind = "cds"
    table = SERVICE

    def __init__(self, cds_url: str | None = None, *, coordination_url: str | None = None) -> None:
        self._joined: Session | None = None
        self._services: dict[str, Handle] = {}
        self._units: dict[str, ComputeUnit] = {}
        self._data: dict[str, DataUnit] = {}
        self._unfinished: dict[str, Handle] = {}
        self._feasible: dict[tuple[Any, ...], PilotCompute | None] = {}  # what is asked -> who can run it
        if cds_url is not None:
            self._reconnect(cds_url)
        elif coordination_url is not None:
            self._join(Session.join(check_coordination_url(coordination_url)))

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self._joined = self._session
        self._services = {id: Handle._find(self._session, id) for id in snapshot["members"]}
        members = self._session.call("members", id=self.id)
        self._data = {id: Handle._find(self._session, id) for id in members["data"]}
        for id in members["units"]:
            self._take([Handle._find(self._session, id)])

    def _join(self, session: Session) -> None:
        self._begin(session, new_id("cds"))
        self._register("add_service", State.Running)
        self._joined = session

    def __getattr__(self, name: str) -> Any:
        # Which scheduler it belongs to is known when a service is added; whoever asks before gets the embedded one.
        if name in _BASE and self.__dict__.get("_joined") is None:
            self._join(Session.join(None))
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def client(self) -> Any:
        """The Dask client of this process at the scheduler."""
        return self._session.client

    # ---------------------------------------------------------------- services

    def add_pilot_compute_service(self, pilot_compute_service: PilotComputeService) -> None:
        """Let the pilots of a service, those to come included, run this service's units."""
        self._add(expect_handle(pilot_compute_service, PilotComputeService, "pilot compute service"))

    def remove_pilot_compute_service(self, pilot_compute_service: PilotComputeService) -> None:
        """Place no more units on the pilots of a service; those that run there go on."""
        self._remove(pilot_compute_service)

    def add_pilot_data_service(self, pilot_data_service: PilotDataService) -> None:
        """Let the stores of a service, those to come included, hold this service's data units."""
        self._add(expect_handle(pilot_data_service, PilotDataService, "pilot data service"))

    def remove_pilot_data_service(self, pilot_data_service: PilotDataService) -> None:
        """Put no more data units on the stores of a service."""
        self._remove(pilot_data_service)

    def _add(self, service: Handle) -> None:
        if self._joined is None:
            self._join(service._session)
        if service._session is not self._session:
            raise PilotError(
                f"{service.id} belongs to the scheduler {service._session.address}, {self.id} to "
                f"{self._session.address}; give both the same coordination_url"
            )
        self._session.call("set_member", service=self.id, member=service.id, present=True)
        self._services[service.id] = service

    def _remove(self, service: Handle) -> None:
        if service.id not in self._services:
            raise UnknownObjectError(f"{service.id} was not added to {self.id}; its services: {list(self._services)}")
        self._session.call("set_member", service=self.id, member=service.id, present=False)
        del self._services[service.id]
        self._feasible.clear()

    def list_pilot_compute(self) -> list[PilotCompute]:
        """The pilots of its services."""
        return [p for s in self._services.values() if isinstance(s, PilotComputeService) for p in s.list_pilots()]

    def list_pilot_data(self) -> list[PilotData]:
        """The stores of its services."""
        return [p for s in self._services.values() if isinstance(s, PilotDataService) for p in s.list_pilots()]

    # ---------------------------------------------------------------- units

    def submit_compute_unit(self, compute_unit_description: Mapping[str, Any]) -> ComputeUnit:
        """Submit a compute unit.

        Parameters
        ----------
        compute_unit_description : mapping
            See :class:`ComputeUnitDescription`.

        Returns
        -------
        ComputeUnit
            At once.

        Raises
        ------
        DescriptionError
            If the description is malformed.
        PlacementError
            If none of the pilots can ever run it.
        """
        return self.submit_compute_unit_batch([compute_unit_description])[0]

    def submit_compute_unit_batch(self, compute_unit_descriptions: Iterable[Mapping[str, Any]]) -> list[ComputeUnit]:
        """Submit several compute units: faster than one by one. If one is refused, none is submitted."""
        return Submission(self._session, self.id, None, self._check).submit(compute_unit_descriptions, self._take)

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> ComputeUnit:
        """Submit a call of a Python function.

        Parameters
        ----------
        function : callable
        *args, **kwargs
            Its arguments. A data unit among them arrives as a :class:`StagedData`, a compute unit or Dask future
            as its result, also inside lists and other objects. The keyword arguments ``input_data``, ``input_mode``,
            ``output_data``, ``empty_output``, ``affinity_datacenter_label``, ``affinity_machine_label``, ``affinity``,
            ``number_of_processes``, ``memory``, ``gpus``, ``retries``, ``priority``, ``name`` and ``walltime`` are the
            unit's, as in its description.

        Returns
        -------
        ComputeUnit
            ``result()`` waits for what the function returns.
        """
        description: dict[str, Any] = {key: kwargs.pop(key) for key in _UNIT_KEYS if key in kwargs}
        return self.submit_compute_unit({"executable": function, "args": args, "kwargs": kwargs, **description})

    def _check(self, request: Request, name: str) -> None:
        what = (request.slots, request.site, request.require, request.memory_nbytes, request.gpus, request.walltime_s)
        able = self._feasible.get(what)
        if able is None or able.state.is_final:
            self._feasible[what] = check_feasible(request, name, self.list_pilot_compute())

    def _take(self, units: Iterable[ComputeUnit]) -> None:
        """Units are this service's (the session's lock is held)."""
        for unit in units:
            self._units[unit.id] = unit
            if not unit.state.is_final:
                self._unfinished[unit.id] = unit
                unit._open = self._unfinished
            for output in unit.output_data.values():
                self._data.setdefault(output.id, output)

    def submit_data_unit(self, data_unit_description: Mapping[str, Any]) -> DataUnit:
        """Put a data unit on the stores that its labels and number of replicas suggest.

        Parameters
        ----------
        data_unit_description : mapping
            See :class:`DataUnitDescription`.

        Returns
        -------
        DataUnit
            At once: its files move meanwhile; ``wait()`` for it.

        Raises
        ------
        DescriptionError, DataError
            Before anything moves.
        """
        return self.submit_data_unit_batch([data_unit_description])[0]

    def submit_data_unit_batch(self, data_unit_descriptions: Iterable[Mapping[str, Any]]) -> list[DataUnit]:
        """Submit several data units: faster than one by one. If one is refused, none is submitted."""
        units = DataUnit._submit(self._session, self.id, data_unit_descriptions)
        with self._session.changed:
            for unit in units:
                self._data[unit.id] = unit
                # Without a store there is nothing to wait for until a unit writes to it.
                if not unit._is_settled() and unit._coming:
                    self._unfinished[unit.id] = unit
                    unit._open = self._unfinished
        return units

    def list_compute_units(self) -> list[ComputeUnit]:
        """The compute units that were submitted to it."""
        return list(self._units.values())

    def list_data_units(self) -> list[DataUnit]:
        """The data units that were submitted to it, or that its compute units write."""
        return list(self._data.values())

    def get_data_unit(self, du_url: str) -> DataUnit:
        """The data unit with that id or URL."""
        id = ObjectURL.parse(du_url, kind="du").id if "://" in du_url else du_url
        if id not in self._data:
            raise UnknownObjectError(f"{id} is no data unit of {self.id}; list_data_units() tells which there are")
        return self._data[id]

    # ---------------------------------------------------------------- all of it

    def wait(self, timeout: float | None = None, progress: bool = False) -> State:
        """Wait until every data unit is placed and every compute unit has ended, however it ended.

        Parameters
        ----------
        timeout : float, optional
            In seconds.
        progress : bool
            Show bars of units, bytes and transfers meanwhile, as :func:`dpilot.progress` does.

        Raises
        ------
        PilotTimeoutError
            Saying what is pending, and why.
        """
        if progress:
            with self._session.changed:
                pending = list(self._unfinished.values())
            show_progress(self._session, pending, self._data.values(), lambda: not self._unfinished, timeout)
        self._session.wait_until(lambda: not self._unfinished, timeout, self._pending)
        return self.state

    def _pending(self) -> str:
        with self._session.changed:
            left = list(self._unfinished.values())
        some = "; ".join(handle._pending() for handle in left[:5])
        return some + (f"; and {len(left) - 5} more" if len(left) > 5 else "")

    def why_waiting(self) -> dict[str, str]:
        """For each compute unit that is not at a pilot yet: why."""
        self._session.settle()
        reasons: dict[str, str] = self._session.call("why_waiting", ids=list(self._units))
        return reasons

    def transfers(self) -> list[dict[str, Any]]:
        """The transfers of its data units, and of those of its data services: the last 10,000, and those to come.

        Returns
        -------
        list of dict
            ``kind`` (upload, fetch, copy or verify), ``du``, ``source`` and ``target`` (stores' ids), ``mover`` (a
            worker's address, or a client's id), ``nbytes`` in all and ``moved`` so far, ``predicted_s``, the times
            ``submitted``, ``began`` and ``ended`` (seconds since the epoch), and ``error``.
        """
        owners = [self.id, *self._services, *(store.id for store in self.list_pilot_data())]
        rows: list[dict[str, Any]] = self._session.call("transfers", owners=owners)
        return rows

    def _told(self) -> Iterator[str]:
        yield counted(Counter(unit.state for unit in list(self._units.values())), "compute unit")
        yield counted(Counter(unit.state for unit in list(self._data.values())), "data unit")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any] | None:
        drawing = Displayed.drawing
        return None if drawing is None else drawing.live(self)

    def get_details(self) -> dict[str, Any]:
        """How many units are in which state, and the ids of all that belongs to it."""
        counts: dict[str, int] = {}
        for unit in self._units.values():
            counts[str(unit.state)] = counts.get(str(unit.state), 0) + 1
        return {
            **super().get_details(),
            "compute_units": counts,
            "pilot_compute": [pilot.id for pilot in self.list_pilot_compute()],
            "pilot_data": [pilot.id for pilot in self.list_pilot_data()],
            "data_units": list(self._data),
        }

    def cancel(self) -> None:
        """Cancel what has not ended, and let go of the results. Pilots and stores stay: their services end them."""
        if self._joined is None or self.state.is_final or self._session.is_lost:
            return
        self._session.settle()
        for unit in list(self._data.values()):
            if not unit._is_settled():
                unit.cancel()
        self._end("end_service")
        units = list(self._units.values())
        self._session.wait_until(lambda: all(unit.state.is_final for unit in units), None, self._pending, may_lose=True)


#: BigJob had two; here a scheduler is both.
ComputeDataServiceCentral = ComputeDataService
ComputeDataServiceDecentral = ComputeDataService


class ComputeUnitService(ComputeDataService):
    """The compute-only face of a :class:`ComputeDataService`."""

    def add_pilot_data_service(self, pilot_data_service: PilotDataService) -> None:
        """Refused."""
        raise PilotError("a ComputeUnitService has no data units; use a ComputeDataService")


class DataUnitService(ComputeDataService):
    """The data-only face of a :class:`ComputeDataService`."""

    def add_pilot_compute_service(self, pilot_compute_service: PilotComputeService) -> None:
        """Refused."""
        raise PilotError("a DataUnitService runs no compute units; use a ComputeDataService")
