"""Data units that are brought to machines ahead of the units that will read them, as the matcher says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dpilot.data import Manifest, download
from dpilot.errors import PilotError, StagingError
from dpilot.placement import Site
from dpilot.runtime.jobs import Setting, terms
from dpilot.runtime.places import Replica
from dpilot.runtime.staging import Brought

__all__ = ["Bring", "Bringing"]


#: With how many more things to bring a worker is taken that has connections to the source.
_WORTH = 2


@dataclass(frozen=True, slots=True)
class Bring:
    """A job: bring a data unit to the cache of the machine, from the first of its replicas that gives it.

    It gives what was brought, or None: it was there already, or is seen on this machine.
    """

    manifest: Manifest
    replicas: tuple[Replica, ...]

    def run(self, setting: Setting) -> Brought | None:
        """Do it."""
        failure: PilotError | None = None
        for replica in self.replicas:
            try:
                return self._from(replica, setting)
            except PilotError as error:  # if it is the replica's fault, a unit will find it out and tell
                failure = error
        raise failure or StagingError(f"data unit {self.manifest.du} has no replica to bring")

    def _from(self, replica: Replica, setting: Setting) -> Brought | None:
        store, brought = setting.reach(replica.place), list[Brought]()
        if replica.may_link and store.is_visible():
            return None

        def bring(directory: Path) -> None:
            at, began = time.time(), time.monotonic()
            download(store, self.manifest, directory, **terms(setting.moved, setting.stop))
            took_s = time.monotonic() - began
            brought.append(Brought(replica.pd, replica.distance, self.manifest.nbytes, took_s, at))

        with setting.cache().hold(self.manifest, bring, lambda: setting.moved(0)) as cached:
            return brought[0]._replace(evicted=cached.evicted) if brought else None


class Bringing:
    """Which workers bring something: one that has brought from the same source, else one that brings the least.

    For its connections have found out how much their way carries. A new one begins slowly, and beside others on a full
    way it may find out wrongly, and stay slow.
    """

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._from: dict[str, set[Site | None]] = {}  # worker -> the sources that it has connections to

    def choose(self, workers: Iterable[str], is_running: Callable[[str], bool], source: Site | None) -> str | None:
        """A worker that runs, to bring one thing more; None if none does. To be given to :meth:`ended`."""

        def load(worker: str) -> tuple[int, str]:
            is_known = source in self._from.get(worker, ())
            return self._at.get(worker, 0) - _WORTH * is_known, worker

        worker = min(filter(is_running, workers), key=load, default=None)
        if worker is not None:
            self._at[worker] = self._at.get(worker, 0) + 1
            self._from.setdefault(worker, set()).add(source)
        return worker

    def ended(self, worker: str) -> None:
        """It brings one thing less."""
        self._at[worker] -= 1
        if not self._at[worker]:
            del self._at[worker]

    def gone(self, worker: str) -> None:
        """A worker is gone, and with it its connections."""
        self._from.pop(worker, None)
