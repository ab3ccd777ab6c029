"""A store as it travels: with the worker that serves it to those who do not see it."""

from __future__ import annotations

from typing import NamedTuple

from dpilot.data import Store

__all__ = ["Place"]


class Place(NamedTuple):
    """A store, and how it is reached.

    ``host`` is the address of a worker that sees a machine-local store; None where there is none, or where the store is
    reached from everywhere.
    """

    store: Store
    host: str | None = None
