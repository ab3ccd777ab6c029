"""A data unit: a named set of files with replicas on pilot data."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dpilot import config
from dpilot.data import Manifest, Source, Store, copy_unit, download, expand_sources, upload
from dpilot.descriptions import DataUnitDescription, DataUnitSpec
from dpilot.errors import DataError, DescriptionError, PilotError, StateError
from dpilot.runtime.session import Session
from dpilot.service.handle import Handle, expect_handle
from dpilot.states import DATA_UNIT, State
from dpilot.urls import new_id

__all__ = ["DataUnit"]


class DataUnit(Handle):
    """A set of files with a manifest and one or more replicas. It is Running once it has a replica.

    Parameters
    ----------
    du_url : str, optional
        URL of a data unit to reconnect to; or
    pilot_data : PilotData
        The store that is to hold a new one, and
    data_unit_description : mapping
        What is in it, see :class:`DataUnitDescription`.
    """

    kind = "du"
    table = DATA_UNIT

    def __init__(
        self,
        du_url: str | None = None,
        *,
        pilot_data: Handle | None = None,
        data_unit_description: Mapping[str, Any] | None = None,
    ) -> None:
        if du_url is not None:
            self._reconnect(du_url)
        elif pilot_data is None or pilot_data.kind != "pd":
            raise DescriptionError(
                "a DataUnit is made from du_url=, or from pilot_data= and data_unit_description=; "
                "give one of the two, or use submit_data_unit()",
                field="du_url",
            )
        else:
            self._submit(pilot_data._session, pilot_data.id, data_unit_description or {}, [pilot_data.id])

    # ---------------------------------------------------------------- making

    def _begin(self, session: Session, id: str, timestamp: float | None = None) -> None:
        self._canceled = threading.Event()
        self._on: list[str] = []  # ids of the stores that have it,
        self._coming: list[str] = []  # and of those to which it is on its way
        super()._begin(session, id, timestamp)

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self.name = snapshot["description"].get("name")
        self._on, self._coming = snapshot["replicas"], snapshot["coming"]

    @classmethod
    def _submitted(
        cls, session: Session, owner: str, description: Mapping[str, Any], stores: list[str] | None = None
    ) -> DataUnit:
        unit = cls.__new__(cls)
        unit._submit(session, owner, description, stores)
        return unit

    @classmethod
    def _output(cls, session: Session, owner: str, name: str, labels: Mapping[str, Any]) -> DataUnit:
        """A new data unit that a compute unit will write; its store is chosen when that one ends."""
        unit = cls.__new__(cls)
        unit.name = name
        unit._begin(session, new_id("du"))
        description = {"name": name, "replicas": 1, "datacenter": None, "machine": None, **labels}
        unit._register("add_data", State.Pending, owner=owner, description=description, nbytes=0, stores=[])
        return unit

    def _submit(self, session: Session, owner: str, description: Mapping[str, Any], stores: list[str] | None) -> None:
        spec: DataUnitSpec = DataUnitDescription.of(description).validate()
        if spec.register:
            raise DescriptionError(
                "register True: files are registered in place in a later release; leave it out to have them copied",
                field="register",
                value=True,
            )
        sources = expand_sources([*spec.file_urls, *spec.file_url_patterns])
        self.name = spec.name
        self._begin(session, new_id("du"))
        details = {
            "name": spec.name,
            "replicas": spec.replicas,
            "datacenter": spec.datacenter,
            "machine": spec.machine,
        }
        nbytes = sum(source.nbytes or 0 for source in sources.values())
        chosen = self._register(
            "add_data", State.Pending, owner=owner, description=details, nbytes=nbytes, stores=stores
        )
        if chosen:
            self._coming = chosen
            session.transfers.submit(self._upload, sources, chosen)
        elif sources:
            self._session.call("remove_replica", id=self.id, pd="")
            raise DataError(
                f"there is no store to put {len(sources)} files on; create a pilot with a PilotDataService and add "
                "that to the ComputeDataService first"
            )

    def _upload(self, sources: Mapping[str, Source], stores: list[str]) -> None:
        """Copy the sources to the stores (in a thread)."""
        for pd in stores:
            try:
                if sources:
                    self._session.call("staging", id=self.id)
                store: Store = self._session.snapshot(pd)["store"]
                manifest = upload(
                    sources, store, self.id, max_transfers=int(config.get("data.transfers")), on_bytes=self._check
                )
                self._session.call("add_replica", id=self.id, pd=pd, manifest=manifest)
            except Exception as error:
                self._replica_failed(pd, error)

    def _replica_failed(self, pd: str, error: Exception) -> None:
        known = isinstance(error, PilotError)
        failure = error if known else DataError(f"{self.id} could not be put on {pd}: {error!r}")
        if not self._session.is_lost:
            self._session.call("replica_failed", id=self.id, pd=pd, error=failure)

    def _check(self, _nbytes: int) -> None:
        if self._canceled.is_set() or self._session.is_closing:
            raise StateError(f"{self.id} was canceled")

    def _copy_to(self, pilot_data: Handle) -> None:
        """Have a replica made on another store, in a thread."""
        with self._session.changed:
            if not self._life.state.is_final:
                self._error = None  # of an earlier attempt
        transfer = self._session.call("begin_replica", id=self.id, pd=pilot_data.id)
        if transfer is None:
            return
        with self._session.changed:
            self._coming = [*self._coming, pilot_data.id]
        manifest, sources, target = transfer
        self._session.transfers.submit(self._copy, manifest, sources, target, pilot_data.id)

    def _copy(self, manifest: Manifest, sources: list[Store], target: Store, pd: str) -> None:
        failure: Exception | None = None
        for source in sources:
            try:
                copied = copy_unit(source, target, manifest, on_bytes=self._check)
                self._session.call("add_replica", id=self.id, pd=pd, manifest=copied)
                return
            except Exception as error:
                failure = error
        assert failure is not None
        self._replica_failed(pd, failure)

    # ---------------------------------------------------------------- what users see

    def _is_settled(self) -> bool:
        return self._life.state is State.Running or self._life.state.is_final

    def wait(self, timeout: float | None = None) -> State:
        """Wait until it has a replica (Running), or never will (Failed, Canceled); see :meth:`Handle.wait`."""
        return super().wait(timeout)

    def exception(self) -> BaseException | None:
        """Why it failed, or why its last replica could not be made; None if nothing went wrong."""
        return self._error

    def _manifest(self) -> Manifest:
        snapshot = self._session.snapshot(self.id)
        if self._life.state is State.Failed and self._error is not None:
            raise self._error
        manifest: Manifest | None = snapshot["manifest"]
        if manifest is None or not snapshot["replicas"]:
            raise StateError(f"{self.id} is {self._life.state} and has no replica yet; wait() for it first")
        return manifest

    def _replicas(self) -> list[tuple[str, Store]]:
        replicas: list[tuple[str, Store]] = self._session.call("replicas", id=self.id)
        return replicas

    def list(self) -> dict[str, dict[str, Any]]:
        """Its files.

        Returns
        -------
        dict
            ``{name: {"pilot_data": [URLs of the file in the stores], "local": path or None, "nbytes": int}}``;
            ``local`` is set where this process can see the file on its own disk.
        """
        manifest = self._manifest()
        replicas = self._replicas()
        local = next((path for _, store in replicas if (path := store.local_path(self.id)) is not None), None)
        return {
            entry.name: {
                "pilot_data": [store.url_for(self.id, entry.name) for _, store in replicas],
                "local": str(local / entry.name) if local is not None else None,
                "nbytes": entry.nbytes,
            }
            for entry in manifest.files
        }

    def list_files(self) -> list[str]:  # type: ignore[valid-type]
        """Names of its files."""
        return list(self._manifest().names)

    @property
    def nbytes(self) -> int:
        """Size of its files together, in bytes."""
        return self._manifest().nbytes

    def add_files(self, file_urls: Iterable[str]) -> None:
        """Add files, to every replica; returns when they are there.

        Raises
        ------
        DataError
            If a source is not there, or the unit has a file of that name already.
        """
        sources = expand_sources(file_urls)
        self._manifest()
        nbytes = sum(source.nbytes or 0 for source in sources.values())
        done: list[Store] = []
        try:
            for _, store in self._session.call("reserve", id=self.id, nbytes=nbytes):
                manifest = upload(sources, store, self.id, on_bytes=self._check)
                done.append(store)
            self._session.call("changed", id=self.id, manifest=manifest)
        except BaseException:
            for store in done:  # all replicas are the same
                store.remove_files(self.id, sources)
            raise
        finally:
            self._session.call("unreserve", id=self.id)

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files, from every replica.

        Raises
        ------
        DataError
            If there is no file of one of the names.
        """
        names = list(names)
        self._manifest()
        manifest = None
        for _, store in self._replicas():
            manifest = store.remove_files(self.id, names)
        if manifest is not None:
            self._session.call("changed", id=self.id, manifest=manifest)

    def seal(self) -> None:
        """Say that it is complete as it is: units that read it need not wait for files, should it be empty."""
        self._session.call("seal", id=self.id)

    def add_pilot_data(self, pilot_data: Handle) -> None:
        """Replicate it to another store. Returns at once; :meth:`get_pilot_data` tells when the replica is there."""
        expect_handle(pilot_data, Handle._classes["pd"], "pilot_data")
        self._copy_to(pilot_data)

    def list_pilot_data(self) -> list[Any]:  # type: ignore[valid-type]
        """The stores (PilotData) that have a replica of it."""
        return [Handle._find(self._session, pd) for pd, _ in self._replicas()]

    get_pilot_data = list_pilot_data

    def wait_replicas(self, number: int, timeout: float | None = None) -> None:
        """Wait until it has `number` replicas.

        Raises
        ------
        PilotTimeoutError
        DataError
            If a replica could not be made.
        """
        self._wait_for(lambda: len(self._on) >= number, timeout)

    def _wait_for(self, condition: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until its replicas are as wanted, or what is under way cannot make them so."""

        def failed() -> bool:
            return self._life.state.is_final or (self._error is not None and not self._coming)

        self._session.wait_until(lambda: condition() or failed(), timeout, self._pending)
        if not condition():
            raise self._error or DataError(f"{self.id} is {self._life.state} and gets no more replicas")

    def _pending(self) -> str:
        stores = ", ".join(self._coming)
        return super()._pending() + (f" and on its way to {stores}" if stores else f", with {len(self._on)} replicas")

    def _apply(self, state: str | None, timestamp: float, details: dict[str, Any]) -> None:
        self._on = details.get("replicas", self._on)
        self._coming = details.get("coming", self._coming)
        super()._apply(state, timestamp, details)

    def export(self, target: str | Path, names: Iterable[str] | None = None) -> Path:
        """Copy its files to a directory of this machine, verified.

        Parameters
        ----------
        target : str or path
            Made if it is not there. ``file://`` URLs of this machine are taken, too.
        names : iterable of str, optional
            Only these files.

        Returns
        -------
        Path
            The directory.

        Raises
        ------
        DataError
        """
        path = Path(str(target).removeprefix("file://localhost").removeprefix("file://"))
        manifest = self._manifest()
        chosen = None if names is None else list(names)
        failure: PilotError | None = None
        for _, store in self._replicas():
            try:
                download(store, manifest, path, chosen)
                return path
            except PilotError as error:
                failure = error
        raise failure if failure is not None else DataError(f"{self.id} has no replica to export")

    def cancel(self) -> None:
        """Stop its transfers. If it has no replica yet, it is Canceled; replicas that are there stay."""
        self._canceled.set()
        if not self._life.state.is_final and self._life.state is not State.Running:
            self._session.call("remove_replica", id=self.id, pd="")
