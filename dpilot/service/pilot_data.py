"""Pilot data: labelled stores, and the service that makes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpilot.data import Registered, Store
from dpilot.descriptions import PilotDataDescription, StoreSpec, check_coordination_url
from dpilot.errors import ManifestError, UnknownObjectError
from dpilot.placement import Site
from dpilot.runtime.jobs import open_store
from dpilot.runtime.session import Session
from dpilot.service.data_unit import DataUnit
from dpilot.service.handle import Handle, counted, expect_handle
from dpilot.states import SERVICE, State
from dpilot.urls import new_id

__all__ = ["PilotData", "PilotDataService"]

logger = logging.getLogger(__name__)


class PilotData(Handle):
    """A store that holds data units.

    Parameters
    ----------
    pd_url : str
        URL of one to reconnect to; new ones are made by :meth:`PilotDataService.create_pilot`.
    """

    kind = "pd"
    table = SERVICE

    def __init__(self, pd_url: str) -> None:
        self._reconnect(pd_url)

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self._store: Store = snapshot["store"]

    @classmethod
    def _create(cls, session: Session, owner: str, spec: StoreSpec) -> PilotData:
        options = dict(spec.storage_options)
        if spec.userkey is not None:
            options.setdefault("client_keys", [spec.userkey])
        store = Store(
            spec.url, options, datacenter=spec.datacenter, machine=spec.machine, nbytes_limit=spec.size_nbytes
        )
        # A directory of a machine is opened there, if we have a worker on it.
        is_elsewhere = store.machine is not None and store.root.local is not None
        opened = session.call("open_store", store=store) if is_elsewhere else None
        store, used = opened or open_store(store)
        pilot = cls.__new__(cls)
        pilot._store = store
        pilot._begin(session, new_id("pd"))
        pilot._register("add_store", State.Running, owner=owner, store=store, used_nbytes=used)
        return pilot

    def _told(self) -> Iterator[str]:
        yield self.service_url
        site = Site(self._store.datacenter, self._store.machine)
        if any(site):
            yield f"at {site}"
        yield from super()._told()

    @property
    def is_registered(self) -> bool:
        """Whether it is no store, but stands for files that were registered where they lie."""
        return isinstance(self._store, Registered)

    @property
    def service_url(self) -> str:
        """URL of the store, without credentials."""
        return self._store.url

    def get_details(self) -> dict[str, Any]:
        """What is known of it: its store's URL, labels, size and data units."""
        snapshot = self._session.snapshot(self.id)
        store: Store = snapshot.pop("store")
        return {
            **snapshot,
            "service_url": store.url,
            "affinity_datacenter_label": store.datacenter,
            "affinity_machine_label": store.machine,
        }

    def submit_data_unit(
        self, data_unit_description: Mapping[str, Any] | None = None, data_unit: DataUnit | None = None
    ) -> DataUnit:
        """Put a new data unit here; or, with `data_unit`, a replica of one that there is.

        Returns
        -------
        DataUnit
            At once: its files move meanwhile; ``wait()`` for it.

        Raises
        ------
        DescriptionError, DataError
            Before anything moves.
        """
        if data_unit is not None:
            self.put_du(data_unit)
            return data_unit
        return DataUnit._submit(self._session, self.id, [data_unit_description or {}], [self.id])[0]

    def create_du(self, data_unit_description: Mapping[str, Any] | None = None) -> DataUnit:
        """A new data unit here; an empty one where there is no description."""
        return self.submit_data_unit(data_unit_description or {})

    def put_du(self, du: DataUnit) -> None:
        """Make a replica of a data unit here, and wait for it."""
        expect_handle(du, DataUnit, "data unit")
        du._copy_to(self)
        du._wait_for(lambda: self.id in du._on)

    def copy_du(self, du: DataUnit, pd: PilotData) -> None:
        """Copy a data unit that is here to another store, and wait for it."""
        expect_handle(pd, PilotData, "pilot data").put_du(du)

    def remove_du(self, du: DataUnit, force: bool = False) -> None:
        """Delete this store's replica of a data unit; the last replica only with `force`.

        See :meth:`DataUnit.remove_pilot_data`.
        """
        expect_handle(du, DataUnit, "data unit").remove_pilot_data(self, force)

    def list_data_units(self) -> list[DataUnit]:
        """The data units that have a replica here, those included that earlier sessions have left."""
        known = self._session.snapshot(self.id)["units"]
        store = self._reached()
        found = self._take_in(store, sorted(set(store.list_units()).difference(known)))
        return [Handle._find(self._session, du) for du in (*known, *found)]

    def _reached(self) -> Store:
        return self._session.reach(self._session.call("place", pd=self.id))

    def _take_in(self, store: Store, ids: Iterable[str]) -> list[str]:
        """Make data units known to the scheduler that were found in the store."""
        manifests = []
        for du in ids:
            try:
                manifest = store.find_manifest(du)
            except ManifestError as error:
                logger.warning("%s is left alone: %s", du, error)
                continue
            if manifest is not None:
                manifests.append(manifest)
        if not manifests:
            return []
        adopted: list[str] = self._session.call(
            "adopt", pd=self.id, manifests=manifests, client=self._session.client.id
        )
        return adopted

    def get_du(self, du_url: str) -> DataUnit:
        """The data unit with that id or URL, if it has a replica here."""
        wanted = du_url.rpartition("/")[2]
        if wanted not in self._session.snapshot(self.id)["units"] and not self._take_in(self._reached(), [wanted]):
            raise UnknownObjectError(f"{wanted} has no replica on {self.id}; list_data_units() tells what is here")
        found: DataUnit = Handle._find(self._session, wanted)
        return found

    def export_du(self, du: DataUnit, target: str | Path) -> Path:
        """Copy a data unit's files to a directory of this machine."""
        return du.export(target)

    def url_for_du(self, du: DataUnit) -> str:
        """Where the files of a data unit are in this store."""
        return self._store.url_for(du.id)

    def wait(self, timeout: float | None = None) -> State:
        """Wait until the data units here that are on their way have arrived, or failed."""
        wait_for_stores(self._session, [self], timeout)
        return self.state

    def cancel(self) -> None:
        """Use the store no more. Its files stay where they are."""
        self._end("end_store")


def wait_for_stores(session: Session, stores: Iterable[PilotData], timeout: float | None) -> None:
    """Wait until nothing is on its way to any of the stores."""
    ids = {store.id for store in stores}
    members = {du for id in ids for du in session.call("members", id=id)["data"]}
    units: list[DataUnit] = [Handle._find(session, du) for du in sorted(members)]

    def coming() -> list[DataUnit]:
        return [unit for unit in units if not ids.isdisjoint(unit._coming)]

    session.wait_until(lambda: not coming(), timeout, lambda: "; ".join(unit._pending() for unit in coming()[:5]))


class PilotDataService(Handle):
    """Factory of pilot data.

    Parameters
    ----------
    coordination_url : str, optional
        Contact address of a Dask scheduler; none given: the embedded one.
    pds_url : str, optional
        URL of a service to reconnect to.
    """

    kind = "pds"
    table = SERVICE

    def __init__(self, coordination_url: str | None = None, pds_url: str | None = None) -> None:
        self._pilots: dict[str, PilotData] = {}
        if pds_url is not None:
            self._reconnect(pds_url)
            return
        session = Session.join(check_coordination_url(coordination_url))
        self._begin(session, new_id("pds"))
        self._register("add_service", State.Running)

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self._pilots = {
            id: Handle._find(self._session, id) for id in self._session.call("members", id=self.id)["stores"]
        }

    def create_pilot(self, pilot_data_description: Mapping[str, Any]) -> PilotData:
        """Open a store, or make it where it is not there.

        Parameters
        ----------
        pilot_data_description : mapping
            See :class:`PilotDataDescription`.

        Raises
        ------
        DescriptionError
            If the description is malformed.
        StoreError
            If the store cannot be reached or written to.
        """
        spec: StoreSpec = PilotDataDescription.of(pilot_data_description).validate()
        pilot = PilotData._create(self._session, self.id, spec)
        self._pilots[pilot.id] = pilot
        return pilot

    def get_pilot(self, id: str) -> PilotData:
        """The pilot data of that id."""
        try:
            return self._pilots[id]
        except KeyError:
            known = ", ".join(self._pilots) or "none"
            raise UnknownObjectError(f"{id!r} is no pilot of {self.id}; its pilots: {known}") from None

    def _told(self) -> Iterator[str]:
        yield counted(Counter(pilot.state for pilot in self.list_pilots()), "store")

    def list_pilots(self) -> list[PilotData]:
        """The pilot data of this service."""
        return list(self._pilots.values())

    def wait(self, timeout: float | None = None) -> State:
        """Wait until the data units that are on their way to its stores have arrived, or failed."""
        wait_for_stores(self._session, self.list_pilots(), timeout)
        return self.state

    def cancel(self) -> None:
        """Use its stores no more. Their files stay where they are."""
        for pilot in self.list_pilots():
            pilot.cancel()
        self._end("end_service")
