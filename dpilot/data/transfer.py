"""Data units on their way between sources, stores and directories: whole and verified, or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from pathlib import Path

from dpilot.data.local import LocalLocation
from dpilot.data.locate import locate
from dpilot.data.location import Location
from dpilot.data.manifest import FileEntry, Manifest
from dpilot.data.moves import MAX_TRANSFERS, Move, OnBytes, Stop, Terms, carry_out
from dpilot.data.names import check_names, is_within
from dpilot.data.retry import RETRY, Retry
from dpilot.data.sources import Source, expand_sources
from dpilot.data.store import Store
from dpilot.errors import DataError, DescriptionError, PilotError, StagingError

__all__ = ["copy_files", "copy_unit", "download", "fetch", "target_directory", "upload"]


def upload(
    sources: Mapping[str, Source],
    store: Store,
    du: str,
    *,
    producer: str | None = None,
    room: int | None = None,
    max_transfers: int = MAX_TRANSFERS,
    on_bytes: OnBytes | None = None,
    retry: Retry = RETRY,
    stop: threading.Event | None = None,
    taken: type[PilotError] = DataError,
) -> Manifest:
    """Bring files into a store, as a new data unit or as further files of one that it has.

    Parameters
    ----------
    sources : mapping of str to Source
        By the file's name in the data unit; may be empty.
    store : Store
    du : str
        The data unit's id.
    producer : str, optional
        The compute unit that wrote the files. All files that it wrote before into this data unit are replaced.
    room : int, optional
        How many bytes are free in the store; by default its limit decides, if it has one.
    max_transfers : int
        How many files are moved at the same time.
    on_bytes : callable, optional
        Told of progress, see :data:`~dpilot.data.moves.OnBytes`.
    retry : Retry
        For errors that may pass.
    stop : Event, optional
        Ends the transfer once it is set, even while it waits to try again. It is also set when the transfer fails.
    taken : type
        The error for a name that is taken.

    Returns
    -------
    Manifest
        Of the whole data unit as it is in the store now.

    Raises
    ------
    DataError
        If the data unit has a file of that name from another producer (see `taken`).
    StoreFullError
        If the files do not fit.
    StoreError
        If a source cannot be read or is changed meanwhile, or the store cannot be written.
    TransferStoppedError
        If it was stopped. Whatever fails, nothing of the attempt is left.
    """
    terms = Terms(max_transfers, on_bytes, retry, stop or threading.Event())
    there = retry.run(lambda: store.find_manifest(du), terms.stop)
    old = there or Manifest(du, (), time.time())
    own = [entry.name for entry in old.files if producer is not None and entry.producer == producer]
    kept = old.without(own)
    for name in sources:
        if name in kept:
            by = kept[name].producer or "a client"
            raise taken(f"data unit {du} has a file {name!r} already, from {by}; choose another name", name=name, du=du)
    check_names([*kept.names, *sources])
    freed = sum(old[name].nbytes for name in own)
    store.check_room(sum(source.nbytes or 0 for source in sources.values()) - freed, room)
    if own:
        # The files that are about to be replaced leave the manifest before they change.
        _declare(store, kept)
        store.discard_files(du, own)
    if there is None:
        store.remove(du)  # what a transfer that was killed may have left
    unit = store.unit(du)
    moves = [Move(name, s.location, unit.child(name), nbytes=s.nbytes) for name, s in sources.items()]

    def complete(entries: Iterable[FileEntry]) -> Manifest:
        files = tuple(FileEntry(e.name, e.nbytes, e.checksum, producer) for e in entries)
        added = Manifest(du, files, time.time(), producer)
        store.verify_sizes(added)
        manifest = kept.merged(added)
        store.write_manifest(manifest)
        return manifest

    return _into_store(store, du, moves, complete, terms)


def copy_unit(
    source: Store,
    target: Store,
    manifest: Manifest,
    *,
    room: int | None = None,
    may_delegate: bool = True,
    max_transfers: int = MAX_TRANSFERS,
    on_bytes: OnBytes | None = None,
    retry: Retry = RETRY,
    stop: threading.Event | None = None,
) -> Manifest:
    """Copy a data unit from one store to another. Files that are there already, by checksum, are not copied again.

    Every byte passes through this process and is compared with the manifest, unless one service has both ends and may
    copy by itself (`may_delegate`): then sizes are compared, and in object stores the ETags, where they tell of the
    content. A file that was damaged in `source` is then found when the new replica is transferred or verified.

    Parameters
    ----------
    source, target : Store
    manifest : Manifest
        What `source` has.
    may_delegate : bool
        False to see every byte in any case, such as for a repair.
    room, max_transfers, on_bytes, retry, stop
        As in :func:`upload`.

    Returns
    -------
    Manifest
        Of the new replica.

    Raises
    ------
    ChecksumError
        If a file is not what the manifest promises; the message names file, source and target.
    StoreError
        If `source` cannot be read or `target` not written. Nothing of the attempt is left.
    StoreFullError
        If the data unit does not fit.
    """
    du = manifest.du
    terms = Terms(max_transfers, on_bytes, retry, stop or threading.Event())
    there = retry.run(lambda: target.find_manifest(du), terms.stop)
    if there is not None and there.files == manifest.files:
        return there
    target.check_room(manifest.nbytes - (there.nbytes if there else 0), room)
    kept = {e.name: e for e in there.files if _is_same(e, manifest)} if there is not None else {}
    if there is not None and kept:  # another version of it
        target.remove_manifest(du)
        target.discard_files(du, [name for name in there.names if name not in kept])
    else:
        target.remove(du)  # what a transfer that was killed may have left
    giver, taker = source.unit(du), target.unit(du)
    moves = [
        Move(e.name, giver.child(e.name), taker.child(e.name), e.nbytes, e, may_delegate=may_delegate)
        for e in manifest.files
        if e.name not in kept
    ]

    def complete(entries: Iterable[FileEntry]) -> Manifest:
        found = kept | {entry.name: entry for entry in entries}
        copied = Manifest(du, tuple(found[name] for name in manifest.names), manifest.created, manifest.producer)
        target.verify_sizes(copied)
        target.write_manifest(copied)
        return copied

    return _into_store(target, du, moves, complete, terms, kept)


def _is_same(entry: FileEntry, manifest: Manifest) -> bool:
    """Whether a manifest has the same file: by its checksum, so of files without one that is never known."""
    return entry.checksum is not None and entry.name in manifest and entry == manifest[entry.name]


def download(
    store: Store,
    manifest: Manifest,
    target_dir: Path,
    names: Collection[str] | None = None,
    *,
    max_transfers: int = MAX_TRANSFERS,
    on_bytes: OnBytes | None = None,
    retry: Retry = RETRY,
    stop: threading.Event | None = None,
) -> int:
    """Copy files of a data unit into a directory; files of the same names there are replaced.

    Parameters
    ----------
    store : Store
        That has a replica.
    manifest : Manifest
    target_dir : Path
        Made if it is not there.
    names : collection of str, optional
        Which files; all by default.
    max_transfers, on_bytes, retry, stop
        As in :func:`upload`.

    Returns
    -------
    int
        The bytes that were copied.

    Raises
    ------
    ChecksumError
        If a file is not what the manifest promises; the message names file, source and target.
    StoreError
        If the store cannot be read, or the directory not written. Nothing of the attempt is left.
    StagingError
        If links in `target_dir` would lead a file out of it.
    """
    terms = Terms(max_transfers, on_bytes, retry, stop or threading.Event())
    return _bring(store.unit(manifest.du), manifest, target_dir, names, terms)


def copy_files(
    directory: Path,
    manifest: Manifest,
    target_dir: Path,
    names: Collection[str] | None = None,
    *,
    max_transfers: int = MAX_TRANSFERS,
    on_bytes: OnBytes | None = None,
    retry: Retry = RETRY,
    stop: threading.Event | None = None,
) -> int:
    """Copy files of a data unit out of a directory that has them, such as a cache's; else like :func:`download`."""
    terms = Terms(max_transfers, on_bytes, retry, stop or threading.Event())
    return _bring(locate(directory, field="directory"), manifest, target_dir, names, terms)


def _bring(unit: Location, manifest: Manifest, target_dir: Path, names: Collection[str] | None, terms: Terms) -> int:
    entries = manifest.files if names is None else [manifest[name] for name in names]
    root = target_directory(target_dir, (entry.name for entry in entries))
    moves = [Move(e.name, unit.child(e.name), root.child(e.name), e.nbytes, e, mode=0o666) for e in entries]
    try:
        return sum(entry.nbytes for entry in carry_out(moves, terms))
    except BaseException:
        for move in moves:
            if move.done:
                move.target.remove()
            move.target.prune(root)
        raise


def fetch(url: str, target: Path, *, on_bytes: OnBytes | None = None) -> int:
    """Copy one file to a path of this machine at which there is nothing yet.

    Parameters
    ----------
    url : str
        A path or URL, as in :func:`~dpilot.data.sources.expand_sources`.
    target : Path
        Its directory is made if it is not there.
    on_bytes : callable, optional
        As in :func:`upload`.

    Returns
    -------
    int
        The bytes that were copied.

    Raises
    ------
    StagingError
        If there is something at the target, or the source is not one file that can be read.
    """
    count = 0
    try:
        sources = expand_sources([url])
        if len(sources) != 1:
            raise StagingError(f"file_transfer {url!r} is {len(sources)} files; name one file")
        (source,) = sources.values()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file, closing(source.location.read(None)) as pieces:
            for piece in pieces:
                count += file.write(piece)
                if on_bytes is not None:
                    on_bytes(len(piece))
    except FileExistsError:
        raise StagingError(f"file_transfer {url!r}: {str(target)!r} is there already; choose another target") from None
    except (OSError, DataError, DescriptionError) as error:
        raise StagingError(f"file_transfer {url!r} > {str(target)!r} failed: {error}") from error
    return count


def target_directory(path: Path, names: Iterable[str]) -> LocalLocation:
    """Make a directory into which files of these names are to go.

    Raises
    ------
    StagingError
        If a link in it would lead one of them out of it.
    StoreError
        If it cannot be made.
    """
    root = locate(path, field="target")
    assert isinstance(root, LocalLocation)
    root.prepare()
    for parent in {root.child(name).local.parent for name in names}:
        if not is_within(parent, root.local):
            raise StagingError(f"{parent} leads out of {root.local} by a link; remove the link", path=str(parent))
    return root


def _declare(store: Store, manifest: Manifest) -> None:
    """Write a manifest, or remove it if it has become empty: a replica without files is none."""
    if manifest.files:
        store.write_manifest(manifest)
    else:
        store.remove(manifest.du)


def _into_store(
    store: Store,
    du: str,
    moves: list[Move],
    complete: Callable[[Iterable[FileEntry]], Manifest],
    terms: Terms,
    kept: Collection[str] = (),
) -> Manifest:
    """Move files into a store and complete its manifest; if anything fails, remove what has no manifest then.

    That is not done by who is given up for lost (see :class:`~dpilot.data.moves.Stop`).
    """
    try:
        entries = carry_out(moves, terms)
        terms.check()
        return terms.retry.run(lambda: complete(entries), terms.stop)
    except BaseException:
        if isinstance(terms.stop, Stop) and terms.stop.leaves:
            raise
        try:
            listed = store.find_manifest(du) or ()
            names = [*(move.name for move in moves), *kept]
            store.discard_files(du, [name for name in names if name not in listed])
        except PilotError:
            pass  # the store is out of reach, which is what the first error says; without a manifest nobody finds them
        raise
