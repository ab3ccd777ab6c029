"""Every error that dpilot raises: one hierarchy under :class:`PilotError`.

Errors cross processes (worker to scheduler to client), so they pickle with all their details.
A message names what was wrong, the value, and what to do.
"""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Any

__all__ = [
    "ChecksumError",
    "ConnectionLostError",
    "DataError",
    "DescriptionError",
    "ExecutableError",
    "FileMissingError",
    "InputError",
    "ManifestError",
    "PilotError",
    "PilotLaunchError",
    "PilotTimeoutError",
    "PlacementError",
    "StagingError",
    "StateError",
    "StoreError",
    "StoreFullError",
    "TransferStoppedError",
    "UnitCanceledError",
    "UnitError",
    "UnknownObjectError",
]


#: What dpilot calls, and is called by, between the user's code and the place where an error is raised.
_INTERNAL = {"dpilot", "distributed", "dask", "fsspec", "asyncio", "concurrent", "contextlib", "threading", "tornado"}


def _restore(cls: type[PilotError], message: str, details: dict[str, Any]) -> PilotError:
    return cls(message, **details)


class PilotError(Exception):
    """Base of all errors of dpilot.

    Parameters
    ----------
    message : str
        One or more sentences: what is wrong, the value, and the fix.
    **details
        Kept as attributes of the error, and through pickling.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.__dict__.update(details)

    def __reduce__(self) -> tuple[Any, ...]:
        details = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        return _restore, (type(self), str(self.args[0]), details)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: who asked, and what is wrong; how dpilot found out only under ``%xmode Verbose``."""
        ipython = sys.modules.get("IPython")
        shell = None if ipython is None else ipython.get_ipython()
        if shell is None:
            return traceback.format_exception(self)
        render = shell.InteractiveTB
        error = self if render.mode == "Verbose" else self._as_asked()
        lines: list[str] = render.structured_traceback(type(error), error, error.__traceback__)
        return lines

    def _as_asked(self) -> PilotError:
        """The same without dpilot's own frames, and without what lies only in these as its cause."""
        other = type(self).__new__(type(self))
        other.args = self.args
        other.__dict__.update(self.__dict__)
        before = self.__cause__ or (None if self.__suppress_context__ else self.__context__)
        if before is not None and before.__traceback__ is not None and _module(before.__traceback__) != "dpilot":
            other.__context__ = before
        return other.with_traceback(_of_users(self.__traceback__))


def _of_users(trace: TracebackType | None) -> TracebackType | None:
    """The frames of a traceback up to where dpilot was called, and those of what it called in turn for the user."""
    kept: list[TracebackType] = []
    is_inside = False
    while trace is not None:
        module = _module(trace)
        is_inside = is_inside or module == "dpilot"
        if not is_inside or module not in _INTERNAL:
            kept.append(trace)
        trace = trace.tb_next
    made: TracebackType | None = None
    for frame in reversed(kept):
        made = TracebackType(made, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return made


def _module(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]


class DescriptionError(PilotError, ValueError):
    """A description is malformed. It is raised before anything is started.

    Attributes
    ----------
    field : str or None
        The key of the description that is at fault.
    value : object
        Its value.
    """

    field: str | None = None
    value: Any = None


class UnknownObjectError(PilotError, LookupError):
    """No object with that id or URL is known to the scheduler."""


class StateError(PilotError):
    """The object's state does not allow what was asked of it."""


class PilotTimeoutError(PilotError, TimeoutError):
    """A ``wait(timeout=...)`` ran out. The message says what is still pending, and why."""


class ConnectionLostError(PilotError, ConnectionError):
    """The scheduler cannot be reached, or was lost."""


class PilotLaunchError(PilotError):
    """A pilot could not be started, or all of its workers died."""


class PlacementError(PilotError):
    """No pilot can ever run the unit as it is described."""


class DataError(PilotError):
    """Base of the errors about stores, data units and their files."""


class FileMissingError(DataError, FileNotFoundError):
    """There is no data unit, or no file in it, at a ``dpilot://`` URL."""


class StoreError(DataError, OSError):
    """A store cannot be reached, read or written.

    Attributes
    ----------
    transient : bool
        Whether the same may well succeed a little later: a connection was lost, or a server is busy.
    """

    transient: bool = False


class StoreFullError(StoreError):
    """The data would not fit into the pilot data's size, or its disk is full."""


class ManifestError(DataError, ValueError):
    """A manifest, or a file name in it, is malformed or would escape its root."""


class ChecksumError(DataError):
    """A file's bytes are not those which its manifest promises."""


class TransferStoppedError(DataError):
    """A transfer was stopped by whoever asked for it."""


class UnitError(PilotError):
    """Base of the reasons for which a compute unit failed."""


class ExecutableError(UnitError):
    """An executable could not be started, or ended with a status other than 0.

    Attributes
    ----------
    exit_code : int or None
        The exit status; negative for a signal; None where it did not start.
    stderr : str
        The last lines that it wrote to its error stream.
    """

    exit_code: int | None = None
    stderr: str = ""


class StagingError(UnitError):
    """An input could not be brought to a unit, or an output could not be collected."""


class InputError(UnitError):
    """An input data unit will never be there: it failed, was removed, or its producer failed.

    Attributes
    ----------
    root : str
        Where that began, however long the chain of units and data units is.
    """

    root: str = ""


class UnitCanceledError(UnitError):
    """The result of a canceled unit was asked for."""
