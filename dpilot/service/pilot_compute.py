"""Pilot computes: pools of workers, and the service that starts them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dpilot import config
from dpilot.data import fetch
from dpilot.descriptions import PilotComputeDescription, PilotSpec, check_coordination_url
from dpilot.errors import PilotError, PlacementError, StateError
from dpilot.pilots.launcher import Launcher, LaunchRequest, RunningPilot, launcher_for
from dpilot.placement import PilotView, Request, Site, feasible
from dpilot.runtime.session import Session
from dpilot.service.compute_unit import ComputeUnit, Submission
from dpilot.service.handle import Handle, counted
from dpilot.states import PILOT, SERVICE, State
from dpilot.urls import new_id

__all__ = ["PilotCompute", "PilotComputeService"]

#: What every worker has imported before it is forked: so that the first unit need not wait for it.
_PRELOAD = ("dpilot.runtime.worker",)


class PilotCompute(Handle):
    """A pool of Dask workers.

    Parameters
    ----------
    pilot_url : str
        URL of one to reconnect to; new ones are made by :meth:`PilotComputeService.create_pilot`.
    """

    kind = "pc"
    table = PILOT

    def __init__(self, pilot_url: str) -> None:
        self._reconnect(pilot_url)

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self._owner: str = snapshot["owner"]
        self._process: RunningPilot | None = None
        self._units: dict[str, ComputeUnit] = {}
        self.slots: int = snapshot["slots"]
        self.site = Site(snapshot["datacenter"], snapshot["machine"])
        self._capacity = _capacity(snapshot["id"], snapshot)

    @classmethod
    def _create(cls, session: Session, owner: str, spec: PilotSpec, launcher: Launcher) -> PilotCompute:
        pilot = cls.__new__(cls)
        pilot._start(session, owner, spec, launcher)
        return pilot

    def _start(self, session: Session, owner: str, spec: PilotSpec, launcher: Launcher) -> None:
        self._owner = owner
        self._process = None
        self._units = {}
        self.slots = spec.slots
        self.site = Site(spec.datacenter, spec.machine)
        self._begin(session, new_id("pc"))
        directory = str(Path(spec.working_directory or "dpilot-work").absolute())
        threads = spec.threads_per_worker or int(config.get("pilot.threads-per-worker"))
        details = {
            "service_url": spec.service_url,
            "slots": spec.slots,
            "threads_per_worker": threads,
            "working_directory": directory,
            "datacenter": spec.datacenter,
            "machine": spec.machine,
            "walltime_s": spec.walltime_s,
            "memory_per_worker_nbytes": spec.memory_per_worker_nbytes,
            "gpus_per_worker": spec.gpus_per_worker,
        }
        self._capacity = _capacity(self.id, details)
        self._register("add_pilot", State.Pending, owner=owner, details=details)
        labels = (("datacenter", spec.datacenter), ("machine", spec.machine))
        request = LaunchRequest(
            pilot=self.id,
            scheduler=session.address,
            slots=spec.slots,
            working_directory=directory,
            threads_per_worker=threads,
            memory_nbytes=spec.memory_per_worker_nbytes,
            gpus_per_worker=spec.gpus_per_worker,
            environment=spec.environment,
            options=spec.launcher_options,
            tags=(f"pilot:{self.id}", *(f"{what}:{label}" for what, label in labels if label)),
            preload=_PRELOAD,
            start_timeout_s=config.seconds("pilot.start-timeout"),
            grace_s=config.seconds("unit.grace-period"),
        )
        try:
            for transfer in spec.file_transfer:
                fetch(transfer.source, Path(directory) / transfer.target)
            self._process = launcher.submit(request)
        except Exception as error:
            session.call("pilot_ended", id=self.id, code=1, log=str(error))
            raise
        self._process.on_exit(partial(self._exited, self.id))

    def _exited(self, id: str, code: int, log: str) -> None:
        """The process that holds the pilot has ended (called in a thread)."""
        if not self._session.is_lost:
            try:
                self._session.call("pilot_ended", id=id, code=code, log=log)
            except PilotError:
                if not self._session.is_lost:
                    raise

    def _apply(self, state: str | None, timestamp: float, details: dict[str, Any]) -> None:
        super()._apply(state, timestamp, details)
        if details.get("closed") and self._process is not None:  # it was canceled from elsewhere
            self._process.cancel()

    # ---------------------------------------------------------------- what users see

    def submit_compute_unit(self, compute_unit_description: Mapping[str, Any]) -> ComputeUnit:
        """Submit a unit that only this pilot may run; see :meth:`ComputeDataService.submit_compute_unit`."""
        return self.submit_compute_unit_batch([compute_unit_description])[0]

    def submit_compute_unit_batch(self, descriptions: Iterable[Mapping[str, Any]]) -> list[ComputeUnit]:
        """Submit several units that only this pilot may run."""
        if self.state.is_final:
            raise StateError(f"{self.id} is {self.state} and takes no units; create another pilot")
        return Submission(self._session, self._owner, self.id, self._check).submit(descriptions, self._take)

    def _take(self, units: Iterable[ComputeUnit]) -> None:
        self._units.update((unit.id, unit) for unit in units)

    def _check(self, request: Request, name: str) -> None:
        check_feasible(request, name, [self])

    def _told(self) -> Iterator[str]:
        if any(self.site):
            yield f"at {self.site}"
        yield f"{self.slots:,} slot{'' if self.slots == 1 else 's'}"
        yield from super()._told()

    def list_compute_units(self) -> list[ComputeUnit]:
        """The units that were submitted to this pilot directly."""
        for id in self._session.call("members", id=self.id)["units"]:
            if id not in self._units:
                self._units[id] = Handle._find(self._session, id)
        return list(self._units.values())

    def get_free_nodes(self) -> int:
        """How many of its slots no unit holds."""
        return int(self._session.call("free_slots", id=self.id))

    def exception(self) -> BaseException | None:
        """Why it failed; None if it did not."""
        return self._error

    def wall_time_left(self) -> float | None:
        """Seconds until its walltime ends; None without one. Before it runs, all of it."""
        walltime_s: float | None = self.get_details()["walltime_s"]
        if walltime_s is None:
            return None
        started = next((t for state, t in self.history if state is State.Running), None)
        if self.state.is_final:
            return 0.0
        return walltime_s if started is None else max(0.0, walltime_s - (time.time() - started))

    def wait(self, timeout: float | None = None) -> State:
        """Wait until every unit that was submitted to it has ended, or it has.

        Raises
        ------
        PilotTimeoutError
        """
        self._session.wait_until(self._over(), timeout, self._pending)
        return self.state

    def _over(self) -> Callable[[], bool]:
        """What tells whether a wait for it, that begins now, is over."""
        units = self.list_compute_units()
        return lambda: self.state.is_final or (bool(units) and all(unit.state.is_final for unit in units))

    def _pending(self) -> str:
        left = [unit._pending() for unit in self._units.values() if not unit.state.is_final][:5]
        return f"{self.id} is {self.state}" + (f"; {'; '.join(left)}" if left else "")

    def wait_running(self, timeout: float | None = None) -> State:
        """Wait until its first worker has joined.

        Raises
        ------
        PilotLaunchError
            If it failed.
        PilotTimeoutError
        """
        self._session.wait_until(
            lambda: self.state is State.Running or self.state.is_final, timeout, lambda: f"{self.id} is {self.state}"
        )
        if self.state is State.Failed and self._error is not None:
            raise self._error
        return self.state

    def cancel(self) -> None:
        """End it. Units that have not ended go to other pilots, unless they were submitted to this one."""
        try:
            self._end("cancel_pilot")
        finally:
            if self._process is not None:
                self._process.cancel()
                self._process.wait(config.seconds("unit.grace-period") + 10)

    def reinitialize(self, description: Mapping[str, Any]) -> None:
        """End this pilot and start another one, as described; the handle, with a new id, is then that one's."""
        spec: PilotSpec = PilotComputeDescription.of(description).validate()
        launcher = launcher_for(spec.service_url)
        self.cancel()
        self._session.unfollow(self)
        self._start(self._session, self._owner, spec, launcher)


def check_feasible(request: Request, name: str, pilots: list[PilotCompute]) -> PilotCompute | None:
    """Refuse a request that none of the pilots could ever run. Without any pilot, one may still come.

    Returns
    -------
    PilotCompute or None
        The first pilot that can run it.

    Raises
    ------
    PlacementError
    """
    there = [pilot for pilot in pilots if not pilot.state.is_final]
    if not there:
        return None
    reasons = []
    for pilot in there:
        reason = feasible(request, pilot._capacity)
        if reason is None:
            return pilot
        reasons.append(f"{pilot.id}: {reason}")
    asks = [f"number_of_processes {request.slots}"]
    if request.memory_nbytes:
        asks.append(f"memory {request.memory_nbytes:,}")
    if request.gpus:
        asks.append(f"gpus {request.gpus}")
    if request.walltime_s is not None:
        asks.append(f"walltime {request.walltime_s / 60:g}")
    if request.require:
        asks.append(f"the labels {request.site} required")
    raise PlacementError(
        f"no pilot can run {name!r}, which asks for {', '.join(asks)} ({'; '.join(reasons[:5])}); ask for less, or "
        "create a pilot that can run it first",
        field="number_of_processes",
        value=request.slots,
    )


def _capacity(id: str, details: Mapping[str, Any]) -> PilotView:
    """What a pilot can run at most, by its description."""
    site, slots = Site(details["datacenter"], details["machine"]), details["slots"]
    memory_nbytes, gpus = details["memory_per_worker_nbytes"], details["gpus_per_worker"]
    return PilotView(id, site, slots, slots, 0.0, memory_nbytes, gpus, details["walltime_s"])


class PilotComputeService(Handle):
    """Factory of pilots.

    Parameters
    ----------
    coordination_url : str, optional
        Contact address of a Dask scheduler to join, such as ``tcp://host:8786``; none given: the embedded one, which
        the services of a process share.
    pcs_url : str, optional
        URL of a service to reconnect to.
    """

    kind = "pcs"
    table = SERVICE

    def __init__(self, coordination_url: str | None = None, pcs_url: str | None = None) -> None:
        self._pilots: dict[str, PilotCompute] = {}
        if pcs_url is not None:
            self._reconnect(pcs_url)
            return
        session = Session.join(check_coordination_url(coordination_url))
        self._begin(session, new_id("pcs"))
        self._register("add_service", State.Running)
        session.at_end(self.cancel)

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self._pilots = {
            id: Handle._find(self._session, id) for id in self._session.call("members", id=self.id)["pilots"]
        }

    @property
    def client(self) -> Any:
        """The Dask client of this process at the scheduler, for Dask's own collections and futures."""
        return self._session.client

    @property
    def coordination_url(self) -> str:
        """Contact address of the scheduler."""
        return self._session.address

    @property
    def dashboard_url(self) -> str | None:
        """URL of the Dask dashboard, or None where it is not served."""
        return self._session.dashboard_url

    def create_pilot(self, pilot_compute_description: Mapping[str, Any]) -> PilotCompute:
        """Start a pilot.

        Parameters
        ----------
        pilot_compute_description : mapping
            See :class:`PilotComputeDescription`.

        Returns
        -------
        PilotCompute
            At once; it is Running when its first worker has joined. Units may be submitted before.

        Raises
        ------
        DescriptionError
            If the description is malformed; nothing was started.
        PilotLaunchError
            If it cannot be started.
        """
        spec: PilotSpec = PilotComputeDescription.of(pilot_compute_description).validate()
        pilot = PilotCompute._create(self._session, self.id, spec, launcher_for(spec.service_url))
        self._pilots[pilot.id] = pilot
        return pilot

    def _told(self) -> Iterator[str]:
        yield counted(Counter(pilot.state for pilot in self.list_pilots()), "pilot")

    def list_pilots(self) -> list[PilotCompute]:
        """The pilots of this service."""
        return list(self._pilots.values())

    def wait_running(self, timeout: float | None = None) -> State:
        """Wait until the first worker of each of its pilots has joined; see :meth:`PilotCompute.wait_running`.

        Units that are submitted before may all go to the pilot that starts first.
        """
        for pilot in self.list_pilots():
            pilot.wait_running(timeout)
        return self.state

    def wait(self, timeout: float | None = None) -> State:
        """Wait until the units that were submitted to its pilots have ended, or the pilots have.

        Raises
        ------
        PilotTimeoutError
        """
        overs = {pilot: pilot._over() for pilot in self.list_pilots()}
        self._session.wait_until(
            lambda: all(over() for over in overs.values()),
            timeout,
            lambda: "; ".join(pilot._pending() for pilot, over in overs.items() if not over()),
        )
        return self.state

    def cancel(self) -> None:
        """End its pilots, and with them all processes that they started."""
        for pilot in self.list_pilots():
            pilot.cancel()
        self._end("end_service")
