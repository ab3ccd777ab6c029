"""Places on machines that are reached by ssh, through sshfs (the extra ``ssh``)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.asyn import sync

from dpilot.data.location import CHUNK, Chunks, Location, joined
from dpilot.data.names import TEMPORARY

__all__ = ["SFTP", "SftpLocation"]

#: Its protocols.
SFTP = frozenset({"sftp", "ssh"})

#: Unless the storage options say otherwise: a host whose key is not in ~/.ssh/known_hosts is refused, as ssh does it,
#: and one that does not answer soon is out of reach.
_DEFAULTS: Mapping[str, Any] = {"known_hosts": (), "connect_timeout": 10, "login_timeout": 10}
_READ_ONLY = 0o444


@dataclass(frozen=True, slots=True)
class SftpLocation(Location):
    """A file or directory on a machine that is reached by ssh."""

    @property
    def fs(self) -> Any:
        """The fsspec file system, with a connection that is alive."""
        options = {**_DEFAULTS, **self.options}
        fs = fsspec.filesystem(self.protocol, **options)
        if fs.client.is_closed():
            type(fs).clear_instance_cache()  # it would be given out for ever
            fs = fsspec.filesystem(self.protocol, **options)
        return fs

    def _stream(self) -> Any:
        return self.fs.open(self.path, "rb")  # in blocks as large as the server takes, many under way

    def read_bytes(self) -> bytes | None:
        """What a small file holds; None if there is no file."""
        with self.errors("read"):
            try:
                fs = self.fs
                self._expect_small(fs.info(self.path)["size"])
                return bytes(fs.cat_file(self.path))
            except FileNotFoundError:
                return None

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> None:
        """Write a small file at once; if `exclusive`, leave one alone that is there already."""
        self._place([data], _READ_ONLY, exclusive)

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = _READ_ONLY) -> None:
        """Write a file from pieces. If they end in an error, what was there before stays as it was."""
        self._place(chunks, mode, exclusive=False)

    def copy_within(self, source: Location, nbytes: int) -> bool:
        """Copy a file from `source` to here, if both are on one machine which lets us run `cp`.

        The size is compared, which says that nothing is missing; the bytes never leave the machine.
        """
        if not self.shares_service(source):
            return False
        try:
            with self._temporary() as (fs, temporary):
                fs.cp_file(source.path, temporary)
                if fs.info(temporary)["size"] != nbytes:
                    raise OSError("another size")
                _sftp(fs, "chmod", temporary, _READ_ONLY)
                _sftp(fs, "posix_rename", temporary, self.path)
        except Exception:  # whatever it was, copying the bytes will work or say why not
            return False
        return True

    @contextmanager
    def _temporary(self) -> Iterator[tuple[Any, str]]:
        """The file system, and a name beside this one; if the block fails, nothing of that name is left."""
        parent = self.path.rpartition("/")[0]
        temporary = f"{parent}/{TEMPORARY}-{uuid.uuid4().hex}"
        with self.errors("write"):
            fs = self.fs
            fs.makedirs(parent, exist_ok=True)
        try:
            yield fs, temporary
        except BaseException:
            with suppress(Exception):
                fs.rm_file(temporary)
            raise

    def _place(self, chunks: Chunks, mode: int, exclusive: bool) -> None:
        """Write to a temporary name, then rename: nobody ever sees half a file."""
        with self._temporary() as (fs, temporary):
            with self.errors("write"):
                file = fs.open(temporary, "wb")
            try:
                for piece in joined(chunks, CHUNK):
                    with self.errors("write"):
                        file.write(piece)
            finally:
                with self.errors("write"):
                    file.close()
            with self.errors("write"):
                _sftp(fs, "chmod", temporary, mode)
                try:
                    # The first kind of rename, unlike the second, never takes another's place.
                    _sftp(fs, "rename" if exclusive else "posix_rename", temporary, self.path)
                except Exception:
                    if not (exclusive and fs.exists(self.path)):
                        raise
                    fs.rm_file(temporary)

    def sizes(self) -> dict[str, int | None]:
        """The files at any depth below, by relative name, in bytes."""
        with self.errors("list"):
            return {name: row["size"] for name, row in _walk(self.fs, self.path, "")}

    def ages(self) -> dict[str, float]:
        """How long ago the files at any depth below were changed: relative name to seconds."""
        with self.errors("list"):
            return self._ages(dict(_walk(self.fs, self.path, "")))

    def remove_tree(self) -> None:
        """Remove everything below, and the directory itself."""
        with self.errors("remove"), suppress(FileNotFoundError):
            _remove(self.fs, self.path)


def _walk(fs: Any, path: str, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # fs.find() passes over what it cannot list, such as everything when the connection is lost.
    try:
        rows = fs.ls(path, detail=True)
    except FileNotFoundError:
        return
    for row in rows:
        name = row["name"].rpartition("/")[2]
        if row["type"] == "directory":
            yield from _walk(fs, row["name"], f"{prefix}{name}/")
        else:
            yield prefix + name, row


def _remove(fs: Any, path: str) -> None:
    # asyncssh's rmtree() refuses names with a backslash.
    for row in fs.ls(path, detail=True):
        if row["type"] == "directory":
            _remove(fs, row["name"])
        else:
            fs.rm_file(row["name"])
    _sftp(fs, "rmdir", path)


def _sftp(fs: Any, method: str, *args: Any) -> None:
    """Call a method of SFTP that sshfs does not offer."""

    async def call() -> None:
        async with fs._pool.get() as channel:
            await getattr(channel, method)(*args)

    sync(fs.loop, call)
