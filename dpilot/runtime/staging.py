"""A unit's files on its worker: inputs brought before it runs, outputs collected when it has ended."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from dpilot.data import Cache, Manifest, Store, Terms, copy_files, download, fetch, link_files, stage_out
from dpilot.errors import ChecksumError, PilotError, StagingError, StoreError, StoreFullError, UnitError
from dpilot.runtime.jobs import terms
from dpilot.runtime.places import Place, Replica
from dpilot.runtime.work import Program, Reference, UnitTask

__all__ = ["Ahead", "Inputs", "StagedData", "Staging", "heard", "told"]


#: Data unit -> its manifest, and its replicas, nearest first.
Inputs = dict[str, tuple[Manifest, list[Replica]]]


def told(inputs: Inputs) -> bytes:
    """Inputs as every unit that reads is sent with them: of plain values, for pickle looks up classes each time."""
    return pickle.dumps([(manifest.plain(), [one.pickled() for one in some]) for manifest, some in inputs.values()])


def heard(told: bytes) -> Inputs:
    """The inputs that :func:`told` told of."""
    manifests = ((Manifest.of_plain(plain), replicas) for plain, replicas in pickle.loads(told))
    return {manifest.du: (manifest, [Replica.of_pickled(one) for one in replicas]) for manifest, replicas in manifests}


class StagedData:
    """A data unit as a function receives it: its files, on this machine's disk, read-only.

    Parameters
    ----------
    id : str
        The data unit's id.
    path : Path
        The directory that holds the files.
    names : sequence of str
        Their names.
    """

    def __init__(self, id: str, path: Path, names: tuple[str, ...]) -> None:
        self.id = id
        self.path = path
        self.files: Mapping[str, str] = {name: str(path / name) for name in names}

    def __repr__(self) -> str:
        return f"<StagedData {self.id}: {len(self.files)} files in {self.path}>"

    def open(self, name: str, mode: str = "rb") -> IO[Any]:
        """Open one of the files for reading."""
        if name not in self.files:
            known = ", ".join(sorted(self.files)[:10]) or "none"
            raise UnitError(f"data unit {self.id} has no file {name!r}; its files: {known}")
        if set(mode) - set("rbt"):
            raise UnitError(f"mode {mode!r}: inputs are read-only; open it with 'rb' or 'r'")
        return Path(self.files[name]).open(mode)


class Brought(NamedTuple):
    """A data unit that was brought to the cache."""

    pd: str
    distance: int
    nbytes: int
    seconds: float
    began: float
    evicted: tuple[str, ...] = ()


class Ahead:
    """Brings a unit's inputs to the cache while the unit is on its way here, or waits for a thread.

    Parameters
    ----------
    inputs : Inputs
    host : Host
        The worker.
    start : callable
        Has a function called in a thread.
    """

    def __init__(self, inputs: Inputs, host: Host, start: Callable[..., None]) -> None:
        self.stop = threading.Event()
        self.brought: dict[str, Brought] = {}
        self._host = host
        for manifest, replicas in inputs.values():
            if replicas and manifest.files:
                start(self._bring, manifest, replicas[0])

    def _bring(self, manifest: Manifest, replica: Replica) -> None:
        # What goes wrong here goes wrong again when the unit needs it, and is told then.
        with suppress(PilotError):
            store = self._host.reach(replica.place)
            if replica.may_link and store.is_visible():
                return

            def bring(directory: Path) -> None:
                at, began = time.time(), time.monotonic()
                download(store, manifest, directory, **terms(lambda _: None, self.stop))
                seconds = time.monotonic() - began
                self.brought[manifest.du] = Brought(replica.pd, replica.distance, manifest.nbytes, seconds, at)

            with self._host.cache.hold(manifest, bring, Terms(stop=self.stop).check) as cached:
                if cached.evicted and manifest.du in self.brought:
                    self.brought[manifest.du] = self.brought[manifest.du]._replace(evicted=cached.evicted)


class Attempt(Protocol):
    """The attempt of a unit whose files are staged."""

    held: ExitStack

    @property
    def ahead(self) -> Ahead | None:
        """What brings the inputs since before the unit began."""

    def directory(self) -> Path:
        """The unit's working directory."""

    def check(self, _nbytes: int = 0) -> None:
        """Raise if the unit was canceled."""

    def inputs(self) -> Inputs:
        """Where the unit's inputs are."""

    def terms(self) -> dict[str, Any]:
        """The terms of a transfer that ends when the unit is canceled."""

    @property
    def plugin(self) -> Host:
        """The worker."""


class Host(Protocol):
    """The worker, as staging needs it."""

    pilot: str

    @property
    def cache(self) -> Cache:
        """The machine's cache."""

    def reach(self, place: Place) -> Store:
        """A store in this process."""

    def ask(self, call: str, **arguments: Any) -> Any:
        """Ask the scheduler's plugin."""

    def tell(self, unit: str, what: str, **details: Any) -> None:
        """Tell it something."""


class _Staged(NamedTuple):
    """What was staged for a unit: told to the scheduler, which learns from it."""

    nbytes: list[int]  # by the distance that they came from
    transfers: list[tuple[str, str, int, float, float]]  # data unit, store, bytes, seconds, when it began
    evicted: list[str]
    read: dict[str, str]  # data unit -> the store whose replica was read, perhaps long ago, into the cache


class _Link(NamedTuple):
    """An input file that is a link: where it leads, and what it was like before the unit ran."""

    path: Path
    du: str
    name: str
    pd: str | None  # the store that it leads into; None: the machine's cache
    before: tuple[int, int]


class Staging:
    """The files of one attempt of a unit.

    Parameters
    ----------
    task : UnitTask
    run : Attempt
    tells : bool
        Whether the scheduler is to know of it: of an MPI unit, it hears of what its first worker does.
    """

    def __init__(self, task: UnitTask, run: Attempt, *, tells: bool = True) -> None:
        self._tells = tells
        self._task = task
        self._run = run
        self._host = run.plugin
        self._exclude: list[str] = []  # names of inputs, which are no outputs
        self._links: list[_Link] = []
        self._manifests: dict[str, Manifest] = {}
        self._staged = _Staged([0, 0, 0], [], [], {})

    # ---------------------------------------------------------------- in

    def bring(self, resolve: dict[Reference, Any]) -> None:
        """Put the inputs into the unit's directory, and what stands for them in its arguments into `resolve`."""
        task, directory = self._task, self._run.directory()
        began = time.time()
        for source, target in task.transfers:
            fetch(source, directory / target, on_bytes=self._run.check)
        inputs = self._run.inputs() if task.request.inputs else {}
        for du, (manifest, replicas) in inputs.items():
            self._run.check()
            own = du not in task.staged
            place = directory / ".inputs" / du if own else directory
            self._manifests[du] = manifest
            self._bring_unit(manifest, replicas, place)
            resolve[Reference("data", du)] = StagedData(du, place, manifest.names)
            if not own:
                self._exclude += manifest.names
        if inputs and self._tells:
            now = time.time()
            self._host.tell(task.id, "staged", seconds=now - began, at=now, **self._staged._asdict())

    def _bring_unit(self, manifest: Manifest, replicas: list[Replica], target: Path) -> None:
        """Bring one data unit from its nearest replica, or, where that fails, from the next one."""
        failures: list[PilotError] = []
        for replica in replicas:
            try:
                self._staged.read[manifest.du] = replica.pd
                self._bring_from(replica, manifest, target)
                return
            except UnitError:
                raise
            except PilotError as error:
                failures.append(error)
                # What may pass tells nothing of the replica; a file that is wrong or missing does.
                if isinstance(error, ChecksumError) or (isinstance(error, StoreError) and not error.transient):
                    self._host.tell(self._task.id, "damaged", du=manifest.du, pd=replica.pd)
        if not failures:
            raise StagingError(f"data unit {manifest.du} has no replica to stage {self._task.id} from")
        raise StagingError(
            f"data unit {manifest.du} could not be staged for {self._task.id} from any of its {len(failures)} "
            f"replicas; the last failure: {failures[-1]}"
        ) from failures[-1]

    def _bring_from(self, replica: Replica, manifest: Manifest, target: Path) -> None:
        """Link a data unit where its store is on this machine, else to the cache, into which it is brought once."""
        store = self._host.reach(replica.place)
        local = store.local_path(manifest.du) if replica.may_link else None
        if local is not None:
            self._put(manifest, local, target, replica.pd)
            self._staged.nbytes[0] += manifest.nbytes
            return

        def bring(directory: Path) -> None:
            at, began = time.time(), time.monotonic()
            download(store, manifest, directory, **self._run.terms())
            self._staged.transfers.append((manifest.du, replica.pd, manifest.nbytes, time.monotonic() - began, at))

        cache, ahead = self._host.cache, self._run.ahead
        with ExitStack() as held:
            try:
                cached = held.enter_context(cache.hold(manifest, bring, self._run.check))
            except StoreFullError:
                bring(target)  # too large for the cache
                self._staged.nbytes[replica.distance] += manifest.nbytes
                return
            try:
                self._put(manifest, cached.path, target, None)
            except ChecksumError:  # somebody was at the cache
                held.close()  # else it would wait for itself: what is in use is not brought anew
                cache.discard(manifest)
                cached = held.enter_context(cache.hold(manifest, bring, self._run.check))
                self._put(manifest, cached.path, target, None)
            self._run.held.push(held.pop_all())
        self._staged.evicted.extend(cached.evicted)
        early = ahead.brought.get(manifest.du) if ahead is not None and not cached.brought else None
        if early is not None:
            self._staged.nbytes[early.distance] += manifest.nbytes
            self._staged.transfers.append((manifest.du, early.pd, early.nbytes, early.seconds, early.began))
            self._staged.read[manifest.du] = early.pd
            self._staged.evicted.extend(early.evicted)
        else:
            self._staged.nbytes[replica.distance if cached.brought else 0] += manifest.nbytes

    def _put(self, manifest: Manifest, directory: Path, target: Path, pd: str | None) -> None:
        """Put files that are on this machine where the unit finds them."""
        if self._task.copy_inputs:
            copy_files(directory, manifest, target, **self._run.terms())
            return
        link_files(manifest, directory, target)
        for name in manifest.names:
            path = target / name
            self._links.append(_Link(path, manifest.du, name, pd, _mark(path)))

    # ---------------------------------------------------------------- afterwards

    def written_input(self) -> StagingError | None:
        """See whether the unit has written to an input: what others read would be changed.

        The files are read-only, but a program may change that, and for root it means nothing.
        """
        written = [link for link in self._links if link.path.is_symlink() and _mark(link.path) != link.before]
        for link in {(link.du, link.pd): link for link in written}.values():
            if link.pd is None:
                self._host.cache.discard(self._manifests[link.du])
            else:
                self._host.tell(self._task.id, "damaged", du=link.du, pd=link.pd)
        if not written:
            return None
        link = written[0]
        return StagingError(
            f"{self._task.id} has written to its input {link.name!r} of {link.du}, a link to a file that others "
            'read; describe the unit with input_mode "copy" to give it files of its own',
            du=link.du,
            name=link.name,
        )

    def collect(self) -> None:
        """Put the outputs into their data units."""
        task = self._task
        if not task.outputs:
            return
        if isinstance(task.work, Program):
            self._host.tell(task.id, "collecting", at=time.time())
        stores = self._host.ask("outputs", unit=task.id, pilot=self._host.pilot)
        for du, patterns in task.outputs:
            self._run.check()
            pd, place, room = stores[du]
            began = time.monotonic()
            manifest = stage_out(
                self._run.directory(),
                patterns,
                self._host.reach(place),
                du,
                task.id,
                exclude=self._exclude,
                on_missing=None if task.needs_outputs else self._warn,
                room=room,
                **self._run.terms(),
            )
            # Asked, not told: the unit is Done only once its outputs are known.
            seconds = time.monotonic() - began
            self._host.ask("collected", unit=task.id, du=du, pd=pd, manifest=manifest, seconds=seconds)

    def _warn(self, text: str) -> None:
        self._host.tell(self._task.id, "warning", text=f"{self._task.id}: {text}")


def _mark(path: Path) -> tuple[int, int]:
    """What changes when a file is written to."""
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return found.st_size, found.st_mtime_ns
