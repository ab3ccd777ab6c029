"""A worker as the host of machine-local stores: it serves their files to processes that do not see them.

The other end is :mod:`dpilot.runtime.peer`. A request names a store by its id and a place in it by a data unit and a
file's name, never by a path: so nothing can be reached but what is in a store. Files are read and written in threads.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from distributed.comm.core import Comm
from distributed.protocol.serialize import to_serialize

from dpilot.data import Cache, Store, check_name, is_entry
from dpilot.data.local import LocalLocation
from dpilot.data.location import Location
from dpilot.data.manifest import check_unit
from dpilot.data.names import MANIFEST, MARKER, TEMPORARY, is_within
from dpilot.errors import PilotError, StoreError
from dpilot.runtime.places import CACHE
from dpilot.runtime.wire import bad, good

__all__ = ["Host"]

_T = TypeVar("_T")

#: What may be done with any place, and what only with those in a data unit.
_LOOKS = frozenset({"ages", "exists", "read_bytes", "size", "sizes", "subdirectories", "version"})
_CHANGES = frozenset({"prune", "remove", "remove_tree", "write_bytes"})

_THREADS = 4
_MAX_UPLOADS = 64
#: At most so much is read at once, whatever is asked for.
_MAX_NBYTES = 16 * 1024 * 1024


class Host:
    """Answers the requests; :meth:`answer` is the handler of the worker.

    Parameters
    ----------
    cache : callable
        Gives the machine's cache, of which files may be read.
    """

    def __init__(self, cache: Callable[[], Cache]) -> None:
        self._cache = cache
        self._stores: dict[str, dict[str, Store]] = {}  # by the store's id, then by the pilot data's
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="dpilot-host")
        self._uploads = asyncio.Semaphore(_MAX_UPLOADS)

    def serve(self, pd: str, store: Store, tell: Callable[[bool], None]) -> None:
        """Serve a store, as the scheduler says that it is in use, and tell whether it is seen here."""
        if store.store_id is not None:
            self._stores.setdefault(store.store_id, {})[pd] = store
        self._pool.submit(lambda: tell(store.is_visible()))

    def forget(self, pd: str) -> None:
        """A pilot data is used no more."""
        for id, stores in list(self._stores.items()):
            stores.pop(pd, None)
            if not stores:
                del self._stores[id]

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _do(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def answer(self, comm: Comm, what: str, store: str, place: str, **details: Any) -> dict[str, Any]:
        """Answer a request (in the worker's event loop).

        Parameters
        ----------
        comm : Comm
            Whoever asks.
        what : str
            ``read``, ``write``, or the name of a method of :class:`~dpilot.data.location.Location`.
        store : str
            The store's id.
        place : str
            The id of a data unit, with ``/NAME`` behind it for one of its files; or empty for the store itself.
        **details
            The arguments.
        """
        try:
            if what == "read":
                return good(to_serialize(await self._do(self._read, store, place, *_checked_range(**details))))
            if what == "write":
                async with self._uploads:
                    return await self._write(comm, store, place, **details)
            return good(pickle.dumps(await self._do(self._call, what, store, place, details)))
        except PilotError as error:
            return bad(error)
        except OSError as error:
            return bad(StoreError(f"{what}: {error.strerror or error}"))

    def _find(self, id: str, place: str, change: bool = False) -> Location:
        """The place, if it is one that is served."""
        if id.startswith(CACHE):
            return self._find_kept(id.removeprefix(CACHE), place, change)
        stores = self._stores.get(id)
        if not stores:
            raise StoreError(f"store {id} is not served here: the scheduler has not told this worker of it")
        root = next(iter(stores.values())).reach()
        unit, _, name = place.partition("/")
        if place not in ("", MARKER):
            check_unit(unit)
        if name not in ("", MANIFEST):
            check_name(name)
        found = root.child(place) if place else root
        if change and place in ("", MARKER):
            raise StoreError(f"{found.url} is not in a data unit: it cannot be changed from elsewhere", url=found.url)
        # Of files that are registered where they lie, any other root knows each by its name.
        if isinstance(root, LocalLocation) and not is_within(Path(found.path), root.local):
            raise StoreError(f"{found.url} leads out of its store by a link; remove the link", url=found.url)
        return found

    def _find_kept(self, entry: str, place: str, change: bool) -> Location:
        """The place in the machine's cache."""
        unit, _, name = place.partition("/")
        check_name(name)
        if change or not is_entry(entry, unit):
            raise StoreError(f"{place!r} is nothing that a cache gives to others")
        root = self._cache().root / entry
        if not is_within(root / name, root):
            raise StoreError(f"{name!r} of {unit} leads out of the cache by a link")
        return LocalLocation("file", f"file://{root}/{name}", str(root / name))

    def _call(self, what: str, id: str, place: str, details: dict[str, Any]) -> Any:
        if what not in _LOOKS | _CHANGES:
            raise StoreError(f"{what!r} is nothing that can be done with files from elsewhere")
        found = self._find(id, place, what in _CHANGES)
        if what == "prune":
            details = {"root": self._find(id, "")}
        return getattr(found, what)(**details)

    def _read(self, id: str, place: str, start: int, nbytes: int) -> memoryview:
        found = self._find(id, place)
        return memoryview(found.read_range(start, nbytes))

    async def _write(self, comm: Comm, id: str, place: str, mode: int) -> dict[str, Any]:
        """Take a file in pieces, each of which is answered when it is on the disk, or why it is not."""
        failure: PilotError | None = None
        upload: _Upload | None = None
        try:
            try:
                upload = await self._do(lambda: _Upload(self._find(id, place, change=True), mode))
            except PilotError as error:
                failure = error
            while True:
                await comm.write(good(None) if failure is None else bad(failure))
                message = await comm.read()
                try:
                    if failure is not None or upload is None:
                        pass  # the rest of what was on its way when it failed
                    elif "data" in message:
                        await self._do(upload.write, message["data"])
                    elif message["complete"]:
                        await self._do(upload.complete)
                except PilotError as error:
                    failure = error
                if "data" not in message:
                    return good(None) if failure is None else bad(failure)
        finally:
            if upload is not None:
                try:
                    await self._do(upload.abort)
                except RuntimeError:  # this worker ends, and so have its threads
                    upload.abort()


class _Upload:
    """A file that is being written under a temporary name."""

    def __init__(self, target: Location, mode: int) -> None:
        if not isinstance(target, LocalLocation):
            raise StoreError(f"cannot write {target.url}: it is no place in a store of this machine", url=target.url)
        self._target = target
        self._temporary = target.local.with_name(f"{TEMPORARY}-{uuid.uuid4().hex}")
        self._file = -1
        with target.errors("write"):
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def write(self, data: bytes | memoryview) -> None:
        with self._target.errors("write"):
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]

    def complete(self) -> None:
        with self._target.errors("write"):
            self._close()
            self._temporary.replace(self._target.local)

    def abort(self) -> None:
        """Remove what there is of it; nothing to do if it is complete."""
        with suppress(OSError):
            self._close()
            self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file != -1:
            os.close(file)


def _checked_range(start: int, nbytes: int) -> tuple[int, int]:
    if start < 0 or not 0 <= nbytes <= _MAX_NBYTES:
        raise StoreError(f"a range of {nbytes} bytes at {start} cannot be read at once; ask for {_MAX_NBYTES} at most")
    return start, nbytes
