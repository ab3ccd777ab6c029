"""What a data unit consists of: its files, their sizes and checksums. Immutable, and checked when made.

A replica exists once its manifest is there, so the manifest is also the list of a replica's files:
nothing else needs to list a store.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpilot.data.checksum import is_checksum
from dpilot.data.names import check_name, check_names
from dpilot.errors import ManifestError

__all__ = ["FileEntry", "Manifest", "check_unit"]

_VERSION = 1
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_NBYTES = 2**63  # what a file system or S3 can count


def check_unit(du: str) -> str:
    """Give the id of a data unit back if it can be the name of a directory.

    Raises
    ------
    ManifestError
    """
    if not isinstance(du, str) or not _UNIT.fullmatch(du):
        raise ManifestError(f"data unit id {du!r} is not one plain name, such as du-5f0c3a9b12de", du=du)
    return du


def _check_producer(producer: object) -> None:
    if producer is not None and not isinstance(producer, str):
        raise ManifestError(f"producer {producer!r} is not the id of a unit, nor null")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a data unit.

    Parameters
    ----------
    name : str
        A relative POSIX path.
    nbytes : int
        Its size in bytes.
    checksum : str or None
        ``"ALGORITHM:HEX"``; None where it is not known, then only the size is verified.
    producer : str or None
        The compute unit that wrote it; None for a file that a client brought.

    Raises
    ------
    ManifestError
        If one of them is malformed, or the name is unsafe.
    """

    name: str
    nbytes: int
    checksum: str | None = None
    producer: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if type(self.nbytes) is not int or not 0 <= self.nbytes < _MAX_NBYTES:
            raise ManifestError(f"size {self.nbytes!r} of file {self.name!r} is not a number of bytes", name=self.name)
        if self.checksum is not None and not is_checksum(self.checksum):
            raise ManifestError(
                f"checksum {self.checksum!r} of file {self.name!r} is not xxh3: and 32 hexadecimal digits, nor null",
                name=self.name,
            )
        _check_producer(self.producer)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of one data unit, to be looked up by name.

    Parameters
    ----------
    du : str
        The unit's id.
    files : iterable of FileEntry
        Kept as a tuple in the order of their names.
    created : float
        When this manifest was made, in seconds since the epoch.
    producer : str or None
        The compute unit that made it, None for a client. One unit's files may come from several
        producers, which each file says for itself.

    Attributes
    ----------
    nbytes : int
        The size of all files together, in bytes.

    Raises
    ------
    ManifestError
        If a name is unsafe, occurs twice or is the directory of another, or anything else is malformed.
    """

    du: str
    files: tuple[FileEntry, ...]
    created: float
    producer: str | None = None
    nbytes: int = field(init=False, repr=False, compare=False)
    _by_name: dict[str, FileEntry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_unit(self.du)
        files = tuple(self.files)
        if odd := [entry for entry in files if not isinstance(entry, FileEntry)]:
            raise ManifestError(f"{odd[0]!r} in the manifest of {self.du} is not a FileEntry")
        check_names(entry.name for entry in files)
        files = tuple(sorted(files, key=lambda entry: entry.name))
        if type(self.created) not in (int, float) or not 0 <= self.created < math.inf:
            raise ManifestError(f"created {self.created!r} of {self.du} is not a time in seconds since the epoch")
        _check_producer(self.producer)
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "nbytes", sum(entry.nbytes for entry in files))
        object.__setattr__(self, "_by_name", {entry.name: entry for entry in files})

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest.of_plain, (self.plain(),)

    def plain(self) -> tuple[Any, ...]:
        """The manifest in plain values, for messages, which are many: :meth:`of_plain` makes it again."""
        files = [(entry.name, entry.nbytes, entry.checksum, entry.producer) for entry in self.files]
        return self.du, files, self.created, self.producer

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> Manifest:
        """The manifest that :meth:`plain` told."""
        du, files, created, producer = plain
        return cls(du, tuple(FileEntry(*entry) for entry in files), created, producer)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files, in alphabetical order."""
        return tuple(self._by_name)

    def __getitem__(self, name: str) -> FileEntry:
        try:
            return self._by_name[name]
        except KeyError:
            raise ManifestError(f"data unit {self.du} has no file {name!r}", name=name) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.files)

    def agrees_with(self, other: Manifest) -> bool:
        """Whether both are of the same files, as far as can be known: a checksum may be missing in one of them."""
        if self.names != other.names:
            return False
        pairs = zip(self.files, other.files, strict=True)
        return all(
            a.nbytes == b.nbytes and (a.checksum == b.checksum or None in (a.checksum, b.checksum)) for a, b in pairs
        )

    def merged(self, other: Manifest) -> Manifest:
        """The manifest with the files of a later one of the same unit, which replace those of the same name.

        Raises
        ------
        ManifestError
            If `other` is of another unit, or a name of one is a directory of the other.
        """
        if other.du != self.du:
            raise ManifestError(f"the manifest of {other.du} cannot be merged into that of {self.du}")
        files = tuple((self._by_name | other._by_name).values())
        return Manifest(self.du, files, other.created, other.producer)

    def without(self, names: Iterable[str]) -> Manifest:
        """The manifest without some of its files.

        Raises
        ------
        ManifestError
            If it has no file of one of these names.
        """
        gone = {self[name].name for name in names}
        return Manifest(self.du, tuple(e for e in self.files if e.name not in gone), self.created, self.producer)

    def to_json(self) -> str:
        """The text that :meth:`from_json` reads."""
        files = [
            {"name": e.name, "nbytes": e.nbytes, "checksum": e.checksum, "producer": e.producer} for e in self.files
        ]
        document = {"version": _VERSION, "du": self.du, "created": self.created, "producer": self.producer}
        return json.dumps(document | {"files": files}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest, from wherever it came.

        Raises
        ------
        ManifestError
            If it is no manifest, or one that must not be trusted; the message says why.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"a manifest is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise ManifestError(f"a manifest is a JSON object, not {type(document).__name__}")
        if (version := document.get("version")) != _VERSION:
            raise ManifestError(f"a manifest has version {version!r}; this dpilot reads version {_VERSION}")
        _require(document, "a manifest", "du", "files", "created")
        if not isinstance(document["files"], list):
            raise ManifestError(f"the files of manifest {document['du']!r} are not a list")
        return cls(
            document["du"],
            tuple(_entry(row) for row in document["files"]),
            document["created"],
            document.get("producer"),
        )


def _require(row: dict[str, Any], what: str, *keys: str) -> None:
    if missing := [key for key in keys if key not in row]:
        raise ManifestError(f"{what} lacks {', '.join(map(repr, missing))}")


def _entry(row: Any) -> FileEntry:
    if not isinstance(row, dict):
        raise ManifestError(f"a file in a manifest is a JSON object, not {type(row).__name__}")
    _require(row, "a file in a manifest", "name", "nbytes")
    return FileEntry(row["name"], row["nbytes"], row.get("checksum"), row.get("producer"))
