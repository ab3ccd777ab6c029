"""Tracebacks without internals: what a user reads of an error is the user's own code."""

from __future__ import annotations

from types import TracebackType

__all__ = ["without_internals"]

#: Of these modules are the frames between a worker's thread and what a unit runs.
_INTERNAL = ("dpilot.runtime.", "distributed.", "dask.")


def without_internals(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the user's own code; None where nothing of it does.

    What the user's code has called stays, be it a library or dpilot.
    """
    while trace is not None:
        if not str(trace.tb_frame.f_globals.get("__name__")).startswith(_INTERNAL):
            return trace
        trace = trace.tb_next
    return None
