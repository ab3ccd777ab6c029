"""``dpilot://HOST:PORT/DU/NAME``: the files of data units as an fsspec file system.

So pandas, pyarrow, xarray, ``dask.dataframe`` and all else that knows fsspec reads them by their URLs: on a worker, in
a process with a session, in any other process that reaches the scheduler. A file is opened where it is nearest: on this
machine's disk, in its cache, or in a store, of which only what is asked for is read.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn, TypeVar
from urllib.parse import unquote

from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from dpilot import config
from dpilot.data import FileEntry, Hasher, Manifest, Retry, Store
from dpilot.data.locate import locate
from dpilot.data.location import Location
from dpilot.errors import (
    ChecksumError,
    ConnectionLostError,
    DataError,
    DescriptionError,
    FileMissingError,
    PilotError,
    StoreError,
    UnknownObjectError,
)
from dpilot.runtime.peer import reachable
from dpilot.runtime.wire import Wire
from dpilot.runtime.worker import UnitPlugin

__all__ = ["DataUnitFileSystem", "SecureDataUnitFileSystem"]

_T = TypeVar("_T")

_ADDRESS = re.compile(r"[^/\s]+:[0-9]+")
#: How long what is known of a data unit is taken to be true: a listing asks for the same again and again.
_FRESH_S = 2.0
_THREADS = 8


class DataUnitFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The data units of any scheduler, to be read.

    A path is ``HOST:PORT``, the directory of all data units of that scheduler, ``HOST:PORT/DU`` or
    ``HOST:PORT/DU/NAME``.
    """

    protocol: ClassVar[str] = "dpilot"
    #: Of Dask, to the scheduler.
    comm: ClassVar[str] = "tcp"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._units: dict[tuple[str, str], _Unit] = {}

    # ------------------------------------------------------------------ looking

    def _split(self, path: str) -> tuple[str, str, str]:
        """Contact address of the scheduler, data unit and file's name of a path; empty where there is none."""
        place, _, rest = self._strip_protocol(path).partition("/")
        if not _ADDRESS.fullmatch(place):
            raise DescriptionError(
                f"url {self.unstrip_protocol(path)!r} names no scheduler; write {self.protocol}://HOST:PORT/DU/NAME",
                field="url",
                value=path,
            )
        du, _, name = rest.partition("/")
        return f"{self.comm}://{place}", du, name

    def _unit(self, scheduler: str, du: str) -> _Unit:
        unit = self._units.get((scheduler, du))
        if unit is None or unit.is_stale:
            unit = self._units[scheduler, du] = _Unit(scheduler, du)
        return unit

    def _find(self, path: str) -> tuple[_Unit, str]:
        """The data unit of a path, and the name of a file or directory that is there; empty for the unit itself."""
        scheduler, du, name = self._split(path)
        unit = self._unit(scheduler, du)
        # URLs of data units are quoted, paths of fsspec are not.
        for known in (name, unquote(name)):
            if not known or known in unit.manifest or known in unit.tree:
                return unit, known
        names = ", ".join(map(repr, unit.manifest.names[:5])) or "none"
        raise FileMissingError(f"data unit {du} at {scheduler} has no file {name!r}; its files: {names}", name=name)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What is known of a file or directory.

        Returns
        -------
        dict
            ``name``, ``type`` and ``size`` in bytes; of a file also ``du``, ``checksum`` and ``created``, in seconds
            since the epoch.

        Raises
        ------
        FileMissingError
            If there is none.
        ConnectionLostError
            If the scheduler cannot be reached.
        """
        path = self._strip_protocol(path)
        scheduler, du, _ = self._split(path)
        if not du:
            _ask(scheduler, "readable")
            return _directory(path)
        unit, name = self._find(path)
        if name in unit.manifest:
            return unit.row(path, unit.manifest[name])
        return _directory(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The content of a directory, or a file itself: as :meth:`info` gives it, or names only."""
        path = self._strip_protocol(path)
        scheduler, du, _ = self._split(path)
        if not du:
            units = _ask(scheduler, "readable")
            rows = [
                {**_directory(f"{path}/{id}"), "du_name": name, "nbytes": nbytes, "created": created}
                for id, name, nbytes, created in sorted(units)
            ]
        else:
            unit, name = self._find(path)
            if name in unit.manifest:
                rows = [unit.row(path, unit.manifest[name])]
            else:
                rows = [
                    _directory(f"{path}/{child}") if entry is None else unit.row(f"{path}/{child}", entry)
                    for child, entry in sorted(unit.tree[name].items())
                ]
        return rows if detail else [row["name"] for row in rows]

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "raise", **kw: Any
    ) -> Any:
        """As :meth:`fsspec.spec.AbstractFileSystem.walk`; what cannot be listed is no empty directory."""
        return super().walk(path, maxdepth, topdown, on_error, **kw)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """All files below a path, by name; those of a data unit are known by its manifest."""
        path = self._strip_protocol(path)
        here = self.info(path)
        found = {path: here} if here["type"] == "file" or withdirs else {}
        if here["type"] == "directory":
            found |= {row["name"]: row for row in self._below(path, maxdepth) if withdirs or row["type"] == "file"}
        return dict(sorted(found.items())) if detail else sorted(found)

    def _below(self, path: str, depth: int | None) -> Iterator[dict[str, Any]]:
        for row in self.ls(path):
            yield row
            if row["type"] == "directory" and depth != 1:
                yield from self._below(row["name"], None if depth is None else depth - 1)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or directory. A scheduler that does not answer is an error."""
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        """Whether there is a directory."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""
        return self._type(path) == "file"

    def _type(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileMissingError:
            return None

    def created(self, path: str) -> datetime:
        """When the data unit's manifest was made: its files are not changed, only added and removed."""
        scheduler, du, _ = self._split(path)
        return datetime.fromtimestamp(self._unit(scheduler, du).manifest.created, UTC)

    modified = created

    def checksum(self, path: str) -> int:
        """A number that differs once the content of a file does."""
        return int(self.ukey(path), 16)

    def ukey(self, path: str) -> str:
        """A text that differs once the content of a file does: that of the manifest, of whichever replica."""
        row = self.info(path)
        text = f"{row.get('du')} {row['name']} {row['size']} {row.get('checksum') or row.get('created')}"
        return hashlib.sha256(text.encode()).hexdigest()

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what is known of data units."""
        self._units.clear()

    # ------------------------------------------------------------------ reading

    def _file(self, path: str) -> tuple[_Unit, FileEntry]:
        unit, name = self._find(path)
        if name not in unit.manifest:
            raise IsADirectoryError(f"{self.unstrip_protocol(path)} is a directory, not a file")
        return unit, unit.manifest[name]

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> IO[bytes]:
        if mode != "rb":
            self._refuse(path)
        unit, entry = self._file(path)
        local = unit.open_local(entry)
        if local is not None:
            return local
        kwargs.pop("size", None)
        return _DataFile(self, path, unit, entry, block_size=block_size, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file, or of part of it; those of a whole file are verified."""
        unit, entry = self._file(path)
        first, last, _ = slice(start, end).indices(entry.nbytes)
        return unit.read(entry, first, max(first, last))

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Parts of files, several at once; see :meth:`fsspec.spec.AbstractFileSystem.cat_ranges`."""
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)

        def cat(path: str, start: int | None, end: int | None) -> Any:
            try:
                return self.cat_file(path, start, end)
            except Exception as error:
                if on_error == "return":
                    return error
                raise

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="dpilot-cat") as pool:
            return list(pool.map(cat, paths, starts, ends))

    # ------------------------------------------------------------------ no writing

    def _refuse(self, path: Any = "", *args: Any, **kwargs: Any) -> NoReturn:
        where = f"{self.unstrip_protocol(path)}: " if isinstance(path, str) and path else ""
        raise DataError(
            f"{where}data units can only be read by their URLs; submit_data_unit() makes a new one of files, "
            "add_files() adds some, and the output_data of a compute unit collects what it has written"
        )

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = mv = touch = put = put_file = pipe = pipe_file = _refuse
    mkdirs = makedir = delete = copy = cp = move = rename = upload = write_bytes = write_text = _refuse


class SecureDataUnitFileSystem(DataUnitFileSystem):
    """The same, of schedulers that are reached by TLS."""

    protocol = "dpilot+tls"
    comm = "tls"


def _directory(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


#: Where a data unit is: in a store, or in a directory of this machine's cache.
Replica = Store | Path


class _Unit:
    """A data unit as this process reads it."""

    def __init__(self, scheduler: str, du: str) -> None:
        self._until = time.monotonic() + _FRESH_S
        plugin = UnitPlugin.here()
        labels = plugin.labels if plugin is not None else (config.get("datacenter"), config.get("machine"))
        try:
            manifest, places = _ask(scheduler, "locate", id=du, datacenter=labels[0], machine=labels[1])
        except UnknownObjectError as error:
            raise FileMissingError(f"there is no data unit {du!r} at {scheduler}: {error}", du=du) from error
        self.manifest: Manifest = manifest
        via = _via.get(scheduler, scheduler)
        stores = [reachable(place, via) for place in places]
        seen = [store for store in stores if store.root.local is not None]
        cached = plugin.cache.find(manifest) if plugin is not None and plugin.pilot else None
        self._replicas: list[Replica] = [*seen, *([cached] if cached else []), *(s for s in stores if s not in seen)]
        self._lock = threading.Lock()

    @property
    def is_stale(self) -> bool:
        return time.monotonic() > self._until

    @functools.cached_property
    def tree(self) -> dict[str, dict[str, FileEntry | None]]:
        """What is in each directory: a file, or None for a directory. The unit itself is the one without a name."""
        tree: dict[str, dict[str, FileEntry | None]] = {"": {}}
        for entry in self.manifest.files:
            directory, _, base = entry.name.rpartition("/")
            tree.setdefault(directory, {})[base] = entry
            while directory:
                parent, _, base = directory.rpartition("/")
                if base in tree.setdefault(parent, {}):
                    break
                tree[parent][base] = None
                directory = parent
        return tree

    def row(self, path: str, entry: FileEntry) -> dict[str, Any]:
        return {
            "name": path,
            "size": entry.nbytes,
            "type": "file",
            "du": self.manifest.du,
            "checksum": entry.checksum,
            "created": self.manifest.created,
        }

    # ------------------------------------------------------------------ replicas

    def _places(self, name: str) -> Iterator[tuple[Replica, Callable[[], Location]]]:
        """Where a file can be read, nearest first."""
        for replica in list(self._replicas):
            yield replica, functools.partial(_place, replica, self.manifest.du, name)

    def _put_back(self, replica: Replica) -> None:
        """A replica failed: it goes to the end, so that it does not fail again for every piece of a file."""
        with self._lock:
            self._replicas.remove(replica)
            self._replicas.append(replica)

    def _from_nearest(self, entry: FileEntry, use: Callable[[Location], _T]) -> _T:
        """Call `use` with a place of a file; with the next one where that fails."""
        failures: list[PilotError] = []
        for replica, find in self._places(entry.name):
            try:
                return use(find())
            except PilotError as error:
                failures.append(error)
                self._put_back(replica)
        raise StoreError(
            f"file {entry.name!r} of data unit {self.manifest.du} could not be read from any of its {len(failures)} "
            f"replicas; the last failure: {failures[-1]}",
            transient=any(getattr(failure, "transient", False) for failure in failures),
        ) from failures[-1]

    def open_local(self, entry: FileEntry) -> IO[bytes] | None:
        """The file on this machine, where it is there in its full size."""
        for replica, find in self._places(entry.name):
            try:
                path = find().local
                if path is None:
                    return None
                # fsspec's own file, as many do not close what they open, and it does so without a word.
                file: IO[bytes] = LocalFileSystem().open(str(path), "rb")
            except (PilotError, OSError):
                self._put_back(replica)
                continue
            if os.fstat(file.fileno()).st_size == entry.nbytes:
                return file
            file.close()
            self._put_back(replica)
        return None

    def read(self, entry: FileEntry, start: int, stop: int) -> bytes:
        """Part of a file; a whole one is verified."""
        if start == stop:
            return b""

        def read(place: Location) -> bytes:
            data = place.read_range(start, stop - start)
            if len(data) == entry.nbytes > stop - start:
                data = data[start:stop]  # a web server that knows no ranges
            _verify(entry, place, data, start, stop)
            return bytes(data)

        retry = Retry(times=int(config.get("data.retries")), delay_s=config.seconds("data.retry-delay"))
        return retry.run(lambda: self._from_nearest(entry, read), threading.Event())


def _place(replica: Replica, du: str, name: str) -> Location:
    return locate(replica / name, field="cache") if isinstance(replica, Path) else replica.unit(du).child(name)


def _verify(entry: FileEntry, place: Location, data: bytes | memoryview, start: int, stop: int) -> None:
    if len(data) != stop - start:
        problem = f"ends after {start + len(data)} bytes, but its manifest says {entry.nbytes}"
    elif len(data) == entry.nbytes and entry.checksum is not None:
        hasher = Hasher()
        hasher.update(data)
        if hasher.hexdigest() == entry.checksum:
            return
        problem = f"has checksum {hasher.hexdigest()}, but its manifest says {entry.checksum}"
    else:
        return
    raise ChecksumError(f"file {entry.name!r}, read from {place.url}, {problem}", name=entry.name, source=place.url)


class _DataFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file that is open for reading and is not on this machine."""

    def __init__(self, fs: DataUnitFileSystem, path: str, unit: _Unit, entry: FileEntry, **kwargs: Any) -> None:
        self._unit, self._entry = unit, entry
        super().__init__(fs, path, "rb", size=entry.nbytes, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._unit.read(self._entry, start, min(end, self._entry.nbytes))


#: By which address this process reaches schedulers that have another one in their URLs.
_via: dict[str, str] = {}


def _ask(scheduler: str, call: str, **arguments: Any) -> Any:
    """Ask dpilot on a scheduler: by the address in the URL, or, on a worker, by the address that the worker has."""
    wire, plugin = Wire.here(), UnitPlugin.here()
    try:
        return wire.call(_via.get(scheduler, scheduler), call, **arguments)
    except ConnectionLostError as lost:
        if plugin is None or scheduler in _via or plugin.scheduler == scheduler or "id" not in arguments:
            raise
        try:
            answer = wire.call(plugin.scheduler, call, **arguments)
        except UnknownObjectError:  # it is another scheduler
            raise lost from None
        _via[scheduler] = plugin.scheduler
        return answer
