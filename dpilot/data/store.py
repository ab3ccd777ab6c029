"""A store: a directory or bucket prefix that holds data units, marked with an id of its own.

::

    <root>/.dpilot-store.json                    the marker: the store's id
    <root>/<data unit>/<file name>
    <root>/<data unit>/.dpilot-manifest.json     written last: without it there is no replica
"""

from __future__ import annotations

import copy
import json
import pickle
import re
import threading
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dpilot.data.locate import locate
from dpilot.data.location import Location
from dpilot.data.manifest import Manifest, check_unit
from dpilot.data.names import MANIFEST, MARKER, TEMPORARY, check_name
from dpilot.errors import ChecksumError, DataError, DescriptionError, ManifestError, StoreError, StoreFullError

__all__ = ["Store"]

_VERSION = 1
_MADE = re.compile(r"du-[0-9a-f]{12}")
_ID = re.compile(r"[0-9a-f]{32}")
_LOOKUPS = 8  # small requests under way at the same time
_READ_MODES = ("r", "rb", "rt")


class Store:
    """One store. Making the object touches nothing; :meth:`open` does.

    It pickles, with its storage options, and may be used from several threads and processes. Of one data
    unit there must be only one writer at a time, which the caller sees to.

    Parameters
    ----------
    service_url : str or path
        Where it is: a path, ``file://``, ``s3://bucket/prefix``, or a URL of another protocol of fsspec.
    storage_options : mapping, optional
        What fsspec needs to reach it. Credentials belong here, or into fsspec's configuration.
    store_id : str, optional
        The id that its marker must have, where the store was opened before.
    datacenter, machine : str, optional
        Labels.
    nbytes_limit : int, optional
        How many bytes its data units may have together.

    Raises
    ------
    DescriptionError
        If the URL is malformed, has a password in it or an unknown protocol, or the options are no mapping.
    """

    _pickled: bytes | None = None  # what is told of it: all but this, and until something of it changes

    def __init__(
        self,
        service_url: str | Path,
        storage_options: Mapping[str, Any] | None = None,
        *,
        store_id: str | None = None,
        datacenter: str | None = None,
        machine: str | None = None,
        nbytes_limit: int | None = None,
    ) -> None:
        if not isinstance(storage_options, Mapping | None):
            raise DescriptionError(
                f"storage_options is a {type(storage_options).__name__}; give a dict, as fsspec takes it",
                field="storage_options",
            )
        self.root = locate(service_url, storage_options, field="service_url")
        self.store_id = store_id
        self.datacenter = datacenter
        self.machine = machine
        self.nbytes_limit = nbytes_limit

    def __reduce__(self) -> tuple[Any, ...]:
        # Stores go out with every unit that reads: what to say of one is worked out once.
        pickled = self._pickled
        if pickled is None:
            self._pickled = pickled = pickle.dumps(vars(self), pickle.HIGHEST_PROTOCOL)
        return _unpickled, (type(self), pickled)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self).pop("_pickled", None)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        labels = [f"{key}={value!r}" for key in ("datacenter", "machine") if (value := getattr(self, key)) is not None]
        return f"Store({', '.join([repr(self.url), *labels])})"

    def through(self, root: Location) -> Store:
        """The same store, with its id, labels and limit, reached by another way.

        Parameters
        ----------
        root : Location
            Where its root is on that way, such as through a worker that sees files which this process does not.
        """
        other = copy.copy(self)
        other.root = root
        return other

    # ------------------------------------------------------------------ the store itself

    @property
    def url(self) -> str:
        """Where it is, free of credentials."""
        return self.root.url

    @property
    def marker(self) -> dict[str, Any]:
        """What the marker of this store says."""
        return {"store": self.store_id, "version": _VERSION}

    def open(self, *, timeout_s: float = 30.0, leftover_age_s: float = 3600.0) -> Store:
        """Reach the store, and make and mark it if it is new; clean it up if it is not.

        Parameters
        ----------
        timeout_s : float
            How long it may take to answer, in seconds.
        leftover_age_s : float
            What transfers that were killed have left is removed if nothing of it changed for so long, in seconds.
            What is younger may be another session's transfer that is under way.

        Returns
        -------
        Store
            This one, with its `store_id`.

        Raises
        ------
        StoreError
            If it cannot be reached, read or written, or is not the one that it was.
        """
        if self.root.read_only:
            self.root.prepare()  # says why
        answer: Future[tuple[str, bool]] = Future()

        def reach() -> None:
            try:
                answer.set_result(self._open())
            except BaseException as error:
                answer.set_exception(error)

        # What hangs, hangs in a thread of its own: a file system that does not answer cannot be interrupted.
        threading.Thread(target=reach, name="dpilot-open", daemon=True).start()
        try:
            found, new = answer.result(timeout_s)
        except TimeoutError:
            raise StoreError(
                f"cannot open {self.url}: it did not answer within {timeout_s:g} s; see whether its server is there",
                url=self.url,
            ) from None
        if self.store_id not in (None, found):
            raise StoreError(
                f"{self.url} holds another store ({found}) than it did before ({self.store_id}): it was replaced, or "
                "lies on another machine",
                url=self.url,
            )
        self.store_id = found
        if not new:
            self._clean(leftover_age_s)
        return self

    def _open(self) -> tuple[str, bool]:
        """The id of the store, and whether it is new."""
        found = self._marked()
        if found is not None:
            probe = self.root.child(f"{TEMPORARY}-{uuid.uuid4().hex}")
            probe.write_bytes(b"")
            probe.remove()
            return found, False
        self.root.prepare()
        new = json.dumps({"store": uuid.uuid4().hex, "version": _VERSION}).encode()
        self.root.child(MARKER).write_bytes(new, exclusive=True)
        # Another process may have been first, or last where the protocol cannot write exclusively.
        found = self._marked()
        if found is None:
            raise StoreError(f"cannot open {self.url}: its marker {MARKER} was written, but is not there", url=self.url)
        return found, True

    def _clean(self, age_s: float) -> None:
        """Remove what killed transfers left; nothing but our own, as the store may lie in a directory of the user's."""
        units: dict[str, dict[str, float]] = {}
        for name, age in self.root.ages().items():
            unit, _, file = name.partition("/") if "/" in name else ("", "", name)
            units.setdefault(unit, {})[file] = age
        for unit, files in units.items():
            with suppress(StoreError):  # another user's, or gone by now: no reason not to use the store
                if _MADE.fullmatch(unit) and MANIFEST not in files:
                    if min(files.values()) > age_s and not self.root.child(unit).child(MANIFEST).exists():
                        self.remove(unit)
                    continue
                for file, age in files.items():
                    if age > age_s and file.rpartition("/")[2].startswith(TEMPORARY):
                        (self.root.child(unit) if unit else self.root).child(file).remove()

    def _marked(self) -> str | None:
        """The store id in the marker; None if there is no marker."""
        data = self.root.child(MARKER).read_bytes()
        if data is None:
            return None
        try:
            marker = json.loads(data)
            if marker["version"] == _VERSION and _ID.fullmatch(marker["store"]):
                return str(marker["store"])
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise StoreError(f"{self.url} has a marker {MARKER} that this dpilot cannot read: {data[:80]!r}", url=self.url)

    def connect(self) -> None:
        """Read the marker as files are read, so that the first file will not wait for a connection.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        for _ in self.root.child(MARKER).read(None):
            pass

    def is_visible(self) -> bool:
        """Whether this process sees the store as local files: by its marker, so that shared file systems count."""
        try:
            return self.root.local is not None and self.store_id is not None and self._marked() == self.store_id
        except StoreError:
            return False  # another machine may have anything at that path

    def reach(self) -> Location:
        """The root, once sure that it is this store's.

        Raises
        ------
        StoreError
            If it was never opened, or its path is on another machine.
        """
        if self.store_id is None:
            raise StoreError(f"{self.url} is not open; call open() first", url=self.url)
        if self.root.local is not None and not self.is_visible():
            raise StoreError(
                f"the files of {self.url} are not visible here: no marker of store {self.store_id} in "
                f"{self.root.local}; they are on another machine, or were removed",
                url=self.url,
            )
        return self.root

    # ------------------------------------------------------------------ places

    def url_for(self, du: str, name: str = "") -> str:
        """The URL of a data unit, or of one of its files, as fsspec takes it."""
        return self._place(du, name).url

    def local_path(self, du: str, name: str = "") -> Path | None:
        """The path of a data unit, or of one of its files, where this process sees the store as local files."""
        place = self._place(du, name)
        return place.local if self.is_visible() else None

    def _place(self, du: str, name: str = "") -> Location:
        unit = self.root.child(check_unit(du))
        return unit.child(check_name(name)) if name else unit

    def unit(self, du: str) -> Location:
        """The directory of a data unit; see :meth:`reach` for errors."""
        return self.reach().child(check_unit(du))

    # ------------------------------------------------------------------ data units

    def list_units(self) -> list[str]:
        """The ids of the data units of which this store has a replica: those with a manifest."""
        root = self.reach()
        ids = [name for name in root.subdirectories() if _is_unit(name)]
        manifests = [root.child(du).child(MANIFEST) for du in ids]
        if root.local is not None:
            there = [manifest.exists() for manifest in manifests]
        else:
            with ThreadPoolExecutor(_LOOKUPS) as pool:
                there = list(pool.map(lambda manifest: manifest.exists(), manifests))
        return [du for du, exists in zip(ids, there, strict=True) if exists]

    def find_manifest(self, du: str) -> Manifest | None:
        """The manifest of a data unit; None if this store has no replica of it.

        Raises
        ------
        StoreError
            If the store cannot be read.
        ManifestError
            If what is there is no manifest, or another unit's.
        """
        place = self.unit(du).child(MANIFEST)
        data = place.read_bytes()
        if data is None:
            return None
        try:
            manifest = Manifest.from_json(data)
        except ManifestError as error:
            raise ManifestError(f"{place.url}: {error}", url=place.url) from error
        if manifest.du != du:
            raise ManifestError(f"{place.url} is the manifest of {manifest.du}, not of {du}", url=place.url)
        return manifest

    def read_manifest(self, du: str) -> Manifest:
        """The manifest of a data unit; see :meth:`find_manifest`.

        Raises
        ------
        DataError
            If this store has no replica of it.
        """
        manifest = self.find_manifest(du)
        if manifest is None:
            raise DataError(f"{self.url} has no replica of {du}", du=du, url=self.url)
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Declare a replica complete. All files must be there."""
        self.unit(manifest.du).child(MANIFEST).write_bytes(manifest.to_json().encode())

    def verify_sizes(self, manifest: Manifest) -> None:
        """Check, with one listing, that every file of a manifest is there in its full size.

        Raises
        ------
        ChecksumError
            Naming the first file that is not.
        """
        if not manifest.files:
            return
        sizes = self.unit(manifest.du).sizes()
        for entry in manifest.files:
            # A file system that does not tell sizes tells None; what it does not list is not there.
            size = sizes.get(entry.name, -1)
            if size not in (entry.nbytes, None):
                found = "is not there" if size == -1 else f"has {size} bytes"
                raise ChecksumError(
                    f"file {entry.name!r} in {self.url_for(manifest.du)} {found}, but should have {entry.nbytes} bytes",
                    name=entry.name,
                    target=self.url_for(manifest.du, entry.name),
                )

    def remove(self, du: str) -> None:
        """Remove a replica, or what an attempt to make one left. Removing one that is not there does nothing."""
        self.remove_manifest(du)  # first, so that nobody finds a replica that is half gone
        self.unit(du).remove_tree()

    def remove_manifest(self, du: str) -> None:
        """Have a replica be one no more, though its files are there yet: somebody reads them."""
        self.unit(du).child(MANIFEST).remove()

    def remove_files(self, du: str, names: Iterable[str]) -> Manifest:
        """Remove some files of a data unit.

        Returns
        -------
        Manifest
            Of what is left.

        Raises
        ------
        DataError
            If there is no replica here, or it has no such file.
        """
        names = tuple(names)
        rest = self.read_manifest(du).without(names)
        self.write_manifest(rest)
        self.discard_files(du, names)
        return rest

    def discard_files(self, du: str, names: Iterable[str]) -> None:
        """Remove files that no manifest names, such as what a failed transfer left."""
        unit = self.unit(du)
        for name in names:
            place = unit.child(check_name(name))
            place.remove()
            place.prune(self.root)

    def open_file(self, du: str, name: str, mode: str = "rb") -> IO[Any]:
        """Open one file of a data unit to be read.

        Parameters
        ----------
        du, name : str
        mode : str
            ``"rb"``, or ``"r"`` for text in UTF-8. Files of a data unit are written by transfers only.

        Raises
        ------
        StoreError
            If the file is not there or cannot be read.
        """
        if mode not in _READ_MODES:
            raise DataError(
                f"mode {mode!r}: files of a data unit can only be read ('rb' or 'r'); add_files() adds new ones",
                name=name,
            )
        return self.unit(du).child(check_name(name)).open(mode)

    # ------------------------------------------------------------------ size

    def nbytes_used(self) -> int:
        """The bytes of all data units here, by their manifests; reads all of them."""
        units = self.list_units()
        with ThreadPoolExecutor(_LOOKUPS) as pool:
            return sum(manifest.nbytes for manifest in pool.map(self.find_manifest, units) if manifest is not None)

    def check_room(self, nbytes: int, room: int | None = None) -> None:
        """See whether so many bytes more fit.

        Parameters
        ----------
        nbytes : int
        room : int, optional
            How many bytes are free, where the caller keeps account; otherwise the store's manifests are read.

        Raises
        ------
        StoreFullError
            If they would not fit.
        """
        if room is None:
            if self.nbytes_limit is None:
                return
            room = self.nbytes_limit - self.nbytes_used()
        if nbytes > room:
            raise StoreFullError(
                f"{self.url} has {max(room, 0)} of its {self.nbytes_limit} bytes left, and {nbytes} are needed; "
                "remove data units, or make its size larger",
                url=self.url,
            )


def _is_unit(name: str) -> bool:
    try:
        check_unit(name)
    except ManifestError:
        return False
    return True


def _unpickled(cls: type[Store], pickled: bytes) -> Store:
    store = cls.__new__(cls)
    vars(store).update(pickle.loads(pickled))
    return store
