"""Files of this machine, by the operating system's own calls: faster than fsspec, and a file is replaced at once."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from dpilot.data.location import Chunks, Location
from dpilot.data.names import TEMPORARY

__all__ = ["LocalLocation"]

#: Files are read in pieces that stay in the processor's cache while they are hashed and written.
_CHUNK = 256 * 1024
#: From so many bytes on, reading and writing at the same time saves more than a thread costs; and how many pieces the
#: thread may be ahead.
_LARGE = 8 * 1024 * 1024
_AHEAD = 4
#: Buffers that nobody uses at the moment: new memory costs more than reading a small file into it.
_buffers: deque[memoryview] = deque(maxlen=16)


@dataclass(frozen=True, slots=True)
class LocalLocation(Location):
    """A file or directory on a file system that this machine has mounted."""

    def child(self, name: str) -> LocalLocation:
        """The place of that relative name below this one. The name must have been checked."""
        path = f"{self.path.rstrip('/')}/{name}"
        return LocalLocation("file", f"file://{path}", path)

    @property
    def local(self) -> Path:
        """The path."""
        return Path(self.path)

    def read_bytes(self) -> bytes | None:
        """What a small file holds; None if there is no file."""
        with self.errors("read"):
            try:
                self._expect_small(self.local.stat().st_size)
                return self.local.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_range(self, start: int, nbytes: int) -> bytes:
        """Part of a file; shorter where the file ends before."""
        with self.errors("read"), self.local.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(nbytes)

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file at once; if `exclusive`, leave one alone that is there already."""
        self._place([data], 0o444, exclusive)

    def read(self, nbytes: int | None) -> Iterator[bytes | memoryview]:
        """The bytes of a file in pieces; each is valid until the next one is asked for."""
        with self.errors("read"):
            file = io.FileIO(self.path)
        with file:
            if os.fstat(file.fileno()).st_size >= _LARGE:
                yield from self._read_ahead(file)
                return
            try:
                view = _buffers.pop()
            except IndexError:
                view = memoryview(bytearray(_CHUNK))
            try:
                while True:
                    with self.errors("read"):
                        count = file.readinto(view)
                    if not count:
                        return
                    yield view[:count]
            finally:
                _buffers.append(view)

    def _read_ahead(self, file: io.FileIO) -> Iterator[memoryview]:
        """The pieces of a large file, read by a thread of its own while the ones before are hashed and written."""
        free: SimpleQueue[memoryview | None] = SimpleQueue()
        full: SimpleQueue[tuple[memoryview, int] | OSError] = SimpleQueue()

        def fill() -> None:
            try:
                while (view := free.get()) is not None:
                    count = file.readinto(view)
                    full.put((view, count))
                    if not count:
                        return
            except OSError as error:
                full.put(error)

        for _ in range(_AHEAD):
            free.put(memoryview(bytearray(_CHUNK)))
        thread = threading.Thread(target=fill, name="dpilot-read-ahead")
        thread.start()
        try:
            while True:
                item = full.get()
                if isinstance(item, OSError):
                    raise self.error("read", item) from item
                view, count = item
                if not count:
                    return
                yield view[:count]
                free.put(view)
        finally:
            free.put(None)
            thread.join()

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = 0o444) -> None:
        """Write a file from pieces. If they end in an error, what was there before stays as it was."""
        self._place(chunks, mode, exclusive=False)

    def _place(self, chunks: Chunks, mode: int, exclusive: bool) -> None:
        """Write to a temporary name, then rename: nobody ever sees half a file.

        There is no fsync: what a power failure leaves is found by the checksums, and every file would
        cost milliseconds.
        """
        # By text: with many small files, paths as objects would be a third of the work.
        temporary = f"{self.path.rpartition('/')[0]}/{TEMPORARY}-{uuid.uuid4().hex}"
        with self.errors("write"):
            file = self._create(temporary, mode)
        try:
            with file:
                for chunk in chunks:
                    with self.errors("write"):
                        view = memoryview(chunk)
                        while view:
                            view = view[file.write(view) :]
            with self.errors("write"):
                if exclusive:
                    with suppress(FileExistsError):
                        os.link(temporary, self.path)  # unlike a rename, never takes another's place
                else:
                    os.replace(temporary, self.path)  # noqa: PTH105
                    return
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        Path(temporary).unlink()

    @staticmethod
    def _create(path: str, mode: int) -> io.FileIO:
        while True:
            try:
                return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w")
            except FileNotFoundError:
                # Again, if the directory was removed in between, as another transfer's leftover.
                Path(path).parent.mkdir(parents=True, exist_ok=True)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file to be read: ``"rb"`` for bytes, ``"r"`` for text in UTF-8."""
        with self.errors("read"):
            return self.local.open(mode, encoding=None if "b" in mode else "utf-8")

    def version(self) -> str:
        """What differs once the file has been changed."""
        with self.errors("read"):
            status = self.local.stat()
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"

    def size(self) -> int:
        """How many bytes the file has."""
        with self.errors("read"):
            return self.local.stat().st_size

    def prepare(self) -> None:
        """Make this directory."""
        with self.errors("open"):
            self.local.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.local.is_file()

    def subdirectories(self) -> list[str]:
        """The names of the directories directly below."""
        with self.errors("list"), os.scandir(self.path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def sizes(self) -> dict[str, int | None]:
        """The files at any depth below, by relative name, in bytes."""
        with self.errors("list"):
            return {
                os.path.relpath(path, self.path): path.lstat().st_size
                for top, _, names in os.walk(self.path)
                for path in map(Path(top).joinpath, names)
            }

    def ages(self) -> dict[str, float]:
        """How long ago the files at any depth below were changed: relative name to seconds."""
        now = time.time()
        with self.errors("list"):
            found = {}
            for top, _, names in os.walk(self.path):
                for path in map(Path(top).joinpath, names):
                    with suppress(FileNotFoundError):  # renamed or removed meanwhile
                        found[os.path.relpath(path, self.path)] = now - path.lstat().st_mtime
            return found

    def remove(self) -> None:
        """Remove a file, if it is there."""
        with self.errors("remove"):
            self.local.unlink(missing_ok=True)

    def prune(self, root: Location) -> None:
        """Remove the directories between here and `root` if they are empty."""
        for parent in self.local.parents:
            if parent == root.local:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return  # not empty

    def remove_tree(self) -> None:
        """Remove everything below, and the directory itself."""
        with self.errors("remove"), suppress(FileNotFoundError):
            shutil.rmtree(self.path)
