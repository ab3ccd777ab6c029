"""Files of this machine, by the operating system's own calls: faster than fsspec, and a file is replaced at once."""

from __future__ import annotations

import io
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dpilot.data.location import Chunks, Location, Pieces
from dpilot.data.names import TEMPORARY

__all__ = ["LocalLocation"]

#: Files are read in pieces that stay in the processor's cache while they are hashed and written.
_CHUNK = 256 * 1024
#: They are written in smaller ones: Linux makes the folios of a file's page cache as large as what is written at once,
#: and beyond 32 KiB, finding those is not always fast: on a virtual machine, 2 GiB took 0.75 s in pieces of 32 KiB,
#: 1.0 to 1.5 s in 64 KiB, 0.7 to 2.8 s in 128 KiB.
_WRITE = 32 * 1024
#: The kernel is asked to copy so many bytes at once; a file of more is read back and hashed meanwhile.
_COPY = 8 * 1024 * 1024
#: Buffers that nobody uses at the moment: new memory costs more than reading a small file into it.
_buffers: deque[memoryview] = deque(maxlen=16)


@contextmanager
def _buffer() -> Iterator[memoryview]:
    try:
        view = _buffers.pop()
    except IndexError:
        view = memoryview(bytearray(_CHUNK))
    try:
        yield view
    finally:
        _buffers.append(view)


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
        with self._new(0o444, exclusive=exclusive) as file:
            self._write(file, data)

    def read(self, nbytes: int | None) -> Pieces:
        """The bytes of a file in pieces; each is valid until the next one is asked for."""
        with self.errors("read"):
            file = io.FileIO(self.path)
        with file:
            yield from self._pieces(file)

    def _pieces(self, file: io.FileIO) -> Pieces:
        """The rest of an open file of this path."""
        with _buffer() as view:
            while True:
                with self.errors("read"):
                    count = file.readinto(view)
                if not count:
                    return
                yield view[:count]

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = 0o444) -> None:
        """Write a file from pieces. If they end in an error, what was there before stays as it was."""
        with self._new(mode) as file:
            for chunk in chunks:
                self._write(file, chunk)

    def _write(self, file: io.FileIO, chunk: bytes | memoryview) -> None:
        view = memoryview(chunk)
        with self.errors("write"):
            while view:
                view = view[file.write(view[:_WRITE]) :]

    def copy_from(
        self, source: Location, seen: Callable[[Chunks], Chunks], nbytes: int | None = None, *, mode: int = 0o444
    ) -> None:
        """Write what is in the file at `source`. If anything fails, what was there before stays as it was.

        Of a file of this machine, the kernel makes the copy; the pieces that are seen are those of the copy.
        """
        if not (nbytes and isinstance(source, LocalLocation) and hasattr(os, "copy_file_range")):
            super(LocalLocation, self).copy_from(source, seen, nbytes, mode=mode)
            return
        with source.errors("read"):
            given = io.FileIO(source.path)
        with given, self._new(mode) as file:
            pieces = self._copied_at_once if nbytes <= _COPY else self._copied
            with closing(pieces(source, given, file)) as copied:
                for _ in seen(copied):
                    pass

    def _copied_at_once(self, source: LocalLocation, given: io.FileIO, file: io.FileIO) -> Pieces:
        """The pieces of a small file, once all of it has been copied."""
        start = 0
        while count := _copy(given, file):
            yield from self._back(file, start, count)
            start += count
        yield from self._by_hand(source, given, file)

    def _copied(self, source: LocalLocation, given: io.FileIO, file: io.FileIO) -> Pieces:
        """The pieces of a large file, each while further ones are copied."""
        start = 0
        with ThreadPoolExecutor(1, thread_name_prefix="dpilot-copy") as pool:
            # Two at a time, so that the copying thread always has the next one to do.
            copying = deque(pool.submit(_copy, given, file) for _ in range(2))
            while copying:
                if count := copying.popleft().result():
                    copying.append(pool.submit(_copy, given, file))
                    yield from self._back(file, start, count)
                    start += count
        yield from self._by_hand(source, given, file)

    def _back(self, file: io.FileIO, start: int, nbytes: int) -> Pieces:
        """What has been written, in pieces."""
        end = start + nbytes
        with _buffer() as view:
            while start < end:
                with self.errors("read"):
                    count = os.preadv(file.fileno(), [view[: end - start]], start)
                if not count:
                    return  # somebody else made it shorter, which the checksum will tell
                yield view[:count]
                start += count

    def _by_hand(self, source: LocalLocation, given: io.FileIO, file: io.FileIO) -> Pieces:
        """What the kernel did not copy: nothing, or all from where it could not, and the reason as an error of ours."""
        for piece in source._pieces(given):
            self._write(file, piece)
            yield piece

    @contextmanager
    def _new(self, mode: int, *, exclusive: bool = False) -> Iterator[io.FileIO]:
        """Open a file under a temporary name, and rename it once it is complete: nobody ever sees half a file.

        There is no fsync: what a power failure leaves is found by the checksums, and every file would
        cost milliseconds.
        """
        # By text: with many small files, paths as objects would be a third of the work.
        temporary = f"{self.path.rpartition('/')[0]}/{TEMPORARY}-{uuid.uuid4().hex}"
        with self.errors("write"):
            file = self._create(temporary, mode)
        try:
            with file:
                yield file
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
                return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w+")
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


def _copy(given: io.FileIO, file: io.FileIO) -> int:
    """Have the kernel copy the next bytes, which a file system may do without any; 0 at the end, or if it cannot."""
    try:
        return os.copy_file_range(given.fileno(), file.fileno(), _COPY)
    except OSError:
        return 0
