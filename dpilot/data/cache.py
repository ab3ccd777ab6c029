"""A machine's cache of data units from elsewhere: each is brought once, however many units want it.

The workers of a machine share one directory and no memory, so everything is said by files::

    <root>/<entry>/...      the files of a data unit, complete (it appears by a rename)
    <root>/<entry>.part/    while they are brought
    <root>/<entry>.lock     locked: exclusively while the entry is brought or evicted, shared while it is in use

The locks are the kernel's (flock): those of a process that is killed are gone with it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dpilot.data.checksum import Hasher
from dpilot.data.manifest import Manifest
from dpilot.errors import StoreFullError

__all__ = ["Cache", "Cached", "entry_name", "is_entry"]

#: How often who waits for another one is asked whether to go on.
_LOOK_S = 0.25
_ENTRY = re.compile(r"(?P<du>[A-Za-z0-9][A-Za-z0-9._-]*)@[0-9a-f]+@[0-9]+")


class Cached(NamedTuple):
    """A data unit in the cache.

    ``path`` is the directory with its files, ``brought`` whether it had to be brought now, and ``evicted`` the ids of
    the data units that had to go for it.
    """

    path: Path
    brought: bool
    evicted: tuple[str, ...]


class Cache:
    """A directory of data units, bounded in size; the least recently used go first.

    Parameters
    ----------
    root : Path
        Made if it is not there; on this machine's own disk, for the locks to work.
    limit_nbytes : int
        How many bytes its data units may have together.
    """

    def __init__(self, root: Path, limit_nbytes: int) -> None:
        self.root = root
        self.limit_nbytes = limit_nbytes

    @contextmanager
    def hold(
        self, manifest: Manifest, bring: Callable[[Path], object], check: Callable[[], object] = lambda: None
    ) -> Iterator[Cached]:
        """Have the files of a data unit here, for as long as the context lasts.

        Parameters
        ----------
        manifest : Manifest
        bring : callable
            Puts the files into the directory that it is given, verified. It is called by one process or
            thread of the machine only; the others wait for it.
        check : callable, optional
            Called from time to time while this waits for another one; what it raises ends the waiting.

        Raises
        ------
        StoreFullError
            If the data unit is larger than what the cache may hold beside what is in use.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        entry = self.root / entry_name(manifest)
        lock = os.open(self.root / f"{entry.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            brought = False
            evicted: tuple[str, ...] = ()
            while True:
                _lock(lock, fcntl.LOCK_SH, check)
                if entry.is_dir():
                    break
                _lock(lock, fcntl.LOCK_EX, check)
                if not entry.is_dir():
                    evicted = self._bring(entry, manifest, bring)
                    brought = True
                # Going back to the shared lock may let an eviction in between, hence the loop.
            os.utime(entry)
            yield Cached(entry, brought, evicted)
        finally:
            os.close(lock)

    def find(self, manifest: Manifest) -> Path | None:
        """The directory with the files of a data unit, if it is here now. A file that is opened at once stays open."""
        entry = self.root / entry_name(manifest)
        try:
            os.utime(entry)  # it was of use
        except OSError:
            return None
        return entry

    def discard(self, manifest: Manifest) -> None:
        """Throw a data unit out, for it is damaged. Who uses it keeps what it has."""
        entry = self.root / entry_name(manifest)
        with suppress(FileNotFoundError):
            _remove(entry)

    def _bring(self, entry: Path, manifest: Manifest, bring: Callable[[Path], object]) -> tuple[str, ...]:
        part = entry.with_name(f"{entry.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of one that was killed
        evicted = self._make_room(manifest.nbytes)
        part.mkdir()
        try:
            bring(part)
            for path in part.rglob("*"):
                if path.is_file():
                    path.chmod(0o444)
            part.rename(entry)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        return evicted

    def _make_room(self, nbytes: int) -> tuple[str, ...]:
        """Evict what was not used for longest, until `nbytes` more fit."""
        found: list[tuple[float, int, Path]] = []
        for path in self.root.iterdir():
            size = _size(path)
            if size is not None:
                with suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime, size, path))
        excess = sum(size for _, size, _ in found) + nbytes - self.limit_nbytes
        evicted = []
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            if path.suffix != ".part" and self._evict(path):
                excess -= size
                evicted.append(path.name.split("@")[0])
        if excess > 0:
            raise StoreFullError(
                f"{nbytes:,} bytes do not fit into the cache {self.root}: it may hold {self.limit_nbytes:,}, and what "
                "is in use stays; set data.cache-size higher"
            )
        return tuple(evicted)

    def _evict(self, entry: Path) -> bool:
        lock = os.open(self.root / f"{entry.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(entry)
        except (BlockingIOError, FileNotFoundError):
            return False  # in use, or evicted by another one
        finally:
            os.close(lock)
        return True


def _lock(lock: int, how: int, check: Callable[[], object]) -> None:
    """Lock a file as soon as nobody is in the way."""
    with suppress(BlockingIOError):
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        return
    # In a thread, for the kernel waits for nothing else meanwhile; by a file of its own, so that `lock` may be closed.
    own, locked = os.dup(lock), Future[None]()

    def wait_for_it() -> None:
        try:
            fcntl.flock(own, how)
            locked.set_result(None)
        except OSError as error:
            locked.set_exception(error)
        finally:
            os.close(own)

    threading.Thread(target=wait_for_it, name="dpilot-lock", daemon=True).start()
    while not wait([locked], _LOOK_S).done:
        check()
    locked.result()


def _remove(entry: Path) -> None:
    gone = entry.with_name(f"{entry.name}.{time.time_ns()}.gone")
    entry.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def is_entry(name: str, du: str) -> bool:
    """Whether a name, which came from elsewhere, is that of an entry of a data unit."""
    found = _ENTRY.fullmatch(name)
    return found is not None and found["du"] == du


def entry_name(manifest: Manifest) -> str:
    """The name of a data unit's entry: its id, what is in it now, and the bytes that it takes."""
    hasher = Hasher()
    for file in manifest.files:
        hasher.update(f"{file.name}\0{file.nbytes}\0{file.checksum}\0".encode())
    return f"{manifest.du}@{hasher.hexdigest().partition(':')[2]}@{manifest.nbytes}"


def _size(path: Path) -> int | None:
    """The bytes that an entry takes, or will take when it has been brought; None for what is no entry."""
    parts = path.name.removesuffix(".part").split("@")
    return int(parts[2]) if len(parts) == 3 and parts[2].isdigit() else None
