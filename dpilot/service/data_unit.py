"""A data unit: a named set of files with replicas on pilot data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpilot.data import Manifest, Registered, Source, Store, download, expand_sources
from dpilot.descriptions import DataUnitDescription, DataUnitSpec
from dpilot.errors import DataError, DescriptionError, PilotError, StateError
from dpilot.runtime.jobs import Fetch, terms
from dpilot.runtime.places import Place
from dpilot.runtime.session import Session
from dpilot.service.handle import Handle, expect_handle
from dpilot.service.progress import Progress
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
            session, stores = pilot_data._session, [pilot_data.id]
            self._place(session, pilot_data.id, [(self, _Plan(data_unit_description or {}))], stores)

    # ---------------------------------------------------------------- making

    def _begin(self, session: Session, id: str, timestamp: float | None = None) -> None:
        self._on: list[str] = []  # ids of the stores that have it,
        self._coming: list[str] = []  # and of those to which it is on its way
        self._moving: list[tuple[str, int, int, float | None]] = []  # store, bytes so far, in all, since when
        self._verified: dict[str, list[str]] = {}
        super()._begin(session, id, timestamp)

    def _adopted(self, snapshot: dict[str, Any]) -> None:
        self.name = snapshot["description"].get("name")
        self._on, self._coming = snapshot["replicas"], snapshot["coming"]

    @classmethod
    def _submit(
        cls,
        session: Session,
        owner: str,
        descriptions: Iterable[Mapping[str, Any]],
        stores: list[str] | None = None,
    ) -> list[DataUnit]:
        """New data units, all or none."""
        new = [(cls.__new__(cls), plan) for plan in map(_Plan, descriptions)]
        cls._place(session, owner, new, stores)
        return [unit for unit, _ in new]

    @staticmethod
    def _place(
        session: Session,
        owner: str,
        new: list[tuple[DataUnit, _Plan]],
        stores: list[str] | None,
    ) -> None:
        """Have the scheduler take in new data units, and begin with what this client uploads."""
        for unit, plan in new:
            unit.name = plan.name
            unit._begin(session, new_id("du"))
        requests = [{"id": unit.id, "stores": stores, **plan.request(unit.id)} for unit, plan in new]
        answers = session.call("add_data", owner=owner, client=session.client.id, requests=requests)
        with session.changed:
            for (unit, _), (chosen, _) in zip(new, answers, strict=True):
                if unit._life.state is State.New:  # no event has come yet, which would say more
                    unit._coming = chosen
                    unit._enter_early(State.Pending)
        for (unit, plan), (_, upload) in zip(new, answers, strict=True):
            if upload is not None:
                session.carrier.start(unit._upload, plan.own, upload)

    @classmethod
    def _output(cls, session: Session, owner: str, name: str, labels: Mapping[str, Any]) -> DataUnit:
        """A new data unit that a compute unit will write; its store is chosen when that one ends."""
        unit = cls.__new__(cls)
        unit.name = name
        unit._begin(session, new_id("du"))
        description = {"name": name, "replicas": 1, "datacenter": None, "machine": None, **labels}
        request = {"id": unit.id, "description": description, "is_output": True}
        session.call("add_data", owner=owner, client=session.client.id, requests=[request])
        with session.changed:
            unit._enter_early(State.Pending)
        return unit

    def _upload(self, sources: Mapping[str, Source], upload: tuple[str, Place, int] | None) -> None:
        """Copy this client's own files to a store, or, where that fails, to the next one (in a thread)."""
        while upload is not None:
            transfer, place, room = upload
            good, value, nbytes = self._session.carrier.carry_out(transfer, Fetch(self.id, sources, place, room))
            if self._session.is_lost or self._session.is_closing:
                return
            upload = self._session.call(
                "uploaded",
                id=self.id,
                transfer=transfer,
                good=good,
                value=value,
                nbytes=nbytes,
                client=self._session.client.id,
            )

    def _copy_to(self, pilot_data: Handle) -> None:
        """Have a replica made on another store."""
        with self._session.changed:
            if not self._life.state.is_final:
                self._error = None  # of an earlier attempt
            if pilot_data.id not in self._on:
                self._coming = [*self._coming, pilot_data.id]
        self._session.call("replicate", id=self.id, pd=pilot_data.id)

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
        """The stores that have it, as this process reaches them."""
        replicas: list[tuple[str, Place]] = self._session.call("replicas", id=self.id)
        return [(pd, self._session.reach(place)) for pd, place in replicas]

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

    def add_files(self, file_urls: Iterable[str], storage_options: Mapping[str, Any] | None = None) -> None:
        """Add files, to every replica; returns when they are there.

        Parameters
        ----------
        file_urls : iterable of str
            As in :class:`DataUnitDescription`.
        storage_options : mapping, optional
            What fsspec needs to read them.

        Raises
        ------
        StateError
            If it is sealed.
        DataError
            If a source is not there, or the unit has a file of that name already.
        """
        own, others = _split(expand_sources(file_urls, storage_options))
        self._manifest()
        with self._session.changed:
            self._error = None
        upload = self._session.call(
            "add_files",
            id=self.id,
            client=self._session.client.id,
            n_own=len(own),
            nbytes=_nbytes(own),
            sources=others,
        )
        with self._session.changed:
            self._coming = self._coming or [*self._on[:1]]
        if upload is not None:
            self._upload(own, upload)
        self._session.wait_until(lambda: not self._coming, None, self._pending)
        if self._error is not None:
            raise self._error

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files, from every replica.

        Raises
        ------
        StateError
            If it is sealed.
        DataError
            If there is no file of one of the names.
        """
        names = list(names)
        self._manifest()
        self._session.call("expect_open", id=self.id)
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

    def remove_pilot_data(self, pilot_data: Handle, force: bool = False) -> None:
        """Delete a store's replica.

        Parameters
        ----------
        pilot_data : PilotData
        force : bool
            Whether the last replica may be deleted, too: then the data unit is gone, and Canceled.

        Raises
        ------
        DataError
            If there is no replica, or it is the last one.

        Notes
        -----
        Files that a unit reads at the moment are deleted when it has ended.
        """
        expect_handle(pilot_data, Handle._classes["pd"], "pilot_data")
        place, is_read = self._session.call("remove_replica", id=self.id, pd=pilot_data.id, force=force)
        store = self._session.reach(place)
        if is_read:
            store.remove_manifest(self.id)  # the scheduler has the rest removed
        else:
            store.remove(self.id)
        self._session.wait_until(lambda: pilot_data.id not in self._on, None, self._pending)

    def move(self, source: Handle, target: Handle) -> None:
        """Move the replica on one store to another store; returns when it is there.

        The replica at `source` is deleted only once the other one is complete.
        """
        expect_handle(source, Handle._classes["pd"], "source")
        expect_handle(target, Handle._classes["pd"], "target")
        if source.id not in self._session.snapshot(self.id)["replicas"]:
            raise DataError(f"{self.id} has no replica on {source.id} to move; its stores: {', '.join(self._on)}")
        self._copy_to(target)
        self._wait_for(lambda: target.id in self._on)
        if source.id != target.id:
            self.remove_pilot_data(source)

    def verify(self, repair: bool = True, timeout: float | None = None) -> dict[str, Any]:
        """Read all its replicas through, and compare them with the manifest.

        Parameters
        ----------
        repair : bool
            Whether a replica that is damaged is made anew, from another one.
        timeout : float, optional
            In seconds.

        Returns
        -------
        dict
            For each store's id, what is wrong with its replica: a list of sentences, empty where all is well.
        """
        with self._session.changed:
            self._verified.clear()
        stores: set[str] = set(self._session.call("verify", id=self.id, repair=repair))
        self._session.wait_until(lambda: stores <= self._verified.keys() and not self._coming, timeout, self._pending)
        return {pd: self._verified[pd] for pd in sorted(stores)}

    @property
    def progress(self) -> Progress:
        """How far its transfers are."""
        with self._session.changed:
            return Progress.of(self._moving, time.time())

    def list_pilot_data(self) -> list[Any]:  # type: ignore[valid-type]
        """The stores (PilotData) that have a replica of it. Files that were registered in place lie in none."""
        replicas = self._session.snapshot(self.id)["replicas"]
        found = [Handle._find(self._session, pd) for pd in replicas]
        return [store for store in found if not store.is_registered]

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

    def _told(self) -> Iterator[str]:
        if self.name:
            yield repr(self.name)
        yield f"{len(self._on)} replica{'' if len(self._on) == 1 else 's'}"
        if self._coming:
            share = self.progress
            percent = f": {share.nbytes / share.total_nbytes:.0%}" if share.total_nbytes else ""
            yield f"{len(self._coming)} on the way{percent}"
        yield from super()._told()

    def _pending(self) -> str:
        stores = ", ".join(self._coming)
        return super()._pending() + (f" and on its way to {stores}" if stores else f", with {len(self._on)} replicas")

    def _apply(self, state: str | None, timestamp: float, details: dict[str, Any]) -> None:
        self._on = details.get("replicas", self._on)
        self._coming = details.get("coming", self._coming)
        self._moving = details.get("moving", self._moving)
        self._verified |= {pd: list(problems) for pd, problems in details.get("verified", {}).items()}
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
        # What is on this machine's own disk comes first.
        for _, store in sorted(self._replicas(), key=lambda replica: not replica[1].is_visible()):
            try:
                download(store, manifest, path, chosen, **terms(lambda _: None, threading.Event()))
                return path
            except PilotError as error:
                failure = error
        raise failure if failure is not None else DataError(f"{self.id} has no replica to export")

    def delete(self) -> None:
        """Delete all its replicas; then it is gone, and Canceled. Files that were registered in place stay."""
        self.cancel()
        for pd in self._session.snapshot(self.id)["replicas"]:
            self.remove_pilot_data(Handle._find(self._session, pd), force=True)

    def cancel(self) -> None:
        """Stop its transfers. If it has no replica yet, it is Canceled; replicas that are there stay."""
        if not self._life.state.is_final and not self._session.is_lost:
            self._session.call("cancel_data", id=self.id)


class _Plan:
    """A description, checked, and the files that it means."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        spec: DataUnitSpec = DataUnitDescription.of(description).validate()
        self.spec = spec
        self.name = spec.name
        self.sources = expand_sources([*spec.file_urls, *spec.file_url_patterns], spec.storage_options)
        self.own, self.others = _split(self.sources)

    def request(self, id: str) -> dict[str, Any]:
        """What the scheduler is asked."""
        spec = self.spec
        description = {
            "name": spec.name,
            "replicas": spec.replicas,
            "datacenter": spec.datacenter,
            "machine": spec.machine,
        }
        if spec.register:
            store = Registered.of(
                id, self.sources, checksums=spec.checksums, datacenter=spec.datacenter, machine=spec.machine
            )
            return {"description": description, "registered": (store, store.manifest)}
        return {"description": description, "n_own": len(self.own), "nbytes": _nbytes(self.own), "sources": self.others}


def _split(sources: Mapping[str, Source]) -> tuple[dict[str, Source], dict[str, Source]]:
    """Sources that only this machine sees, for all that is known; and those that any worker can read."""
    own = {name: source for name, source in sources.items() if source.location.local is not None}
    return own, {name: source for name, source in sources.items() if name not in own}


def _nbytes(sources: Mapping[str, Source]) -> int:
    return sum(source.nbytes or 0 for source in sources.values())
