"""Files that are a data unit where they lie, without a copy: a store of one unit that nothing writes to."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, ClassVar

from dpilot.data.checksum import Hasher
from dpilot.data.location import Location, Pieces
from dpilot.data.manifest import FileEntry, Manifest, check_unit
from dpilot.data.moves import MAX_TRANSFERS, OnBytes, Terms, each
from dpilot.data.names import check_names
from dpilot.data.readonly import ReadOnlyLocation
from dpilot.data.retry import RETRY, Retry
from dpilot.data.sources import Source
from dpilot.data.store import Store
from dpilot.errors import ChecksumError, DataError, StoreError

__all__ = ["Registered"]

_LOOKUPS = 8


@dataclass(frozen=True, slots=True)
class _File(ReadOnlyLocation):
    """A registered file: read as long as it has the size that it had."""

    why: ClassVar[str] = "it is registered where it lies, and is its owner's; add files to a data unit in a store"

    place: Location = field(kw_only=True)
    nbytes: int = field(kw_only=True)

    @property
    def local(self) -> Path | None:
        """The path, where it is on a file system of this machine."""
        return self.place.local

    @property
    def origin(self) -> Location:
        """The place itself."""
        return self.place

    def read_bytes(self) -> bytes | None:
        """What a small file holds; None if there is no file."""
        return self.place.read_bytes()

    def read(self, nbytes: int | None) -> Pieces:
        """The bytes of the file in pieces."""
        count = 0
        with closing(self.place.read(self.nbytes)) as pieces:
            for piece in pieces:
                count += len(piece)
                yield piece
        self._check(count)

    def read_range(self, start: int, nbytes: int) -> bytes | memoryview:
        """Part of the file; shorter where it ends before."""
        return self.place.read_range(start, nbytes)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open the file to be read."""
        self._check(self.place.size())
        return self.place.open(mode)

    def version(self) -> str | None:
        """What differs once the file has been changed."""
        return self.place.version()

    def size(self) -> int | None:
        """How many bytes it has now."""
        return self.place.size()

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.place.exists()

    def _check(self, found: int | None) -> None:
        if found not in (None, self.nbytes):
            raise ChecksumError(
                f"file {self.url} has {found} bytes, but had {self.nbytes} when it was registered; register it again",
                source=self.url,
            )


@dataclass(frozen=True, slots=True)
class _Unit(ReadOnlyLocation):
    """What stands for the root of a store, and for the directory of its only data unit."""

    why: ClassVar[str] = _File.why

    du: str = field(kw_only=True)
    files: Mapping[str, _File] = field(kw_only=True, repr=False, hash=False)

    def child(self, name: str) -> Location:
        """The data unit, or one of its files."""
        unit, _, file = name.partition("/")
        if self.path:  # the unit's directory
            unit, file = self.path, name
        if unit != self.du:
            raise StoreError(f"{self.url} holds {self.du} only, not {unit}", url=self.url)
        if not file:
            return _Unit(self.protocol, self.url, self.du, du=self.du, files=self.files)
        if file not in self.files:
            raise StoreError(f"data unit {self.du}, registered at {self.url}, has no file {file!r}", url=self.url)
        return self.files[file]

    @property
    def local(self) -> Path | None:
        """The directory in which all files lie by their names, if they do; for the root: where a local one lies."""
        if not self.path:
            return next((path.parent for file in self.files.values() if (path := file.local) is not None), None)
        directories = {_above(file.local, name) for name, file in self.files.items()}
        return directories.pop() if len(directories) == 1 else None

    def subdirectories(self) -> list[str]:
        """The names of the directories directly below."""
        return [] if self.path else [self.du]

    def exists(self) -> bool:
        """Whether there is a file."""
        return False

    def sizes(self) -> dict[str, int | None]:
        """The files that are still there, and how many bytes they have now."""

        def look(file: _File) -> int | None:
            return file.size() if file.exists() else -1

        with ThreadPoolExecutor(_LOOKUPS) as pool:
            found = zip(self.files, pool.map(look, self.files.values()), strict=True)
            return {name: nbytes for name, nbytes in found if nbytes != -1}

    def ages(self) -> dict[str, float]:
        """Nothing of it is ours to clean up."""
        return {}


class Registered(Store):
    """The files of one data unit, wherever each of them lies. Made by :meth:`of`.

    It is a store like any other to whoever reads: replicas can be made from it, files opened, linked and verified.
    Writing to it is refused, and :meth:`remove` forgets the data unit, but leaves the files alone. A file that has
    another size than it had is refused when it is read; another content is found where there are checksums.

    Attributes
    ----------
    manifest : Manifest
        Of the data unit.
    """

    manifest: Manifest
    _seen: str | None  # the version of the first local file, by which another machine knows whether it sees it

    @classmethod
    def of(
        cls,
        du: str,
        sources: Mapping[str, Source],
        *,
        checksums: bool = False,
        datacenter: str | None = None,
        machine: str | None = None,
        max_transfers: int = MAX_TRANSFERS,
        on_bytes: OnBytes | None = None,
        retry: Retry = RETRY,
        stop: threading.Event | None = None,
    ) -> Registered:
        """Register files.

        Parameters
        ----------
        du : str
            The data unit's id.
        sources : mapping of str to Source
            By the file's name in the data unit; at least one.
        checksums : bool
            Read every file once, for the manifest to have checksums. Otherwise only those are read whose server
            does not say how large they are.
        datacenter, machine : str, optional
            Labels.
        max_transfers, on_bytes, retry, stop
            As in :func:`~dpilot.data.transfer.upload`.

        Raises
        ------
        DataError
            If there is no file.
        StoreError
            If a file cannot be read.
        """
        check_unit(du)
        check_names(sources)
        if not sources:
            raise DataError(f"{du} has no files to register; name some in file_urls", du=du)
        terms = Terms(max_transfers, on_bytes, retry, stop or threading.Event())

        def enter(item: tuple[str, Source], progress: OnBytes) -> FileEntry:
            name, source = item
            if source.nbytes is not None and not checksums:
                return FileEntry(name, source.nbytes)
            hasher, count = Hasher(), 0
            with closing(source.location.read(None)) as pieces:
                for piece in pieces:
                    hasher.update(piece)
                    count += len(piece)
                    progress(len(piece))
            return FileEntry(name, count, hasher.hexdigest())

        manifest = Manifest(du, tuple(each(enter, list(sources.items()), terms)), time.time())
        files = {entry.name: _pinned(sources[entry.name].location, entry.nbytes) for entry in manifest.files}
        self = cls.__new__(cls)
        self.root = _Unit("registered", _common([file.url for file in files.values()]), "", du=du, files=files)
        self.store_id = uuid.uuid4().hex
        self.datacenter, self.machine, self.nbytes_limit = datacenter, machine, None
        self.manifest = manifest
        first = next((file for file in files.values() if file.local is not None), None)
        self._seen = first.version() if first is not None else None
        return self

    def __repr__(self) -> str:
        return f"Registered({self.manifest.du!r}, {self.url!r})"

    def open(self, *, timeout_s: float = 30.0, leftover_age_s: float = 3600.0) -> Registered:
        """There is nothing to open."""
        return self

    def is_visible(self) -> bool:
        """Whether this process sees the local files: by what tells the first of them from any other file."""
        if self.root.local is None:
            return False
        assert isinstance(self.root, _Unit)
        first = next(file for file in self.root.files.values() if file.local is not None)
        try:
            return first.version() == self._seen
        except StoreError:
            return False

    @property
    def is_here(self) -> bool:
        """Whether there is anything where the first of the local files was."""
        assert isinstance(self.root, _Unit)
        return any(file.local is not None and file.local.exists() for file in self.root.files.values())

    def reach(self) -> Location:
        """What stands for the root, once sure that this process sees the local files, if there are any.

        Raises
        ------
        StoreError
            If it does not.
        """
        if self.root.local is not None and not self.is_visible():
            raise StoreError(
                f"the files of {self.url} that were registered as {self.manifest.du} are not visible here, or were "
                "changed since; register them again, or use a pilot on their machine",
                url=self.url,
            )
        return self.root

    def local_path(self, du: str, name: str = "") -> Path | None:
        """The path of a file, or of the directory in which all files lie by their names; None if there is none."""
        place = self._place(du, name)
        if place.local is None or not self.is_visible():
            return None
        try:
            return place.local if not name or place.size() == self.manifest[name].nbytes else None
        except StoreError:
            return None

    def list_units(self) -> list[str]:
        """The id of the data unit."""
        return [self.manifest.du]

    def find_manifest(self, du: str) -> Manifest | None:
        """The manifest of the data unit; None for any other."""
        return self.manifest if du == self.manifest.du else None

    def write_manifest(self, manifest: Manifest) -> None:
        """Refused."""
        self.root.write_bytes(b"")

    def remove_files(self, du: str, names: Any) -> Manifest:
        """Refused."""
        self.root.remove()
        raise AssertionError("it has raised")

    def remove(self, du: str) -> None:
        """Nothing happens: the files are their owner's."""

    def remove_manifest(self, du: str) -> None:
        """Nothing happens: there is none beside the files."""


def _pinned(place: Location, nbytes: int) -> _File:
    return _File(place.protocol, place.url, place.path, place.options, place=place, nbytes=nbytes)


def _above(path: Path | None, name: str) -> Path | None:
    """The directory below which a path has that name."""
    parts = Path(name).parts
    return path.parents[len(parts) - 1] if path is not None and path.parts[-len(parts) :] == parts else None


def _common(urls: list[str]) -> str:
    """Where the files lie, for people to read."""
    directories = [url.rpartition("/")[0].split("/") for url in urls]
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*directories, strict=False))]
    return "/".join(shared) if len(shared) > 2 else f"{'/'.join(directories[0])} and elsewhere"
