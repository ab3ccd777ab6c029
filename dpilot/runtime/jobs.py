"""Work on files that the scheduler has others do: it moves no bytes itself, and never waits for a disk.

A job is a value that travels to a worker (or, where no worker can do it, to a client) and is carried out there in a
thread: see :mod:`dpilot.runtime.carrier`. What it returns travels back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dpilot import config
from dpilot.data import Cache, Manifest, Retry, Source, Stop, Store, copy_unit, upload, verify
from dpilot.runtime.places import Place

__all__ = ["Copy", "Discard", "Fetch", "Job", "Open", "Remove", "Setting", "Verify", "open_store", "terms"]


class Setting(Protocol):
    """Where a job is carried out. `stop` is set when it is canceled."""

    stop: Stop

    def reach(self, place: Place) -> Store:
        """The store, through the worker that sees it where this process does not."""

    def moved(self, nbytes: int) -> None:
        """So many bytes have moved; raises if the job has been canceled."""

    def cache(self) -> Cache:
        """The cache of this machine; raises where there is none, as in a client."""


class Job(Protocol):
    """One piece of work on files."""

    def run(self, setting: Setting) -> Any:
        """Do it."""


def terms(on_bytes: Callable[[int], None], stop: threading.Event) -> dict[str, Any]:
    """The terms on which files are moved: those of the configuration, for one transfer."""
    retry = Retry(times=int(config.get("data.retries")), delay_s=config.seconds("data.retry-delay"))
    return {"max_transfers": int(config.get("data.transfers")), "on_bytes": on_bytes, "retry": retry, "stop": stop}


def open_store(store: Store) -> tuple[Store, int]:
    """Open a store; gives it, with the bytes that are used in it (0 where that need not be known)."""
    opened = store.open(leftover_age_s=config.seconds("data.leftover-age"))
    return opened, opened.nbytes_used() if opened.nbytes_limit is not None else 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Make a replica of a data unit on another store; gives its manifest. `afresh`: whatever there is already."""

    manifest: Manifest
    source: Place
    target: Place
    room: int | None
    afresh: bool = False

    def run(self, setting: Setting) -> Manifest:
        """Do it."""
        target = setting.reach(self.target)
        if self.afresh:
            target.remove(self.manifest.du)
        return copy_unit(
            setting.reach(self.source),
            target,
            self.manifest,
            room=self.room,
            may_delegate=not self.afresh,  # the service would copy damage, too
            **terms(setting.moved, setting.stop),
        )


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring files from anywhere into a data unit; gives its manifest."""

    du: str
    sources: Mapping[str, Source]
    target: Place
    room: int | None

    def run(self, setting: Setting) -> Manifest:
        """Do it."""
        return upload(
            self.sources,
            setting.reach(self.target),
            self.du,
            room=self.room,
            **terms(setting.moved, setting.stop),
        )


@dataclass(frozen=True, slots=True)
class Verify:
    """Read a replica and compare it with the manifest; gives what is wrong with it."""

    manifest: Manifest
    source: Place

    def run(self, setting: Setting) -> list[str]:
        """Do it."""
        found = verify(setting.reach(self.source), self.manifest, **terms(setting.moved, setting.stop))
        return [str(problem) for problem in found]


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a store's replica of a data unit, or what an attempt to make one left."""

    du: str
    source: Place

    def run(self, setting: Setting) -> None:
        """Do it."""
        setting.reach(self.source).remove(self.du)


@dataclass(frozen=True, slots=True)
class Discard:
    """Throw out of the machine's cache what was found to be wrong."""

    manifest: Manifest

    def run(self, setting: Setting) -> None:
        """Do it."""
        setting.cache().discard(self.manifest)


@dataclass(frozen=True, slots=True)
class Open:
    """Open a store that only this machine may see; gives it, with the bytes that are used in it."""

    store: Store

    def run(self, setting: Setting) -> tuple[Store, int]:
        """Do it."""
        return open_store(self.store)
