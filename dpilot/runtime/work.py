"""What travels from the client to the worker: a unit's work and its placement request, in one task.

The scheduler plugin reads the request from it and never opens the rest: functions and arguments
stay pickled until they are on the worker, so that the scheduler needs none of the user's modules.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle

from dpilot.placement import Request

__all__ = ["Bundled", "Call", "Program", "Reference", "UnitTask", "dump_arguments", "dump_function", "load_arguments"]


class Program(NamedTuple):
    """An executable to run: everything a process needs; see ``ComputeUnitSpec`` for the meanings.

    ``ranks`` is how many processes ``mpirun`` is to start of it; 0: it is started by itself.
    """

    executable: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    stdin: str | None
    stdout: str
    stderr: str
    ranks: int = 0


class Call(NamedTuple):
    """A Python function to call, pickled, and which results and data units its arguments refer to."""

    function: bytes
    arguments: bytes


@dataclass(slots=True)
class UnitTask:
    """One compute unit, as a Dask task carries it.

    Parameters
    ----------
    id : str
    work : Program or Call
    request : Request
        What it asks of a pilot.
    submitted : float
        When, in seconds since the epoch; of equal priority, the earlier goes first.
    priority : float
    retries : int
    outputs : tuple of (str, tuple of str)
        Data unit's id and the globs of the files that go there.
    staged : tuple of str
        Ids of the data units whose files are put into the sandbox itself.
    transfers : tuple of (str, str)
        Source and target of further files to copy into the sandbox.
    walltime_s : float or None
    directory : str or None
        Where to run instead of a sandbox of its own.
    copy_inputs : bool
        Whether input files are copies of the unit's own, not links.
    needs_outputs : bool
        Whether an output glob that matches no file is an error.
    """

    id: str
    work: Program | Call
    request: Request
    submitted: float
    priority: float = 0.0
    retries: int = 0
    outputs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    staged: tuple[str, ...] = ()
    transfers: tuple[tuple[str, str], ...] = ()
    walltime_s: float | None = None
    directory: str | None = None
    copy_inputs: bool = False
    needs_outputs: bool = False

    def __repr__(self) -> str:
        # Dask logs it: not the environment of a program or the arguments of a call, in which there may be secrets.
        return f"UnitTask({self.id!r}, kind={self.request.kind!r})"

    def __dask_tokenize__(self) -> str:
        # Dask hashes what is in a graph; the id says it all, and hashing the rest would take a third of a submission.
        return self.id


class Bundled(NamedTuple):
    """A unit of a bundle, see ``bundles.py``: its task's key, Dask's number of the attempt, the unit, and its inputs.

    These are as ``staging.told`` tells of them, on the machine by then; None: it reads nothing, or is to ask.
    """

    key: str
    run_id: int
    task: UnitTask
    inputs: bytes | None = None


class Reference(NamedTuple):
    """Stands in pickled arguments for a thing that the worker puts in its place.

    ``kind`` is ``data`` (a staged data unit) or ``result`` (of another task).
    """

    kind: str
    id: str


#: What an object refers to, or None if it is to be pickled as it is.
Refer = Callable[[Any], Reference | None]

_PLAIN = frozenset((int, float, str, bytes, bool, type(None)))
#: Objects of these types refer to nothing themselves, and most are of them; what is in a container may.
_UNREFERRING = _PLAIN | {tuple, list, dict}


class _Dumper(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, refer: Refer, found: dict[Reference, None]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._refer = refer
        self._found = found

    def persistent_id(self, obj: Any) -> Reference | None:
        if type(obj) in _UNREFERRING:
            return None
        reference = self._refer(obj)
        if reference is not None:
            self._found[reference] = None
        return reference


class _Loader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, resolve: Mapping[Reference, Any]) -> None:
        super().__init__(file)
        self._resolve = resolve

    def persistent_load(self, pid: Any) -> Any:
        return self._resolve[Reference(*pid)]


def dump_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function: by its name where it can be imported, else by value."""
    return bytes(cloudpickle.dumps(function, protocol=pickle.HIGHEST_PROTOCOL))


def dump_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], refer: Refer
) -> tuple[bytes, tuple[Reference, ...]]:
    """Pickle a call's arguments.

    Returns
    -------
    bytes
    tuple of Reference
        What the arguments refer to, however deep inside them.
    """
    if not kwargs and all(type(arg) in _PLAIN for arg in args):
        return pickle.dumps((args, {}), protocol=pickle.HIGHEST_PROTOCOL), ()
    file = io.BytesIO()
    found: dict[Reference, None] = {}
    _Dumper(file, refer, found).dump((args, dict(kwargs)))
    return file.getvalue(), tuple(found)


def load_arguments(data: bytes, resolve: Mapping[Reference, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Undo :func:`dump_arguments`, with `resolve` in place of the references."""
    args, kwargs = _Loader(io.BytesIO(data), resolve).load()
    return args, kwargs
