"""One place on one file system that fsspec reaches, with credentials kept out of sight.

:class:`Location` does for any of them; its subclasses do the same faster, or as it must be done, for one kind.
Errors of all become a :class:`~dpilot.errors.StoreError` that names the place and the cause.
"""

from __future__ import annotations

import errno
import io
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import IO, Any, ClassVar

import fsspec

from dpilot.data.retry import may_pass
from dpilot.errors import PilotError, StoreError, StoreFullError

__all__ = ["CHUNK", "CREDENTIALS", "SECRET_QUERY", "Chunks", "Location", "Pieces", "joined", "redacted"]

#: Before the "@" of a URL: user:password (not host:port; a key may have slashes), or a lone key where no user name
#: is ever meant. container@account of Azure and user@host of ssh are no secrets.
CREDENTIALS = re.compile(
    r"""(?<=://)[^/@\s]*:(?!\d+(?:[/?#\s"']|$))\S*@"""
    r"|(?<=s3://)[^/@\s]+@|(?<=s3a://)[^/@\s]+@|(?<=gs://)[^/@\s]+@|(?<=http://)[^/@\s]+@|(?<=https://)[^/@\s]+@",
    re.IGNORECASE,
)
SECRET_QUERY = re.compile(r"[?&][^=&/]*(auth|credential|key|password|secret|sig|token)[^=&/]*=", re.IGNORECASE)
#: Storage options that are no secret: worth reading in an error.
_HARMLESS = frozenset({"endpoint_url", "host", "protocol", "region_name", "signature_version", "username"})

#: Files are read and written in pieces that are large beside a round trip, and at least the smallest part of an upload
#: to S3 (5 MiB).
CHUNK = 8 * 1024 * 1024
_MAX_PARTS = 9_000  # S3 takes 10,000

#: What file systems of fsspec tell of a file that changes with its content.
_VERSION = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "modified", "created")
#: What they tell of when: a datetime, or seconds since the epoch.
_CHANGED = ("mtime", "LastModified", "last_modified", "modified", "created")
#: The most that :meth:`Location.read_bytes` reads; a manifest of a million files takes some 150 MB.
_SMALL = 256 * 1024 * 1024
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

Chunks = Iterable[bytes | memoryview]
#: What is read of a file.
Pieces = Generator[bytes | memoryview, None, None]


def redacted(url: str) -> str:
    """A URL without password, and without its query where that looks like a signature."""
    url = CREDENTIALS.sub("***@", url)
    return url.partition("?")[0] + "?***" if SECRET_QUERY.search(url) else url


def _secrets(options: Any) -> Iterator[str]:
    """All text in storage options that may be a credential; better one too many than one too few."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key not in _HARMLESS:
                yield from _secrets(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from _secrets(value)
    elif isinstance(options, bytes):
        yield options.decode("latin-1")
    elif isinstance(options, str) and len(options) > 3:
        yield options


@dataclass(frozen=True, slots=True)
class Location:
    """A file or directory that fsspec reaches.

    Stores, transfers and staging know a place by these methods only, so a subclass that has them is a place like any
    other: ``read_bytes``, ``write_bytes``, ``read``, ``write``, ``copy_from``, ``open``, ``version``, ``size``,
    ``copy_within`` for files, ``prepare``, ``exists``, ``subdirectories``, ``sizes``, ``ages``, ``remove``, ``prune``,
    ``remove_tree`` for what is there, each as documented here. A subclass that has all that do something needs no
    ``fs``.
    Places pickle, and several threads may use one. Whatever goes wrong in a method is raised as a
    :class:`~dpilot.errors.StoreError` made by :meth:`error`; that a file is not there is an error for ``read``,
    ``open``, ``version`` and ``size`` only.

    Parameters
    ----------
    protocol : str
    url : str
        Free of credentials, fit to be shown.
    path : str
        What the file system knows it by.
    options : dict
        What fsspec needs to reach it. Never shown.
    """

    #: Whether nothing can be written or removed there, whoever asks.
    read_only: ClassVar[bool] = False

    protocol: str
    url: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    # ------------------------------------------------------------------ naming

    def child(self, name: str) -> Location:
        """The place of that relative name below this one. The name must have been checked."""
        separator = "" if self.url.endswith("/") else "/"
        return replace(self, url=f"{self.url}{separator}{name}", path=f"{self.path}/{name}")

    @property
    def local(self) -> Path | None:
        """The path, where the place is on a file system of this machine."""
        return None

    @property
    def origin(self) -> Location:
        """The place that this one stands for: itself."""
        return self

    @property
    def fs(self) -> Any:
        """The fsspec file system. fsspec keeps the instances, one per process or thread as it needs."""
        return fsspec.filesystem(self.protocol, **self.options)

    # ------------------------------------------------------------------ errors

    def error(self, action: str, cause: BaseException) -> StoreError:
        """What to raise when `cause` ended `action` ("read", "write", ...) here; credentials are struck out."""
        if isinstance(cause, FileNotFoundError):
            text = "there is no such file, directory or bucket"
        elif isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        else:
            text = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        text = CREDENTIALS.sub("***@", text)
        for secret in sorted(set(_secrets(self.options)), key=len, reverse=True):
            text = text.replace(secret, "***")
        if isinstance(cause, OSError) and cause.errno in _FULL:
            text += "; free some space there, or choose another store"
            return StoreFullError(f"cannot {action} {self.url}: {text}", url=self.url)
        return StoreError(f"cannot {action} {self.url}: {text}", url=self.url, transient=may_pass(cause))

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn every error of the block into a :class:`StoreError`."""
        try:
            yield
        except PilotError:
            raise
        except Exception as error:
            # Its text may hold credentials, so it must not follow ours in a traceback.
            raise self.error(action, error) from None if self.options else error

    # ------------------------------------------------------------------ whole files

    def read_bytes(self) -> bytes | None:
        """What a small file holds; None if there is no file.

        Raises
        ------
        StoreError
            If it has more than 256 MiB: it comes from outside, and must not fill the memory.
        """
        with self.errors("read"):
            try:
                # A range spares S3 the question how large the object is.
                data = bytes(self.fs.cat_file(self.path, start=0, end=_SMALL + 1))
            except FileNotFoundError:
                return None
            except OSError as error:
                # S3 has no range of an empty object.
                if error.errno == errno.EINVAL and self.fs.info(self.path)["size"] == 0:
                    return b""
                raise
            self._expect_small(len(data))
            return data

    def _expect_small(self, nbytes: int) -> None:
        if nbytes > _SMALL:
            problem = f"it has more than {_SMALL} bytes, so it is not ours"
            raise StoreError(f"cannot read {self.url}: {problem}", url=self.url)

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file at once; if `exclusive`, leave one alone that is there already."""
        with self.errors("write"):
            self._make_parent()
            try:
                self.fs.pipe_file(self.path, data, **({"mode": "create"} if exclusive else {}))
            except OSError:
                # That there is one already has a different error on each file system: s3fs says EINVAL.
                if not (exclusive and self.fs.exists(self.path)):
                    raise

    def read_range(self, start: int, nbytes: int) -> bytes | memoryview:
        """Part of a file; shorter where the file ends before."""
        with self.errors("read"):
            return bytes(self.fs.cat_file(self.path, start=start, end=start + nbytes))

    # ------------------------------------------------------------------ streams

    def read(self, nbytes: int | None) -> Pieces:
        """The bytes of a file in pieces; each is valid until the next one is asked for.

        Whoever does not read to the end, for whatever reason, is to close it: there may be threads behind it, which the
        garbage collector might end in the midst of anything.

        Parameters
        ----------
        nbytes : int or None
            How many there should be, where that is known. A longer file gives at least one byte more.
        """
        with self.errors("read"), self._stream() as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def _stream(self) -> Any:
        """The file, opened to be read from its beginning to its end."""
        return self.fs.open(self.path, "rb", block_size=CHUNK)

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = 0o444) -> None:
        """Write a file from pieces. If they end in an error, there is no file afterwards.

        Parameters
        ----------
        chunks : iterable of bytes
        nbytes : int or None
            How many there will be, where that is known.
        mode : int
            Permissions before the umask, on local file systems.
        """
        pieces = joined(chunks, CHUNK)
        head, second = next(pieces, b""), next(pieces, None)
        with self.errors("write"):
            self._make_parent()
            if second is None:
                self.fs.pipe_file(self.path, head)
                return
            block = max(CHUNK, (nbytes or 0) // _MAX_PARTS + 1)
            file = self.fs.open(self.path, "wb", block_size=block)
        try:
            for piece in chain((head, second), pieces):
                with self.errors("write"):
                    file.write(piece)
            with self.errors("write"):
                file.close()
        except BaseException:
            # close() would commit what there is, and so would the garbage collector.
            with suppress(Exception):
                file.discard()
            with suppress(Exception):
                file.closed = True
            with suppress(Exception):
                self.fs.rm_file(self.path)
            raise

    def copy_from(
        self, source: Location, seen: Callable[[Chunks], Chunks], nbytes: int | None = None, *, mode: int = 0o444
    ) -> None:
        """Write what is in the file at `source`. If anything fails, there is no file afterwards.

        Parameters
        ----------
        source : Location
        seen : callable
            Passes the pieces on after a look at each, such as to hash them; raises if they are not what they should be.
        nbytes, mode
            As in :meth:`write`.
        """
        with closing(source.read(nbytes)) as pieces:
            self.write(seen(pieces), nbytes, mode=mode)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file to be read: ``"rb"`` for bytes, ``"r"`` for text in UTF-8."""
        with self.errors("read"):
            return self._as(self.fs.open(self.path, "rb", block_size=CHUNK), mode)

    @staticmethod
    def _as(file: IO[Any], mode: str) -> IO[Any]:
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    def version(self) -> str | None:
        """What differs once the file has been changed; None where its file system does not tell.

        Raises
        ------
        StoreError
            If the file is not there.
        """
        with self.errors("read"):
            self.fs.invalidate_cache(self.path)
            row = self.fs.info(self.path)
        return " ".join(f"{key}={row[key]}" for key in _VERSION if row.get(key) is not None) or None

    def size(self) -> int | None:
        """How many bytes the file has; None where its file system does not tell.

        Raises
        ------
        StoreError
            If the file is not there.
        """
        with self.errors("read"):
            self.fs.invalidate_cache(self.path)
            found: int | None = self.fs.info(self.path).get("size")
            return found

    def shares_service(self, source: Location) -> bool:
        """Whether `source` is reached as this place is: by the same protocol, host and credentials."""
        return (type(self), self.protocol, self.options) == (type(source), source.protocol, source.options)

    def copy_within(self, source: Location, nbytes: int) -> bool:
        """Copy a file from `source` to here, if the service that has both can do it without sending us its bytes.

        Parameters
        ----------
        source : Location
        nbytes : int
            How many bytes it must have.

        Returns
        -------
        bool
            False if it cannot, or the file is not there or has another size: then copying it byte by byte will work, or
            say what is wrong.
        """
        return False

    # ------------------------------------------------------------------ directories

    def prepare(self) -> None:
        """Make this directory, which is to be the root of a store."""
        with self.errors("open"):
            self.fs.makedirs(self.path, exist_ok=True)

    def exists(self) -> bool:
        """Whether there is a file."""
        with self.errors("read"):
            return bool(self.fs.exists(self.path))

    def subdirectories(self) -> list[str]:
        """The names of the directories directly below."""
        with self.errors("list"):
            self.fs.invalidate_cache(self.path)
            try:
                rows = self.fs.ls(self.path, detail=True)
            except FileNotFoundError:
                return []
            return sorted(r["name"].rstrip("/").rpartition("/")[2] for r in rows if r["type"] == "directory")

    def sizes(self) -> dict[str, int | None]:
        """The files at any depth below: relative name to bytes, None where the file system does not say."""
        with self.errors("list"):
            self.fs.invalidate_cache(self.path)
            found = self.fs.find(self.path, detail=True)
            prefix = f"{self.path}/"
            return {path[len(prefix) :]: row.get("size") for path, row in found.items() if path.startswith(prefix)}

    def ages(self) -> dict[str, float]:
        """How long ago the files at any depth below were changed: relative name to seconds, where that is known."""
        with self.errors("list"):
            self.fs.invalidate_cache(self.path)
            found = self.fs.find(self.path, detail=True)
        return self._ages({path.removeprefix(f"{self.path}/"): row for path, row in found.items()})

    @staticmethod
    def _ages(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        now = time.time()
        times = {name: next((row[key] for key in _CHANGED if row.get(key)), None) for name, row in rows.items()}
        seconds = {name: at.timestamp() if isinstance(at, datetime) else at for name, at in times.items()}
        return {name: now - at for name, at in seconds.items() if isinstance(at, int | float)}

    def remove(self) -> None:
        """Remove a file, if it is there."""
        with self.errors("remove"), suppress(FileNotFoundError):
            self.fs.rm_file(self.path)

    def prune(self, root: Location) -> None:
        """Remove the directories between here and `root` if they are empty, where that matters: on a local disk."""

    def remove_tree(self) -> None:
        """Remove everything below."""
        # One by one: fs.rm() takes a name with an asterisk for a pattern.
        for name in self.sizes():
            self.child(name).remove()
        with suppress(Exception):  # an empty directory is no data
            self.fs.rm(self.path, recursive=True)

    def _make_parent(self) -> None:
        self.fs.makedirs(self.path.rpartition("/")[0], exist_ok=True)


def joined(chunks: Chunks, nbytes: int) -> Iterator[bytes]:
    """The same bytes in pieces of at least `nbytes`, but for the last; none is empty."""
    buffer = io.BytesIO()
    for chunk in chunks:
        buffer.write(chunk)
        if buffer.tell() >= nbytes:
            yield buffer.getvalue()
            buffer = io.BytesIO()
    if buffer.tell():
        yield buffer.getvalue()
