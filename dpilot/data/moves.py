"""Files on their way from one place to another: streamed, several at once, every byte verified."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from dpilot.data.checksum import Hasher
from dpilot.data.local import LocalLocation
from dpilot.data.location import Chunks, Location
from dpilot.data.manifest import FileEntry
from dpilot.data.retry import RETRY, Retry
from dpilot.errors import ChecksumError, StoreError, TransferStoppedError

__all__ = ["MAX_TRANSFERS", "Move", "OnBytes", "Stop", "Terms", "carry_out", "each"]

_T = TypeVar("_T")
_R = TypeVar("_R")

MAX_TRANSFERS = 8
_SMALL = 8 * 1024 * 1024

#: Called with the number of bytes that have just moved, by one thread at a time; with a negative number if a file is
#: begun again. An exception in it ends the transfer, which is also a way to cancel one.
OnBytes = Callable[[int], object]


class Stop(threading.Event):
    """Ends a transfer once it is set; then what it has made so far is removed, or left where it is.

    It is left by who is given up for lost: somebody else may be making the same thing in the same place by then, and
    begins with removing what is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaves = False

    def abandon(self) -> None:
        """End the transfer, and leave what there is."""
        self.leaves = True
        self.set()


@dataclass(frozen=True, slots=True)
class Terms:
    """How files are moved.

    Parameters
    ----------
    max_transfers : int
        How many at the same time.
    on_bytes : callable or None
        Told of progress.
    retry : Retry
        For errors that may pass.
    stop : Event
        Ends the transfer once it is set, even while it waits to try again. It is also set when the transfer fails.
    """

    max_transfers: int = MAX_TRANSFERS
    on_bytes: OnBytes | None = None
    retry: Retry = RETRY
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise, if the transfer was stopped."""
        if self.stop.is_set():
            raise TransferStoppedError("the transfer was stopped before it was complete")


@dataclass(slots=True)
class Move:
    """One file on its way; `expected` is what its manifest promises.

    With `may_delegate`, a service that has both ends may copy it by itself.
    """

    name: str
    source: Location
    target: Location
    nbytes: int | None = None
    expected: FileEntry | None = None
    mode: int = 0o444  # a store's files are read-only: they are linked into sandboxes
    may_delegate: bool = False
    done: bool = False


def carry_out(moves: Sequence[Move], terms: Terms) -> list[FileEntry]:
    """Move all files, or raise the first error once every thread has let go.

    Raises
    ------
    ChecksumError
        If a file is not what its manifest promises.
    StoreError
        If one cannot be read or written, or was changed meanwhile.
    TransferStoppedError
        If the transfer was stopped.
    """
    # Small files on disks of this machine are work for a processor, at which threads would only be in each other's way.
    busy = all(
        isinstance(move.source, LocalLocation)
        and isinstance(move.target, LocalLocation)
        and (move.nbytes or 0) < _SMALL
        for move in moves
    )
    return each(_attempt, moves, terms, 1 if busy else terms.max_transfers)


def each(work: Callable[[_T, OnBytes], _R], items: Sequence[_T], terms: Terms, threads: int | None = None) -> list[_R]:
    """Call `work` with every item and whom to tell of progress; or raise its first error, once all threads let go.

    There are so many `threads` at first, by default as many as may be, and one more whenever an item took a thread
    mostly to wait, as those of a disk behind a network do.
    """
    lock = threading.Lock()

    def progress(nbytes: int) -> None:
        terms.check()
        if terms.on_bytes is not None:
            with lock:
                terms.on_bytes(nbytes)

    def attempt(item: _T) -> _R:
        return terms.retry.run(lambda: work(item, progress), terms.stop)

    waiting = iter(enumerate(items))
    results: dict[int, _R] = {}
    failures: list[BaseException] = []

    def work_off() -> None:
        while True:
            with lock:
                number, item = next(waiting, (-1, None))
            if item is None:
                return
            begun, begun_cpu = time.perf_counter(), time.thread_time()
            try:
                results[number] = attempt(item)
            except BaseException as error:
                failures.append(error)
                terms.stop.set()
                return
            if len(working) < most and time.perf_counter() - begun > 2 * (time.thread_time() - begun_cpu):
                working.append(pool.submit(work_off))

    most = min(terms.max_transfers, len(items))
    # Not a future for each item: with many small files, those would be a good part of the work.
    working: list[Future[None]] = []
    if most <= 1:
        most = 0  # further ones
        work_off()
    else:
        with ThreadPoolExecutor(most, thread_name_prefix="dpilot-transfer") as pool:
            working += [pool.submit(work_off) for _ in range(min(most, threads or most))]
            try:
                for future in working:  # and those that are appended meanwhile
                    future.result()
            except BaseException:  # interrupted
                terms.stop.set()
                raise
    if failures:
        try:
            raise failures[0]
        finally:
            failures.clear()  # its traceback has this frame: files that were being read would be closed much later
    return [results[number] for number in range(len(items))]


def _attempt(move: Move, progress: OnBytes) -> FileEntry:
    count = 0
    progress(0)
    try:
        expected = move.expected
        if expected is not None and move.may_delegate and move.target.copy_within(move.source.origin, expected.nbytes):
            count = expected.nbytes
            progress(count)
            move.done = True
            return expected
        hasher = Hasher()

        def verified(chunks: Chunks) -> Iterator[bytes | memoryview]:
            nonlocal count
            for chunk in chunks:
                hasher.update(chunk)
                count += len(chunk)
                if watched and move.nbytes is not None and count > move.nbytes:
                    break  # it grows, perhaps faster than it can be read
                yield chunk
                progress(len(chunk))
            # Before the target is complete: a file that is wrong never gets its name.
            if expected is not None:
                _verify(move, expected, count, hasher.hexdigest())
            if watched:
                _verify_unchanged(move, before, count)

        # A checksum tells as well, where there is one, and takes no further request.
        watched = expected is None or expected.checksum is None
        before = move.source.version() if watched else None
        move.target.copy_from(move.source, verified, move.nbytes, mode=move.mode)
    except StoreError:
        if count:
            progress(-count)
        raise
    move.done = True
    return FileEntry(move.name, count, hasher.hexdigest(), expected.producer if expected else None)


def _verify(move: Move, expected: FileEntry, nbytes: int, checksum: str) -> None:
    if nbytes != expected.nbytes:
        found = f"more than {expected.nbytes}" if nbytes > expected.nbytes else str(nbytes)
        problem = f"has {found} bytes, but its manifest says {expected.nbytes}"
    elif expected.checksum is not None and checksum != expected.checksum:
        problem = f"has checksum {checksum}, but its manifest says {expected.checksum}"
    else:
        return
    raise ChecksumError(
        f"file {move.name!r}, copied from {move.source.url} to {move.target.url}, {problem}",
        name=move.name,
        source=move.source.url,
        target=move.target.url,
    )


def _verify_unchanged(move: Move, before: str | None, nbytes: int) -> None:
    """A source without a checksum must be the same before and after, and as large as whoever found it said."""
    if move.nbytes not in (None, nbytes):
        problem = f"had {move.nbytes} bytes when it was found, and {nbytes} when it was read"
    elif move.source.version() != before:
        problem = "was changed while it was read"
    else:
        return
    raise StoreError(
        f"source {move.source.url} {problem}; try again when nobody writes to it", url=move.source.url, name=move.name
    )
