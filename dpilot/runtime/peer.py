"""Machine-local stores seen from elsewhere: through a worker that sees them, its :class:`~dpilot.runtime.host.Host`.

A :class:`PeerLocation` is a place as any other, so that a store whose root is one can be read and written by all that
can do it with stores: see :func:`reachable`.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Any, TypeVar

from distributed.protocol.serialize import to_serialize

from dpilot.data import Registered, Store
from dpilot.data.location import Chunks, Location, Pieces, joined
from dpilot.errors import PilotError, StoreError
from dpilot.runtime.adapter import HANDLER
from dpilot.runtime.places import Place
from dpilot.runtime.wire import Line, Wire

__all__ = ["PeerLocation", "reachable"]

_T = TypeVar("_T")

#: Files are read and written in messages of this size, several of which are under way; or in smaller ones, so that
#: each of several connections has some of a file.
_CHUNK = 4 * 1024 * 1024
_SHARE = 512 * 1024
_CONNECTIONS = 8
#: What is read ahead of a file that is open.
_BUFFER = 1024 * 1024


def reachable(place: Place, scheduler: str) -> Store:
    """A store as this process reaches it: through a worker, where it is a directory that this process does not see.

    Parameters
    ----------
    place : Place
    scheduler : str
        Contact address of the scheduler, which knows the workers that see the store.
    """
    store = place.store
    if store.root.local is None or store.store_id is None or store.is_visible():
        return store
    if place.host is None and isinstance(store, Registered) and store.is_here:
        return store  # which says what is wrong: its files were changed
    root = PeerLocation("file", store.url, "", store_id=store.store_id, host=place.host, scheduler=scheduler)
    return store.through(root)


@dataclass(frozen=True, slots=True)
class PeerLocation(Location):
    """A file or directory of a store that a worker sees and this process does not.

    Parameters
    ----------
    store_id : str
        The store's id, as in its marker.
    host : str or None
        Contact address of a worker that sees it; the scheduler is asked for another one where that is gone.
    scheduler : str
        Contact address of the scheduler.
    """

    # `path` is relative to the store; `url` is what the host knows the place by.
    store_id: str = ""
    host: str | None = None
    scheduler: str = ""

    def child(self, name: str) -> PeerLocation:
        """The place of that relative name below this one. The name must have been checked."""
        return replace(self, url=f"{self.url.rstrip('/')}/{name}", path=f"{self.path}/{name}" if self.path else name)

    # ------------------------------------------------------------------ the worker

    def _ask(self, action: str, what: str, **details: Any) -> Any:
        """Have the worker do something; `action` is for the error."""
        message = {"op": HANDLER, "what": what, "store": self.store_id, "place": self.path, **details}
        with self.errors(action):
            return self._with_host(lambda host: Wire.here().request(host, **message))

    def _call(self, action: str, method: str, **details: Any) -> Any:
        """Have a method of the place called on the worker."""
        return pickle.loads(self._ask(action, method, **details))

    def _with_host(self, use: Callable[[str], _T]) -> _T:
        """Call `use` with a worker that sees the store; with another one if that cannot be reached."""
        known = _hosts.get((self.scheduler, self.store_id), self.host)
        lost: OSError | None = None
        if known is not None:
            try:
                return use(known)
            except PilotError:
                raise
            except OSError as error:
                lost = error
        found = self._find_host()
        if lost is not None and found == known:
            raise lost
        return use(found)

    def _find_host(self) -> str:
        """Ask the scheduler for a worker that sees the store now."""
        found: str | None
        found, another_may = Wire.here().call(self.scheduler, "host", store=self.store_id)
        if found is None:
            raise StoreError(
                f"cannot reach {self.url}: it is not visible here, and no worker is there now that sees the marker of "
                f"its store {self.store_id}; start a pilot on the machine that has the files, if they were not removed",
                url=self.url,
                transient=another_may,
            )
        _hosts[self.scheduler, self.store_id] = found
        return found

    @contextmanager
    def _line(self, action: str) -> Iterator[Line]:
        """A connection to the worker on which several messages may be under way."""
        with self.errors(action):
            line = self._with_host(Wire.here().line)
        try:
            with self.errors(action):
                yield line
        except StoreError:
            if line.is_lost:
                with suppress(PilotError):
                    self._find_host()  # for the next attempt
            raise
        finally:
            line.close()

    def error(self, action: str, cause: BaseException) -> StoreError:
        """What to raise when `cause` ended `action` here: a connection that was lost may come back."""
        text = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        host = _hosts.get((self.scheduler, self.store_id), self.host)
        return StoreError(
            f"cannot {action} {self.url} of store {self.store_id} through the worker {host}: {text}",
            url=self.url,
            transient=isinstance(cause, OSError),
        )

    # ------------------------------------------------------------------ files

    def read_bytes(self) -> bytes | None:
        """What a small file holds; None if there is no file."""
        data: bytes | None = self._call("read", "read_bytes")
        return data

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file at once; if `exclusive`, leave one alone that is there already."""
        self._call("write", "write_bytes", data=data, exclusive=exclusive)

    def read_range(self, start: int, nbytes: int) -> memoryview:
        """Part of a file; shorter where the file ends before."""
        if nbytes > _CHUNK:
            return memoryview(b"".join(self._pieces(start, start + nbytes)))
        data: memoryview = self._ask("read", "read", start=start, nbytes=nbytes)
        return data

    def read(self, nbytes: int | None) -> Pieces:
        """The bytes of a file in pieces."""
        # One byte more than there should be, so that a file which is longer is seen to be.
        yield from self._pieces(0, None if nbytes is None else nbytes + 1)

    def _pieces(self, start: int, stop: int | None) -> Pieces:
        """The bytes of a file from `start`, as far as `stop` or its end, over several connections at once.

        One alone begins slowly over a long way, and may stay slow where others are on it.
        """
        size = _CHUNK
        if stop is not None:
            size = min(_CHUNK, max(_SHARE, -(-(stop - start) // _CONNECTIONS)))
            if stop - start <= size:
                if chunk := self.read_range(start, stop - start):
                    yield chunk
                return
        extra = Wire.here().extra
        waiting: deque[Future[memoryview]] = deque()
        pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="dpilot-peer")
        try:
            while True:
                while stop is None or start < stop:
                    # The first one needs no leave: so this file is read however many others are.
                    if waiting and (len(waiting) >= _CONNECTIONS or not extra.acquire(blocking=False)):
                        break
                    nbytes = size if stop is None else min(size, stop - start)
                    waiting.append(pool.submit(self.read_range, start, nbytes))
                    start += nbytes
                if not waiting:
                    return
                chunk = waiting[0].result()
                waiting.popleft()
                if waiting:
                    extra.release()
                if not chunk:
                    return
                yield chunk
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # whoever stops does not wait for what is on its way
            for _ in range(len(waiting) - 1):
                extra.release()

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = 0o444) -> None:
        """Write a file from pieces. If they end in an error, what was there before stays as it was."""
        with self._line("write") as line:
            line.send(op=HANDLER, what="write", store=self.store_id, place=self.path, mode=mode)
            try:
                for piece in joined(chunks, _CHUNK):
                    while not line.claim():
                        line.receive()
                    line.send(data=to_serialize(memoryview(piece)))
                line.send(complete=True)
                line.receive_all()
            except BaseException:
                with suppress(OSError, PilotError):
                    line.send(complete=False)
                    line.receive_all()  # once it is answered, nothing is left there
                raise

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file to be read: ``"rb"`` for bytes, ``"r"`` for text in UTF-8."""
        return self._as(io.BufferedReader(_PeerFile(self, self.size()), _BUFFER), mode)

    def version(self) -> str:
        """What differs once the file has been changed."""
        return str(self._call("read", "version"))

    def size(self) -> int:
        """How many bytes the file has."""
        return int(self._call("read", "size"))

    # ------------------------------------------------------------------ directories

    def prepare(self) -> None:
        """Nothing: the worker sees the marker of the store, so its directory is there."""

    def exists(self) -> bool:
        """Whether there is a file."""
        return bool(self._call("read", "exists"))

    def subdirectories(self) -> list[str]:
        """The names of the directories directly below."""
        return list(self._call("list", "subdirectories"))

    def sizes(self) -> dict[str, int | None]:
        """The files at any depth below, by relative name, in bytes."""
        return dict(self._call("list", "sizes"))

    def ages(self) -> dict[str, float]:
        """How long ago the files at any depth below were changed: relative name to seconds."""
        return dict(self._call("list", "ages"))

    def remove(self) -> None:
        """Remove a file, if it is there."""
        self._call("remove", "remove")

    def prune(self, root: Location) -> None:
        """Remove the directories between here and the store if they are empty."""
        self._call("remove", "prune")

    def remove_tree(self) -> None:
        """Remove everything below, and the directory itself."""
        self._call("remove", "remove_tree")


class _PeerFile(io.RawIOBase):
    """A file that is open for reading, anywhere in it."""

    def __init__(self, place: PeerLocation, nbytes: int) -> None:
        self._place = place
        self._nbytes = nbytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._nbytes}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the beginning of {self._place.url}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._place.read_range(self._position, min(len(view), _CHUNK))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


#: Which worker serves a store now, by scheduler and store, where it is not the one that was named first.
_hosts: dict[tuple[str, str], str] = {}
