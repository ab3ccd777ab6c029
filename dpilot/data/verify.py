"""Whether a replica still is what its manifest says."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass

from dpilot.data.checksum import Hasher
from dpilot.data.manifest import FileEntry, Manifest
from dpilot.data.moves import MAX_TRANSFERS, OnBytes, Terms, each
from dpilot.data.retry import RETRY, Retry
from dpilot.data.store import Store
from dpilot.errors import StoreError

__all__ = ["FileProblem", "verify"]


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file of a replica that is lost or damaged.

    Parameters
    ----------
    name : str
        In the data unit.
    url : str
        Where it should be.
    problem : str
        What is wrong with it, as the rest of a sentence.
    """

    name: str
    url: str
    problem: str

    def __str__(self) -> str:
        return f"file {self.name!r} at {self.url} {self.problem}"


def verify(
    store: Store,
    manifest: Manifest,
    *,
    max_transfers: int = MAX_TRANSFERS,
    on_bytes: OnBytes | None = None,
    retry: Retry = RETRY,
    stop: threading.Event | None = None,
) -> list[FileProblem]:
    """Read every file of a replica, and compare its size and checksum with the manifest.

    Parameters
    ----------
    store : Store
        That has, or should have, the replica.
    manifest : Manifest
        What it should be. A file without checksum is compared by its size.
    max_transfers, on_bytes, retry, stop
        As in :func:`~dpilot.data.transfer.upload`; the bytes are those that were read.

    Returns
    -------
    list of FileProblem
        In the order of the names; empty if the replica is whole.

    Raises
    ------
    StoreError
        If the store cannot be reached, which says nothing about its files.
    TransferStoppedError
        If it was stopped.
    """
    terms = Terms(max_transfers, on_bytes, retry, stop or threading.Event())
    unit = retry.run(lambda: store.unit(manifest.du), terms.stop)
    sizes = retry.run(unit.sizes, terms.stop)

    def check(entry: FileEntry, progress: OnBytes) -> str:
        if (problem := _wrong_size(entry, sizes.get(entry.name, -1))) or entry.checksum is None:
            return problem
        hasher, count = Hasher(), 0
        progress(0)
        try:
            with closing(unit.child(entry.name).read(entry.nbytes)) as pieces:
                for piece in pieces:
                    hasher.update(piece)
                    count += len(piece)
                    progress(len(piece))
        except StoreError as error:
            if not error.transient:
                return f"cannot be read: {error}"
            progress(-count)
            raise
        if hasher.hexdigest() != entry.checksum:
            return f"has checksum {hasher.hexdigest()}, but its manifest says {entry.checksum}"
        return ""

    problems = each(check, manifest.files, terms)
    return [
        FileProblem(entry.name, unit.child(entry.name).url, problem)
        for entry, problem in zip(manifest.files, problems, strict=True)
        if problem
    ]


def _wrong_size(entry: FileEntry, nbytes: int | None) -> str:
    if nbytes == -1:
        return "is not there"
    if nbytes not in (None, entry.nbytes):
        return f"has {nbytes} bytes, but its manifest says {entry.nbytes}"
    return ""
