"""A unit's files on their way into its sandbox, and out of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from dpilot.data.local import LocalLocation
from dpilot.data.manifest import Manifest
from dpilot.data.moves import MAX_TRANSFERS, OnBytes
from dpilot.data.names import collect
from dpilot.data.retry import RETRY, Retry
from dpilot.data.sources import local_source
from dpilot.data.store import Store
from dpilot.data.transfer import download, target_directory, upload
from dpilot.errors import ChecksumError, StagingError

__all__ = ["link_files", "stage_in", "stage_out"]


def stage_in(
    manifest: Manifest,
    replica: Store,
    target_dir: Path,
    *,
    link: bool,
    names: Collection[str] | None = None,
    max_transfers: int = MAX_TRANSFERS,
    on_bytes: OnBytes | None = None,
    retry: Retry = RETRY,
    stop: threading.Event | None = None,
) -> int:
    """Put files of a data unit into a directory.

    Parameters
    ----------
    manifest : Manifest
    replica : Store
        That has the files.
    target_dir : Path
        Made if it is not there.
    link : bool
        Link to the files, where this process sees the store as local files; they are read-only. Otherwise copy.
    names : collection of str, optional
        Which files; all by default.
    max_transfers, on_bytes, retry, stop
        As in :func:`~dpilot.data.transfer.upload`.

    Returns
    -------
    int
        The bytes that were copied: 0 if the files were linked.

    Raises
    ------
    StagingError
        If the directory has something of one of the names already.
    ChecksumError
        If a file is not what the manifest promises.
    StoreError
        If a file cannot be read, or the directory not written. Nothing of the attempt is left.
    """
    unit = replica.local_path(manifest.du) if link else None
    if unit is not None:
        link_files(manifest, unit, target_dir, names)
        return 0
    chosen, root = _check_free(manifest, target_dir, names)
    return download(
        replica,
        manifest,
        root.local,
        chosen,
        max_transfers=max_transfers,
        on_bytes=on_bytes,
        retry=retry,
        stop=stop,
    )


def link_files(manifest: Manifest, directory: Path, target_dir: Path, names: Collection[str] | None = None) -> None:
    """Put links to files of a data unit into a directory.

    Parameters
    ----------
    manifest : Manifest
    directory : Path
        That has the files: a local store's, or a cache's.
    target_dir : Path
        Made if it is not there.
    names : collection of str, optional
        Which files; all by default.

    Raises
    ------
    StagingError
        If `target_dir` has something of one of the names already.
    ChecksumError
        If a file is not there, or not as large as the manifest says. Nothing of the attempt is left.
    """
    chosen, root = _check_free(manifest, target_dir, names)
    places = {name: root.child(name) for name in chosen}
    try:
        for name, place in places.items():
            with place.errors("link"):
                _link(directory / name, place.local, manifest[name].nbytes)
    except BaseException:
        for place in places.values():  # none of them was there before
            place.remove()
            place.prune(root)
        raise


def _check_free(
    manifest: Manifest, target_dir: Path, names: Collection[str] | None
) -> tuple[tuple[str, ...], LocalLocation]:
    chosen = manifest.names if names is None else tuple(names)
    root = target_directory(target_dir, chosen)
    for name in chosen:
        if os.path.lexists(root.child(name).path):
            raise StagingError(
                f"{name!r} of data unit {manifest.du} cannot be staged into {root.local}: there is one already, "
                "perhaps of another input; rename one of the two",
                name=name,
            )
    return chosen, root


def _link(file: Path, link: Path, nbytes: int) -> None:
    # Symbolic, not hard: it works across file systems and for files of other users, shows where it leads, and
    # a program that replaces its input (as `sed -i` does) replaces the link. Writing through either
    # would change the store's file, hence the store's files are read-only; root alone is not held back.
    try:
        found = file.stat().st_size
    except FileNotFoundError:
        found = None
    if found != nbytes:
        problem = "is not there" if found is None else f"has {found} bytes, but its manifest says {nbytes}"
        raise ChecksumError(f"file {file}, to be linked to {link}, {problem}", source=str(file), target=str(link))
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(file)


def stage_out(
    sandbox: Path,
    patterns: Iterable[str],
    store: Store,
    du: str,
    producer: str,
    *,
    exclude: Collection[str] = (),
    on_missing: Callable[[str], object] | None = None,
    room: int | None = None,
    max_transfers: int = MAX_TRANSFERS,
    on_bytes: OnBytes | None = None,
    retry: Retry = RETRY,
    stop: threading.Event | None = None,
) -> Manifest:
    """Collect a unit's outputs into a data unit.

    What the same producer wrote into the data unit before is replaced, so that a unit can run again: give all
    of its patterns for one data unit in one call.

    Parameters
    ----------
    sandbox : Path
    patterns : iterable of str
        Globs, see :func:`~dpilot.data.names.check_pattern`; each must match a file, unless there is `on_missing`.
    store : Store
    du : str
        The data unit's id.
    producer : str
        The compute unit's id.
    exclude : collection of str
        Names not to collect: those of the unit's inputs, which are links out of the sandbox.
    on_missing : callable, optional
        Told, in a sentence, of each pattern that matches no file.
    room, max_transfers, on_bytes, retry, stop
        As in :func:`~dpilot.data.transfer.upload`.

    Returns
    -------
    Manifest
        Of the whole data unit as it is in the store now.

    Raises
    ------
    StagingError
        If a pattern matches no file, or a link out of the sandbox, or the data unit has a file of the same name
        from another producer.
    StoreError, StoreFullError
        If the store cannot be written. Nothing of the attempt is left.
    """
    found = collect(sandbox, patterns, exclude, on_missing)
    sources = {name: local_source(path) for name, path in found.items()}
    return upload(
        sources,
        store,
        du,
        producer=producer,
        room=room,
        max_transfers=max_transfers,
        on_bytes=on_bytes,
        retry=retry,
        stop=stop,
        taken=StagingError,
    )
