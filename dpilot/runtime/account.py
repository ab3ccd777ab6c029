"""The account of a run: what was there and what happened, as far as the scheduler knows, in plain values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dpilot._version import version
from dpilot.errors import UnknownObjectError
from dpilot.placement import Request, Site
from dpilot.runtime.records import DataRecord, PilotRecord, Record, Times, UnitRecord
from dpilot.runtime.table_calls import TableCalls
from dpilot.states import State

__all__ = ["Account", "AccountCalls", "AheadTold", "DataTold", "PilotTold", "StoreTold", "UnitTold"]

#: How long the scheduler's loop waits for an account at a time.
_SLICE_S = 0.01


class PilotTold(NamedTuple):
    """A pilot; times in seconds since the epoch, None: not yet. It began when its first worker was there.

    ``delay_s`` is how long its units were on their way, there or back.
    """

    id: str
    site: Site
    slots: int
    workers: int
    memory_per_worker_nbytes: int | None
    gpus_per_worker: int
    service_url: str
    walltime_s: float | None
    state: str
    submitted: float
    began: float | None
    ended: float | None
    delay_s: float


class StoreTold(NamedTuple):
    """A store. No credentials are in its URL."""

    id: str
    site: Site
    url: str


class DataTold(NamedTuple):
    """A data unit, with every store that ever had a replica of it, and since when."""

    id: str
    name: str | None
    nbytes: int
    n_files: int
    placed: Mapping[str, float]


class UnitTold(NamedTuple):
    """A compute unit; what it read is told by its last attempt.

    ``program`` is the executable, None of a Python function; ``ready`` when all that it reads, and takes of other
    units, was there; ``bound`` when its last attempt was sent to a worker; ``nbytes`` of input by the distance it came
    from; ``read`` the store that each of its inputs came from, or the pilot whose machine's cache had it; ``brought``
    what was copied to its machine: data unit, store or pilot, bytes, seconds, and when that began.
    """

    id: str
    program: str | None
    request: Request
    state: str
    pilot: str | None
    attempt: int
    priority: float
    takes_results: bool
    times: Times
    ready: float | None
    bound: float | None
    nbytes: tuple[int, int, int]
    read: tuple[str, ...]
    brought: tuple[tuple[str, str, int, float, float], ...]
    outputs: tuple[str, ...]
    error: str | None


class AheadTold(NamedTuple):
    """A data unit that was brought to a machine ahead of units, none of which has read it there yet."""

    du: str
    store: str
    site: Site
    nbytes: int
    seconds: float
    began: float


@dataclass(frozen=True, slots=True)
class Account:
    """The account of a run.

    Parameters
    ----------
    owner : str or None
        The compute data service whose run it is; None: of all on the scheduler.
    address, version : str
        Of the scheduler, and of the dpilot there.
    now : float
        When it was made, in seconds since the epoch.
    pilots, stores, data, units : tuple
        In the order in which they were made.
    transfers : tuple of dict
        Of its data units, as :meth:`dpilot.ComputeDataService.transfers` tells them.
    unread : tuple of AheadTold
        What was brought ahead of its units, so far in vain.
    """

    owner: str | None
    address: str
    version: str
    now: float
    pilots: tuple[PilotTold, ...]
    stores: tuple[StoreTold, ...]
    data: tuple[DataTold, ...]
    units: tuple[UnitTold, ...]
    transfers: tuple[dict[str, Any], ...]
    unread: tuple[AheadTold, ...] = ()


class AccountCalls(TableCalls):
    """What clients may ask of the scheduler plugin when a run is over, or under way."""

    def call_services(self) -> list[str]:
        """The compute data services, in the order in which they were made."""
        return [id for id in self.records.services if id.startswith("cds-")]

    async def call_account(self, owner: str | None) -> Account:
        """The account of a compute data service, or of all that there is."""
        records = self.records
        if owner is not None and owner not in records.services:
            raise UnknownObjectError(f"{owner} is not known to this scheduler; it may belong to another one", id=owner)
        units = [u for u in records.units.values() if owner in (None, u.owner)]
        told: list[UnitTold] = []
        until = time.monotonic() + _SLICE_S
        for unit in units:
            told.append(self._unit_told(unit))
            if time.monotonic() > until:  # the scheduler has other things to do, too
                await asyncio.sleep(0)
                until = time.monotonic() + _SLICE_S
        owners = None if owner is None else {owner, *self._service(owner).members}
        named = {du for unit in told for du in (*unit.request.inputs, *unit.outputs)}
        ran_on = {unit.pilot for unit in told}
        data = [d for d in records.data.values() if d.id in named or _is_of(d, owners)]
        there = {pd for d in data for pd in d.placed} | {pd for unit in told for pd in unit.read}
        ids = {d.id for d in data}
        return Account(
            owner,
            str(self.scheduler.address),
            version,
            time.time(),
            tuple(self._pilot_told(p) for p in records.pilots.values() if p.id in ran_on or _is_of(p, owners)),
            tuple(
                StoreTold(s.id, s.site, s.store.url)
                for s in records.stores.values()
                if s.id in there or _is_of(s, owners)
            ),
            tuple(_data_told(d) for d in data),
            tuple(told),
            tuple(transfer.row() for transfer in self.catalogue.transfers if transfer.du in ids),
            tuple(
                AheadTold(du, had.pd, site, had.nbytes, had.seconds, had.began)
                for (du, site), had in self._brought.items()
                if du in ids
            ),
        )

    def _unit_told(self, unit: UnitRecord) -> UnitTold:
        return UnitTold(
            unit.id,
            unit.program,
            unit.request,
            str(unit.life.state),
            unit.pilot,
            unit.attempt,
            unit.priority,
            unit.takes_results,
            unit.times(),
            unit.ready,
            unit.bound or None,
            unit.nbytes,
            unit.read,
            unit.brought,
            unit.outputs,
            self._error_text(unit),
        )

    def _pilot_told(self, pilot: PilotRecord) -> PilotTold:
        history, details = pilot.life.history, pilot.details
        began = next((at for state, at in history if state is State.Running), None)
        ended = history[-1].timestamp if pilot.life.state.is_final else None
        return PilotTold(
            pilot.id,
            pilot.site,
            pilot.slots,
            max(1, pilot.slots // details["threads_per_worker"]),
            details["memory_per_worker_nbytes"],
            details["gpus_per_worker"],
            details["service_url"],
            pilot.walltime_s,
            str(pilot.life.state),
            history[0].timestamp,
            began,
            ended,
            self._gap_s.get(pilot.id, 0.0) / 2,
        )


def _is_of(record: Record, owners: Iterable[str] | None) -> bool:
    return owners is None or record.owner in owners


def _data_told(data: DataRecord) -> DataTold:
    manifest = data.manifest
    name = data.description.get("name")
    if manifest is None:
        return DataTold(data.id, name, 0, 0, dict(data.placed))
    return DataTold(data.id, name, manifest.nbytes, len(manifest.files), dict(data.placed))
