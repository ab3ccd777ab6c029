"""One place on one file system, local or behind fsspec, with credentials kept out of sight.

:class:`Location` is anything that fsspec reaches; :class:`LocalLocation` does the same with the operating
system's own calls, which are faster and can replace a file at once. Errors of either become a
:class:`~dpilot.errors.StoreError` that names the place and the cause.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

import fsspec

from dpilot.data.names import TEMPORARY
from dpilot.errors import DescriptionError, PilotError, StoreError

__all__ = ["LocalLocation", "Location", "locate"]

#: Protocols of object stores: no directories, a put is visible at once or not at all, and the first
#: part of a path is a bucket, which is not ours to make.
_OBJECT_STORES = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "s3", "s3a", "tos"})
_S3 = frozenset({"s3", "s3a"})
_HTTP = frozenset({"http", "https"})
_NEED_HOST = _OBJECT_STORES | _HTTP | {"ftp", "sftp", "smb", "ssh", "webhdfs"}
_LOCAL_HOSTS = frozenset({"", "localhost", "127.0.0.1"})

_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
#: Before the "@" of a URL: user:password (not host:port; a key may have slashes), or a lone key where no user name
#: is ever meant. container@account of Azure and user@host of ssh are no secrets.
_CREDENTIALS = re.compile(
    r"""(?<=://)[^/@\s]*:(?!\d+(?:[/?#\s"']|$))\S*@"""
    r"|(?<=s3://)[^/@\s]+@|(?<=s3a://)[^/@\s]+@|(?<=gs://)[^/@\s]+@|(?<=http://)[^/@\s]+@|(?<=https://)[^/@\s]+@",
    re.IGNORECASE,
)
_SECRET_QUERY = re.compile(r"[?&][^=&/]*(auth|credential|key|password|secret|sig|token)[^=&/]*=", re.IGNORECASE)
#: Storage options that are no secret: worth reading in an error.
_HARMLESS = frozenset({"endpoint_url", "host", "protocol", "region_name", "signature_version", "username"})

#: Local files are read in pieces that stay in the processor's cache while they are hashed and written.
_LOCAL_CHUNK = 256 * 1024
#: Others in pieces that are large beside a round trip, and at least S3's smallest part of an upload (5 MiB).
_REMOTE_CHUNK = 8 * 1024 * 1024
_MAX_PARTS = 9_000  # S3 takes 10,000

Chunks = Iterable[bytes | memoryview]


def locate(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None, *, field: str) -> Location:
    """Read a path or URL.

    Parameters
    ----------
    url : str or path
        A path, ``file://`` followed by an absolute or relative path (with or without ``localhost``), or any
        URL of a protocol that fsspec knows. ``ssh://localhost/PATH`` is a path on this machine.
    options : mapping, optional
        What fsspec needs to reach it.
    field : str
        The key of the description that the URL came from, for the errors.

    Raises
    ------
    DescriptionError
        If it is malformed, has a password in it, or its protocol is unknown or needs a package.
    """
    if isinstance(url, os.PathLike):
        return _local(os.fspath(url))
    shown = redacted(url) if isinstance(url, str) else url

    def refuse(problem: str) -> NoReturn:
        raise DescriptionError(f"{field} {shown!r} {problem}", field=field, value=shown)

    if not isinstance(url, str) or not url.strip():
        refuse("is neither a path nor a URL, such as file:///data/store or s3://bucket/prefix")
    if "\0" in url:
        refuse("contains a NUL character")
    if url.startswith("file:/") and not url.startswith("file://"):
        url = url.removeprefix("file:")
    match = _URL.match(url)
    if match is None:
        if url.startswith("://"):
            refuse("has no protocol before '://'")
        if "::" in url.partition("/")[0]:
            refuse("is a chain of protocols; name the innermost one alone")
        if _ONE_SLASH.match(url) and not Path(url).exists():
            refuse("is malformed; a URL has two slashes after the protocol, such as s3://bucket/prefix")
        return _local(os.path.expanduser(url))  # noqa: PTH111 (as text: a Path loses what it starts with)
    protocol, rest = match["protocol"].lower(), match["rest"]
    if protocol in ("file", "local", "ssh"):
        host, slash, path = rest.partition("/")
        if host in _LOCAL_HOSTS:
            return _local(slash + path) if slash else refuse("names no path")
        if protocol != "ssh":  # a relative path
            return _local(rest)
    return _remote(protocol, url, dict(options or {}), refuse)


def _local(path: str) -> LocalLocation:
    absolute = os.path.abspath(path)  # noqa: PTH100 (resolve() would follow links)
    return LocalLocation("file", f"file://{absolute}", absolute)


def _remote(protocol: str, url: str, options: dict[str, Any], refuse: Any) -> Location:
    if _CREDENTIALS.search(url) or (protocol not in _HTTP and _SECRET_QUERY.search(url)):
        refuse("has credentials in it; put them into storage_options or fsspec's configuration")
    try:
        cls = fsspec.get_filesystem_class(protocol)
    except ValueError:
        refuse(f"has the unknown protocol {protocol!r}; fsspec knows {', '.join(sorted(fsspec.available_protocols()))}")
    except ImportError as error:
        refuse(f"needs a package that is not installed: {error}")
    host = url.partition("://")[2].partition("/")[0]
    if not _is_host(host):
        refuse("is malformed: what follows '://' is neither a host nor a bucket")
    if protocol in _NEED_HOST and not host:
        refuse(f"names no {'bucket' if protocol in _OBJECT_STORES else 'host'}")
    path = str(cls._strip_protocol(url))
    stripped = url if protocol in _HTTP else url.rstrip("/")
    if stripped.endswith(":"):  # the root of a protocol without hosts, such as memory://
        stripped += "//"
    return Location(protocol, redacted(stripped), path.rstrip("/"), cls._get_kwargs_from_urls(url) | options)


def _is_host(text: str) -> bool:
    try:
        _ = urlsplit(f"//{text}").port  # raises, if it is no number
    except ValueError:
        return False
    return not any(char.isspace() for char in text)


def redacted(url: str) -> str:
    """A URL without password, and without its query where that looks like a signature."""
    url = _CREDENTIALS.sub("***@", url)
    return url.partition("?")[0] + "?***" if _SECRET_QUERY.search(url) else url


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


@functools.cache
def _s3_session(pid: int) -> Any:
    """One session for all S3 file systems of this process (`pid`: a fork must not use its parent's).

    It holds botocore's model of S3, which takes 0.1 s to load; credentials are not in it.
    """
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    return AioSession()


@functools.cache
def _s3_parameters() -> frozenset[str]:
    return frozenset(inspect.signature(fsspec.get_filesystem_class("s3")).parameters) - {"session"}


@dataclass(frozen=True, slots=True)
class Location:
    """A file or directory that fsspec reaches.

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
    def fs(self) -> Any:
        """The fsspec file system. fsspec keeps the instances, one per process or thread as it needs."""
        options = dict(self.options)
        if self.protocol in _S3:
            # Options that s3fs has no parameter for, such as `profile`, are for a session of their own.
            if (options | fsspec.config.conf.get("s3", {})).keys() <= _s3_parameters():
                options["session"] = _s3_session(os.getpid())
            options["use_listings_cache"] = False  # other processes write there too
        return fsspec.filesystem(self.protocol, **options)

    # ------------------------------------------------------------------ errors

    def error(self, action: str, cause: BaseException) -> StoreError:
        """What to raise when `cause` ended `action` ("read", "write", ...) here; credentials are struck out."""
        if isinstance(cause, FileNotFoundError):
            text = "there is no such file, directory or bucket"
        elif isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror
        else:
            text = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        text = _CREDENTIALS.sub("***@", text)
        for secret in sorted(set(_secrets(self.options)), key=len, reverse=True):
            text = text.replace(secret, "***")
        return StoreError(f"cannot {action} {self.url}: {text}", url=self.url)

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
        """What a small file holds; None if there is no file."""
        with self.errors("read"):
            try:
                # A range, though open, spares S3 the question how large the object is.
                return bytes(self.fs.cat_file(self.path, start=0, end=None))
            except FileNotFoundError:
                return None

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

    # ------------------------------------------------------------------ streams

    def read(self, nbytes: int | None) -> Iterator[bytes | memoryview]:
        """The bytes of a file in pieces; each is valid until the next one is asked for.

        Parameters
        ----------
        nbytes : int or None
            How many there should be, where that is known. A longer file gives at least one byte more.
        """
        if nbytes and self.protocol in _OBJECT_STORES:
            # Ranges spare the request for the size that open() makes: most files take one request.
            for start in range(0, nbytes, _REMOTE_CHUNK):
                end = start + _REMOTE_CHUNK
                with self.errors("read"):
                    try:
                        chunk = self.fs.cat_file(self.path, start=start, end=end if end < nbytes else nbytes + 1)
                    except OSError:
                        if self.fs.info(self.path)["size"] > start:
                            raise
                        return  # it is shorter than that, and a range behind its end is an error
                yield chunk
            return
        with self.errors("read"):
            # 0 makes a stream of it: not every web server can begin in the middle of a file.
            file = self.fs.open(self.path, "rb", block_size=0 if self.protocol in _HTTP else _REMOTE_CHUNK)
        with file:
            while True:
                with self.errors("read"):
                    chunk = file.read(_REMOTE_CHUNK)
                if not chunk:
                    return
                yield chunk

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
        pieces = iter(chunks)
        head, ended = _up_to(pieces, _REMOTE_CHUNK)
        with self.errors("write"):
            self._make_parent()
            if ended:
                self.fs.pipe_file(self.path, head)
                return
            block = max(_REMOTE_CHUNK, (nbytes or 0) // _MAX_PARTS + 1)
            file = self.fs.open(self.path, "wb", block_size=block)
        try:
            while head:
                with self.errors("write"):
                    file.write(head)
                head, ended = _up_to(pieces, _REMOTE_CHUNK)
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

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file to be read: ``"rb"`` for bytes, ``"r"`` for text in UTF-8."""
        with self.errors("read"):
            file: IO[Any] = self.fs.open(self.path, "rb", block_size=_REMOTE_CHUNK)
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    # ------------------------------------------------------------------ directories

    def prepare(self) -> None:
        """Make this the root of a store: a directory, or in a bucket that is there."""
        with self.errors("open"):
            if self.protocol in _OBJECT_STORES:
                # Some servers make a bucket when a file is put into it, and a misspelt one must not be made.
                self.fs.info(self.path.partition("/")[0])
            else:
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
        if self.protocol not in _OBJECT_STORES:
            with suppress(Exception):  # an empty directory is no data
                self.fs.rm(self.path, recursive=True)

    def _make_parent(self) -> None:
        if self.protocol not in _OBJECT_STORES:
            self.fs.makedirs(self.path.rpartition("/")[0], exist_ok=True)


def _up_to(pieces: Iterator[bytes | memoryview], nbytes: int) -> tuple[bytes, bool]:
    """Join pieces until there are more than `nbytes`, or no more of them; the second value says which."""
    buffer = io.BytesIO()
    for piece in pieces:
        buffer.write(piece)
        if buffer.tell() > nbytes:
            return buffer.getvalue(), False
    return buffer.getvalue(), True


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
                return self.local.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file at once; if `exclusive`, leave one alone that is there already."""
        self._place([data], 0o444, exclusive)

    def read(self, nbytes: int | None) -> Iterator[bytes | memoryview]:
        """The bytes of a file in pieces; each is valid until the next one is asked for."""
        with self.errors("read"):
            file = self.local.open("rb", buffering=0)
        with file:
            view = memoryview(bytearray(min(_LOCAL_CHUNK, nbytes + 1) if nbytes else _LOCAL_CHUNK))
            while True:
                with self.errors("read"):
                    count = file.readinto(view)
                if not count:
                    return
                yield view[:count]

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = 0o444) -> None:
        """Write a file from pieces. If they end in an error, what was there before stays as it was."""
        self._place(chunks, mode, exclusive=False)

    def _place(self, chunks: Chunks, mode: int, exclusive: bool) -> None:
        """Write to a temporary name, then rename: nobody ever sees half a file.

        There is no fsync: what a power failure leaves is found by the checksums, and every file would
        cost milliseconds.
        """
        target = self.local
        temporary = target.with_name(f"{TEMPORARY}-{uuid.uuid4().hex}")
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
                        os.link(temporary, target)  # unlike a rename, never takes another's place
                else:
                    temporary.replace(target)
                    return
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.unlink()

    @staticmethod
    def _create(path: Path, mode: int) -> io.FileIO:
        def opener(name: str, flags: int) -> int:
            return os.open(name, flags | os.O_CLOEXEC, mode)

        while True:
            try:
                return io.FileIO(path, "x", opener=opener)
            except FileNotFoundError:
                # Again, if the directory was removed in between, as another transfer's leftover.
                path.parent.mkdir(parents=True, exist_ok=True)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file to be read: ``"rb"`` for bytes, ``"r"`` for text in UTF-8."""
        with self.errors("read"):
            return self.local.open(mode, encoding=None if "b" in mode else "utf-8")

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
